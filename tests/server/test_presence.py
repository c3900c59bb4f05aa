"""Silence is never health: what the aggregator notices about nodes is evidence like any other, given once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protos.v1 import agent_pb2, evidence_pb2, sentinel_pb2
from tests.server.aggregator import Aggregator, agent, asking, eventually, lines, running, snapshot, stored, xid

BEGAN, ENDED = evidence_pb2.PHASE_BEGAN, evidence_pb2.PHASE_ENDED


async def phases(aggregator: Aggregator, kind: str, node: str) -> list[int]:
    """The phases of one kind on one node, in the order they were stored."""
    entries = await stored(aggregator, kinds=[kind], node=node)
    assert all(entry.evidence.source == "aggregator" for entry in entries)
    return [entry.evidence.phase for entry in entries]


async def observed(aggregator: Aggregator, node: str) -> str:
    async with asking(aggregator) as stub:
        return (await stub.GetNode(sentinel_pb2.GetNodeRequest(node=node))).node.observed


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[Aggregator]:
    async with running(tmp_path, silent_seconds=0.5) as started:
        yield started


async def test_silence_begins_and_ends(impatient: Aggregator) -> None:
    async with agent(impatient) as stream:
        await stream.greet()

    async def began() -> bool:
        return await phases(impatient, "agent_silent", "gpu-1") == [BEGAN]

    await eventually(began)
    await eventually(lambda: impatient.metric("sentinel_node_observed", node="gpu-1", reason="silent") == 0)
    assert await observed(impatient, "gpu-1") == "silent"
    async with agent(impatient) as stream:
        await stream.greet()

        async def ended() -> bool:
            return await phases(impatient, "agent_silent", "gpu-1") == [BEGAN, ENDED]

        await eventually(ended)
        await eventually(lambda: impatient.metric("sentinel_node_observed", node="gpu-1", reason="observed") == 1)
        assert await observed(impatient, "gpu-1") == "observed"
        assert impatient.metric("sentinel_node_observed", node="gpu-1", reason="silent") is None


async def test_a_connected_agent_that_says_nothing_is_not_silent(impatient: Aggregator) -> None:
    async with agent(impatient) as stream, agent(impatient) as other:
        await stream.greet()
        await other.greet("gpu-2", "b")
        await other.call.done_writing()

        async def gone() -> bool:
            return await phases(impatient, "agent_silent", "gpu-2") == [BEGAN]

        await eventually(gone)
        assert await phases(impatient, "agent_silent", "gpu-1") == []


async def test_a_restart_neither_repeats_nor_forgets_silence(tmp_path: Path) -> None:
    async with running(tmp_path, silent_seconds=0.2) as aggregator:
        async with agent(aggregator) as stream:
            await stream.greet()

        async def began() -> bool:
            return await phases(aggregator, "agent_silent", "gpu-1") == [BEGAN]

        await eventually(began)
    async with running(tmp_path, silent_seconds=0.2) as aggregator:
        await eventually(lambda: aggregator.metric("sentinel_node_observed", node="gpu-1", reason="silent") == 0)
        await aggregator.presence.look(save_connected=False)
        assert await phases(aggregator, "agent_silent", "gpu-1") == [BEGAN]
        async with agent(aggregator) as stream:
            await stream.greet()

            async def ended() -> bool:
                return await phases(aggregator, "agent_silent", "gpu-1") == [BEGAN, ENDED]

            await eventually(ended)


@pytest.fixture
async def forgetful(tmp_path: Path) -> AsyncIterator[Aggregator]:
    async with running(tmp_path, silent_seconds=0.3, forget_seconds=0.6) as started:
        yield started


async def names(aggregator: Aggregator) -> list[str]:
    async with asking(aggregator) as stub:
        return [node.name for node in (await stub.ListNodes(sentinel_pb2.ListNodesRequest())).nodes]


async def incidents(aggregator: Aggregator, node: str) -> list[sentinel_pb2.Incident]:
    async with asking(aggregator) as stub:
        return list((await stub.ListIncidents(sentinel_pb2.ListIncidentsRequest(node=node))).incidents)


async def silent_for_long(aggregator: Aggregator, node: str) -> None:
    """Return once a node's silence is told and an incident, and has lasted."""

    async def told() -> bool:
        return await phases(aggregator, "agent_silent", node) == [BEGAN] and bool(await incidents(aggregator, node))

    await eventually(told)
    await asyncio.sleep(0.6)


async def test_a_node_that_is_gone_for_good_is_forgotten_and_its_evidence_is_not(forgetful: Aggregator) -> None:
    await send_snapshot(forgetful, "gone", 8, 1)
    async with agent(forgetful) as stream:
        await stream.greet("here", "installation-here")
        await silent_for_long(forgetful, "gone")
        await forgetful.presence.forget()
        await forgetful.presence.look(save_connected=False)
        assert await names(forgetful) == ["here"]
        assert forgetful.metric("sentinel_node_observed", node="gone", reason="silent") is None
        assert await phases(forgetful, "agent_silent", "gone") == [BEGAN, ENDED]

        async def resolved() -> bool:
            return not await incidents(forgetful, "gone")

        await eventually(resolved)
    await send_snapshot(forgetful, "gone", 8, 2)
    assert "gone" in await names(forgetful), "one that comes back is known again"


async def test_a_silent_node_with_an_open_fault_is_remembered(forgetful: Aggregator) -> None:
    async with agent(forgetful) as stream:
        await stream.greet("gpu-1")
        await stream.deliver([xid(1)])
    await silent_for_long(forgetful, "gpu-1")
    await forgetful.presence.forget()
    assert await names(forgetful) == ["gpu-1"]
    assert await phases(forgetful, "agent_silent", "gpu-1") == [BEGAN]


async def test_a_connected_node_is_remembered_however_little_it_says(tmp_path: Path) -> None:
    async with running(tmp_path, silent_seconds=0.1, forget_seconds=0.0) as aggregator, agent(aggregator) as stream:
        await stream.greet()
        await aggregator.presence.look(save_connected=False)
        await aggregator.presence.forget()
        assert await names(aggregator) == ["gpu-1"]


async def test_two_agents_that_claim_one_node_are_reported(aggregator: Aggregator) -> None:
    async with agent(aggregator) as one:
        await one.greet(installation="installation-a")
        async with agent(aggregator) as two:
            await two.greet(installation="installation-b")

            async def began() -> bool:
                return await phases(aggregator, "duplicate_agent", "gpu-1") == [BEGAN]

            await eventually(began)

            async def shown() -> bool:
                return await observed(aggregator, "gpu-1") == "duplicate_agent"

            await eventually(shown)
            assert await one.deliver(lines(1, 1)) == 1  # neither is preferred: both may be real
            assert await two.deliver(lines(2, 1), "spool-b") == 2

        async def ended() -> bool:
            return await phases(aggregator, "duplicate_agent", "gpu-1") == [BEGAN, ENDED]

        await eventually(ended)


async def send_snapshot(aggregator: Aggregator, node: str, gpus: int, seconds: int, nvml: str = "running") -> None:
    async with agent(aggregator) as stream:
        await stream.greet(node, f"installation-{node}")
        payload = snapshot(node, gpus, seconds, nvml).SerializeToString()
        await stream.deliver([agent_pb2.SpoolRecord(end_offset=seconds, snapshot=payload)], "samples")


async def test_fewer_gpus_than_nodes_alike_is_reported(aggregator: Aggregator) -> None:
    for node, gpus in (("a", 8), ("b", 8), ("c", 7), ("d", 8)):
        await send_snapshot(aggregator, node, gpus, 1)

    async def began() -> bool:
        return await phases(aggregator, "gpu_count_differs", "c") == [BEGAN]

    await eventually(began)
    (entry,) = await stored(aggregator, kinds=["gpu_count_differs"])
    assert "7 GPUs" in entry.evidence.detail
    assert "have 8" in entry.evidence.detail
    await send_snapshot(aggregator, "c", 8, 2)

    async def ended() -> bool:
        return await phases(aggregator, "gpu_count_differs", "c") == [BEGAN, ENDED]

    await eventually(ended)


@pytest.mark.parametrize("counts", [(8, 7), (8, 8, 7, 7), (7, 8, 9), (8, 8, 9)])
async def test_without_a_clear_majority_nobody_is_the_odd_one(counts: tuple[int, ...], aggregator: Aggregator) -> None:
    for number, gpus in enumerate(counts):
        await send_snapshot(aggregator, f"n{number}", gpus, 1)
    await aggregator.presence.look(save_connected=True)
    assert await stored(aggregator, kinds=["gpu_count_differs"]) == []


async def test_a_driver_that_does_not_answer_is_no_observation(aggregator: Aggregator) -> None:
    async with agent(aggregator) as stream:
        await stream.greet()
        payload = snapshot(nvml="failed: NVML hangs").SerializeToString()
        await stream.deliver([agent_pb2.SpoolRecord(end_offset=1, snapshot=payload)], "samples")

        async def shown() -> bool:
            return await observed(aggregator, "gpu-1") == "driver_unavailable"

        await eventually(shown)
