"""The agent as a whole: its parts, how they stand together, and how they start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from pathlib import Path

from google.protobuf.message import DecodeError

from node_agent.dial import Endpoint
from node_agent.evidence import Fact, Inventory, Observation, Phase, Recorder, Snapshot
from node_agent.heartbeat import Heartbeat
from node_agent.identity import Identity
from node_agent.probes import Vitals
from node_agent.query_socket import Questions, serve_queries
from node_agent.sources import Sources
from node_agent.spool import Spool
from node_agent.supervisor import Supervisor
from node_agent.uplink import Uplink
from protos.v1 import evidence_pb2, sentinel_pb2

log = logging.getLogger(__name__)

MAX_COUNTED_KINDS = 128
FIRST_SNAPSHOT_SECONDS = 3.0
SNAPSHOT_SECONDS = 300.0
STOP_COLLECTORS_SECONDS = 1.5
DRAIN_SECONDS = 2.0


class Agent:
    """One agent on one node. Collectors report through `report` and `report_snapshot`; `run` keeps everything going."""

    def __init__(
        self, identity: Identity, spool: Spool, recorder: Recorder, endpoint: Endpoint, kernel_version: str
    ) -> None:
        self._identity = identity
        self._spool = spool
        self._recorder = recorder
        self._bare_inventory = Inventory(kernel_version=kernel_version)
        self._sources: Sources | None = None
        self._supervisor = Supervisor((), self.report)
        self._heartbeat = Heartbeat(self.report, self._each_beat)
        self._uplink = Uplink(
            endpoint,
            identity,
            (spool.events, spool.samples),
            recorder=recorder,
            collect_now=self.collect_now,
            report=self.report,
        )
        self._evidence_by_kind: Counter[str] = Counter()
        self._latest: Snapshot | None = None
        self._bare_snapshot_due = time.monotonic() + FIRST_SNAPSHOT_SECONDS
        self._sync_lag_seconds = 0.0
        self._spool_problem = ""

    def report(self, fact: Fact) -> None:
        """Take one fact from a collector into the spool."""
        self._count(fact)
        self._recorder.report(self._sources.name_holders(fact) if self._sources else fact)

    def encode_loss(self, fact: Fact) -> bytes:
        """A loss of the spool as evidence, which the spool writes itself."""
        self._count(fact)
        return self._recorder.encode(fact)

    def report_snapshot(self, snapshot: Snapshot) -> None:
        """Take the node's present state into the spool, completed by what all collectors know."""
        self._latest = self._complete(snapshot)
        self._recorder.report_snapshot(self._latest)

    async def collect_now(self, timeout_seconds: float) -> Snapshot:
        """A fresh reading of the GPUs; raises when there is none."""
        assert self._sources is not None
        return self._complete(await self._sources.read_gpus(timeout_seconds))

    async def run(self, sources: Sources, socket_path: Path | None, stop: asyncio.Event) -> None:
        """Observe and deliver until `stop` is set, then take leave: collectors end, and the last facts go out as far as the server
        takes them in time. Without a path, no socket. Raises SocketInUse or OSError when the socket cannot be served."""
        self._sources = sources
        self._supervisor = Supervisor(sources.collectors, self.report)
        answering = serve_queries(socket_path, self._questions()) if socket_path else contextlib.nullcontext()
        async with answering, asyncio.TaskGroup() as group:
            delivering = [group.create_task(self._heartbeat.run()), group.create_task(self._uplink.run())]
            self.report(self._own_fact("agent_started", f"agent {self._identity.agent_version} started"))
            observing = group.create_task(self._supervisor.run())
            await stop.wait()
            observing.cancel()
            await asyncio.wait([observing], timeout=STOP_COLLECTORS_SECONDS)
            self.report(self._own_fact("agent_stopped", f"agent {self._identity.agent_version} was asked to stop"))
            await self._drain()
            for task in delivering:
                task.cancel()

    def vitals(self) -> Vitals:
        """How the agent stands. Safe to call from any thread."""
        logs = (self._spool.events, self._spool.samples)
        gpus = self._sources.gpus if self._sources else None
        offset = self._uplink.offset
        return Vitals(
            node=self._identity.node,
            agent_version=self._identity.agent_version,
            beat_age_seconds=self._heartbeat.age_seconds,
            loop_lag_seconds=self._heartbeat.lag_seconds,
            not_ready=self._not_ready(),
            connected=self._uplink.connected,
            dials=self._uplink.dials,
            sync_lag_seconds=self._sync_lag_seconds,
            nvml_deadline_misses=gpus.deadline_misses if gpus else 0,
            clock_offset_seconds=offset.seconds if offset else None,
            clock_error_seconds=offset.error if offset else None,
            evidence_by_kind=dict(self._evidence_by_kind),
            spool_bytes={each.name: each.end_offset - each.begin_offset for each in logs},
            unacked_bytes={each.name: each.end_offset - max(each.acked_offset, each.begin_offset) for each in logs},
            spool_in_memory=bool(self._spool.problem),
            collector_states=dict(self._supervisor.states),
        )

    def _count(self, fact: Fact) -> None:
        known = fact.kind in self._evidence_by_kind or len(self._evidence_by_kind) < MAX_COUNTED_KINDS
        self._evidence_by_kind[fact.kind if known else "other"] += 1

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._uplink.drain()
        except TimeoutError:
            log.warning("the aggregator did not take everything in %.0f s; the spool keeps the rest", DRAIN_SECONDS)

    def _not_ready(self) -> str:
        if not self._supervisor.states:
            return "collectors have not started"
        return self._spool.problem

    def _each_beat(self) -> None:
        self._sync_lag_seconds = self._measure_sync_lag()
        self._tell_spool_problem(self._spool.problem)
        if (self._latest is None or not self._latest.gpus) and time.monotonic() >= self._bare_snapshot_due:
            self._bare_snapshot_due = time.monotonic() + SNAPSHOT_SECONDS
            self.report_snapshot(Snapshot(taken_at=time.time(), inventory=self._bare_inventory))

    def _tell_spool_problem(self, problem: str) -> None:
        """That nothing reaches the disk is evidence, begun and ended once: until it ends, the agent's death loses facts."""
        if bool(problem) != bool(self._spool_problem):
            phase = Phase.BEGAN if problem else Phase.ENDED
            body = Observation(field="collector_spool", after=f"failed: {problem}" if problem else "running")
            detail = problem or "the spool's disk takes records again"
            self.report(Fact(source="agent", kind="collector_failed", phase=phase, detail=detail, body=body))
        self._spool_problem = problem

    def _measure_sync_lag(self) -> float:
        events = self._spool.events
        unacked = events.read(max(events.acked_offset, events.begin_offset), max_bytes=1, max_records=1)
        if not unacked:
            return 0.0
        try:
            oldest = evidence_pb2.Evidence.FromString(unacked[0].payload)
        except DecodeError:
            return self._sync_lag_seconds
        return max(0.0, time.time() - oldest.collected_at.ToNanoseconds() / 1e9)

    def _own_fact(self, kind: str, detail: str) -> Fact:
        return Fact(source="agent", kind=kind, detail=detail)

    def _questions(self) -> Questions:
        return Questions(
            events=self._spool.events,
            describe_node=self._describe_node,
            latest_snapshot=self._latest_message,
            collect_now=self.collect_now,
            snapshot_message=self._recorder.snapshot_message,
            driver=self._sources.gpus if self._sources else None,
        )

    def _complete(self, snapshot: Snapshot) -> Snapshot:
        return self._sources.complete(snapshot, self._supervisor.states) if self._sources else snapshot

    def _latest_message(self) -> evidence_pb2.NodeSnapshot | None:
        return self._recorder.snapshot_message(self._latest) if self._latest else None

    def _describe_node(self) -> sentinel_pb2.Node:
        node = sentinel_pb2.Node(
            name=self._identity.node,
            connected=self._uplink.connected,
            agent_version=self._identity.agent_version,
            boot_id=self._identity.boot_id,
            simulated=self._identity.simulated,
            observed="observed",
        )
        node.last_seen_at.FromNanoseconds(time.time_ns())
        if offset := self._uplink.offset:
            node.clock_offset_usec = round(offset.seconds * 1e6)
            node.clock_error_usec = round(offset.error * 1e6)
        return node
