"""The bytes of a segment: self-describing, checksummed entries, readable again behind any damage. Pure.

An entry is a mark (from the segment's spool_id, so that no payload can imitate an entry), its kind, the payload's length, the log's
end behind it, a CRC-32 of all that, and the payload. Every entry says where the log then ends, in bytes and in records: what is
missing between two readable entries is known exactly.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

MAX_PAYLOAD_BYTES = 1024 * 1024
CHUNK_BYTES = 64 * 1024

_NUMBER_BYTES = 8
_UNKNOWN = (1 << 8 * _NUMBER_BYTES) - 1
_FIELDS = struct.Struct("<4sBIQQ")
_CRC = struct.Struct("<I")
ENTRY_OVERHEAD_BYTES = _FIELDS.size + _CRC.size

_NAME = re.compile(r"([a-z]+)-(\d{8})-(\d{1,18})-(\d{1,18})-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.seg")

ReadAt = Callable[[int, int], bytes]
"""Bytes of a file from a position on, at most so many; fewer only at the file's end."""


class Kind(IntEnum):
    """What an entry holds. From CONTROL on, entries are the spool's own: never sent, and no part of the log's offsets."""

    RECORD = 1
    GAP = 2  # a record that tells of lost records, behind their number: what it tells is never dropped before it is acknowledged
    CONTROL = 16
    CURSOR = 17  # a source's name, NUL, its value
    ACKED = 18  # the offset that a server has acknowledged
    OPENED = 19  # a run began; the offset from which on no server was asked yet what it has
    RESUMED = 20  # a server was asked
    CLOSED = 21  # a run ended, with everything written


class Place(NamedTuple):
    """A place in a log: bytes and records before it, both counted since the log began."""

    offset: int
    number: int


class Entry(NamedTuple):
    """One entry; `end` is the log's end behind it."""

    kind: int
    end: Place
    payload: bytes

    @property
    def is_record(self) -> bool:
        """Whether it is sent, rather than the spool's own."""
        return self.kind < Kind.CONTROL

    @property
    def record(self) -> bytes:
        """What is sent."""
        return self.payload[_NUMBER_BYTES:] if self.kind == Kind.GAP else self.payload

    @property
    def lost_count(self) -> int | None:
        """How many records a gap tells of; None when nobody knows."""
        count = payload_number(self.payload[:_NUMBER_BYTES])
        return None if count == _UNKNOWN else count


class SegmentName(NamedTuple):
    """What a segment file's name says: whose it is, its turn, and where it begins."""

    log: str
    serial: int
    begin: Place
    spool_id: str

    @classmethod
    def parse(cls, file_name: str) -> SegmentName | None:
        """None for any other file."""
        match = _NAME.fullmatch(file_name)
        if match is None:
            return None
        log, serial, offset, number, spool_id = match.groups()
        return cls(log, int(serial), Place(int(offset), int(number)), spool_id)

    def path(self, directory: Path) -> Path:
        """Where the segment lies."""
        begin = self.begin
        return directory / f"{self.log}-{self.serial:08d}-{begin.offset}-{begin.number}-{self.spool_id}.seg"


def number_payload(number: int) -> bytes:
    """A number as the payload of a control entry."""
    return number.to_bytes(_NUMBER_BYTES, "big")


def payload_number(payload: bytes) -> int:
    """The number in a control entry's payload."""
    return int.from_bytes(payload, "big")


def gap_payload(lost_count: int | None, record: bytes) -> bytes:
    """A gap's payload: how many records it tells of, and the record that tells it."""
    return number_payload(_UNKNOWN if lost_count is None else lost_count) + record


def mark_of(spool_id: str) -> bytes:
    """The four bytes that begin every entry of the spool_id's segments. Raises ValueError when it is no UUID."""
    return UUID(spool_id).bytes[:4]


def record_size(payload: bytes) -> int:
    """How far a record moves the log's end, in bytes."""
    return ENTRY_OVERHEAD_BYTES + len(payload)


def pack(entry: Entry, mark: bytes) -> bytes:
    """The entry as it lies in a segment."""
    fields = _FIELDS.pack(mark, entry.kind, len(entry.payload), *entry.end)
    return b"".join((fields, _CRC.pack(zlib.crc32(entry.payload, zlib.crc32(fields))), entry.payload))


def entries(read_at: ReadAt, position: int, mark: bytes) -> Iterator[tuple[Entry, int]]:
    """The readable entries from a byte position on, each with the position behind it; damaged bytes are passed over."""
    chunk, at = read_at(position, CHUNK_BYTES), 0
    while True:
        size = _size_at(chunk, at, mark)
        if at + max(size, ENTRY_OVERHEAD_BYTES) > len(chunk):
            longer = read_at(position + at, max(size, CHUNK_BYTES))
            if len(longer) > len(chunk) - at:
                chunk, position, at = longer, position + at, 0
                continue
            if len(chunk) - at < ENTRY_OVERHEAD_BYTES:
                return
        entry = _entry_at(chunk, at, size)
        if entry is not None:
            at += size
            yield entry, position + at
        else:
            found = chunk.find(mark, at + 1)
            at = found if found >= 0 else max(at + 1, len(chunk) - len(mark) + 1)


def _size_at(chunk: bytes, at: int, mark: bytes) -> int:
    """The size of the entry that seems to begin here; 0 when none can."""
    if len(chunk) - at < ENTRY_OVERHEAD_BYTES:
        return 0
    found, _, length, _, _ = _FIELDS.unpack_from(chunk, at)
    return ENTRY_OVERHEAD_BYTES + length if found == mark and length <= MAX_PAYLOAD_BYTES else 0


def _entry_at(chunk: bytes, at: int, size: int) -> Entry | None:
    if not size or at + size > len(chunk):
        return None
    _, kind, _, offset, number = _FIELDS.unpack_from(chunk, at)
    payload = chunk[at + ENTRY_OVERHEAD_BYTES : at + size]
    (crc,) = _CRC.unpack_from(chunk, at + _FIELDS.size)
    if crc != zlib.crc32(payload, zlib.crc32(chunk[at : at + _FIELDS.size])):
        return None
    return Entry(kind, Place(offset, number), payload)
