"""Asking again: the one place that retries. Bounded by the turn's deadline, full jitter, and never against the endpoint's word."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeVar

import httpx2
import structlog

from aggregator.investigator.llm import BackendFailed, FailureKind, Turn
from aggregator.investigator.llm.failures import Again, Failure, TurnLost, read_failure
from aggregator.investigator.llm.transport import Endpoint

T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with an endpoint."""

    connect_seconds: float = 10.0
    idle_seconds: float = 90.0  # without a byte, pings included
    attempts: int = 5
    first_backoff_seconds: float = 1.0
    longest_backoff_seconds: float = 20.0
    longest_retry_after_seconds: float = 60.0  # an endpoint that asks for more is left to a later investigation


@dataclass(frozen=True, slots=True)
class Attempts:
    """How one backend asks."""

    sdk: ModuleType
    endpoint: Endpoint
    patience: Patience

    async def of(self, once: Callable[[], Awaitable[T]], deadline_seconds: float) -> T:
        """What `once` returns, asked again while that can help. Raises BackendFailed with no other exception behind it.

        An SDK's exception carries the request, prompt and headers, so none may hang on ours.
        """
        outcome: T | Failure
        try:
            async with asyncio.timeout(deadline_seconds):
                outcome = await self._until(once, asyncio.get_running_loop().time() + deadline_seconds)
        except TimeoutError:
            outcome = Failure(FailureKind.TIMEOUT, f"no whole answer within {deadline_seconds:g} s")
        if isinstance(outcome, Failure):
            raise BackendFailed(outcome.kind, outcome.text)
        return outcome

    async def _until(self, once: Callable[[], Awaitable[T]], ends: float) -> T | Failure:
        resent = False
        for number in range(self.patience.attempts):
            outcome = await self._try(once)
            if not isinstance(outcome, Failure):
                return outcome
            wait = self._wait(outcome, number, resent)
            if wait is None or asyncio.get_running_loop().time() + wait >= ends:
                return outcome
            log.warning("llm_asked_again", kind=str(outcome.kind), text=outcome.text, wait_seconds=round(wait, 3))
            resent = resent or outcome.again is Again.ONCE
            await asyncio.sleep(wait)
        return outcome

    async def _try(self, once: Callable[[], Awaitable[T]]) -> T | Failure:
        try:
            return await once()
        except (self.sdk.APIError, httpx2.HTTPError, httpx2.InvalidURL, TurnLost) as error:
            return read_failure(error, self.sdk, self.endpoint)

    def _wait(self, failure: Failure, number: int, resent: bool) -> float | None:
        """Seconds until the next attempt; None when there is none."""
        patience = self.patience
        last = number + 1 == patience.attempts
        if last or failure.again is Again.NEVER or (failure.again is Again.ONCE and resent):
            return None
        if failure.retry_after_seconds > patience.longest_retry_after_seconds:
            return None
        ceiling = min(patience.longest_backoff_seconds, patience.first_backoff_seconds * 2.0**number)
        return failure.retry_after_seconds + random.uniform(0, ceiling)  # noqa: S311


class Reader(Protocol):
    """Gathers the events of one stream into a turn."""

    def add(self, event: dict[str, Any]) -> str:
        """Take one event in, as plain JSON; returns text of the model that it adds."""
        ...

    def turn(self) -> Turn:
        """The whole turn. Raises TurnLost where the stream ended before it did."""
        ...


async def read_turn(stream: Any, reader: Reader, on_text: Callable[[str], None]) -> Turn:
    """The turn that an SDK's stream holds. Raises TurnLost.

    Whatever an endpoint sends is data: what breaks its reader (no JSON, a missing field, a wrong type) is the endpoint's failure.
    """
    async with stream:
        events = stream.__aiter__()
        while True:
            try:
                event = await anext(events, None)
                if event is None:
                    return reader.turn()
                text = reader.add(event.to_dict(mode="json", warnings=False))
            except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
                what = f"the stream holds what this API does not send ({type(error).__name__})"
                raise TurnLost(Failure(FailureKind.UNREADABLE, what, Again.ONCE)) from error
            if text:
                on_text(text)


def incomplete() -> TurnLost:
    """A stream came to its end without a stop reason: what it holds is no turn."""
    return TurnLost(Failure(FailureKind.INCOMPLETE, "the stream ended without a stop reason", Again.ONCE))


def as_json(answer: Any) -> dict[str, Any]:
    """An SDK's answer as plain JSON. Raises TurnLost for a page: the SDKs hand text through that is no JSON."""
    if not hasattr(answer, "to_dict"):
        raise TurnLost(Failure(FailureKind.UNREADABLE, "the endpoint answers with something else than JSON"))
    told: dict[str, Any] = answer.to_dict(mode="json", warnings=False)
    return told
