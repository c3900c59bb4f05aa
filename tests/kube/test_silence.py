"""A node with GPUs and without an agent is no healthy node: it is said, with what the cluster knows of why."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregator.kube.access import find_access
from aggregator.kube.client import KubeClient
from aggregator.kube.nodes import Wanted
from aggregator.kube.silence import Silence
from aggregator.kube.watch import NodeWatch
from protos.v1 import evidence_pb2
from tests.cluster.api_server import ADMIN, ApiServer
from tests.server.aggregator import Aggregator, agent, eventually, running, stored

BEGAN, ENDED = evidence_pb2.PHASE_BEGAN, evidence_pb2.PHASE_ENDED
GPUS = {"nvidia.com/gpu": "8"}
PODS = "/api/v1/namespaces/default/pods"
READ_NODES = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}


@contextlib.asynccontextmanager
async def both(server: ApiServer, directory: Path, token: str = ADMIN) -> AsyncIterator[Aggregator]:
    """An aggregator that finds an agent silent after 0.3 s, beside a cluster."""
    kubeconfig = server.kubeconfig(directory / "kubeconfig", token)
    client = KubeClient(find_access({"KUBECONFIG": str(kubeconfig)}, wanted=True))
    async with running(directory, silent_seconds=0.3) as aggregator:
        watch = NodeWatch(client, Wanted(lambda name: name == "Ready"))
        aggregator.presence.cluster = Silence(client, watch, lambda: aggregator.sessions.nodes)
        tasks = [asyncio.create_task(watch.run()), asyncio.create_task(aggregator.presence.cluster.run())]
        try:
            yield aggregator
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.close()


def pod_of_agent(server: ApiServer, node: str, waiting: str = "") -> None:
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "a", "uid": "u", "controller": True}
    metadata = {"name": f"agent-{node}", "labels": {"app": "gcm-sentinel"}, "ownerReferences": [owner]}
    container = {"name": "agent", "image": "none"}
    server.request("POST", PODS, {"metadata": metadata, "spec": {"nodeName": node, "containers": [container]}})
    state = {"waiting": {"reason": waiting}} if waiting else {"running": {}}
    status = {"name": "agent", "image": "none", "imageID": "", "ready": not waiting, "restartCount": 1, "state": state}
    server.patch(f"{PODS}/agent-{node}/status", {"status": {"containerStatuses": [status]}})


def reason(aggregator: Aggregator, node: str, word: str) -> bool:
    return aggregator.metric("sentinel_node_observed", node=node, reason=word) is not None


@pytest.mark.parametrize(
    ("ready", "pod", "word"),
    [
        ("Unknown", None, "node_down"),
        ("True", None, "unscheduled"),
        ("True", "CrashLoopBackOff", "crashing"),
        ("True", "", "silent"),
    ],
)
async def test_a_gpu_node_without_an_agent_says_why(
    ready: str, pod: str | None, word: str, api_server: ApiServer, tmp_path: Path
) -> None:
    api_server.node("gpu-9", capacity=GPUS)
    api_server.condition("gpu-9", "Ready", ready)
    if pod is not None:
        pod_of_agent(api_server, "gpu-9", pod)
    async with both(api_server, tmp_path) as aggregator:
        await eventually(lambda: reason(aggregator, "gpu-9", word))
        assert aggregator.metric("sentinel_node_observed", node="gpu-9", reason=word) == 0
        (entry,) = await stored(aggregator, kinds=["agent_silent"], node="gpu-9")
        assert entry.evidence.phase == BEGAN


async def test_a_node_without_gpus_needs_no_agent(api_server: ApiServer, tmp_path: Path) -> None:
    api_server.node("cpu-1", capacity={"cpu": "4"})
    api_server.node("gpu-1", labels={"nvidia.com/gpu.present": "true"})
    async with both(api_server, tmp_path) as aggregator:
        await eventually(lambda: stored(aggregator, kinds=["agent_silent"], node="gpu-1"))
        assert await stored(aggregator, kinds=["agent_silent"], node="cpu-1") == []


async def test_silence_ends_with_the_first_word_and_a_restart_repeats_none(
    api_server: ApiServer, tmp_path: Path
) -> None:
    api_server.node("gpu-1", capacity=GPUS)

    async def phases(aggregator: Aggregator) -> list[int]:
        return [one.evidence.phase for one in await stored(aggregator, kinds=["agent_silent"], node="gpu-1")]

    async with both(api_server, tmp_path) as aggregator:
        await eventually(lambda: phases(aggregator))
    async with both(api_server, tmp_path) as aggregator:
        await aggregator.presence.look(save_connected=False)
        await eventually(lambda: reason(aggregator, "gpu-1", "node_down"))
        assert await phases(aggregator) == [BEGAN]
        async with agent(aggregator) as stream:
            await stream.greet("gpu-1")

            async def ended() -> bool:
                return await phases(aggregator) == [BEGAN, ENDED]

            await eventually(ended)
            await eventually(lambda: reason(aggregator, "gpu-1", "observed"))


async def test_a_node_that_was_deleted_is_missed_by_nobody(api_server: ApiServer, tmp_path: Path) -> None:
    api_server.node("gpu-1", capacity=GPUS)
    async with both(api_server, tmp_path) as aggregator:
        async with agent(aggregator) as stream:
            await stream.greet("gpu-1")
            await eventually(lambda: reason(aggregator, "gpu-1", "observed"))
            assert aggregator.presence.cluster is not None
            await eventually(lambda: aggregator.presence.cluster and aggregator.presence.cluster.known)
            api_server.delete("/api/v1/nodes/gpu-1")
            await eventually(lambda: aggregator.presence.cluster and aggregator.presence.cluster.removed())
        await eventually(lambda: not reason(aggregator, "gpu-1", "observed"))
        await asyncio.sleep(1.5)
        assert await stored(aggregator, kinds=["agent_silent"], node="gpu-1") == []


async def test_without_the_right_to_list_pods_silence_is_said_all_the_same(
    api_server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api_server.node("gpu-1", capacity=GPUS)
    api_server.condition("gpu-1", "Ready", "True")
    token = api_server.service_account("aggregator", [READ_NODES])
    async with both(api_server, tmp_path, token) as aggregator:
        await eventually(lambda: reason(aggregator, "gpu-1", "silent"))
    assert 'cannot list resource "pods"' in capsys.readouterr().out
