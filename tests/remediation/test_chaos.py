"""What goes wrong while something is being done: the API server dies, pauses, or takes back what we may do; the process dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from aggregator.kube.errors import Conflict
from aggregator.model import Action
from aggregator.remediation.executor import Executor
from aggregator.remediation.pods import Rules
from aggregator.store import audit
from aggregator.store.audit import DOING, Begun
from tests.cluster.api_server import ApiServer, Object
from tests.cluster.walls import COLLECTIONS, await_allowed, await_denied, standing
from tests.outputs.conftest import Desk, OpenDesk
from tests.remediation.conftest import ROLE, USER, Account, acting, outcomes, prepare, proposed, records
from tests.remediation.test_draining import end, evictions, leaving, pod
from tests.server.aggregator import eventually


@pytest.fixture
def own_account(own_api_server: ApiServer, tmp_path: Path) -> Iterator[Account]:
    """On a server that may be brought to harm."""
    made = prepare(own_api_server, tmp_path)
    with standing(own_api_server, "execute", USER, (tmp_path / "token").read_text(), "n1"):
        own_api_server.mark_audit()
        yield made


def token(account: Account) -> str:
    return (account.kubeconfig.parent / "token").read_text()


async def test_an_api_server_that_dies_in_a_drain_delays_it(desk: Desk, own_account: Account) -> None:
    server = own_account.server
    pod(server, "first")
    async with acting(desk, own_account):
        await desk.tell(*proposed(action=Action.DRAIN))
        await eventually(lambda: leaving(server) == {"first"})
        await asyncio.to_thread(server.stop_server)
        await eventually(lambda: desk.metric("sentinel_deliveries_total", target="remediation", outcome="failed"))
        await asyncio.to_thread(server.start_server)
        pod(server, "second")
        end(server, "first")
        await eventually(lambda: leaving(server) == {"second"}, seconds=30)
        end(server, "second")
        await desk.idle(seconds=30)
    assert (await outcomes(desk))[-1] == "drain done"
    assert sorted(evictions(own_account)) == ["pods/default/first/eviction", "pods/default/second/eviction"]


async def test_an_api_server_that_pauses_is_waited_for(desk: Desk, own_account: Account) -> None:
    async with acting(desk, own_account):
        with own_account.server.paused():
            await desk.tell(*proposed())
            await asyncio.sleep(3)
        await desk.idle(seconds=40)
    assert (await outcomes(desk))[-1] == "cordon done"
    assert own_account.changes() == [("patch", "nodes/n1")]


async def test_a_verb_that_is_taken_away_is_named_and_its_return_noticed(desk: Desk, account: Account) -> None:
    without = [rule for rule in ROLE if rule["resources"] != ["pods/eviction"]]
    account.server.permit("sentinel", without)
    pod(account.server, "first")
    async with acting(desk, account):
        await desk.tell(*proposed(action=Action.DRAIN))

        async def said() -> bool:
            return any('cannot create resource "pods/eviction"' in row.last_error for row in await desk.rows("waiting"))

        await eventually(said)
        account.server.permit("sentinel", ROLE)
        await eventually(lambda: leaving(account.server) == {"first"})


async def test_a_wall_that_is_taken_down_stops_everything(desk: Desk, own_account: Account) -> None:
    """While nothing confines the account, nothing is done; once it stands again, what waits is decided again."""
    server = own_account.server
    binding = f"{COLLECTIONS['ValidatingAdmissionPolicyBinding']}/gcm-sentinel"
    kept = server.request("GET", binding)
    server.delete(binding)
    await asyncio.to_thread(await_allowed, server, token(own_account), "n1")
    async with acting(desk, own_account):
        await desk.tell(*proposed())
        await eventually(lambda: desk.metric("sentinel_remediation_total", action="cordon", outcome="denied"))
        assert (await records(desk))[0][2][0].startswith("the last wall is not proved: in execute mode")
        assert own_account.changes() == []
        body = {"metadata": {"name": "gcm-sentinel"}, "spec": kept["spec"]}
        server.request("POST", COLLECTIONS["ValidatingAdmissionPolicyBinding"], body)
        await asyncio.to_thread(await_denied, server, token(own_account), "n1")
        await desk.idle()
    assert (await outcomes(desk))[-1] == "cordon done"


@pytest.mark.parametrize("cordoned", [False, True])
async def test_a_process_that_dies_between_writing_down_and_doing(
    open_desk: OpenDesk, account: Account, cordoned: bool
) -> None:
    """What was begun is in the store: the next process does it, or finds it done, and counts one attempt."""
    incident, assessment = proposed()
    node = account.node()
    async with open_desk() as desk:
        now_us = time.time_ns() // 1000
        begun = Begun(incident.id, "cordon", "n1", node["metadata"]["uid"], DOING, now_us, now_us + 60_000_000)
        await desk.store.write(partial(audit.begin, begun=begun, now_us=now_us, max_per_hour=3))
    if cordoned:
        client = account.client()
        await Executor(client, rules=Rules()).cordon(node, incident.id)
        await client.close()
    async with open_desk() as desk, acting(desk, account):
        await desk.tell(incident, assessment)
        await desk.idle()
        assert (await records(desk))[-1][1:] == (
            "done", ("it was cordoned by us already" if cordoned else "cordoned",),
        )  # fmt: skip
        assert await desk.store.read(lambda connection: audit.started_since(connection, 0)) == 1
    assert account.changes() == [("patch", "nodes/n1")]


async def test_an_eviction_never_hits_the_next_pod_of_that_name(account: Account) -> None:
    """Between looking and evicting, the pod was replaced by one of the same name."""
    pod(account.server, "train-0")
    client = account.client()
    executor = Executor(client, rules=Rules())
    (old,) = await client.items("/api/v1/pods", {"fieldSelector": "spec.nodeName=n1"})
    end(account.server, "train-0")
    pod(account.server, "train-0", node="n2")
    assert await executor._evict(old) == ""
    await client.close()
    assert leaving(account.server) == set()


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"unschedulable": True}},
        {"metadata": {"labels": {"gcm-sentinel/opt-out": "true"}}},
        {"metadata": {"annotations": {"weave.works/kured-reboot-in-progress": "now"}}},
        {"spec": {"taints": [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]}},
    ],
)
async def test_what_another_did_since_the_decision_is_not_run_over(account: Account, change: Object) -> None:
    decided_on = account.node()
    account.server.patch("/api/v1/nodes/n1", change)
    client = account.client()
    executor = Executor(client, rules=Rules())
    for act in (executor.cordon(decided_on, "inc-1"), executor.taint(decided_on, "pcie")):
        with pytest.raises(Conflict):
            await act
    await client.close()
    assert account.changes() == []


async def test_a_drain_does_not_go_on_on_another_machine_of_that_name(desk: Desk, account: Account) -> None:
    pod(account.server, "first")
    async with acting(desk, account):
        await desk.tell(*proposed(action=Action.DRAIN))
        await eventually(lambda: leaving(account.server) == {"first"})
        account.server.delete("/api/v1/nodes/n1")
        account.server.node("n1", capacity={"nvidia.com/gpu": "8"})
        pod(account.server, "of-the-new-one")
        await desk.idle()
    assert leaving(account.server) == {"first"}
    assert "unschedulable" not in account.node()["spec"]
    assert (await records(desk))[-1] == ("drain", "failed", ("stopped", "the cluster has no such node"))
