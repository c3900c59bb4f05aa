"""What people and the pipeline ask of the store. Every list is paged by a key that later rows cannot disturb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, RowMapping, func, or_, select, tuple_

from aggregator.model import Assessment, Incident
from aggregator.store.schema import assessments, evidence, incident_nodes, incidents, nodes, quarantine, snapshots
from aggregator.store.serial import load_assessment, load_incident
from aggregator.store.verdicts import latest_assessments


@dataclass(frozen=True, slots=True)
class EvidenceFilter:
    """Which evidence; empty parts mean all. Times are µs, `until_us` excluded; any of the GPU's names is enough."""

    node: str = ""
    since_us: int | None = None
    until_us: int | None = None
    kinds: tuple[str, ...] = ()
    gpu_uuids: tuple[str, ...] = ()
    pcis: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One evidence row."""

    id: int
    stored_us: int
    signals: tuple[str, ...]
    replayed: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as the store knows it."""

    name: str
    installation_id: str
    agent_version: str
    boot_id: str
    simulated: bool
    first_seen_us: int
    last_seen_us: int
    clock_offset_us: int
    clock_error_us: int


def list_evidence(connection: Connection, wanted: EvidenceFilter, after_id: int, limit: int) -> list[StoredRow]:
    """Evidence with an id above `after_id`, in the order it was stored."""
    statement = select(evidence.c.id, evidence.c.stored_us, evidence.c.signals, evidence.c.replayed, evidence.c.payload)
    if wanted.since_us is not None:
        after_id = max(after_id, _id_before(connection, wanted.since_us))
    statement = statement.where(evidence.c.id > after_id, *_matching(wanted)).order_by(evidence.c.id).limit(limit)
    return [_stored(row) for row in connection.execute(statement).mappings()]


def _matching(wanted: EvidenceFilter) -> Iterator[ColumnElement[bool]]:
    if wanted.node:
        yield evidence.c.node == wanted.node
    if wanted.kinds:
        yield evidence.c.kind.in_(wanted.kinds)
    if wanted.gpu_uuids or wanted.pcis:
        yield or_(evidence.c.gpu_uuid.in_(wanted.gpu_uuids), evidence.c.pci.in_(wanted.pcis))
    if wanted.since_us is not None:
        yield evidence.c.occurred_us >= wanted.since_us
    if wanted.until_us is not None:
        yield evidence.c.occurred_us < wanted.until_us


def _id_before(connection: Connection, since_us: int) -> int:
    """An id that lies before every row that occurred since: the index on time finds it without walking older rows."""
    first = connection.scalar(select(func.min(evidence.c.id)).where(evidence.c.occurred_us >= since_us))
    return (first or 1) - 1


def unread_signals(connection: Connection, after_id: int, limit: int) -> tuple[list[StoredRow], int]:
    """The next rows that hold signals, and how far that has read: rows without any are passed over."""
    newest = last_evidence_id(connection)
    statement = (
        select(evidence.c.id, evidence.c.stored_us, evidence.c.signals, evidence.c.replayed, evidence.c.payload)
        .where(evidence.c.id > after_id, evidence.c.signals != "")
        .order_by(evidence.c.id)
        .limit(limit)
    )
    rows = [_stored(row) for row in connection.execute(statement).mappings()]
    return rows, rows[-1].id if len(rows) == limit else max(after_id, newest)


def recent_signals(connection: Connection, since_us: int, up_to_id: int, limit: int) -> list[StoredRow]:
    """The last rows that hold signals and occurred since a time, up to an id, in the order they were stored."""
    statement = (
        select(evidence.c.id, evidence.c.stored_us, evidence.c.signals, evidence.c.replayed, evidence.c.payload)
        .where(evidence.c.occurred_us >= since_us, evidence.c.id <= up_to_id, evidence.c.signals != "")
        .order_by(evidence.c.id.desc())
        .limit(limit)
    )
    return [_stored(row) for row in reversed(connection.execute(statement).mappings().all())]


def count_evidence(connection: Connection, wanted: EvidenceFilter, after_id: int, up_to_id: int) -> int:
    """How many rows there are above an id, up to another."""
    counted = select(func.count()).select_from(evidence).where(evidence.c.id > after_id, evidence.c.id <= up_to_id)
    return connection.scalar(counted.where(*_matching(wanted))) or 0


def last_evidence_id(connection: Connection) -> int:
    """The id of the newest row; 0 when there is none."""
    return connection.scalar(select(func.max(evidence.c.id))) or 0


def _stored(row: RowMapping) -> StoredRow:
    return StoredRow(row["id"], row["stored_us"], tuple(row["signals"].splitlines()), row["replayed"], row["payload"])


def list_nodes(connection: Connection, after_name: str = "", limit: int = -1) -> list[NodeRow]:
    """Nodes by name; all of them without a limit."""
    statement = select(nodes).where(nodes.c.name > after_name).order_by(nodes.c.name)
    rows = connection.execute(statement if limit < 0 else statement.limit(limit))
    return [NodeRow(**row) for row in rows.mappings()]


def get_node(connection: Connection, name: str) -> NodeRow | None:
    """One node."""
    row = connection.execute(select(nodes).where(nodes.c.name == name)).mappings().one_or_none()
    return None if row is None else NodeRow(**row)


def get_snapshots(connection: Connection, names: Sequence[str]) -> dict[str, bytes]:
    """The latest snapshot of each named node that sent one."""
    found = select(snapshots.c.node, snapshots.c.payload).where(snapshots.c.node.in_(names))
    return dict(connection.execute(found).all())


def all_snapshots(connection: Connection) -> list[bytes]:
    """The latest snapshot of every node."""
    return list(connection.scalars(select(snapshots.c.payload)))


def open_incident_counts(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    """How many incidents are open on each named node that has any."""
    counted = (
        select(incident_nodes.c.node, func.count())
        .join(incidents, incidents.c.id == incident_nodes.c.incident_id)
        .where(incidents.c.state == "open", incident_nodes.c.node.in_(names))
        .group_by(incident_nodes.c.node)
    )
    return dict(connection.execute(counted).all())


def list_incidents(
    connection: Connection,
    *,
    node: str = "",
    severities: Sequence[str] = (),
    include_resolved: bool = False,
    before: tuple[int, str] | None = None,
    limit: int = 100,
) -> list[tuple[Incident, Assessment | None]]:
    """Incidents with their present assessment, newest first; `before` is (opened_us, id) of the last one seen."""
    statement = select(incidents.c.body)
    if node:
        on_node = select(incident_nodes.c.incident_id).where(incident_nodes.c.node == node)
        statement = statement.where(incidents.c.id.in_(on_node))
    if severities:
        statement = statement.where(incidents.c.severity.in_(severities))
    if not include_resolved:
        statement = statement.where(incidents.c.state == "open")
    if before is not None:
        statement = statement.where(tuple_(incidents.c.opened_us, incidents.c.id) < tuple_(*before))
    newest_first = statement.order_by(incidents.c.opened_us.desc(), incidents.c.id.desc()).limit(limit)
    found = [load_incident(body) for body in connection.scalars(newest_first)]
    present = latest_assessments(connection, [incident.id for incident in found])
    return [(incident, present.get(incident.id)) for incident in found]


def recent_incidents(
    connection: Connection, names: Sequence[str], since_us: int, per_node: int
) -> dict[str, list[Incident]]:
    """By node, the latest incidents of the named nodes that were heard of since a time, at most `per_node` of each."""
    rank = func.row_number().over(partition_by=incidents.c.node, order_by=incidents.c.opened_us.desc())
    ranked = (
        select(incidents.c.id, rank.label("rank"))
        .join(incident_nodes, incident_nodes.c.incident_id == incidents.c.id)
        .where(incident_nodes.c.node.in_(names), incident_nodes.c.node == incidents.c.node)
        .where(incidents.c.updated_us >= since_us)
        .subquery()
    )
    bodies = select(incidents.c.body).join(ranked, ranked.c.id == incidents.c.id).where(ranked.c.rank <= per_node)
    found: dict[str, list[Incident]] = {}
    for incident in map(load_incident, connection.scalars(bodies)):
        found.setdefault(incident.subject.node, []).append(incident)
    return found


def get_incident(connection: Connection, incident_id: str) -> tuple[Incident, Assessment | None] | None:
    """One incident with its present assessment."""
    body = connection.scalar(select(incidents.c.body).where(incidents.c.id == incident_id))
    if body is None:
        return None
    return load_incident(body), latest_assessments(connection, [incident_id]).get(incident_id)


def list_assessments(
    connection: Connection,
    *,
    node: str = "",
    incident_id: str = "",
    before: tuple[int, str] | None = None,
    limit: int = 100,
) -> list[Assessment]:
    """Assessments, newest first; `before` is (created_us, id) of the last one seen."""
    statement = select(assessments.c.body)
    if node:
        statement = statement.where(assessments.c.node == node)
    if incident_id:
        statement = statement.where(assessments.c.incident_id == incident_id)
    if before is not None:
        statement = statement.where(tuple_(assessments.c.created_us, assessments.c.id) < tuple_(*before))
    newest_first = statement.order_by(assessments.c.created_us.desc(), assessments.c.id.desc()).limit(limit)
    return [load_assessment(body) for body in connection.scalars(newest_first)]


def get_assessment(connection: Connection, assessment_id: str) -> Assessment | None:
    """One assessment."""
    body = connection.scalar(select(assessments.c.body).where(assessments.c.id == assessment_id))
    return None if body is None else load_assessment(body)


def list_quarantine(connection: Connection, limit: int = 100) -> list[RowMapping]:
    """The newest records that could not be stored as what they claim to be."""
    return list(connection.execute(select(quarantine).order_by(quarantine.c.id.desc()).limit(limit)).mappings())
