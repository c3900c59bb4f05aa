"""The segment files of one log: found again after any ending, read from any offset, written at the end, deleted from the front.

One thread writes and deletes (the spool's writer); any thread reads. Nothing here is kept in memory but names and ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from node_agent.spool.segments import (
    Entry,
    Kind,
    Place,
    SegmentName,
    entries,
    mark_of,
    pack,
    payload_number,
    record_size,
)

ORIGIN = Place(0, 0)
MAX_HOLES = 64  # of one log at opening; more are told as one that spans them
KNOWN_POSITIONS = 16  # readers that go on where they left off: the uplink, and a few local queries
DISK_BLOCK_BYTES = 4096


class SpoolRecord(NamedTuple):
    """One record, and the log's offset behind it."""

    end_offset: int
    payload: bytes


class Hole(NamedTuple):
    """Records between two places that cannot be read any more."""

    spool_id: str
    first: Place
    last: Place


@dataclass(slots=True)
class Segment:
    """One file; `end` and `size_bytes` grow while it is the last."""

    name: SegmentName
    path: Path
    end: Place
    size_bytes: int

    @property
    def begin(self) -> Place:
        """The log's place at the segment's start."""
        return self.name.begin


@dataclass(slots=True)
class Recovered:
    """What earlier runs left. Without any segment: no spool_id, and nothing else.

    `unconfirmed_from` is the offset at which the first of the runs began that no server has talked with since.
    """

    spool_id: str = ""
    end: Place = ORIGIN
    acked_offset: int = 0
    unconfirmed_from: int | None = None
    closed: bool = True
    cursors: dict[str, bytes] = field(default_factory=dict)
    holes: list[Hole] = field(default_factory=list)


class Unacked(NamedTuple):
    """What goes with a segment: its records from a place on, and those that gaps among them tell of. The gaps that cannot say how
    many they tell of are not counted: they have to stay."""

    first: Place
    lost_count: int
    unknown: list[bytes]


class _Scan(NamedTuple):
    entry: Entry
    position: int
    before: Place  # the place that the scan had reached
    begin: Place  # the place where this entry begins: beyond `before` when something is missing


class SegmentFiles:
    """The segments of one log in a directory, oldest first."""

    def __init__(self, directory: Path, log: str) -> None:
        self._directory = directory
        self._log = log
        self._descriptor: int | None = None
        self._positions: OrderedDict[int, tuple[int, int, Place]] = OrderedDict()
        self._positions_lock = threading.Lock()
        self.segments: tuple[Segment, ...] = ()  # replaced, never changed: readers need no lock
        self.unsynced = False

    @property
    def writable(self) -> bool:
        """Whether a segment is open for writing."""
        return self._descriptor is not None

    @property
    def end_offset(self) -> int:
        """Offset behind the newest record on disk."""
        return self.segments[-1].end.offset if self.segments else 0

    @property
    def size_bytes(self) -> int:
        """Room that the segments take on the disk."""
        return sum(-(-segment.size_bytes // DISK_BLOCK_BYTES) * DISK_BLOCK_BYTES for segment in self.segments)

    def recover(self) -> Recovered:
        """Read every segment that earlier runs left, whatever their state. Raises OSError when the directory cannot be read."""
        names = (SegmentName.parse(path.name) for path in self._directory.iterdir())
        found = sorted((name for name in names if name is not None and name.log == self._log), key=lambda n: n.serial)
        recovered = Recovered()
        for name in found:
            path = name.path(self._directory)
            if self.segments:
                self.segments[-1].end = name.begin
                _add_hole(recovered, recovered.spool_id, recovered.end, name.begin)
            segment = Segment(name, path, name.begin, path.stat().st_size)
            recovered.spool_id, recovered.end, recovered.closed = name.spool_id, name.begin, False
            self._recover_segment(segment, recovered)
            self.segments += (segment,)
        return recovered

    def _recover_segment(self, segment: Segment, recovered: Recovered) -> None:
        for step in _scan(segment, 0, segment.begin):
            entry = step.entry
            _add_hole(recovered, segment.name.spool_id, step.before, step.begin)
            recovered.end = segment.end = entry.end
            recovered.closed = entry.kind == Kind.CLOSED and step.position == segment.size_bytes
            match entry.kind:
                case Kind.CURSOR:
                    name, _, value = entry.payload.partition(b"\0")
                    recovered.cursors[name.decode()] = value
                case Kind.ACKED:
                    recovered.acked_offset = max(recovered.acked_offset, payload_number(entry.payload))
                case Kind.OPENED:
                    recovered.unconfirmed_from = payload_number(entry.payload)
                case Kind.RESUMED:
                    recovered.unconfirmed_from = None

    def read(self, offset: int, max_bytes: int, max_records: int) -> tuple[list[SpoolRecord], list[Hole]]:
        """The next records behind the offset, at least one if there is any, and the holes passed on the way to the last of them."""
        holes: list[Hole] = []
        for segment in self.segments:
            if segment.end.offset > offset:
                records = self._read_segment(segment, offset, max_bytes, max_records, holes)
                if records:
                    return records, holes
        return [], holes

    def _read_segment(
        self, segment: Segment, offset: int, max_bytes: int, max_records: int, holes: list[Hole]
    ) -> list[SpoolRecord]:
        end = segment.end  # may grow while this reads
        position, place = self._position(segment, offset)
        records: list[SpoolRecord] = []
        for step in _scan(segment, position, place):
            if step.entry.end > end:
                break
            position, place = step.position, step.entry.end
            if place.offset <= offset:
                continue
            holes += _holes(segment.name.spool_id, step.before, step.begin)
            if step.entry.is_record:
                records.append(SpoolRecord(place.offset, step.entry.record))
                max_bytes -= len(step.entry.payload)
            if max_bytes <= 0 or len(records) >= max_records:
                break
        else:
            if segment in self.segments:  # else it was deleted meanwhile, and that was told
                holes += _holes(segment.name.spool_id, place, end)
        self._remember(segment, position, place)
        return records

    def _position(self, segment: Segment, offset: int) -> tuple[int, Place]:
        with self._positions_lock:
            serial, position, place = self._positions.pop(offset, (0, 0, segment.begin))
        return (position, place) if serial == segment.name.serial else (0, segment.begin)

    def _remember(self, segment: Segment, position: int, place: Place) -> None:
        with self._positions_lock:
            self._positions[place.offset] = (segment.name.serial, position, place)
            while len(self._positions) > KNOWN_POSITIONS:
                self._positions.popitem(last=False)

    def begin(self, spool_id: str, begin: Place, head: Sequence[Entry]) -> None:
        """Go on in a new segment that starts with the entries, durably. Raises OSError; then nothing has changed."""
        serial = self.segments[-1].name.serial + 1 if self.segments else 1
        name = SegmentName(self._log, serial, begin, spool_id)
        path = name.path(self._directory)
        self.sync()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            size = _write(descriptor, head, mark_of(spool_id), 0)
            os.fdatasync(descriptor)
            _sync_directory(self._directory)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self.stop()
        self._descriptor = descriptor
        if self.segments:
            self.segments[-1].end = begin
        self.segments += (Segment(name, path, head[-1].end if head else begin, size),)

    def go_on(self, opened: Entry) -> None:
        """Write on in the last segment, behind whatever it holds; this run begins there with the entry, durably. Raises OSError."""
        self._descriptor = os.open(self.segments[-1].path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.append((opened,))
            self.sync()
        except OSError:
            self.stop()
            raise

    def append(self, batch: Sequence[Entry]) -> None:
        """Write entries behind the last. Raises OSError; then a later attempt overwrites what was half written."""
        assert self._descriptor is not None
        segment = self.segments[-1]
        segment.size_bytes = _write(self._descriptor, batch, mark_of(segment.name.spool_id), segment.size_bytes)
        segment.end = batch[-1].end
        self.unsynced = True

    def sync(self) -> None:
        """Make durable what is written. Raises OSError; the segment is then given up, for the kernel may have dropped its pages."""
        if self._descriptor is None or not self.unsynced:
            return
        self.unsynced = False
        try:
            os.fdatasync(self._descriptor)
        except OSError:
            self.stop()
            raise

    def stop(self) -> None:
        """Write no more in the present segment."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def unacked(self, segment: Segment, acked_offset: int) -> Unacked:
        """What of the segment is not known to be acknowledged."""
        first, lost_count, unknown = segment.begin, 0, []
        for step in _scan(segment, 0, segment.begin):
            entry = step.entry
            if entry.end.offset <= acked_offset:
                first = entry.end
            elif entry.kind == Kind.GAP and entry.lost_count is not None:
                lost_count += entry.lost_count - 1
            elif entry.kind == Kind.GAP:
                lost_count -= 1
                unknown.append(entry.payload)
        return Unacked(first, lost_count + segment.end.number - first.number, unknown)

    def delete(self, segment: Segment) -> None:
        """Delete one segment. Raises OSError."""
        segment.path.unlink(missing_ok=True)
        self.segments = tuple(each for each in self.segments if each is not segment)


def _scan(segment: Segment, position: int, place: Place) -> Iterator[_Scan]:
    """The segment's readable entries from a position on, at which the log had reached the place. A file that is gone, or that the
    disk cannot read, has none."""
    try:
        descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        yield from _scan_file(descriptor, position, place, mark_of(segment.name.spool_id))
    finally:
        os.close(descriptor)


def _scan_file(descriptor: int, position: int, place: Place, mark: bytes) -> Iterator[_Scan]:
    def read_at(start: int, size: int) -> bytes:
        try:
            return os.pread(descriptor, size, start)
        except OSError:  # a bad sector: as if the file ended here
            return b""

    for entry, behind in entries(read_at, position, mark):
        begin = entry.end
        if entry.is_record:
            begin = Place(entry.end.offset - record_size(entry.payload), entry.end.number - 1)
        if begin >= place:
            yield _Scan(entry, behind, place, begin)
            place = entry.end


def _holes(spool_id: str, first: Place, last: Place) -> list[Hole]:
    return [Hole(spool_id, first, last)] if last.number > first.number else []


def _add_hole(recovered: Recovered, spool_id: str, first: Place, last: Place) -> None:
    holes = recovered.holes
    holes += _holes(spool_id, first, last)
    if len(holes) > MAX_HOLES:
        holes[-2:] = [holes[-2]._replace(last=last)]


def _write(descriptor: int, batch: Sequence[Entry], mark: bytes, position: int) -> int:
    """The position behind what was written."""
    rest = memoryview(b"".join([pack(entry, mark) for entry in batch]))
    while rest:
        written = os.pwrite(descriptor, rest, position)
        position += written
        rest = rest[written:]
    return position


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
