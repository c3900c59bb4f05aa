"""The gRPC server: agents' streams, people's questions, reflection and health on one port."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from aggregator.identity import Authenticator
from aggregator.outputs.metrics import Metrics
from aggregator.pipeline import Pipeline
from aggregator.server.agents import AgentService, Limits
from aggregator.server.presence import Presence
from aggregator.server.queries import SentinelService
from aggregator.server.sessions import Sessions
from aggregator.server.undecodable import RefuseUndecodable
from protos.v1 import agent_pb2, agent_pb2_grpc, sentinel_pb2, sentinel_pb2_grpc

SERVICES = (
    agent_pb2.DESCRIPTOR.services_by_name["AgentService"],
    sentinel_pb2.DESCRIPTOR.services_by_name["SentinelService"],
)
# A node that vanished without a word is noticed within these, and agents may ping as often as they like within reason.
KEEPALIVE_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000


class AddressInUse(Exception):
    """The address cannot be listened on."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM contents of the server's certificate chain and key."""

    certificate: bytes
    key: bytes


class Server:
    """One port with everything on it."""

    def __init__(
        self,
        pipeline: Pipeline,
        sessions: Sessions,
        presence: Presence,
        authenticator: Authenticator,
        metrics: Metrics,
        *,
        limits: Limits,
        cluster: str,
    ) -> None:
        self._sessions = sessions
        self._server = grpc.aio.server(
            interceptors=[RefuseUndecodable(metrics)],
            options=[
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                ("grpc.so_reuseport", 0),  # a second aggregator on the port must fail, not share it
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ],
        )
        self._health = health.aio.HealthServicer()
        agents = AgentService(pipeline, sessions, authenticator, limits, cluster)
        agent_pb2_grpc.add_AgentServiceServicer_to_server(agents, self._server)
        self.questions = SentinelService(pipeline, sessions, presence, authenticator)
        sentinel_pb2_grpc.add_SentinelServiceServicer_to_server(self.questions, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [service.full_name for service in SERVICES]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        self._names = ["", *names]

    async def start(self, address: str, tls: TlsFiles | None) -> int:
        """Listen and serve; return the port. Raises AddressInUse."""
        _check_free(address)
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                credentials = grpc.ssl_server_credentials([(tls.key, tls.certificate)])
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise AddressInUse(str(error)) from error
        await self._server.start()
        await self.tell_health(serving=True)
        return port

    async def tell_health(self, *, serving: bool) -> None:
        """Say whether requests are served, to whoever asks the health service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._health.set(name, status)

    async def stop(self, grace_seconds: float) -> None:
        """End every agent's stream with a status that says so, and every question within the grace."""
        await self._health.enter_graceful_shutdown()
        self._sessions.end_all(grpc.StatusCode.UNAVAILABLE, "the aggregator is stopping")
        await self._server.stop(grace_seconds)


def _check_free(address: str) -> None:
    """Raises AddressInUse. gRPC tells why it cannot listen in lines of its own on stderr alone; the system is asked before."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: what only lingers is free
            probe.bind((host.strip("[]"), int(port)))
    except OSError as error:
        raise AddressInUse(f"cannot listen on {address}: {error.strerror or error}") from error
