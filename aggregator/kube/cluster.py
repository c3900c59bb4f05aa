"""The cluster's word, made evidence: watches the nodes, and stores what stands on them, until it is told to stop.

The view is looked at whenever a node changed, and when the end of a state is to be believed. While the watch is down nothing
ends: a node of which nothing is heard has not recovered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

import structlog
from sqlalchemy import Connection

from aggregator import wire
from aggregator.kube.client import KubeClient
from aggregator.kube.conditions import Conditions, Declaration, by_node
from aggregator.kube.context import PLACES, Topology
from aggregator.kube.findings import watches
from aggregator.kube.nodes import READY, Node, Wanted
from aggregator.kube.watch import NodeWatch
from aggregator.model import Phase
from aggregator.store import Store
from aggregator.store.arrivals import Delivery, Receipt, Record
from aggregator.store.nodes import begin_state, end_state, standing_states

AT_ONCE = 200  # nodes whose declarations are committed together
LONGEST_SLEEP_SECONDS = 60.0

Receive = Callable[[Delivery], Awaitable[asyncio.Future[Receipt]]]
T = TypeVar("T")

log = structlog.get_logger(__name__)


class Cluster:
    """Everything that comes in from one API server."""

    def __init__(self, watch: NodeWatch, conditions: Conditions, store: Store, receive: Receive) -> None:
        self.watch = watch
        self.topology = Topology(lambda: watch.nodes)
        self._conditions = conditions
        self._store = store
        self._receive = receive

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Every node as it was last heard of."""
        return self.watch.nodes

    def present(self) -> Mapping[str, Node]:
        """Every node as it is; empty while that is not known."""
        return self.nodes if self.watch.up and self.watch.synced.is_set() else {}

    async def run(self) -> None:
        """Watch and declare until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watch.run())
            group.create_task(self._declare())

    async def _declare(self) -> None:
        """Declare what began, changed and ended, as the view changes."""
        for node, state, epoch in await self._store.read(_standing):
            self._conditions.restore(node, state, epoch)
        await self.watch.synced.wait()
        names = self._conditions.nodes | self.nodes.keys()
        while True:
            await self._look(names)
            names = await self.watch.changes(time.monotonic() + self._sleep_seconds())
            if self.watch.up:
                names |= self._conditions.due(_now_us())

    async def _look(self, names: Iterable[str]) -> None:
        for some in _chunks(sorted(names), AT_ONCE):
            now_us = _now_us()
            declared = [
                declaration
                for name in some
                for declaration in self._conditions.look(name, self.nodes.get(name), now_us)
            ]
            if declared:
                await self._keep(declared)

    async def _keep(self, declared: Sequence[Declaration]) -> None:
        """Make the facts durable, then the note that they were given. A crash in between repeats them, and the store knows them."""
        stored = [
            await self._receive(Delivery(node, "", tuple(Record(one.key.seq, _payload(one)) for one in some)))
            for node, some in by_node(declared).items()
        ]
        await asyncio.gather(*stored)
        await self._store.write(partial(_note, declared=declared))

    def _sleep_seconds(self) -> float:
        """Until time alone changes something."""
        next_us = self._conditions.next_us()
        if next_us is None or not self.watch.up:
            return LONGEST_SLEEP_SECONDS if self.watch.up else 1.0
        return min(max(0.0, (next_us - _now_us()) / 1e6), LONGEST_SLEEP_SECONDS)


def assemble(
    client: KubeClient,
    store: Store,
    receive: Receive,
    *,
    globs: Sequence[str],
    place_labels: Mapping[str, tuple[str, ...]],
    cooldown_seconds: float,
    on_up: Callable[[bool], None],
    on_rejected: Callable[[str], None],
) -> Cluster:
    """All of it, for the conditions that the globs name."""
    watched = watches(globs)
    wanted = Wanted(lambda name: name == READY or watched(name))
    watch = NodeWatch(client, wanted, on_up=on_up, on_rejected=on_rejected)
    found = Cluster(watch, Conditions(watched, cooldown_seconds), store, receive)
    found.topology = Topology(lambda: watch.nodes, {**PLACES, **place_labels})
    return found


def _standing(connection: Connection) -> list[tuple[str, str, str]]:
    states = standing_states(connection).items()
    return [(node, state, epoch) for (node, state), epoch in states if is_of_cluster(state)]


def is_of_cluster(state: str) -> bool:
    """Whether a standing state was declared here."""
    return state.startswith("node_") and ":" in state


def _note(connection: Connection, declared: Sequence[Declaration]) -> None:
    for one in declared:
        if one.phase is Phase.ENDED:
            end_state(connection, node=one.key.node, kind=one.state)
        else:
            begin_state(connection, node=one.key.node, kind=one.state, epoch=one.key.epoch)


def _payload(one: Declaration) -> bytes:
    finding = one.finding
    return wire.declare(
        one.key,
        kind=one.kind,
        phase=one.phase,
        occurred_us=one.occurred_us,
        detail=one.detail,
        simulated=False,
        estimated=True,  # by the clock of whoever set the condition
        condition={
            "condition": finding.name,
            "status": finding.status,
            "reason": finding.reason,
            "message": finding.message,
        },
    )


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def _now_us() -> int:
    return time.time_ns() // 1000
