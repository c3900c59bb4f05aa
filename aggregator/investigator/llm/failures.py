"""What went wrong at an endpoint, read from either SDK's exceptions, and whether asking again can help.

The SDKs are of one make: the same exceptions with the same attributes. An `sdk` here is the module `anthropic` or `openai`.
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any

import httpx2

from aggregator.investigator.llm import FailureKind
from aggregator.investigator.llm.transport import Endpoint, TooMuch


class Again(Enum):
    """What asking again is good for."""

    NEVER = "never"
    ONCE = "once"  # a turn was lost on the way: one more, at once
    LATER = "later"  # after a pause, several times


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt. `text` may be shown."""

    kind: FailureKind
    text: str
    again: Again = Again.NEVER
    retry_after_seconds: float = 0.0  # what the endpoint asked for


class TurnLost(Exception):
    """A stream that gave no whole turn, found by its reader."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


KIND_OF_CODE: Mapping[str, FailureKind] = {
    "authentication_error": FailureKind.AUTHENTICATION,
    "permission_error": FailureKind.AUTHENTICATION,
    "invalid_api_key": FailureKind.AUTHENTICATION,
    "billing_error": FailureKind.QUOTA,
    "insufficient_quota": FailureKind.QUOTA,
    "billing_hard_limit_reached": FailureKind.QUOTA,
    "not_found_error": FailureKind.MODEL_UNKNOWN,
    "model_not_found": FailureKind.MODEL_UNKNOWN,
    "context_length_exceeded": FailureKind.CONTEXT_OVERFLOW,
    "request_too_large": FailureKind.CONTEXT_OVERFLOW,
    "invalid_prompt": FailureKind.INVALID_REQUEST,  # and the two below: a policy stopped it, and would again
    "bio_policy": FailureKind.INVALID_REQUEST,
    "misalignment_policy_violation": FailureKind.INVALID_REQUEST,
    "rate_limit_error": FailureKind.RATE_LIMITED,
    "rate_limit_exceeded": FailureKind.RATE_LIMITED,
    "overloaded_error": FailureKind.OVERLOADED,
    "server_is_overloaded": FailureKind.OVERLOADED,
    "slow_down": FailureKind.OVERLOADED,
    "api_error": FailureKind.SERVER_ERROR,
    "server_error": FailureKind.SERVER_ERROR,
    "timeout_error": FailureKind.SERVER_ERROR,
}
KIND_OF_STATUS: Mapping[int, FailureKind] = {
    401: FailureKind.AUTHENTICATION,
    402: FailureKind.QUOTA,
    403: FailureKind.AUTHENTICATION,
    404: FailureKind.MODEL_UNKNOWN,
    408: FailureKind.SERVER_ERROR,
    409: FailureKind.SERVER_ERROR,
    413: FailureKind.CONTEXT_OVERFLOW,
    429: FailureKind.RATE_LIMITED,
    529: FailureKind.OVERLOADED,
}
PASSING = frozenset({FailureKind.RATE_LIMITED, FailureKind.OVERLOADED, FailureKind.SERVER_ERROR})
TOO_LONG = re.compile(r"prompt is too long|context (length|window|size)", re.IGNORECASE)
NO_CREDIT = re.compile(r"credit balance", re.IGNORECASE)


def read_failure(error: Exception, sdk: ModuleType, endpoint: Endpoint) -> Failure:
    """An exception of the SDK or of the connection under it, as a failure. Never quotes the key."""
    if isinstance(error, TurnLost):
        return error.failure
    cause = error.__cause__
    if isinstance(error, TooMuch) or isinstance(cause, TooMuch):
        return Failure(FailureKind.UNREADABLE, str(error if isinstance(error, TooMuch) else cause))
    if isinstance(error, sdk.APIStatusError):
        return _of_status(error, endpoint)
    if isinstance(error, sdk.APIConnectionError | httpx2.TransportError):
        return _of_connection(error, cause)
    if isinstance(error, sdk.APIError) and isinstance(error.body, Mapping):  # openai: an error amid a stream
        return said_failure(error.body, endpoint)
    return Failure(FailureKind.UNREADABLE, f"the endpoint does not speak this API ({type(error).__name__})", Again.ONCE)


def said_failure(body: Mapping[str, Any], endpoint: Endpoint) -> Failure:
    """An error that came inside a stream: `code` or `type`, and `message`."""
    kind = _of_codes(body) or FailureKind.SERVER_ERROR
    return Failure(kind, endpoint.redact(str(body.get("message") or "an error amid the stream")), _again(kind))


def _of_connection(error: Exception, cause: BaseException | None) -> Failure:
    what = type(error if isinstance(error, httpx2.TransportError) or cause is None else cause)
    if issubclass(what, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol):
        return Failure(FailureKind.UNREACHABLE, f"the endpoint cannot be reached ({what.__name__})", Again.LATER)
    if issubclass(what, httpx2.TimeoutException):
        return Failure(FailureKind.TIMEOUT, "the endpoint fell silent", Again.ONCE)
    return Failure(FailureKind.INCOMPLETE, f"the connection broke ({what.__name__})", Again.ONCE)


def _of_status(error: Any, endpoint: Endpoint) -> Failure:
    status = int(error.status_code)
    if 300 <= status < 400:
        return Failure(
            FailureKind.UNREACHABLE, f"the endpoint answers {status}: redirects are not followed, give its own URL"
        )
    said = error.body.get("error", error.body) if isinstance(error.body, Mapping) else None
    kind = _kind(status, said)
    if kind is FailureKind.AUTHENTICATION:  # endpoints quote the key in their answer
        return Failure(kind, f"the endpoint refused the key ({status})")
    message = endpoint.redact(str(said.get("message", ""))) if isinstance(said, Mapping) else ""
    text = f"{status}: {message}" if message else f"the endpoint answers {status} in another form than this API's"
    return Failure(kind, text, _again(kind), _retry_after(error.response.headers))


def _kind(status: int, said: object) -> FailureKind:
    if not isinstance(said, Mapping):  # a proxy's page, or no API at this path
        kind = KIND_OF_STATUS.get(status, _otherwise(status))
        return FailureKind.UNREADABLE if kind is FailureKind.MODEL_UNKNOWN else kind
    if NO_CREDIT.search(str(said.get("message", ""))):
        return FailureKind.QUOTA
    if status in (400, 422) and TOO_LONG.search(str(said.get("message", ""))):
        return FailureKind.CONTEXT_OVERFLOW
    return _of_codes(said) or KIND_OF_STATUS.get(status, _otherwise(status))


def _otherwise(status: int) -> FailureKind:
    return FailureKind.SERVER_ERROR if status >= 500 else FailureKind.INVALID_REQUEST


def _of_codes(said: Mapping[str, Any]) -> FailureKind | None:
    inner = said.get("error", said)
    words = (inner.get("code"), inner.get("type")) if isinstance(inner, Mapping) else ()
    return next((KIND_OF_CODE[word] for word in words if isinstance(word, str) and word in KIND_OF_CODE), None)


def _again(kind: FailureKind) -> Again:
    return Again.LATER if kind in PASSING else Again.NEVER


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the endpoint wants us to wait; 0 where it does not say, infinity where it says nonsense beyond bounds."""
    given = headers.get("retry-after", "")
    try:
        seconds = float(headers["retry-after-ms"]) / 1000 if "retry-after-ms" in headers else float(given)
    except ValueError:
        date = email.utils.parsedate_tz(given)
        seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
    return 0.0 if math.isnan(seconds) else max(0.0, seconds)
