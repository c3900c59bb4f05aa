"""Takes due investigations from the store, runs a few at a time, and puts down what each found. Durable: the store is the queue.

What is judged is noted in the judging transaction itself (`note`). A run that a crash cut off begins anew, once; half a
conversation is never taken up again. Whatever happens in a run, its row ends with an outcome.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog
from sqlalchemy import Connection

from aggregator.assessor import basis_of
from aggregator.investigator.policy import BY_HAND, HourlyBudget, Mode, over_budget, priority
from aggregator.model import Assessment, Incident, IncidentState, Investigation, Spent, StopReason
from aggregator.store import Store, investigations, queries
from aggregator.store.investigations import Job, Wanted
from aggregator.store.verdicts import Judgement

HOUR_US = 3_600_000_000
MAX_ATTEMPTS = 4
RETRY_SECONDS = (30, 120, 480)  # before the second, third and last attempt
BUDGET_PAUSE_US = 300_000_000
LOOK = 50  # rows that wait and are looked at, when some of them must not start yet
NOTHING = Spent()
MAX_FOLLOWED = 100  # progress messages that a slow reader may be behind

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a running investigation does."""

    investigation_id: str
    text: str
    tool: str = ""
    spent: Spent = NOTHING
    ended: bool = False


Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave. `transient`: it is worth another attempt."""

    investigation: Investigation
    transient: bool = False


Run = Callable[[Job, Incident, Assessment, Report], Awaitable[Outcome]]


class Counts(Protocol):
    """Where the queue's figures go."""

    def investigations_waiting(self, count: int) -> None:
        """Rows that wait."""
        ...

    def investigated(self, found: Investigation) -> None:
        """One has ended."""
        ...

    def tool_called(self, tool: str, outcome: str) -> None:
        """A source was asked."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """When and how much."""

    mode: Mode
    at_once: int  # runs side by side
    cooldown_seconds: int
    budget: HourlyBudget
    quiet_seconds: float = 5.0  # an incident is looked into once nothing was added for so long, 30 s at most


class Queue:
    """The queue and its workers."""

    def __init__(self, store: Store, run: Run, rules: Rules, counts: Counts, ended: Callable[[], None]) -> None:
        self._store = store
        self._run = run
        self._rules = rules
        self._counts = counts
        self._ended = ended  # tells the pipeline that an outcome waits to be joined
        self._wake = asyncio.Event()
        self._running: set[str] = set()
        self._followers: defaultdict[str, set[asyncio.Queue[Progress]]] = defaultdict(set)

    # --- what is wanted

    def note(self, connection: Connection, judgements: Sequence[Judgement], now_us: int) -> None:
        """Queue what was judged and is worth it. Part of the judging transaction, on the writer's thread; `wake` follows it."""
        for judgement in judgements:
            wanted = self._wanted(judgement.incident, judgement.assessment)
            if wanted is not None:
                self._want(connection, wanted, now_us)

    def wake(self) -> None:
        """What was noted is committed."""
        self._wake.set()

    def _wanted(self, incident: Incident, assessment: Assessment | None) -> Wanted | None:
        urgency = priority(incident, assessment, self._rules.mode) if assessment is not None else None
        if urgency is None or assessment is None:
            return None
        return _wanted(incident, assessment, urgency)

    def _want(self, connection: Connection, wanted: Wanted, now_us: int) -> str | None:
        return investigations.want(
            connection,
            wanted,
            now_us,
            cooldown_us=self._rules.cooldown_seconds * 1_000_000,
            quiet_us=round(self._rules.quiet_seconds * 1e6),
        )

    async def ask(self, incident: Incident, assessment: Assessment, person: str) -> str:
        """Queue an incident that a person asks about, ahead of all others; return the investigation's id."""
        wanted = _wanted(incident, assessment, BY_HAND, person)
        queued = await self._store.write(partial(self._want, wanted=wanted, now_us=_now_us()))
        self._wake.set()
        if queued is None:  # it runs already
            running = await self._store.read(partial(investigations.running, incident_id=incident.id))
            return await self.ask(incident, assessment, person) if running is None else running.id
        return queued

    async def follow(self, investigation_id: str) -> AsyncIterator[Progress]:
        """What an investigation does from now on, until it has ended."""
        progress: asyncio.Queue[Progress] = asyncio.Queue(MAX_FOLLOWED)
        self._followers[investigation_id].add(progress)
        try:
            found = await self._store.read(partial(investigations.get, investigation_id=investigation_id))
            if found is None or found[0].ended_us is not None:
                return
            while True:
                step = await progress.get()
                yield step
                if step.ended:
                    return
        finally:
            self._followers[investigation_id].discard(progress)
            if not self._followers[investigation_id]:
                del self._followers[investigation_id]

    # --- doing it

    async def work(self) -> None:
        """Run what is due, until cancelled."""
        await self._take_up()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                await self._start_due(group)
                self._counts.investigations_waiting(await self._store.read(investigations.waiting))
                await self._until_due()

    async def _take_up(self) -> None:
        """After a start: what a crash cut off begins anew, or, where that happened before, ends without a finding."""
        again, given_up = await self._store.write(partial(investigations.interrupted, most_attempts=2))
        for job in given_up:
            await self._end(job, Outcome(degraded(job, "interrupted: the aggregator ended while it ran, twice")))
        if again or given_up:
            log.warning("investigations_interrupted", again=len(again), given_up=len(given_up))

    async def _until_due(self) -> None:
        due_us = await self._store.read(investigations.next_due_us)
        full = len(self._running) >= self._rules.at_once
        timeout = None if due_us is None or full else max(0.1, (due_us - _now_us()) / 1e6)
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _start_due(self, group: asyncio.TaskGroup) -> None:
        if len(self._running) >= self._rules.at_once:
            return
        for job in await self._store.read(partial(investigations.due, now_us=_now_us(), limit=LOOK)):
            if len(self._running) >= self._rules.at_once:
                return
            if await self._may_start(job) and await self._store.write(
                partial(investigations.start, job_id=job.id, now_us=_now_us())
            ):
                self._running.add(job.id)
                group.create_task(self._run_one(job))

    async def _may_start(self, job: Job) -> bool:
        """Whether the hour's budget allows it; where it does not, the row waits, and the verdict says so once."""
        since_us = _now_us() - HOUR_US

        def used(connection: Connection) -> str:
            tenant = investigations.used_since(connection, since_us, namespace=job.namespace) if job.namespace else None
            return over_budget(
                job.priority,
                self._rules.budget,
                investigations.used_since(connection, since_us),
                investigations.used_since(connection, since_us, node=job.node),
                tenant,
            )

        reason = "" if job.priority == BY_HAND else await self._store.read(used)
        if not reason:
            return True
        later_us = _now_us() + BUDGET_PAUSE_US
        if job.attempts:
            await self._store.write(partial(investigations.postpone, job_id=job.id, due_us=later_us))
        else:
            await self._end(job, Outcome(degraded(job, f"budget: {reason}")), again_us=later_us)
        return False

    async def _run_one(self, job: Job) -> None:
        try:
            found = await self._store.read(partial(queries.get_incident, incident_id=job.incident_id))
            incident, assessment = found if found is not None else (None, None)
            if incident is None or assessment is None or _is_over(incident, job):
                await self._store.write(partial(investigations.drop, job_id=job.id))
                self._tell(Progress(job.id, "the incident needs no investigation any more", ended=True))
                return
            await self._end(job, await self._outcome(job, incident, assessment))
        finally:
            self._running.discard(job.id)
            self._wake.set()

    async def _outcome(self, job: Job, incident: Incident, assessment: Assessment) -> Outcome:
        try:
            return await self._run(job, incident, assessment, self._tell)
        except Exception:
            log.exception("investigation_failed", investigation=job.id, incident=job.incident_id)
            return Outcome(degraded(job, "internal: the investigator failed, see the aggregator's log"))

    async def _end(self, job: Job, outcome: Outcome, again_us: int | None = None) -> None:
        """Record an outcome, queue the next attempt where there is one, and have it joined."""
        found, attempts = outcome.investigation, job.attempts + 1
        if again_us is None and outcome.transient and attempts < MAX_ATTEMPTS:
            again_us = _now_us() + RETRY_SECONDS[attempts - 1] * 1_000_000

        def save(connection: Connection) -> None:
            investigations.end(connection, found)
            if again_us is not None:
                investigations.again(connection, job, attempts, again_us)

        await self._store.write(save)
        self._counts.investigated(found)
        log.info(
            "investigated",
            investigation=found.id,
            incident=found.incident_id,
            stop=found.stop.value,
            reason=found.reason,
            model=found.model,
            rounds=found.spent.rounds,
            cost_usd=round(found.spent.cost_usd, 4),
            seconds=round((found.ended_us - found.started_us) / 1e6, 1),
            again=again_us is not None,
        )
        self._tell(Progress(found.id, found.reason or "done", spent=found.spent, ended=True))
        self._ended()

    def _tell(self, progress: Progress) -> None:
        for follower in self._followers.get(progress.investigation_id, ()):
            if progress.ended and follower.full():
                follower.get_nowait()
            if not follower.full():
                follower.put_nowait(progress)


def _wanted(incident: Incident, assessment: Assessment, urgency: int, person: str = "") -> Wanted:
    held = next((str(pods) for signal in incident.signals if (pods := signal.attributes.get("workload"))), "")
    return Wanted(
        incident_id=incident.id,
        node=incident.subject.node,
        namespace=held.partition("/")[0],  # of "namespace/pod,…", who held the GPU when it failed
        priority=urgency,
        basis=basis_of(incident, assessment.verdict),
        asked_by=person or "auto",
        at_once=bool(person),
    )


def _is_over(incident: Incident, job: Job) -> bool:
    """Whether nobody needs the answer any more: a person who asked does."""
    return job.priority != BY_HAND and (bool(incident.fleet_id) or incident.state is IncidentState.RESOLVED)


def degraded(job: Job, reason: str, model: str = "") -> Investigation:
    """An investigation that found nothing, and why."""
    now_us = _now_us()
    return Investigation(
        id=job.id,
        incident_id=job.incident_id,
        basis=job.basis,
        stop=StopReason.DEGRADED,
        reason=reason,
        model=model,
        started_us=job.started_us or now_us,
        ended_us=now_us,
    )


def _now_us() -> int:
    return time.time_ns() // 1000
