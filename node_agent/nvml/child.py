"""The process that calls NVML: `python -m node_agent.nvml.child [--simulated FILE]`, started by the agent, ends with it.

JSON lines. In: {"id", "do": open | critical | counters | snapshot | close | where}. Out: {"id", …reply}, or {"id", "refused":
[code, text]}; and, unasked, {"event": …} or {"event_gap": text}. Three threads: the main one reads requests and answers `where`
even while a driver call hangs; one makes the calls; one waits for events. When stdin closes the agent is gone: shut down what
still answers, and leave.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, Final, Protocol

from node_agent.nvml.codes import DriverError

LEAVE_SECONDS: Final = 2.0  # how long an orphan tries to shut NVML down in order


class Driver(Protocol):
    """What the child drives: the real library, or a file in its place."""

    calling: tuple[str, str, float] | None

    def open(self) -> dict[str, Any]: ...
    def read(self, group: str) -> dict[str, Any]: ...
    def watch(self, stop: threading.Event) -> Iterator[dict[str, Any]]: ...
    def close(self) -> None: ...


class Child:
    """Serves one driver over stdin and stdout."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        # The pipe to the agent is ours alone: whatever the driver's library prints goes where the tracebacks go.
        self._pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._requests: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self._caller = threading.Thread(target=self._make_calls, name="nvml-calls", daemon=True)

    def serve(self) -> None:
        """Until stdin closes."""
        self._caller.start()
        for line in sys.stdin.buffer:
            request = json.loads(line)
            if request["do"] == "where":
                self._send({"where": self._where()})
            else:
                self._requests.put(request)
        self._requests.put(None)
        self._caller.join(LEAVE_SECONDS)

    def _make_calls(self) -> None:
        while (request := self._requests.get()) is not None:
            try:
                reply = self._answer(request["do"])
            except DriverError as error:
                reply = {"refused": [error.code, str(error)]}
            self._send({"id": request["id"], **reply})
        self._close()

    def _answer(self, do: str) -> dict[str, Any]:
        if do == "open":
            opened = self._driver.open()
            self._watcher = threading.Thread(target=self._watch_events, name="nvml-events", daemon=True)
            self._watcher.start()
            return opened
        if do == "close":
            self._close()
            return {}
        return self._driver.read(do)

    def _watch_events(self) -> None:
        for message in self._driver.watch(self._stop):
            self._send({**message, "at": time.time()})

    def _close(self) -> None:
        if self._watcher is None:
            return
        self._stop.set()
        self._watcher.join()
        self._watcher = None
        self._driver.close()

    def _where(self) -> dict[str, Any]:
        calling = self._driver.calling
        function, about, since = calling or ("", "", time.monotonic())
        seconds = round(time.monotonic() - since, 3)
        return {"function": function, "about": about, "seconds": seconds, "thread": self._caller.native_id}

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._writing:
            while line:  # a raw pipe may take less than all
                line = line[self._pipe.write(line) :]


def _end_with_the_thread(failure: threading.ExceptHookArgs) -> None:
    """A child that lost a thread would look like one that hangs, or like one without events: it crashes, and is replaced."""
    threading.__excepthook__(failure)
    sys.stderr.flush()
    os._exit(1)


def main(arguments: list[str]) -> None:
    """Serve the driver that the arguments name; never returns, lest a hanging thread keep the interpreter from leaving."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the agent decides when the child ends
    driver: Driver
    if arguments[:1] == ["--simulated"]:
        from node_agent.nvml.simulated import SimulatedDriver

        driver = SimulatedDriver(arguments[1])
    else:
        from node_agent.nvml.driver import NvmlDriver  # nvidia-ml-py costs 6 MB

        driver = NvmlDriver()
    threading.excepthook = _end_with_the_thread
    try:
        Child(driver).serve()
    except BrokenPipeError:  # the agent is gone
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
