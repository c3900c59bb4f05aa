"""Hostile bytes: decoding gives a fact or says Malformed, and a server that gets them serves everybody else."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator import wire
from aggregator.model import Evidence
from aggregator.pipeline import read_record
from aggregator.store.arrivals import Body, EvidenceRow, Record, Refused, SnapshotRow
from protos.v1 import agent_pb2, evidence_pb2
from tests.fuzz import EXAMPLES
from tests.server.aggregator import Agent, agent, lines, running, stored

numbers = st.integers(0, 2**64 - 1)
signed = st.integers(-(2**63), 2**63 - 1)
words = st.text(max_size=40)
stamps = st.builds(lambda s, n: {"seconds": s, "nanos": n}, signed, st.integers(-(2**31), 2**31 - 1))
values = st.one_of(
    st.builds(lambda n: {"number": n}, st.floats()),
    st.builds(lambda t: {"text": t}, words),
    st.just({"unsupported": True}),
    st.just({}),
)
bodies = st.one_of(
    st.builds(
        lambda line, seq, raw: {"kernel_record": {"line": line, "seq": seq, "malformed": raw}},
        words,
        numbers,
        st.binary(max_size=30),
    ),
    st.builds(lambda t, d: {"gpu_event": {"type": t, "data": d}}, numbers, numbers),
    st.builds(lambda f, b, a: {"observation": {"field": f, "before": b, "after": a}}, words, values, values),
    st.builds(lambda r, n: {"gap": {"reason": r, "lost_count": n}}, words, numbers),
    st.builds(lambda n, line: {"storm": {"suppressed_count": n, "last_line": line}}, numbers, words),
    st.builds(lambda o, line: {"text_capture": {"origin": o, "line": line}}, words, words),
    st.builds(lambda u, p: {"inventory": {"gpus": [{"uuid": u, "pci": p}], "pci_gpus": [p]}}, words, words),
    st.just({}),
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """An Evidence message that is valid protobuf, and of which nothing else may be assumed."""
    message = evidence_pb2.Evidence(
        node=draw(st.sampled_from(["gpu-1", "gpu-2", "", "a/b"])),
        source=draw(st.one_of(st.just("kmsg"), words)),
        epoch=draw(words),
        seq=draw(numbers),
        kind=draw(st.one_of(st.just("kernel_line"), words)),
        phase=draw(st.integers(0, 9)),  # type: ignore[arg-type]
        occurred_at=draw(stamps),
        gpu={"uuid": draw(words), "pci": draw(words)},
        detail=draw(words),
        **draw(bodies),
    )
    return message.SerializeToString() + draw(st.sampled_from([b"", b"\xfa\x3e\x05later", b"\xff"]))


def torn(payload: bytes, cut: int, flip: int) -> bytes:
    """Cut short, and one byte turned."""
    damaged = bytearray(payload[: len(payload) - cut % (len(payload) + 1)])
    if damaged:
        damaged[flip % len(damaged)] ^= 0x41
    return bytes(damaged)


hostile = st.one_of(
    st.binary(max_size=200), messages(), st.builds(torn, messages(), st.integers(0, 300), st.integers(0, 300))
)


@given(payload=hostile)
@settings(max_examples=EXAMPLES)
def test_decoding_gives_a_fact_or_says_malformed(payload: bytes) -> None:
    try:
        fact = wire.decode(payload, replayed=False, stored_us=1)
    except wire.Malformed:
        return
    assert isinstance(fact, Evidence)
    assert "/" not in fact.key.node + fact.key.source


@given(payload=hostile, body=st.sampled_from(list(Body)))
@settings(max_examples=EXAMPLES)
def test_every_record_becomes_a_row_or_is_refused(payload: bytes, body: Body) -> None:
    reading = read_record("gpu-1", Record(1, payload, body), 1)
    assert isinstance(reading, EvidenceRow | SnapshotRow | Refused)
    if isinstance(reading, EvidenceRow):
        assert reading.columns["node"] == "gpu-1"
        assert reading.columns["payload"] == payload


@given(payloads=st.lists(hostile, min_size=1, max_size=20))
@settings(max_examples=max(5, EXAMPLES // 30))
def test_a_stream_of_it_is_confirmed_or_ended_and_others_go_on(payloads: list[bytes]) -> None:
    asyncio.run(_send(payloads))


async def _send(payloads: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with (
            running(Path(directory)) as aggregator,
            agent(aggregator) as attacker,
            agent(aggregator) as bystander,
        ):
            await attacker.greet("gpu-1")
            await bystander.greet("gpu-9", "other")
            records = [agent_pb2.SpoolRecord(end_offset=n, evidence=payload) for n, payload in enumerate(payloads, 1)]
            assert await attacker.deliver(records) == len(payloads)
            await _raw(attacker, payloads[0])
            assert await bystander.deliver(lines(1, 1, node="gpu-9")) == 1
            assert len(await stored(aggregator, node="gpu-9")) == 1


async def _raw(attacker: Agent, payload: bytes) -> None:
    """Bytes that may not even be a request."""
    message = agent_pb2.ConnectRequest()
    try:
        message.MergeFromString(payload)
        await attacker.call.write(message)
    except Exception:  # noqa: BLE001 - no protobuf, or the stream has ended: either is fine
        return
