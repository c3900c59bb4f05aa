"""The agents' side: one stream each, from hello to ack. Whatever one agent sends hurts that agent's stream alone.

Backpressure is gRPC's own: a stream whose records wait for the disk, or that sends faster than its rate, is simply not read.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection

from aggregator.identity import Authenticator
from aggregator.pipeline import Pipeline
from aggregator.server.refusal import Refusal, admission, authorization, invalid
from aggregator.server.sessions import Session, Sessions
from aggregator.server.undecodable import TEXT as UNDECODABLE
from aggregator.store.arrivals import Body, Delivery, Receipt, Record, committed_offsets
from aggregator.store.nodes import Agent, save_agent, save_clock
from aggregator.store.writer import StoreClosed
from protos.v1 import agent_pb2, agent_pb2_grpc

MAX_LOGS = 16  # spool logs of one stream
MAX_OFFSET = 2**63 - 1
UNCONFIRMED_BATCHES = 2  # of one stream that may wait to be committed while a third is not yet read
VANISHED_SECONDS = 0.1
_NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")

log = structlog.get_logger(__name__)

_Unconfirmed = asyncio.Queue[tuple[str, asyncio.Future[Receipt]] | None]
Context = grpc.aio.ServicerContext[agent_pb2.ConnectRequest, agent_pb2.ConnectResponse]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one agent, and all together, may ask of the server."""

    max_message_bytes: int = 4 * 2**20
    max_streams: int = 20_000
    hello_seconds: float = 10.0
    records_per_second: float = 2000.0  # steady rate of one stream
    burst_records: float = 20_000.0  # what it may send at once before that: a spool that was cut off for a while


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """Takes records, and confirms them once they are durable."""

    def __init__(
        self, pipeline: Pipeline, sessions: Sessions, authenticator: Authenticator, limits: Limits, cluster: str
    ) -> None:
        self._pipeline = pipeline
        self._sessions = sessions
        self._authenticator = authenticator
        self._limits = limits
        self._cluster = cluster

    async def Connect(  # type: ignore[override]  # noqa: N802 - gRPC's name; the stub knows only methods that yield
        self, request_iterator: AsyncIterable[agent_pb2.ConnectRequest], context: Context
    ) -> None:
        """One agent's stream, until either side ends it."""
        end: Refusal | None = None
        try:
            await self._serve(context)
        except* Refusal as group:
            end = _first(group)
        except* StoreClosed:
            end = Refusal(grpc.StatusCode.UNAVAILABLE, "the aggregator is stopping")
        if end is not None:
            log.info("stream_ended", status=end.code.name, reason=end.text, peer=context.peer())
            await context.abort(end.code, end.text)

    async def _serve(self, context: Context) -> None:
        hello = await self._hello(context)
        session = Session(hello, context.write)
        with self._sessions.joined(session):
            await self._greet(hello, session)
            await self._converse(session, context)

    async def _hello(self, context: Context) -> agent_pb2.AgentHello:
        """The first message, checked; who sends it may speak for the node it names."""
        try:
            async with asyncio.timeout(self._limits.hello_seconds):
                first = await _read(context)
        except TimeoutError:
            raise Refusal(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"no hello within {self._limits.hello_seconds:g} seconds"
            ) from None
        if first is None or first.WhichOneof("message") != "hello":
            raise invalid("the first message must be a hello")
        hello = first.hello
        if problem := _hello_problem(hello):
            raise invalid(problem)
        try:
            with admission():
                self._authenticator.admit_agent(authorization(context), hello.node)
        except Refusal:
            self._sessions.rejected(hello.node)
            raise
        return hello

    async def _greet(self, hello: agent_pb2.AgentHello, session: Session) -> None:
        """Note the agent, and tell it what is stored of its spool."""
        agent = Agent(hello.node, hello.installation_id, hello.agent_version, hello.boot_id, hello.simulated)
        spool_ids = list(session.acked_before)

        def note(connection: Connection) -> dict[str, int]:
            save_agent(connection, agent, session.heard_us)
            return committed_offsets(connection, agent.node, spool_ids)

        store = self._pipeline.store
        committed = await store.write(note)
        answer = agent_pb2.ServerHello(
            store_id=store.store_id,
            committed=[
                agent_pb2.CommittedOffset(spool_id=spool_id, offset=committed.get(spool_id, 0))
                for spool_id in spool_ids
            ],
            max_message_bytes=self._limits.max_message_bytes,
            server_version=version("gcm-sentinel"),
            cluster=self._cluster,
        )
        await session.send(agent_pb2.ConnectResponse(hello=answer))
        log.info("agent_connected", node=hello.node, agent_version=hello.agent_version, simulated=hello.simulated)

    async def _converse(self, session: Session, context: Context) -> None:
        """Read and confirm until the agent closes its side, or the stream is ended from here."""
        unconfirmed: _Unconfirmed = asyncio.Queue(UNCONFIRMED_BATCHES)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(session, context, unconfirmed))
            group.create_task(self._confirm(session, unconfirmed))
            await session.ended

    async def _listen(self, session: Session, context: Context, unconfirmed: _Unconfirmed) -> None:
        """Read until the agent closes its side."""
        rate = _Rate(self._limits.records_per_second, self._limits.burst_records)
        while (request := await _read(context)) is not None:
            session.heard_us = time.time_ns() // 1000
            match request.WhichOneof("message"):
                case "batch":
                    if request.batch.records:
                        delivery = _delivery(session, request.batch)
                        await unconfirmed.put((delivery.spool_id, await self._pipeline.receive(delivery)))
                        await rate.spend(len(delivery.records))
                case "clock_probe":
                    await session.send(_clock_reply(request.clock_probe.agent_sent_at))
                case "clock_offset":
                    await self._note_clock(session, request.clock_offset)
                case "collect_reply":
                    session.answer(request.collect_reply)
                case "hello":
                    raise invalid("a second hello")
                case _:
                    pass  # a newer agent's message: nothing here answers it
        await unconfirmed.put(None)

    async def _confirm(self, session: Session, unconfirmed: _Unconfirmed) -> None:
        """Acknowledge what is durable, in order; the end of the queue ends the stream."""
        while (waiting := await unconfirmed.get()) is not None:
            spool_id, stored = waiting
            receipt = await stored
            await session.send(agent_pb2.ConnectResponse(ack=agent_pb2.Ack(spool_id=spool_id, offset=receipt.offset)))
            if receipt.foreign:
                raise Refusal(grpc.StatusCode.PERMISSION_DENIED, f"a record claims another node than {session.node!r}")
        # One that vanished reads like one that closed its side, until gRPC cancels the call a moment later; a status for it
        # could not be sent, and gRPC would log that as an error.
        await asyncio.sleep(VANISHED_SECONDS)
        session.ended.set_result(None)

    async def _note_clock(self, session: Session, offset: agent_pb2.ClockOffset) -> None:
        if offset.error_usec > MAX_OFFSET:
            raise invalid("clock_offset.error_usec is out of range")
        change = partial(save_clock, node=session.node, offset_us=offset.offset_usec, error_us=offset.error_usec)
        await self._pipeline.store.write(change)


class _Rate:
    """A token bucket that makes its reader wait, so that a sender feels it as flow control."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left = burst
        self._updated = time.monotonic()

    async def spend(self, amount: int) -> None:
        """Return once the debt is paid off."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._updated) * self._per_second) - amount
        self._updated = now
        if self._left < 0:
            await asyncio.sleep(-self._left / self._per_second)


async def _read(context: Context) -> agent_pb2.ConnectRequest | None:
    """The next message; None when the agent has closed its side."""
    try:
        message: object = await context.read()
    except DecodeError:
        raise invalid(UNDECODABLE) from None
    return message if isinstance(message, agent_pb2.ConnectRequest) else None


def _hello_problem(hello: agent_pb2.AgentHello) -> str | None:
    if not _NODE_NAME.fullmatch(hello.node):
        return "hello.node is no node name"
    if not 1 <= len(hello.installation_id) <= 64:
        return "hello.installation_id must have 1 to 64 characters"
    if len(hello.agent_version) > 64 or len(hello.boot_id) > 64:
        return "hello.agent_version and hello.boot_id have at most 64 characters"
    if len(hello.logs) > MAX_LOGS:
        return f"hello.logs holds more than {MAX_LOGS} logs"
    if any(not 1 <= len(spool.spool_id) <= 64 for spool in hello.logs):
        return "hello.logs.spool_id must have 1 to 64 characters"
    return None


def _delivery(session: Session, batch: agent_pb2.RecordBatch) -> Delivery:
    """The batch's records; those that an earlier store acknowledged are marked as replayed."""
    if not 1 <= len(batch.spool_id) <= 64:
        raise invalid("batch.spool_id must have 1 to 64 characters")
    if batch.spool_id not in session.acked_before and len(session.acked_before) >= MAX_LOGS:
        raise invalid(f"one stream carries at most {MAX_LOGS} logs")
    acked_before = session.acked_before.setdefault(batch.spool_id, 0)
    records = []
    last = 0
    for record in batch.records:
        if not last < record.end_offset <= MAX_OFFSET:
            raise invalid(
                f"batch.records.end_offset {record.end_offset} does not follow {last}",
            )
        last = record.end_offset
        records.append(Record(last, *_body(record), replayed=last <= acked_before))
    return Delivery(session.node, batch.spool_id, tuple(records))


def _body(record: agent_pb2.SpoolRecord) -> tuple[bytes, Body]:
    match record.WhichOneof("body"):
        case "evidence":
            return record.evidence, Body.EVIDENCE
        case "snapshot":
            return record.snapshot, Body.SNAPSHOT
    return record.SerializeToString(), Body.UNKNOWN


def _clock_reply(agent_sent_at: Timestamp) -> agent_pb2.ConnectResponse:
    reply = agent_pb2.ClockReply(agent_sent_at=agent_sent_at)
    reply.server_at.FromNanoseconds(time.time_ns())
    return agent_pb2.ConnectResponse(clock_reply=reply)


def _first(group: BaseExceptionGroup[Refusal]) -> Refusal:
    inner = group.exceptions[0]
    return inner if isinstance(inner, Refusal) else _first(inner)
