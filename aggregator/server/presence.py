"""Silence is never health: what the aggregator itself knows about nodes becomes evidence like any other.

It declares agent_silent, duplicate_agent and gpu_count_differs, each begun and ended once. Identities follow from what was
observed, so that a restart between the evidence and the note that it was given repeats nothing. A node that was not heard for as
long as evidence is kept is forgotten, unless something about it is open still.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import structlog
from sqlalchemy import Connection

from aggregator import wire
from aggregator.kube.silence import CRASHING, NODE_DOWN, UNSCHEDULED, Expected, Silence
from aggregator.model import EvidenceKey, Phase
from aggregator.outputs.metrics import Metrics
from aggregator.pipeline import Pipeline
from aggregator.server.sessions import Sessions
from aggregator.store import queries
from aggregator.store.arrivals import Delivery, Record
from aggregator.store.nodes import begin_state, end_state, forget_node, save_heard, standing_states
from aggregator.wire import NodeState

SOURCE = "aggregator"
LOOK_SECONDS = 1.0
SAVE_SECONDS = 60.0  # how often the times of connected nodes are saved
MIN_ALIKE = 3  # nodes with one model and driver, before one of them can be the odd one

AGENT_SILENT = "agent_silent"
DUPLICATE_AGENT = "duplicate_agent"
GPU_COUNT_DIFFERS = "gpu_count_differs"
DECLARED = (AGENT_SILENT, DUPLICATE_AGENT, GPU_COUNT_DIFFERS)  # here; the cluster's states stand beside them

NEVER = "never"  # in the epoch of a silence that began before anything was heard
HINDRANCES = {
    "": "the cluster knows of nothing that hinders it",
    NODE_DOWN: "the node is not ready",
    UNSCHEDULED: "no agent is scheduled there",
    CRASHING: "its agent does not come up",
}

State = tuple[str, str]  # node, kind

log = structlog.get_logger(__name__)


class Presence:
    """Watches who is there. Silence counts from when a node was last heard, at the earliest from our own start."""

    def __init__(
        self,
        pipeline: Pipeline,
        sessions: Sessions,
        metrics: Metrics,
        *,
        silent_seconds: float,
        forget_seconds: float,
    ) -> None:
        self._pipeline = pipeline
        self._store = pipeline.store
        self._sessions = sessions
        self._metrics = metrics
        self._silent_seconds = silent_seconds
        self._forget_seconds = forget_seconds
        self._started_us = _now_us()
        self._heard_us: dict[str, int] = {}
        self._simulated: set[str] = set()
        self._standing: dict[State, str] = {}  # epoch of each declared state that has not ended
        self._snapshots: dict[str, NodeState] = {}
        self._shown: dict[str, str] = {}
        self.cluster: Silence | None = None
        self._expected: Mapping[str, Expected] = {}
        self._removed: Collection[str] = ()

    def last_heard_us(self, node: str) -> int | None:
        """When a node's agent was last heard, by our clock; None when it never was."""
        session = self._sessions.current(node)
        return session.heard_us if session else self._heard_us.get(node)

    def observed(self, node: str) -> str:
        """observed, or why not: duplicate_agent, driver_unavailable, rejected, silent; instead of silent what the cluster knows of
        it: node_down, unscheduled, crashing."""
        if (node, DUPLICATE_AGENT) in self._standing:
            return DUPLICATE_AGENT
        if self._sessions.current(node) is None:
            if self._sessions.was_rejected(node):
                return "rejected"
            if (node, AGENT_SILENT) not in self._standing:
                return "observed"
            return (self._expected[node].hindrance if node in self._expected else "") or "silent"
        snapshot = self._snapshots.get(node)
        return "observed" if snapshot is None or snapshot.driver_works else "driver_unavailable"

    async def watch(self) -> None:
        """Look around until cancelled."""
        await self._restore()
        saved = time.monotonic()
        while True:
            due = time.monotonic() - saved >= SAVE_SECONDS
            await self.look(save_connected=due)
            if due:
                await self.forget()
            saved = time.monotonic() if due else saved
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self, *, save_connected: bool) -> None:
        """Note who was heard, then declare what began and what ended."""
        left, self._sessions.left_us = self._sessions.left_us, {}
        heard = self._sessions.heard_us()
        self._heard_us |= left | heard
        if self.cluster is not None:
            self._expected, self._removed = self.cluster.expected(), self.cluster.removed()
        await self._store.write(partial(save_heard, heard_us=left | heard if save_connected else left))
        wanted = dict(self._wanted(_now_us()))
        for state in [state for state in self._standing if state not in wanted and not self._unsure(state)]:
            await self._end(state)
        for state in wanted.keys() - self._standing.keys():
            await self._begin(state, *wanted[state])
        self._show()
        self._metrics.agents_connected(len(self._sessions))

    async def forget(self) -> None:
        """Let go of nodes that are gone for good: their silence ends, and nothing but their evidence stays, as long as any does."""
        before_us = _now_us() - round(self._forget_seconds * 1e6)
        given_up = [
            node for node, heard_us in self._heard_us.items() if heard_us < before_us and self._is_given_up(node)
        ]
        for node in await self._store.read(partial(_of_no_interest, nodes=given_up)):
            for state in [state for state in self._standing if state[0] == node]:
                await self._end(state, "it was not heard for so long that it is forgotten")
            if await self._store.write(partial(forget_node, node=node, before_us=before_us)):
                del self._heard_us[node]
                self._snapshots.pop(node, None)
                self._simulated.discard(node)
                log.info("node_forgotten", node=node)

    def _is_given_up(self, node: str) -> bool:
        """Not connected and not expected to be, and silent also since our own start."""
        if self._sessions.current(node) is not None or node in self._expected:
            return False
        return (node, AGENT_SILENT) in self._standing or node in self._removed

    async def _restore(self) -> None:
        def query(connection: Connection) -> tuple[list[queries.NodeRow], dict[State, str], list[NodeState]]:
            snapshots = [wire.decode_snapshot(payload) for payload in queries.all_snapshots(connection)]
            return queries.list_nodes(connection), standing_states(connection), snapshots

        nodes, standing, snapshots = await self._store.read(query)
        self._standing = {state: epoch for state, epoch in standing.items() if state[1] in DECLARED}
        self._heard_us = {node.name: node.last_seen_us for node in nodes}
        self._simulated = {node.name for node in nodes if node.simulated}
        self._snapshots = {state.node: state for state in snapshots} | self._snapshots
        self._pipeline.on_snapshots = self._take_snapshots

    def _take_snapshots(self, states: Iterable[NodeState]) -> None:
        self._snapshots.update((state.node, replace(state, gpus=())) for state in states)

    def _wanted(self, now_us: int) -> Iterator[tuple[State, tuple[str, str]]]:
        """Every state that stands now: (node, kind) → (epoch, if it begins now; detail)."""
        connected = self._sessions.nodes
        for node, since_us, epoch in self._awaited():
            long = (now_us - max(since_us, self._started_us)) / 1e6 > self._silent_seconds
            if node not in connected and (long or (node, AGENT_SILENT) in self._standing):
                yield (node, AGENT_SILENT), (f"{AGENT_SILENT}:{epoch}", self._silence(node))
        for node in connected:
            if len(installations := self._sessions.installations(node)) > 1:
                detail = (
                    f"{len(installations)} agents claim this node: installations {', '.join(sorted(installations))}"
                )
                yield (node, DUPLICATE_AGENT), (f"{DUPLICATE_AGENT}:{now_us}", detail)
        for snapshot, usual in _odd_ones(self._snapshots.values()):
            alike = f"other nodes with {snapshot.gpu_model} and driver {snapshot.driver_version}"
            detail = f"{snapshot.gpu_count} GPUs, where {alike} have {usual}"
            yield (snapshot.node, GPU_COUNT_DIFFERS), (f"{GPU_COUNT_DIFFERS}:{snapshot.taken_us}", detail)

    def _awaited(self) -> Iterator[tuple[str, int, str]]:
        """Nodes that should be heard: which, since when, and what names that time."""
        for node, heard_us in self._heard_us.items():
            if node not in self._removed:
                yield node, heard_us, str(heard_us)
        for node, expected in self._expected.items():
            if node not in self._heard_us:
                yield node, expected.since_us, f"{NEVER}:{expected.since_us}"

    def _unsure(self, state: State) -> bool:
        """A node that was never heard is known by the cluster alone, and that has not told of its nodes yet."""
        return self.cluster is not None and not self.cluster.known and NEVER in self._standing[state]

    def _silence(self, node: str) -> str:
        expected = self._expected.get(node)
        return "no agent of this node has been heard" + (f": {HINDRANCES[expected.hindrance]}" if expected else "")

    async def _begin(self, state: State, epoch: str, detail: str) -> None:
        node, kind = state
        await self._declare(state, epoch, Phase.BEGAN, detail)
        await self._store.write(partial(begin_state, node=node, kind=kind, epoch=epoch))
        self._standing[state] = epoch

    async def _end(self, state: State, why: str = "") -> None:
        node, kind = state
        detail = f"{kind} has ended" + (f": {why}" if why else "")
        await self._declare(state, self._standing[state], Phase.ENDED, detail)
        await self._store.write(partial(end_state, node=node, kind=kind))
        del self._standing[state]

    async def _declare(self, state: State, epoch: str, phase: Phase, detail: str) -> None:
        node, kind = state
        key = EvidenceKey(node, SOURCE, epoch, 2 if phase is Phase.ENDED else 1)
        payload = wire.declare(
            key,
            kind=kind,
            phase=phase,
            occurred_us=_now_us(),
            detail=detail,
            simulated=node in self._simulated,
        )
        await (await self._pipeline.receive(Delivery(node, "", (Record(key.seq, payload),))))

    def _show(self) -> None:
        """Keep one series for each node, with the reason it has now."""
        connected = self._sessions.nodes
        awaited = {node for node, _, _ in self._awaited()} | connected
        shown = {node: self.observed(node) for node in awaited}
        for node in shown.keys() | self._shown.keys():
            if shown.get(node) != self._shown.get(node):
                self._metrics.node_observed(node, shown.get(node))
        self._shown = shown


def _of_no_interest(connection: Connection, nodes: Iterable[str]) -> list[str]:
    """Those of which no incident is open that tells more than that they are silent."""
    return [
        node
        for node in nodes
        if all(
            signal.kind == AGENT_SILENT
            for incident, _ in queries.list_incidents(connection, node=node)
            for signal in incident.signals
        )
    ]


def _odd_ones(snapshots: Iterable[NodeState]) -> Iterator[tuple[NodeState, int]]:
    """Nodes with fewer GPUs than most nodes of the same model and driver have, and how many those have."""
    alike: defaultdict[tuple[str, str], list[NodeState]] = defaultdict(list)
    for snapshot in snapshots:
        if snapshot.gpu_model and snapshot.driver_version:
            alike[snapshot.gpu_model, snapshot.driver_version].append(snapshot)
    for group in alike.values():
        usual, holders = Counter(snapshot.gpu_count for snapshot in group).most_common(1)[0]
        if len(group) >= MIN_ALIKE and holders * 2 > len(group):
            yield from ((snapshot, usual) for snapshot in group if snapshot.gpu_count < usual)


def _now_us() -> int:
    return time.time_ns() // 1000
