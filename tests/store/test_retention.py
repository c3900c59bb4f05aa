"""The store stays within its age and size, in bites, and keeps what a kept assessment cites."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, select, update

from aggregator.model import (
    Action,
    Assessment,
    FaultClass,
    Incident,
    IncidentState,
    Severity,
    Subject,
    Verdict,
)
from aggregator.store import Store, investigations, queries, verdicts
from aggregator.store.arrivals import committed_offsets
from aggregator.store.investigations import TranscriptEntry, Wanted
from aggregator.store.queries import EvidenceFilter
from aggregator.store.retention import sweep, used_bytes
from aggregator.store.schema import evidence, transcripts
from aggregator.store.verdicts import Judgement, save_step
from protos.v1 import evidence_pb2
from tests.store.conftest import BOOT, NODE, lines

NOW_US = time.time_ns() // 1000
DAY_US = 86_400_000_000
NO_LIMIT = 2**40


def judgement(name: str, cited: int, *, state: IncidentState, updated_us: int) -> Judgement:
    """An incident about one kernel line."""
    verdict = Verdict(
        severity=Severity.WARNING,
        fault_class=FaultClass.UNKNOWN,
        action=Action.NONE,
        resolutions=(),
        root_cause="",
        summary="",
        confidence=0.5,
        citations=(f"{NODE}/kmsg/{BOOT}/{cited}", f"{NODE}/kmsg/{BOOT}/{cited + 1}#2"),
        rule_ids=(),
    )
    incident = Incident(name, Subject("node", NODE), (NODE,), (), state, updated_us, updated_us)
    return Judgement(incident, Assessment(f"{name}/1", name, NODE, 1, updated_us, verdict), "opened")


async def seqs(store: Store) -> list[int]:
    rows = await store.read(partial(queries.list_evidence, wanted=EvidenceFilter(), after_id=0, limit=10_000))
    return [evidence_pb2.Evidence.FromString(row.payload).seq for row in rows]


def age(connection: Connection, up_to_seq: int, stored_us: int) -> None:
    connection.execute(update(evidence).where(evidence.c.seq <= up_to_seq).values(stored_us=stored_us))


async def test_old_evidence_goes_unless_a_kept_assessment_cites_it(store: Store) -> None:
    await (await store.append(lines(1, 1500)))
    await store.write(partial(age, up_to_seq=1200, stored_us=NOW_US - 40 * DAY_US))
    kept = judgement("open", 700, state=IncidentState.OPEN, updated_us=NOW_US - 40 * DAY_US)
    recent = judgement("recent", 900, state=IncidentState.RESOLVED, updated_us=NOW_US - DAY_US)
    gone = judgement("old", 100, state=IncidentState.RESOLVED, updated_us=NOW_US - 40 * DAY_US)
    await store.write(partial(save_step, cursor=0, judgements=[kept, recent, gone], now_us=NOW_US))
    await sweep(store, NOW_US - 30 * DAY_US, NO_LIMIT)
    assert await seqs(store) == [700, 701, 900, 901, *range(1201, 1501)]
    left = await store.read(partial(queries.list_incidents, include_resolved=True))
    assert sorted(incident.id for incident, _ in left) == ["open", "recent"]
    assert sorted(a.id for a in await store.read(queries.list_assessments)) == ["open/1", "recent/1"]


async def test_an_investigation_goes_with_its_incident_and_so_does_its_transcript(store: Store) -> None:
    kept = judgement("open", 1, state=IncidentState.OPEN, updated_us=NOW_US - 40 * DAY_US)
    gone = judgement("old", 1, state=IncidentState.RESOLVED, updated_us=NOW_US - 40 * DAY_US)
    await store.write(partial(save_step, cursor=0, judgements=[kept, gone], now_us=NOW_US))
    ids = {}
    for name in ("open", "old"):
        wanted = Wanted(name, NODE, "", 10, "basis")
        ids[name] = await store.write(partial(investigations.want, wanted=wanted, now_us=NOW_US, cooldown_us=0))
        entry = TranscriptEntry(NOW_US, 0, "note", "looked")
        await store.write(partial(investigations.record, investigation_id=ids[name], first=0, entries=[entry]))
    await sweep(store, NOW_US - 30 * DAY_US, NO_LIMIT)
    found = await store.read(partial(investigations.get, investigation_id=ids["open"]))
    assert found is not None
    assert [entry.text for entry in found[2]] == ["looked"]
    assert await store.read(partial(investigations.get, investigation_id=ids["old"])) is None
    left = await store.read(lambda connection: list(connection.scalars(select(transcripts.c.investigation_id))))
    assert left == [ids["open"]]


async def test_the_oldest_goes_first_when_the_size_is_reached(store: Store) -> None:
    await (await store.append(lines(1, 4000, text="x" * 1000)))
    await store.write(
        partial(save_step, cursor=0, judgements=[judgement("o", 5, state=IncidentState.OPEN, updated_us=1)], now_us=1)
    )
    before = await store.read(used_bytes)
    await sweep(store, 0, before * 9 // 10)
    left = await seqs(store)
    assert await store.read(used_bytes) <= before * 9 // 10
    assert left[:2] == [5, 6]
    assert left[-1] == 4000
    assert left[2:] == list(range(left[2], 4001))


async def test_space_is_given_back_to_the_file_system(store: Store, database: Path) -> None:
    await (await store.append(lines(1, 3000, text="x" * 1000)))
    await store.write(partial(age, up_to_seq=3000, stored_us=1))
    before = await asyncio.to_thread(size_on_disk, database)
    await sweep(store, 2, NO_LIMIT)
    assert await asyncio.to_thread(size_on_disk, database) < before / 4


def size_on_disk(database: Path) -> int:
    """Bytes of the file once the write-ahead log is in it."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database.stat().st_size


async def test_deleting_goes_on_beside_writing(store: Store) -> None:
    """Arrivals get their turn between bites."""
    await (await store.append(lines(1, 3000)))
    await store.write(partial(age, up_to_seq=3000, stored_us=1))
    sweeping = asyncio.create_task(sweep(store, 2, NO_LIMIT))
    last = 3000
    while not sweeping.done():
        last += 1
        await (await store.append(lines(last, 1)))
    await sweeping
    assert last > 3006  # more than one for each bite
    assert await seqs(store) == list(range(3001, last + 1))


async def test_positions_that_never_move_again_are_forgotten(store: Store) -> None:
    await (await store.append(lines(1, 3)))
    await sweep(store, 2**60, NO_LIMIT)
    assert await store.read(partial(committed_offsets, node=NODE, spool_ids=["spool-a"])) == {}


async def test_citations_of_other_forms_are_no_obstacle(store: Store) -> None:
    """An id from a pasted log, or one with slashes in its epoch, is saved or passed over, and raises nothing."""
    found = [
        verdicts.evidence_key(citation)
        for citation in ("line-7", "n/kmsg/b/12", "n/kmsg/b/12#3", "n/gap/a/b/c/9", "n/kmsg/b/x", "", "#1")
    ]
    assert [key and str(key) for key in found] == [
        None,
        "n/kmsg/b/12",
        "n/kmsg/b/12",
        "n/gap/a/b/c/9",
        None,
        None,
        None,
    ]
