"""A condition set on a real API server becomes evidence, an incident and an assessment, once, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from aggregator.kube.access import find_access
from aggregator.kube.client import KubeClient
from aggregator.kube.cluster import Cluster
from aggregator.kube.conditions import Conditions
from aggregator.kube.findings import watches
from aggregator.kube.nodes import Wanted
from aggregator.kube.watch import NodeWatch
from aggregator.settings import WATCHED_CONDITIONS
from protos.v1 import evidence_pb2, sentinel_pb2
from tests.cluster.api_server import ApiServer
from tests.server.aggregator import Aggregator, agent, asking, eventually, running, stored, xid

BEGAN, ENDED = evidence_pb2.PHASE_BEGAN, evidence_pb2.PHASE_ENDED
NODES = "/api/v1/nodes"
XID, LOST = "GcmXidErrorsProblem", "GcmSmiDisconnectedProblem"


@dataclass
class Both:
    """An aggregator that watches a cluster."""

    aggregator: Aggregator
    cluster: Cluster

    async def told(self, node: str = "n1") -> list[tuple[str, int]]:
        """Kinds and phases of the cluster's evidence on a node, in the order they were stored."""
        entries = await stored(self.aggregator, node=node)
        return [(one.evidence.kind, one.evidence.phase) for one in entries if one.evidence.source == "kubernetes"]

    async def incidents(self) -> list[sentinel_pb2.Incident]:
        async with asking(self.aggregator) as stub:
            return list((await stub.ListIncidents(sentinel_pb2.ListIncidentsRequest(include_resolved=True))).incidents)


@contextlib.asynccontextmanager
async def both(
    server: ApiServer, directory: Path, *, settle: float = 0.001, cooldown: float = 3600.0
) -> AsyncIterator[Both]:
    """`settle` scales how long a good status must last: ten minutes become 0.6 s."""
    client = KubeClient(find_access({"KUBECONFIG": str(server.kubeconfig(directory / "kubeconfig"))}, wanted=True))
    watched = watches(WATCHED_CONDITIONS)
    async with running(directory) as aggregator:
        watch = NodeWatch(client, Wanted(watched), idle_seconds=20.0)
        conditions = Conditions(watched, cooldown, settle=settle)
        cluster = Cluster(watch, conditions, aggregator.store, aggregator.pipeline.receive)
        task = asyncio.create_task(cluster.run())
        try:
            yield Both(aggregator, cluster)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await client.close()


async def test_a_condition_becomes_an_assessment_and_its_end_resolves_it(api_server: ApiServer, tmp_path: Path) -> None:
    api_server.node("n1")
    async with both(api_server, tmp_path) as they:
        api_server.condition("n1", XID, "True", reason="GcmXidErrorsCheckFailed", message="XID 79 <!here>")
        severity = {"node": "n1", "gpu": "", "kind": "node_condition_xid", "severity": "warning", "action": "none"}
        await eventually(lambda: they.aggregator.metric("sentinel_assessment_active", **severity) == 1)
        (incident,) = await they.incidents()
        assert incident.assessment.confidence < 0.5
        entry = (await stored(they.aggregator, node="n1"))[0].evidence
        assert (entry.node_condition.condition, entry.node_condition.status) == (XID, "True")
        assert entry.node_condition.message == "XID 79 <!here>"
        api_server.condition("n1", XID, "False")

        async def resolved() -> bool:
            return [one.state for one in await they.incidents()] == ["resolved"]

        await eventually(resolved)
        assert await they.told() == [("node_condition", BEGAN), ("node_condition", ENDED)]
        assert they.aggregator.metric("sentinel_assessment_active", **severity) is None


async def test_a_condition_joins_what_an_agent_saw_first(api_server: ApiServer, tmp_path: Path) -> None:
    api_server.node("n1")
    async with both(api_server, tmp_path) as they, agent(they.aggregator) as stream:
        await stream.greet("n1")
        line = xid(1, node="n1")
        found = evidence_pb2.Evidence.FromString(line.evidence)
        found.occurred_at.FromNanoseconds(time.time_ns() - 200 * 10**9)
        line.evidence = found.SerializeToString()
        await stream.deliver([line])
        await eventually(they.incidents)
        api_server.condition("n1", LOST, "True")

        async def joined() -> bool:
            return bool(await they.told())

        await eventually(joined)
        await asyncio.sleep(0.3)
        (incident,) = await they.incidents()
        assert "XID 79" in incident.assessment.root_cause
        assert len(incident.assessment.citations) == 2


async def test_a_restart_repeats_nothing_and_misses_nothing(api_server: ApiServer, tmp_path: Path) -> None:
    for name in ("n1", "n2", "n3"):
        api_server.node(name)
    api_server.condition("n1", XID, "True")
    api_server.condition("n2", XID, "True")
    async with both(api_server, tmp_path) as they:

        async def all_told() -> bool:
            return bool(await they.told("n1") and await they.told("n2"))

        await eventually(all_told)
    api_server.condition("n2", XID, "False")
    api_server.condition("n3", XID, "True")
    api_server.delete(f"{NODES}/n1")
    recreated = api_server.node("n1")
    api_server.condition("n1", XID, "True")
    async with both(api_server, tmp_path) as they:

        async def caught_up() -> bool:
            told = [await they.told(name) for name in ("n1", "n2", "n3")]
            began, ended = ("node_condition", BEGAN), ("node_condition", ENDED)
            return told == [[began, ended, began], [began, ended], [began]]

        await eventually(caught_up)
        last = (await stored(they.aggregator, node="n1"))[-1].evidence
        assert last.epoch.startswith(recreated["metadata"]["uid"])
    async with both(api_server, tmp_path) as they:
        await they.cluster.watch.synced.wait()
        await asyncio.sleep(0.5)
        assert len(await they.told("n1")) == 3


async def test_nothing_ends_while_the_api_server_is_away(own_api_server: ApiServer, tmp_path: Path) -> None:
    server = own_api_server
    server.node("n1")
    server.condition("n1", XID, "True")
    async with both(server, tmp_path, settle=0.003) as they:

        async def told() -> bool:
            return len(await they.told()) == 1

        await eventually(told)
        server.condition("n1", XID, "False")
        await asyncio.sleep(0.2)
        server.stop_server()
        await eventually(lambda: not they.cluster.watch.up)
        await asyncio.sleep(3.0)
        assert await they.told() == [("node_condition", BEGAN)]
        await asyncio.to_thread(server.start_server)

        async def ended() -> bool:
            return len(await they.told()) == 2

        await eventually(ended, 40)


async def test_a_hostile_status_is_bounded(api_server: ApiServer, tmp_path: Path) -> None:
    """Thousands of conditions, endless names: what is watched is taken up to a bound, the rest counted."""
    api_server.node("n1")
    names = [f"GcmHostile{number}Problem" for number in range(500)] + ["Gcm" + "x" * 300 + "Problem"]
    conditions = [{"type": name, "status": "True", "reason": "r", "message": "\x1b]0;x\x07"} for name in names]
    async with both(api_server, tmp_path) as they:
        api_server.patch(f"{NODES}/n1/status", {"status": {"conditions": conditions}}, kind="strategic-merge")

        async def bounded() -> bool:
            return len(await they.told()) == 64

        await eventually(bounded)
        api_server.node("n2")
        api_server.condition("n2", XID, "True")
        await eventually(lambda: they.told("n2"))
        assert len(await they.told()) == 64
