"""A request or stream that is refused: the gRPC status and the one line that its caller reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from aggregator.identity import Forbidden, Unauthenticated

MAX_TEXT = 1000  # characters; a longer one, which repeats what the caller sent, would break gRPC's bound for a status


class Refusal(Exception):
    """Ends one call with this status, and touches no other."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def invalid(text: str) -> Refusal:
    """A field of the request is wrong; the text begins with its name."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)


@contextmanager
def admission() -> Iterator[None]:
    """Turn what an Authenticator raises into the status for it."""
    try:
        yield
    except Unauthenticated as error:
        raise Refusal(grpc.StatusCode.UNAUTHENTICATED, str(error)) from error
    except Forbidden as error:
        raise Refusal(grpc.StatusCode.PERMISSION_DENIED, str(error)) from error


def authorization(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    """What the caller sent as `authorization`."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            return value
    return None
