"""The child process under a test's control: requests in, messages out, no agent."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


class Child:
    """A child under a test's control."""

    def __init__(self, environ: dict[str, str], *arguments: str) -> None:
        command = [sys.executable, "-m", "node_agent.nvml.child", *arguments]
        self.process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._asked = 0

    def send(self, do: str) -> None:
        """Ask and do not wait."""
        self._asked += 1
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": self._asked, "do": do}).encode() + b"\n")
        self.process.stdin.flush()

    def line(self) -> Any:
        """The next message."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, do: str) -> Any:
        """Ask and wait."""
        self.send(do)
        return self.line()

    def leave(self) -> int:
        """Close its stdin, as a dying agent does, and wait for its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            return self.process.wait(5)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
