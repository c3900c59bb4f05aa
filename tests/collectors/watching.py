"""Runs a collector as the supervisor would and lets a test wait for the facts it reports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from node_agent.collectors import Collector
from node_agent.evidence import Fact, Phase, Recorder

PATIENCE_SECONDS = 20.0
QUIET_SECONDS = 0.2  # a dozen cycles at the tests' intervals


class Facts:
    """Everything a collector reported; each fact also passes through the real encoder."""

    def __init__(self, looks: Callable[[], int] = lambda: 0) -> None:
        self.all: list[Fact] = []
        self._looks = looks
        self._recorder = Recorder(
            node="n", boot_id="b", simulated=False, append_event=self._keep, append_sample=lambda _: None
        )
        self._encoded = 0

    def report(self, fact: Fact) -> None:
        self._recorder.report(fact)
        self.all.append(fact)

    def _keep(self, payload: bytes) -> None:
        assert payload
        self._encoded += 1

    def of(self, kind: str, phase: Phase | None = None) -> list[Fact]:
        return [fact for fact in self.all if fact.kind == kind and phase in (None, fact.phase)]

    async def first(self, kind: str, phase: Phase | None = None, *, count: int = 1) -> Fact:
        """The count-th fact of that kind and phase, waited for."""
        await until(lambda: len(self.of(kind, phase)) >= count, f"{kind} {phase}; got {self.all}")
        return self.of(kind, phase)[count - 1]

    async def stay(self, number: int, *, seconds: float = QUIET_SECONDS) -> None:
        """Nothing is added for many cycles; at least for a few where the collector's looks can be counted."""
        goal = self._looks() and self._looks() + 4
        await asyncio.sleep(seconds)
        await until(lambda: self._looks() >= goal, "looks")
        assert len(self.all) == number, self.all


async def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end, f"waited {PATIENCE_SECONDS} s for {what}"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def watching(collector: Collector, looks: Callable[[], int] | None = None) -> AsyncIterator[Facts]:
    """Run the collector, from its second look on where looks can be counted; a collector that fails fails the test."""
    facts = Facts(looks or (lambda: 0))
    task = asyncio.create_task(collector.collect(facts.report))
    try:
        await until(lambda: looks is None or looks() > 1 or task.done(), "the first look")
        yield facts
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def never_blocked(limit_seconds: float = 2.0) -> AsyncIterator[None]:
    """The event loop answers all the while."""
    worst = 0.0

    async def measure() -> None:
        nonlocal worst
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            worst = max(worst, time.monotonic() - before)

    task = asyncio.create_task(measure())
    try:
        yield
    finally:
        task.cancel()
    assert worst < limit_seconds
