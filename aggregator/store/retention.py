"""Keeps the database within its age and size, in bites small enough that nobody waits for them.

What a kept assessment cites is kept. Incidents that are open are kept however old; resolved ones go with their assessments
once they are past the age, and free what they cited.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import structlog
from sqlalchemy import Connection, and_, delete, exists, select

from aggregator.store import Store
from aggregator.store.schema import (
    actions,
    assessments,
    audit,
    citations,
    deliveries,
    evidence,
    incident_nodes,
    incidents,
    investigations,
    positions,
    quarantine,
    transcripts,
)

BITE_ROWS = 500  # in one transaction: some 10 ms of the writer's time
PAUSE_SECONDS = 0.05  # between bites
SWEEP_SECONDS = 300.0
MAX_QUARANTINED = 10_000  # records
VACUUM_PAGES = 1000  # given back to the file system in one bite

log = structlog.get_logger(__name__)


async def trim(store: Store, retention_days: int, retention_bytes: int) -> None:
    """Sweep now and then, until cancelled."""
    while True:
        before_us = time.time_ns() // 1000 - retention_days * 86_400_000_000
        await sweep(store, before_us, retention_bytes)
        await asyncio.sleep(SWEEP_SECONDS)


async def sweep(store: Store, before_us: int, max_bytes: int) -> None:
    """Delete what was stored before the time, then the oldest evidence until the rest fits; give the space back."""
    await _until_nothing_left(store, partial(_delete_incidents, before_us=before_us))
    await store.write(partial(_delete_small, before_us=before_us))
    deleted = await _delete_evidence(store, before_us)
    while (size := await store.read(used_bytes)) > max_bytes:
        freed = await _delete_evidence(store, time.time_ns() // 1000, at_most=BITE_ROWS)
        if not freed:
            log.warning(
                "store_over_size", bytes=size, limit=max_bytes, reason="what is left is cited by kept assessments"
            )
            break
        deleted += freed
    if deleted:
        log.info("evidence_trimmed", rows=deleted)
    await _until_nothing_left(store, _vacuum)


async def _until_nothing_left(store: Store, bite: Callable[[Connection], int]) -> None:
    """Repeat a bite, with a pause for others in between, until it finds nothing."""
    while await store.write(bite):  # noqa: ASYNC110 - it waits for others' turns, not for an event
        await asyncio.sleep(PAUSE_SECONDS)


async def _delete_evidence(store: Store, before_us: int, at_most: int | None = None) -> int:
    """Walk evidence from the oldest on, bite by bite, and delete what no assessment cites."""
    walked, deleted = 0, 0
    while at_most is None or deleted < at_most:
        walked, count = await store.write(partial(_bite_evidence, after_id=walked, before_us=before_us))
        deleted += count
        if not walked:
            break
        await asyncio.sleep(PAUSE_SECONDS)
    return deleted


def _bite_evidence(connection: Connection, after_id: int, before_us: int) -> tuple[int, int]:
    """Look at the next rows; return the last id looked at, 0 at the end, and how many rows went."""
    cited = exists().where(
        and_(
            citations.c.node == evidence.c.node,
            citations.c.source == evidence.c.source,
            citations.c.epoch == evidence.c.epoch,
            citations.c.seq == evidence.c.seq,
        )
    )
    rows = connection.execute(
        select(evidence.c.id, cited.label("cited"))
        .where(evidence.c.id > after_id, evidence.c.stored_us < before_us)
        .order_by(evidence.c.id)
        .limit(BITE_ROWS)
    ).all()
    if not rows:
        return 0, 0
    doomed = [row.id for row in rows if not row.cited]
    connection.execute(delete(evidence).where(evidence.c.id.in_(doomed)))
    return rows[-1].id, len(doomed)


def _delete_incidents(connection: Connection, before_us: int) -> int:
    """Delete some resolved incidents with all that belongs to them; return how many."""
    old = (
        select(incidents.c.id)
        .where(incidents.c.state == "resolved", incidents.c.updated_us < before_us)
        .limit(BITE_ROWS)
    )
    ids = list(connection.scalars(old))
    judged = select(assessments.c.id).where(assessments.c.incident_id.in_(ids))
    connection.execute(delete(citations).where(citations.c.assessment_id.in_(judged)))
    connection.execute(delete(assessments).where(assessments.c.incident_id.in_(ids)))
    connection.execute(delete(incident_nodes).where(incident_nodes.c.incident_id.in_(ids)))
    looked = select(investigations.c.id).where(investigations.c.incident_id.in_(ids))
    connection.execute(delete(transcripts).where(transcripts.c.investigation_id.in_(looked)))
    for table in (investigations, deliveries, audit, actions):
        connection.execute(delete(table).where(table.c.incident_id.in_(ids)))
    connection.execute(delete(incidents).where(incidents.c.id.in_(ids)))
    return len(ids)


def _delete_small(connection: Connection, before_us: int) -> None:
    """Old quarantine and positions of logs that have not moved for as long: an agent that still had one sends it again."""
    newest = select(quarantine.c.id).order_by(quarantine.c.id.desc()).offset(MAX_QUARANTINED).limit(1)
    overflow = connection.scalar(newest) or 0
    connection.execute(delete(quarantine).where((quarantine.c.stored_us < before_us) | (quarantine.c.id <= overflow)))
    connection.execute(delete(positions).where(positions.c.updated_us < before_us))


def used_bytes(connection: Connection) -> int:
    """Bytes of the database that hold something."""
    pragmas = ("page_count", "freelist_count", "page_size")
    pages, free, size = (connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in pragmas)
    used: int = (pages - free) * size
    return used


def _vacuum(connection: Connection) -> int:
    """Give some free pages back; return how many are left."""
    cursor = connection.connection.cursor()
    for _ in range(VACUUM_PAGES):
        cursor.execute(
            "PRAGMA incremental_vacuum(1)"
        )  # sqlite3 takes one step of it, which is one page, whatever the number
    left: int = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
    return left
