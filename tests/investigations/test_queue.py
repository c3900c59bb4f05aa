"""What is judged is looked into once, in order, within bounds, and always ends; a crash repeats a look once and never resumes it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from aggregator.investigator.policy import HourlyBudget
from aggregator.investigator.queue import Outcome, Queue, Report, Rules
from aggregator.model import (
    Assessment,
    Claim,
    ClaimRole,
    Incident,
    Investigation,
    Opinion,
    Spent,
    StopReason,
    Support,
    Trust,
)
from aggregator.store import investigations
from aggregator.store.arrivals import Delivery, Record
from aggregator.store.investigations import Job
from protos.v1 import evidence_pb2
from tests.bench.load import kernel_line
from tests.pipeline.test_pipeline import FALLEN_OFF, Host, Notebook, running

DIFFERENT = (48, 62, 79, 95, 119)
BUDGET = HourlyBudget(tokens=0, cost_usd=0.0)


class Counted:
    """Where figures go."""

    def __init__(self) -> None:
        self.ended: list[Investigation] = []

    def investigations_waiting(self, count: int) -> None:
        self.waiting = count

    def investigated(self, found: Investigation) -> None:
        self.ended.append(found)

    def tool_called(self, tool: str, outcome: str) -> None:
        raise AssertionError("a run that is scripted here asks no tool")


@dataclass
class Investigator:
    """A run that answers as it is told, and remembers who was looked into."""

    stop: StopReason = StopReason.COMPLETED
    transient: bool = False
    seconds: float = 0.0
    tokens: int = 0
    go: asyncio.Event | None = None  # what it waits for before it answers
    seen: list[str] = field(default_factory=list)
    side_by_side: int = 0
    most: int = 0

    def seen_more_than(self, count: int) -> bool:
        return len(self.seen) > count

    async def __call__(self, job: Job, incident: Incident, assessment: Assessment, report: Report) -> Outcome:
        self.seen.append(incident.subject.node)
        self.side_by_side += 1
        self.most = max(self.most, self.side_by_side)
        try:
            await asyncio.sleep(self.seconds)
            if self.go is not None:
                await self.go.wait()
        finally:
            self.side_by_side -= 1
        verdict, now_us = assessment.verdict, time.time_ns() // 1000
        quote = Support("e1", incident.signals[0].raw, Trust.HARDWARE, incident.signals[0].id)
        claim = Claim(ClaimRole.ROOT_CAUSE, "The GPU left the bus.", (quote,))
        opinion = Opinion(verdict.severity, verdict.fault_class, verdict.action, verdict.resolutions, 0.9, (claim,))
        found = Investigation(
            job.id,
            incident.id,
            job.basis,
            self.stop,
            "" if self.stop is StopReason.COMPLETED else "overloaded: try later",
            "claude-test",
            now_us,
            now_us,
            opinion if self.stop is StopReason.COMPLETED else None,
            spent=Spent(1, 0, self.tokens, 0, 0, 0.0),
        )
        return Outcome(found, self.transient)


@contextlib.asynccontextmanager
async def looking(
    database: Path, run: Investigator, *, at_once: int = 2, cooldown: int = 3600, budget: HourlyBudget = BUDGET
) -> AsyncIterator[tuple[Host, Queue, Counted, Notebook]]:
    notebook, counts = Notebook(), Counted()
    async with running(database, notebook) as host:
        rules = Rules("auto", at_once, cooldown, budget, quiet_seconds=0.1)
        queue = Queue(host.store, run, rules, counts, host.pipeline.join_outcomes)
        host.pipeline.on_judged, host.pipeline.on_saved = queue.note, queue.wake
        task = asyncio.create_task(queue.work())
        try:
            yield host, queue, counts, notebook
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(condition, seconds: float = 10.0) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.02)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "sentinel.db"


async def test_a_verdict_is_published_at_once_and_revised_once_by_what_was_found(database: Path) -> None:
    go = asyncio.Event()
    run = Investigator(go=go)
    async with looking(database, run) as (host, _, counts, notebook):
        await host.deliver(1, FALLEN_OFF.format(bus="3a"))
        await until(lambda: notebook.seen)
        assert not counts.ended  # rules have spoken, and waited for nobody
        go.set()
        await until(lambda: counts.ended and len(notebook.seen) > 1)
        await host.settled()
        await asyncio.sleep(0.5)
        ((_, assessment),) = await host.incidents()
    assert assessment is not None
    assert (assessment.origin, assessment.model, len(run.seen)) == ("llm", "claude-test", 1)
    assert assessment.investigation_id == counts.ended[0].id
    assert [revision for _, _, revision in notebook.seen] == [1, 2]


async def test_no_more_run_side_by_side_than_is_allowed_and_each_incident_once(database: Path) -> None:
    run = Investigator(seconds=0.1)
    async with looking(database, run, at_once=2) as (host, _, counts, _):
        for code in DIFFERENT:  # the same fault on several nodes would be one incident across them
            await host.deliver(
                1, f"NVRM: Xid (PCI:0000:3a:00): {code}, pid=1, name=train, what it says", node=f"gpu-{code}"
            )
        await until(lambda: len(counts.ended) == len(DIFFERENT))
    assert run.most == 2
    assert sorted(run.seen) == sorted(f"gpu-{code}" for code in DIFFERENT)


async def test_what_fails_for_a_while_is_tried_again_later_and_says_so_meanwhile(database: Path) -> None:
    run = Investigator(stop=StopReason.DEGRADED, transient=True)
    async with looking(database, run) as (host, _, counts, _):
        await host.deliver(1, FALLEN_OFF.format(bus="3a"))
        await until(lambda: counts.ended)
        await asyncio.sleep(0.3)
        await host.settled()
        ((_, assessment),) = await host.incidents()
        due_us = await host.store.read(investigations.next_due_us)
    assert assessment is not None
    assert (assessment.origin, assessment.degraded_reason) == ("rules", "overloaded: try later")
    assert due_us is not None
    assert 20 < due_us / 1e6 - time.time() < 31


async def test_a_run_that_breaks_ends_as_the_rules_verdict(database: Path) -> None:
    class Breaking(Investigator):
        async def __call__(self, job: Job, incident: Incident, assessment: Assessment, report: Report) -> Outcome:
            raise RuntimeError("a bug")

    async with looking(database, Breaking()) as (host, _, counts, _):
        await host.deliver(1, FALLEN_OFF.format(bus="3a"))
        await until(lambda: counts.ended)
        await asyncio.sleep(0.3)
        ((_, assessment),) = await host.incidents()
    assert counts.ended[0].stop is StopReason.DEGRADED
    assert assessment is not None
    assert assessment.degraded_reason.startswith("internal")


async def test_an_empty_budget_waits_and_says_so_once(database: Path) -> None:
    run = Investigator(tokens=1000)
    budget = HourlyBudget(tokens=1000, cost_usd=0.0)
    async with looking(database, run, budget=budget, at_once=1) as (host, _, counts, _):
        await host.deliver(1, FALLEN_OFF.format(bus="3a"))
        await until(lambda: counts.ended)
        await host.deliver(1, FALLEN_OFF.format(bus="3a"), node="gpu-2")
        await until(lambda: len(counts.ended) == 2)
        await asyncio.sleep(0.3)
    assert run.seen == ["gpu-1"]
    assert counts.ended[1].reason == "budget: the hour's budget is used up"


async def test_what_is_spent_on_a_tenant_s_fault_counts_against_its_namespace(database: Path) -> None:
    """Named by who held the GPU: the agent's evidence says so, and the reader keeps it as `namespace/pod`."""
    async with looking(database, Investigator()) as (host, _, counts, _):
        fact = evidence_pb2.Evidence.FromString(kernel_line("gpu-1", "boot", 1, FALLEN_OFF.format(bus="3a")))
        fact.workloads.add(namespace="team-a", pod="train-0")
        await (await host.pipeline.receive(Delivery("gpu-1", "spool", (Record(1, fact.SerializeToString()),))))
        await until(lambda: counts.ended)
        found = await host.store.read(partial(investigations.get, investigation_id=counts.ended[0].id))
    assert found is not None
    assert found[0].namespace == "team-a"


async def test_a_crash_begins_a_look_anew_once_and_then_gives_up(database: Path) -> None:
    slow = Investigator(seconds=60)
    for _ in range(2):
        async with looking(database, slow) as (host, _, counts, _):
            if not slow.seen:
                await host.deliver(1, FALLEN_OFF.format(bus="3a"))
            await until(partial(slow.seen_more_than, len(slow.seen)))
        # cancelled: nothing of it is written down, as after kill -9
    async with looking(database, slow) as (host, _, counts, _):
        await until(lambda: counts.ended)
    assert len(slow.seen) == 2
    assert counts.ended[0].reason.startswith("interrupted")


async def test_what_was_found_before_a_crash_is_joined_after_it(database: Path) -> None:
    run = Investigator()
    async with looking(database, run) as (host, queue, counts, notebook):
        queue._ended = lambda: None  # the process ends between the two
        await host.deliver(1, FALLEN_OFF.format(bus="3a"))
        await until(lambda: counts.ended)
    async with looking(database, run) as (host, _, counts, notebook):
        await until(lambda: any(revision == 2 for _, _, revision in notebook.seen))
    assert len(run.seen) == 1


async def test_a_person_goes_first_and_reads_how_it_goes(database: Path) -> None:
    run = Investigator(seconds=0.2)
    async with looking(database, run) as (host, queue, _, notebook):
        await host.deliver(1, FALLEN_OFF.format(bus="3a"))
        await until(lambda: notebook.seen)
        ((incident, assessment),) = await host.incidents()
        assert assessment is not None
        asked = await queue.ask(incident, assessment, "ada")
        steps = [step async for step in queue.follow(asked)]
        found = await host.store.read(partial(investigations.get, investigation_id=asked))
    assert steps[-1].ended
    assert found is not None
    assert (found[0].asked_by, found[0].state) == ("ada", "completed")
