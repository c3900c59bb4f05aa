"""One log of the spool as collectors and the uplink see it: append never waits, reading goes from disk into memory without a seam.

A record lives in memory until the writer has it on disk. Where the disk refuses, memory is bounded: the oldest records go, and that
is told, except those that tell of losses themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node_agent.spool.files import Hole, Recovered, SegmentFiles, SpoolRecord
from node_agent.spool.segments import MAX_PAYLOAD_BYTES, Entry, Kind, Place, record_size

IN_MEMORY_OVERHEAD_BYTES = 250  # what Python needs to hold one record, beside its payload
REMEMBERED_LOSSES = 1024
DROP_DIVISOR = 16  # how much of its memory a log frees at once when it overflows


@dataclass(frozen=True, slots=True)
class Loss:
    """Records that are gone. `why` names the way in the loss's identity; `last` is None, and the count unknown, after a run that
    did not close the spool."""

    log: str
    why: str
    spool_id: str
    first: Place
    last: Place | None
    where: str
    reason: str
    count: int | None


class SpoolLog:
    """Records in order. Safe to use from any thread; only `wait_beyond` needs an event loop.

    Offsets are bytes of records since the log began. They never shrink within a spool_id.
    """

    def __init__(
        self,
        name: str,
        files: SegmentFiles,
        recovered: Recovered,
        *,
        memory_max_bytes: int,
        changed: threading.Condition,
        lose: Callable[[Loss], None],
    ) -> None:
        self.name = name
        self.files = files
        self.spool_id = recovered.spool_id or str(uuid.uuid4())
        self._end = recovered.end
        self._acked_offset = min(recovered.acked_offset, recovered.end.offset)
        self._unconfirmed_from = recovered.unconfirmed_from
        if self._unconfirmed_from is None:
            self._unconfirmed_from = recovered.end.offset
        self._memory_max_bytes = memory_max_bytes
        self._changed = changed
        self._lose = lose
        self._unwritten: deque[Entry] = deque()
        self._unwritten_bytes = 0
        self._dropped: Loss | None = None
        self._told: deque[tuple[int, int]] = deque(maxlen=REMEMBERED_LOSSES)
        self._waiters: list[asyncio.Future[None]] = []
        for hole in recovered.holes:
            if hole.last.offset > self._acked_offset:
                self._tell_hole(hole)

    @property
    def begin_offset(self) -> int:
        """Offset of the oldest record still kept."""
        with self._changed:
            if self.files.segments:
                return self.files.segments[0].begin.offset
            return self._begin_of(self._unwritten[0]).offset if self._unwritten else self._end.offset

    @property
    def end_offset(self) -> int:
        """Offset behind the newest record."""
        return self._end.offset

    @property
    def end(self) -> Place:
        """The place behind the newest record."""
        return self._end

    @property
    def acked_offset(self) -> int:
        """Every record that ends at or before this offset was stored by some server. A lower bound."""
        return self._acked_offset

    @property
    def unconfirmed_from(self) -> int | None:
        """The offset from which on no server was asked yet what it has; None after `resume_at`."""
        return self._unconfirmed_from

    @property
    def has_unwritten(self) -> bool:
        """Whether records wait for the disk."""
        return bool(self._unwritten)

    @property
    def size_bytes(self) -> int:
        """Room that the log takes on the disk."""
        return self.files.size_bytes

    def append(self, payload: bytes, kind: Kind = Kind.RECORD) -> None:
        """Take one record. It can be read at once, and is written as soon as the disk takes it."""
        with self._changed:
            begin, self._end = self._end, Place(self._end.offset + record_size(payload), self._end.number + 1)
            if len(payload) > MAX_PAYLOAD_BYTES:
                reason = f"a record of {len(payload)} bytes is larger than {MAX_PAYLOAD_BYTES}"
                self._told.append((begin.offset, self._end.offset))
                self._lose(Loss(self.name, "hole", self.spool_id, begin, self._end, "spool", reason, 1))
                return
            self._unwritten.append(Entry(kind, self._end, payload))
            self._unwritten_bytes += _in_memory(payload)
            if self._unwritten_bytes > self._memory_max_bytes:
                self._drop_oldest()
            self._changed.notify()
            waiters, self._waiters = self._waiters, []
            crowded = self._unwritten_bytes > self._memory_max_bytes // 2
        if crowded:
            time.sleep(0)  # the writer's turn: a burst without a pause would overflow memory beside a healthy disk
        for waiter in waiters:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)

    def read(self, offset: int, *, max_bytes: int, max_records: int) -> list[SpoolRecord]:
        """The next records behind the offset, oldest first: at least one if there is any, whatever its size. Reads the disk."""
        records: list[SpoolRecord] = []
        while not records and offset < self._end.offset:
            on_disk = self.files.end_offset
            records, holes = self.files.read(offset, max_bytes, max_records)
            for hole in holes:
                self._tell_hole(hole)
            if not records:
                offset = max(offset, on_disk)
                records = self._read_memory(offset, max_bytes, max_records)
                if not records and self.files.end_offset <= offset:
                    break  # what the log ends with was lost
        return records

    def _read_memory(self, offset: int, max_bytes: int, max_records: int) -> list[SpoolRecord]:
        records: list[SpoolRecord] = []
        with self._changed:
            if self.files.end_offset > offset:  # the writer has moved some to disk meanwhile
                return records
            for entry in self._unwritten:
                if entry.end.offset <= offset:
                    continue
                records.append(SpoolRecord(entry.end.offset, entry.record))
                max_bytes -= len(entry.payload)
                if max_bytes <= 0 or len(records) >= max_records:
                    break
            if records and self._dropped is not None and records[-1].end_offset > self._dropped.first.offset:
                self.tell_dropped()
        return records

    async def wait_beyond(self, offset: int) -> None:
        """Return when there is a record behind the offset."""
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._end.offset > offset:
                    return
                waiter: asyncio.Future[None] = loop.create_future()
                self._waiters.append(waiter)
            try:
                await waiter
            finally:
                with self._changed, contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)

    def acknowledge(self, offset: int) -> None:
        """A server has stored every record that ends at or before the offset."""
        with self._changed:
            self._acked_offset = max(self._acked_offset, min(offset, self._end.offset))
            self._changed.notify()

    def resume_at(self, committed_offset: int) -> int:
        """Where to send from to a server that has stored the log up to the offset.

        Where that lies beyond the log's end, the log has lost its tail: it takes a new spool_id, under which everything that is
        left is sent again. The end that counts is the one before the first record that was never offered to a server: what came
        behind it may bear offsets that the lost tail bore.
        """
        with self._changed:
            if committed_offset > (self._end.offset if self._unconfirmed_from is None else self._unconfirmed_from):
                self.spool_id = str(uuid.uuid4())
                self._changed.notify()
                return self.begin_offset
            self._unconfirmed_from = None
            self.acknowledge(committed_offset)
        return max(committed_offset, self.begin_offset)

    def take(self, max_bytes: int) -> tuple[list[Entry], bool]:
        """The oldest entries that are not written yet, which stay until `wrote`; and whether these are all. For the writer."""
        with self._changed:
            batch: list[Entry] = []
            for entry in self._unwritten:
                batch.append(entry)
                max_bytes -= len(entry.payload)
                if max_bytes <= 0:
                    break
            return batch, len(batch) == len(self._unwritten)

    def wrote(self, batch: Sequence[Entry]) -> None:
        """The entries are on disk; what was dropped from memory since they were taken is not lost after all, and stays told."""
        with self._changed:
            for entry in batch:
                if self._unwritten and self._unwritten[0] is entry:
                    self._unwritten.popleft()
                    self._unwritten_bytes -= _in_memory(entry.payload)
            self.tell_dropped()

    def next_place(self) -> Place:
        """Where a segment begins that takes what is not written yet."""
        with self._changed:
            return self._begin_of(self._unwritten[0]) if self._unwritten else self._end

    def tell_dropped(self) -> None:
        """Have what memory could not hold reported. Not done for each record: it is one loss until someone reads or writes on."""
        if (dropped := self._dropped) is not None and dropped.last is not None:
            self._dropped = None
            self._told.append((dropped.first.offset, dropped.last.offset))
            self._lose(dropped)

    def _drop_oldest(self) -> None:
        kept: list[Entry] = []
        target = self._memory_max_bytes - self._memory_max_bytes // DROP_DIVISOR
        while self._unwritten and self._unwritten_bytes > target:
            entry = self._unwritten.popleft()
            if entry.kind == Kind.GAP:
                kept.append(entry)
                continue
            self._unwritten_bytes -= _in_memory(entry.payload)
            if entry.end.offset > self._acked_offset:
                self._dropped = self._drop(entry)
        self._unwritten.extendleft(reversed(kept))

    def _drop(self, entry: Entry) -> Loss:
        first, count = self._begin_of(entry), 1
        if self._dropped is not None and self._dropped.count is not None:
            first, count = self._dropped.first, self._dropped.count + 1
        reason = "the disk took no more, and memory overflowed"
        return Loss(self.name, "hole", self.spool_id, first, entry.end, "memory", reason, count)

    def _tell_hole(self, hole: Hole) -> None:
        """A hole within what was told already is the same loss, seen from the disk. One that a reader meets is told even where a
        server has acknowledged it: this one asks for it."""
        first, last = hole.first.offset, hole.last.offset
        with self._changed:
            if any(begin <= first and last <= end for begin, end in self._told):
                return
            self._told.append((first, last))
            count = hole.last.number - hole.first.number
            reason = "damaged or missing on disk"
            self._lose(Loss(self.name, "hole", hole.spool_id, hole.first, hole.last, "spool", reason, count))

    @staticmethod
    def _begin_of(entry: Entry) -> Place:
        return Place(entry.end.offset - record_size(entry.payload), entry.end.number - 1)


def _in_memory(payload: bytes) -> int:
    return len(payload) + IN_MEMORY_OVERHEAD_BYTES


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
