"""An agent's stream from hello to ack; whatever one agent does hurts its own stream alone."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import Connection

from aggregator.server.agents import Limits
from aggregator.store import queries
from protos.v1 import agent_pb2, evidence_pb2, sentinel_pb2
from tests.server.aggregator import Aggregator, agent, asking, eventually, lines, running, snapshot, stored

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def log_state(spool_id: str = "spool-a", acked: int = 0) -> agent_pb2.LogState:
    return agent_pb2.LogState(log="events", spool_id=spool_id, end_offset=100, acked_offset=acked)


async def test_the_server_says_who_it_is_and_what_it_holds(aggregator: Aggregator) -> None:
    async with agent(aggregator) as stream:
        hello = await stream.greet(logs=[log_state(), log_state("spool-b")])
        assert await stream.deliver(lines(1, 5)) == 5
    assert (hello.store_id, hello.cluster, hello.max_message_bytes) == (aggregator.store.store_id, "test", 4 * 2**20)
    assert [(at.spool_id, at.offset) for at in hello.committed] == [("spool-a", 0), ("spool-b", 0)]
    async with agent(aggregator) as stream:
        again = await stream.greet(logs=[log_state(), log_state("spool-b")])
    assert [(at.spool_id, at.offset) for at in again.committed] == [("spool-a", 5), ("spool-b", 0)]


async def test_positions_survive_a_restart(tmp_path: Path) -> None:
    for offset in (0, 7):
        async with running(tmp_path) as aggregator, agent(aggregator) as stream:
            hello = await stream.greet(logs=[log_state()])
            assert [at.offset for at in hello.committed] == [offset]
            await stream.deliver(lines(1, 7))


async def test_no_ack_before_the_commit(aggregator: Aggregator) -> None:
    """While the disk takes nothing, nothing is acknowledged, and the stream stays open."""

    def fill(connection: Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    async with agent(aggregator) as stream:
        await stream.greet()
        await aggregator.store.write(fill)
        await stream.say(batch=agent_pb2.RecordBatch(spool_id="s", records=lines(1, 500, text="x" * 300)))
        await eventually(lambda: aggregator.metric("sentinel_store_unwritable"))
        with pytest.raises(TimeoutError):
            await stream.hear(0.3)
        assert await stored(aggregator) == []


async def test_an_ack_means_that_a_question_finds_it(aggregator: Aggregator) -> None:
    async with agent(aggregator) as stream:
        await stream.greet()
        for number in range(1, 30):
            await stream.deliver(lines(number, 1))
            assert len(await stored(aggregator)) == number


async def test_what_an_earlier_store_acknowledged_is_marked_as_replayed(aggregator: Aggregator) -> None:
    async with agent(aggregator) as stream:
        await stream.greet(logs=[log_state(acked=3)])
        await stream.deliver(lines(1, 5))
    rows = await aggregator.store.read(
        partial(queries.list_evidence, wanted=queries.EvidenceFilter(), after_id=0, limit=9)
    )
    assert [row.replayed for row in rows] == [True, True, True, False, False]


async def test_clock_probes_are_answered_at_once_and_offsets_kept(aggregator: Aggregator) -> None:
    async with agent(aggregator) as stream:
        await stream.greet()
        await stream.say(clock_probe=agent_pb2.ClockProbe(agent_sent_at={"seconds": 5}))
        reply = (await stream.hear()).clock_reply
        assert reply.agent_sent_at.seconds == 5
        assert abs(reply.server_at.ToNanoseconds() / 1e9 - time.time()) < 5
        await stream.say(clock_offset=agent_pb2.ClockOffset(offset_usec=-1500, error_usec=200))
        node = partial(queries.get_node, name="gpu-1")

        async def kept() -> bool:
            row = await aggregator.store.read(node)
            return row is not None and (row.clock_offset_us, row.clock_error_us) == (-1500, 200)

        await eventually(kept)


HELLOS = {
    "the first message must be a hello": {"clock_probe": agent_pb2.ClockProbe()},
    "hello.node": {"hello": agent_pb2.AgentHello(node="", installation_id="i")},
    "hello.node is no": {"hello": agent_pb2.AgentHello(node="a/b", installation_id="i")},
    "hello.installation_id": {"hello": agent_pb2.AgentHello(node="a")},
    "hello.agent_version": {"hello": agent_pb2.AgentHello(node="a", installation_id="i", agent_version="v" * 65)},
    "hello.logs.spool_id": {"hello": agent_pb2.AgentHello(node="a", installation_id="i", logs=[agent_pb2.LogState()])},
    "hello.logs holds more": {
        "hello": agent_pb2.AgentHello(node="a", installation_id="i", logs=[log_state(str(n)) for n in range(17)])
    },
}


@pytest.mark.parametrize(("text", "message"), HELLOS.items())
async def test_a_bad_hello_is_refused_with_the_field(
    text: str, message: dict[str, object], aggregator: Aggregator
) -> None:
    async with agent(aggregator) as stream:
        await stream.say(**message)
        code, details = await stream.status()
    assert code is INVALID
    assert details.startswith(text)


BATCHES = {
    "batch.spool_id": agent_pb2.RecordBatch(records=lines(1, 1)),
    "batch.records.end_offset": agent_pb2.RecordBatch(spool_id="s", records=[*lines(5, 1), *lines(5, 1)]),
    "batch.records.end_offset 0": agent_pb2.RecordBatch(spool_id="s", records=lines(0, 1)),
    f"batch.records.end_offset {2**63}": agent_pb2.RecordBatch(spool_id="s", records=lines(2**63, 1)),
}


@pytest.mark.parametrize(("text", "batch"), BATCHES.items())
async def test_a_bad_batch_ends_that_stream_alone(
    text: str, batch: agent_pb2.RecordBatch, aggregator: Aggregator
) -> None:
    async with agent(aggregator) as bystander, agent(aggregator) as stream:
        await bystander.greet("gpu-2", "other")
        await stream.greet()
        await stream.say(batch=batch)
        code, details = await stream.status()
        assert code is INVALID
        assert details.startswith(text)
        assert await bystander.deliver(lines(1, 1, node="gpu-2")) == 1


async def test_a_second_hello_ends_the_stream(aggregator: Aggregator) -> None:
    async with agent(aggregator) as stream:
        await stream.greet()
        await stream.say(hello=agent_pb2.AgentHello(node="gpu-1", installation_id="installation-a"))
        assert await stream.status() == (INVALID, "a second hello")


async def test_one_that_says_nothing_is_cut_off(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(hello_seconds=0.2)) as aggregator, agent(aggregator) as stream:
        assert (await stream.status())[0] is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_message_beyond_the_limit_ends_that_stream_alone(tmp_path: Path) -> None:
    async with (
        running(tmp_path, limits=Limits(max_message_bytes=10_000)) as aggregator,
        agent(aggregator) as bystander,
        agent(aggregator) as stream,
    ):
        await bystander.greet("gpu-2", "other")
        assert (await stream.greet()).max_message_bytes == 10_000
        await stream.say(batch=agent_pb2.RecordBatch(spool_id="s", records=lines(1, 1, text="x" * 20_000)))
        assert (await stream.status())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await bystander.deliver(lines(1, 1, node="gpu-2")) == 1


async def test_streams_are_limited(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(max_streams=1)) as aggregator:
        async with agent(aggregator) as first, agent(aggregator) as second:
            await first.greet()
            await second.say(hello=agent_pb2.AgentHello(node="gpu-2", installation_id="b"))
            assert (await second.status())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        await eventually(lambda: len(aggregator.sessions) == 0)
        async with agent(aggregator) as third:
            await third.greet("gpu-3")


async def test_a_fast_sender_is_slowed_not_dropped(tmp_path: Path) -> None:
    """Beyond its burst a stream is read at its rate; all of it arrives."""
    limits = Limits(records_per_second=200, burst_records=100)
    async with running(tmp_path, limits=limits) as aggregator, agent(aggregator) as stream:
        await stream.greet()
        began = time.monotonic()
        for first in range(1, 301, 20):
            await stream.say(batch=agent_pb2.RecordBatch(spool_id="s", records=lines(first, 20)))
        acked = 0
        while acked < 300:
            acked = (await stream.hear(10)).ack.offset
        assert time.monotonic() - began > 0.8
        assert len(await stored(aggregator)) == 300


async def test_a_record_of_another_node_is_set_aside_and_the_stream_closed(aggregator: Aggregator) -> None:
    async with agent(aggregator) as stream:
        await stream.greet()
        forged = agent_pb2.SpoolRecord(end_offset=2, evidence=lines(2, 1, node="gpu-2")[0].evidence)
        assert await stream.deliver([*lines(1, 1), forged, *lines(3, 1)]) == 3
        code, details = await stream.status()
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "gpu-1" in details
    assert [entry.evidence.seq for entry in await stored(aggregator)] == [1, 3]
    assert aggregator.metric("sentinel_quarantined_total", reason="foreign_node") == 1


async def test_a_new_stream_of_the_same_agent_replaces_the_old(aggregator: Aggregator) -> None:
    async with agent(aggregator) as old, agent(aggregator) as new:
        await old.greet()
        await new.greet()
        assert (await old.status())[0] is grpc.StatusCode.ABORTED
        assert await new.deliver(lines(1, 1)) == 1
        assert len(aggregator.sessions) == 1


async def test_a_message_of_a_newer_agent_is_passed_over(aggregator: Aggregator) -> None:
    async with agent(aggregator) as stream:
        await stream.greet()
        await stream.call.write(agent_pb2.ConnectRequest.FromString(b"\xfa\x3e\x05later"))
        assert await stream.deliver(lines(1, 1)) == 1


async def test_an_agent_that_closes_its_side_gets_its_acks_first(aggregator: Aggregator) -> None:
    async with agent(aggregator) as stream:
        await stream.greet()
        await stream.say(batch=agent_pb2.RecordBatch(spool_id="s", records=lines(1, 50)))
        await stream.call.done_writing()
        assert (await stream.hear()).ack.offset == 50
        assert (await stream.status())[0] is grpc.StatusCode.OK


async def test_stopping_tells_agents_and_keeps_what_was_confirmed(tmp_path: Path) -> None:
    async with running(tmp_path) as aggregator, grpc.aio.insecure_channel(aggregator.address) as channel:
        from tests.server.aggregator import Agent

        stream = Agent(channel)
        await stream.greet()
        await stream.deliver(lines(1, 3))
        aggregator.sessions.end_all(grpc.StatusCode.UNAVAILABLE, "the aggregator is stopping")
        assert (await stream.status())[0] is grpc.StatusCode.UNAVAILABLE


async def test_a_live_agent_is_asked_through_its_own_stream(aggregator: Aggregator) -> None:
    async with agent(aggregator) as stream, asking(aggregator) as stub:
        await stream.greet()
        asked = asyncio.ensure_future(stub.CollectNow(sentinel_pb2.CollectNowRequest(node="gpu-1")))
        request = (await stream.hear()).collect_request
        await stream.say(collect_reply=agent_pb2.CollectReply(request_id="someone else's", snapshot=snapshot()))
        await stream.say(collect_reply=agent_pb2.CollectReply(request_id=request.request_id, snapshot=snapshot()))
        assert (await asked).snapshot == snapshot()


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (agent_pb2.CollectReply(error="NVML hangs"), "NVML hangs"),
        (agent_pb2.CollectReply(snapshot=evidence_pb2.NodeSnapshot(node="gpu-2")), "without a reading of its own node"),
    ],
)
async def test_a_reading_that_failed_says_why(reply: agent_pb2.CollectReply, text: str, aggregator: Aggregator) -> None:
    async with agent(aggregator) as stream, asking(aggregator) as stub:
        await stream.greet()
        asked = asyncio.ensure_future(stub.CollectNow(sentinel_pb2.CollectNowRequest(node="gpu-1")))
        reply.request_id = (await stream.hear()).collect_request.request_id
        await stream.say(collect_reply=reply)
        with pytest.raises(grpc.aio.AioRpcError, match=text) as failed:
            await asked
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("greeted", [False, True])
async def test_bytes_that_are_no_message_end_their_stream_as_invalid(
    greeted: bool, aggregator: Aggregator, capfd: pytest.CaptureFixture[str]
) -> None:
    """The sender's mistake, told as such and counted: not an unknown error and a traceback of ours."""
    method = "/gcm_sentinel.v1.AgentService/Connect"
    async with agent(aggregator) as bystander, grpc.aio.insecure_channel(aggregator.address) as channel:
        await bystander.greet("gpu-9", "other")
        call: Any = channel.stream_stream(method)()
        if greeted:
            hello = agent_pb2.AgentHello(node="gpu-1", installation_id="i")
            await call.write(agent_pb2.ConnectRequest(hello=hello).SerializeToString())
            await call.read()
        await call.write(b"\xff no protobuf")
        assert (await call.code(), await call.details()) == (
            INVALID,
            "the request is no protobuf message of this method",
        )
        assert await bystander.deliver(lines(1, 1, node="gpu-9")) == 1
    assert aggregator.metric("sentinel_undecodable_requests_total", method=method) == 1
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert said.count("request_undecodable") == 1
