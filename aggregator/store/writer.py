"""The one thread that writes. It commits whatever is waiting as one group, so that a sync to disk is shared by many.

Nothing is confirmed before it is committed. What the disk refuses is tried again until it is accepted or the store closes:
meanwhile nothing is confirmed, the queue fills, and agents keep their records.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DatabaseError, NotSupportedError, ProgrammingError

from aggregator.store.arrivals import POISON, Delivery, ReadRecord, Receipt, Stored, store_deliveries

MAX_GROUP_RECORDS = 2000  # in one transaction: some 50 ms of work, so that no ack waits longer
MAX_WAITING_BYTES = 64 * 2**20  # of deliveries that wait to be stored, over all streams
RETRY_SECONDS = (0.1, 5.0)  # first and longest pause while the disk refuses

MISTAKES = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_LOCKED)  # of a statement: these repeat however often they are tried

T = TypeVar("T")
Change = Callable[[Connection], T]

log = structlog.get_logger(__name__)


class StoreClosed(Exception):
    """The store closed before this was durable: it was not stored, and was not confirmed."""


@dataclass(frozen=True, slots=True)
class _Job(Generic[T]):
    work: Delivery | Change[T]
    done: asyncio.Future[T]


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception


class Writer:
    """Group commits on one connection.

    on_stored is called from the writer's thread after each commit that stored anything of a delivery. Methods
    belong to the event loop that was running when the writer was made.
    """

    def __init__(
        self,
        engine: Engine,
        read: ReadRecord,
        *,
        on_stored: Callable[[Stored], None],
        on_refusal: Callable[[str | None], None],
        fence: Callable[[], object],
    ) -> None:
        self._engine = engine
        self._read = read
        self._on_stored = on_stored
        self._on_refusal = on_refusal
        self._fence = fence
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._room = _Room(MAX_WAITING_BYTES)
        self._closing = threading.Event()
        self._closed = False
        self._refusal: str | None = None
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def refusal(self) -> str | None:
        """Why the disk takes nothing now, in one line; None while it does."""
        return self._refusal

    async def append(self, delivery: Delivery) -> asyncio.Future[Receipt]:
        """Wait for room, and queue a delivery; the future is done once it is durable."""
        await self._room.claim(delivery.size)
        done = self._submit(delivery)

        def settled(done: asyncio.Future[Receipt]) -> None:
            self._room.release(delivery.size)
            if not done.cancelled():
                done.exception()  # whoever waited may be gone, and its failure is nobody's news then

        done.add_done_callback(settled)
        return done

    async def write(self, change: Change[T]) -> T:
        """Run one change in a transaction that it shares with others; return its result once it is durable.

        What the change raises is raised here, and undoes that change alone.
        """
        done: asyncio.Future[T] = self._submit(change)
        return await done

    async def close(self) -> None:
        """Commit what is queued, and end the thread. What the disk refuses by then fails with StoreClosed."""
        self._closed = True
        self._closing.set()
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _submit(self, work: Any) -> asyncio.Future[Any]:
        done: asyncio.Future[Any] = self._loop.create_future()
        if self._closed:
            done.set_exception(StoreClosed("the store is closed"))
        else:
            self._jobs.put(_Job(work, done))
        return done

    # --- on the writer's thread

    def _run(self) -> None:
        ended = False
        while not ended:
            group, ended = self._next_group()
            if group:
                self._settle(group, self._commit_until_accepted(group))

    def _next_group(self) -> tuple[list[_Job[Any]], bool]:
        """Wait for one job and take what waits behind it; True when the end was reached."""
        group: list[_Job[Any]] = []
        records = 0
        while records < MAX_GROUP_RECORDS:
            try:
                job = self._jobs.get(block=not group)
            except queue.Empty:
                break
            if job is None:
                return group, True
            group.append(job)
            records += len(job.work.records) if isinstance(job.work, Delivery) else 1
        return group, False

    def _commit_until_accepted(self, group: Sequence[_Job[Any]]) -> list[object]:
        pause, longest = RETRY_SECONDS
        while True:
            try:
                outcomes = self._commit(group)
            except DatabaseError as error:
                if not _is_refusal(error):
                    return _all_failed(group, error)
                reason = str(_root(error).orig)
                self._refuse(reason)
                if self._closing.wait(pause):
                    return _all_failed(group, StoreClosed(f"the store closed while the disk refused: {reason}"))
                pause = min(pause * 2, longest)
            except Exception as error:  # noqa: BLE001 - whoever waits gets it raised; the thread must outlive it
                return _all_failed(group, error)
            else:
                self._accept()
                return outcomes

    def _commit(self, group: Sequence[_Job[Any]]) -> list[object]:
        """All of the group in one transaction; one outcome for each job, in order."""
        began, now_us = time.perf_counter(), time.time_ns() // 1000
        deliveries = [job.work for job in group if isinstance(job.work, Delivery)]
        with self._engine.begin() as connection:
            self._fence()
            receipts, stored = store_deliveries(connection, deliveries, self._read, now_us)
            upcoming = iter(receipts)
            outcomes = [
                next(upcoming) if isinstance(job.work, Delivery) else _attempt(connection, job.work) for job in group
            ]
        stored.seconds = time.perf_counter() - began
        if stored.evidence or stored.quarantined or stored.snapshots:
            self._on_stored(stored)
        return outcomes

    def _refuse(self, reason: str) -> None:
        if self._refusal != reason:
            self._refusal = reason
            log.error("store_refused", reason=reason, consequence="nothing is acknowledged; agents keep their records")
            self._on_refusal(reason)

    def _accept(self) -> None:
        if self._refusal is not None:
            self._refusal = None
            log.info("store_recovered")
            self._on_refusal(None)

    def _settle(self, group: Sequence[_Job[Any]], outcomes: Sequence[object]) -> None:
        def settle() -> None:
            for job, outcome in zip(group, outcomes, strict=True):
                if job.done.cancelled():
                    continue
                if isinstance(outcome, _Failure):
                    job.done.set_exception(outcome.error)
                else:
                    job.done.set_result(outcome)

        self._loop.call_soon_threadsafe(settle)


def _attempt(connection: Connection, change: Change[Any]) -> object:
    """Run one change; what it raises is its outcome and leaves the rest of the group alone, unless it is the disk's doing."""
    try:
        with connection.begin_nested():
            return change(connection)
    except DatabaseError as error:
        if _is_refusal(error):
            raise
        return _Failure(error)
    except Exception as error:  # noqa: BLE001 - raised where the change came from
        return _Failure(error)


def _all_failed(group: Sequence[_Job[Any]], error: Exception) -> list[object]:
    return [_Failure(error)] * len(group)


def _is_refusal(error: DatabaseError) -> bool:
    """True when the same may be accepted later: the disk is full, the file is locked or cannot be read."""
    if isinstance(error, (ProgrammingError, NotSupportedError, *POISON)):
        return False
    return getattr(_root(error).orig, "sqlite_errorcode", None) not in MISTAKES


def _root(error: DatabaseError) -> DatabaseError:
    """What the disk said first: rolling back after it may fail as well."""
    first, link = error, error.__context__
    while link is not None:
        first, link = link if isinstance(link, DatabaseError) else first, link.__context__
    return first


class _Room:
    """Bytes that may wait; claims are served in their order."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def claim(self, size: int) -> None:
        """Return once there is room. One claim larger than the limit fits alone."""
        if not self._waiting and self._fits(size):
            self._used += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(size)
            raise

    def release(self, size: int) -> None:
        """Give room back and serve who waits."""
        self._used -= size
        while self._waiting and (self._waiting[0][1].cancelled() or self._fits(self._waiting[0][0])):
            waiting_size, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._used += waiting_size
                turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return self._used == 0 or self._used + size <= self._limit
