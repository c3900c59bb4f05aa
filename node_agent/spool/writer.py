"""The thread that owns the disk: writes what the logs took, makes it durable within 100 ms, keeps to the budget, outlasts refusals.

Nobody waits for it. Records can be read before they are written, so a slow or dead disk delays neither collectors nor the uplink.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from node_agent.spool.files import Segment
from node_agent.spool.log import Loss, SpoolLog
from node_agent.spool.segments import Entry, Kind, Place, number_payload

log = logging.getLogger(__name__)

SYNC_SECONDS = 0.05
LAZY_SECONDS = 5.0  # cursors and acknowledgements, unless they go along with at least as many bytes of records
RETRY_SECONDS = 1.0
HUNG_SECONDS = 5.0
IDLE_SECONDS = 60.0
SEGMENTS_PER_LOG = 8  # what is deleted for room at once, and what is at most written at once
SEGMENT_MIN_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Budget:
    """Room on disk in bytes; events may use what samples leave. Acknowledged segments go when nothing was written to them for
    `keep_acked_seconds`."""

    events_max_bytes: int
    samples_max_bytes: int
    keep_acked_seconds: float

    def segment_max_bytes(self, log_name: str) -> int:
        """Size at which a log goes on in a new segment."""
        whole = self.samples_max_bytes if log_name == "samples" else self.events_max_bytes
        return max(SEGMENT_MIN_BYTES, whole // SEGMENTS_PER_LOG)


@dataclass(frozen=True, slots=True)
class _Bookkeeping:
    """What a log remembers beside its records."""

    acked_offset: int
    unconfirmed_from: int | None
    cursors: Mapping[str, bytes]


class Writer:
    """Writes two logs. `changed` is the spool's one lock; disk calls are made without it."""

    def __init__(
        self,
        events: SpoolLog,
        samples: SpoolLog,
        cursors: Mapping[str, bytes],
        budget: Budget,
        *,
        changed: threading.Condition,
        lose: Callable[[Loss], None],
        can_tell: Callable[[], bool],
        keep_installation_id: Callable[[], None],
    ) -> None:
        self._events = events
        self._samples = samples
        self._cursors = cursors
        self._budget = budget
        self._changed = changed
        self._lose = lose
        self._can_tell = can_tell
        self._keep_installation_id = keep_installation_id
        self._kept = {each.name: self._present(each) for each in (events, samples)}
        self._kept_at = dict.fromkeys(self._kept, 0.0)
        self._error = ""
        self._busy_since: float | None = None
        self._unsynced_since: float | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)

    @property
    def problem(self) -> str:
        """Why nothing reaches the disk, in one line; empty while it does."""
        busy_since = self._busy_since
        if busy_since is not None and (seconds := time.monotonic() - busy_since) > HUNG_SECONDS:
            return f"the spool's disk has not answered for {seconds:.0f} s"
        if not self._thread.is_alive() and not self._closing:
            return "the spool's writer has died: nothing reaches the disk"
        return self._error

    def start(self) -> None:
        """Begin this run in both logs, then write in the background. A disk that refuses is tried again there."""
        try:
            for each in (self._events, self._samples):
                self._begin_run(each)
        except OSError as error:
            self._refused(error)
        self._thread.start()

    def close(self, timeout_seconds: float) -> None:
        """Write everything and end. What the disk does not take in time is lost, and the next run tells so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_seconds)

    def _begin_run(self, each: SpoolLog) -> None:
        if each.files.segments:
            opened = number_payload(each.unconfirmed_from or 0)
            each.files.go_on(Entry(Kind.OPENED, each.end, opened))
        else:
            self._begin_segment(each)

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._wait()
            self._busy_since = time.monotonic()
            try:
                self._cycle(closing)
                self._took()
            except OSError as error:
                self._refused(error)
            finally:
                self._busy_since = None
        for each in (self._events, self._samples):
            each.files.stop()

    def _wait(self) -> bool:
        """Wait until something is to be done; True when it is the last."""
        with self._changed:
            if self._error:
                self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
            elif self._unsynced_since is not None:
                due = self._unsynced_since + SYNC_SECONDS - time.monotonic()
                self._changed.wait_for(self._has_work, max(0.0, due))
            else:
                self._changed.wait_for(lambda: self._has_work() or self._has_news(), IDLE_SECONDS)
                self._changed.wait_for(self._has_work, LAZY_SECONDS)
            return self._closing

    def _has_work(self) -> bool:
        return self._closing or self._events.has_unwritten or self._samples.has_unwritten

    def _has_news(self) -> bool:
        return any(self._news(each) is not None for each in (self._events, self._samples))

    def _cycle(self, closing: bool) -> None:
        self._keep_installation_id()
        for each in (self._events, self._samples):
            self._write(each)
            if closing:
                each.files.append((Entry(Kind.CLOSED, each.files.segments[-1].end, b""),))
        now = time.monotonic()
        if self._unsynced_since is None and (self._events.files.unsynced or self._samples.files.unsynced):
            self._unsynced_since = now
        if closing or (self._unsynced_since is not None and now >= self._unsynced_since + SYNC_SECONDS):
            self._sync()
        self._keep_to_budget()

    def _sync(self) -> None:
        self._unsynced_since = None
        for each in (self._events, self._samples):
            each.files.sync()

    def _write(self, each: SpoolLog) -> None:
        everything = False
        while not everything:
            files = each.files
            if not files.writable or self._outgrown(each) or files.segments[-1].name.spool_id != each.spool_id:
                self._begin_segment(each)
            with self._changed:  # the cursors of now go behind every record of now, and never before one
                batch, everything = each.take(self._budget.segment_max_bytes(each.name))
                news = self._news(each) if everything else None
            end = batch[-1].end if batch else files.segments[-1].end
            controls = _control_entries(end, news, self._kept[each.name]) if news else []
            if not self._worth_writing(each, controls, batch):
                news, controls = None, []
            if batch or controls:
                files.append([*batch, *controls])
                each.wrote(batch)
            if news:
                self._kept[each.name], self._kept_at[each.name] = news, time.monotonic()

    def _worth_writing(self, each: SpoolLog, controls: Sequence[Entry], batch: Sequence[Entry]) -> bool:
        """A cursor that lags behind has some records read again, which is harmless; one for every record would fill the disk."""
        if self._closing or time.monotonic() - self._kept_at[each.name] >= LAZY_SECONDS:
            return True
        return sum(len(entry.payload) for entry in controls) <= sum(len(entry.payload) for entry in batch)

    def _begin_segment(self, each: SpoolLog) -> None:
        """Go on in a new segment. It starts with all bookkeeping that the old ones hold, so that these can go."""
        begin = each.next_place()
        head = _control_entries(begin, self._kept[each.name])
        each.files.begin(each.spool_id, begin, head)

    def _outgrown(self, each: SpoolLog) -> bool:
        return each.files.segments[-1].size_bytes >= self._budget.segment_max_bytes(each.name)

    def _present(self, each: SpoolLog) -> _Bookkeeping:
        cursors = dict(self._cursors) if each is self._events else {}
        return _Bookkeeping(each.acked_offset, each.unconfirmed_from, cursors)

    def _news(self, each: SpoolLog) -> _Bookkeeping | None:
        """The present bookkeeping when it is not on disk yet."""
        present = self._present(each)
        return None if present == self._kept[each.name] else present

    def _keep_to_budget(self) -> None:
        for each in (self._samples, self._events):
            while (oldest := _deletable(each)) and _acked(each, oldest) and self._is_old(oldest):
                each.files.delete(oldest)
        # Telling of a loss writes, and takes along what came meanwhile: only looking again shows that there is room.
        while (overfull := self._overfull()) is not None:
            if not self._delete_oldest(overfull):
                return

    def _is_old(self, segment: Segment) -> bool:
        if segment.begin == segment.end:
            return True
        try:
            return time.time() - segment.path.stat().st_mtime > self._budget.keep_acked_seconds
        except FileNotFoundError:
            return True

    def _overfull(self) -> SpoolLog | None:
        """The log to take room from."""
        budget = self._budget
        samples, events = self._samples.size_bytes, self._events.size_bytes
        too_much = samples + events > budget.samples_max_bytes + budget.events_max_bytes
        if _deletable(self._samples) and (too_much or samples > budget.samples_max_bytes):
            return self._samples
        return self._events if too_much and _deletable(self._events) else None

    def _delete_oldest(self, each: SpoolLog) -> bool:
        """Delete the oldest segment, but first make durable that its records are lost, and those of which its gaps told."""
        oldest = each.files.segments[0]
        if not _acked(each, oldest):
            if not self._can_tell():
                return False
            unacked = each.files.unacked(oldest, each.acked_offset)
            reason = f"{each.name}: the spool's room on disk ran out before a server took them"
            id_, first, count = oldest.name.spool_id, unacked.first, unacked.lost_count
            self._lose(Loss(each.name, "overflow", id_, first, oldest.end, "spool", reason, count))
            for gap in unacked.unknown:
                self._events.append(gap, Kind.GAP)
            self._write(self._events)
            self._events.files.sync()
        each.files.delete(oldest)
        return True

    def _refused(self, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._make_room()
        else:
            for each in (self._events, self._samples):
                each.files.stop()
        problem = f"the spool's disk refuses: {error.strerror or error}; records are kept in memory"
        if problem != self._error:
            log.warning("%s", problem)
        self._error = problem

    def _make_room(self) -> None:
        """On a full disk, give up the oldest segment that some server has already: the only one that can go without a word."""
        for each in (self._samples, self._events):
            if (oldest := _deletable(each)) and _acked(each, oldest):
                with contextlib.suppress(OSError):
                    each.files.delete(oldest)
                return

    def _took(self) -> None:
        if self._error:
            log.warning("the spool's disk takes records again")
            self._error = ""


def _control_entries(end: Place, now: _Bookkeeping, before: _Bookkeeping | None = None) -> list[Entry]:
    """What brings the bookkeeping on disk up to date; all of it for a new segment."""
    controls: list[Entry] = []
    if before is None and now.unconfirmed_from is not None:
        controls.append(Entry(Kind.OPENED, end, number_payload(now.unconfirmed_from)))
    if before is not None and now.unconfirmed_from is None and before.unconfirmed_from is not None:
        controls.append(Entry(Kind.RESUMED, end, b""))
    if before is None or now.acked_offset != before.acked_offset:
        controls.append(Entry(Kind.ACKED, end, number_payload(now.acked_offset)))
    for name, value in now.cursors.items():
        if before is None or before.cursors.get(name) != value:
            controls.append(Entry(Kind.CURSOR, end, name.encode() + b"\0" + value))
    return controls


def _deletable(each: SpoolLog) -> Segment | None:
    """The oldest segment, unless it is the one being written."""
    segments = each.files.segments
    return segments[0] if len(segments) > 1 else None


def _acked(each: SpoolLog, segment: Segment) -> bool:
    return segment.end.offset <= each.acked_offset or segment.end == segment.begin
