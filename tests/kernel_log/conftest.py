"""A collector that reads a given kernel log into a list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from node_agent.collectors.kmsg import KmsgCollector
from node_agent.evidence import Fact
from node_agent.spool import Spool

BOOT_ID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An empty spool: the collectors keep their cursors there."""
    opened = Spool.open(tmp_path / "spool")
    yield opened
    opened.close()


class Watch:
    """What a collector has reported."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def of(self, kind: str) -> list[Fact]:
        """The facts of a kind."""
        return [fact for fact in self.facts if fact.kind == kind]

    @property
    def lines(self) -> list[str]:
        """The kernel lines, as people see them."""
        return [fact.detail for fact in self.of("kernel_line")]

    async def until(self, condition: Callable[[Watch], bool]) -> None:
        """Wait for what the collector does."""
        async with asyncio.timeout(10):
            while not condition(self):  # noqa: ASYNC110  # the collector tells nobody
                await asyncio.sleep(0.005)


@asynccontextmanager
async def collecting(path: Path, spool: Spool, boot_id: str = BOOT_ID, **options: Any) -> AsyncIterator[Watch]:
    """Runs the collector as the supervisor does."""
    watch = Watch()
    task = asyncio.create_task(KmsgCollector(path, boot_id=boot_id, spool=spool, **options).collect(watch.facts.append))
    await asyncio.sleep(0)  # it opens the log: a FIFO has a reader from now on
    try:
        yield watch
        assert not task.done(), task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
