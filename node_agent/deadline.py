"""Calls that may never return, kept away from the event loop.

Reading a device's attributes, the driver's /proc files or another process's memory can sleep in the kernel where not even SIGKILL
reaches. Each such source gets one daemon thread at a time: a call that outlives its deadline is abandoned, and the source stays
refused until that thread is back. So a dead device costs one thread, never a growing number, and never the agent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class SourceStuck(Exception):
    """A call has not returned within its deadline, now or earlier; the text says which and for how long."""


class Source:
    """One thing whose reads may block. Calls must come from one thread, the event loop's."""

    def __init__(self, name: str, deadline_seconds: float) -> None:
        self.name = name
        self._deadline_seconds = deadline_seconds
        self._running: Future[Any] | None = None
        self._started_at = 0.0

    async def call(self, function: Callable[[], T]) -> T:
        """What the function returns or raises. Raises SourceStuck after the deadline, and at once while an earlier call hangs."""
        waiting = asyncio.wrap_future(self._start(function))
        try:
            done, _ = await asyncio.wait({waiting}, timeout=self._deadline_seconds)
            if not done:
                raise self._stuck()
            return waiting.result()
        finally:
            waiting.cancel()  # an abandoned thread's answer has nobody to wake

    def call_waiting(self, function: Callable[[], T]) -> T:
        """Like `call` for callers that cannot await: the calling thread waits, so the deadline must be a fraction of a second."""
        future = self._start(function)
        try:
            return future.result(self._deadline_seconds)
        except TimeoutError:
            if future.done():  # the function's own
                raise
            raise self._stuck() from None

    def _start(self, function: Callable[[], T]) -> Future[T]:
        if self._running is not None and not self._running.done():
            raise self._stuck()
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # from here on nobody can cancel it under the thread's feet
        self._running, self._started_at = future, time.monotonic()
        threading.Thread(target=_run, args=(function, future), name=f"read {self.name}", daemon=True).start()
        return future

    def _stuck(self) -> SourceStuck:
        return SourceStuck(f"reading {self.name} has not returned for {time.monotonic() - self._started_at:.1f} s")


def _run(function: Callable[[], T], future: Future[T]) -> None:
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001  raised again where the result is awaited
        future.set_exception(error)
    else:
        future.set_result(result)
