"""The queue of investigations, which is also the record of those that have ended, and their transcripts.

An incident has at most one row that waits or runs. What an ended row holds is joined with the rules' verdict by the pipeline, in a
transaction of its own: until then `joined` is false, so that a crash in between repeats the joining and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, func, select, update

from aggregator.model import Investigation
from aggregator.store.schema import insert, investigations, transcripts
from aggregator.store.serial import dump_investigation, load_investigation

QUEUED, RUNNING, DROPPED = "queued", "running", "dropped"
ANSWERED = ("completed", "partial")
QUIET_US = 5_000_000  # an incident is looked into once nothing was added for so long
LONGEST_WAIT_US = 30_000_000  # but no later than this after it was wanted


@dataclass(frozen=True, slots=True)
class Wanted:
    """An incident that is worth an investigation."""

    incident_id: str
    node: str
    namespace: str
    priority: int
    basis: str
    asked_by: str = "auto"
    at_once: bool = False  # a person waits for it


@dataclass(frozen=True, slots=True)
class Job:
    """A row of the queue."""

    id: str
    incident_id: str
    node: str
    namespace: str
    state: str
    priority: int
    basis: str
    asked_by: str
    wanted_us: int
    due_us: int
    rest_until_us: int
    started_us: int | None
    ended_us: int | None
    attempts: int
    tokens: int
    cost_usd: float
    joined: bool


@dataclass(frozen=True, slots=True)
class TranscriptEntry:
    """One step of an investigation, redacted."""

    at_us: int
    round: int
    kind: str  # item, model, call, result, note, answer
    text: str
    entry_id: str = ""
    title: str = ""
    trust: str = ""
    total_bytes: int = 0


_JOB = [investigations.c[name] for name in Job.__dataclass_fields__]


def want(
    connection: Connection, wanted: Wanted, now_us: int, *, cooldown_us: int, quiet_us: int = QUIET_US
) -> str | None:
    """Queue an investigation, or move the one that waits; return its id. None where the last one answered the same question, or
    one runs already: whoever ends that asks again."""
    present = _one(connection, investigations.c.incident_id == wanted.incident_id, investigations.c.state == QUEUED)
    if present is not None:
        settled_us = min(now_us + quiet_us, present.wanted_us + LONGEST_WAIT_US)
        due_us = now_us if wanted.at_once else max(present.rest_until_us, settled_us)
        changes = {"basis": wanted.basis, "priority": min(wanted.priority, present.priority), "due_us": due_us}
        asked = {"asked_by": wanted.asked_by} if wanted.at_once else {}
        connection.execute(update(investigations).where(investigations.c.id == present.id).values(**changes, **asked))
        return present.id
    if running(connection, wanted.incident_id):
        return None
    last = _one(connection, investigations.c.incident_id == wanted.incident_id, investigations.c.ended_us.is_not(None))
    if last and last.state in ANSWERED and last.basis == wanted.basis and not wanted.at_once:
        return None
    row = _row(wanted, now_us)
    if not wanted.at_once:
        row["rest_until_us"] = (last.ended_us or 0) + cooldown_us if last else 0
        row["due_us"] = max(now_us + quiet_us, row["rest_until_us"])
    connection.execute(insert(investigations).values(**row))
    return str(row["id"])


def _row(wanted: Wanted, now_us: int) -> dict[str, Any]:
    """A new row, due now."""
    return {
        "id": f"inv-{uuid4().hex[:16]}",
        "incident_id": wanted.incident_id,
        "node": wanted.node,
        "namespace": wanted.namespace,
        "state": QUEUED,
        "priority": wanted.priority,
        "basis": wanted.basis,
        "asked_by": wanted.asked_by,
        "wanted_us": now_us,
        "due_us": now_us,
        "rest_until_us": 0,
        "attempts": 0,
        "tokens": 0,
        "cost_usd": 0.0,
        "joined": False,
    }


def running(connection: Connection, incident_id: str) -> Job | None:
    """The one that runs for an incident."""
    return _one(connection, investigations.c.incident_id == incident_id, investigations.c.state == RUNNING)


def again(connection: Connection, job: Job, attempts: int, due_us: int) -> None:
    """Queue another attempt at what a row could not answer, unless one waits already."""
    if _one(connection, investigations.c.incident_id == job.incident_id, investigations.c.state == QUEUED) is None:
        row = _row(
            Wanted(job.incident_id, job.node, job.namespace, job.priority, job.basis, job.asked_by), job.wanted_us
        )
        connection.execute(
            insert(investigations).values(row | {"attempts": attempts, "due_us": due_us, "rest_until_us": due_us})
        )


def _one(connection: Connection, *where: ColumnElement[bool]) -> Job | None:
    """The newest row that fits."""
    newest = select(*_JOB).where(*where).order_by(investigations.c.wanted_us.desc(), investigations.c.id).limit(1)
    row = connection.execute(newest).mappings().one_or_none()
    return None if row is None else Job(**row)


def due(connection: Connection, now_us: int, limit: int) -> list[Job]:
    """What could start now, in the order in which it should."""
    rows = connection.execute(
        select(*_JOB)
        .where(investigations.c.state == QUEUED, investigations.c.due_us <= now_us)
        .order_by(investigations.c.priority, investigations.c.due_us, investigations.c.id)
        .limit(limit)
    )
    return [Job(**row) for row in rows.mappings()]


def next_due_us(connection: Connection) -> int | None:
    """When the next row is due; None when nothing waits."""
    earliest = select(func.min(investigations.c.due_us)).where(investigations.c.state == QUEUED)
    due_us: int | None = connection.scalar(earliest)
    return due_us


def waiting(connection: Connection) -> int:
    """How many wait."""
    counted = select(func.count()).select_from(investigations).where(investigations.c.state == QUEUED)
    return connection.scalar(counted) or 0


def start(connection: Connection, job_id: str, now_us: int) -> bool:
    """Take a row that waits; False where somebody was faster."""
    taken = connection.execute(
        update(investigations)
        .where(investigations.c.id == job_id, investigations.c.state == QUEUED)
        .values(state=RUNNING, started_us=now_us, attempts=investigations.c.attempts + 1)
    )
    return taken.rowcount == 1


def postpone(connection: Connection, job_id: str, due_us: int) -> None:
    """Let a row wait until then."""
    connection.execute(
        update(investigations)
        .where(investigations.c.id == job_id)
        .values(state=QUEUED, due_us=due_us, rest_until_us=due_us, started_us=None)
    )


def drop(connection: Connection, job_id: str) -> None:
    """Give a row up: its incident is gone, or another investigation speaks for it."""
    connection.execute(update(investigations).where(investigations.c.id == job_id).values(state=DROPPED))


def spend(connection: Connection, job_id: str, tokens: int, cost_usd: float) -> None:
    """Note what a running investigation has used so far."""
    row = update(investigations).where(investigations.c.id == job_id)
    connection.execute(row.values(tokens=tokens, cost_usd=cost_usd))


def end(connection: Connection, found: Investigation) -> None:
    """Record an investigation's outcome."""
    spent = found.spent
    connection.execute(
        update(investigations)
        .where(investigations.c.id == found.id)
        .values(
            state=found.stop.value,
            basis=found.basis,
            ended_us=found.ended_us,
            tokens=spent.input_tokens + spent.output_tokens,
            cost_usd=spent.cost_usd,
            body=dump_investigation(found),
            joined=False,
        )
    )


def interrupted(connection: Connection, most_attempts: int) -> tuple[list[str], list[Job]]:
    """After a start: rows that ran when the last process ended. Those with attempts left wait again, from the beginning; returns
    their ids, and the rows that have none."""
    rows = connection.execute(select(*_JOB).where(investigations.c.state == RUNNING))
    jobs = [Job(**row) for row in rows.mappings()]
    again = [job.id for job in jobs if job.attempts < most_attempts]
    connection.execute(delete(transcripts).where(transcripts.c.investigation_id.in_(again)))
    connection.execute(
        update(investigations).where(investigations.c.id.in_(again)).values(state=QUEUED, started_us=None)
    )
    return again, [job for job in jobs if job.attempts >= most_attempts]


def unjoined(connection: Connection, limit: int) -> list[Investigation]:
    """Outcomes that no assessment says yet, oldest first."""
    bodies = connection.scalars(
        select(investigations.c.body)
        .where(investigations.c.body.is_not(None), investigations.c.joined.is_(False))
        .order_by(investigations.c.ended_us)
        .limit(limit)
    )
    return [load_investigation(body) for body in bodies if body is not None]


def joined(connection: Connection, ids: Sequence[str]) -> None:
    """Note that assessments say what these found."""
    connection.execute(update(investigations).where(investigations.c.id.in_(ids)).values(joined=True))


def latest(connection: Connection, incident_ids: Sequence[str]) -> dict[str, Investigation]:
    """The last outcome for each incident that has one."""
    rows = connection.execute(
        select(investigations.c.incident_id, investigations.c.body)
        .where(investigations.c.incident_id.in_(incident_ids), investigations.c.body.is_not(None))
        .order_by(investigations.c.ended_us)
    )
    return {row.incident_id: load_investigation(row.body) for row in rows}


@dataclass(frozen=True, slots=True)
class HourlyUse:
    """What investigations that started within an hour have used."""

    tokens: int
    cost_usd: float


def used_since(connection: Connection, since_us: int, *, node: str = "", namespace: str = "") -> HourlyUse:
    """What was used since a time; of one node or namespace where named."""
    row = select(func.sum(investigations.c.tokens), func.sum(investigations.c.cost_usd)).where(
        investigations.c.started_us >= since_us
    )
    if node:
        row = row.where(investigations.c.node == node)
    if namespace:
        row = row.where(investigations.c.namespace == namespace)
    tokens, cost = connection.execute(row).one()
    return HourlyUse(int(tokens or 0), float(cost or 0.0))


def get(
    connection: Connection, investigation_id: str
) -> tuple[Job, Investigation | None, list[TranscriptEntry]] | None:
    """One investigation with its transcript."""
    row = (
        connection.execute(select(investigations).where(investigations.c.id == investigation_id))
        .mappings()
        .one_or_none()
    )
    if row is None:
        return None
    entries = connection.execute(
        select(transcripts).where(transcripts.c.investigation_id == investigation_id).order_by(transcripts.c.number)
    )
    job = Job(**{name: row[name] for name in Job.__dataclass_fields__})
    body = row["body"]
    return job, None if body is None else load_investigation(body), [_entry(entry) for entry in entries.mappings()]


def record(connection: Connection, investigation_id: str, first: int, entries: Iterable[TranscriptEntry]) -> None:
    """Append to a transcript; `first` is the number of entries before. What is there already stays."""
    rows = [
        {"investigation_id": investigation_id, "number": first + position}
        | {name: getattr(entry, name) for name in TranscriptEntry.__dataclass_fields__}
        for position, entry in enumerate(entries)
    ]
    if rows:
        connection.execute(insert(transcripts).on_conflict_do_nothing(), rows)


def _entry(row: RowMapping) -> TranscriptEntry:
    return TranscriptEntry(**{name: row[name] for name in TranscriptEntry.__dataclass_fields__})
