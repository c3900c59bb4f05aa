"""Cordon, taint and their undoing on a real API server: what is ours is done once and known again, what is others' stays."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest

from aggregator.model import Action, Incident
from aggregator.remediation.confirm import Answer
from aggregator.remediation.executor import Executor
from aggregator.remediation.pods import Rules
from aggregator.remediation.remediator import Options
from aggregator.store import audit
from tests.cluster.api_server import ApiServer, Object
from tests.outputs.conftest import Desk, OpenDesk, judged, resolved
from tests.remediation.conftest import FAST, LIMITS, OPTIONS, Account, acting, outcomes, proposed, records
from tests.server.aggregator import eventually

UNDO = Options(LIMITS, uncordon_on_recovery=True, pace=FAST)
THEIRS: Object = {"key": "example.com/theirs", "value": "v", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}


async def test_a_cordon_is_done_once_marked_and_written_down(desk: Desk, account: Account) -> None:
    async with acting(desk, account):
        await desk.tell(*proposed())
        await desk.idle()
        await desk.tell(*proposed(revision=2))
        await desk.idle()
    node = account.node()
    assert node["spec"]["unschedulable"] is True
    assert node["metadata"]["annotations"]["gcm-sentinel/cordoned"] == "inc-1"
    assert await outcomes(desk) == ["cordon allowed", "cordon done"]
    assert account.changes() == [("patch", "nodes/n1")]
    assert desk.metric("sentinel_remediation_total", action="cordon", outcome="done") == 1


async def test_a_decision_is_kept_with_all_it_saw(desk: Desk, account: Account) -> None:
    async with acting(desk, account):
        await desk.tell(*proposed())
        await desk.idle()
    allowed = (await desk.store.read(audit.list_records))[-1].record
    assert (allowed.assessment_id, allowed.actor) == ("inc-1/1", "sentinel")
    assert allowed.inputs["confidence"] == 0.9
    assert allowed.inputs["nodes_total"] == 4
    assert allowed.inputs["limits"]["allowlist"] == ["n*"]  # type: ignore[index]


async def test_a_taint_leaves_others_as_they_were(desk: Desk, account: Account) -> None:
    """The time at which they were added included; doing it again changes nothing."""
    before = account.node()["spec"]["taints"]
    account.server.patch("/api/v1/nodes/n1", {"spec": {"taints": [*before, THEIRS]}})
    async with acting(desk, account):
        await desk.tell(*proposed(action=Action.TAINT))
        await desk.idle()
    mine = {"key": "gcm-sentinel/fault", "value": "pcie", "effect": "NoSchedule"}
    assert account.node()["spec"]["taints"] == [*before, THEIRS, mine]
    client = account.client()
    said = await Executor(client, rules=Rules()).taint(account.node(), "pcie")
    await client.close()
    assert said == "it carried our taint already"
    assert account.changes() == [("patch", "nodes/n1")]


@pytest.mark.parametrize("action", [Action.CORDON, Action.TAINT])
async def test_on_a_proved_recovery_ours_is_undone(desk: Desk, account: Account, action: Action) -> None:
    before = account.node()["spec"]
    incident, assessment = proposed(action=action)
    async with acting(desk, account, UNDO):
        await desk.tell(incident, assessment)
        await desk.idle()
        assert account.node()["spec"] != before
        await desk.tell(resolved(incident), judged(incident, 2))
        await desk.idle()
    assert account.node()["spec"] == before
    assert "gcm-sentinel/cordoned" not in (account.node()["metadata"].get("annotations") or {})
    assert (await outcomes(desk))[-1] == "release done"


@pytest.mark.parametrize(
    ("options", "because", "why"),
    [
        (OPTIONS, "recovered", "undoing is not configured"),
        (UNDO, "quiet", "no recovery is proved: quiet"),
        (UNDO, "rebooted", "no recovery is proved: rebooted"),
    ],
)
async def test_else_it_stays(desk: Desk, account: Account, options: Options, because: str, why: str) -> None:
    incident, assessment = proposed()
    over: Incident = replace(resolved(incident), resolved_because=because)
    async with acting(desk, account, options):
        await desk.tell(incident, assessment)
        await desk.idle()
        await desk.tell(over, judged(incident, 2))
        await desk.idle()
    assert account.node()["spec"]["unschedulable"] is True
    assert (await records(desk))[-1] == ("release", "denied", (why,))


async def test_a_node_with_another_open_incident_is_not_released(desk: Desk, account: Account) -> None:
    incident, assessment = proposed()
    other = replace(incident, id="inc-2")
    async with acting(desk, account, UNDO):
        await desk.tell(incident, assessment)
        await desk.idle()
        await desk.tell(other, judged(other))
        await desk.tell(resolved(incident), judged(incident, 2))
        await desk.idle()
        assert account.node()["spec"]["unschedulable"] is True
    assert (await records(desk))[-1][2] == ("the node has another open incident",)


async def test_a_cordon_that_somebody_made_his_own_is_his(desk: Desk, account: Account) -> None:
    """An operator uncordons the node and cordons it again: it is not ours to undo, whatever our mark says."""
    incident, assessment = proposed()
    async with acting(desk, account, UNDO):
        await desk.tell(incident, assessment)
        await desk.idle()
        for value in (None, True):
            account.server.patch("/api/v1/nodes/n1", {"spec": {"unschedulable": value}})
        await desk.tell(resolved(incident), judged(incident, 2))
        await desk.idle()
    assert account.node()["spec"]["unschedulable"] is True
    assert (await records(desk))[-1][2] == (
        "nothing there is ours: no taint gcm-sentinel/fault, no cordon marked gcm-sentinel/cordoned",
    )


def left_alone(server: ApiServer, how: str) -> None:
    node = "/api/v1/nodes/n1"
    if how == "opt-out":
        server.patch(node, {"metadata": {"labels": {"gcm-sentinel/opt-out": "true"}}})
    elif how == "cordoned":
        server.patch(node, {"spec": {"unschedulable": True}})
    elif how == "nvsentinel":
        server.patch(node, {"metadata": {"labels": {"dgxc.nvidia.com/nvsentinel-state": "quarantined"}}})
    elif how == "switch":
        server.request("POST", "/api/v1/namespaces/default/configmaps", {"metadata": {"name": "gcm-sentinel-stop"}})
    elif how == "unavailable":
        server.patch("/api/v1/nodes/n2", {"spec": {"unschedulable": True}})
        server.condition("n3", "Ready", "Unknown")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("opt-out", "the node is labelled to be left alone"),
        ("cordoned", "the node is handled by whoever cordoned it"),
        ("nvsentinel", "the node is handled by NVSentinel"),
        ("switch", "the kill switch is set: ConfigMap default/gcm-sentinel-stop"),
        ("unavailable", "3 of 4 nodes would be unavailable, 2 are allowed"),
    ],
)
async def test_what_the_cluster_says_against_it_is_heard(desk: Desk, account: Account, how: str, why: str) -> None:
    left_alone(account.server, how)
    try:
        async with acting(desk, account):
            await desk.tell(*proposed())
            await eventually(lambda: desk.metric("sentinel_remediation_total", action="cordon", outcome="denied"))
    finally:
        if how == "switch":
            account.server.delete("/api/v1/namespaces/default/configmaps/gcm-sentinel-stop")
    ((_, _, reasons),) = await records(desk)
    assert len(reasons) == 1
    assert reasons[0].startswith(why)
    assert account.changes() == []


async def test_the_switch_works_without_a_restart_both_ways(desk: Desk, account: Account) -> None:
    left_alone(account.server, "switch")
    async with acting(desk, account):
        await desk.tell(*proposed())
        await eventually(lambda: desk.metric("sentinel_remediation_total", action="cordon", outcome="denied"))
        account.server.delete("/api/v1/namespaces/default/configmaps/gcm-sentinel-stop")
        await desk.idle()
    assert await outcomes(desk) == ["cordon denied", "cordon allowed", "cordon done"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"origin": "rules"}, "no investigation stands behind it"),
        ({"degraded_reason": "rate_limited: 429"}, "the assessment is degraded: rate_limited: 429"),
        ({"partial": True}, "the investigation was not accepted as a whole"),
        ({"disputed": ("Action: the rules say drain, the model none.",)}, "rules and model do not agree"),
        ({"confidence": 0.5}, "confidence 0.50 is under 0.80"),
        ({"citations": ()}, "no fact of the agent or the kernel supports it"),
    ],
)
async def test_what_the_verdict_lacks_keeps_the_node_as_it_is(
    desk: Desk, account: Account, change: dict[str, object], why: str
) -> None:
    incident, assessment = proposed(action=Action.DRAIN)
    verdict = replace(assessment.verdict, **{k: v for k, v in change.items() if hasattr(assessment.verdict, k)})  # type: ignore[arg-type]
    own = {k: v for k, v in change.items() if not hasattr(assessment.verdict, k)}
    async with acting(desk, account):
        await desk.tell(incident, replace(assessment, verdict=verdict, **own))  # type: ignore[arg-type]
        await eventually(lambda: desk.metric("sentinel_remediation_total", action="drain", outcome="denied"))
    assert why in (await records(desk))[0][2]
    assert account.changes() == []


async def test_reboot_stays_advice(desk: Desk, account: Account) -> None:
    async with acting(desk, account):
        await desk.tell(*proposed(action=Action.REBOOT))
        await desk.idle()
    assert await records(desk) == []
    assert account.changes() == []


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(answered=False), "the node's agent does not answer"),
        (Answer(answered=True, working_gpus=frozenset({"0000:3a:00.0"})), "the GPU that was lost answers again"),
    ],
)
async def test_a_fault_is_confirmed_before_anything_is_done(
    desk: Desk, account: Account, answer: Answer, why: str
) -> None:
    async def ask(_: str) -> Answer:
        return answer

    async with acting(desk, account, ask=ask):
        await desk.tell(*proposed())
        await eventually(lambda: desk.metric("sentinel_remediation_total", action="cordon", outcome="denied"))
    assert (await records(desk))[0][2] == (why,)
    assert account.changes() == []


async def test_an_old_fact_proves_nothing_of_now(desk: Desk, account: Account) -> None:
    incident, assessment = proposed()
    old = replace(incident, signals=(replace(incident.signals[0], at_us=1_700_000_000_000_000),))
    async with acting(desk, account):
        await desk.tell(old, assessment)
        await eventually(lambda: desk.metric("sentinel_remediation_total", action="cordon", outcome="denied"))
    assert "no cited fact is younger than 900 seconds" in (await records(desk))[0][2][0]


async def test_a_condition_that_still_stands_confirms_what_hardware_said(desk: Desk, account: Account) -> None:
    """The agent fell silent with its node; the condition is read again and is still True."""
    incident, assessment = proposed()
    witness = replace(incident.signals[0], id="n1/condition/1", attributes={"condition": "GcmXidErrorsProblem"})
    old = replace(incident, signals=(replace(incident.signals[0], at_us=1), witness))
    cited = replace(assessment, verdict=replace(assessment.verdict, citations=tuple(one.id for one in old.signals)))
    account.server.condition("n1", "GcmXidErrorsProblem", "True")
    async with acting(desk, account):
        await desk.tell(old, cited)
        await desk.idle()
    assert await outcomes(desk) == ["cordon allowed", "cordon done"]


async def test_the_hour_s_budget_counts_attempts_and_outlives_the_process(
    open_desk: OpenDesk, account: Account
) -> None:
    options = replace(OPTIONS, limits=replace(LIMITS, max_actions_per_hour=2, max_unavailable_percent=100))
    async with open_desk() as desk, acting(desk, account, options):
        for number in (1, 2):
            await desk.tell(*proposed(number))
            await desk.idle()
    async with open_desk() as desk, acting(desk, account, options):
        await desk.tell(*proposed(3))
        await eventually(lambda: desk.metric("sentinel_remediation_total", action="cordon", outcome="denied"))
        assert (await records(desk, "inc-3"))[0][2] == ("2 actions were begun within an hour, 2 are allowed",)
    assert account.changes() == [("patch", "nodes/n1"), ("patch", "nodes/n2")]


async def test_many_nodes_at_once_are_a_person_s_business(desk: Desk, account: Account) -> None:
    now = [proposed(number) for number in range(1, 5)]
    options = replace(OPTIONS, limits=replace(LIMITS, fleet_nodes=4, max_unavailable_percent=100))
    for incident, assessment in now:
        await desk.tell(replace(incident, opened_us=time.time_ns() // 1000), assessment)
    async with acting(desk, account, options):
        for incident, assessment in now:
            await desk.tell(replace(incident, opened_us=time.time_ns() // 1000), assessment)
        await eventually(lambda: desk.metric("sentinel_remediation_total", action="cordon", outcome="denied") == 4)
    assert "4 nodes became critical at about the same time" in (await records(desk))[0][2][0]
    assert account.changes() == []


async def test_a_dry_run_decides_and_does_nothing(desk: Desk, account: Account) -> None:
    async with acting(desk, account, replace(OPTIONS, dry_run=True)):
        await desk.tell(*proposed(action=Action.DRAIN))
        await desk.idle()
    assert await outcomes(desk) == ["drain dry_run"]
    assert account.changes() == []


async def test_another_actor_that_patches_the_node_in_a_loop_only_delays(desk: Desk, account: Account) -> None:
    """Each attempt on an outdated node fails and is decided anew."""
    over = threading.Event()

    def patch_on() -> None:
        count = 0
        while not over.is_set():
            count += 1
            account.server.patch("/api/v1/nodes/n1", {"metadata": {"annotations": {"example.com/count": str(count)}}})

    loop = asyncio.create_task(asyncio.to_thread(patch_on))
    try:
        async with acting(desk, account):
            await desk.tell(*proposed())
            await desk.idle(seconds=30)
    finally:
        over.set()
        await loop
    assert (await outcomes(desk))[-1] == "cordon done"
    assert account.changes() == [("patch", "nodes/n1")]


async def test_a_node_made_anew_is_another_node(desk: Desk, account: Account) -> None:
    """It was cordoned, replaced by a machine of the same name, and the incident goes on: the new one stays as it is."""
    incident, assessment = proposed()
    async with acting(desk, account, UNDO):
        await desk.tell(incident, assessment)
        await desk.idle()
        account.server.delete("/api/v1/nodes/n1")
        account.server.node("n1", capacity={"nvidia.com/gpu": "8"})
        await desk.tell(incident, judged(incident, 2, origin="llm", action=Action.CORDON))
        await desk.tell(resolved(incident), judged(incident, 3))
        await desk.idle()
    assert "unschedulable" not in account.node()["spec"]
    assert account.changes() == [("patch", "nodes/n1")]


async def test_who_does_not_lead_does_nothing(desk: Desk, account: Account) -> None:
    async with acting(desk, account, leads=lambda: False):
        await desk.tell(*proposed())
        await eventually(lambda: desk.metric("sentinel_remediation_total", action="cordon", outcome="denied"))
    assert (await records(desk))[0][2] == ("another process leads",)
    assert account.changes() == []


async def test_simulated_group_and_planned_faults_are_left_alone(desk: Desk, account: Account) -> None:
    incident, assessment = proposed()
    simulated = replace(incident, signals=(replace(incident.signals[0], simulated=True),))
    member = replace(proposed(2)[0], fleet_id="inc-9")
    planned = replace(proposed(3)[0], held_until_us=time.time_ns() // 1000 + 60_000_000, held_because="GPU reset")
    async with acting(desk, account):
        await desk.tell(simulated, assessment)
        await desk.tell(member, proposed(2)[1])
        await desk.tell(planned, proposed(3)[1])
        await eventually(lambda: desk.metric("sentinel_remediation_total", action="cordon", outcome="denied") == 3)
    assert "its facts come from a simulated driver" in (await records(desk))[0][2]
    assert "it is part of a group's verdict" in (await records(desk, "inc-2"))[0][2]
    assert "a planned state: GPU reset" in (await records(desk, "inc-3"))[0][2]
    assert account.changes() == []
