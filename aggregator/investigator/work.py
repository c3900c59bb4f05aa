"""One job of the queue, done: the case is read from the store, the model is asked, the transcript and the cost are written down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import structlog
from sqlalchemy import Connection

from aggregator import assessor, rules
from aggregator.investigator.budget import Budget
from aggregator.investigator.bundle import build
from aggregator.investigator.case import Case, read_case
from aggregator.investigator.endings import TRANSIENT, word_of
from aggregator.investigator.framing import Gate
from aggregator.investigator.llm import Backend, BackendFailed, Capabilities
from aggregator.investigator.loop import Task, investigate
from aggregator.investigator.queue import Outcome, Progress, Report, degraded
from aggregator.investigator.redaction import Redactor
from aggregator.investigator.sources import Registry, Scope
from aggregator.model import Assessment, Incident, Spent
from aggregator.store import Store, beside, investigations
from aggregator.store.investigations import Job, TranscriptEntry

SAVE_SECONDS = 1.0  # how often what a run did is written down while it runs

ScopeOf = Callable[[Case], Awaitable[Scope]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """Everything a run needs, made once at start; a run changes nothing of it."""

    store: Store
    backend: Backend
    model: ModelProbe
    registry: Registry
    system: str
    budget: Budget
    context: rules.Context
    scope_of: ScopeOf
    count: Callable[[str, str], None]  # a tool that was asked, and what came of it
    redactor: Redactor  # knows the process's own secrets

    async def __call__(self, job: Job, incident: Incident, assessment: Assessment, report: Report) -> Outcome:
        """Run one job. Whatever the endpoint does, there is an outcome."""
        try:
            capabilities = await self.model.capabilities()
        except BackendFailed as failed:
            reason = f"{failed.kind.value}: {failed}"
            found = degraded(job, reason, self.backend.model)
            return Outcome(found, failed.kind in TRANSIENT)
        gate = Gate(self.redactor)
        case = await self._case(job, incident)
        task = Task(
            investigation_id=job.id,
            basis=case.basis,
            bundle=build(case, gate),
            scope=await self.scope_of(case),
            registry=self.registry,
            system=self.system,
            budget=self.budget,
            gate=gate,
        )
        async with self._written_down(job) as notes:

            def tell(text: str, tool: str, spent: Spent) -> None:
                notes.spent = spent
                report(Progress(job.id, text, tool, spent))

            found = await investigate(
                task, self.backend, capabilities, record=notes.entries.append, report=tell, count=self.count
            )
            notes.spent = found.spent
        return Outcome(found, word_of(found.reason) in TRANSIENT)

    async def _case(self, job: Job, incident: Incident) -> Case:
        contexts = await self.store.read(partial(beside.contexts, incidents=[incident], base=self.context))
        verdict, _ = assessor.judged(incident, contexts[incident.id])
        read = partial(
            read_case,
            incident=incident,
            verdict=verdict,
            basis=assessor.basis_of(incident, verdict),
            now_us=job.started_us or job.due_us,
        )
        return await self.store.read(read)

    @contextlib.asynccontextmanager
    async def _written_down(self, job: Job) -> AsyncIterator[_Notes]:
        """Write down what a run notes, now and then and in the end."""
        notes = _Notes(job.id)

        async def keep_writing() -> None:
            while True:
                await asyncio.sleep(SAVE_SECONDS)
                notes.written += await self.store.write(notes.save)

        writing = asyncio.create_task(keep_writing())
        try:
            yield notes
        finally:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing
            await self.store.write(notes.save)


@dataclass(slots=True)
class _Notes:
    """What a run did and is not written down yet."""

    job_id: str
    entries: list[TranscriptEntry] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    written: int = 0

    def save(self, connection: Connection) -> int:
        """On the writer's thread; what is appended meanwhile is for the next time. Saving something twice changes nothing."""
        waiting = self.entries[self.written :]
        investigations.record(connection, self.job_id, self.written, waiting)
        tokens = self.spent.input_tokens + self.spent.output_tokens
        investigations.spend(connection, self.job_id, tokens, self.spent.cost_usd)
        return len(waiting)


class ModelProbe:
    """What the endpoint says of the model, asked once; asked again for as long as it cannot say."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: Capabilities | None = None
        self._asking = asyncio.Lock()

    async def capabilities(self) -> Capabilities:
        """Raises BackendFailed."""
        async with self._asking:
            if self._known is None:
                self._known = await self._backend.probe()
            return self._known

    async def say(self) -> None:
        """At the start: tell the log whether the model can be asked. The aggregator serves on either way."""
        try:
            known = await self.capabilities()
        except BackendFailed as failed:
            log.warning("model_cannot_be_asked", model=self._backend.model, kind=failed.kind.value, reason=str(failed))
        else:
            log.info(
                "model_ready", model=known.model, max_input_tokens=known.max_input_tokens, priced=known.input_usd > 0
            )
