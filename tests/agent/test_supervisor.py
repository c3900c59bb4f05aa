"""One supervised task per collector: what fails is evidence, restarts, and hurts no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from node_agent.collectors import Collector, CollectorAbsent
from node_agent.evidence import Fact, Observation, Phase, Report
from node_agent.supervisor import Patience, Supervisor

QUICK = Patience(first_restart=0.01, longest_restart=0.05, settled=0.1, absent=0.02)


class Scripted:
    """A collector that goes through one step a run and then runs for ever."""

    def __init__(self, name: str, *steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.name = name
        self.runs = 0
        self._steps = list(steps)

    async def collect(self, report: Report) -> None:
        self.runs += 1
        report(Fact(source=self.name, kind="ran"))
        if self._steps:
            await self._steps.pop(0)()
        else:
            await asyncio.Event().wait()


async def fails() -> None:
    raise OSError("the source broke")


async def absent() -> None:
    raise CollectorAbsent("no such device")


async def finishes() -> None:
    return


async def cancels_itself() -> None:
    raise asyncio.CancelledError


async def fails_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(fails())


@asynccontextmanager
async def supervised(*collectors: Collector) -> AsyncIterator[tuple[Supervisor, list[Fact]]]:
    facts: list[Fact] = []
    supervisor = Supervisor(collectors, facts.append, QUICK)
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor, facts
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def failures(facts: list[Fact]) -> list[tuple[Phase, str]]:
    return [
        (fact.phase, fact.body.field)
        for fact in facts
        if fact.kind == "collector_failed" and isinstance(fact.body, Observation)
    ]


@pytest.mark.parametrize("step", [fails, fails_in_a_group, cancels_itself])
async def test_a_failure_is_reported_restarted_and_its_end_reported(
    step: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    collector = Scripted("kmsg", step, step, step)
    async with supervised(collector) as (supervisor, facts):
        await until(lambda: len(failures(facts)) == 2)
        assert collector.runs == 4
        assert failures(facts) == [(Phase.BEGAN, "collector_kmsg"), (Phase.ENDED, "collector_kmsg")]
        assert supervisor.states == {"kmsg": "running"}


async def test_the_failure_is_told_in_one_line() -> None:
    async with supervised(Scripted("kmsg", fails_in_a_group)) as (supervisor, facts):
        await until(lambda: bool(failures(facts)))
        assert supervisor.states["kmsg"] == "failed: OSError: the source broke"
        assert next(fact.detail for fact in facts if fact.kind == "collector_failed").endswith(
            "OSError: the source broke"
        )


async def test_a_collector_that_keeps_failing_began_once() -> None:
    collector = Scripted("nvml", *[fails] * 50)
    async with supervised(collector) as (_, facts):
        await until(lambda: collector.runs >= 6)
        assert failures(facts) == [(Phase.BEGAN, "collector_nvml")]


async def test_one_failure_hurts_no_other() -> None:
    bad, good = Scripted("bad", *[fails] * 50), Scripted("good")
    async with supervised(bad, good) as (supervisor, _):
        await until(lambda: bad.runs >= 3)
        assert (good.runs, supervisor.states["good"]) == (1, "running")


async def fails_when_cancelled() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise RuntimeError("the clean-up is broken")


async def test_a_broken_clean_up_keeps_nobody_from_leaving() -> None:
    """`supervised` asserts at its end that the supervisor was cancelled."""
    collector = Scripted("nvml", fails_when_cancelled)
    async with supervised(collector):
        await until(lambda: collector.runs == 1)


async def test_absence_is_a_state_and_is_looked_at_again() -> None:
    collector = Scripted("dcgm", absent, absent)
    async with supervised(collector) as (supervisor, facts):
        await until(lambda: supervisor.states.get("dcgm") == "absent: no such device")
        await until(lambda: collector.runs == 3)
        assert supervisor.states == {"dcgm": "running"}
        assert failures(facts) == []


async def test_a_failure_ends_when_its_source_is_gone() -> None:
    async with supervised(Scripted("dcgm", fails, *[absent] * 500)) as (_, facts):
        await until(lambda: len(failures(facts)) == 2)
        assert failures(facts)[-1] == (Phase.ENDED, "collector_dcgm")


async def test_a_collector_that_is_done_is_not_restarted() -> None:
    collector = Scripted("previous_boot", finishes)
    async with supervised(collector, Scripted("other")) as (supervisor, _):
        await until(lambda: supervisor.states.get("previous_boot") == "finished")
        await asyncio.sleep(0.05)
        assert collector.runs == 1
