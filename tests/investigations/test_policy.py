"""Which incidents are looked into, in which order, and who may use how much."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aggregator.investigator.policy import HourlyBudget, over_budget, priority
from aggregator.model import FaultClass, IncidentState, Severity, Subject
from aggregator.store.investigations import HourlyUse
from tests.outputs.test_outputs import OPEN, assessment

BUDGET = HourlyBudget(tokens=1000, cost_usd=10.0)
NOTHING = HourlyUse(0, 0.0)


def judged(severity: Severity, fault_class: FaultClass = FaultClass.PCIE, confidence: float = 0.9, questions=()):  # type: ignore[no-untyped-def]
    made = assessment(severity=severity)
    return replace(
        made,
        verdict=replace(made.verdict, fault_class=fault_class, confidence=confidence, open_questions=questions),
    )


@pytest.mark.parametrize(
    ("severity", "fault_class", "confidence", "questions", "looked_into"),
    [
        (Severity.CRITICAL, FaultClass.PCIE, 0.9, (), True),
        (Severity.WARNING, FaultClass.HARDWARE, 0.9, (), True),
        (Severity.WARNING, FaultClass.APPLICATION, 0.9, (), False),
        (Severity.WARNING, FaultClass.APPLICATION, 0.5, (), True),
        (Severity.WARNING, FaultClass.APPLICATION, 0.9, ("Does it crash elsewhere?",), True),
        (Severity.INFO, FaultClass.HARDWARE, 0.9, (), False),
        (Severity.OK, FaultClass.NONE, 0.9, (), False),
    ],
)
def test_auto_takes_warnings_and_worse_but_for_applications_of_which_rules_are_sure(
    severity: Severity, fault_class: FaultClass, confidence: float, questions: tuple[str, ...], looked_into: bool
) -> None:
    assert (priority(OPEN, judged(severity, fault_class, confidence, questions), "auto") is not None) == looked_into


def test_all_takes_records_too_and_manual_takes_nothing_by_itself() -> None:
    assert priority(OPEN, judged(Severity.INFO), "all") is not None
    assert priority(OPEN, judged(Severity.CRITICAL), "manual") is None


@pytest.mark.parametrize(
    "changed",
    [
        {"quiet": True},
        {"state": IncidentState.RESOLVED},
        {"fleet_id": "fleet-1"},
        {"held_until_us": 5},
    ],
)
def test_what_is_past_held_or_spoken_for_is_left_alone(changed: dict[str, object]) -> None:
    assert priority(replace(OPEN, **changed), judged(Severity.CRITICAL), "all") is None  # type: ignore[arg-type]


def test_an_answered_question_is_not_asked_again() -> None:
    assert priority(OPEN, replace(judged(Severity.CRITICAL), origin="llm"), "all") is None


def test_critical_goes_first_and_open_questions_and_groups_before_others_of_their_severity() -> None:
    fleet = replace(OPEN, subject=Subject("fleet", "n1"))
    order = [
        priority(OPEN, judged(Severity.CRITICAL, questions=("Is it the rack?",)), "auto"),
        priority(OPEN, judged(Severity.CRITICAL), "auto"),
        priority(fleet, judged(Severity.WARNING), "auto"),
        priority(OPEN, judged(Severity.WARNING), "auto"),
    ]
    assert order == sorted(order, key=lambda number: number or 0)
    assert len(set(order)) == len(order)


@pytest.mark.parametrize(
    ("urgency", "everybody", "node", "tenant", "may_start"),
    [
        (20, NOTHING, NOTHING, None, True),
        (20, HourlyUse(749, 0.0), NOTHING, None, True),
        (20, HourlyUse(750, 0.0), NOTHING, None, False),  # the rest is kept for critical ones
        (10, HourlyUse(999, 0.0), HourlyUse(999, 0.0), HourlyUse(999, 0.0), True),
        (10, HourlyUse(1000, 0.0), NOTHING, None, False),
        (10, HourlyUse(0, 10.0), NOTHING, None, False),
        (20, HourlyUse(250, 0.0), HourlyUse(250, 0.0), None, False),  # one node's share
        (20, HourlyUse(500, 0.0), NOTHING, HourlyUse(500, 0.0), False),  # one tenant's share
    ],
)
def test_nobody_uses_up_what_a_real_fault_needs(
    urgency: int, everybody: HourlyUse, node: HourlyUse, tenant: HourlyUse | None, may_start: bool
) -> None:
    assert (over_budget(urgency, BUDGET, everybody, node, tenant) == "") == may_start


def test_zero_is_without_a_bound() -> None:
    free = HourlyBudget(tokens=0, cost_usd=0.0)
    assert not over_budget(20, free, HourlyUse(10**9, 10**6), NOTHING, None)
