"""Brings one target its messages from rows in the store: at least once, in order for each incident, as fast as it takes them.

A message's schedule is in its row and survives a restart. While a target takes nothing, one message in a while tries it, and the
others wait behind that.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from aggregator.outputs import NotYet, Refused, Target, Unavailable
from aggregator.outputs.metrics import Metrics
from aggregator.store import Store, deliveries
from aggregator.store.deliveries import DEAD, SENT, WAITING, Outcome, Waiting

MINUTE_SECONDS = 60.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a message is tried."""

    first_seconds: float = 1.0  # pause after a first failure; it doubles
    longest_seconds: float = 900.0
    longest_retry_after_seconds: float = 3600.0  # whatever a target asks for
    age_seconds: float = 86_400.0  # attempts are no measure: while a target is away, one message makes them all

    def pause(self, failures: int, asked_seconds: float | None = None) -> float:
        """Seconds to wait after so many failures in a row, jittered so that messages part."""
        if asked_seconds is not None:
            return min(max(asked_seconds, self.first_seconds), self.longest_retry_after_seconds)
        doubled = self.first_seconds * 2.0 ** min(failures - 1, 30)
        return min(doubled, self.longest_seconds) * random.uniform(0.5, 1.0)  # noqa: S311 - it spreads, it hides nothing

    def is_over(self, message: Waiting, now_us: int) -> bool:
        """Whether a message that failed again is given up."""
        return now_us - message.created_us >= self.age_seconds * 1e6


class Courier:
    """One target's messages, one task."""

    def __init__(
        self,
        store: Store,
        target: Target,
        metrics: Metrics,
        *,
        patience: Patience = Patience(),
    ) -> None:
        self.target = target
        self._name = target.route.target
        self._store = store
        self._metrics = metrics
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._posted = asyncio.Event()
        self._sent_at: deque[float] = deque(maxlen=target.per_minute)  # of the last minute's attempts
        self._failures = 0  # rounds in a row in which the target took nothing
        self._reached = False  # it answered in the last round
        self._asked_seconds: float | None = None  # the pause it asked for then
        self._paused_until = 0.0  # by the loop's clock

    def wake(self) -> None:
        """Messages may have been posted."""
        self._posted.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            self._posted.clear()
            await self._count()
            pause = max(self._paused_until, self._free_at()) - self._loop.time()
            if pause > 0:
                await self._wait(pause)
            elif claimed := await self._claim():
                await self._deliver(claimed)
            else:
                due_us = await self._store.read(partial(deliveries.next_attempt_us, target=self._name))
                await self._wait(None if due_us is None else (due_us - _now_us()) / 1e6)

    async def _claim(self) -> Sequence[Waiting]:
        free = self.target.per_minute - self._in_last_minute()
        lanes = 1 if self._failures else min(self.target.lanes, free)
        return await self._store.write(partial(deliveries.claim, target=self._name, now_us=_now_us(), limit=lanes))

    async def _deliver(self, claimed: Sequence[Waiting]) -> None:
        self._sent_at.extend([self._loop.time()] * len(claimed))
        self._reached, self._asked_seconds = False, None
        async with asyncio.TaskGroup() as group:
            sending = [group.create_task(self._attempt(message)) for message in claimed]
        outcomes = [task.result() for task in sending]
        await self._store.write(partial(deliveries.settle, outcomes=outcomes))
        self._note(outcomes)

    async def _attempt(self, message: Waiting) -> Outcome:
        """Send one message. Whatever goes wrong with it is its own outcome."""
        now_us = _now_us()
        try:
            await self.target.send(message)
        except Refused as error:
            self._reached = True
            return Outcome(message.id, DEAD, str(error))
        except NotYet as error:
            self._reached = True
            if self._patience.is_over(message, now_us):
                return Outcome(message.id, DEAD, str(error))
            return Outcome(message.id, WAITING, str(error), now_us + int(error.seconds * 1e6), postponed=True)
        except Unavailable as error:
            return self._later(message, str(error), error.retry_after_seconds)
        except Exception as error:
            log.exception("delivery_failed", target=self._name, incident=message.incident.id)
            return self._later(message, f"a mistake in this program: {type(error).__name__}", None)
        self._reached = True
        return Outcome(message.id, SENT)

    def _later(self, message: Waiting, error: str, asked_seconds: float | None) -> Outcome:
        if asked_seconds is not None:
            self._asked_seconds = max(asked_seconds, self._asked_seconds or 0.0)
        now_us = _now_us()
        if self._patience.is_over(message, now_us):
            return Outcome(message.id, DEAD, error)
        pause = self._patience.pause(message.attempts, asked_seconds)
        return Outcome(message.id, WAITING, error, now_us + int(pause * 1e6))

    def _note(self, outcomes: Sequence[Outcome]) -> None:
        """Count, and say once that a target fails, that it is back, and that messages were given up."""
        states = Counter(outcome.state for outcome in outcomes)
        errors = [outcome.error for outcome in outcomes if outcome.error]
        for word, count in Counter(_word(outcome) for outcome in outcomes).items():
            self._metrics.delivered(self._name, word, count)
        if states[DEAD]:
            log.error("deliveries_given_up", target=self._name, messages=states[DEAD], reason=errors[0])
        if self._reached and self._failures:
            log.info("target_recovered", target=self._name, failures=self._failures)
        elif not self._reached and not self._failures:
            log.warning("target_failing", target=self._name, reason=errors[0], consequence="its messages wait")
        self._failures = 0 if self._reached else self._failures + 1
        pauses = self._asked_seconds is not None or not self._reached
        pause = self._patience.pause(self._failures, self._asked_seconds) if pauses else 0.0
        self._paused_until = self._loop.time() + pause

    async def _count(self) -> None:
        counts = await self._store.read(partial(deliveries.counts, target=self._name))
        self._metrics.deliveries(self._name, counts.get(WAITING, 0), counts.get(DEAD, 0))

    async def _wait(self, seconds: float | None) -> None:
        """Return when the time is over, or something was posted."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds is None else max(0.0, seconds)):
                await self._posted.wait()

    def _in_last_minute(self) -> int:
        minute_ago = self._loop.time() - MINUTE_SECONDS
        while self._sent_at and self._sent_at[0] <= minute_ago:
            self._sent_at.popleft()
        return len(self._sent_at)

    def _free_at(self) -> float:
        """When another message may be sent."""
        return self._sent_at[0] + MINUTE_SECONDS if self._in_last_minute() >= self.target.per_minute else 0.0


class Couriers:
    """All targets' couriers."""

    def __init__(self, store: Store, targets: Sequence[Target], metrics: Metrics) -> None:
        self.routes = [target.route for target in targets]
        self._store = store
        self._couriers = [Courier(store, target, metrics) for target in targets]

    def wake(self) -> None:
        """Messages may have been posted."""
        for courier in self._couriers:
            courier.wake()

    async def run(self) -> None:
        """Deliver until cancelled; what waits for targets that are switched off is forgotten first."""
        names = [route.target for route in self.routes]
        dropped = await self._store.write(partial(deliveries.drop_others, targets=names))
        if dropped:
            log.warning("deliveries_dropped", messages=dropped, reason="their targets are not switched on any more")
        async with asyncio.TaskGroup() as group:
            for courier in self._couriers:
                group.create_task(courier.run())


def _word(outcome: Outcome) -> str:
    return "postponed" if outcome.postponed else "failed" if outcome.state == WAITING else outcome.state


def _now_us() -> int:
    return time.time_ns() // 1000
