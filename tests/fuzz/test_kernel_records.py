"""Whatever bytes arrive as a kernel record: parsing gives a record, the filter an answer, and the evidence can be encoded."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.collectors.kmsg import Reading
from node_agent.evidence import Fact, KernelRecord, Recorder
from node_agent.kernel_log import KernelCursor, keep, parse
from protos.v1.evidence_pb2 import Evidence
from tests.fuzz import EXAMPLES

numbers = st.one_of(st.integers(-5, 5), st.integers(0, 1 << 70)).map(lambda number: str(number).encode())
prefixes = st.builds(
    lambda parts: b",".join(parts), st.lists(st.one_of(numbers, st.sampled_from([b"-", b"c", b"", b"x"])), max_size=6)
)
texts = st.one_of(
    st.binary(max_size=80),
    st.sampled_from(
        [b"NVRM: Xid (PCI:0000:41:00): 79, pid=12", rb"NVRM: \xff\x00\x0a", b"NVRM: \n SUBSYSTEM=pci", b"dull"]
    ),
)
records = st.builds(lambda prefix, text: prefix + b";" + text, prefixes, texts) | st.binary(max_size=120)
recorder = Recorder(node="n", boot_id="b", simulated=False, append_event=print, append_sample=print)


def escaped(text: str) -> bytes:
    """As the kernel prints a message."""
    return b"".join(
        bytes([byte]) if 32 <= byte < 127 and byte != 92 else b"\\x%02x" % byte
        for byte in text.encode("utf-8", "surrogateescape")
    )


@settings(max_examples=EXAMPLES)
@given(records)
def test_every_record_is_read_or_kept_whole(raw: bytes) -> None:
    record = parse(raw)
    assert isinstance(keep(record.line.lower()), bool)
    assert record.malformed in (b"", raw)


@settings(max_examples=EXAMPLES)
@given(st.binary(max_size=200).map(lambda data: data.decode("utf-8", "surrogateescape")), st.integers(0, 10**18 - 1))
def test_a_message_comes_out_as_it_went_in(text: str, seq: int) -> None:
    raw = b"11,%d,5,-;%s\n SUBSYSTEM=x\n" % (seq, escaped(text))
    assert parse(raw) == KernelRecord(text, seq, facility=1, level=3, monotonic_usec=5, flags="-")


@settings(max_examples=EXAMPLES)
@given(st.lists(records, max_size=30))
def test_any_stream_becomes_evidence_and_nothing_else(stream: list[bytes]) -> None:
    facts: list[Fact] = []
    reading = Reading(KernelCursor("boot"), facts.append, replays=False)
    for raw in stream:
        reading.take(raw)
    reading.end_storms()
    for fact in facts:
        assert Evidence.FromString(recorder.encode(fact)).source in ("kmsg", "kmsg_storm", "gap")
    malformed = sum(1 for raw in stream if parse(raw).malformed)
    assert sum(1 for fact in facts if isinstance(fact.body, KernelRecord) and fact.body.malformed) <= malformed
    assert KernelCursor.decode(reading.cursor.encode()) is not None
