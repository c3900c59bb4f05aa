"""SIGTERM and SIGINT end the agent in good order, and in time whatever hangs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading

log = logging.getLogger(__name__)

LEAVE_SECONDS = 4.5


def stop_on_signals() -> asyncio.Event:
    """Set by the first of the signals. From then on the process is gone within LEAVE_SECONDS, even when the event loop is blocked,
    and at once on a second signal. What the spool has written is safe either way."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def leave(number: int, _frame: object) -> None:
        log.info("asked to stop by %s", signal.Signals(number).name)
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        last_resort = threading.Timer(LEAVE_SECONDS, os._exit, (0,))
        last_resort.daemon = True
        last_resort.start()
        loop.call_soon_threadsafe(stop.set)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, leave)
    return stop
