"""One structured log line for each assessment, for those who read logs rather than metrics."""

from __future__ import annotations

import structlog

from aggregator.model import Assessment, Incident

log = structlog.get_logger("gcm_sentinel.assessments")


class AssessmentLog:
    """An output that logs what was concluded, once per revision."""

    name = "log"

    def publish(self, incident: Incident, assessment: Assessment | None, change: str) -> None:
        if assessment is None or incident.quiet:
            return
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
            resolved_because=incident.resolved_because or None,
            held_because=incident.held_because or None,
            fleet=incident.fleet_id or None,
            severity=verdict.severity.value,
            fault_class=verdict.fault_class.value,
            action=verdict.action.value,
            resolutions=[resolution.value for resolution in verdict.resolutions],
            confidence=round(verdict.confidence, 2),
            root_cause=verdict.root_cause,
            citations=list(verdict.citations),
            rules=list(verdict.rule_ids),
            origin=assessment.origin,
            degraded=assessment.degraded_reason or None,
            simulated=incident.simulated,
        )
