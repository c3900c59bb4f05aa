"""The child's replies as the agent's values: identity is normalised here, at the edge, and nowhere later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from node_agent.evidence import UNSUPPORTED, Gpu, Unreadable, Value
from node_agent.nvml.codes import NOT_MIG
from node_agent.pci import normalise_address


@dataclass(frozen=True, slots=True)
class Gone:
    """Why NVML cannot read a GPU: its return code and words."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What one group of calls gave for one GPU. A name that is missing was not read this time."""

    uuid: str
    values: Mapping[str, Value] = field(default_factory=dict)
    gone: Gone | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One group of calls; `count` is how many GPUs NVML counts, readable or not."""

    count: int
    gpus: tuple[GpuReading, ...]


@dataclass(frozen=True, slots=True)
class EnumeratedGpu:
    """One NVML index at the time of opening; the identity is empty as far as it could not be read."""

    index: int
    gpu: Gpu
    gone: Gone | None


@dataclass(frozen=True, slots=True)
class Opened:
    """The driver as it was opened."""

    driver_version: str
    nvml_version: str
    gpus: tuple[EnumeratedGpu, ...]


@dataclass(frozen=True, slots=True)
class DriverEvent:
    """An NVML event; `at` is the child's wall clock, seconds."""

    uuid: str
    type: int
    data: int
    mig: tuple[int, int | None] | None
    at: float


def read_opened(reply: Mapping[str, Any]) -> Opened:
    """The reply to `open`."""
    gpus = tuple(EnumeratedGpu(entry["index"], _gpu(entry), _gone(entry)) for entry in reply["gpus"])
    return Opened(reply["driver_version"], reply["nvml_version"], gpus)


def read_reading(reply: Mapping[str, Any]) -> Reading:
    """The reply to a group of calls."""
    return Reading(
        reply["count"],
        tuple(
            GpuReading(uuid, {name: _value(raw) for name, raw in entry["values"].items()}, _gone(entry))
            for uuid, entry in reply["gpus"].items()
        ),
    )


def read_event(message: Mapping[str, Any]) -> DriverEvent:
    """An event as the child sends it."""
    event = message["event"]
    gpu_instance, compute_instance = event["gpu_instance"], event["compute_instance"]
    mig = None
    if gpu_instance != NOT_MIG:
        mig = (gpu_instance, None if compute_instance == NOT_MIG else compute_instance)
    return DriverEvent(event["uuid"], event["type"], event["data"], mig, message["at"])


def _gpu(entry: Mapping[str, Any]) -> Gpu:
    return Gpu(
        uuid=entry.get("uuid") or "",
        pci=normalise_address(entry.get("pci") or ""),
        serial=entry.get("serial") or "",
        minor=entry.get("minor"),
        module_id=entry.get("module_id"),
        model=entry.get("model") or "",
    )


def _gone(entry: Mapping[str, Any]) -> Gone | None:
    return Gone(*entry["gone"]) if entry.get("gone") else None


def _value(raw: Any) -> Value:
    if raw is None:
        return UNSUPPORTED
    if isinstance(raw, dict):
        return Unreadable(raw["error"])
    value: Value = raw
    return value
