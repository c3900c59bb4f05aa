"""Serialized records → the model. What cannot be one fact is `Malformed`; what is merely unknown travels on.

`Evidence.values` holds the typed body under these names:

- kernel_line and the like (KernelRecord): seq, flags; malformed=True when the record's prefix could not be read
- GpuEvent: type, data
- Observation: field, before, after, limit, counter_reset. "unsupported" stands for a value the device does not offer, "error: …"
  for one that could not be read, None for one that is absent
- Gap: where, reason, lost_source, lost_epoch, first, last, lost_count
- Storm: boot_minute, suppressed_count, first_seq, last_seq
- TextCapture: origin, line_number, captured_boot_id
- Inventory: driver_version, nvml_version, kernel_version, gpus (how many), pci_gpus (how many), expected_gpus, expected_from
- NodeCondition: condition, status, reason, message

The store keeps the bytes beside what is read here, so that fields of a newer agent are never lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from aggregator.model import Evidence, EvidenceKey, Gpu, Phase, Scalar, Workload, normalise_pci
from protos.v1 import evidence_pb2 as pb

MAX_IDENTITY_LENGTH = 256  # characters of a node, source, epoch or kind: they are index keys and metric labels
MAX_TIME_US = 253_402_300_800_000_000  # the end of the year 9999

_PHASES = {pb.PHASE_BEGAN: Phase.BEGAN, pb.PHASE_ENDED: Phase.ENDED}


class Malformed(ValueError):
    """The bytes are no record of this kind, or lack what makes a fact one fact."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """What the aggregator itself needs of a NodeSnapshot."""

    node: str
    taken_us: int
    boot_id: str = ""
    driver_version: str = ""
    gpu_count: int = 0  # GPUs that NVML offers
    gpu_model: str = ""  # of all GPUs, where they are alike
    gpus: tuple[Gpu, ...] = ()  # every GPU it knows, lost ones included
    driver_works: bool = True  # False where the bus shows GPUs and NVML does not answer for them


def decode(payload: bytes, *, replayed: bool = False, stored_us: int = 0) -> Evidence:
    """One Evidence message as the model's Evidence. Raises Malformed."""
    message = pb.Evidence()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise Malformed(f"not an Evidence message: {error}") from error
    occurred_us, time_known = _occurred(message, stored_us)
    values, text, facility, level, monotonic_us = _body(message)
    gpu = _gpu(message.gpu) if message.HasField("gpu") else None
    return Evidence(
        key=_key(message),
        kind=_name(message.kind, "kind"),
        occurred_us=occurred_us,
        phase=_PHASES.get(message.phase, Phase.POINT),
        gpu=gpu,
        mig=_mig(message.mig) if message.HasField("mig") else None,
        boot_id=message.boot_id,
        detail=message.detail,
        text=text,
        facility=facility,
        level=level,
        monotonic_us=monotonic_us,
        values=values,
        workloads=tuple(_workload(workload) for workload in message.workloads),
        simulated=message.simulated,
        replayed=replayed,
        time_estimated=not time_known or message.time_basis == pb.TIME_BASIS_ESTIMATED,
        stored_us=stored_us,
    )


def decode_snapshot(payload: bytes) -> NodeState:
    """What the aggregator compares and shows of one NodeSnapshot. Raises Malformed."""
    message = pb.NodeSnapshot()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise Malformed(f"not a NodeSnapshot message: {error}") from error
    inventory = message.inventory
    models = {gpu.model for gpu in inventory.gpus}
    nvml = message.collectors.get("nvml", "running")
    return NodeState(
        node=_name(message.node, "node"),
        taken_us=_microseconds(message.taken_at.seconds, message.taken_at.nanos),
        boot_id=message.boot_id,
        driver_version=inventory.driver_version,
        gpu_count=len(inventory.gpus),
        gpu_model=models.pop() if len(models) == 1 else "",
        gpus=_known_gpus(message),
        driver_works=nvml.startswith("running") or not (inventory.pci_gpus or inventory.gpus),
    )


def gpu_names(payload: bytes) -> dict[str, str]:
    """GPU UUID → PCI address of every GPU that a stored NodeSnapshot knows both names of."""
    gpus = _known_gpus(pb.NodeSnapshot.FromString(payload))
    return {gpu.uuid: gpu.pci for gpu in gpus if gpu.uuid and gpu.pci}


def _known_gpus(message: pb.NodeSnapshot) -> tuple[Gpu, ...]:
    named = [*message.inventory.gpus, *(state.gpu for state in message.gpus)]
    return tuple({(gpu.uuid, gpu.pci): _gpu(gpu) for gpu in named}.values())


def _key(message: pb.Evidence) -> EvidenceKey:
    return EvidenceKey(
        node=_name(message.node, "node"),
        source=_name(message.source, "source"),
        epoch=_identity(message.epoch, "epoch"),
        seq=message.seq,
    )


def _identity(text: str, what: str) -> str:
    if not text:
        raise Malformed(f"{what} is empty")
    if len(text) > MAX_IDENTITY_LENGTH:
        raise Malformed(f"{what} is {len(text)} characters long, more than {MAX_IDENTITY_LENGTH}")
    return text


def _name(text: str, what: str) -> str:
    """A part of an evidence id that must not hold the id's own separator."""
    if "/" in text:
        raise Malformed(f"{what} holds a slash")
    return _identity(text, what)


def _occurred(message: pb.Evidence, stored_us: int) -> tuple[int, bool]:
    """When it happened, and whether the message says so; the time of collecting or storing stands in where it does not."""
    present = [name for name in ("occurred_at", "collected_at") if message.HasField(name)]
    times = [_microseconds(stamp.seconds, stamp.nanos) for stamp in (getattr(message, name) for name in present)]
    return (times[0], present[0] == "occurred_at") if times else (stored_us, False)


def _microseconds(seconds: int, nanos: int) -> int:
    time_us = seconds * 1_000_000 + nanos // 1000
    # A reader fails on other nanoseconds, and would not show what comes behind them.
    if not (0 <= time_us < MAX_TIME_US and 0 <= nanos < 1_000_000_000):
        raise Malformed(f"{seconds} seconds and {nanos} nanoseconds since 1970 is no time")
    return time_us


def _gpu(gpu: pb.GpuIdentity) -> Gpu:
    return Gpu(
        uuid=gpu.uuid or None,
        pci=(normalise_pci(gpu.pci) or gpu.pci) or None,
        serial=gpu.serial or None,
        minor=gpu.minor if gpu.HasField("minor") else None,
        model=gpu.model or None,
    )


def _mig(mig: pb.MigInstance) -> str:
    return f"{mig.gpu_instance}/{mig.compute_instance}" if mig.HasField("compute_instance") else str(mig.gpu_instance)


def _workload(workload: pb.Workload) -> Workload:
    return Workload(
        namespace=workload.namespace,
        pod=workload.pod,
        pod_uid=workload.pod_uid,
        container=workload.container,
        pid=workload.pid or None,
        slurm_job=workload.slurm_job,
    )


_Body = tuple[dict[str, Scalar], str | None, int, int | None, int | None]  # values, text, facility, level, monotonic_us


def _body(message: pb.Evidence) -> _Body:
    name = message.WhichOneof("body")
    if name == "kernel_record":
        return _kernel_record(message.kernel_record)
    if name is None:
        return {}, None, 0, None, None
    values, text = _BODIES[name](getattr(message, name))
    return values, text, 0, None, None


def _kernel_record(record: pb.KernelRecord) -> _Body:
    values: dict[str, Scalar] = {"seq": record.seq, "flags": record.flags}
    line = record.line
    if record.malformed:
        values["malformed"] = True
        line = line or record.malformed.decode("utf-8", "backslashreplace")
    return values, line, record.facility, record.level, record.monotonic_usec


def _gpu_event(event: pb.GpuEvent) -> tuple[dict[str, Scalar], str | None]:
    return {"type": event.type, "data": event.data}, None


def _observation(observation: pb.Observation) -> tuple[dict[str, Scalar], str | None]:
    values: dict[str, Scalar] = {
        name: read_value(getattr(observation, name)) if observation.HasField(name) else None
        for name in ("before", "after", "limit")
    }
    return {"field": observation.field, **values, "counter_reset": observation.counter_reset}, None


def _gap(gap: pb.Gap) -> tuple[dict[str, Scalar], str | None]:
    counts: dict[str, Scalar] = {
        name: getattr(gap, name) if gap.HasField(name) else None for name in ("first", "last", "lost_count")
    }
    names = {name: getattr(gap, name) for name in ("where", "reason", "lost_source", "lost_epoch")}
    return {**names, **counts}, None


def _storm(storm: pb.Storm) -> tuple[dict[str, Scalar], str | None]:
    names = ("boot_minute", "suppressed_count", "first_seq", "last_seq")
    return {name: getattr(storm, name) for name in names}, storm.last_line


def _text_capture(capture: pb.TextCapture) -> tuple[dict[str, Scalar], str | None]:
    values: dict[str, Scalar] = {
        "origin": capture.origin,
        "line_number": capture.line_number,
        "captured_boot_id": capture.boot_id,
    }
    return values, capture.line


def _node_condition(condition: pb.NodeCondition) -> tuple[dict[str, Scalar], str | None]:
    names = ("condition", "status", "reason", "message")
    return {name: getattr(condition, name) for name in names}, None


def _inventory(inventory: pb.Inventory) -> tuple[dict[str, Scalar], str | None]:
    values: dict[str, Scalar] = {
        "driver_version": inventory.driver_version,
        "nvml_version": inventory.nvml_version,
        "kernel_version": inventory.kernel_version,
        "gpus": len(inventory.gpus),
        "pci_gpus": len(inventory.pci_gpus),
        "expected_gpus": inventory.expected_gpus if inventory.HasField("expected_gpus") else None,
        "expected_from": inventory.expected_from,
    }
    return values, None


_BODIES: Mapping[str, Callable[[Any], tuple[dict[str, Scalar], str | None]]] = {
    "gpu_event": _gpu_event,
    "observation": _observation,
    "gap": _gap,
    "storm": _storm,
    "text_capture": _text_capture,
    "inventory": _inventory,
    "node_condition": _node_condition,
}


def read_value(value: pb.Value) -> Scalar:
    """A typed value; see the module's words for what has none."""
    match value.WhichOneof("value"):
        case "number":
            return int(value.number) if value.number.is_integer() else value.number
        case "text":
            return value.text
        case "flag":
            return value.flag
        case "unsupported":
            return "unsupported"
        case "error":
            return f"error: {value.error}"
    return None
