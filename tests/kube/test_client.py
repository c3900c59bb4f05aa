"""Requests to a real API server: what each of its refusals becomes, and what the client does about credentials that rotate."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from aggregator.kube.access import AccessWrong, NoCluster, find_access
from aggregator.kube.errors import (
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unreachable,
    refusal,
)
from tests.cluster.api_server import ADMIN, ApiServer
from tests.kube.conftest import Connect

NODES = "/api/v1/nodes"


async def test_a_list_comes_in_pages(api_server: ApiServer, connect: Connect) -> None:
    for number in range(5):
        api_server.node(f"n{number}")
    async with connect(api_server) as client:
        pages = [len(found["items"]) async for found in client.pages(NODES, page=2)]
        names = [item["metadata"]["name"] for item in await client.items(NODES, {"labelSelector": "!absent"}, page=3)]
    assert pages == [2, 2, 1]
    assert names == ["n0", "n1", "n2", "n3", "n4"]


async def test_a_watch_tells_changes_from_a_version_on(api_server: ApiServer, connect: Connect) -> None:
    async with connect(api_server) as client:
        version = (await client.get(NODES))["metadata"]["resourceVersion"]
        api_server.node("n1")
        api_server.condition("n1", "GcmXidErrorsProblem", "True", message="x" * 1_000_000)
        api_server.delete(f"{NODES}/n1")
        async with aclosing(client.watch(NODES, version, seconds=2)) as events:
            seen = [event async for event in events if event["type"] not in ("OPEN", "BOOKMARK")]
    assert [event["type"] for event in seen] == ["ADDED", "MODIFIED", "DELETED"]
    assert len(json.dumps(seen[1])) > 1_000_000


async def test_a_patch_is_ours_by_field_manager_and_conflicts_are_told(api_server: ApiServer, connect: Connect) -> None:
    api_server.node("n1")
    mine = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n1", "annotations": {"gcm-sentinel/severity": "info"}},
    }
    async with connect(api_server) as client:
        applied = await client.patch(f"{NODES}/n1", mine, "apply")
        stale = {"metadata": {"resourceVersion": "1"}, "spec": {"unschedulable": True}}
        with pytest.raises(Conflict):
            await client.patch(f"{NODES}/n1", stale)
        with pytest.raises(Conflict):
            await client.post(NODES, {"metadata": {"name": "n1"}})
    managers = {entry["manager"]: entry["operation"] for entry in applied["metadata"]["managedFields"]}
    assert managers["gcm-sentinel"] == "Apply"


async def test_what_is_denied_names_the_verb_and_the_resource(api_server: ApiServer, connect: Connect) -> None:
    token = api_server.service_account("reader", [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}])
    async with connect(api_server, token) as client:
        assert await client.items(NODES) == []
        with pytest.raises(Forbidden) as denied:
            async with aclosing(client.watch(NODES, "0")) as events:
                await anext(events)
        assert (denied.value.verb, denied.value.resource) == ("watch", "nodes")
        with pytest.raises(Forbidden) as denied:
            await client.patch(f"{NODES}/n1", {"spec": {"unschedulable": True}})
        assert (denied.value.verb, denied.value.resource) == ("patch", "nodes")


async def test_what_is_not_there_or_breaks_the_rules_is_told_apart(api_server: ApiServer, connect: Connect) -> None:
    async with connect(api_server) as client:
        with pytest.raises(NotFound):
            await client.get(f"{NODES}/absent")
        with pytest.raises(Invalid):
            await client.post(NODES, {"metadata": {"name": "Not_A_Name"}})


async def test_a_token_that_rotated_is_read_anew(api_server: ApiServer, connect: Connect, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("no-longer-valid")
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}]
    async with connect(api_server, token_file=token_file) as client:
        with pytest.raises(Unauthorized):
            await client.get(NODES)
        token_file.write_text(api_server.service_account("rotating", rules))
        assert (await client.get(NODES))["items"] == []
        token_file.unlink()
        assert (await client.get(NODES))["items"] == []  # read once, and still good


async def test_a_watch_too_reads_a_token_anew(api_server: ApiServer, connect: Connect, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("no-longer-valid")
    async with connect(api_server, token_file=token_file) as client:
        with pytest.raises(Unauthorized):
            await client.get(NODES)
        token_file.write_text(ADMIN)
        async with aclosing(client.watch(NODES, "0", seconds=1)) as events:
            assert [event["type"] async for event in events][-1] == "BOOKMARK"


async def test_a_server_that_does_not_answer_is_unreachable_in_time(
    own_api_server: ApiServer, connect: Connect
) -> None:
    async with connect(own_api_server) as client:
        version = (await client.get(NODES))["metadata"]["resourceVersion"]
        with own_api_server.paused():
            began = time.monotonic()
            with pytest.raises(Unreachable, match="no answer in time"):
                async with aclosing(client.watch(NODES, version, idle_seconds=0.5)) as events:
                    [event async for event in events]
            assert time.monotonic() - began < 5
        own_api_server.stop_server()
        with pytest.raises(Unreachable):
            await client.get(NODES)


async def test_a_version_that_was_compacted_is_gone(own_api_server: ApiServer, connect: Connect) -> None:
    async with connect(own_api_server) as client:
        version = (await client.get(NODES))["metadata"]["resourceVersion"]
        for number in range(3):
            await asyncio.to_thread(own_api_server.node, f"n{number}")
        own_api_server.compact()
        await asyncio.to_thread(own_api_server.restart_server)
        with pytest.raises(Gone):
            async with aclosing(client.watch(NODES, version)) as events:
                [event async for event in events]


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (429, {"details": {"retryAfterSeconds": 7, "causes": [{"reason": "DisruptionBudget"}]}}, TooManyRequests),
        (503, {}, Unreachable),
        (418, {"message": "a\nteapot"}, ApiError),
    ],
)
def test_every_refusal_has_a_kind(code: int, status: dict[str, object], kind: type[ApiError]) -> None:
    error = refusal(code, status)
    assert type(error) is kind
    assert "\n" not in str(error)
    if isinstance(error, TooManyRequests):
        assert (error.retry_after_seconds, error.causes) == (7.0, ("DisruptionBudget",))


def test_without_a_cluster_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NoCluster):
        find_access({"HOME": str(tmp_path)}, wanted=True)


def test_kubectls_own_file_is_used_where_a_cluster_is_wanted_alone(tmp_path: Path) -> None:
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").write_text("{}")
    with pytest.raises(NoCluster):
        find_access({"HOME": str(tmp_path)}, wanted=False)
    with pytest.raises(AccessWrong, match=str(tmp_path)):
        find_access({"HOME": str(tmp_path)}, wanted=True)()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "text", "{}", '{"current-context": "c", "contexts": [], "clusters": [], "users": []}'],
)
def test_a_wrong_kubeconfig_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(AccessWrong, match=str(path)):
        find_access({"KUBECONFIG": str(path)}, wanted=True)()


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AccessWrong, match="no such file"):
        find_access({"KUBECONFIG": str(tmp_path / "absent")}, wanted=True)()


def test_a_pod_without_its_token_is_named() -> None:
    with pytest.raises(AccessWrong, match="service account"):
        find_access({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}, wanted=False)()
