"""What an API server may answer instead of what was asked for, as exceptions that a caller can tell apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_SAID = 500  # characters of a server's message that are kept
_FORBIDDEN = re.compile(r'cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"')


class ApiError(Exception):
    """The API server did not do it; the text says why in one line."""


class Unreachable(ApiError):
    """No answer in time, a broken connection, or a server that is ill (5xx): worth another try later."""


class Unauthorized(ApiError):
    """It does not know us, also with credentials read anew."""


class Forbidden(ApiError):
    """RBAC or an admission policy denies it."""

    def __init__(self, message: str, verb: str, resource: str) -> None:
        super().__init__(message)
        self.verb = verb  # list, watch, patch …; empty where an admission policy denied it
        self.resource = resource  # nodes, pods/eviction …


class NotFound(ApiError):
    """There is no such object."""


class Conflict(ApiError):
    """The object is there already, or is not as we last saw it."""


class Gone(ApiError):
    """The resourceVersion or continue token is too old: list again."""


class Invalid(ApiError):
    """The object breaks the API's rules."""


class TooManyRequests(ApiError):
    """Not now: flow control, or a disruption budget that allows no eviction."""

    def __init__(self, message: str, retry_after_seconds: float | None, causes: tuple[str, ...]) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.causes = causes  # "DisruptionBudget" where a budget forbids an eviction


_PLAIN: Mapping[int, type[ApiError]] = {401: Unauthorized, 404: NotFound, 409: Conflict, 410: Gone, 422: Invalid}


def refusal(code: int, status: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> ApiError:
    """The error for an HTTP status code and the Status object that came with it, if any."""
    said = " ".join(str(status.get("message") or f"HTTP status {code}").split())[:MAX_SAID]
    details = status.get("details") or {}
    if code == 403:
        found = _FORBIDDEN.search(said)
        return Forbidden(said, found["verb"] if found else "", found["resource"] if found else details.get("kind", ""))
    if code == 429:
        after = str(details.get("retryAfterSeconds") or (headers or {}).get("retry-after") or "")
        causes = tuple(str(cause.get("reason", "")) for cause in details.get("causes") or ())
        return TooManyRequests(said, float(after) if after.isdecimal() else None, causes)
    if code >= 500:
        return Unreachable(said)
    return _PLAIN.get(code, ApiError)(said)
