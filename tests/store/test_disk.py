"""What the disk does to the store: full, busy, corrupt, newer, taken away; and how it recovers."""

from __future__ import annotations

import asyncio
import gc
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection

from aggregator.pipeline import read_record
from aggregator.store import Store, StoreUnusable, queries
from aggregator.store.arrivals import committed_offsets
from aggregator.store.queries import EvidenceFilter
from aggregator.store.writer import StoreClosed
from tests.store.conftest import NODE, lines


def allow_pages(more: int) -> Callable[[Connection], None]:
    """A database of a fixed size: SQLite's own SQLITE_FULL."""

    def change(connection: Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + more}")

    return change


def pragma(database: Path, name: str) -> object:
    with sqlite3.connect(database) as connection:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]


async def until_refused(store: Store) -> str:
    async with asyncio.timeout(10):
        while store.refusal is None:  # noqa: ASYNC110 - it is set on another thread
            await asyncio.sleep(0.01)
    return store.refusal


async def test_a_full_disk_confirms_nothing_and_recovers_by_itself(store: Store, database: Path) -> None:
    said: list[str | None] = []
    store.on_refusal = said.append
    await (await store.append(lines(1, 2000, text="x" * 200)))
    await store.write(allow_pages(0))
    waiting = await store.append(lines(2001, 500, text="x" * 500))
    assert "full" in await until_refused(store)
    assert not waiting.done()
    with sqlite3.connect(database) as outside:  # somebody makes room
        assert outside.execute("SELECT max(offset) FROM positions").fetchone()[0] == 2000
        outside.execute("DELETE FROM evidence WHERE seq <= 1900")
    async with asyncio.timeout(10):
        receipt = await waiting
    assert receipt.offset == 2500
    assert store.refusal is None
    assert len(said) == 2
    assert said[0]
    assert said[1] is None
    assert await store.read(queries.list_quarantine) == []  # nothing was condemned for the disk's fault


async def test_a_store_that_closes_while_the_disk_is_full_confirms_nothing(
    database: Path, reopen: Callable[[], Store]
) -> None:
    store = Store(database, read_record)
    await (await store.append(lines(1, 10)))
    await store.write(allow_pages(0))
    waiting = await store.append(lines(11, 2000, text="x" * 500))
    await until_refused(store)
    await store.close()
    with pytest.raises(StoreClosed):
        await waiting
    again = reopen()
    assert await again.read(partial(committed_offsets, node=NODE, spool_ids=["spool-a"])) == {"spool-a": 10}
    await again.close()


async def test_a_delivery_that_nobody_waits_for_any_more_fails_in_silence(database: Path) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    store = Store(database, read_record)
    await store.write(allow_pages(0))
    await store.append(lines(1, 2000, text="x" * 500))  # its stream ended meanwhile
    await until_refused(store)
    await store.close()
    await asyncio.sleep(0)
    gc.collect()
    assert complaints == []


async def test_a_writer_that_is_locked_out_waits(store: Store, database: Path) -> None:
    """Another process that holds the database for longer than the patience delays, and loses nothing."""
    with sqlite3.connect(database, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = await store.append(lines(1, 3))
        await until_refused(store)
        other.execute("ROLLBACK")
    async with asyncio.timeout(15):
        assert (await waiting).offset == 3


async def test_the_file_is_made_for_durability_and_for_shrinking(store: Store, database: Path) -> None:
    await (await store.append(lines(1, 1)))
    assert pragma(database, "journal_mode") == "wal"
    assert pragma(database, "auto_vacuum") == 2  # incremental
    full = 2
    assert await store.write(lambda c: c.exec_driver_sql("PRAGMA synchronous").scalar_one()) == full


async def test_a_store_keeps_its_identity(database: Path, reopen: Callable[[], Store], tmp_path: Path) -> None:
    store = Store(database, read_record)
    await store.close()
    again = reopen()
    await again.close()
    other = Store(tmp_path / "other.db", read_record)
    await other.close()
    assert store.store_id == again.store_id != other.store_id


async def test_two_aggregators_cannot_share_a_database(store: Store, reopen: Callable[[], Store]) -> None:
    with pytest.raises(StoreUnusable, match="in use by another aggregator"):
        reopen()


@pytest.mark.parametrize("damage", [b"not a database" * 1000, b"SQLite format 3\x00" + b"\xff" * 5000])
async def test_a_corrupt_file_is_refused_with_the_way_out(
    damage: bytes, database: Path, reopen: Callable[[], Store]
) -> None:
    await asyncio.to_thread(damage_it, database, damage)
    with pytest.raises(StoreUnusable, match="restore a backup, or move it"):
        reopen()
    assert await asyncio.to_thread(database.read_bytes) == damage


def damage_it(database: Path, damage: bytes) -> None:
    database.parent.mkdir()
    database.write_bytes(damage)


async def test_a_newer_file_is_refused_with_the_way_out(database: Path, reopen: Callable[[], Store]) -> None:
    store = Store(database, read_record)
    await store.close()
    with sqlite3.connect(database) as outside:
        (head,) = outside.execute("SELECT version_num FROM alembic_version").fetchone()
        outside.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreUnusable, match=r"newer gcm-sentinel \(schema 9999\); install that version"):
        reopen()
    with sqlite3.connect(database) as outside:
        outside.execute("UPDATE alembic_version SET version_num = ?", (head,))
    await reopen().close()  # refusing let go of the file


async def test_a_directory_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(StoreUnusable, match="cannot be written"):
        Store(Path("/proc/gcm-sentinel/sentinel.db"), read_record)


CHILD = """
import asyncio, sys, pathlib
from aggregator.pipeline import read_record
from aggregator.store import Store
from tests.store.conftest import lines

async def main():
    store = Store(pathlib.Path(sys.argv[1]), read_record)
    first = 1
    while True:
        receipts = await asyncio.gather(*[await store.append(lines(first + n * 7, 7)) for n in range(3)])
        first += 21
        print(receipts[-1].offset, flush=True)

asyncio.run(main())
"""


async def test_what_was_confirmed_survives_a_kill(database: Path, reopen: Callable[[], Store]) -> None:
    """SIGKILL in the middle of writing: every confirmed record is there, and the position speaks of nothing that is not."""
    confirmed = await asyncio.to_thread(kill_in_the_middle, database)
    store = reopen()
    rows = await store.read(partial(queries.list_evidence, wanted=EvidenceFilter(), after_id=0, limit=100_000))
    position = (await store.read(partial(committed_offsets, node=NODE, spool_ids=["spool-a"])))["spool-a"]
    await store.close()
    assert len(rows) == position >= confirmed >= 21 * 20


def kill_in_the_middle(database: Path) -> int:
    """Let a child write and confirm for a while, kill it; return the last offset it confirmed."""
    with subprocess.Popen([sys.executable, "-c", CHILD, str(database)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(20):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        return max(int(line) for line in child.stdout.read().splitlines()[:-1] or ["420"])
