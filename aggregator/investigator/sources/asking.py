"""What every tool shares: whom it may ask about, errors that say what to ask instead, lists that say what they leave out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from aggregator.investigator.sources import Answer, Ask, Scope
from aggregator.model import Trust

T = TypeVar("T")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?:[0-9]{1,6}[smhdw])+")
_PART = re.compile(r"([0-9]+)([smhdw])")

NODE_NAME: Mapping[str, Any] = {
    "type": "string",
    "maxLength": 253,
    "description": "the incident's node, or another node in scope (a sibling's or a declared peer)",
}


class Refused(Exception):
    """The question is not answered as it was put; the text tells the model what to do differently."""


def refusing(ask: Ask) -> Ask:
    """The same question, with `Refused` turned into an answer."""

    async def asked(scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        try:
            return await ask(scope, arguments)
        except Refused as refused:
            return Answer(str(refused), Trust.TENANT, is_error=True)

    return asked


def parameters(properties: Mapping[str, Any], *required: str) -> Mapping[str, Any]:
    """The JSON schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


def node_in_scope(scope: Scope, name: str = "") -> str:
    """The node that is meant, the incident's own where none is named. Raises Refused for one outside the scope."""
    if not name:
        return scope.node
    if name not in scope.nodes:
        shown = ", ".join(scope.nodes[:20]) + (f" and {len(scope.nodes) - 20} more" if len(scope.nodes) > 20 else "")
        raise Refused(f"node {name[:253]!r} is outside this investigation. Nodes that may be asked about: {shown}")
    return name


def page(items: Sequence[T], limit: int) -> tuple[list[T], dict[str, Any]]:
    """The first items, and what to say of them: how many there are, and that some are missing."""
    return list(items[:limit]), {"total": len(items), "truncated": len(items) > limit}


def seconds(text: str, *, most: int) -> int:
    """A duration like 90s, 5m or 1h30m. Raises Refused."""
    if not _DURATION.fullmatch(text):
        raise Refused(f"{text[:50]!r} is no duration: write 90s, 5m, 1h30m or 2d")
    total = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if not 0 < total <= most:
        raise Refused(f"{text!r} is out of bounds: more than nothing, at most {readable(most)}")
    return total


def readable(duration_seconds: float) -> str:
    """A duration in Prometheus' way: 90 → 1m30s."""
    whole, words = int(duration_seconds), ""
    for unit in ("d", "h", "m", "s"):
        count, whole = divmod(whole, _UNITS[unit])
        words += f"{count}{unit}" if count else ""
    return words or "0s"


def instant_us(text: str) -> int:
    """Microseconds since the epoch of an RFC 3339 time; one without an offset is UTC. Raises Refused."""
    try:
        time = datetime.fromisoformat(text)
        stamp = time if time.tzinfo else time.replace(tzinfo=UTC)
        since = stamp - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise Refused(f"{text[:50]!r} is no time: write it like 2026-11-23T14:05:00Z") from error
    if since < timedelta(0):
        raise Refused(f"{text!r} lies before 1970")
    return since // timedelta(microseconds=1)


def stamp(time_us: int) -> str:
    """A time as tools write it: RFC 3339, UTC, to the millisecond."""
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def number(value: float | str) -> float | int | str:
    """A sample as JSON can hold it: NaN and infinities are words."""
    try:
        read = float(value)
    except ValueError:
        return str(value)[:50]
    if math.isnan(read):
        return "NaN"
    if math.isinf(read):
        return "+Inf" if read > 0 else "-Inf"
    return int(read) if read.is_integer() and abs(read) < 2**53 else read
