"""A load generator that speaks the agents' real stream: many nodes in one process, each with its own connection.

It keeps what it sent until it is acknowledged, as an agent does, so that "stored" means acknowledged after commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc

from protos.v1 import agent_pb2, agent_pb2_grpc, evidence_pb2

REDIAL_SECONDS = 10.0
LAST_ACK_SECONDS = 30.0
CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own, as every node has


def kernel_line(node: str, epoch: str, seq: int, line: str) -> bytes:
    """A serialized Evidence that holds one kernel record."""
    message = evidence_pb2.Evidence(
        node=node,
        source="kmsg",
        epoch=epoch,
        seq=seq,
        kind="kernel_line",
        phase=evidence_pb2.PHASE_POINT,
        time_basis=evidence_pb2.TIME_BASIS_OBSERVED,
        boot_id=epoch,
        kernel_record=evidence_pb2.KernelRecord(line=line, seq=seq, level=4, monotonic_usec=seq, flags="-"),
    )
    message.occurred_at.GetCurrentTime()
    message.collected_at.CopyFrom(message.occurred_at)
    return message.SerializeToString()


@dataclass
class LoadNode:
    """One node's stream. `latencies` are seconds from sending a record to its acknowledgement."""

    name: str
    address: str
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    spool_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    installation_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    seq: int = 0
    acked: int = 0
    latencies: list[float] = field(default_factory=list)
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    _sent: dict[int, float] = field(default_factory=dict)
    _outbox: asyncio.Queue[agent_pb2.ConnectRequest] = field(default_factory=asyncio.Queue)

    def send(self, lines: list[str]) -> None:
        """Queue one batch of kernel lines."""
        now = time.perf_counter()
        batch = agent_pb2.RecordBatch(log="events", spool_id=self.spool_id)
        for line in lines:
            self.seq += 1
            self._sent[self.seq] = now
            batch.records.add(end_offset=self.seq, evidence=kernel_line(self.name, self.boot_id, self.seq, line))
        self._outbox.put_nowait(agent_pb2.ConnectRequest(batch=batch))

    async def run(self) -> None:
        """Hold the stream until cancelled; redial with full jitter, as agents do."""
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS) as channel:
                    await self._stream(agent_pb2_grpc.AgentServiceStub(channel))
            self.connected.clear()
            await asyncio.sleep(random.uniform(0, REDIAL_SECONDS))

    async def _stream(self, stub: agent_pb2_grpc.AgentServiceAsyncStub) -> None:
        async for response in stub.Connect(self._requests()):
            kind = response.WhichOneof("message")
            if kind == "hello":
                self.connected.set()
            elif kind == "ack":
                now = time.perf_counter()
                for offset in range(self.acked + 1, response.ack.offset + 1):
                    self.latencies.append(now - self._sent.pop(offset, now))
                self.acked = max(self.acked, response.ack.offset)

    async def _requests(self) -> AsyncIterator[agent_pb2.ConnectRequest]:
        yield agent_pb2.ConnectRequest(
            hello=agent_pb2.AgentHello(
                node=self.name,
                agent_version="load",
                boot_id=self.boot_id,
                installation_id=self.installation_id,
                logs=[agent_pb2.LogState(log="events", spool_id=self.spool_id, end_offset=self.seq)],
            )
        )
        while True:
            yield await self._outbox.get()


@contextlib.asynccontextmanager
async def fleet(address: str, count: int, *, dial_per_second: int = 500) -> AsyncIterator[list[LoadNode]]:
    """Connect `count` nodes and keep them connected."""
    nodes = [LoadNode(f"load-{number:05}", address) for number in range(count)]
    async with asyncio.TaskGroup() as group:
        tasks = []
        for number, node in enumerate(nodes):
            tasks.append(group.create_task(node.run()))
            if number % dial_per_second == dial_per_second - 1:
                await asyncio.sleep(1)
        for node in nodes:
            await node.connected.wait()
        try:
            yield nodes
        finally:
            for task in tasks:
                task.cancel()


async def steady(
    nodes: list[LoadNode], *, per_second: int, seconds: float, line: Callable[[int], str], batch: int = 1
) -> float:
    """Send at a steady rate over all nodes in turn; return the seconds from first send to last acknowledgement, or to giving up."""
    started = time.perf_counter()
    total = int(per_second * seconds)
    sent = 0
    while sent < total:
        due = min(total, int((time.perf_counter() - started) * per_second) + batch)
        while sent < due:
            node = nodes[(sent // batch) % len(nodes)]
            node.send([line(sent + index) for index in range(batch)])
            sent += batch
        await asyncio.sleep(0.005)
    give_up = time.perf_counter() + LAST_ACK_SECONDS  # what a broken stream took along is not sent again
    while any(node.acked < node.seq for node in nodes) and time.perf_counter() < give_up:
        await asyncio.sleep(0.01)
    return time.perf_counter() - started
