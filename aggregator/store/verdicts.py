"""Incidents, assessments and what is still to be published: a step of the correlator commits all of it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, update

from aggregator.model import Assessment, EvidenceKey, Incident
from aggregator.store.schema import assessments, citations, incident_nodes, incidents, insert, meta, outbox
from aggregator.store.serial import dump_assessment, dump_incident, load_assessment, load_incident

CURSOR = "correlator_cursor"  # id of the last evidence row that was correlated


@dataclass(frozen=True, slots=True)
class Judgement:
    """A change of an incident with what it was judged to be; None where the verdict stays as it was."""

    incident: Incident
    assessment: Assessment | None
    change: str  # opened, revised, resolved


@dataclass(frozen=True, slots=True)
class Publication:
    """A committed change that waits to be published."""

    id: int
    incident: Incident
    assessment: Assessment | None  # the incident's present one
    change: str


def save_step(connection: Connection, cursor: int, judgements: Sequence[Judgement], now_us: int) -> None:
    """Commit what one step concluded, the cursor it got to, and the outbox."""
    for judgement in judgements:
        _save_incident(connection, judgement.incident)
        if judgement.assessment is not None:
            _save_assessment(connection, judgement.assessment)
    new = insert(meta).values(key=CURSOR, value=str(cursor))
    connection.execute(new.on_conflict_do_update(index_elements=["key"], set_={"value": new.excluded.value}))
    for judgement in judgements:
        _post(connection, judgement, now_us)


def _save_incident(connection: Connection, incident: Incident) -> None:
    values = {
        "node": incident.subject.node,
        "state": incident.state.value,
        "opened_us": incident.opened_us,
        "updated_us": incident.updated_us,
        "body": dump_incident(incident),
    }
    new = insert(incidents).values(id=incident.id, severity="", **values)
    connection.execute(new.on_conflict_do_update(index_elements=["id"], set_=values))
    rows = [{"node": node, "incident_id": incident.id} for node in {incident.subject.node, *incident.nodes}]
    connection.execute(insert(incident_nodes).on_conflict_do_nothing(), rows)


def _save_assessment(connection: Connection, assessment: Assessment) -> None:
    values = {
        "incident_id": assessment.incident_id,
        "node": assessment.node,
        "revision": assessment.revision,
        "created_us": assessment.created_us,
        "body": dump_assessment(assessment),
    }
    new = insert(assessments).values(id=assessment.id, **values)
    connection.execute(new.on_conflict_do_update(index_elements=["id"], set_=values))
    connection.execute(
        update(incidents)
        .where(incidents.c.id == assessment.incident_id)
        .values(severity=assessment.verdict.severity.value)
    )
    keys = {evidence_key(citation) for citation in assessment.verdict.citations} - {None}
    rows = [
        {"node": key.node, "source": key.source, "epoch": key.epoch, "seq": key.seq, "assessment_id": assessment.id}
        for key in keys
        if key is not None
    ]
    if rows:
        connection.execute(insert(citations).on_conflict_do_nothing(), rows)


def _post(connection: Connection, judgement: Judgement, now_us: int) -> None:
    row = insert(outbox).values(
        incident_id=judgement.incident.id,
        assessment_id=judgement.assessment.id if judgement.assessment else None,
        change=judgement.change,
        created_us=now_us,
    )
    connection.execute(row)


def evidence_key(citation: str) -> EvidenceKey | None:
    """The evidence a signal id names; None when it names none, as ids from a pasted log do.

    node and source hold no slash (`wire` refuses those), an epoch may.
    """
    node, _, rest = citation.rpartition("#")[0 if "#" in citation else 2].partition("/")
    source, _, rest = rest.partition("/")
    epoch, _, seq = rest.rpartition("/")
    return EvidenceKey(node, source, epoch, int(seq)) if epoch and seq.isdecimal() else None


def take_outbox(connection: Connection, limit: int) -> list[Publication]:
    """Oldest unpublished changes, each with its incident and assessment as they are now."""
    rows = connection.execute(
        select(outbox.c.id, outbox.c.change, outbox.c.incident_id, incidents.c.body)
        .join(incidents, incidents.c.id == outbox.c.incident_id)
        .order_by(outbox.c.id)
        .limit(limit)
    ).all()
    present = latest_assessments(connection, [row.incident_id for row in rows])
    return [Publication(row.id, load_incident(row.body), present.get(row.incident_id), row.change) for row in rows]


def published(connection: Connection, ids: Sequence[int]) -> None:
    """Forget what has been published."""
    connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))


def latest_assessments(connection: Connection, incident_ids: Sequence[str]) -> dict[str, Assessment]:
    """The present assessment of each incident that has one."""
    rows = connection.execute(
        select(assessments.c.incident_id, assessments.c.body)
        .where(assessments.c.incident_id.in_(incident_ids))
        .order_by(assessments.c.revision)
    )
    return {row.incident_id: load_assessment(row.body) for row in rows}


def restore(connection: Connection, resolved_since_us: int) -> tuple[int, list[Incident]]:
    """Where the correlator stood: its cursor, and the incidents it still had in hand: those open and, because late facts revise
    them, those heard of since the given time."""
    cursor = connection.scalar(select(meta.c.value).where(meta.c.key == CURSOR))
    in_hand = select(incidents.c.body).where(
        (incidents.c.state == "open")
        | ((incidents.c.state == "resolved") & (incidents.c.updated_us >= resolved_since_us))
    )
    return int(cursor or 0), [load_incident(body) for body in connection.scalars(in_hand)]
