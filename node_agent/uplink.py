"""Keeps a stream to the aggregator open for as long as the agent runs: dials, resumes, renews, backs off with full jitter.

Delivery is at least once. Each stream begins where the server says its store ends, so nothing here needs to be remembered.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc.aio

from node_agent.clock import Offset
from node_agent.dial import DialError, Endpoint, explain
from node_agent.evidence import Recorder, Report
from node_agent.identity import Identity
from node_agent.spool import SpoolLog
from node_agent.stream import Call, CollectNow, Cursor, Stream
from protos.v1 import agent_pb2 as pb
from protos.v1.agent_pb2_grpc import AgentServiceStub

log = logging.getLogger(__name__)

DEFAULT_MAX_MESSAGE_BYTES = 4 * 1024 * 1024  # gRPC's own, for a server that states none


@dataclass(frozen=True, slots=True)
class Pace:
    """Delays in seconds. A stream that lasted `steady` makes the next failure a first one again."""

    hello: float = 10.0
    longest_redial: float = 30.0
    steady: float = 10.0
    renew: float = 1800.0
    probe: float = 60.0
    repeat_log: float = 600.0


class Uplink:
    """Delivers the logs, the first one first. Its public attributes are for the probes: read them, never set them."""

    def __init__(
        self,
        endpoint: Endpoint,
        identity: Identity,
        logs: Sequence[SpoolLog],
        *,
        recorder: Recorder,
        collect_now: CollectNow,
        report: Report,
        pace: Pace | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._identity = identity
        self._logs = logs
        self._recorder = recorder
        self._collect_now = collect_now
        self._report = report
        self._pace = pace or Pace()
        self._stream: Stream | None = None
        self._dialling = False
        self._progress = asyncio.Event()
        self._last_problem = ""
        self._said_at = 0.0
        self.dials = 0
        self._last_offset: Offset | None = None

    @property
    def offset(self) -> Offset | None:
        """The server's clock against this node's, as last measured."""
        return self._stream.offset if self._stream and self._stream.offset else self._last_offset

    @property
    def connected(self) -> bool:
        """Whether a stream is open and greeted."""
        return self._stream is not None

    async def run(self) -> None:
        """Deliver until cancelled."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            dialled_at = loop.time()
            problem = await self._deliver()
            if problem is None:
                continue
            failures = 0 if loop.time() - dialled_at > self._pace.hello + self._pace.steady else failures + 1
            self._say(problem)
            await asyncio.sleep(random.uniform(0, min(self._pace.longest_redial, 2.0 ** min(failures, 16) / 2)))  # noqa: S311

    async def drain(self) -> None:
        """Return when the server has stored everything, or when no stream is open, or being opened, that could carry it."""
        while self._dialling or (self._stream is not None and not self._stream.all_stored):
            self._progress.clear()
            await self._progress.wait()

    async def _deliver(self) -> str | None:
        """One stream from dial to end. None: dial again at once. Else what went wrong, in one line."""
        self.dials += 1
        self._dialling = True
        try:
            async with self._endpoint.channel() as channel:
                return await self._deliver_over(channel)
        except grpc.aio.AioRpcError as error:
            return explain(error)
        except DialError as error:
            return str(error)
        finally:
            self._dialling = False
            self._progress.set()

    async def _deliver_over(self, channel: grpc.aio.Channel) -> str | None:
        call: Call = AgentServiceStub(channel).Connect(metadata=self._endpoint.metadata())
        try:
            async with asyncio.timeout(self._pace.hello):
                hello = await self._greet(call)
        except TimeoutError:
            return f"no hello from the aggregator within {self._pace.hello:.0f} s: is it overloaded, or the address another's?"
        cursors = self._resume(hello)
        stream = Stream(
            call,
            cursors,
            max_message_bytes=hello.max_message_bytes or DEFAULT_MAX_MESSAGE_BYTES,
            probe_seconds=self._pace.probe,
            recorder=self._recorder,
            collect_now=self._collect_now,
            report=self._report,
            progress=self._progress,
        )
        return await self._carry(stream)

    async def _carry(self, stream: Stream) -> str | None:
        self._stream = stream
        self._dialling = False
        try:
            renewed = await stream.carry(self._pace.renew * random.uniform(0.9, 1.1))  # noqa: S311
        finally:
            self._last_offset = self.offset
            self._stream = None
        return None if renewed else "the aggregator closed the stream"

    async def _greet(self, call: Call) -> pb.ServerHello:
        await call.write(pb.ConnectRequest(hello=self._hello()))
        response = await call.read()
        if not isinstance(response, pb.ConnectResponse) or response.WhichOneof("message") != "hello":
            raise DialError("the aggregator did not begin with a hello: is GCM_SENTINEL_AGGREGATOR_ADDRESS right?")
        return response.hello

    def _hello(self) -> pb.AgentHello:
        return pb.AgentHello(
            node=self._identity.node,
            agent_version=self._identity.agent_version,
            boot_id=self._identity.boot_id,
            installation_id=self._identity.installation_id,
            simulated=self._identity.simulated,
            logs=[
                pb.LogState(
                    log=spool_log.name,
                    spool_id=spool_log.spool_id,
                    begin_offset=spool_log.begin_offset,
                    end_offset=spool_log.end_offset,
                    acked_offset=spool_log.acked_offset,
                )
                for spool_log in self._logs
            ],
        )

    def _resume(self, hello: pb.ServerHello) -> list[Cursor]:
        """Where to send from. Raises DialError when a log had to take a new spool_id, which only a new hello can announce."""
        committed: Mapping[str, int] = {entry.spool_id: entry.offset for entry in hello.committed}
        announced = [spool_log.spool_id for spool_log in self._logs]
        cursors = [Cursor(spool_log, committed.get(spool_log.spool_id, 0)) for spool_log in self._logs]
        if [spool_log.spool_id for spool_log in self._logs] != announced:
            raise DialError("it holds more than this spool does, which lost its tail and goes on under a new spool_id")
        self._last_problem = ""
        log.info(
            "connected to aggregator %s (%s), store %s", self._endpoint.address, hello.server_version, hello.store_id
        )
        return cursors

    def _say(self, problem: str) -> None:
        """Log a problem when it is new, and again now and then: an unreachable aggregator must not fill the log."""
        now = asyncio.get_running_loop().time()
        repeated = problem == self._last_problem and now - self._said_at < self._pace.repeat_log
        if not repeated:
            self._last_problem, self._said_at = problem, now
        level = logging.DEBUG if repeated else logging.WARNING
        log.log(level, "no stream to aggregator %s: %s", self._endpoint.address, problem)
