"""A real gRPC server that plays the aggregator's part: it stores what it is sent and can be told to misbehave."""

# ruff: noqa: N802

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from protos.v1 import agent_pb2 as pb
from protos.v1 import evidence_pb2
from protos.v1.agent_pb2_grpc import AgentServiceServicer, add_AgentServiceServicer_to_server

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Script:
    """How the server behaves; may be changed while it runs."""

    refuse: tuple[grpc.StatusCode, str] | None = None
    silent: bool = False  # no hello, ever
    clock_ahead_seconds: float = 0.0
    max_message_bytes: int = 4 * 1024 * 1024
    ack: bool = True
    reading: asyncio.Event = field(default_factory=asyncio.Event)  # cleared: it stops reading from the stream
    break_after_records: int | None = None  # abort the stream, unacknowledged, once it holds so many records
    committed_override: int | None = None

    def __post_init__(self) -> None:
        self.reading.set()


class ScriptedAggregator(AgentServiceServicer):
    """Stores records in memory under their spool_id, exactly as it gets them."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.script = Script()
        self.port = 0
        self.hellos: list[pb.AgentHello] = []
        self.metadata: list[dict[str, str]] = []
        self.dialled_at: list[float] = []
        self.arrivals: list[
            tuple[str, int, bytes, float]
        ] = []  # log, end_offset, payload, monotonic arrival: with repetitions
        self.committed: dict[str, int] = {}
        self.offsets: list[pb.ClockOffset] = []
        self.collect_replies: asyncio.Queue[pb.CollectReply] = asyncio.Queue()
        self.ended: list[str] = []
        self._credentials = credentials
        self._server: grpc.aio.Server | None = None
        self._context: Context | None = None
        self._arrived = asyncio.Condition()
        self._writing = asyncio.Lock()

    async def start(self) -> str:
        """Serve on the same port as before, or any; returns the address."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_AgentServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()
        return f"127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """Die at once: streams break."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def forget(self) -> None:
        """Become a new, empty store."""
        self.committed.clear()
        self.arrivals.clear()

    async def collect(self, request_id: str, deadline_ms: int) -> None:
        """Ask the agent for a reading."""
        assert self._context is not None
        request = pb.CollectRequest(request_id=request_id, deadline_ms=deadline_ms)
        await self._write(self._context, pb.ConnectResponse(collect_request=request))

    async def end_stream(self) -> None:
        """Close the present stream in an orderly way."""
        assert self._context is not None
        await self._context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    def evidence(self, kind: str | None = None) -> list[evidence_pb2.Evidence]:
        """Evidence in order of arrival, repetitions included."""
        messages = [evidence_pb2.Evidence.FromString(p) for log, _, p, _ in self.arrivals if log == "events"]
        return [message for message in messages if kind in (None, message.kind)]

    def payloads(self, log: str = "events") -> list[bytes]:
        """Distinct records of a log in order of first arrival."""
        return list(dict.fromkeys(payload for name, _, payload, _ in self.arrivals if name == log))

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait for something to arrive. Raises TimeoutError."""
        async with asyncio.timeout(seconds), self._arrived:
            await self._arrived.wait_for(condition)

    async def Connect(self, requests: AsyncIterator[pb.ConnectRequest], context: Context) -> None:  # type: ignore[override]
        self.dialled_at.append(time.monotonic())
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        await self._notify()
        if self.script.refuse is not None:
            await context.abort(*self.script.refuse)
        if self.script.silent:
            await asyncio.sleep(3600)
        first = await anext(aiter(requests))
        assert first.WhichOneof("message") == "hello"
        self.hellos.append(first.hello)
        await self._write(context, pb.ConnectResponse(hello=self._hello(first.hello)))
        self._context = context
        await self._notify()
        async for request in requests:
            await self.script.reading.wait()
            await self._take(request, context)
            await self._notify()
        self.ended.append("half closed by the agent")
        await self._notify()

    def _hello(self, hello: pb.AgentHello) -> pb.ServerHello:
        override = self.script.committed_override
        return pb.ServerHello(
            store_id=str(uuid.uuid4()),
            committed=[
                pb.CommittedOffset(
                    spool_id=log.spool_id, offset=self.committed.get(log.spool_id, 0) if override is None else override
                )
                for log in hello.logs
            ],
            max_message_bytes=self.script.max_message_bytes,
            server_version="scripted",
        )

    async def _take(self, request: pb.ConnectRequest, context: Context) -> None:
        assert request.ByteSize() <= self.script.max_message_bytes
        match request.WhichOneof("message"):
            case "batch":
                await self._store(request.batch, context)
            case "collect_reply":
                await self.collect_replies.put(request.collect_reply)
            case "clock_offset":
                self.offsets.append(request.clock_offset)
            case "clock_probe":
                reply = pb.ConnectResponse()
                reply.clock_reply.agent_sent_at.CopyFrom(request.clock_probe.agent_sent_at)
                reply.clock_reply.server_at.FromNanoseconds(
                    time.time_ns() + round(self.script.clock_ahead_seconds * 1e9)
                )
                await self._write(context, reply)

    async def _store(self, batch: pb.RecordBatch, context: Context) -> None:
        for record in batch.records:
            body = record.WhichOneof("body")
            assert body is not None
            self.arrivals.append((batch.log, record.end_offset, getattr(record, body), time.monotonic()))
            limit = self.script.break_after_records
            if limit is not None and len(self.arrivals) >= limit:
                self.script.break_after_records = None
                await self._notify()
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken on purpose")
        if self.script.ack:
            self.committed[batch.spool_id] = batch.records[-1].end_offset
            ack = pb.Ack(spool_id=batch.spool_id, offset=batch.records[-1].end_offset)
            await self._write(context, pb.ConnectResponse(ack=ack))

    async def _write(self, context: Context, response: pb.ConnectResponse) -> None:
        async with self._writing:  # gRPC takes one write at a time
            await context.write(response)

    async def _notify(self) -> None:
        async with self._arrived:
            self._arrived.notify_all()
