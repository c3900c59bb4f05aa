"""Events and annotations on the Nodes of a real API server."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregator.kube.access import find_access
from aggregator.kube.client import KubeClient
from aggregator.kube.walls import Walls
from aggregator.model import Action, Resolution, Severity
from aggregator.outputs.annotations import Annotations
from aggregator.outputs.node_events import NodeEvents
from aggregator.store.deliveries import Waiting
from tests.cluster import components
from tests.cluster.api_server import ADMIN, ApiServer, Object
from tests.cluster.walls import await_allowed, standing
from tests.outputs.conftest import Desk, fault, judged, resolved
from tests.server.aggregator import eventually

EVENTS = "/api/v1/namespaces/default/events"
GET_NODES = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list"]}
LIST_PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
WRITE_EVENTS = {"apiGroups": [""], "resources": ["events"], "verbs": ["get", "create", "patch"]}
PATCH_NODES = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]}


def connect(server: ApiServer, directory: Path, token: str = ADMIN) -> KubeClient:
    config = server.kubeconfig(directory / "kubeconfig", token)
    return KubeClient(find_access({"KUBECONFIG": str(config)}, wanted=True))


@pytest.fixture
async def client(api_server: ApiServer, tmp_path: Path) -> AsyncIterator[KubeClient]:
    opened = connect(api_server, tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def confined(api_server: ApiServer, tmp_path: Path) -> AsyncIterator[KubeClient]:
    """A client of the account as which the aggregator runs in annotate mode, its last wall standing."""
    api_server.node("a-node")
    token = api_server.service_account("sentinel", [GET_NODES, LIST_PODS, PATCH_NODES, WRITE_EVENTS])
    await asyncio.to_thread(await_allowed, api_server, token, "a-node")
    with standing(api_server, "annotate", "system:serviceaccount:default:sentinel", token, "a-node"):
        opened = connect(api_server, tmp_path, token)
        yield opened
        await opened.close()


def annotating(client: KubeClient, desk: Desk) -> Annotations:
    return Annotations(client, desk.store, Walls(client, "annotate"))


def events(server: ApiServer) -> list[Object]:
    found = server.request("GET", EVENTS)["items"]
    return sorted(found, key=lambda event: (event["firstTimestamp"], event["message"]))


def annotations(server: ApiServer, node: str = "n1") -> dict[str, str]:
    return dict(server.request("GET", f"/api/v1/nodes/{node}")["metadata"].get("annotations") or {})


async def test_each_change_of_a_verdict_is_an_event_of_the_node(
    desk: Desk, api_server: ApiServer, client: KubeClient
) -> None:
    node = api_server.node("n1")
    async with desk.delivering(NodeEvents(client, "pod-1")):
        await desk.tell(fault(), judged(fault()))
        await desk.idle()
        await desk.tell(fault(), judged(fault(), 2, Severity.WARNING, confidence=0.5))
        await desk.idle()
        await desk.tell(resolved(fault()), judged(fault(), 3, Severity.WARNING, confidence=0.5))
        await desk.idle()
    found = {event["message"]: event for event in events(api_server)}
    assert {message: event["type"] for message, event in found.items()} == {
        "[CRITICAL] The GPU fell off the bus. | Action: drain | Confidence: 90% | inc-1": "Warning",
        "[WARNING] updated: The GPU fell off the bus. | Action: drain | Confidence: 50% | inc-1": "Warning",
        "[WARNING] resolved: The GPU fell off the bus. | Action: drain | Confidence: 50% | inc-1": "Normal",
    }
    for event in found.values():
        assert event["reason"] == "GCMSentinel"
        assert event["involvedObject"] == {
            "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": node["metadata"]["uid"],
        }  # fmt: skip


async def test_the_same_again_counts_up(desk: Desk, api_server: ApiServer, client: KubeClient) -> None:
    """A fault that comes and goes is one Event that says how often; an attempt that is repeated counts once."""
    api_server.node("n1")
    target = NodeEvents(client, "pod-1")
    async with desk.delivering(target):
        for revision in range(1, 7):
            incident = fault() if revision % 2 else resolved(fault())
            await desk.tell(incident, judged(incident, revision))
            await desk.idle()
        opened = next(event for event in events(api_server) if event["type"] == "Warning")
        assert (opened["count"], opened["series"]["count"]) == (3, 3)
        assert opened["lastTimestamp"] >= opened["firstTimestamp"]
    assert len(events(api_server)) == 2


async def test_an_attempt_whose_answer_was_lost_counts_once(api_server: ApiServer, client: KubeClient) -> None:
    api_server.node("n1")
    target = NodeEvents(client, "pod-1")
    message = Waiting(1, "opened", 1, 0, "id-1", fault(), judged(fault()))
    for _ in range(3):
        await target.send(message)
    (event,) = events(api_server)
    assert event["count"] == 1


async def test_an_event_is_bounded_whatever_it_says(desk: Desk, api_server: ApiServer, client: KubeClient) -> None:
    api_server.node("n1")
    async with desk.delivering(NodeEvents(client, "pod-1")):
        await desk.tell(fault(), judged(fault(), root_cause="\U0001f525\n<!here> http://evil" * 20_000))
        await desk.idle()
    assert await desk.rows("dead") == []
    (event,) = events(api_server)
    assert len(event["message"].encode()) <= 1024
    assert event["message"].endswith("| inc-1")


async def test_a_node_that_is_not_in_the_cluster_is_told_nothing(
    desk: Desk, api_server: ApiServer, confined: KubeClient
) -> None:
    """And is not made by telling it."""
    async with desk.delivering(NodeEvents(confined, "pod-1"), annotating(confined, desk)):
        await desk.tell(fault(), judged(fault()))
        await desk.idle()
    assert await desk.rows() == []
    assert events(api_server) == []
    assert [node["metadata"]["name"] for node in api_server.request("GET", "/api/v1/nodes")["items"]] == ["a-node"]


async def test_kubectl_describe_shows_it(desk: Desk, api_server: ApiServer, client: KubeClient, tmp_path: Path) -> None:
    try:
        kubectl = components.find("kubectl")["kubectl"]
    except components.NotBuilt as error:
        pytest.skip(f"no kubectl: {error}")
    api_server.node("n1")
    async with desk.delivering(NodeEvents(client, "pod-1")):
        await desk.tell(fault(), judged(fault()))
        await desk.idle()
    command = [str(kubectl), "--kubeconfig", str(tmp_path / "kubeconfig"), "describe", "node", "n1"]
    shown = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    (line,) = [line.split(None, 4) for line in shown.stdout.splitlines() if "GCMSentinel" in line]
    assert line[0] == "Warning"
    assert line[3] == "gcm-sentinel"
    assert line[4].startswith("[CRITICAL] The GPU fell off the bus.")


async def test_a_node_carries_the_verdict_on_it(desk: Desk, api_server: ApiServer, confined: KubeClient) -> None:
    """The reference's seven, and what somebody else may do; others' annotations stay; on the end ours go."""
    api_server.node("n1", annotations={"example.com/owner": "me"})
    async with desk.delivering(annotating(confined, desk)):
        await desk.tell(fault(), judged(fault()))
        await desk.idle()
        assert annotations(api_server) == {
            "example.com/owner": "me",
            "gcm-sentinel/severity": "critical",
            "gcm-sentinel/action": "drain",
            "gcm-sentinel/confidence": "0.90",
            "gcm-sentinel/summary": "It answers nothing.",
            "gcm-sentinel/root-cause": "The GPU fell off the bus.",
            "gcm-sentinel/condition": "xid 79",
            "gcm-sentinel/timestamp": "2023-11-14T22:13:20+00:00",
            "gcm-sentinel/recommended": "reset_gpu,reboot 0000:3a:00.0",
        }
        await desk.tell(fault(), judged(fault(), 2, resolutions=(Resolution.MONITOR,), action=Action.NONE))
        await desk.idle()
        assert "gcm-sentinel/recommended" not in annotations(api_server)
        await desk.tell(resolved(fault()), judged(fault(), 3))
        await desk.idle()
        assert annotations(api_server) == {"example.com/owner": "me"}


async def test_the_worst_open_incident_is_the_one_that_shows(
    desk: Desk, api_server: ApiServer, confined: KubeClient
) -> None:
    api_server.node("n1")
    warning, critical = fault(1), fault(1, id="inc-2", opened_us=2)
    async with desk.delivering(annotating(confined, desk)):
        await desk.tell(critical, judged(critical))
        await desk.tell(warning, judged(warning, 1, Severity.WARNING, root_cause="Too hot."))
        await desk.idle()
        assert annotations(api_server)["gcm-sentinel/severity"] == "critical"
        await desk.tell(resolved(critical), judged(critical, 2))
        await desk.idle()
        assert annotations(api_server)["gcm-sentinel/root-cause"] == "Too hot."


async def test_another_actor_s_change_is_put_right_with_the_next_verdict(
    desk: Desk, api_server: ApiServer, confined: KubeClient
) -> None:
    api_server.node("n1")
    async with desk.delivering(annotating(confined, desk)):
        await desk.tell(fault(), judged(fault()))
        await desk.idle()
        api_server.patch("/api/v1/nodes/n1", {"metadata": {"annotations": {"gcm-sentinel/severity": "ok"}}})
        await desk.tell(fault(), judged(fault(), 2))
        await desk.idle()
        assert annotations(api_server)["gcm-sentinel/severity"] == "critical"


async def test_a_missing_verb_is_named_and_its_return_is_noticed(
    desk: Desk, api_server: ApiServer, tmp_path: Path
) -> None:
    token = api_server.service_account("events", [GET_NODES])
    api_server.node("n1")
    client = connect(api_server, tmp_path, token)
    async with desk.delivering(NodeEvents(client, "pod-1")):
        await desk.tell(fault(), judged(fault()))
        await eventually(lambda: desk.metric("sentinel_deliveries_total", target="node_events", outcome="failed"))
        (row,) = await desk.rows("waiting")
        assert 'cannot create resource "events"' in row.last_error
        api_server.permit("events", [GET_NODES, WRITE_EVENTS])
        await desk.idle()
    await client.close()
    assert len(events(api_server)) == 1


async def test_without_the_last_wall_nothing_is_annotated(desk: Desk, api_server: ApiServer, tmp_path: Path) -> None:
    """A role that may write nodes, and no policy that confines it."""
    api_server.node("n1")
    token = api_server.service_account("sentinel", [GET_NODES, LIST_PODS, PATCH_NODES])
    await asyncio.to_thread(await_allowed, api_server, token, "n1")
    client = connect(api_server, tmp_path, token)
    async with desk.delivering(annotating(client, desk)):
        await desk.tell(fault(), judged(fault()))
        await eventually(lambda: desk.metric("sentinel_deliveries_total", target="annotations", outcome="failed"))
        (row,) = await desk.rows("waiting")
        assert "an admission policy must deny this account to label nodes" in row.last_error
    await client.close()
    assert annotations(api_server) == {}


async def test_an_api_server_that_is_away_is_told_the_last_verdict(
    desk: Desk, own_api_server: ApiServer, tmp_path: Path
) -> None:
    own_api_server.node("n1")
    token = own_api_server.service_account("sentinel", [GET_NODES, LIST_PODS, PATCH_NODES])
    await asyncio.to_thread(await_allowed, own_api_server, token, "n1")
    client = connect(own_api_server, tmp_path, token)
    with standing(own_api_server, "annotate", "system:serviceaccount:default:sentinel", token, "n1"):
        async with desk.delivering(annotating(client, desk)):
            await asyncio.to_thread(own_api_server.stop_server)
            await desk.tell(fault(), judged(fault()))
            await eventually(lambda: desk.metric("sentinel_deliveries_total", target="annotations", outcome="failed"))
            await desk.tell(fault(), judged(fault(), 2, Severity.WARNING))
            await asyncio.to_thread(own_api_server.start_server)
            await desk.idle(seconds=30)
    await client.close()
    assert annotations(own_api_server)["gcm-sentinel/severity"] == "warning"


async def test_what_another_wrote_under_our_prefix_is_left_where_we_never_wrote(
    desk: Desk, api_server: ApiServer, confined: KubeClient
) -> None:
    """Maintenance and opt-out marks of people survive verdicts."""
    api_server.node("n1", annotations={"gcm-sentinel/note": "mine"})
    async with desk.delivering(annotating(confined, desk)):
        for revision, incident in enumerate((fault(), resolved(fault())), 1):
            await desk.tell(incident, judged(incident, revision))
            await desk.idle()
    assert annotations(api_server) == {"gcm-sentinel/note": "mine"}
