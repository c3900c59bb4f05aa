"""The walls around actions: each stands alone, and no state of the world finds a way between them."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from typing import Any

import pytest

from aggregator.model import Action
from aggregator.remediation.policy import Case, Limits, decide

LIMITS = Limits(allowlist=("gpu-*",))
GOOD = Case(
    action=Action.DRAIN,
    node="gpu-1",
    open=True,
    subject_kind="gpu",
    fleet_id="",
    quiet=False,
    held_because="",
    simulated=False,
    origin="llm",
    degraded_reason="",
    partial=False,
    disputed=0,
    confidence=0.9,
    hardware_support=True,
    unconfirmed_because="",
    node_uid="uid-1",
    opted_out=False,
    handled_by="",
    resumed=False,
    nodes_total=100,
    nodes_unavailable=0,
    actions_last_hour=0,
    draining="",
    newly_critical_nodes=1,
    stopped_because="",
    store_persistent=True,
    store_refusal="",
    wall_absent_because="",
    leads=True,
)

BAD: dict[str, list[Any]] = {
    "action": [Action.REBOOT, Action.NONE],
    "node": ["cpu-1", "GPU-1", ""],
    "open": [False],
    "subject_kind": ["fleet"],
    "fleet_id": ["inc-9"],
    "quiet": [True],
    "held_because": ["driver upgrade"],
    "simulated": [True],
    "origin": ["rules", ""],
    "degraded_reason": ["rate_limited"],
    "partial": [True],
    "disputed": [1],
    "confidence": [0.79, 0.0, float("nan"), -1.0],
    "hardware_support": [False],
    "unconfirmed_because": ["the node's agent does not answer"],
    "node_uid": [""],
    "opted_out": [True],
    "handled_by": ["NVSentinel"],
    "nodes_total": [0, -1],
    "nodes_unavailable": [10, 99],
    "actions_last_hour": [3, 100],
    "draining": ["gpu-2"],
    "newly_critical_nodes": [5, 100],
    "stopped_because": ["the kill switch is set"],
    "store_persistent": [False],
    "store_refusal": ["database or disk is full"],
    "wall_absent_because": ["the last wall is not proved"],
    "leads": [False],
}
TEMPORARY = {
    "held_because", "unconfirmed_because", "handled_by", "nodes_total", "nodes_unavailable", "actions_last_hour", "draining",
    "newly_critical_nodes", "stopped_because", "store_refusal", "wall_absent_because", "leads",
}  # fmt: skip


def test_a_case_without_a_fault_is_allowed() -> None:
    assert decide(GOOD, LIMITS).allowed


def test_every_input_is_a_wall() -> None:
    """`resumed` alone opens one: what was begun does not count against its own budget."""
    assert {field.name for field in fields(Case)} - {*BAD} == {"resumed"}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_each_wall_holds_alone_and_says_why(name: str, value: object) -> None:
    decision = decide(replace(GOOD, **{name: value}), LIMITS)  # type: ignore[arg-type]
    assert not decision.allowed
    assert len(decision.reasons) == 1
    assert decision.temporary == (name in TEMPORARY)


@pytest.mark.parametrize("allowlist", [(), ("gpu-2",), ("*gpu-1x",)])
def test_a_node_that_is_not_named_is_left_alone(allowlist: tuple[str, ...]) -> None:
    assert not decide(GOOD, replace(LIMITS, allowlist=allowlist)).allowed


@pytest.mark.parametrize(
    ("total", "unavailable", "percent", "allowed"),
    [(3, 0, 10, True), (3, 1, 10, False), (100, 9, 10, True), (100, 10, 10, False), (10, 0, 1, True), (1, 0, 10, True)],
)
def test_one_node_may_always_go_and_no_more_than_the_share(
    total: int, unavailable: int, percent: int, allowed: bool
) -> None:
    case = replace(GOOD, nodes_total=total, nodes_unavailable=unavailable)
    assert decide(case, replace(LIMITS, max_unavailable_percent=percent)).allowed == allowed


def test_what_was_begun_goes_on_when_the_hour_is_used_up() -> None:
    assert decide(replace(GOOD, resumed=True, actions_last_hour=3), LIMITS).allowed


def test_every_reason_is_said_and_one_that_lasts_makes_the_decision_last() -> None:
    decision = decide(replace(GOOD, origin="rules", leads=False, opted_out=True), LIMITS)
    assert len(decision.reasons) == 3
    assert not decision.temporary


def within_the_walls(case: Case, limits: Limits) -> bool:
    """The rules again, in other words: DESIGN rule 11 and the issue."""
    verdict = (
        case.action in {Action.CORDON, Action.TAINT, Action.DRAIN}
        and case.origin == "llm"
        and not (case.degraded_reason or case.partial or case.disputed)
        and case.confidence >= limits.min_confidence
        and case.hardware_support
    )
    incident = case.open and not (
        case.subject_kind == "fleet" or case.fleet_id or case.quiet or case.simulated or case.held_because
    )
    node = (
        case.node in {"gpu-1", "gpu-2"}
        and "gpu-*" in limits.allowlist
        and case.node_uid
        and not (case.opted_out or case.handled_by or case.unconfirmed_because)
    )
    budgets = (
        (case.resumed or case.actions_last_hour < limits.max_actions_per_hour)
        and case.nodes_total > 0
        and (
            case.nodes_unavailable == 0
            or case.nodes_unavailable + 1 <= limits.max_unavailable_percent / 100 * case.nodes_total
        )
        and not case.draining
        and case.newly_critical_nodes < limits.fleet_nodes
    )
    ourselves = (
        case.store_persistent
        and case.leads
        and not (case.store_refusal or case.wall_absent_because or case.stopped_because)
    )
    return bool(verdict and incident and node and budgets and ourselves)


def test_ten_thousand_random_states_never_yield_an_action_outside_the_walls() -> None:
    """And those within them do yield one: else the test would prove nothing."""
    chance = random.Random(20261124)
    choices = {name: [getattr(GOOD, name)] * 3 + values for name, values in BAD.items()}
    choices["node"] += ["gpu-2", "gpu-", "gpu-1\n"]
    choices["nodes_total"] += [1, 2, 3, 10, 50]
    choices["nodes_unavailable"] += [0, 1, 2, 5]
    choices["actions_last_hour"] += [1, 2]
    choices["confidence"] += [0.8, 1.0, float("inf")]
    choices["resumed"] = [False, True]
    acted = 0
    for _ in range(10_000):
        changed = chance.sample(sorted(choices), chance.randint(0, 6))
        case = replace(GOOD, **{name: chance.choice(choices[name]) for name in changed})
        limits = Limits(
            allowlist=chance.choice([("gpu-*",)] * 9 + [()]),
            max_actions_per_hour=chance.choice([0, 1, 3, 3, 3]),
            max_unavailable_percent=chance.choice([1, 10, 10, 100]),
            min_confidence=chance.choice([0.5, 0.8, 0.8, 1.0]),
        )
        allowed = decide(case, limits).allowed
        if case.node not in {"gpu-", "gpu-1\n"}:
            assert allowed == within_the_walls(case, limits), (case, limits)
        elif allowed:
            assert case.node.startswith("gpu-")
        acted += allowed
    assert 500 < acted < 9_500
