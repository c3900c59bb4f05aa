"""A whole aggregator in this process: real store, pipeline and gRPC server; and an agent that says exactly what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry

from aggregator.correlator import Windows
from aggregator.identity import Authenticator, LocalTrust
from aggregator.outputs.metrics import Metrics
from aggregator.pipeline import Pipeline, read_record
from aggregator.server import Server, TlsFiles
from aggregator.server.agents import Limits
from aggregator.server.presence import Presence
from aggregator.server.sessions import Sessions
from aggregator.store import Store
from protos.v1 import agent_pb2, agent_pb2_grpc, evidence_pb2, sentinel_pb2, sentinel_pb2_grpc
from tests.bench.load import kernel_line

BOOT = "boot-a"


@dataclass
class Aggregator:
    """Its parts, and how to reach it."""

    store: Store
    pipeline: Pipeline
    presence: Presence
    sessions: Sessions
    registry: CollectorRegistry
    address: str

    def metric(self, name: str, **labels: str) -> float | None:
        """A sample's value; None when there is no such series."""
        return self.registry.get_sample_value(name, {"cluster": "test", **labels})


@contextlib.asynccontextmanager
async def running(
    directory: Path,
    *,
    authenticator: Authenticator | None = None,
    limits: Limits | None = None,
    silent_seconds: float = 3600.0,
    forget_seconds: float = 86_400.0,
    tls: TlsFiles | None = None,
) -> AsyncIterator[Aggregator]:
    """An aggregator on a free port of loopback, its database in the directory."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, "test")
    store = Store(directory / "sentinel.db", read_record)
    limits = limits or Limits()
    sessions = Sessions(limits.max_streams)
    pipeline = Pipeline(store, [metrics], metrics, Windows())
    presence = Presence(pipeline, sessions, metrics, silent_seconds=silent_seconds, forget_seconds=forget_seconds)
    server = Server(pipeline, sessions, presence, authenticator or LocalTrust(), metrics, limits=limits, cluster="test")
    port = await server.start("127.0.0.1:0", tls)
    tasks = [asyncio.create_task(pipeline.run()), asyncio.create_task(presence.watch())]
    try:
        yield Aggregator(store, pipeline, presence, sessions, registry, f"127.0.0.1:{port}")
    finally:
        await server.stop(0.5)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await store.close()
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results


class Agent:
    """One stream, under a test's hand."""

    def __init__(self, channel: grpc.aio.Channel, token: str | None = None) -> None:
        metadata = (("authorization", f"Bearer {token}"),) if token else None
        self.call = agent_pb2_grpc.AgentServiceStub(channel).Connect(metadata=metadata)  # type: ignore[call-overload]

    async def say(self, **message: object) -> None:
        """Send one ConnectRequest."""
        await self.call.write(agent_pb2.ConnectRequest(**message))  # type: ignore[arg-type]

    async def hear(self, seconds: float = 5.0) -> agent_pb2.ConnectResponse:
        """The next ConnectResponse."""
        async with asyncio.timeout(seconds):
            message = await self.call.read()
        assert isinstance(message, agent_pb2.ConnectResponse), await self.status()
        return message

    async def greet(
        self, node: str = "gpu-1", installation: str = "installation-a", **hello: object
    ) -> agent_pb2.ServerHello:
        """Say hello and return the answer."""
        said = agent_pb2.AgentHello(node=node, installation_id=installation, boot_id=BOOT, agent_version="1", **hello)  # type: ignore[arg-type]
        await self.say(hello=said)
        return (await self.hear()).hello

    async def deliver(self, records: Sequence[agent_pb2.SpoolRecord], spool_id: str = "spool-a") -> int:
        """Send one batch; return the acknowledged offset."""
        await self.say(batch=agent_pb2.RecordBatch(log="events", spool_id=spool_id, records=records))
        return (await self.hear()).ack.offset

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ended."""
        async with asyncio.timeout(5):
            return await self.call.code(), await self.call.details()


@contextlib.asynccontextmanager
async def agent(aggregator: Aggregator, token: str | None = None) -> AsyncIterator[Agent]:
    """A stream on a connection of its own."""
    async with grpc.aio.insecure_channel(
        aggregator.address, options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        stream = Agent(channel, token)
        try:
            yield stream
        finally:
            stream.call.cancel()


@contextlib.asynccontextmanager
async def asking(aggregator: Aggregator) -> AsyncIterator[sentinel_pb2_grpc.SentinelServiceAsyncStub]:
    """A stub for questions."""
    async with grpc.aio.insecure_channel(aggregator.address) as channel:
        yield sentinel_pb2_grpc.SentinelServiceStub(channel)  # type: ignore[misc]


def lines(
    first: int, count: int, *, node: str = "gpu-1", text: str = "nvidia-nvlink: line"
) -> list[agent_pb2.SpoolRecord]:
    """Kernel lines, each ending at the offset of its number."""
    return [
        agent_pb2.SpoolRecord(end_offset=number, evidence=kernel_line(node, BOOT, number, f"{text} {number}"))
        for number in range(first, first + count)
    ]


def xid(number: int, code: int = 79, *, node: str = "gpu-1", bus: str = "3a") -> agent_pb2.SpoolRecord:
    """An XID's kernel line."""
    text = f"NVRM: Xid (PCI:0000:{bus}:00): {code}, pid=1234, name=train, GPU has fallen off the bus."
    return agent_pb2.SpoolRecord(end_offset=number, evidence=kernel_line(node, BOOT, number, text))


def snapshot(node: str = "gpu-1", gpus: int = 2, seconds: int = 1, nvml: str = "running") -> evidence_pb2.NodeSnapshot:
    """A node's state with so many GPUs on the buses 10, 11 …"""
    names = [
        evidence_pb2.GpuIdentity(uuid=f"GPU-{n}", pci=f"0000:{16 + n:02x}:00.0", model="H100") for n in range(gpus)
    ]
    return evidence_pb2.NodeSnapshot(
        node=node,
        taken_at={"seconds": seconds},
        inventory=evidence_pb2.Inventory(driver_version="570", gpus=names, pci_gpus=[gpu.pci for gpu in names]),
        collectors={"nvml": nvml},
    )


async def stored(aggregator: Aggregator, **request: object) -> list[sentinel_pb2.StoredEvidence]:
    """ListEvidence, one page."""
    async with asking(aggregator) as stub:
        page = await stub.ListEvidence(sentinel_pb2.ListEvidenceRequest(page_size=1000, **request))  # type: ignore[arg-type]
    return list(page.evidence)


async def eventually(condition: object, seconds: float = 8.0) -> object:
    """Await the condition's first true answer; it is a function, plain or async."""
    async with asyncio.timeout(seconds):
        while True:
            answer = condition()  # type: ignore[operator]
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(0.02)
