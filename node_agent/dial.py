"""Dials the aggregator, and says in one line what to check when that fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # Finds a peer that died without a word within 40 s. Clock replies come often enough that a server with gRPC's default ping
    # policy does not count these as abuse.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Every dial is a fresh attempt: the uplink does the backing off, and gRPC's own would only hide a server that is back.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)

_HINTS: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAUTHENTICATED: "the aggregator does not know this agent's token: check GCM_SENTINEL_TOKEN_FILE",
    grpc.StatusCode.PERMISSION_DENIED: "the token may not write as this node: check GCM_SENTINEL_NODE_NAME and the token's node",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "the aggregator's limits are reached: check its stream, rate and message limits",
    grpc.StatusCode.UNAVAILABLE: "is the aggregator running, and GCM_SENTINEL_AGGREGATOR_ADDRESS right?",
    grpc.StatusCode.UNIMPLEMENTED: "another service answers there: check GCM_SENTINEL_AGGREGATOR_ADDRESS",
    grpc.StatusCode.INVALID_ARGUMENT: "the aggregator rejects what this agent sends: compare their versions",
    grpc.StatusCode.FAILED_PRECONDITION: "the aggregator cannot take this agent now",
}
_TLS_HINT = (
    "TLS fails: check that GCM_SENTINEL_TLS_CA_FILE holds the CA that signed the aggregator's certificate for this name"
)
_NOT_GRPC_HINT = (
    "what answers there does not speak this gRPC: check GCM_SENTINEL_AGGREGATOR_ADDRESS and GCM_SENTINEL_TLS_CA_FILE"
)
_REFUSED_HINT = "the stream was refused before it began; the next dial may tell why, else see the aggregator's log"
_REFUSED_SIGN = "internal error from core"  # gRPC's words when the end came before the first message was out
_TLS_SIGNS = ("ssl", "tls", "certificate", "verification check")
_NOT_GRPC_SIGNS = (
    "http1.x",
    "http status",
    "received http2 header",
    "settings frame",
    "connection reset",
    "socket closed",
)


class DialError(Exception):
    """No stream came about, or not one of ours; the text says what to check."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the aggregator is and how to prove who is calling. The files are read anew at each dial: both are rotated."""

    address: str
    token_file: Path | None = None
    tls_ca_file: Path | None = None

    def channel(self) -> grpc.aio.Channel:
        """A channel of its own for one stream. Raises DialError when the CA file cannot be read."""
        if self.tls_ca_file is None:
            return grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        try:
            roots = self.tls_ca_file.read_bytes()
        except OSError as error:
            raise DialError(f"GCM_SENTINEL_TLS_CA_FILE cannot be read: {error}") from error
        return grpc.aio.secure_channel(self.address, grpc.ssl_channel_credentials(roots), options=CHANNEL_OPTIONS)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The call's headers. Raises DialError when the token file cannot be read or does not hold one line of text."""
        if self.token_file is None:
            return ()
        try:
            token = self.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DialError(f"GCM_SENTINEL_TOKEN_FILE cannot be read: {error}") from error
        if not token or not token.isprintable():
            raise DialError(f"GCM_SENTINEL_TOKEN_FILE: {self.token_file} does not hold a token in one line")
        return (("authorization", f"Bearer {token}"),)


def explain(error: grpc.aio.AioRpcError) -> str:
    """What failed and what to check, in one line."""
    details = " ".join((error.details() or "").split())
    said = f"{error.code().name}: {details}" if details else error.code().name
    return f"{said[:400]}; {_hint(error.code(), details.lower())}"


def _hint(code: grpc.StatusCode, details: str) -> str:
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        if _REFUSED_SIGN in details:
            return _REFUSED_HINT
        if any(sign in details for sign in _TLS_SIGNS):
            return _TLS_HINT
        if any(sign in details for sign in _NOT_GRPC_SIGNS):
            return _NOT_GRPC_HINT
    return _HINTS.get(code, "see the aggregator's log")
