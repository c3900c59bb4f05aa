"""What asynchronous targets are to be told: a row for each target and change, made in the transaction that empties the outbox.

A row's `change` is relative to what its target has been told, not to what happened: a severity filter, a planned state or a fleet
incident may have kept the beginning from it, and nobody is told the end of what they never heard of. So the last row that was
tried stays for as long as its incident does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from aggregator.model import Assessment, Incident, IncidentState, Severity
from aggregator.store.schema import assessments, deliveries, incidents
from aggregator.store.serial import load_assessment, load_incident
from aggregator.store.verdicts import Publication, published

WAITING, SENT, SUPERSEDED, DEAD = "waiting", "sent", "superseded", "dead"
OPENED, REVISED, RESOLVED = "opened", "revised", "resolved"


class Audience(Enum):
    """Whom a target reaches, and so what it is told."""

    PAGED = "paged"  # people, now: nothing quiet, nothing while a planned state holds it, one page for a fleet incident
    NOTED = "noted"  # the node's own record: nothing quiet, each node's own incidents
    SHOWN = "shown"  # the present state of a node: each node's own incidents as they stand


@dataclass(frozen=True, slots=True)
class Route:
    """What one target wants to be told."""

    target: str  # its name in the configuration: what rows, metrics and logs say instead of an address
    audience: Audience = Audience.PAGED
    severities: frozenset[Severity] = frozenset(Severity)
    supersedes: bool = True  # the present verdict replaces one that still waits


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row that is to be sent now, with what it tells of."""

    id: int
    change: str
    attempts: int  # this one included
    created_us: int
    idempotency_id: str
    incident: Incident  # as it is now
    assessment: Assessment  # the one that was posted


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row that was tried."""

    id: int
    state: str  # sent, waiting or dead
    error: str = ""  # without secrets
    next_attempt_us: int = 0
    postponed: bool = False  # it waits, and nothing failed


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A row as people see it."""

    id: int
    target: str
    incident_id: str
    change: str
    state: str
    attempts: int
    next_attempt_us: int
    last_error: str
    created_us: int


def hand_over(
    connection: Connection, routes: Sequence[Route], publications: Sequence[Publication], now_us: int
) -> None:
    """Take committed changes out of the outbox, oldest first, and post what each target wants of them."""
    for publication in publications:
        incident, assessment = publication.incident, publication.assessment
        if assessment is None or not routes:
            continue
        known = _known(connection, incident.id)
        for route in routes:
            mine = [row for row in known if row.target == route.target and (row.attempts or not route.supersedes)]
            _post(connection, route, incident, assessment, mine[-1] if mine else None, now_us)
    published(connection, [publication.id for publication in publications])


def _known(connection: Connection, incident_id: str) -> Sequence[Row[Any]]:
    """What targets have been told of an incident, or will be, in that order."""
    names = ("target", "change", "assessment_id", "attempts")
    rows = select(*(deliveries.c[name] for name in names)).where(deliveries.c.incident_id == incident_id)
    return connection.execute(rows.order_by(deliveries.c.id)).all()


def _post(
    connection: Connection, route: Route, incident: Incident, assessment: Assessment, told: Row[Any] | None, now_us: int
) -> None:
    over = incident.state is IncidentState.RESOLVED
    if not _wants(route, incident, assessment, told is not None):
        return
    if told is not None and told.assessment_id == assessment.id and (told.change == RESOLVED) == over:
        return
    if over and _drop_held(connection, route.target, incident.id, now_us):
        return
    opens = told is None or told.change == RESOLVED
    change = RESOLVED if over else OPENED if opens else REVISED
    if route.supersedes:
        _supersede(connection, route.target, incident.id)
    identity = f"{incident.id} {assessment.revision} {change} {route.target}".encode()
    held_until_us = incident.held_until_us if route.audience is Audience.PAGED else None
    connection.execute(
        insert(deliveries).values(
            target=route.target,
            incident_id=incident.id,
            assessment_id=assessment.id,
            change=change,
            severity=assessment.verdict.severity.value,
            created_us=now_us,
            attempts=0,
            next_attempt_us=max(now_us, held_until_us or 0),
            state=WAITING,
            last_error="",
            idempotency_id=blake2b(identity, digest_size=16).hexdigest(),
        )
    )


def _wants(route: Route, incident: Incident, assessment: Assessment, told: bool) -> bool:
    """Whoever heard of an incident hears the rest of it."""
    if incident.quiet and route.audience is not Audience.SHOWN:
        return False
    if route.audience is not Audience.PAGED:
        return incident.subject.kind != "fleet"
    if incident.fleet_id:
        return told and incident.state is IncidentState.RESOLVED
    return told or assessment.verdict.severity in route.severities


def _drop_held(connection: Connection, target: str, incident_id: str, now_us: int) -> bool:
    """Forget what waits for a planned state's end where that is all there is: the incident is over and nobody heard of it."""
    rows = deliveries.c.target == target, deliveries.c.incident_id == incident_id
    heard = select(func.count()).where(*rows, (deliveries.c.attempts > 0) | (deliveries.c.next_attempt_us <= now_us))
    if connection.scalar(heard):
        return False
    return connection.execute(delete(deliveries).where(*rows)).rowcount > 0


def _supersede(connection: Connection, target: str, incident_id: str) -> None:
    """Let nothing else wait. What was tried may have arrived, and stays as what the target was told."""
    rows = deliveries.c.target == target, deliveries.c.incident_id == incident_id, deliveries.c.state == WAITING
    connection.execute(delete(deliveries).where(*rows, deliveries.c.attempts == 0))
    connection.execute(update(deliveries).where(*rows).values(state=SUPERSEDED))


def claim(connection: Connection, target: str, now_us: int, limit: int) -> list[Waiting]:
    """Take the oldest rows that are due, at most one an incident and none before an earlier one of it, and count the attempt: a
    crash from here on repeats them under the same idempotency id."""
    rows = connection.execute(
        select(deliveries, incidents.c.body, assessments.c.body.label("assessment"))
        .join(incidents, incidents.c.id == deliveries.c.incident_id)
        .join(assessments, assessments.c.id == deliveries.c.assessment_id)
        .where(deliveries.c.id.in_(_heads(target)), deliveries.c.next_attempt_us <= now_us)
        .order_by(deliveries.c.id)
        .limit(limit)
    ).all()
    ids = [row.id for row in rows]
    connection.execute(update(deliveries).where(deliveries.c.id.in_(ids)).values(attempts=deliveries.c.attempts + 1))
    return [
        Waiting(
            id=row.id,
            change=row.change,
            attempts=row.attempts + 1,
            created_us=row.created_us,
            idempotency_id=row.idempotency_id,
            incident=load_incident(row.body),
            assessment=load_assessment(row.assessment),
        )
        for row in rows
    ]


def _heads(target: str) -> Select[tuple[int]]:
    """The first waiting row of each incident."""
    return (
        select(func.min(deliveries.c.id))
        .where(deliveries.c.target == target, deliveries.c.state == WAITING)
        .group_by(deliveries.c.incident_id)
    )


def settle(connection: Connection, outcomes: Iterable[Outcome]) -> None:
    """Record what became of claimed rows. A row that was superseded meanwhile is not tried again."""
    for outcome in outcomes:
        values = {"state": outcome.state, "last_error": outcome.error}
        if outcome.state == WAITING:
            values["next_attempt_us"] = outcome.next_attempt_us  # type: ignore[assignment]
        row = update(deliveries).where(deliveries.c.id == outcome.id).values(**values)
        connection.execute(row if outcome.state == SENT else row.where(deliveries.c.state == WAITING))
        if outcome.state == SENT:
            _forget_before(connection, outcome.id)


def _forget_before(connection: Connection, row_id: int) -> None:
    """What was told now is all that has to be remembered of an incident's earlier rows."""
    sent = select(deliveries.c.target, deliveries.c.incident_id).where(deliveries.c.id == row_id).subquery()
    earlier = (
        select(deliveries.c.id)
        .join(sent, (sent.c.target == deliveries.c.target) & (sent.c.incident_id == deliveries.c.incident_id))
        .where(deliveries.c.id < row_id, deliveries.c.state != WAITING)
    )
    connection.execute(delete(deliveries).where(deliveries.c.id.in_(earlier)))


def next_attempt_us(connection: Connection, target: str) -> int | None:
    """When the next row of a target can be tried; None when none waits."""
    earliest = select(func.min(deliveries.c.next_attempt_us)).where(deliveries.c.id.in_(_heads(target)))
    due_us: int | None = connection.scalar(earliest)
    return due_us


def counts(connection: Connection, target: str) -> dict[str, int]:
    """How many rows of a target are in each state; absent states have none."""
    counted = select(deliveries.c.state, func.count()).where(deliveries.c.target == target).group_by(deliveries.c.state)
    return dict(connection.execute(counted).all())


def drop_others(connection: Connection, targets: Sequence[str]) -> int:
    """Forget what waited or was given up for targets that are switched on no longer; return how many rows that were. What they were
    told stays: switched on again, they hear how it ended."""
    gone = deliveries.c.target.not_in(targets), deliveries.c.state.in_((WAITING, DEAD))
    return connection.execute(delete(deliveries).where(*gone)).rowcount


def list_deliveries(connection: Connection, states: Sequence[str], after_id: int, limit: int) -> list[DeliveryRow]:
    """Rows in one of the states, oldest first."""
    names = [deliveries.c[name] for name in DeliveryRow.__dataclass_fields__]
    rows = connection.execute(
        select(*names)
        .where(deliveries.c.state.in_(states), deliveries.c.id > after_id)
        .order_by(deliveries.c.id)
        .limit(limit)
    )
    return [DeliveryRow(**row) for row in rows.mappings()]
