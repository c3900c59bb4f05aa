"""Reads the kernel log as it is written, and what the ring still holds from before: each kept record becomes evidence, verbatim.

A record's identity is the kernel's own (boot_id, seq), so reading it again is harmless; numbers that are missing become a gap.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from node_agent.evidence import Fact, Gap, KernelRecord, Report, Storm, TimeBasis, Workload
from node_agent.kernel_log import CURSOR, LINES_PER_MINUTE, USEC_PER_MINUTE, KernelCursor, keep, parse, pid_of
from node_agent.kernel_stream import KernelStream, open_stream
from node_agent.spool import Spool

RECORDS_AT_ONCE = 256
STORM_SECONDS = 60.0
EMPTY_WAKE_SECONDS = 0.05
MALFORMED_BITS = 20  # of an identity's number: which malformed record behind the last good one

WorkloadsOfPid = Callable[[int], tuple[Workload, ...]]
"""Who runs a process, from what is known now: must neither block nor raise."""


class KmsgCollector:
    """Reports kernel_line, kernel_storm and evidence_gap. Resumes behind the last record that the spool holds."""

    name = "kmsg"

    def __init__(
        self, path: Path, *, boot_id: str, spool: Spool, workloads_of_pid: WorkloadsOfPid | None = None
    ) -> None:
        self._path = path
        self._boot_id = boot_id
        self._spool = spool
        self._workloads_of_pid = workloads_of_pid

    async def collect(self, report: Report) -> None:
        """Read until cancelled. Raises OSError when the log cannot be read, or not any more."""
        with closing(open_stream(self._path)) as stream:
            reading = Reading(
                self._resume(report),
                report,
                replays=stream.replays,
                complete=stream.is_device,
                workloads_of_pid=self._workloads_of_pid,
            )
            while True:
                if records := stream.read(RECORDS_AT_ONCE):
                    for raw in records:
                        reading.take(raw)
                    self._spool.put_cursor(CURSOR, reading.cursor.encode())
                    await asyncio.sleep(0)
                    continue
                reading.caught_up()
                await self._wait(stream, reading)

    def _resume(self, report: Report) -> KernelCursor:
        cursor = KernelCursor.decode(self._spool.get_cursor(CURSOR))
        if cursor is not None and cursor.boot_id == self._boot_id:
            return cursor
        if cursor is not None:  # the boot ended before its last minute did
            for storm_fact in storm_facts(cursor, None):
                report(replace(storm_fact, occurred_at=None))
        return KernelCursor(self._boot_id)

    async def _wait(self, stream: KernelStream, reading: Reading) -> None:
        try:
            async with asyncio.timeout(reading.storm_ends_in()):
                await stream.wait()
                if reading.woken_for_nothing():
                    await asyncio.sleep(EMPTY_WAKE_SECONDS)
        except TimeoutError:
            reading.end_storms()
            self._spool.put_cursor(CURSOR, reading.cursor.encode())


class Reading:
    """One pass over a kernel log. One that `replays` begins with records that may have been read before; one that is `complete`
    begins with the boot, so that what is missing there is a loss."""

    def __init__(
        self,
        cursor: KernelCursor,
        report: Report,
        *,
        replays: bool,
        complete: bool = False,
        workloads_of_pid: WorkloadsOfPid | None = None,
    ) -> None:
        self.cursor = cursor
        self._report = report
        self._workloads_of_pid = workloads_of_pid
        self._complete = complete
        self._live = not replays
        # Places in the log: the number that the next good record has at least, and how many malformed ones came since the last.
        known = (cursor.next_seq or 0, cursor.malformed)
        self._known, self._at = (known, (0, 0)) if replays else ((0, 0), known)
        self._storm_since: float | None = None
        self._time_storm()
        self._taken = 0
        self._taken_at_wake = -1

    def take(self, raw: bytes) -> None:
        """Take the next record. Those that the cursor has behind it are passed over."""
        self._taken += 1
        record = parse(raw)
        self._at = (self._at[0], self._at[1] + 1) if record.malformed else (record.seq + 1, 0)
        if self._at <= self._known:
            return
        if not record.malformed:
            self._follow(record)
            if keep(record.line.lower()):
                self._take_kept(record)
        elif self.cursor.kernel_storm.admit(raw, record.seq):
            self._report(self._malformed_fact(record))
        self.cursor.malformed = self._at[1]
        self._time_storm()

    def caught_up(self) -> None:
        """Everything was read: what comes from now on is seen as it happens."""
        self._live = True
        self._known = (0, 0)

    def woken_for_nothing(self) -> bool:
        """Whether nothing was read since this was last asked: a log that is always ready and never gives must not be spun on."""
        before, self._taken_at_wake = self._taken_at_wake, self._taken
        return before == self._taken

    def storm_ends_in(self) -> float | None:
        """Seconds until a storm is told that no later record ends; None without one."""
        return None if self._storm_since is None else max(0.0, self._storm_since + STORM_SECONDS - time.monotonic())

    def end_storms(self) -> None:
        """Tell what was counted, though no record of a later minute came."""
        self._tell(storm_facts(self.cursor, None))

    def _follow(self, record: KernelRecord) -> None:
        """Note the record's number, and what is missing before it."""
        cursor = self.cursor
        expected = cursor.next_seq
        if expected is None:
            expected = 0 if self._complete else record.seq
        if record.seq > expected:
            self._report(gap_fact(cursor.boot_id, expected, record.seq - 1))
        cursor.next_seq = record.seq + 1
        cursor.monotonic_usec = record.monotonic_usec

    def _take_kept(self, record: KernelRecord) -> None:
        self._tell(storm_facts(self.cursor, record.monotonic_usec))
        meter = self.cursor.userspace_storm if record.facility else self.cursor.kernel_storm
        if meter.admit(record.line, record.seq):
            self._report(self._line_fact(record))

    def _tell(self, storms: Iterator[Fact]) -> None:
        for fact in storms:
            self._storm_since = None
            self._report(fact)

    def _time_storm(self) -> None:
        if self._storm_since is None and (self.cursor.kernel_storm.counting or self.cursor.userspace_storm.counting):
            self._storm_since = time.monotonic()

    def _line_fact(self, record: KernelRecord) -> Fact:
        pid = pid_of(record.line)
        return Fact(
            source="kmsg",
            kind="kernel_line",
            detail=" | ".join(record.line.split("\n")),
            body=record,
            occurred_at=None if self._live else _wall_time(record.monotonic_usec),
            time_basis=TimeBasis.OBSERVED if self._live else TimeBasis.ESTIMATED,
            identity=(self.cursor.boot_id, record.seq),
            workloads=self._workloads_of_pid(pid) if self._workloads_of_pid and pid else (),
        )

    def _malformed_fact(self, record: KernelRecord) -> Fact:
        good, since = self._at
        number = (good % (1 << 40) << MALFORMED_BITS) + min(since, (1 << MALFORMED_BITS) - 1)
        return Fact(
            source="kmsg",
            kind="kernel_line",
            detail="a kernel log record without a readable prefix: "
            + record.malformed.decode("utf-8", "backslashreplace"),
            body=record,
            identity=(f"{self.cursor.boot_id}/malformed", number),
        )


def storm_facts(cursor: KernelCursor, monotonic_usec: int | None) -> Iterator[Fact]:
    """What was counted in the minutes that end with a record of this kernel time, or, with None, that are over anyway."""
    writers = (("the kernel", cursor.kernel_storm), ("userspace", cursor.userspace_storm))
    for writer, meter in writers:
        storm = meter.end() if monotonic_usec is None else meter.begin(monotonic_usec)
        if storm is not None:
            yield _storm_fact(cursor.boot_id, writer, storm)


def _storm_fact(boot_id: str, writer: str, storm: Storm) -> Fact:
    """What userspace wrote is told in the detail alone: nobody reads it as the kernel's word."""
    detail = (
        f"{storm.suppressed_count} records by {writer} in minute {storm.boot_minute} since boot were counted instead of sent:"
        f" repeated lines, or more than {LINES_PER_MINUTE} different ones; the last: {storm.last_line}"
    )
    by_kernel = writer == "the kernel"
    return Fact(
        source="kmsg_storm",
        kind="kernel_storm",
        detail=" | ".join(detail.split("\n")),
        body=storm if by_kernel else replace(storm, last_line=""),
        occurred_at=_wall_time(storm.boot_minute * USEC_PER_MINUTE),
        time_basis=TimeBasis.ESTIMATED,
        identity=(boot_id if by_kernel else f"{boot_id}/userspace", storm.boot_minute),
    )


def gap_fact(boot_id: str, first: int, last: int) -> Fact:
    """Kernel records that were never read. The identity holds the last of them: the first moves when it is looked for from an older
    cursor, and a larger loss must not pass for a smaller one that is known."""
    lost_count = last - first + 1
    return Fact(
        source="gap",
        kind="evidence_gap",
        detail=f"{lost_count} kernel log records ({first} to {last}) were overwritten before they could be read",
        body=Gap(
            where="kernel_ring",
            reason="overwritten before they could be read",
            lost_source="kmsg",
            lost_epoch=boot_id,
            first=first,
            last=last,
            lost_count=lost_count,
        ),
        identity=(f"{boot_id}/kernel_ring", last),
    )


def _wall_time(monotonic_usec: int) -> float:
    """When the kernel time was, if the clock was never set since; seconds since the epoch, never in the future."""
    return time.time() - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - monotonic_usec / 1e6)
