"""Every decision about an action, with what it saw; and what was begun on nodes, written down before it is done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, func, insert, select, update

from aggregator.store.schema import actions, audit, incidents

DOING, DONE, FAILED, RELEASED = "doing", "done", "failed", "released"
HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Record:
    """One decision, or what came of it."""

    node: str
    incident_id: str
    assessment_id: str
    action: str  # cordon, taint, drain, release
    outcome: str  # allowed, denied, dry_run, done, failed
    reasons: tuple[str, ...]
    inputs: Mapping[str, object]
    actor: str = "sentinel"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A record as it is kept."""

    id: int
    at_us: int
    record: Record


@dataclass(frozen=True, slots=True)
class Begun:
    """An action on a node. One incident has at most one of each kind: what failed is not tried again by itself."""

    incident_id: str
    kind: str
    node: str
    node_uid: str
    state: str
    started_us: int
    deadline_us: int
    evicted: tuple[str, ...] = ()  # namespace/name


def record(connection: Connection, made: Record, now_us: int) -> bool:
    """Keep a decision; False where it only repeats the last one about this action on this incident."""
    last = connection.execute(
        select(audit.c.outcome, audit.c.reasons, audit.c.assessment_id)
        .where(audit.c.incident_id == made.incident_id, audit.c.action == made.action)
        .order_by(audit.c.id.desc())
        .limit(1)
    ).first()
    reasons = json.dumps(made.reasons)
    if last is not None and tuple(last) == (made.outcome, reasons, made.assessment_id):
        return False
    connection.execute(
        insert(audit).values(
            at_us=now_us,
            node=made.node,
            incident_id=made.incident_id,
            assessment_id=made.assessment_id,
            action=made.action,
            outcome=made.outcome,
            reasons=reasons,
            inputs=json.dumps(made.inputs, default=str),
            actor=made.actor,
        )
    )
    return True


def list_records(
    connection: Connection, *, node: str = "", incident_id: str = "", before_id: int | None = None, limit: int = 100
) -> list[Recorded]:
    """Decisions, newest first."""
    statement = select(audit)
    if node:
        statement = statement.where(audit.c.node == node)
    if incident_id:
        statement = statement.where(audit.c.incident_id == incident_id)
    if before_id is not None:
        statement = statement.where(audit.c.id < before_id)
    rows = connection.execute(statement.order_by(audit.c.id.desc()).limit(limit))
    return [Recorded(row["id"], row["at_us"], _record(row)) for row in rows.mappings()]


def _record(row: RowMapping) -> Record:
    return Record(
        node=row["node"],
        incident_id=row["incident_id"],
        assessment_id=row["assessment_id"],
        action=row["action"],
        outcome=row["outcome"],
        reasons=tuple(json.loads(row["reasons"])),
        inputs=json.loads(row["inputs"]),
        actor=row["actor"],
    )


def begin(connection: Connection, begun: Begun, now_us: int, max_per_hour: int) -> bool:
    """Write down what is about to be done. False where the hour's actions are used up: attempts count, whatever came of them."""
    if started_since(connection, now_us - HOUR_US) >= max_per_hour:
        return False
    values = {name: getattr(begun, name) for name in Begun.__dataclass_fields__}
    connection.execute(insert(actions).values(**values | {"evicted": json.dumps(begun.evicted)}))
    return True


def started_since(connection: Connection, since_us: int) -> int:
    """How many actions were begun since a time."""
    counted = select(func.count()).select_from(actions).where(actions.c.started_us >= since_us)
    return connection.scalar(counted) or 0


def end(connection: Connection, incident_id: str, kind: str, state: str) -> None:
    """What became of an action."""
    row = update(actions).where(actions.c.incident_id == incident_id, actions.c.kind == kind)
    connection.execute(row.values(state=state))


def evicted(connection: Connection, incident_id: str, kind: str, pods: Sequence[str]) -> None:
    """How far a drain has come."""
    row = update(actions).where(actions.c.incident_id == incident_id, actions.c.kind == kind)
    connection.execute(row.values(evicted=json.dumps(pods)))


def begun_for(connection: Connection, incident_id: str) -> dict[str, Begun]:
    """What was begun for an incident, by kind."""
    rows = connection.execute(select(actions).where(actions.c.incident_id == incident_id))
    return {row["kind"]: _begun(row) for row in rows.mappings()}


def unfinished_drains(connection: Connection) -> list[Begun]:
    """Drains that are under way."""
    rows = connection.execute(select(actions).where(actions.c.kind == "drain", actions.c.state == DOING))
    return [_begun(row) for row in rows.mappings()]


def _begun(row: RowMapping) -> Begun:
    return Begun(**{**row, "evicted": tuple(json.loads(row["evicted"]))})


def newly_critical_nodes(connection: Connection, since_us: int) -> int:
    """On how many nodes a critical incident opened since a time: many at once are rarely as many broken nodes."""
    counted = select(func.count(func.distinct(incidents.c.node))).where(
        incidents.c.state == "open", incidents.c.severity == "critical", incidents.c.opened_us >= since_us
    )
    return connection.scalar(counted) or 0
