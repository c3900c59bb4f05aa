"""Committed evidence becomes published assessments, once each, whatever dies in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import func, select

from aggregator import rules
from aggregator.correlator import Windows
from aggregator.model import Assessment, Incident
from aggregator.outputs import Output
from aggregator.outputs.metrics import Metrics
from aggregator.pipeline import Pipeline, read_record
from aggregator.rules.context import EMPTY
from aggregator.store import Store, queries, verdicts
from aggregator.store.arrivals import Delivery, Record
from aggregator.store.schema import outbox
from tests.bench.load import kernel_line

FALLEN_OFF = "NVRM: Xid (PCI:0000:{bus}:00): 79, pid=1234, name=train, GPU has fallen off the bus."


class Notebook:
    """An output that remembers."""

    name = "notebook"

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int | None]] = []

    def publish(self, incident: Incident, assessment: Assessment | None, change: str) -> None:
        self.seen.append((incident.id, change, assessment.revision if assessment else None))


class Broken:
    """An output that fails."""

    name = "broken"

    def publish(self, incident: Incident, assessment: Assessment | None, change: str) -> None:
        raise RuntimeError("the webhook is down")


class Host:
    """A pipeline with its store, without a server."""

    def __init__(self, database: Path, outputs: list[Output], context: rules.Context = EMPTY) -> None:
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry, "test")
        self.store = Store(database, read_record)
        self.pipeline = Pipeline(self.store, [metrics, *outputs], metrics, Windows(), context)

    async def deliver(self, first: int, *texts: str, node: str = "gpu-1", replayed: bool = False) -> None:
        """Kernel lines, numbered from `first`, stored and confirmed."""
        records = tuple(
            Record(number, kernel_line(node, "boot", number, text), replayed=replayed)
            for number, text in enumerate(texts, first)
        )
        await (await self.pipeline.receive(Delivery(node, "spool", records)))

    async def incidents(self) -> list[tuple[Incident, Assessment | None]]:
        return await self.store.read(partial(queries.list_incidents, include_resolved=True))

    async def settled(self) -> None:
        """Return once all that is stored has been correlated and published."""
        async with asyncio.timeout(10):
            while True:
                cursor, _ = await self.store.read(partial(verdicts.restore, resolved_since_us=0))
                waiting = await self.store.read(
                    lambda connection: connection.scalar(select(func.count()).select_from(outbox))
                )
                rows, _ = await self.store.read(partial(queries.unread_signals, after_id=cursor, limit=1))
                if not waiting and not rows:
                    return
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(database: Path, *outputs: Output, context: rules.Context = EMPTY) -> AsyncIterator[Host]:
    host = Host(database, list(outputs), context)
    task = asyncio.create_task(host.pipeline.run())
    try:
        yield host
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await host.store.close()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "sentinel.db"


async def test_a_fault_is_published_with_its_citation(database: Path) -> None:
    notebook = Notebook()
    async with running(database, notebook) as host:
        await host.deliver(1, "nvidia-nvlink: harmless", FALLEN_OFF.format(bus="3a"))
        await host.settled()
        ((incident, assessment),) = await host.incidents()
        assert assessment is not None
        assert "gpu-1/kmsg/boot/2" in [citation.partition("#")[0] for citation in assessment.verdict.citations]
        assert notebook.seen[0] == (incident.id, "opened", 1)
        active = {"node": "gpu-1", "gpu": "0000:3a:00.0", "kind": "xid", "severity": "critical"}
        samples = [s for m in host.registry.collect() for s in m.samples if s.name == "sentinel_assessment_active"]
        assert active.items() <= samples[0].labels.items()


async def test_a_site_s_rules_decide_what_is_a_fault_and_how_it_is_judged(database: Path) -> None:
    catalog = rules.load(b"[xid.31]\nseverity = 'ok'\n[xid.45]\nrecurrence_advice = 'Ask the site.'\n")
    async with running(database, context=rules.Context(catalog=catalog)) as host:
        await host.deliver(
            1,
            "NVRM: Xid (PCI:0000:3a:00): 31, pid=1, name=a, MMU Fault",
            "NVRM: Xid (PCI:0000:4a:00): 45, pid=1, name=a, Ch 00000010",
        )
        await host.settled()
        ((incident, assessment),) = await host.incidents()
        assert assessment is not None
        assert incident.subject.pci == "0000:4a:00.0"
        assert assessment.verdict.recurrence_advice == "Ask the site."
        assert assessment.verdict.rules_version == rules.rules_version(catalog) != rules.VERSION


async def test_an_output_that_fails_fails_alone(database: Path) -> None:
    notebook = Notebook()
    async with running(database, Broken(), notebook) as host:
        await host.deliver(1, FALLEN_OFF.format(bus="3a"))
        await host.settled()
        await host.deliver(2, FALLEN_OFF.format(bus="4a"))
        await host.settled()
    assert len(notebook.seen) >= 2


async def test_a_restart_repeats_nothing(database: Path) -> None:
    first, second = Notebook(), Notebook()
    async with running(database, first) as host:
        await host.deliver(1, FALLEN_OFF.format(bus="3a"))
        await host.settled()
        before = await host.incidents()
    async with running(database, second) as host:
        await host.settled()
        await asyncio.sleep(0.2)
        assert await host.incidents() == before
        active = [s.value for m in host.registry.collect() for s in m.samples if s.name == "sentinel_assessment_active"]
        assert active == [1.0]  # what is open is shown again, and counted no second time
        totals = [s.value for m in host.registry.collect() for s in m.samples if s.name == "sentinel_assessment_total"]
        assert sum(totals) == 0
    assert first.seen
    assert second.seen == []


async def test_a_restart_loses_nothing(database: Path) -> None:
    """Evidence that was committed and not yet correlated is correlated by the next run."""
    host = Host(database, [])
    await host.deliver(1, FALLEN_OFF.format(bus="3a"))
    await host.store.close()  # the pipeline never ran
    notebook = Notebook()
    async with running(database, notebook) as host:
        await host.settled()
        assert len(await host.incidents()) == 1
    assert [change for _, change, _ in notebook.seen][:1] == ["opened"]


async def test_what_was_committed_and_not_published_is_published_next_time(database: Path) -> None:
    """The process dies between the commit and the outputs: the outbox brings it back."""
    host = Host(database, [])
    await host.deliver(1, FALLEN_OFF.format(bus="3a"))
    concluded = await host.store.read(host.pipeline._correlate_and_judge)
    await host.pipeline._commit(concluded)
    await host.store.close()
    notebook = Notebook()
    async with running(database, notebook) as host:
        await host.settled()
    assert [(change, revision) for _, change, revision in notebook.seen] == [("opened", 1)]


async def test_replayed_facts_rebuild_incidents_quietly(database: Path, tmp_path: Path) -> None:
    """A new store gets the facts again: the same incident under the same id, shown and not announced."""
    async with running(database) as host:
        await host.deliver(1, FALLEN_OFF.format(bus="3a"))
        await host.settled()
        ((original, _),) = await host.incidents()
    async with running(tmp_path / "new.db") as host:
        await host.deliver(1, FALLEN_OFF.format(bus="3a"), replayed=True)
        await host.settled()
        ((rebuilt, assessment),) = await host.incidents()
        totals = [s.value for m in host.registry.collect() for s in m.samples if s.name == "sentinel_assessment_total"]
        assert sum(totals) == 0
    assert assessment is not None
    assert rebuilt.id == original.id
    assert rebuilt.quiet


async def test_many_signals_are_taken_in_bounded_steps(database: Path) -> None:
    """More than one step's worth, on many nodes: each node gets its incident, and the loop stays free meanwhile."""
    async with running(database) as host:
        worst = 0.0

        async def watch_the_loop() -> None:
            nonlocal worst
            while True:
                began = asyncio.get_running_loop().time()
                await asyncio.sleep(0.01)
                worst = max(worst, asyncio.get_running_loop().time() - began)

        watching = asyncio.create_task(watch_the_loop())
        for number in range(1200):
            await host.deliver(1, FALLEN_OFF.format(bus="3a"), node=f"gpu-{number}")
        async with asyncio.timeout(60):
            while not await host.store.read(partial(queries.list_incidents, node="gpu-1199")):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await host.settled()
        watching.cancel()
        on_nodes = await host.store.read(partial(queries.open_incident_counts, names=[f"gpu-{n}" for n in range(1200)]))
        assert len(on_nodes) == 1200
        assert worst < 2.0


async def test_evidence_without_meaning_moves_the_cursor(database: Path) -> None:
    async with running(database) as host:
        await host.deliver(1, *(f"nvidia-nvlink: harmless {n}" for n in range(10_500)))
        async with asyncio.timeout(10):
            while (await host.store.read(partial(verdicts.restore, resolved_since_us=0)))[0] < 10_500:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await host.incidents() == []
