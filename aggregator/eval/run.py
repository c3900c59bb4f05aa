"""Plays worlds to an endpoint through the real loop, a few at a time, and keeps what comes of each run as it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256

from aggregator import rules
from aggregator.eval.judge import Score, Witness, judge
from aggregator.eval.recorded import real_sources, registry_of
from aggregator.eval.results import Results
from aggregator.eval.stage import Staged, bundle_of, full_bundle, scope_of, stage
from aggregator.eval.world import BASELINE, Pair, Variant, packaged
from aggregator.investigator.budget import Budget
from aggregator.investigator.endings import word_of
from aggregator.investigator.framing import Gate
from aggregator.investigator.llm import Backend, Capabilities, FailureKind
from aggregator.investigator.loop import Task, investigate
from aggregator.investigator.redaction import Redactor
from aggregator.investigator.rendering import dumps
from aggregator.investigator.sources import Registry

GIVE_UP = 3  # runs in a row that the endpoint failed
NOT_A_RESULT = frozenset(
    (
        FailureKind.AUTHENTICATION,
        FailureKind.MODEL_UNKNOWN,
        FailureKind.RATE_LIMITED,
        FailureKind.QUOTA,
        FailureKind.OVERLOADED,
        FailureKind.SERVER_ERROR,
        FailureKind.UNREACHABLE,
        FailureKind.INCOMPLETE,
        FailureKind.INVALID_REQUEST,
    )
)  # they tell of the endpoint, not of the model: such a run is done again


class Mode(StrEnum):
    """What the model gets."""

    TOOLS = "tools"  # the bundle, and tools: as in the aggregator
    NO_TOOLS = "no_tools"  # the bundle alone
    EVERYTHING = "everything"  # the bundle with every recorded answer in it, and no tools
    RULES = "rules"  # there is no model


ASKED = (Mode.TOOLS, Mode.NO_TOOLS, Mode.EVERYTHING)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is evaluated."""

    backend: Backend
    capabilities: Capabilities
    system: str
    budget: Budget
    endpoint: str = ""  # where, for people and for the digest
    secrets: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Runs of another model, prompt, budget, rules or tools are other results."""
        tools = [[tool.name, tool.description, tool.parameters] for source in real_sources() for tool in source.tools]
        parts = (
            self.backend.name,
            self.endpoint,
            self.capabilities.model,
            self.system,
            repr(self.budget),
            rules.VERSION,
            dumps(tools),
            (packaged() / BASELINE).read_text(encoding="utf-8"),
        )
        return sha256("\0".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Run:
    """One conversation to be had."""

    staged: Staged
    variant: Variant
    mode: Mode
    repetition: int


@dataclass(slots=True)
class Outcome:
    """How an evaluation went."""

    planned: int  # runs, those that an earlier evaluation had ended included
    done: int
    failures: list[str] = field(default_factory=list)  # what the endpoint did, a line a run

    @property
    def undone(self) -> int:
        """Runs that another call would take up."""
        return self.planned - self.done


def rules_alone(pairs: Sequence[Pair]) -> list[Score]:
    """What the rules say, which no repetition changes."""
    return [judge(staged, variant, Mode.RULES, 0) for staged in map(stage, pairs) for variant in Variant]


async def evaluate(
    pairs: Sequence[Pair],
    setup: Setup,
    results: Results,
    *,
    repetitions: int,
    at_once: int,
    progress: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Do every run that is not done yet. Stops early where the endpoint does nothing but fail. Raises WorldError."""
    runs = list(_plan([stage(pair) for pair in pairs], repetitions))
    waiting = [run for run in runs if not _is_done(results, run)]
    outcome = Outcome(planned=len(runs), done=len(runs) - len(waiting))
    left, in_a_row = iter(waiting), 0

    async def work() -> None:
        nonlocal in_a_row
        for run in left:
            if in_a_row >= GIVE_UP:
                return
            score = await _play(run, setup)
            if word_of(score.reason) in NOT_A_RESULT:
                in_a_row += 1
                outcome.failures.append(score.reason)
            else:
                in_a_row = 0
                results.add(score, run.staged.pair.digest)
                outcome.done += 1
            progress(outcome)

    progress(outcome)
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    return outcome


def _plan(staged: Sequence[Staged], repetitions: int) -> Iterator[Run]:
    """All worlds once before any a second time: whatever was done is a fair sample."""
    return (
        Run(one, variant, mode, repetition)
        for repetition in range(repetitions)
        for mode in ASKED
        for one in staged
        for variant in Variant
    )


def _is_done(results: Results, run: Run) -> bool:
    return results.has(run.mode, run.staged.pair.digest, run.variant, run.repetition)


async def _play(run: Run, setup: Setup) -> Score:
    witness = Witness(run.staged.pair.question)
    found = await investigate(_task(run, setup), setup.backend, setup.capabilities, record=witness.note)
    return judge(run.staged, run.variant, run.mode, run.repetition, found, witness.items)


def _task(run: Run, setup: Setup) -> Task:
    staged, gate = run.staged, Gate(Redactor(setup.secrets))
    everything = run.mode is Mode.EVERYTHING
    return Task(
        investigation_id=f"eval-{staged.pair.name}-{run.repetition}",
        basis=staged.case.basis,
        bundle=full_bundle(staged, run.variant, gate) if everything else bundle_of(staged, gate),
        scope=scope_of(staged),
        registry=registry_of(staged.pair, run.variant) if run.mode is Mode.TOOLS else Registry.of(),
        system=setup.system,
        budget=setup.budget,
        gate=gate,
    )
