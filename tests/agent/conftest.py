"""A scripted aggregator, and an uplink that delivers a real spool to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from node_agent.dial import Endpoint
from node_agent.evidence import Fact, Inventory, Recorder, Snapshot
from node_agent.identity import Identity
from node_agent.spool import Spool
from node_agent.uplink import Pace, Uplink
from tests.agent.scripted_aggregator import ScriptedAggregator

IDENTITY = Identity(
    node="node-1", boot_id="boot-1", installation_id="installation-1", simulated=False, agent_version="1.2.3"
)


@pytest.fixture
async def aggregator() -> AsyncIterator[ScriptedAggregator]:
    """Serves on a free port of this machine."""
    server = ScriptedAggregator()
    await server.start()
    yield server
    server.script.reading.set()
    await server.stop()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An empty spool."""
    opened = Spool.open(tmp_path / "spool")
    yield opened
    opened.close()


@dataclass
class Node:
    """What collectors would do, by hand."""

    spool: Spool
    recorder: Recorder
    snapshot_seconds: float = 0.0
    snapshot_error: Exception | None = None
    reported: int = 0
    own_facts: list[Fact] = field(default_factory=list)

    def report(self, count: int = 1, text: str = "") -> list[bytes]:
        """Report numbered facts; returns them as they must arrive."""
        payloads = []
        for _ in range(count):
            self.reported += 1
            payloads.append(
                self.recorder.encode(Fact(source="test", kind="numbered", detail=f"{self.reported} {text}"))
            )
            self.spool.append_event(payloads[-1])
        return payloads

    def report_own(self, fact: Fact) -> None:
        self.own_facts.append(fact)
        self.recorder.report(fact)

    async def collect_now(self, timeout_seconds: float) -> Snapshot:
        await asyncio.sleep(self.snapshot_seconds)
        if self.snapshot_error is not None:
            raise self.snapshot_error
        return Snapshot(taken_at=1.0, inventory=Inventory(driver_version="570.1"))


@pytest.fixture
def node(spool: Spool) -> Node:
    recorder = Recorder(
        node="node-1",
        boot_id="boot-1",
        simulated=False,
        append_event=spool.append_event,
        append_sample=spool.append_sample,
    )
    return Node(spool, recorder)


@asynccontextmanager
async def delivering(node: Node, endpoint: Endpoint, pace: Pace | None = None) -> AsyncIterator[Uplink]:
    """An uplink that runs meanwhile."""
    spool = node.spool
    uplink = Uplink(
        endpoint,
        IDENTITY,
        (spool.events, spool.samples),
        recorder=node.recorder,
        collect_now=node.collect_now,
        report=node.report_own,
        pace=pace or Pace(longest_redial=0.1),
    )
    task = asyncio.create_task(uplink.run())
    try:
        yield uplink
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()
