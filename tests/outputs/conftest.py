"""A receiver, incidents to tell it of, and a desk that posts and delivers as the pipeline does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from aggregator.model import (
    Action,
    Assessment,
    FaultClass,
    Incident,
    IncidentState,
    Resolution,
    Severity,
    Signal,
    Subject,
    Verdict,
)  # fmt: skip
from aggregator.outputs import Target
from aggregator.outputs.courier import Courier, Patience
from aggregator.outputs.metrics import Metrics
from aggregator.pipeline import read_record
from aggregator.store import Store, deliveries, verdicts
from aggregator.store.deliveries import DeliveryRow, Route
from aggregator.store.verdicts import Judgement
from tests.outputs.receiver import Receiver

SOON = Patience(first_seconds=0.05, longest_seconds=0.2, longest_retry_after_seconds=1.0)


def fault(number: int = 1, **fields: object) -> Incident:
    """An open incident about a GPU of node n<number>."""
    node = f"n{number}"
    fact = Signal(
        f"{node}/kmsg/b/1", "xid", 79, node=node, pci="0000:3a:00.0", at_us=1_700_000_000_000_000, raw="Xid 79"
    )
    opened = Incident(f"inc-{number}", Subject("gpu", node, "0000:3a:00.0"), (node,), (fact,), IncidentState.OPEN, 1, 1)
    return replace(opened, **fields)  # type: ignore[arg-type]


def resolved(incident: Incident) -> Incident:
    return replace(
        incident, state=IncidentState.RESOLVED, resolved_us=2, resolved_because="recovered", held_until_us=None
    )


def judged(
    incident: Incident, revision: int = 1, severity: Severity = Severity.CRITICAL, **fields: object
) -> Assessment:
    verdict = Verdict(
        severity,
        FaultClass.PCIE,
        Action.DRAIN,
        (Resolution.RESET_GPU, Resolution.REBOOT),
        "The GPU fell off the bus.",
        "The GPU fell off the bus. It answers nothing.",
        0.9,
        (incident.signals[0].id,),
        ("lost",),
        next_steps=("Drain the node.",),
    )
    verdict = replace(verdict, **{name: fields.pop(name) for name in list(fields) if hasattr(verdict, name)})
    return Assessment(
        f"{incident.id}/{revision}",
        incident.id,
        incident.subject.node,
        revision,
        1_700_000_000_000_000,
        verdict,
        **fields,
    )  # type: ignore[arg-type]


class Desk:
    """Commits changes and empties the outbox as the pipeline does, and runs couriers."""

    def __init__(self, database: Path) -> None:
        self.store = Store(database, read_record)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, "test")
        self.routes: list[Route] = []
        self._couriers: list[Courier] = []

    async def tell(self, incident: Incident, assessment: Assessment | None, change: str = "revised") -> None:
        """One change is committed, and handed over to the routes there are."""
        judgement = Judgement(incident, assessment, change)
        now_us = time.time_ns() // 1000
        await self.store.write(partial(verdicts.save_step, cursor=0, judgements=[judgement], now_us=now_us))
        waiting = await self.store.read(partial(verdicts.take_outbox, limit=10))
        await self.store.write(partial(deliveries.hand_over, routes=self.routes, publications=waiting, now_us=now_us))
        for courier in self._couriers:
            courier.wake()

    @contextlib.asynccontextmanager
    async def delivering(self, *targets: Target, patience: Patience = SOON) -> AsyncIterator[None]:
        """Couriers run in here; `routes` are theirs from then on."""
        self.routes = [target.route for target in targets]
        self._couriers = [Courier(self.store, target, self.metrics, patience=patience) for target in targets]
        tasks = [asyncio.create_task(courier.run()) for courier in self._couriers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self._couriers = []
            assert all(isinstance(result, asyncio.CancelledError) for result in results), results

    async def rows(self, *states: str) -> list[DeliveryRow]:
        return await self.store.read(
            partial(deliveries.list_deliveries, states=states or ("waiting", "dead"), after_id=0, limit=10_000)
        )

    async def idle(self, seconds: float = 8.0) -> None:
        """Return once nothing waits."""
        async with asyncio.timeout(seconds):
            while await self.rows("waiting"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"cluster": "test", **labels})


OpenDesk = Callable[[], AbstractAsyncContextManager[Desk]]


@pytest.fixture
def open_desk(tmp_path: Path) -> OpenDesk:
    """Opens the same database each time."""

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Desk]:
        desk = Desk(tmp_path / "sentinel.db")
        try:
            yield desk
        finally:
            await desk.store.close()

    return opened


@pytest.fixture
async def desk(open_desk: OpenDesk) -> AsyncIterator[Desk]:
    async with open_desk() as opened:
        yield opened


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    started = Receiver()
    yield started
    started.close()
