"""One structured log line for what is newly concluded, for those who read logs rather than metrics.

A revision that only counts, or cites one fact more, is in the store and on the pages; logged too, a storm of facts would become a
storm of lines.
"""

from __future__ import annotations

import re

import structlog

from aggregator.model import Assessment, Incident, IncidentState

MAX_TEXT = 500  # characters of a sentence
MAX_NAMED = 8  # citations, rules and resolutions of a line

log = structlog.get_logger("gcm_sentinel.assessments")

_NUMBER = re.compile(r"\d+")


class AssessmentLog:
    """An output that logs incidents as they open and resolve, and whenever their verdict or a hold on them changes until then."""

    name = "log"

    def __init__(self) -> None:
        self._said: dict[str, tuple[object, ...]] = {}  # open incident → what its last line said

    def publish(self, incident: Incident, assessment: Assessment | None, change: str) -> None:
        if assessment is None or incident.quiet:
            return
        conclusion = _conclusion(incident, assessment)
        before = self._said.pop(incident.id, None)
        if incident.state is IncidentState.OPEN:
            self._said[incident.id] = conclusion
        elif before is None and change == "revised":  # it was resolved before, and its line said so
            return
        if before == conclusion:
            return
        _log(incident, assessment, change)


def _conclusion(incident: Incident, assessment: Assessment) -> tuple[object, ...]:
    """What a reader would act on. Numbers in the root cause are counts where the rule stays the same."""
    verdict = assessment.verdict
    return (
        incident.state,
        incident.held_because,
        incident.fleet_id,
        verdict.severity,
        verdict.fault_class,
        verdict.action,
        _NUMBER.sub("#", verdict.root_cause),
        verdict.rule_ids[:1],
        assessment.origin,
        assessment.degraded_reason,
    )


def _log(incident: Incident, assessment: Assessment, change: str) -> None:
    verdict = assessment.verdict
    log.info(
        "assessment",
        change=change,
        incident=incident.id,
        revision=assessment.revision,
        node=incident.subject.node,
        nodes=len(incident.nodes),
        subject=incident.subject.kind,
        gpu=incident.subject.gpu_uuid or incident.subject.pci,
        state=incident.state.value,
        resolved_because=_short(incident.resolved_because) or None,
        held_because=_short(incident.held_because) or None,
        fleet=incident.fleet_id or None,
        severity=verdict.severity.value,
        fault_class=verdict.fault_class.value,
        action=verdict.action.value,
        resolutions=[resolution.value for resolution in verdict.resolutions[:MAX_NAMED]],
        confidence=round(verdict.confidence, 2),
        root_cause=_short(verdict.root_cause),
        citations=list(verdict.citations[:MAX_NAMED]),
        cited=len(verdict.citations),
        rules=list(verdict.rule_ids[:MAX_NAMED]),
        origin=assessment.origin,
        degraded=_short(assessment.degraded_reason) or None,
        simulated=incident.simulated,
    )


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
