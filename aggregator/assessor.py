"""An incident becomes an assessment: the rules' verdict, a revision number, and no revision where a reader would see no change.

Pure. While an incident is open its assessment says what the rules say; once it is resolved, a closing revision says so and keeps
the verdict as the record of what it was. Whatever a signal holds, there is an assessment: if the rule engine fails on an incident,
the assessment is marked degraded, and says to investigate.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from aggregator import rules
from aggregator.model import (
    Action,
    Assessment,
    FaultClass,
    Incident,
    IncidentState,
    Investigation,
    Resolution,
    Severity,
    Signal,
    Verdict,
)
from aggregator.rules.context import EMPTY

Judge = Callable[[Sequence[Signal], rules.Context], Verdict]

FLEET_CONFIDENCE = 0.6  # one fault on many nodes proves a common cause, not which
MAX_EARLIER = 8  # names that a sentence lists

_NUMBER = re.compile(r"\d+")


def assess(
    incident: Incident,
    previous: Assessment | None,
    now_us: int,
    *,
    context: rules.Context = EMPTY,
    judge: Judge = rules.judge,
    investigation: Investigation | None = None,
) -> Assessment | None:
    """The next revision; None when a reader of `previous` would notice no difference.

    `context` is what is known beside the signals; the incident's planned state is added to it here. On the live path it holds
    the catalog alone: GPU model and driver version, the number of the node's GPUs (both in its snapshot) and the codes of this
    GPU's earlier incidents are known to the store, and whoever reads those beside an incident hands them in here.
    """
    context = replace(context, planned_state=incident.held_because)
    verdict, degraded_reason = _judged(incident, context, judge)
    if incident.subject.kind == "fleet" and incident.signals:
        verdict = _of_fleet(incident, verdict)
    if incident.state is IncidentState.RESOLVED:
        verdict = replace(verdict, summary=f"{_closing(incident)} {verdict.summary}".strip())
    if previous is not None and _reads_like(verdict, previous.verdict, incident):
        return None
    revision = previous.revision + 1 if previous else 1
    return Assessment(
        id=f"{incident.id}/{revision}",
        incident_id=incident.id,
        node=incident.subject.node,
        revision=revision,
        created_us=now_us,
        verdict=verdict,
        degraded_reason=degraded_reason,
    )


def basis_of(incident: Incident, verdict: Verdict) -> str:
    """A digest of what an investigation is asked about: once it changes, what was found answers another question."""
    codes = sorted({signal.name for signal in incident.signals})
    question = [*codes, verdict.severity, verdict.fault_class, verdict.action, *verdict.rule_ids]
    return hashlib.sha256("\n".join(question).encode()).hexdigest()[:16]


def _judged(incident: Incident, context: rules.Context, judge: Judge) -> tuple[Verdict, str]:
    """The rules' verdict, and why it is less than that."""
    try:
        return judge(incident.signals, context), ""
    except Exception as error:  # noqa: BLE001 - the floor under every verdict must hold: one odd incident silences no other
        return _without_rules(incident, context), f"rules_failed: {type(error).__name__}"


def _without_rules(incident: Incident, context: rules.Context) -> Verdict:
    """What can be said when the rule engine failed: that something happened, and that a person must look."""
    names = list(dict.fromkeys(signal.name for signal in incident.signals))
    return Verdict(
        severity=Severity.WARNING,
        fault_class=FaultClass.UNKNOWN,
        action=Action.NONE,
        resolutions=(Resolution.INVESTIGATE,),
        root_cause=f"Not judged: {', '.join(names[:MAX_EARLIER]) or 'no signals'}.",
        summary="The rule engine failed on these signals, so they are shown as they are. Please report this.",
        confidence=0.0,
        citations=tuple(signal.id for signal in incident.signals[:1]),
        rule_ids=(),
        rules_version=rules.rules_version(context.catalog),
    )


def _of_fleet(incident: Incident, verdict: Verdict) -> Verdict:
    """Across nodes: look for what they share before looking at each. Nothing is ever done to a node on a group's verdict."""
    first = incident.signals[0]
    count = sum(signal.count for signal in incident.signals)
    lead = first.attributes.get("first_by_seconds")
    order = "Which node was first cannot be told: the clocks are not that exact."
    if isinstance(lead, float):
        order = f"{first.node} was first, by {lead:.0f} s."
    return replace(
        verdict,
        action=Action.NONE,
        resolutions=tuple(dict.fromkeys((Resolution.INVESTIGATE, *verdict.resolutions))),
        root_cause=f"{first.name} on {count} nodes at about the same time: one common cause is likelier than {count} faults.",
        summary=f"{count} nodes reported {first.name} together. {order} Each node has its own incident and verdict.",
        confidence=min(verdict.confidence, FLEET_CONFIDENCE),
        open_questions=(
            "Did these nodes get a new driver, firmware or kernel just before?",
            "Do they share a job, a rack, a power feed, a cooling loop or a switch?",
            *verdict.open_questions,
        ),
    )


def _closing(incident: Incident) -> str:
    because = incident.resolved_because
    if because.startswith("merged into "):
        return f"Closed: it is part of {because.removeprefix('merged into ')}."
    reasons = {
        "recovered": "Resolved: what began has ended.",
        "rebooted": "Resolved: the node was rebooted and the fault has not come back.",
        "quiet": "Resolved: nothing more was heard of it.",
    }
    return reasons.get(because, f"Resolved: {because}.")


def _reads_like(verdict: Verdict, before: Verdict, incident: Incident) -> bool:
    """Whether a reader would notice no difference. Counts that grow are none, nor is another citation of the same kind of fact:
    else a storm would publish with every line."""
    return _shape(verdict) == _shape(before) and _cited(verdict, incident) <= _cited(before, incident)


def _shape(verdict: Verdict) -> tuple[object, ...]:
    texts = (verdict.root_cause, verdict.summary, verdict.recurrence_advice)
    lists = (verdict.open_questions, verdict.do_not, verdict.next_steps)
    return (
        verdict.severity,
        verdict.fault_class,
        verdict.action,
        verdict.resolutions,
        round(verdict.confidence, 1),
        *(_NUMBER.sub("#", text) for text in texts),
        *(tuple(_NUMBER.sub("#", text) for text in texts) for texts in lists),
        verdict.rule_ids,
    )


def _cited(verdict: Verdict, incident: Incident) -> set[tuple[object, ...]]:
    """What kinds of facts are cited: which report, about what, by which channel."""
    cited = frozenset(verdict.citations)
    return {
        (signal.name, signal.node, signal.pci, signal.gpu_uuid, signal.mig, signal.source)
        for signal in incident.signals
        if signal.id in cited
    }
