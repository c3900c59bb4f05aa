"""The view of nodes stays right whatever happens to the connection."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregator.kube.access import find_access
from aggregator.kube.client import KubeClient
from aggregator.kube.nodes import Wanted, parse
from aggregator.kube.watch import NodeWatch
from tests.cluster.api_server import ADMIN, ApiServer
from tests.server.aggregator import eventually

NODES = "/api/v1/nodes"
READ_NODES = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}]
WANTED = Wanted(lambda name: name.startswith("Gcm") or name == "Ready", frozenset(("example.com/maintenance",)))


class Watched:
    """A running watch, and what it said of being up."""

    def __init__(self, client: KubeClient, idle_seconds: float) -> None:
        self.ups: list[bool] = []
        self.rejected: list[str] = []
        self.watch = NodeWatch(
            client, WANTED, on_up=self.ups.append, on_rejected=self.rejected.append, idle_seconds=idle_seconds
        )

    @property
    def names(self) -> set[str]:
        return set(self.watch.nodes)

    def status(self, node: str, condition: str) -> str | None:
        found = self.watch.nodes.get(node)
        return found.conditions[condition].status if found and condition in found.conditions else None


@contextlib.asynccontextmanager
async def watching(
    server: ApiServer, directory: Path, token: str = ADMIN, *, idle_seconds: float = 90.0
) -> AsyncIterator[Watched]:
    config = server.kubeconfig(directory / "kubeconfig", token)
    client = KubeClient(find_access({"KUBECONFIG": str(config)}, wanted=True))
    watched = Watched(client, idle_seconds)
    task = asyncio.create_task(watched.watch.run())
    try:
        yield watched
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await client.close()


async def test_nodes_are_listed_and_then_followed(api_server: ApiServer, tmp_path: Path) -> None:
    for number in range(3):
        api_server.node(f"old-{number}", labels={"pool": "a"})
    async with watching(api_server, tmp_path) as watched:
        await watched.watch.synced.wait()
        assert watched.names == {"old-0", "old-1", "old-2"}
        assert await watched.watch.changes() == watched.names
        api_server.node("new")
        api_server.condition(
            "old-1", "GcmXidErrorsProblem", "True", reason="Bad", message="NVRM: Xid", at="2026-11-23T10:00:00Z"
        )
        api_server.delete(f"{NODES}/old-2")
        await eventually(lambda: watched.names == {"old-0", "old-1", "new"})
        await eventually(lambda: watched.status("old-1", "GcmXidErrorsProblem") == "True")
        found = watched.watch.nodes["old-1"].conditions["GcmXidErrorsProblem"]
        assert (found.reason, found.message, found.transition_us) == ("Bad", "NVRM: Xid", 1_795_428_000_000_000)
        assert await watched.watch.changes() == {"old-1", "old-2", "new"}
    assert watched.ups == [False, True]


async def test_what_a_node_is_kept_as(api_server: ApiServer, tmp_path: Path) -> None:
    async with watching(api_server, tmp_path) as watched:
        api_server.node(
            "gpu-1",
            labels={"topology.kubernetes.io/zone": "z"},
            annotations={"gcm-sentinel/severity": "info", "example.com/maintenance": "yes", "other": "x" * 1000},
            capacity={"nvidia.com/gpu": "4", "nvidia.com/mig-1g.10gb": "7", "cpu": "2"},
        )
        patched = {"spec": {"unschedulable": True, "taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}
        api_server.patch(f"{NODES}/gpu-1?fieldManager=kubectl-cordon", patched)
        node = await eventually(lambda: (n := watched.watch.nodes.get("gpu-1")) and n.unschedulable and n)
        assert (node.gpus, node.has_gpus, node.ready, node.cordoned_by) == (11, True, "Unknown", "kubectl-cordon")
        assert node.labels["topology.kubernetes.io/zone"] == "z"
        assert set(node.annotations) == {"gcm-sentinel/severity", "example.com/maintenance"}
        assert [(taint.key, taint.effect) for taint in node.taints if taint.key == "k"] == [("k", "NoSchedule")]


async def test_a_recreated_node_is_another_one(api_server: ApiServer, tmp_path: Path) -> None:
    first = api_server.node("n1")["metadata"]["uid"]
    async with watching(api_server, tmp_path) as watched:
        await eventually(lambda: "n1" in watched.names)
        api_server.delete(f"{NODES}/n1")
        second = api_server.node("n1")["metadata"]["uid"]
        await eventually(lambda: (n := watched.watch.nodes.get("n1")) and n.uid == second)
    assert first != second


async def test_a_message_of_a_megabyte_is_cut_and_hurts_nothing(api_server: ApiServer, tmp_path: Path) -> None:
    api_server.node("n1")
    hostile = "\x1b[2J" + "\u202e" + "\ud83d\ude00" * 10 + "A" * 1_000_000
    async with watching(api_server, tmp_path) as watched:
        await watched.watch.synced.wait()
        api_server.condition(
            "n1", "GcmXidErrorsProblem", "True", message=hostile.encode("utf-16", "surrogatepass").decode("utf-16")
        )
        await eventually(lambda: watched.status("n1", "GcmXidErrorsProblem") == "True")
        assert len(watched.watch.nodes["n1"].conditions["GcmXidErrorsProblem"].message) == 4096
        api_server.node("n2")
        await eventually(lambda: "n2" in watched.names)
    assert watched.ups == [False, True]


async def test_a_watch_goes_on_after_the_server_was_killed(own_api_server: ApiServer, tmp_path: Path) -> None:
    server = own_api_server
    server.node("n1")
    async with watching(server, tmp_path) as watched:
        await watched.watch.synced.wait()
        server.stop_server()
        await eventually(lambda: watched.ups == [False, True, False])
        assert watched.names == {"n1"}  # what was known is still there
        await asyncio.to_thread(server.start_server)
        server.node("n2")
        await eventually(lambda: watched.names == {"n1", "n2"}, 40)
    assert watched.ups == [False, True, False, True]


async def test_what_happened_before_a_compaction_is_found_by_listing(
    own_api_server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = own_api_server
    token = server.service_account("watcher", READ_NODES)
    server.node("n1")
    server.node("n2")
    async with watching(server, tmp_path, token, idle_seconds=1.0) as watched:
        await watched.watch.synced.wait()
        server.permit("watcher", [])
        await eventually(lambda: not watched.watch.up, 20)
        server.delete(f"{NODES}/n2")
        server.node("n3")
        server.compact()
        await asyncio.to_thread(server.restart_server)  # with it goes its own memory of old versions
        server.permit("watcher", READ_NODES)
        await eventually(lambda: watched.names == {"n1", "n3"}, 60)
    assert "kubernetes_watch_too_old" in capsys.readouterr().out


async def test_silence_of_the_server_is_noticed(own_api_server: ApiServer, tmp_path: Path) -> None:
    server = own_api_server
    server.node("n1")
    async with watching(server, tmp_path, idle_seconds=1.0) as watched:
        await watched.watch.synced.wait()
        with server.paused():
            await eventually(lambda: not watched.watch.up, 20)
        await eventually(lambda: watched.watch.up, 20)
        server.node("n2")
        await eventually(lambda: "n2" in watched.names, 20)


async def test_a_verb_that_is_missing_is_named_and_its_return_noticed(
    api_server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = api_server.service_account("watcher", [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}])
    api_server.node("n1")
    async with watching(api_server, tmp_path, token) as watched:
        await eventually(lambda: watched.ups == [False, True, False])
        assert watched.names == {"n1"}
        assert "watch nodes" in capsys.readouterr().out
        api_server.permit("watcher", READ_NODES)
        await eventually(lambda: watched.watch.up, 30)
        api_server.node("n2")
        await eventually(lambda: "n2" in watched.names)


async def test_rights_taken_away_while_it_runs_are_noticed_and_what_was_missed_comes(
    api_server: ApiServer, tmp_path: Path
) -> None:
    token = api_server.service_account("watcher", READ_NODES)
    async with watching(api_server, tmp_path, token, idle_seconds=1.0) as watched:
        await watched.watch.synced.wait()
        api_server.permit("watcher", [])
        await eventually(lambda: not watched.watch.up, 30)
        api_server.node("n1")
        api_server.permit("watcher", READ_NODES)
        await eventually(lambda: "n1" in watched.names, 40)


async def test_changes_wait_no_longer_than_asked(api_server: ApiServer, tmp_path: Path) -> None:
    async with watching(api_server, tmp_path) as watched:
        await watched.watch.synced.wait()
        await watched.watch.changes()
        assert await watched.watch.changes(time.monotonic() + 0.1) == set()


@pytest.mark.parametrize(
    "found",
    [
        {"metadata": {"name": "n", "uid": "u"}},
        {"metadata": {"name": "n", "uid": "u"}, "spec": {}, "status": {"conditions": None, "capacity": None}},
        {
            "metadata": {"name": "n", "uid": "u"},
            "status": {"conditions": [{"type": "Gcm" + "x" * 1000, "status": "True"}]},
        },
        {"metadata": {"name": "n", "uid": "u"}, "status": {"conditions": [{}], "capacity": {"nvidia.com/gpu": "many"}}},
        {"metadata": {"name": "n", "uid": "u", "creationTimestamp": "yesterday"}},
    ],
)
def test_an_odd_node_is_read_as_far_as_it_goes(found: dict[str, object]) -> None:
    node = parse(found, WANTED)
    assert (node.name, node.gpus, dict(node.conditions), node.created_us) == ("n", 0, {}, 0)
