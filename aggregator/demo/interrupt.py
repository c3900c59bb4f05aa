"""How a demo hears that it shall stop: in its waits, and nowhere else.

An exception raised by a signal's handler can come while a process is being started, when nobody knows the process yet, or be lost
where C code calls back. So the handler only leaves a word, and every wait of the demo reads it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable

Sleep = Callable[[float], None]  # seconds


class Interrupt:
    """SIGINT and SIGTERM of this process, from its making on; also where a shell's background job ignores SIGINT."""

    def __init__(self) -> None:
        # No Event: its lock may be held by the very wait that the handler cuts into.
        self._word, self._leave_word = os.pipe()
        os.set_blocking(self._leave_word, False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)

    def wait(self, seconds: float | None = None) -> bool:
        """Whether to stop, known after so many seconds at most; None waits until it is so."""
        return bool(select.select([self._word], [], [], seconds)[0])

    def sleep(self, seconds: float) -> None:
        """Wait so long. Raises KeyboardInterrupt when the demo shall stop."""
        if self.wait(seconds):
            raise KeyboardInterrupt

    def _hear(self, *_: object) -> None:
        with contextlib.suppress(BlockingIOError):  # full of words already
            os.write(self._leave_word, b"!")
