"""The store: what is durable. One writer, several readers, SQLAlchemy Core statements, SQLite today.

`Store` joins the parts; statements are plain functions of a connection, run by `write` or `read`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from aggregator.store.arrivals import Delivery, ReadRecord, Receipt, Stored
from aggregator.store.opening import READERS, Lock, StoreUnusable, open_readers, open_writer, read_meta
from aggregator.store.writer import Change, StoreClosed, Writer

__all__ = ["Store", "StoreClosed", "StoreUnusable"]

T = TypeVar("T")


class Store:
    """An open database. Made with `open`, inside a running event loop; belongs to that loop."""

    def __init__(self, database: Path, read_record: ReadRecord, fence: Callable[[], object] | None = None) -> None:
        """`fence` is asked before each transaction, on the writer's thread: what it raises undoes that transaction."""
        self.on_stored: Callable[[Stored], None] = lambda _: None  # on the writer's thread, after commit
        self.on_refusal: Callable[[str | None], None] = lambda _: None  # likewise, when the disk refuses or recovers
        self._lock = Lock(database)
        try:
            self._writing = open_writer(database)
        except StoreUnusable:
            self._lock.release()
            raise
        self._reading = open_readers(database)
        with self._reading.connect() as connection:
            self.store_id = read_meta(connection, "store_id") or ""
        self._closed = False
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._writer = Writer(
            self._writing,
            read_record,
            on_stored=lambda stored: self.on_stored(stored),
            on_refusal=lambda reason: self.on_refusal(reason),
            fence=fence or (lambda: None),
        )

    @property
    def refusal(self) -> str | None:
        """Why the disk takes nothing now, in one line; None while it does."""
        return self._writer.refusal

    async def append(self, delivery: Delivery) -> asyncio.Future[Receipt]:
        """Wait for room and queue a delivery; the future is done once it is durable. See `Writer.append`."""
        return await self._writer.append(delivery)

    async def write(self, change: Change[T]) -> T:
        """Run a change in a transaction; return its result once it is durable. See `Writer.write`."""
        return await self._writer.write(change)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on a reader's thread and connection; it sees one consistent state."""

        def run() -> T:
            with self._reading.begin() as connection:
                return query(connection)

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    async def close(self) -> None:
        """Commit what is queued, then let go of the file. Closing again changes nothing."""
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        await asyncio.to_thread(self._threads.shutdown)
        self._reading.dispose()
        self._writing.dispose()
        self._lock.release()
