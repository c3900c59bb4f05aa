"""What a client makes of the server's answers: the incident as the model has it, so that one renderer serves both sides."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from aggregator.model import (
    Action,
    Assessment,
    Claim,
    ClaimRole,
    FaultClass,
    Incident,
    IncidentState,
    Resolution,
    Severity,
    Signal,
    Subject,
    Support,
    Trust,
    Verdict,
)
from protos.v1 import sentinel_pb2


def read_incident(message: sentinel_pb2.Incident) -> tuple[Incident, Assessment | None]:
    """An incident with its assessment; signals hold what a timeline tells of them. Raises ValueError for a newer server's words."""
    incident = Incident(
        id=message.id,
        subject=Subject(
            message.subject_kind, message.node, pci=message.gpu.pci or None, gpu_uuid=message.gpu.uuid or None
        ),
        nodes=tuple(message.nodes),
        signals=tuple(_signal(entry, order, message) for order, entry in enumerate(message.timeline)),
        state=IncidentState(message.state),
        opened_us=_us(message.opened_at),
        updated_us=_us(message.updated_at),
        resolved_us=_us(message.resolved_at) if message.HasField("resolved_at") else None,
        resolved_because=message.resolved_because,
        held_until_us=_us(message.held_until) if message.HasField("held_until") else None,
        held_because=message.held_because,
        fleet_id=message.fleet_id,
    )
    return incident, _assessment(message.assessment, message.node) if message.HasField("assessment") else None


def _assessment(message: sentinel_pb2.Assessment, node: str) -> Assessment:
    verdict = Verdict(
        severity=Severity(message.severity),
        fault_class=FaultClass(message.fault_class),
        action=Action(message.action),
        resolutions=tuple(Resolution(item) for item in message.resolutions),
        root_cause=message.root_cause,
        summary=message.summary,
        confidence=message.confidence,
        citations=tuple(message.citations),
        rule_ids=tuple(message.rule_ids),
        recurrence_advice=message.recurrence_advice,
        open_questions=tuple(message.open_questions),
        do_not=tuple(message.do_not),
        next_steps=tuple(message.next_steps),
        rules_version=message.rules_version,
    )
    return Assessment(
        id=message.id,
        incident_id=message.incident_id,
        node=node,
        revision=message.revision,
        created_us=_us(message.created_at),
        verdict=verdict,
        origin=message.origin,
        degraded_reason=message.degraded_reason,
        claims=tuple(map(_claim, message.claims)),
        dropped_claims=tuple(map(_claim, message.dropped_claims)),
        counter_evidence=tuple(message.counter_evidence),
        disputed=tuple(message.disputed),
        unchecked=tuple(message.unchecked),
        investigation_id=message.investigation_id,
        model=message.model,
        cost_usd=message.cost_usd,
        partial=message.partial,
    )


def _claim(message: sentinel_pb2.Claim) -> Claim:
    support = (Support(part.item_id, part.quote, Trust(part.trust), part.evidence_id) for part in message.support)
    return Claim(ClaimRole(message.role), message.text, tuple(support), message.dropped_because)


def _signal(entry: sentinel_pb2.TimelineEntry, order: int, incident: sentinel_pb2.Incident) -> Signal:
    kind, _, code = entry.signal.partition(" ")
    return Signal(
        id=entry.evidence_id,
        kind=kind,
        code=int(code) if code else None,
        node=entry.evidence_id.partition("/")[0],
        at_us=_us(entry.occurred_at) if entry.HasField("occurred_at") else None,
        order=order,
        raw=entry.text,
        source=entry.evidence_id.split("/")[1] if "/" in entry.evidence_id else "",
        simulated=incident.simulated,
    )


def _us(stamp: Timestamp) -> int:
    return stamp.ToMicroseconds()
