"""Live agent streams: who is connected, and how to reach a node through its own stream."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import grpc

from aggregator.server.refusal import Refusal
from protos.v1 import agent_pb2, evidence_pb2

COLLECT_SECONDS = 10.0  # for an agent to read its GPUs, whoever asks
MAX_REJECTED = 10_000  # names: a caller without a token can invent as many as it likes


class CollectFailed(Exception):
    """The agent could not read its GPUs; the text says why."""


class Session:
    """One open stream of one agent."""

    def __init__(
        self,
        hello: agent_pb2.AgentHello,
        write: Callable[[agent_pb2.ConnectResponse], Awaitable[None]],
    ) -> None:
        self.node = hello.node
        self.installation_id = hello.installation_id
        self.acked_before = {log.spool_id: log.acked_offset for log in hello.logs}  # by an earlier store
        self.heard_us = time.time_ns() // 1000
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # it may end unobserved
        self._write = write
        self._writing = asyncio.Lock()  # gRPC takes one message at a time
        self._asked: dict[str, asyncio.Future[evidence_pb2.NodeSnapshot]] = {}

    async def send(self, message: agent_pb2.ConnectResponse) -> None:
        """Send one message; waits while the agent does not read."""
        async with self._writing:
            await self._write(message)

    def end(self, code: grpc.StatusCode, text: str) -> None:
        """End the stream with a status."""
        if not self.ended.done():
            self.ended.set_exception(Refusal(code, text))

    async def collect(self, timeout_seconds: float) -> evidence_pb2.NodeSnapshot:
        """Ask the agent for a fresh reading. Raises TimeoutError or CollectFailed."""
        request_id = uuid.uuid4().hex
        answer: asyncio.Future[evidence_pb2.NodeSnapshot] = asyncio.get_running_loop().create_future()
        self._asked[request_id] = answer
        request = agent_pb2.CollectRequest(request_id=request_id, deadline_ms=int(timeout_seconds * 1000))
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.send(agent_pb2.ConnectResponse(collect_request=request))
                return await answer
        finally:
            del self._asked[request_id]

    def answer(self, reply: agent_pb2.CollectReply) -> None:
        """Hand a reply to whoever asked; one that nobody waits for any more is dropped."""
        asked = self._asked.get(reply.request_id)
        if asked is None or asked.done():
            return
        if reply.HasField("snapshot") and reply.snapshot.node == self.node:
            asked.set_result(reply.snapshot)
        else:
            asked.set_exception(CollectFailed(reply.error or "the agent answered without a reading of its own node"))


class Sessions:
    """Every open stream, by node."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_node: defaultdict[str, list[Session]] = defaultdict(list)
        self._count = 0
        self.left_us: dict[
            str, int
        ] = {}  # nodes whose stream ended, and when they were last heard; the reader empties it
        self._rejected: dict[str, None] = {}  # nodes as whom someone was turned away; bounded, oldest first

    def __len__(self) -> int:
        return self._count

    @property
    def nodes(self) -> set[str]:
        """Nodes with an open stream."""
        return set(self._by_node)

    def rejected(self, node: str) -> None:
        """Note that someone tried to speak as a node and was turned away."""
        self._rejected[node] = None
        while len(self._rejected) > MAX_REJECTED:
            del self._rejected[next(iter(self._rejected))]

    def was_rejected(self, node: str) -> bool:
        """True when the last who tried to speak as this node was turned away."""
        return node in self._rejected

    @contextmanager
    def joined(self, session: Session) -> Iterator[None]:
        """Count a stream in for as long as it is open. A new stream of the same installation replaces the old one."""
        if self._count >= self._limit:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._limit} agents are connected, the most allowed")
        for other in self._by_node.get(session.node, ()):
            if other.installation_id == session.installation_id:
                other.end(grpc.StatusCode.ABORTED, "a newer stream of this agent replaces this one")
        self._by_node[session.node].append(session)
        self._count += 1
        self._rejected.pop(session.node, None)
        try:
            yield
        finally:
            self._count -= 1
            self.left_us[session.node] = session.heard_us
            self._by_node[session.node].remove(session)
            if not self._by_node[session.node]:
                del self._by_node[session.node]

    def current(self, node: str) -> Session | None:
        """The newest stream of a node."""
        open_streams = self._by_node.get(node)
        return open_streams[-1] if open_streams else None

    def installations(self, node: str) -> set[str]:
        """Which installations claim a node now: more than one is a conflict."""
        return {session.installation_id for session in self._by_node.get(node, ())}

    def heard_us(self) -> dict[str, int]:
        """When each connected node was last heard."""
        return {node: max(session.heard_us for session in open_streams) for node, open_streams in self._by_node.items()}

    def end_all(self, code: grpc.StatusCode, text: str) -> None:
        """End every stream."""
        for open_streams in self._by_node.values():
            for session in open_streams:
                session.end(code, text)
