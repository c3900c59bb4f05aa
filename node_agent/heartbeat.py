"""Beats once a second in the event loop: what the probes judge its life by, and how a blocked loop is noticed.

Nothing in the agent may block the loop; when something does (or the machine was suspended), nothing was observed meanwhile, and
that is evidence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from node_agent.evidence import Fact, Observation, Report

INTERVAL_SECONDS = 1.0
STALL_SECONDS = 10.0


class Heartbeat:
    """`age_seconds` may be read from any thread; `each_beat` runs in the loop once a second."""

    def __init__(self, report: Report, each_beat: Callable[[], None], stall_seconds: float = STALL_SECONDS) -> None:
        self._report = report
        self._each_beat = each_beat
        self._stall_seconds = stall_seconds
        self._last_beat = time.monotonic()
        self.lag_seconds = 0.0

    @property
    def age_seconds(self) -> float:
        """Seconds since the last beat; about one in a healthy agent."""
        return time.monotonic() - self._last_beat

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self._last_beat = time.monotonic()
            self._each_beat()
            await asyncio.sleep(INTERVAL_SECONDS)
            self.lag_seconds = max(0.0, self.age_seconds - INTERVAL_SECONDS)
            if self.lag_seconds >= self._stall_seconds:
                self._report(_stalled(self.lag_seconds, self._stall_seconds))


def _stalled(lag_seconds: float, limit_seconds: float) -> Fact:
    return Fact(
        source="agent",
        kind="agent_stalled",
        detail=f"the agent did not run for {lag_seconds:.1f} s: nothing was observed meanwhile",
        body=Observation(field="loop_lag_seconds", after=round(lag_seconds, 3), limit=limit_seconds),
    )
