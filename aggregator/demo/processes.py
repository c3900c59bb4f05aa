"""The processes a demo runs: one aggregator, and agents on this machine or on nodes that are simulated with files.

They are started as users start them, with environment variables alone, and end with the demo however it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aggregator.demo.interrupt import Sleep

GPU_BUSES = ("18", "2a", "3a", "5d", "9a", "ab", "ba", "db")  # where an eight-GPU HGX board usually shows its GPUs
# A unix socket's path has 107 bytes at most; below TMPDIR comes /gcm-sentinel-12345678/this-machine/state/agent.sock.
LONGEST_TMPDIR_BYTES = 50
DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; exec keeps it
if os.getppid() == int(sys.argv[1]):  # else the parent is gone already, unseen
    os.execv(sys.argv[2], sys.argv[2:])
"""


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def temporary_directory() -> tempfile.TemporaryDirectory[str]:
    """Where a demo's processes keep their state: in TMPDIR, or in /tmp where the path would be too long for their unix sockets."""
    chosen = tempfile.gettempdir()
    fits = len(os.fsencode(chosen)) <= LONGEST_TMPDIR_BYTES
    return tempfile.TemporaryDirectory(prefix="gcm-sentinel-", dir=chosen if fits else "/tmp")  # noqa: S108  # its name is random


class DidNotStart(Exception):
    """A process did not come up; the text holds the end of its log."""


class Process:
    """A child that dies with its parent, and asks for that itself: Python run between fork and exec can deadlock."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GCM_SENTINEL_")}
        dying_with_parent = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid())]
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [*dying_with_parent, sys.executable, *arguments],
                env={**clean, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends its children in order
            )
        self.log = log

    def stop(self, timeout_seconds: float = 10.0) -> int:
        """Ask it to leave, and make it leave when it does not; return its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL, and the exit code."""
        self.popen.kill()
        return self.popen.wait()


class AggregatorProcess:
    """`gcm-sentinel serve` with its state in one directory and its ports on loopback."""

    def __init__(self, directory: Path, *, ports: Sequence[int] | None = None, **variables: str) -> None:
        self.directory = directory
        grpc_port, metrics_port, http_port = ports or (free_port(), free_port(), free_port())
        self.address = f"127.0.0.1:{grpc_port}"
        self.metrics_address = f"127.0.0.1:{metrics_port}"
        self.http_address = f"127.0.0.1:{http_port}"
        self.environment = {
            "GCM_SENTINEL_STATE_DIR": str(directory),
            "GCM_SENTINEL_GRPC_ADDRESS": self.address,
            "GCM_SENTINEL_METRICS_ADDRESS": self.metrics_address,
            "GCM_SENTINEL_HTTP_ADDRESS": self.http_address,
            "GCM_SENTINEL_KUBERNETES": "off",
            **{f"GCM_SENTINEL_{name}": value for name, value in variables.items()},
        }
        self.process: Process | None = None

    def start(self) -> None:
        """Start it; `wait_ready` says when it serves."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.process = Process(["-m", "aggregator"], self.environment, self.directory / "serve.log")

    def wait_ready(self, timeout_seconds: float = 60.0, *, sleep: Sleep = time.sleep) -> None:
        """Return once it answers on its gRPC port. Raises DidNotStart when it does not."""
        host, _, port = self.address.partition(":")
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline and self.process is not None and self.process.popen.poll() is None:
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex((host, int(port))) == 0:
                    return
            sleep(0.05)
        self.stop()
        log = (self.directory / "serve.log").read_text(errors="replace")[-2000:]
        raise DidNotStart(f"the aggregator did not come up; the end of {self.directory / 'serve.log'}:\n{log}")

    def stop(self) -> None:
        """End it, if it runs."""
        if self.process is not None:
            self.process.stop()


class AgentProcess:
    """`gcm-sentinel agent` with its state in one directory."""

    def __init__(self, directory: Path, aggregator_address: str, *, node: str, **variables: str) -> None:
        self.directory = directory
        self.node = node
        self.metrics_address = f"127.0.0.1:{free_port()}"
        self.environment = {
            "GCM_SENTINEL_STATE_DIR": str(directory / "state"),
            "GCM_SENTINEL_NODE_NAME": node,
            "GCM_SENTINEL_AGGREGATOR_ADDRESS": aggregator_address,
            "GCM_SENTINEL_METRICS_ADDRESS": self.metrics_address,
            **{f"GCM_SENTINEL_{name}": value for name, value in variables.items()},
        }
        self.process: Process | None = None

    def start(self) -> None:
        """Start it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.process = Process(["-m", "node_agent"], self.environment, self.directory / "agent.log")

    def check_runs(self) -> None:
        """Raises DidNotStart when it has ended by itself, with the last it said."""
        if self.process is not None and self.process.popen.poll() is not None:
            said = self.process.log.read_text(errors="replace").splitlines()
            raise DidNotStart(f"the agent of {self.node} ended: {said[-1] if said else 'it said nothing'}")

    def stop(self) -> None:
        """End it, if it runs."""
        if self.process is not None:
            self.process.stop()


class SimulatedNode:
    """An eight-GPU node made of files: a kernel log, a driver, a PCI bus, and a real agent that reads them."""

    def __init__(self, name: str, directory: Path, aggregator_address: str) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.name = name
        self._kernel_log = directory / "kmsg"
        self._driver_file = directory / "driver.json"
        self._kernel_seq = 0
        self._driver = _healthy_driver(name)
        self._build_tree(directory)
        self._write_driver()
        self.agent = AgentProcess(
            directory,
            aggregator_address,
            node=name,
            KMSG_PATH=str(self._kernel_log),
            NVML=f"simulated:{self._driver_file}",
            SYSFS_ROOT=str(directory / "sys"),
            PROC_ROOT=str(directory / "proc"),
            POD_RESOURCES_SOCKET=str(directory / "no-kubelet.sock"),
        )

    def kernel(self, line: str) -> None:
        """Append one record to the kernel log, as the kernel would write it now."""
        addresses = {f"gpu{n}": gpu["pci"].removesuffix(".0") for n, gpu in enumerate(self._driver["gpus"])}
        boottime_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        record = f"4,{self._kernel_seq},{boottime_us},-;{line.format(**addresses)}\n"
        self._kernel_seq += 1
        with self._kernel_log.open("a", encoding="utf-8") as log:
            log.write(record)

    def change(
        self,
        *,
        driver: Mapping[str, Any] | None = None,
        gpus: Sequence[int] = (),
        values: Mapping[str, Any] | None = None,
        lost: bool | None = None,
        xid: int | None = None,
    ) -> None:
        """Change what the simulated driver shows, all at once."""
        self._driver.update(driver or {})
        for number in gpus:
            gpu = self._driver["gpus"][number]
            gpu["values"].update(values or {})
            if lost is not None:
                gpu["lost"] = lost
            if xid is not None:
                events = self._driver["events"]
                events.append({"number": len(events) + 1, "gpu_uuid": gpu["uuid"], "type": 8, "data": xid, "mig": None})
        self._write_driver()

    def gpu_pci(self, number: int) -> str:
        """PCI address of GPU `number`."""
        address: str = self._driver["gpus"][number]["pci"]
        return address

    def _write_driver(self) -> None:
        temporary = self._driver_file.with_suffix(".new")
        temporary.write_text(json.dumps(self._driver, indent=1))
        temporary.replace(self._driver_file)

    def _build_tree(self, directory: Path) -> None:
        self._kernel_log.touch()
        boot_id = directory / "proc/sys/kernel/random/boot_id"
        boot_id.parent.mkdir(parents=True)
        boot_id.write_text(f"{uuid.uuid4()}\n")
        (directory / "proc/sys/kernel/osrelease").write_text("6.8.0-simulated\n")
        for gpu in self._driver["gpus"]:
            device = directory / "sys/bus/pci/devices" / gpu["pci"]
            (device / "power").mkdir(parents=True)
            for name, text in {
                "vendor": "0x10de",
                "device": "0x2330",
                "class": "0x030200",
                "current_link_width": "16",
                "max_link_width": "16",
                "current_link_speed": "32.0 GT/s PCIe",
                "max_link_speed": "32.0 GT/s PCIe",
                "power/runtime_status": "active",
            }.items():
                (device / name).write_text(f"{text}\n")


def _healthy_driver(node: str) -> dict[str, Any]:
    return {
        "driver_version": "570.158.01",
        "nvml_version": "12.570.158.01",
        "driver": "ok",
        "gpus": [
            {
                "uuid": f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{node}/{number}')}",
                "pci": f"0000:{bus}:00.0",
                "serial": f"165012{uuid.uuid5(uuid.NAMESPACE_DNS, f'{node}/serial/{number}').int % 10**7:07}",
                "minor": number,
                "model": "NVIDIA H100 80GB HBM3",
                "lost": False,
                "values": {},
            }
            for number, bus in enumerate(GPU_BUSES)
        ],
        "events": [],
    }
