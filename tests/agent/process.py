"""A real agent process for tests, on files of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

GRACE_SECONDS = 20.0


class AgentProcess:
    """`python -m node_agent` that reads a FIFO as its kernel log, with its state in one directory."""

    def __init__(self, directory: Path, aggregator_address: str, **variables: str) -> None:
        self.state_dir = directory / "state"
        self.kernel_log = directory / "kmsg"
        if not self.kernel_log.exists():
            os.mkfifo(self.kernel_log)
        self._kernel_seq = 0
        self._fifo = os.open(self.kernel_log, os.O_RDWR)
        self._log_path = directory / "agent.log"
        self.environment = {
            **os.environ,
            "GCM_SENTINEL_NODE_NAME": "node-1",
            "GCM_SENTINEL_AGGREGATOR_ADDRESS": aggregator_address,
            "GCM_SENTINEL_STATE_DIR": str(self.state_dir),
            "GCM_SENTINEL_KMSG_PATH": str(self.kernel_log),
            "GCM_SENTINEL_METRICS_ADDRESS": "127.0.0.1:0",
            "GCM_SENTINEL_NVML": "off",
            **{f"GCM_SENTINEL_{name}": value for name, value in variables.items()},
        }
        self.under: tuple[str, ...] = ()  # the command that starts it, if it is not started directly
        self.process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> AgentProcess:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        os.close(self._fifo)

    async def start(self) -> None:
        """Start it, or start it again."""
        with self._log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.under, sys.executable, "-m", "node_agent", env=self.environment, stderr=log
            )

    async def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Signal it; its exit code and how long it took to leave, in seconds."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        code = await asyncio.wait_for(self.process.wait(), GRACE_SECONDS)
        return code, time.monotonic() - began

    def kernel(self, line: str) -> None:
        """What the kernel would log now."""
        boottime_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        os.write(self._fifo, f"4,{self._kernel_seq},{boottime_us},-;{line}\n".encode())
        self._kernel_seq += 1

    def log(self) -> list[dict[str, Any]]:
        """Its log so far; raises when a line is not JSON."""
        return [json.loads(line) for line in self._log_path.read_text().splitlines()]

    async def logged(self, text: str, seconds: float = GRACE_SECONDS) -> dict[str, Any]:
        """Wait for a log line that holds the text."""
        async with asyncio.timeout(seconds):
            while True:
                for record in self.log():
                    if text in record["message"]:
                        return record
                await asyncio.sleep(0.02)

    async def metrics_port(self) -> int:
        """Where its metrics and probes are."""
        return int((await self.logged("metrics and probes on port"))["message"].rpartition(" ")[2])

    def rss_kib(self) -> int:
        """Resident memory of it and its children together."""
        assert self.process is not None
        pids = [self.process.pid, *_children(self.process.pid)]
        return sum(_rss_kib(pid) for pid in pids)


def _children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def _rss_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
