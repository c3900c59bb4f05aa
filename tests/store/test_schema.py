"""The tables that migrations make are the tables that statements use; nouns come back as they went in; copies are whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from aggregator.model import (
    Action,
    Assessment,
    FaultClass,
    Incident,
    IncidentState,
    Phase,
    Resolution,
    Severity,
    Signal,
    Subject,
    Trust,
    Verdict,
)
from aggregator.pipeline import read_record
from aggregator.store import Store, StoreUnusable, queries
from aggregator.store.arrivals import committed_offsets
from aggregator.store.backup import backup
from aggregator.store.queries import EvidenceFilter
from aggregator.store.schema import metadata
from aggregator.store.serial import dump_assessment, dump_incident, load_assessment, load_incident
from tests.store.conftest import NODE, lines

SIGNAL = Signal(
    "n/kmsg/b/1#2",
    "xid",
    code=79,
    node="n",
    pci="0000:3a:00.0",
    mig="1/0",
    at_us=5,
    raw="NVRM: \u2028 \x00 \U0001f525",
    phase=Phase.BEGAN,
    trust=Trust.TENANT,
    attributes={"a": "text", "b": 7, "c": 0.5, "d": True, "e": None},
    simulated=True,
)
INCIDENT = Incident(
    "i",
    Subject("gpu", "n", "p", "u"),
    ("n", "m"),
    (SIGNAL,),
    IncidentState.RESOLVED,
    1,
    2,
    3,
    "quiet",
    True,
    9,
    "driver",
)
VERDICT = Verdict(
    Severity.CRITICAL,
    FaultClass.PCIE,
    Action.DRAIN,
    (Resolution.REBOOT, Resolution.RMA),
    "cause",
    "summary",
    0.9,
    ("n/kmsg/b/1#2",),
    ("rule",),
    do_not=("reset",),
)


async def test_migrations_make_the_tables_that_statements_use(store: Store) -> None:
    def differences(connection: Connection) -> list[object]:
        found: list[object] = compare_metadata(MigrationContext.configure(connection), metadata)
        return found

    assert await store.read(differences) == []


def test_an_incident_comes_back_as_it_went_in() -> None:
    assert load_incident(dump_incident(INCIDENT)) == INCIDENT


def test_an_assessment_comes_back_as_it_went_in() -> None:
    assessment = Assessment("i/1", "i", "n", 1, 4, VERDICT, "rules", "why")
    assert load_assessment(dump_assessment(assessment)) == assessment


def test_a_field_of_a_later_version_is_no_obstacle() -> None:
    newer = dump_incident(INCIDENT).replace(b'{"id"', b'{"later":1,"id"', 1)
    assert load_incident(newer) == INCIDENT


async def test_a_backup_is_whole_and_an_older_one_may_be_restored(
    store: Store, database: Path, tmp_path: Path, reopen: Callable[[], Store]
) -> None:
    """A copy made while writing goes on opens, holds what was stored, and its position tells an agent where to send from."""
    await (await store.append(lines(1, 1000)))
    more = [await store.append(lines(first, 50)) for first in range(1001, 3001, 50)]
    copy = tmp_path / "copies" / "backup.db"
    assert await asyncio.to_thread(backup, database, copy) > 0
    await asyncio.gather(*more)
    await store.close()
    restored = Store(copy, read_record)
    position = (await restored.read(partial(committed_offsets, node=NODE, spool_ids=["spool-a"])))["spool-a"]
    rows = await restored.read(partial(queries.list_evidence, wanted=EvidenceFilter(), after_id=0, limit=5000))
    assert 1000 <= position == len(rows) <= 3000
    assert restored.store_id == store.store_id
    await (await restored.append(lines(position + 1, 3001 - position)))
    await restored.close()


async def test_a_backup_replaces_nothing(store: Store, database: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    with pytest.raises(StoreUnusable, match="exists"):
        await asyncio.to_thread(backup, database, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"


def test_a_backup_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match="does not exist"):
        backup(tmp_path / "none.db", tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()
