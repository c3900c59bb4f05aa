"""An incident becomes an assessment: the rules' verdict, joined with an investigation's opinion where there is one, a revision
number, and no revision where a reader would see no change.

Pure. While an incident is open its assessment says what the rules say; once it is resolved, a closing revision says so and keeps
the verdict as the record of what it was. Whatever a signal holds, there is an assessment: if the rule engine fails on an incident,
the assessment is marked degraded, and says to investigate. An investigation that was asked about another state of the incident
than the present one is ignored: `basis_of` tells.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from aggregator import rules
from aggregator.assessor.join import join
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
    StopReason,
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

    `context` is what is known beside the signals: the node as its last snapshot shows it, and what earlier incidents of the same
    GPU held (`history`). The incident's planned state is added to it here.
    """
    verdict, degraded_reason = judged(incident, context, judge)
    made = Assessment(
        id="",
        incident_id=incident.id,
        node=incident.subject.node,
        revision=previous.revision + 1 if previous else 1,
        created_us=now_us,
        verdict=verdict,
        degraded_reason=degraded_reason,
    )
    if investigation is not None and investigation.basis == basis_of(incident, verdict):
        made = _with_investigation(made, incident, investigation)
    if incident.state is IncidentState.RESOLVED:
        summary = f"{_closing(incident)} {made.verdict.summary}".strip()
        made = replace(made, verdict=replace(made.verdict, summary=summary))
    if previous is not None and _reads_like(made, previous, incident):
        return None
    return replace(made, id=f"{incident.id}/{made.revision}")


def judged(incident: Incident, context: rules.Context = EMPTY, judge: Judge = rules.judge) -> tuple[Verdict, str]:
    """What the rules alone say of an incident, and why it is less than that; no reason where it is not."""
    verdict, degraded_reason = _judged(incident, replace(context, planned_state=incident.held_because), judge)
    if incident.subject.kind == "fleet" and incident.signals:
        verdict = _of_fleet(incident, verdict)
    return verdict, degraded_reason


def basis_of(incident: Incident, verdict: Verdict) -> str:
    """A digest of what an investigation is asked about: which codes where, and which rules fired. Once it differs, an opinion is of
    the past. The same for the rules' own verdict and for one that was joined with an opinion."""
    codes = {f"{signal.name} {signal.node} {signal.pci or signal.gpu_uuid or ''}" for signal in incident.signals}
    text = "\n".join((incident.id, *sorted(codes), *verdict.rule_ids))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


def _with_investigation(made: Assessment, incident: Incident, investigation: Investigation) -> Assessment:
    """The assessment with what an investigation found; where it found nothing, with why."""
    made = replace(
        made,
        degraded_reason=made.degraded_reason or investigation.reason,
        unchecked=investigation.unchecked,
        investigation_id=investigation.id,
        model=investigation.model,
        cost_usd=investigation.spent.cost_usd,
    )
    if investigation.opinion is None or investigation.stop is StopReason.DEGRADED:
        return replace(made, dropped_claims=investigation.dropped)
    joined = join(incident, made.verdict, investigation, investigation.opinion)
    return replace(
        made,
        verdict=joined.verdict,
        origin="llm",
        claims=joined.claims,
        dropped_claims=joined.dropped,
        counter_evidence=joined.counter_evidence,
        disputed=joined.disputed,
        partial=investigation.stop is StopReason.PARTIAL,
    )


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


def _reads_like(made: Assessment, before: Assessment, incident: Incident) -> bool:
    """Whether a reader would notice no difference. Counts that grow are none, nor is another citation of the same kind of fact:
    else a storm would publish with every line."""
    return (
        _shape(made.verdict) == _shape(before.verdict)
        and _investigated(made) == _investigated(before)
        and _cited(made.verdict, incident) <= _cited(before.verdict, incident)
    )


def _investigated(made: Assessment) -> tuple[object, ...]:
    """What a reader sees of an investigation."""
    return (
        made.origin,
        made.partial,
        made.degraded_reason,
        tuple((claim.role, claim.text) for claim in made.claims),
        tuple((claim.role, claim.text, claim.dropped_because) for claim in made.dropped_claims),
        made.counter_evidence,
        made.disputed,
        made.unchecked,
    )


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
