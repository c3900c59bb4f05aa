"""The node's own query service on a root-only unix socket: a node cut off from its aggregator can still be asked.

The same SentinelService as the aggregator's, for this node alone and from the spool, and the switch that lets go of the driver.
Reflection and health are on, so plain `grpcurl -unix` works without proto files.
"""

# ruff: noqa: N802  # methods are named by the wire contract

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from node_agent.evidence import Snapshot
from node_agent.spool import SpoolLog
from node_agent.spool_query import (
    BadQuery,
    as_stored,
    filter_of,
    page_offset,
    page_size_of,
    page_token,
    read_evidence,
    read_page,
    watch_filter_of,
)
from protos.v1 import evidence_pb2, sentinel_pb2, sentinel_pb2_grpc

log = logging.getLogger(__name__)

COLLECT_SECONDS = 10.0
LONGEST_YIELD_SECONDS = 24 * 3600
CONCURRENT_CALLS = 16
MAX_REQUEST_BYTES = 64 * 1024
_SERVICES = ("SentinelService", "NodeControlService")

Context = grpc.aio.ServicerContext[Any, Any]


class SocketInUse(Exception):
    """Another agent serves on this socket."""


class Driver(Protocol):
    """The collector that holds handles on the driver."""

    @property
    def yielded_until(self) -> float | None:
        """When it takes the driver up again by itself, in seconds since the epoch; None while it holds the driver."""
        ...

    async def yield_driver(self, seconds: float) -> None:
        """Let go of every handle for so long."""
        ...

    async def resume(self) -> None:
        """Take the driver up again now."""
        ...


@dataclass(frozen=True, slots=True)
class Questions:
    """What the socket can answer about this node, and from whom. `driver` is None when the agent never touches one."""

    events: SpoolLog
    describe_node: Callable[[], sentinel_pb2.Node]
    latest_snapshot: Callable[[], evidence_pb2.NodeSnapshot | None]
    collect_now: Callable[[float], Awaitable[Snapshot]]
    snapshot_message: Callable[[Snapshot], evidence_pb2.NodeSnapshot]
    driver: Driver | None


@contextlib.asynccontextmanager
async def serve_queries(path: Path, questions: Questions) -> AsyncIterator[None]:
    """Serve on the socket, which only its owner may open, until the context ends. A socket that a dead agent left is replaced.
    Raises SocketInUse, and OSError when the socket cannot be made."""
    _remove_stale(path)
    server = grpc.aio.server(
        maximum_concurrent_rpcs=CONCURRENT_CALLS,
        options=(("grpc.max_receive_message_length", MAX_REQUEST_BYTES), ("grpc.so_reuseport", 0)),
    )
    sentinel_pb2_grpc.add_SentinelServiceServicer_to_server(_Sentinel(questions), server)
    sentinel_pb2_grpc.add_NodeControlServiceServicer_to_server(_NodeControl(questions.driver), server)
    names = [sentinel_pb2.DESCRIPTOR.services_by_name[name].full_name for name in _SERVICES]
    await _add_health(server, names)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    _bind(server, path)
    await server.start()
    try:
        yield
    finally:
        await server.stop(grace=0.2)
        path.unlink(missing_ok=True)  # noqa: ASYNC240  # a local directory's entry


async def _add_health(server: grpc.aio.Server, names: list[str]) -> None:
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", *names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)


def _bind(server: grpc.aio.Server, path: Path) -> None:
    previous = os.umask(0o177)  # from its first moment nobody else may open it
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {path}: {error}") from error
    finally:
        os.umask(previous)


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise SocketInUse(f"another agent serves on {path}")


class _Sentinel(sentinel_pb2_grpc.SentinelServiceServicer):
    """SentinelService for one node."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions

    async def ListNodes(
        self, request: sentinel_pb2.ListNodesRequest, context: Context
    ) -> sentinel_pb2.ListNodesResponse:
        return sentinel_pb2.ListNodesResponse(nodes=[self._questions.describe_node()])

    async def GetNode(self, request: sentinel_pb2.GetNodeRequest, context: Context) -> sentinel_pb2.GetNodeResponse:
        await self._expect_own_node(request.node, context)
        return sentinel_pb2.GetNodeResponse(
            node=self._questions.describe_node(), snapshot=self._questions.latest_snapshot()
        )

    async def ListEvidence(
        self, request: sentinel_pb2.ListEvidenceRequest, context: Context
    ) -> sentinel_pb2.ListEvidenceResponse:
        await self._expect_own_node(request.node, context)
        events = self._questions.events
        try:
            wanted, page_size = filter_of(request), page_size_of(request.page_size)
            offset = page_offset(events, request.page_token)
        except BadQuery as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        page = await read_page(events, offset, wanted, page_size)
        return sentinel_pb2.ListEvidenceResponse(
            evidence=page.evidence, next_page_token=page_token(events, page.next_offset)
        )

    async def WatchEvidence(
        self, request: sentinel_pb2.WatchEvidenceRequest, context: Context
    ) -> AsyncIterator[sentinel_pb2.WatchEvidenceResponse]:
        await self._expect_own_node(request.node, context)
        events = self._questions.events
        try:
            wanted = watch_filter_of(request)
        except BadQuery as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        offset = events.end_offset
        await context.send_initial_metadata(())  # from here on nothing is missed, and the watcher knows it
        while True:
            await events.wait_beyond(offset)
            if events.begin_offset > offset:
                await context.abort(grpc.StatusCode.DATA_LOSS, "the spool dropped what this watcher had not read yet")
            async for end_offset, evidence in read_evidence(events, offset):
                if wanted.admits(evidence):
                    yield sentinel_pb2.WatchEvidenceResponse(evidence=as_stored(evidence))
                offset = end_offset

    async def CollectNow(
        self, request: sentinel_pb2.CollectNowRequest, context: Context
    ) -> sentinel_pb2.CollectNowResponse:
        await self._expect_own_node(request.node, context)
        seconds = min(context.time_remaining() or COLLECT_SECONDS, COLLECT_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                snapshot = await self._questions.collect_now(seconds)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no reading within {seconds:.1f} s")
        except Exception as error:  # noqa: BLE001  # whatever reading raises is the answer
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{type(error).__name__}: {error}")
        return sentinel_pb2.CollectNowResponse(snapshot=self._questions.snapshot_message(snapshot))

    async def ListIncidents(self, request: sentinel_pb2.ListIncidentsRequest, context: Context) -> Any:
        await _ask_aggregator(context)

    async def GetIncident(self, request: sentinel_pb2.GetIncidentRequest, context: Context) -> Any:
        await _ask_aggregator(context)

    async def ListAssessments(self, request: sentinel_pb2.ListAssessmentsRequest, context: Context) -> Any:
        await _ask_aggregator(context)

    async def GetAssessment(self, request: sentinel_pb2.GetAssessmentRequest, context: Context) -> Any:
        await _ask_aggregator(context)

    async def Investigate(self, request: sentinel_pb2.InvestigateRequest, context: Context) -> AsyncIterator[Any]:
        yield await _ask_aggregator(context)

    async def GetTranscript(self, request: sentinel_pb2.GetTranscriptRequest, context: Context) -> Any:
        await _ask_aggregator(context)

    async def ListAuditRecords(self, request: sentinel_pb2.ListAuditRecordsRequest, context: Context) -> Any:
        await _ask_aggregator(context)

    async def ListDeliveries(self, request: sentinel_pb2.ListDeliveriesRequest, context: Context) -> Any:
        await _ask_aggregator(context)

    async def _expect_own_node(self, node: str, context: Context) -> None:
        own = self._questions.describe_node().name
        if node not in ("", own):
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"this socket answers for node {own} alone: ask the aggregator about {node!r}",
            )


class _NodeControl(sentinel_pb2_grpc.NodeControlServiceServicer):
    """The switch that lets go of the driver."""

    def __init__(self, driver: Driver | None) -> None:
        self._driver = driver

    async def Yield(self, request: sentinel_pb2.YieldRequest, context: Context) -> sentinel_pb2.YieldResponse:
        if request.seconds > LONGEST_YIELD_SECONDS:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"seconds must be at most {LONGEST_YIELD_SECONDS}, not {request.seconds}",
            )
        if self._driver is None:
            return sentinel_pb2.YieldResponse(yielded=True)  # this agent was told to leave the driver alone
        if request.seconds:
            await self._driver.yield_driver(request.seconds)
        else:
            await self._driver.resume()
        response = sentinel_pb2.YieldResponse(yielded=self._driver.yielded_until is not None)
        if self._driver.yielded_until is not None:
            response.resumes_at.FromMicroseconds(round(self._driver.yielded_until * 1e6))
        return response


async def _ask_aggregator(context: Context) -> Any:
    await context.abort(
        grpc.StatusCode.UNIMPLEMENTED, "a node has evidence only: ask the aggregator for incidents and assessments"
    )
