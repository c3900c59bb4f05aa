"""Which incidents are worth a model's time, in which order, and how much of the hour's budget each may take.

Pure. A storm is one investigation over its group; a tenant that loops over one fault cannot use up what a real one needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aggregator.model import Assessment, FaultClass, Incident, IncidentState, Severity
from aggregator.store.investigations import HourlyUse

Mode = Literal["auto", "all", "manual"]

SURE = 0.8  # confidence from which the rules need no help with an application's fault
FIRST = {Severity.CRITICAL: 10, Severity.WARNING: 20, Severity.INFO: 30}
AHEAD = 5  # open questions and groups across nodes go before others of their severity
BY_HAND = 0  # a person waits
CRITICAL_BELOW = FIRST[Severity.CRITICAL] + 1


@dataclass(frozen=True, slots=True)
class HourlyBudget:
    """What all investigations that start within an hour may use. 0 tokens or dollars: without a bound."""

    tokens: int
    cost_usd: float
    reserve: float = 0.25  # part of it that only critical incidents may use
    node_share: float = 0.25  # the most that one node may use of it, unless critical
    namespace_share: float = 0.5  # likewise for one tenant


def priority(incident: Incident, assessment: Assessment, mode: Mode) -> int | None:
    """The lowest goes first; None where it is not looked into. An assessment that holds an investigation's findings was answered
    already: `assessor` drops those once the question has changed."""
    verdict = assessment.verdict
    past = incident.quiet or incident.state is IncidentState.RESOLVED or assessment.origin == "llm"
    elsewhere = bool(incident.fleet_id) or incident.held_until_us is not None
    if mode == "manual" or past or elsewhere or verdict.severity not in FIRST:
        return None
    sure = verdict.confidence >= SURE and not verdict.open_questions
    if mode == "auto" and (
        verdict.severity is Severity.INFO or (verdict.fault_class is FaultClass.APPLICATION and sure)
    ):
        return None
    ahead = bool(verdict.open_questions) or incident.subject.kind == "fleet"
    return FIRST[verdict.severity] - AHEAD * ahead


def over_budget(
    urgency: int, budget: HourlyBudget, everybody: HourlyUse, node: HourlyUse, namespace: HourlyUse | None
) -> str:
    """Why an investigation of this priority must wait, in one line; empty when it may start."""
    critical = urgency < CRITICAL_BELOW
    share = 1.0 if critical else 1.0 - budget.reserve
    if _beyond(everybody, budget, share):
        return (
            "the hour's budget is used up"
            if critical
            else "what is left of the hour's budget is kept for critical ones"
        )
    if critical:
        return ""
    if _beyond(node, budget, budget.node_share):
        return f"this node has used its {budget.node_share:.0%} of the hour's budget"
    if namespace is not None and _beyond(namespace, budget, budget.namespace_share):
        return f"this namespace has used its {budget.namespace_share:.0%} of the hour's budget"
    return ""


def _beyond(use: HourlyUse, budget: HourlyBudget, share: float) -> bool:
    tokens = budget.tokens and use.tokens >= budget.tokens * share
    return bool(tokens or (budget.cost_usd and use.cost_usd >= budget.cost_usd * share))
