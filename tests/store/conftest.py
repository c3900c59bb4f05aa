"""A real SQLite file, and records as agents send them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from aggregator.pipeline import read_record
from aggregator.store import Store
from aggregator.store.arrivals import Delivery, Record
from tests.bench.load import kernel_line

NODE = "gpu-1"
BOOT = "boot-a"


def lines(
    first: int, count: int, *, node: str = NODE, text: str = "nvidia-nvlink: line", spool_id: str = "spool-a"
) -> Delivery:
    """Kernel lines number `first` and on, each ending at the offset of its number."""
    numbers = range(first, first + count)
    return Delivery(node, spool_id, tuple(Record(n, kernel_line(node, BOOT, n, f"{text} {n}")) for n in numbers))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sentinel.db"


@pytest.fixture
async def store(database: Path) -> AsyncIterator[Store]:
    opened = Store(database, read_record)
    yield opened
    await opened.close()


@pytest.fixture
def reopen(database: Path) -> Callable[[], Store]:
    return lambda: Store(database, read_record)
