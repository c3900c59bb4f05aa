"""One open stream to the aggregator: sends what the spool holds, takes acknowledgements, answers the server.

Events go before samples, the server's questions before both. At most `WINDOW_BYTES` of each log are on their way unacknowledged;
a slow server stops this task and nothing else, because what is not sent is in the spool.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc.aio

from node_agent.clock import ClockEstimate, Offset
from node_agent.evidence import Fact, Gap, Recorder, Report, Snapshot
from node_agent.spool import SpoolLog, SpoolRecord
from protos.v1 import agent_pb2 as pb

log = logging.getLogger(__name__)

BATCH_BYTES = 256 * 1024
BATCH_RECORDS = 500
WINDOW_BYTES = 1024 * 1024
RECORD_OVERHEAD_BYTES = 256  # tags, lengths and spool_id around one record in a message of its own
HALF_CLOSED_SECONDS = 5.0
FIRST_PROBES = 5
FIRST_PROBE_SECONDS = 0.1
CONCURRENT_ANSWERS = 4
DEFAULT_ANSWER_SECONDS = 10.0

Call = grpc.aio.StreamStreamCall[pb.ConnectRequest, pb.ConnectResponse]
CollectNow = Callable[[float], Awaitable[Snapshot]]
"""Reads the GPUs afresh within so many seconds; raises when it cannot."""


class Cursor:
    """How far one log was sent on this stream, and how far the server has stored it. Offsets are the log's own."""

    def __init__(self, spool_log: SpoolLog, committed_offset: int) -> None:
        self.log = spool_log
        self.sent = self.stored = spool_log.resume_at(committed_offset)
        self._nothing_before = self.sent

    @property
    def open(self) -> bool:
        """Whether the window lets more be sent."""
        return self.sent - self.stored < WINDOW_BYTES

    def take(self, max_bytes: int) -> list[SpoolRecord]:
        """The next records; they count as sent."""
        if not self.open or self.sent >= self.log.end_offset:
            return []
        end_offset = self.log.end_offset
        records = self.log.read(self.sent, max_bytes=max_bytes, max_records=BATCH_RECORDS)
        if records:
            self.sent = records[-1].end_offset
        else:
            self._nothing_before = end_offset
        return records

    async def wait(self) -> None:
        """Return when there may be something to take. What is lost or unreadable at the end is not asked for again and again."""
        await self.log.wait_beyond(max(self.sent, self._nothing_before))

    def acknowledge(self, offset: int) -> None:
        """The server has stored what ends at or before the offset; what was never sent cannot be."""
        self.stored = max(self.stored, min(offset, self.sent))
        self.log.acknowledge(self.stored)


class Stream:
    """One call, from after the hellos to its end."""

    def __init__(
        self,
        call: Call,
        cursors: Sequence[Cursor],
        *,
        max_message_bytes: int,
        probe_seconds: float,
        recorder: Recorder,
        collect_now: CollectNow,
        report: Report,
        progress: asyncio.Event,
    ) -> None:
        self._call = call
        self._cursors = cursors
        self._max_message_bytes = max_message_bytes
        self._probe_seconds = probe_seconds
        self._recorder = recorder
        self._collect_now = collect_now
        self._report = report
        self._answers: deque[pb.ConnectRequest] = deque()
        self._collecting: set[asyncio.Task[None]] = set()
        self._work = asyncio.Event()
        self._clock = ClockEstimate()
        self._probe_due = False
        self._probe_sent_at: float | None = None  # monotonic
        self._renewing = False
        self.offset: Offset | None = None
        self._progress = progress

    @property
    def all_stored(self) -> bool:
        """Whether the server has everything that the spool holds."""
        return all(cursor.stored >= cursor.log.end_offset for cursor in self._cursors)

    async def carry(self, renew_seconds: float) -> bool:
        """Exchange messages until the stream ends: True when it was time to renew it, False when the server closed it.
        Raises AioRpcError when it broke."""
        renewal = asyncio.get_running_loop().call_later(renew_seconds, self._begin_renewal)
        try:
            async with asyncio.timeout(renew_seconds + HALF_CLOSED_SECONDS):
                error = await self._exchange()
        except TimeoutError:  # half closed, and the server did not finish: what it has stored is in its next hello
            error = None
        finally:
            renewal.cancel()
        if error is not None:
            raise error
        return self._renewing

    def _begin_renewal(self) -> None:
        self._renewing = True
        self._work.set()

    async def _exchange(self) -> grpc.aio.AioRpcError | None:
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(self._send()), group.create_task(self._keep_time())]
            error = await self._receive(group)
            for task in (*background, *self._collecting):
                task.cancel()
        return error

    async def _send(self) -> None:
        try:
            while not self._renewing:
                request = self._next_request()
                if request is None:
                    await self._wait_for_work()
                else:
                    await self._call.write(request)
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the stream has ended: the receiving side learns why

    def _next_request(self) -> pb.ConnectRequest | None:
        if self._answers:
            return self._answers.popleft()
        if self._probe_due:
            return self._probe()
        for cursor in self._cursors:
            while records := cursor.take(min(BATCH_BYTES, self._max_message_bytes // 2)):
                if fitting := self._fitting(cursor, records):
                    return pb.ConnectRequest(batch=_batch(cursor.log, fitting))
        return None

    async def _wait_for_work(self) -> None:
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._work.wait())]
        waits += [asyncio.ensure_future(c.wait()) for c in self._cursors if c.open]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in done:
                wait.result()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        self._work.clear()

    def _fitting(self, cursor: Cursor, records: Sequence[SpoolRecord]) -> list[SpoolRecord]:
        """The records without those that the server would refuse for their size: they are lost to it, and that is reported."""
        limit = self._max_message_bytes - RECORD_OVERHEAD_BYTES
        for record in records:
            if len(record.payload) > limit:
                self._report(_too_large(cursor.log, record, self._max_message_bytes))
        return [record for record in records if len(record.payload) <= limit]

    async def _receive(self, group: asyncio.TaskGroup) -> grpc.aio.AioRpcError | None:
        try:
            while isinstance(response := await self._call.read(), pb.ConnectResponse):
                self._take(response, group)
        except grpc.aio.AioRpcError as error:
            return error
        return None

    def _take(self, response: pb.ConnectResponse, group: asyncio.TaskGroup) -> None:
        match response.WhichOneof("message"):
            case "ack":
                self._acknowledge(response.ack)
            case "collect_request":
                self._begin_answer(response.collect_request, group)
            case "clock_reply":
                self._read_clock(response.clock_reply)
            case other:
                log.debug("a message that this version does not know: %s", other)

    def _acknowledge(self, ack: pb.Ack) -> None:
        for cursor in self._cursors:
            if cursor.log.spool_id == ack.spool_id:
                cursor.acknowledge(ack.offset)
        self._work.set()
        self._progress.set()

    def _begin_answer(self, request: pb.CollectRequest, group: asyncio.TaskGroup) -> None:
        if len(self._collecting) >= CONCURRENT_ANSWERS:
            self._answer(pb.CollectReply(request_id=request.request_id, error="the agent is busy with other requests"))
            return
        task = group.create_task(self._collect(request))
        self._collecting.add(task)
        task.add_done_callback(self._collecting.discard)

    async def _collect(self, request: pb.CollectRequest) -> None:
        seconds = request.deadline_ms / 1000 or DEFAULT_ANSWER_SECONDS
        reply = pb.CollectReply(request_id=request.request_id)
        try:
            async with asyncio.timeout(seconds):
                reply.snapshot.CopyFrom(self._recorder.snapshot_message(await self._collect_now(seconds)))
        except TimeoutError:
            reply.error = f"no reading within {seconds:.1f} s"
        except Exception as error:  # noqa: BLE001  # whatever reading raises is the answer, and must not end the stream
            reply.error = f"{type(error).__name__}: {error}"
        if reply.ByteSize() > self._max_message_bytes - RECORD_OVERHEAD_BYTES:
            reply = pb.CollectReply(
                request_id=request.request_id, error="the reading is larger than the server accepts"
            )
        self._answer(reply)

    def _answer(self, reply: pb.CollectReply) -> None:
        self._answers.append(pb.ConnectRequest(collect_reply=reply))
        self._work.set()

    async def _keep_time(self) -> None:
        for seconds in itertools.chain(
            itertools.repeat(FIRST_PROBE_SECONDS, FIRST_PROBES), itertools.repeat(self._probe_seconds)
        ):
            self._probe_due = True
            self._work.set()
            await asyncio.sleep(seconds)

    def _probe(self) -> pb.ConnectRequest:
        self._probe_due = False
        self._probe_sent_at = time.monotonic()
        request = pb.ConnectRequest()
        request.clock_probe.agent_sent_at.FromNanoseconds(time.time_ns())
        return request

    def _read_clock(self, reply: pb.ClockReply) -> None:
        if self._probe_sent_at is None:
            return
        now = time.monotonic()
        self.offset = self._clock.add(
            sent_at=reply.agent_sent_at.ToNanoseconds() / 1e9,
            server_at=reply.server_at.ToNanoseconds() / 1e9,
            round_trip=now - self._probe_sent_at,
            monotonic=now,
        )
        self._probe_sent_at = None
        offset = pb.ClockOffset(
            offset_usec=round(self.offset.seconds * 1e6), error_usec=max(1, round(self.offset.error * 1e6))
        )
        self._answers.append(pb.ConnectRequest(clock_offset=offset))
        self._work.set()


def _batch(spool_log: SpoolLog, records: Sequence[SpoolRecord]) -> pb.RecordBatch:
    body = "snapshot" if spool_log.name == "samples" else "evidence"
    return pb.RecordBatch(
        log=spool_log.name,
        spool_id=spool_log.spool_id,
        records=[pb.SpoolRecord(end_offset=record.end_offset, **{body: record.payload}) for record in records],
    )


def _too_large(spool_log: SpoolLog, record: SpoolRecord, max_message_bytes: int) -> Fact:
    return Fact(
        source="gap",
        kind="evidence_gap",
        identity=(f"too_large/{spool_log.spool_id}", record.end_offset),
        detail=f"a record of {len(record.payload)} bytes was not sent: the server accepts {max_message_bytes} bytes a message",
        body=Gap(
            where="uplink",
            reason="larger than the server accepts",
            lost_epoch=spool_log.spool_id,
            first=record.end_offset,
            last=record.end_offset,
            lost_count=1,
        ),
    )
