"""The model → wire messages: what queries answer with, and the evidence that the aggregator itself declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from aggregator.model import Assessment, Claim, EvidenceKey, Incident, Phase, Signal
from protos.v1 import evidence_pb2, sentinel_pb2

_PHASES = {
    Phase.POINT: evidence_pb2.PHASE_POINT,
    Phase.BEGAN: evidence_pb2.PHASE_BEGAN,
    Phase.ENDED: evidence_pb2.PHASE_ENDED,
}


def stamp(time_us: int) -> Timestamp:
    """Microseconds since the epoch as a wire time."""
    message = Timestamp()
    message.FromMicroseconds(time_us)
    return message


def declare(
    key: EvidenceKey,
    *,
    kind: str,
    phase: Phase,
    occurred_us: int,
    detail: str,
    simulated: bool,
    estimated: bool = False,
    condition: Mapping[str, str] | None = None,
) -> bytes:
    """Serialized Evidence for a fact that the aggregator itself knows about a node. `condition` holds NodeCondition's fields;
    `estimated`: the time is another machine's."""
    return evidence_pb2.Evidence(
        node=key.node,
        source=key.source,
        epoch=key.epoch,
        seq=key.seq,
        kind=kind,
        phase=_PHASES[phase],
        occurred_at=stamp(occurred_us),
        time_basis=evidence_pb2.TIME_BASIS_ESTIMATED if estimated else evidence_pb2.TIME_BASIS_OBSERVED,
        collected_at=stamp(occurred_us),
        simulated=simulated,
        detail=detail,
        node_condition=evidence_pb2.NodeCondition(**condition) if condition is not None else None,
    ).SerializeToString()


def _gpu(gpu_uuid: str | None, pci: str | None) -> evidence_pb2.GpuIdentity | None:
    """A GPU's names; None when it has none."""
    return evidence_pb2.GpuIdentity(uuid=gpu_uuid or "", pci=pci or "") if gpu_uuid or pci else None


def incident_message(
    incident: Incident, assessment: Assessment | None, *, with_timeline: bool = False
) -> sentinel_pb2.Incident:
    """An incident with its present assessment; the timeline only where it is asked for."""
    message = sentinel_pb2.Incident(
        id=incident.id,
        node=incident.subject.node,
        nodes=incident.nodes,
        subject_kind=incident.subject.kind,
        gpu=_gpu(incident.subject.gpu_uuid, incident.subject.pci),
        state=incident.state.value,
        opened_at=stamp(incident.opened_us),
        updated_at=stamp(incident.updated_us),
        resolved_because=incident.resolved_because,
        held_because=incident.held_because,
        fleet_id=incident.fleet_id,
        simulated=incident.simulated,
    )
    if incident.resolved_us is not None:
        message.resolved_at.CopyFrom(stamp(incident.resolved_us))
    if incident.held_until_us is not None:
        message.held_until.CopyFrom(stamp(incident.held_until_us))
    if assessment is not None:
        message.assessment.CopyFrom(assessment_message(assessment))
    if with_timeline:
        message.timeline.extend(_timeline(incident, assessment))
    return message


def assessment_message(assessment: Assessment) -> sentinel_pb2.Assessment:
    """A verdict with its proof."""
    verdict = assessment.verdict
    return sentinel_pb2.Assessment(
        id=assessment.id,
        incident_id=assessment.incident_id,
        revision=assessment.revision,
        created_at=stamp(assessment.created_us),
        severity=verdict.severity.value,
        fault_class=verdict.fault_class.value,
        action=verdict.action.value,
        resolutions=[resolution.value for resolution in verdict.resolutions],
        root_cause=verdict.root_cause,
        summary=verdict.summary,
        confidence=verdict.confidence,
        citations=verdict.citations,
        rule_ids=verdict.rule_ids,
        recurrence_advice=verdict.recurrence_advice,
        open_questions=verdict.open_questions,
        do_not=verdict.do_not,
        origin=assessment.origin,
        rules_version=verdict.rules_version,
        degraded_reason=assessment.degraded_reason,
        next_steps=verdict.next_steps,
        claims=map(_claim, assessment.claims),
        dropped_claims=map(_claim, assessment.dropped_claims),
        counter_evidence=assessment.counter_evidence,
        disputed=assessment.disputed,
        unchecked=assessment.unchecked,
        investigation_id=assessment.investigation_id,
        model=assessment.model,
        cost_usd=assessment.cost_usd,
        partial=assessment.partial,
    )


def _claim(claim: Claim) -> sentinel_pb2.Claim:
    return sentinel_pb2.Claim(
        role=claim.role.value,
        text=claim.text,
        support=[
            sentinel_pb2.Support(
                item_id=support.item_id,
                quote=support.quote,
                trust=support.trust.value,
                evidence_id=support.evidence_id,
            )
            for support in claim.support
        ],
        dropped_because=claim.dropped_because,
    )


def _timeline(incident: Incident, assessment: Assessment | None) -> Iterator[sentinel_pb2.TimelineEntry]:
    citations = assessment.verdict.citations if assessment else ()
    cause = next((signal for signal in incident.signals if citations and signal.id == citations[0]), None)
    for signal in incident.signals:
        entry = sentinel_pb2.TimelineEntry(
            evidence_id=signal.id.partition("#")[0],
            signal=signal.name,
            role=_role(signal, cause, citations),
            text=signal.raw,
        )
        if signal.at_us is not None:
            entry.occurred_at.CopyFrom(stamp(signal.at_us))
        yield entry


def _role(signal: Signal, cause: Signal | None, citations: tuple[str, ...]) -> str:
    """The verdict's first citation is the cause; what else it cites is a second witness of that or what followed from it."""
    if cause is None or signal.id not in citations:
        return "context"
    if signal is cause:
        return "cause"
    same_fault = (signal.kind, signal.code) == (cause.kind, cause.code) and signal.source != cause.source
    return "witness" if same_fault else "consequence"
