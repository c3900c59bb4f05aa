"""Runs every collector in a task of its own, so that one that fails hurts no other.

A failure is evidence (`collector_failed`, began and ended) and is followed by a restart with growing, jittered delay. A collector
with nothing to read is absent: that is a state of the node, shown in its snapshot, and looked at again later.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from node_agent.collectors import Collector, CollectorAbsent
from node_agent.evidence import Fact, Observation, Phase, Report

log = logging.getLogger(__name__)

RUNNING: Final = "running"
FINISHED: Final = "finished"


@dataclass(frozen=True, slots=True)
class Patience:
    """Delays in seconds. `settled`: a restarted collector that has run this long counts as recovered."""

    first_restart: float = 1.0
    longest_restart: float = 60.0
    settled: float = 10.0
    absent: float = 60.0


class Supervisor:
    """Keeps collectors running. `states` says how each one stands: running, finished, absent or failed with a reason."""

    def __init__(self, collectors: Iterable[Collector], report: Report, patience: Patience | None = None) -> None:
        self._collectors = tuple(collectors)
        self._report = report
        self._patience = patience or Patience()
        self._failures: Counter[str] = Counter()
        self.states: dict[str, str] = {}

    async def run(self) -> None:
        """Run all collectors until cancelled."""
        async with asyncio.TaskGroup() as group:
            for collector in self._collectors:
                group.create_task(self._keep_running(collector), name=f"collector {collector.name}")

    async def _keep_running(self, collector: Collector) -> None:
        while (delay := await self._run_once(collector)) is not None:  # noqa: ASYNC110  # it waits for nothing but time
            await asyncio.sleep(delay)

    async def _run_once(self, collector: Collector) -> float | None:
        """Run it to its end; how long to wait before the next time, in seconds, or None when it is done for good."""
        name = collector.name
        self.states[name] = RUNNING
        settled = asyncio.get_running_loop().call_later(self._patience.settled, self._recovered, name)
        try:
            problem = await _problem_of(collector, self._report)
        except CollectorAbsent as absence:
            log.debug("collector %s is absent: %s", name, absence)
            self._recovered(name)
            self.states[name] = f"absent: {absence}"
            return _jittered(self._patience.absent)
        finally:
            settled.cancel()
        if problem is None:
            self._recovered(name)
            self.states[name] = FINISHED
            return None
        self._failed(name, problem)
        return self._restart_delay(self._failures[name])

    def _failed(self, name: str, problem: str) -> None:
        self.states[name] = f"failed: {problem}"
        self._failures[name] += 1
        if self._failures[name] == 1:
            self._report(
                _collector_fact(name, Phase.BEGAN, f"collector {name} failed and is restarted: {problem}", problem)
            )

    def _recovered(self, name: str) -> None:
        if self._failures.pop(name, 0):
            log.info("collector %s runs again", name)
            self._report(_collector_fact(name, Phase.ENDED, f"collector {name} runs again", RUNNING))

    def _restart_delay(self, failures: int) -> float:
        return _jittered(min(self._patience.longest_restart, self._patience.first_restart * 2 ** min(failures - 1, 16)))


async def _problem_of(collector: Collector, report: Report) -> str | None:
    """Run the collector to its end: None, or its failure in one line. Raises CollectorAbsent.

    It runs in a task of its own, so that whatever it does with cancellation stays there: when the supervisor is cancelled, it
    leaves, and a collector that cancels itself by mistake has failed like any other.
    """
    run = asyncio.create_task(collector.collect(report), name=f"run of {collector.name}")
    try:
        await asyncio.wait([run])
    finally:
        run.cancel()
        await asyncio.wait([run])
        error = asyncio.CancelledError("it cancelled itself") if run.cancelled() else run.exception()
    if error is None:
        return None
    if isinstance(error, CollectorAbsent):
        raise error
    problem = _one_line(error)
    environmental = isinstance(error, OSError)  # says itself what is wrong with the node; anything else may be a bug
    log.warning("collector %s failed: %s", collector.name, problem, exc_info=None if environmental else error)
    return problem


def _collector_fact(name: str, phase: Phase, detail: str, state: str) -> Fact:
    body = Observation(field=f"collector_{name}", after=state)
    return Fact(source="agent", kind="collector_failed", phase=phase, detail=detail, body=body)


def _one_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.75, 1.25)  # noqa: S311  # spreads restarts, guards no secret
