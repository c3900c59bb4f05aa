"""Whatever bytes a segment file holds: reading it ends, never raises, and gives nothing that was not written."""

from __future__ import annotations

import uuid

from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.spool.segments import Entry, Kind, Place, SegmentName, entries, mark_of, pack
from tests.fuzz import EXAMPLES

SPOOL_ID = str(uuid.UUID(int=0x5EED << 100))
MARK = mark_of(SPOOL_ID)
ENTRIES = [
    Entry(kind, Place(1000 * number, number), bytes([number]) * size)
    for number, (kind, size) in enumerate([(Kind.RECORD, 5), (Kind.CURSOR, 0), (Kind.GAP, 200), (Kind.RECORD, 70_000)])
]
PACKED = [pack(entry, MARK) for entry in ENTRIES]

damaged = st.builds(
    lambda data, at, bit: data[:at] + bytes([data[at % len(data)] ^ (1 << bit)]) + data[at + 1 :],
    st.sampled_from(PACKED),
    st.integers(0, 300),
    st.integers(0, 7),
)
pieces = st.one_of(
    st.sampled_from(PACKED), damaged, st.binary(max_size=60), st.just(MARK), st.binary(max_size=40).map(MARK.__add__)
)


def read(data: bytes) -> list[tuple[Entry, int]]:
    """What is readable of a file."""
    return list(entries(lambda position, size: data[position : position + size], 0, MARK))


@settings(max_examples=EXAMPLES)
@given(st.lists(pieces, max_size=12))
def test_only_what_was_written_is_read(content: list[bytes]) -> None:
    found = read(b"".join(content))
    assert all(entry in ENTRIES for entry, _ in found)
    assert [behind for _, behind in found] == sorted({behind for _, behind in found})


@settings(max_examples=EXAMPLES)
@given(st.lists(st.integers(0, 3), max_size=6), st.binary(max_size=80), st.lists(st.integers(0, 3), max_size=6))
def test_what_lies_around_damage_is_read(before: list[int], garbage: bytes, after: list[int]) -> None:
    data = b"".join([*(PACKED[i] for i in before), garbage, *(PACKED[i] for i in after)])
    found = [entry for entry, _ in read(data)]
    assert found == [ENTRIES[i] for i in (*before, *after)]


@settings(max_examples=EXAMPLES)
@given(st.text(max_size=120))
def test_any_file_name_is_a_segment_or_not(name: str) -> None:
    parsed = SegmentName.parse(name)
    assert parsed is None or mark_of(parsed.spool_id)
