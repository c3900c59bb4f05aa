"""A C double per test, and a collector that runs on it at a fast pace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from node_agent.collectors.nvml import NvmlCollector, Timing
from node_agent.evidence import Fact, Phase, Snapshot
from tests.doubles.nvml.double import NvmlDouble, build, environment

FAST = Timing(
    critical=0.1,
    counters=0.2,
    snapshot=5.0,
    reopen=0.5,
    open_deadline=5.0,
    critical_deadline=0.6,
    counters_deadline=0.8,
    snapshot_deadline=1.0,
    close_deadline=1.0,
    first_restart=0.2,
    longest_restart=0.4,
    longest_retry=0.3,
    settled=5.0,
)


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The double, compiled once."""
    return build(tmp_path_factory.mktemp("nvml_double"))


@pytest.fixture
def make_double(nvml_library: Path, tmp_path: Path) -> Iterator[Callable[..., NvmlDouble]]:
    """Makes doubles; whatever hangs in them is let go at the end."""
    made: list[NvmlDouble] = []

    def make(profile: str = "h100", gpus: int = 2) -> NvmlDouble:
        made.append(NvmlDouble(nvml_library, tmp_path / f"page{len(made)}", profile=profile, gpus=gpus))
        return made[-1]

    yield make
    for double in made:
        double.close()


@pytest.fixture
def double(make_double: Callable[..., NvmlDouble]) -> NvmlDouble:
    """Two healthy H100."""
    return make_double()


class Watched:
    """A running collector and what it reported."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.snapshots: list[Snapshot] = []
        self.collector: NvmlCollector
        self._news = asyncio.Event()

    def report(self, fact: Fact) -> None:
        """Where the collector's facts go."""
        self.facts.append(fact)
        self._news.set()

    def report_snapshot(self, snapshot: Snapshot) -> None:
        """Where its snapshots go."""
        self.snapshots.append(snapshot)
        self._news.set()

    def of(self, kind: str, phase: Phase | None = None) -> list[Fact]:
        """Facts of a kind, in order."""
        return [fact for fact in self.facts if fact.kind == kind and phase in (None, fact.phase)]

    async def until(self, kind: str, phase: Phase = Phase.BEGAN, *, count: int = 1, seconds: float = 10.0) -> Fact:
        """Wait for the count-th fact of a kind and phase."""
        try:
            await self._until(lambda: len(self.of(kind, phase)) >= count, seconds)
        except TimeoutError:
            raise AssertionError(f"no {kind} {phase.name}; reported: {self.kinds()}") from None
        return self.of(kind, phase)[count - 1]

    async def until_read(self) -> None:
        """Wait for the first snapshot."""
        await self._until(lambda: bool(self.snapshots), 10)

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while not done():
                self._news.clear()
                await self._news.wait()

    async def rounds(self, seconds: float = 0.45) -> None:
        """Let several polls pass."""
        await asyncio.sleep(seconds)

    def kinds(self) -> list[str]:
        """What was reported, for people."""
        return [f"{fact.kind} {fact.phase.name}" for fact in self.facts]

    async def values(self, slot: int = 0) -> dict[str, Any]:
        """One GPU's values, read now."""
        return dict((await self.collector.snapshot(5)).gpus[slot].values)


@asynccontextmanager
async def watch(state_dir: Path, **options: Any) -> AsyncIterator[Watched]:
    """Run a collector for the length of the block, as the supervisor would; an absent driver is looked for again."""
    watched = Watched()
    make_directory(state_dir)
    watched.collector = NvmlCollector(
        **{
            "state_dir": state_dir,
            "report_snapshot": watched.report_snapshot,
            "sysfs_root": state_dir / "no-sysfs",
            "timing": FAST,
            **options,
        }
    )
    task = asyncio.create_task(watched.collector.collect(watched.report))
    try:
        yield watched
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def watched(double: NvmlDouble, tmp_path: Path) -> AsyncIterator[Watched]:
    """A collector on the double, past its first snapshot."""
    async with watch(tmp_path / "state", environ=environment(double)) as running:
        await running.until_read()
        yield running


def make_directory(path: Path) -> None:
    """The directory, if it is not there yet."""
    path.mkdir(exist_ok=True)


def is_process(pid: int) -> bool:
    """Whether a process is there, dead and unreaped ones included."""
    return Path(f"/proc/{pid}").exists()


def write_simulated(path: Path, state: dict[str, Any]) -> None:
    """Replace the simulated driver's file at once."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(state))
    new.replace(path)
