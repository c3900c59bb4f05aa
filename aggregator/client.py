"""How commands reach a running aggregator: address, TLS and token from the environment, and errors as exit codes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import grpc

from aggregator.settings import PREFIX, Client, SettingsError
from protos.v1 import sentinel_pb2_grpc

UNREACHABLE = 3
USAGE = 2
CALL_SECONDS = 15.0  # for one question; a stream has no limit
MAX_ANSWER_BYTES = 64 * 2**20  # a transcript may be long

_Metadata = tuple[tuple[str, str], ...]


class CommandFailed(Exception):
    """The command ends with this exit code, and these words on stderr."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@contextmanager
def connect(settings: Client | None = None) -> Iterator[tuple[sentinel_pb2_grpc.SentinelServiceStub, _Metadata]]:
    """A stub and the metadata to send with each call; without settings, to the aggregator that the environment names. Raises
    CommandFailed, also for a call inside the block that fails."""
    try:
        asked = settings or Client.from_environment()
        metadata = _metadata(asked)
        with _channel(asked) as channel:
            yield sentinel_pb2_grpc.SentinelServiceStub(channel), metadata
    except SettingsError as error:
        raise CommandFailed(USAGE, str(error)) from error
    except grpc.RpcError as error:
        raise _failure(error, str(asked.aggregator_address)) from error


def report(error: CommandFailed) -> int:
    """Print why a command failed, and return its exit code."""
    sys.stderr.write(f"gcm-sentinel: {error}\n")
    return error.code


def _channel(settings: Client) -> grpc.Channel:
    address = str(settings.aggregator_address)
    options = (("grpc.max_receive_message_length", MAX_ANSWER_BYTES),)
    if settings.tls_ca_file is None:
        return grpc.insecure_channel(address, options)
    credentials = grpc.ssl_channel_credentials(_read("TLS_CA_FILE", settings.tls_ca_file))
    return grpc.secure_channel(address, credentials, options)


def _metadata(settings: Client) -> _Metadata:
    if settings.token_file is None:
        return ()
    token = _read("TOKEN_FILE", settings.token_file).decode("ascii", "replace").strip()
    return (("authorization", f"Bearer {token}"),)


def _read(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandFailed(USAGE, f"{PREFIX}{variable}: {path}: {error.strerror}") from error


def _failure(error: grpc.RpcError, address: str) -> CommandFailed:
    """The exit code for a failed call: a wrong question is the caller's, anything else is the service's."""
    call = cast("grpc.Call", error)  # what a stub raises is both
    code, details = call.code(), call.details() or ""
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
        return CommandFailed(USAGE, details)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return CommandFailed(USAGE, f"{PREFIX}TOKEN_FILE: {details}")
    return CommandFailed(
        UNREACHABLE,
        f"{PREFIX}AGGREGATOR_ADDRESS: the aggregator at {address} cannot be reached: {code.name.lower()}: {details}",
    )
