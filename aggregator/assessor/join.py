"""The rules' verdict and a model's opinion become one verdict, by DESIGN rule 9. Pure.

The rules are the floor. The higher severity stands, unless the incident recovered or hardware spoke against it since. Class, cause,
action and advice follow the model where its root cause rests on hardware or cluster facts; what tenants wrote changes nothing
alone. Every difference is said in `disputed`; the words are rendered here, from accepted claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from aggregator.assessor.advice import cleaned, without_forbidden
from aggregator.model import (
    SEVERITY_ORDER,
    Action,
    Claim,
    ClaimRole,
    Incident,
    IncidentState,
    Investigation,
    Opinion,
    Phase,
    Resolution,
    Severity,
    StopReason,
    Support,
    Trust,
    Verdict,
)
from aggregator.rules import wording
from aggregator.rules.engine import NODE_ACTIONS

MOST_SURE = 0.95
PARTIAL_SHARE = 0.7  # of a model's confidence, where the answer as a whole was not accepted
DROPPED_SHARE = 0.95  # for each claim that was dropped, down to
LEAST_DROPPED_SHARE = 0.7
UNCHECKED_SHARE = 0.9  # where something could not be looked at
DIFFERENT_SHARE = 0.9  # where the rules see another class of fault
MAX_SUMMARY = 1_500  # characters
IDLE = frozenset((Resolution.NONE, Resolution.MONITOR))
FIRST_STEP = "First step"
ONE_LOWER = {Severity.CRITICAL: Severity.WARNING, Severity.WARNING: Severity.INFO}


@dataclass(frozen=True, slots=True)
class Joined:
    """What is published, as far as an investigation changes it."""

    verdict: Verdict
    claims: tuple[Claim, ...]
    dropped: tuple[Claim, ...]
    counter_evidence: tuple[str, ...]
    disputed: tuple[str, ...]


def join(incident: Incident, rules: Verdict, investigation: Investigation, opinion: Opinion) -> Joined:
    """One verdict of two."""
    worst = max(rules.severity, opinion.severity, key=SEVERITY_ORDER.__getitem__)
    claims, dropped, removed = _cleaned(opinion.claims, investigation.dropped, worst)
    cause = next((claim for claim in claims if claim.role is ClaimRole.ROOT_CAUSE), None)
    follows = cause is not None and _rests_on_facts(cause)
    severity, ground = _severity(incident, rules.severity, opinion.severity, claims, follows=follows)
    advice = _advice(incident, rules, opinion, severity) if follows else _Advice(rules.action, rules.resolutions)
    fault_class = opinion.fault_class if follows else rules.fault_class
    questions, more_removed = _questions(rules, opinion, worst, follows=follows)
    verdict = replace(
        rules,
        severity=severity,
        fault_class=fault_class,
        action=advice.action,
        resolutions=advice.resolutions,
        root_cause=cause.text if cause is not None and follows else rules.root_cause,
        summary=_summary(claims) if follows else rules.summary,
        confidence=_confidence(rules, investigation, opinion, dropped) if follows else rules.confidence,
        citations=tuple(dict.fromkeys((*rules.citations, *_evidence(claims)))),
        open_questions=questions,
        next_steps=tuple(wording.step(resolution) for resolution in advice.resolutions)
        if follows
        else rules.next_steps,
    )
    differences = _Differences(rules, opinion, "" if follows else _why_not(cause))
    removals = tuple(dict.fromkeys((*advice.removed, *removed, *more_removed)))
    disputed = (
        *differences.severity(ground),
        *differences.rest(verdict),
        *(f"Advice of the model was removed: {item}." for item in removals),
    )
    counter = tuple(claim.text for claim in claims if claim.role is ClaimRole.COUNTER_EVIDENCE)
    return Joined(verdict, claims, dropped, counter, disputed)


# --- severity


def _severity(
    incident: Incident, rules: Severity, model: Severity, claims: Iterable[Claim], *, follows: bool
) -> tuple[Severity, str]:
    """The severity to publish, and why it is that one; no reason where both agree."""
    if model is rules:
        return rules, ""
    if not follows:
        return rules, "the rules' stands, the model proved no root cause on facts of hardware or cluster"
    if SEVERITY_ORDER[model] > SEVERITY_ORDER[rules]:
        return model, "the higher stands"
    if incident.state is IncidentState.RESOLVED and incident.resolved_because == "recovered":
        return model, "the lower stands, what began has ended"
    if any(_speaks_against(claim, incident) for claim in claims):
        lowest = ONE_LOWER.get(rules, rules)
        return max(model, lowest, key=SEVERITY_ORDER.__getitem__), "lowered by one step, for what hardware said since"
    return rules, "the higher stands"


def _speaks_against(claim: Claim, incident: Incident) -> bool:
    """Counter-evidence of hardware alone, from after the fault: read from the node now, or the end of a state."""
    ends = {signal.id for signal in incident.signals if signal.phase is Phase.ENDED and signal.trust is Trust.HARDWARE}
    reports = tuple(signal.raw for signal in incident.signals if signal.phase is not Phase.ENDED and signal.raw)

    def later(support: Support) -> bool:
        if support.trust is not Trust.HARDWARE:
            return False
        if support.evidence_id:
            return support.evidence_id in ends
        return support.live and not any(support.quote in report or report in support.quote for report in reports)

    return claim.role is ClaimRole.COUNTER_EVIDENCE and all(later(support) for support in claim.support)


# --- claims


def _cleaned(
    accepted: Iterable[Claim], dropped: Iterable[Claim], severity: Severity
) -> tuple[tuple[Claim, ...], tuple[Claim, ...], tuple[str, ...]]:
    """Accepted claims, dropped ones, and what was removed from their words."""
    pairs = [cleaned(claim, severity) for claim in (*accepted, *dropped)]
    claims = [claim for claim, _ in pairs]
    removed = tuple(name for _, names in pairs for name in names)
    return (
        tuple(claim for claim in claims if not claim.dropped_because),
        tuple(claim for claim in claims if claim.dropped_because),
        removed,
    )


def _rests_on_facts(claim: Claim) -> bool:
    return any(support.trust is not Trust.TENANT for support in claim.support)


def _evidence(claims: Iterable[Claim]) -> Iterator[str]:
    return (support.evidence_id for claim in claims for support in claim.support if support.evidence_id)


def _summary(claims: tuple[Claim, ...]) -> str:
    """The cause first; then what led to it, and what it cost."""
    order = (ClaimRole.ROOT_CAUSE, ClaimRole.FINDING, ClaimRole.IMPACT)
    sentences = [
        claim.text if claim.text.endswith((".", "!", "?", "]")) else f"{claim.text}."
        for role in order
        for claim in claims
        if claim.role is role
    ]
    text = " ".join(sentences)
    return text if len(text) <= MAX_SUMMARY else text[: MAX_SUMMARY - 1].rstrip() + "…"


# --- advice


@dataclass(frozen=True, slots=True)
class _Advice:
    action: Action
    resolutions: tuple[Resolution, ...]
    removed: tuple[str, ...] = ()


def _advice(incident: Incident, rules: Verdict, opinion: Opinion, severity: Severity) -> _Advice:
    """The model's action and steps, without what the rules forbid; a fault is never answered by doing nothing."""
    forbidden = {resolution for resolution in Resolution if wording.prohibition(resolution) in rules.do_not}
    removed = [f"{step.value} (the rules forbid it)" for step in opinion.resolutions if step in forbidden]
    steps = tuple(step for step in opinion.resolutions if step not in forbidden)
    action = opinion.action
    if NODE_ACTIONS.get(action) in forbidden:
        removed.append(f"{action.value} (the rules forbid it)")
        action = rules.action
    if incident.subject.kind == "fleet" and action is not Action.NONE:
        removed.append(f"{action.value} (nothing is done to nodes on a group's verdict)")
        action = Action.NONE
    bad = SEVERITY_ORDER[severity] >= SEVERITY_ORDER[Severity.WARNING]
    if bad and steps and set(steps) <= IDLE and not set(rules.resolutions) <= IDLE:
        removed.append("ignore the fault")
        steps = ()
    return _Advice(action, steps or rules.resolutions, tuple(removed))


def _questions(
    rules: Verdict, opinion: Opinion, severity: Severity, *, follows: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is open: the model's questions; the rules' too, where its answer does not settle them. And what was removed."""
    pairs = [without_forbidden(question, severity) for question in opinion.open_questions]
    own = () if follows else rules.open_questions
    return tuple(dict.fromkeys((*own, *(text for text, _ in pairs)))), tuple(
        name for _, names in pairs for name in names
    )


# --- how sure, and what differs


def _confidence(rules: Verdict, investigation: Investigation, opinion: Opinion, dropped: tuple[Claim, ...]) -> float:
    share = PARTIAL_SHARE if investigation.stop is StopReason.PARTIAL else 1.0
    share *= max(LEAST_DROPPED_SHARE, DROPPED_SHARE ** len(dropped))
    share *= UNCHECKED_SHARE if investigation.unchecked else 1.0
    share *= DIFFERENT_SHARE if opinion.fault_class is not rules.fault_class else 1.0
    return round(max(0.01, min(MOST_SURE, opinion.confidence * share)), 2)


def _why_not(cause: Claim | None) -> str:
    return "the model proved no root cause" if cause is None else "nothing but tenants' text supports the model's"


@dataclass(frozen=True, slots=True)
class _Differences:
    """What rules and model say differently, a sentence each."""

    rules: Verdict
    opinion: Opinion
    why_not: str  # why the rules' stands; empty where the model's does

    def severity(self, ground: str) -> Iterator[str]:
        """Where there is a ground, they differ."""
        if ground:
            yield f"Severity: the rules say {self.rules.severity.value}, the model {self.opinion.severity.value}; {ground}."

    def rest(self, published: Verdict) -> Iterator[str]:
        """Class, action and first step."""
        for name, rules, model, stands in (
            ("Fault class", self.rules.fault_class, self.opinion.fault_class, published.fault_class),
            ("Action", self.rules.action, self.opinion.action, published.action),
            (FIRST_STEP, self.rules.resolutions[0], self.opinion.resolutions[0], published.resolutions[0]),
        ):
            if rules is not model:
                yield f"{name}: the rules say {_said(rules)}, the model {_said(model)}; {self._stands(model, stands)}."

    def _stands(self, model: StrEnum, stands: StrEnum) -> str:
        if stands is model:
            return "the model's stands, on facts of hardware or cluster"
        return f"the rules' stands{', ' + self.why_not if self.why_not else ''}"


def disagreements(disputed: Iterable[str]) -> tuple[str, ...]:
    """Differences on what is the matter and what is to be done with the node; which step comes first is none of them."""
    return tuple(sentence for sentence in disputed if not sentence.startswith(f"{FIRST_STEP}: "))


def _said(value: StrEnum) -> str:
    return value.value.replace("_", " ")
