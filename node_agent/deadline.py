"""Calls that may never return, kept away from the event loop.

Reading a device's attributes, the driver's /proc files or another process's memory can sleep in the kernel where not even SIGKILL
reaches. So sources are read in a daemon thread, one after another. A call that outlives its deadline is abandoned with its thread,
the rest goes on in a new one, and the source is refused until that thread is back. A dead device costs one thread, never a growing
number, and neither its neighbours nor the agent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class SourceStuck(Exception):
    """A call has not returned within its deadline, now or earlier; the text says which and for how long."""


class Sources:
    """Things that are read by name and may block. Calls must come from one thread, the event loop's."""

    def __init__(self, deadline_seconds: float) -> None:
        self._deadline_seconds = deadline_seconds
        self._hanging: dict[str, _Sweep[object]] = {}

    async def call_each(self, calls: Mapping[str, Callable[[], T]]) -> dict[str, T | Exception]:
        """What each function returned or raised; SourceStuck for one that hangs now, or still hangs since an earlier call."""
        outcomes: dict[str, T | Exception] = {name: stuck for name in calls if (stuck := self._refusal(name))}
        while waiting := {name: function for name, function in calls.items() if name not in outcomes}:
            sweep = _Sweep(waiting)
            finished = await self._finish(sweep)
            outcomes |= sweep.outcomes
            if not finished:
                outcomes[sweep.at] = self._remember(sweep)
        return outcomes

    async def call(self, name: str, function: Callable[[], T]) -> T:
        """What the function returns or raises, or SourceStuck."""
        return _result((await self.call_each({name: function}))[name])

    def call_waiting(self, name: str, function: Callable[[], T]) -> T:
        """Like `call` for callers that cannot await: the calling thread waits, so the deadline must be a fraction of a second."""
        if refusal := self._refusal(name):
            raise refusal
        sweep = _Sweep({name: function})
        while not sweep.abandon(self._deadline_seconds):
            with suppress(TimeoutError):
                sweep.done.result(self._deadline_seconds - sweep.seconds_at_it)
                return _result(sweep.outcomes[name])
        raise self._remember(sweep)

    async def _finish(self, sweep: _Sweep[T]) -> bool:
        """Wait as long as the sweep makes progress; whether it came to its end."""
        waiting = asyncio.wrap_future(sweep.done)
        try:
            while not sweep.abandon(self._deadline_seconds):
                left = self._deadline_seconds - sweep.seconds_at_it
                if (await asyncio.wait({waiting}, timeout=left))[0]:
                    return True
            return False
        finally:
            waiting.cancel()  # an abandoned thread's end has nobody to wake

    def _remember(self, sweep: _Sweep[T]) -> SourceStuck:
        self._hanging[sweep.at] = sweep  # type: ignore[assignment]  # only asked whether it hangs
        return sweep.stuck()

    def _refusal(self, name: str) -> SourceStuck | None:
        sweep = self._hanging.get(name)
        if sweep is None:
            return None
        if sweep.done.done():
            del self._hanging[name]
            return None
        return sweep.stuck()


class _Sweep(Generic[T]):
    """One thread on its way through some calls. `at` names the one it is in."""

    def __init__(self, calls: Mapping[str, Callable[[], T]]) -> None:
        self.outcomes: dict[str, T | Exception] = {}
        self._abandoned = False
        self._lock = threading.Lock()  # between going on to the next call and being abandoned
        self.at = next(iter(calls))
        self.done: Future[None] = Future()
        self.done.set_running_or_notify_cancel()  # from here on nobody can cancel it under the thread's feet
        self._since = time.monotonic()
        threading.Thread(target=self._run, args=(calls,), name=f"reads {self.at} …", daemon=True).start()

    @property
    def seconds_at_it(self) -> float:
        return time.monotonic() - self._since

    def abandon(self, deadline_seconds: float) -> bool:
        """Give up on the thread if the call it is in has overrun; it will not begin another."""
        with self._lock:
            self._abandoned = self.seconds_at_it >= deadline_seconds
            return self._abandoned

    def stuck(self) -> SourceStuck:
        return SourceStuck(f"reading {self.at} has not returned for {self.seconds_at_it:.1f} s")

    def _run(self, calls: Mapping[str, Callable[[], T]]) -> None:
        for name, function in calls.items():
            with self._lock:
                if self._abandoned:  # the rest is another thread's by now
                    break
                self.at, self._since = name, time.monotonic()
            try:
                self.outcomes[name] = function()
            except Exception as error:  # noqa: BLE001  raised again where the outcome is taken
                self.outcomes[name] = error
        self.done.set_result(None)


def _result(outcome: T | Exception) -> T:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
