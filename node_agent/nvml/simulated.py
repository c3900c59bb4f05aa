"""A JSON file in the driver's place, for demos and tests: everything above the driver is the same.

`{"driver_version", "nvml_version", "driver": "ok|absent|mismatch|hang", "gpus": [{"uuid", "pci", "serial", "minor", "module_id",
"model", "lost": false, "values": {name: value}}], "events": [{"number": 1, "gpu_uuid", "type": 8, "data": 79, "mig": [gi, ci]}]}`.
Names and units of values are those of facts.py; null is "not supported", {"error": text} a failed read, and a name left out was
not read. The writer replaces the file by rename. Events with a number above the last one seen are delivered once; those that are
there when the driver is opened are past.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from node_agent.nvml.codes import DRIVER_NOT_LOADED, GPU_IS_LOST, LIB_RM_VERSION_MISMATCH, NOT_MIG, UNKNOWN, DriverError

_WATCH_SECONDS: Final = 0.25  # as often as the wait for real events wakes up
_IDENTITY: Final = ("uuid", "pci", "serial", "minor", "module_id", "model")
_REFUSALS: Final = {
    "absent": (DRIVER_NOT_LOADED, "Driver Not Loaded"),
    "mismatch": (LIB_RM_VERSION_MISMATCH, "RM has detected an NVML/RM version mismatch."),
}


class SimulatedDriver:
    """The interface of NvmlDriver over a file that may change at any time."""

    def __init__(self, path: str) -> None:
        self.calling: tuple[str, str, float] | None = None
        self._path = Path(path)
        self._last_event = 0

    def open(self) -> dict[str, Any]:
        """Enumerate. Raises DriverError."""
        state = self._state("open")
        self._last_event = max((event["number"] for event in state.get("events", ())), default=0)
        return {
            "driver_version": state.get("driver_version", ""),
            "nvml_version": state.get("nvml_version", ""),
            "gpus": [_identity(index, gpu) for index, gpu in enumerate(state["gpus"])],
        }

    def close(self) -> None:
        """Nothing is held."""

    def read(self, group: str) -> dict[str, Any]:
        """Every value of every GPU, whatever the group. Raises DriverError."""
        gpus = self._state(group)["gpus"]
        return {"count": len(gpus), "gpus": {gpu["uuid"]: _reading(gpu) for gpu in gpus}}

    def watch(self, stop: threading.Event) -> Iterator[dict[str, Any]]:
        """New events as they appear in the file, until `stop` is set."""
        seen = None
        while not stop.wait(_WATCH_SECONDS):
            try:
                status = self._path.stat()
                if (version := (status.st_mtime_ns, status.st_ino)) == seen:
                    continue
                state = self._load()
            except (OSError, DriverError):  # the next reading says so
                continue
            seen = version
            for event in state.get("events", ()):
                if event["number"] > self._last_event:
                    self._last_event = event["number"]
                    yield {"event": _event(event)}

    def _state(self, asked: str) -> dict[str, Any]:
        self.calling = (f"simulated {asked}", "", time.monotonic())
        state = self._load()
        while state.get("driver") == "hang":
            time.sleep(3600)
        if state.get("driver") in _REFUSALS:
            raise DriverError(*_REFUSALS[state["driver"]])
        return state

    def _load(self) -> dict[str, Any]:
        try:
            state = json.loads(self._path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise DriverError(UNKNOWN, f"{self._path}: {error}") from error
        if not isinstance(state, dict) or not isinstance(state.get("gpus"), list):
            raise DriverError(UNKNOWN, f"{self._path}: not an object with a list of gpus")
        return state


def _identity(index: int, gpu: dict[str, Any]) -> dict[str, Any]:
    identity = {"index": index, **{name: gpu.get(name) for name in _IDENTITY}}
    return {**identity, "gone": [GPU_IS_LOST, "GPU is lost"]} if gpu.get("lost") else identity


def _reading(gpu: dict[str, Any]) -> dict[str, Any]:
    if gpu.get("lost"):
        return {"values": {}, "gone": [GPU_IS_LOST, "GPU is lost"]}
    return {"values": gpu.get("values", {})}


def _event(event: dict[str, Any]) -> dict[str, Any]:
    gpu_instance, compute_instance = event.get("mig") or (NOT_MIG, NOT_MIG)
    return {
        "uuid": event["gpu_uuid"],
        "type": event.get("type", 8),
        "data": event["data"],
        "gpu_instance": gpu_instance,
        "compute_instance": NOT_MIG if compute_instance is None else compute_instance,
    }
