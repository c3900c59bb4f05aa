"""Drains on a real API server: who leaves, who stays, who cannot, and what becomes of a drain that is interrupted."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aggregator.model import Action
from aggregator.remediation.pods import Rules
from aggregator.store import audit
from tests.cluster.api_server import ApiServer, Object
from tests.outputs.conftest import Desk, OpenDesk, judged, resolved
from tests.remediation.conftest import FAST, OPTIONS, Account, acting, outcomes, proposed, records
from tests.server.aggregator import eventually

MANAGED = {"kind": "ReplicaSet", "name": "train"}
DAEMON = {"kind": "DaemonSet", "name": "agent"}
READY = {"type": "Ready", "status": "True"}  # a budget guards pods that are
SHORT = replace(OPTIONS, pace=replace(FAST, drain=1.0))


def pod(
    server: ApiServer,
    name: str,
    owner: dict[str, str] | None = MANAGED,
    *,
    namespace: str = "default",
    node: str = "n1",
    phase: str = "Running",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    volumes: list[Object] | None = None,
) -> None:
    """A pod on a node, as far along as its phase says."""
    owners = [{"apiVersion": "apps/v1", "uid": "u", "controller": True, **owner}] if owner else []
    metadata = {
        "name": name, "labels": labels or {}, "annotations": annotations or {}, "ownerReferences": owners,
    }  # fmt: skip
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "i"}], "volumes": volumes or []}
    server.namespace(namespace)
    path = f"/api/v1/namespaces/{namespace}/pods"
    server.request("POST", path, {"metadata": metadata, "spec": spec})
    server.patch(f"{path}/{name}/status", {"status": {"phase": phase, "conditions": [READY]}})


def budget(server: ApiServer, allowed: int) -> None:
    """A disruption budget for pods labelled guarded, as its controller would have set it."""
    path = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"guarded": "yes"}}}
    made = server.apply(path, {"metadata": {"name": "guard"}, "spec": spec})
    status = {
        "observedGeneration": made["metadata"]["generation"], "disruptionsAllowed": allowed,
        "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1,
    }  # fmt: skip
    server.patch(f"{path}/guard/status", {"status": status})


def leaving(server: ApiServer) -> set[str]:
    """Pods that were told to go."""
    found = server.request("GET", "/api/v1/pods")["items"]
    return {one["metadata"]["name"] for one in found if "deletionTimestamp" in one["metadata"]}


def end(server: ApiServer, *names: str) -> None:
    """What a kubelet does once a pod's processes have ended."""
    for name in names:
        server.delete(f"/api/v1/namespaces/default/pods/{name}")


def evictions(account: Account) -> list[str]:
    return [what for verb, what in account.changes() if verb == "create"]


async def test_a_node_is_emptied_of_what_may_leave(desk: Desk, account: Account) -> None:
    server = account.server
    pod(server, "train-1")
    pod(server, "train-2")
    pod(server, "elsewhere", node="n2")
    pod(server, "agent", DAEMON)
    pod(server, "mirror", None, annotations={"kubernetes.io/config.mirror": "x"})
    pod(server, "finished", None, phase="Succeeded")
    pod(server, "ourselves", MANAGED, labels={"app": "gcm-sentinel"})
    async with acting(desk, account):
        await desk.tell(*proposed(action=Action.DRAIN))
        await eventually(lambda: leaving(server) == {"train-1", "train-2"})
        end(server, "train-1", "train-2")
        await desk.idle()
    assert account.node()["spec"]["unschedulable"] is True
    assert sorted(evictions(account)) == ["pods/default/train-1/eviction", "pods/default/train-2/eviction"]
    action, outcome, reasons = (await records(desk))[-1]
    assert (action, outcome, reasons[0]) == ("drain", "done", "it was cordoned by us already")
    assert reasons[1:] == ("evicted 2: default/train-1, default/train-2",)


async def test_a_pod_s_own_grace_stands(desk: Desk, account: Account) -> None:
    """It asks for ten minutes to write a checkpoint, and gets them."""
    spec = {"nodeName": "n1", "terminationGracePeriodSeconds": 600, "containers": [{"name": "c", "image": "i"}]}
    owners = [{"apiVersion": "apps/v1", "uid": "u", "controller": True, **MANAGED}]
    path = "/api/v1/namespaces/default/pods"
    account.server.request("POST", path, {"metadata": {"name": "p", "ownerReferences": owners}, "spec": spec})
    account.server.patch(f"{path}/p/status", {"status": {"phase": "Running"}})
    async with acting(desk, account):
        await desk.tell(*proposed(action=Action.DRAIN))
        await eventually(lambda: leaving(account.server) == {"p"})
    found = account.server.request("GET", f"{path}/p")["metadata"]
    assert found["deletionGracePeriodSeconds"] == 600


@pytest.mark.parametrize(
    ("owner", "volumes", "namespace", "rules", "why"),
    [
        (None, [], "default", Rules(), "nobody would make it anew"),
        (MANAGED, [{"name": "d", "emptyDir": {}}], "default", Rules(), "it has data on the node (emptyDir)"),
        (MANAGED, [], "kube-system", Rules(True, True), "it belongs to the cluster itself"),
    ],
)
async def test_what_would_be_lost_stays_and_is_reported(
    desk: Desk,
    account: Account,
    owner: dict[str, str] | None,
    volumes: list[Object],
    namespace: str,
    rules: Rules,
    why: str,
) -> None:
    pod(account.server, "kept", owner, volumes=volumes, namespace=namespace)
    async with acting(desk, account, rules=rules):
        await desk.tell(*proposed(action=Action.DRAIN))
        await desk.idle()
    assert leaving(account.server) == set()
    action, outcome, reasons = (await records(desk))[-1]
    assert (action, outcome) == ("drain", "failed")
    assert f"blocked 1: {namespace}/kept: {why}" in reasons


async def test_what_the_operator_gives_up_leaves(desk: Desk, account: Account) -> None:
    pod(account.server, "alone", None, volumes=[{"name": "d", "emptyDir": {}}])
    async with acting(desk, account, rules=Rules(unmanaged=True, empty_dir=True)):
        await desk.tell(*proposed(action=Action.DRAIN))
        await eventually(lambda: leaving(account.server) == {"alone"})


async def test_a_disruption_budget_is_waited_for(desk: Desk, account: Account) -> None:
    pod(account.server, "guarded", labels={"guarded": "yes"})
    budget(account.server, 0)
    try:
        async with acting(desk, account):
            await desk.tell(*proposed(action=Action.DRAIN))
            await eventually(
                lambda: desk.metric("sentinel_deliveries_total", target="remediation", outcome="postponed")
            )
            (row,) = await desk.rows("waiting")
            assert "blocked 1: default/guarded: its disruption budget allows none now" in row.last_error
            budget(account.server, 1)
            await eventually(lambda: leaving(account.server) == {"guarded"})
            end(account.server, "guarded")
            await desk.idle()
    finally:
        account.server.delete("/apis/policy/v1/namespaces/default/poddisruptionbudgets/guard")
    assert (await outcomes(desk))[-1] == "drain done"


async def test_a_pod_that_cannot_end_is_reported_and_never_forced(desk: Desk, account: Account) -> None:
    """Its kubelet is gone: nothing ends it, and nobody deletes it."""
    pod(account.server, "stuck")
    account.server.condition("n1", "Ready", "Unknown")
    async with acting(desk, account, SHORT):
        await desk.tell(*proposed(action=Action.DRAIN))
        await desk.idle()
    reasons = (await records(desk))[-1][2]
    assert "remaining 1: default/stuck" in reasons
    assert reasons[-1].startswith("the node is not ready: pods cannot end there")
    assert leaving(account.server) == {"stuck"}
    assert {verb for verb, _ in account.changes()} == {"patch", "create"}


async def test_a_drain_goes_on_where_the_last_process_stopped(open_desk: OpenDesk, account: Account) -> None:
    """It is one attempt of the hour's budget, its deadline is the first one's, and its report is of both."""
    pod(account.server, "first")
    async with open_desk() as desk, acting(desk, account):
        await desk.tell(*proposed(action=Action.DRAIN))
        await eventually(lambda: leaving(account.server) == {"first"})
        (begun,) = await desk.store.read(audit.unfinished_drains)
    pod(account.server, "second")
    end(account.server, "first")
    async with open_desk() as desk, acting(desk, account):
        await eventually(lambda: leaving(account.server) == {"second"})
        assert (await desk.store.read(audit.unfinished_drains))[0].deadline_us == begun.deadline_us
        end(account.server, "second")
        await desk.idle()
        assert await desk.store.read(lambda connection: audit.started_since(connection, 0)) == 1
        assert "evicted 2: default/first, default/second" in (await records(desk))[-1][2]
    assert sorted(evictions(account)) == ["pods/default/first/eviction", "pods/default/second/eviction"]


async def test_one_node_is_drained_at_a_time(desk: Desk, account: Account) -> None:
    pod(account.server, "first")
    async with acting(desk, account):
        await desk.tell(*proposed(1, Action.DRAIN))
        await eventually(lambda: leaving(account.server) == {"first"})
        await desk.tell(*proposed(2, Action.DRAIN))
        await eventually(lambda: desk.metric("sentinel_remediation_total", action="drain", outcome="denied"))
        assert (await records(desk, "inc-2"))[0][2] == ("n1 is being drained",)
        end(account.server, "first")
        await desk.idle()
    assert (await outcomes(desk, "inc-2"))[-1] == "drain done"


@pytest.mark.parametrize("change", ["over", "milder"])
async def test_a_drain_stops_when_its_reason_is_gone(desk: Desk, account: Account, change: str) -> None:
    """The cordon stays: whether the node is well is for a person, or a proved recovery, to say."""
    pod(account.server, "guarded", labels={"guarded": "yes"})
    budget(account.server, 0)
    incident, assessment = proposed(action=Action.DRAIN)
    try:
        async with acting(desk, account):
            await desk.tell(incident, assessment)
            await eventually(
                lambda: desk.metric("sentinel_deliveries_total", target="remediation", outcome="postponed")
            )
            if change == "over":
                await desk.tell(resolved(incident), judged(incident, 2))
            else:
                await desk.tell(incident, judged(incident, 2, origin="llm", action=Action.NONE))
            await desk.idle()
            budget(account.server, 1)
            await asyncio.sleep(0.5)
    finally:
        account.server.delete("/apis/policy/v1/namespaces/default/poddisruptionbudgets/guard")
    assert leaving(account.server) == set()
    assert "drain failed" in await outcomes(desk)
    assert await desk.store.read(audit.unfinished_drains) == []
    assert account.node()["spec"]["unschedulable"] is True


async def test_the_switch_stops_a_drain_that_runs(desk: Desk, account: Account) -> None:
    pod(account.server, "guarded", labels={"guarded": "yes"})
    budget(account.server, 0)
    switch = "/api/v1/namespaces/default/configmaps"
    try:
        async with acting(desk, account):
            await desk.tell(*proposed(action=Action.DRAIN))
            await eventually(
                lambda: desk.metric("sentinel_deliveries_total", target="remediation", outcome="postponed")
            )
            account.server.request("POST", switch, {"metadata": {"name": "gcm-sentinel-stop"}})
            await eventually(lambda: desk.metric("sentinel_remediation_total", action="drain", outcome="denied"))
            budget(account.server, 1)
            await asyncio.sleep(0.6)
            assert leaving(account.server) == set()
            account.server.delete(f"{switch}/gcm-sentinel-stop")
            await eventually(lambda: leaving(account.server) == {"guarded"})
    finally:
        account.server.delete("/apis/policy/v1/namespaces/default/poddisruptionbudgets/guard")
