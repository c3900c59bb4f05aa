"""What collectors report, and how it becomes the wire's Evidence: the only module of the agent that builds those messages.

A collector makes a `Fact`; `Recorder` stamps it with identity and time and appends it to the spool as bytes. Reporting never
blocks and never raises for what a fact contains.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from protos.v1 import evidence_pb2 as pb


class Phase(IntEnum):
    """Whether a fact has a duration. Values are the wire's."""

    POINT = pb.PHASE_POINT
    BEGAN = pb.PHASE_BEGAN
    ENDED = pb.PHASE_ENDED


class TimeBasis(IntEnum):
    """How a time is known. Values are the wire's."""

    OBSERVED = pb.TIME_BASIS_OBSERVED
    ESTIMATED = pb.TIME_BASIS_ESTIMATED
    RECORDED = pb.TIME_BASIS_RECORDED


class Unsupported:
    """The device does not offer a value: never zero."""

    def __repr__(self) -> str:
        return "unsupported"


UNSUPPORTED = Unsupported()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Reading a value failed."""

    error: str


Value = float | int | str | bool | Unsupported | Unreadable | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU's names; empty or None when unknown. pci is `dddd:bb:dd.f` in lower case."""

    uuid: str = ""
    pci: str = ""
    serial: str = ""
    minor: int | None = None
    module_id: int | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """Who held a GPU, as far as the node knows."""

    namespace: str = ""
    pod: str = ""
    pod_uid: str = ""
    container: str = ""
    pid: int = 0
    slurm_job: str = ""


@dataclass(frozen=True, slots=True)
class KernelRecord:
    """One /dev/kmsg record; `malformed` holds the bytes of one whose prefix could not be read."""

    line: str
    seq: int
    facility: int
    level: int
    monotonic_usec: int
    flags: str = ""
    malformed: bytes = b""


@dataclass(frozen=True, slots=True)
class GpuEvent:
    """An NVML event: the type bit and its data (the XID for type 0x8)."""

    type: int
    data: int


@dataclass(frozen=True, slots=True)
class Observation:
    """A value that changed or crossed a limit; `field` names it with its unit."""

    field: str
    before: Value = None
    after: Value = None
    limit: Value = None
    counter_reset: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """A known loss: may overstate, never understates."""

    where: str
    reason: str
    lost_source: str = ""
    lost_epoch: str = ""
    first: int | None = None
    last: int | None = None
    lost_count: int | None = None


@dataclass(frozen=True, slots=True)
class Storm:
    """Kernel records of one minute of kernel time that were counted instead of sent."""

    boot_minute: int
    suppressed_count: int
    first_seq: int
    last_seq: int
    last_line: str


@dataclass(frozen=True, slots=True)
class TextCapture:
    """A line of text from before this boot."""

    origin: str
    line_number: int
    line: str
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What hardware and software the node has."""

    driver_version: str = ""
    nvml_version: str = ""
    kernel_version: str = ""
    gpus: tuple[Gpu, ...] = ()
    pci_gpus: tuple[str, ...] = ()
    expected_gpus: int | None = None
    expected_from: str = ""


Body = KernelRecord | GpuEvent | Observation | Gap | Storm | TextCapture | Inventory


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing a collector saw.

    `identity` is (epoch, seq) for facts whose identity is given by the world (kernel records, derived facts): re-reading them
    yields the same evidence. Without it the recorder counts per source within this run of the agent.
    """

    source: str
    kind: str
    detail: str = ""
    phase: Phase = Phase.POINT
    gpu: Gpu | None = None
    mig: tuple[int, int | None] | None = None
    body: Body | None = None
    occurred_at: float | None = None  # seconds since the epoch; None means now
    time_basis: TimeBasis = TimeBasis.OBSERVED
    identity: tuple[str, int] | None = None
    workloads: tuple[Workload, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU's present values, by name with unit."""

    gpu: Gpu
    values: Mapping[str, Value] = field(default_factory=dict)
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The node's present state: state, not evidence."""

    taken_at: float
    inventory: Inventory
    gpus: tuple[GpuState, ...] = ()
    values: Mapping[str, Value] = field(default_factory=dict)
    collectors: Mapping[str, str] = field(default_factory=dict)


Report = Callable[[Fact], None]


class Recorder:
    """Stamps facts and hands them on as bytes: the one way from a collector to the spool.

    append_event and append_sample must neither block nor raise (the spool keeps records in memory when the disk refuses).
    """

    def __init__(
        self,
        *,
        node: str,
        boot_id: str,
        simulated: bool,
        append_event: Callable[[bytes], None],
        append_sample: Callable[[bytes], None],
    ) -> None:
        self.node = node
        self.boot_id = boot_id
        self.agent_epoch = str(uuid.uuid4())
        self._simulated = simulated
        self._append_event = append_event
        self._append_sample = append_sample
        self._last_seq: Counter[str] = Counter()

    def report(self, fact: Fact) -> None:
        """Append one fact to the spool."""
        self._append_event(self.encode(fact))

    def report_snapshot(self, snapshot: Snapshot) -> None:
        """Append one snapshot to the spool's samples."""
        self._append_sample(self.snapshot_message(snapshot).SerializeToString())

    def encode(self, fact: Fact) -> bytes:
        """The fact as serialized Evidence."""
        epoch, seq = fact.identity or self._next_identity(fact.source)
        now = time.time()
        message = pb.Evidence(
            node=self.node,
            source=fact.source,
            epoch=epoch,
            seq=seq,
            kind=fact.kind,
            phase=fact.phase.value,
            time_basis=fact.time_basis.value,
            boot_id=self.boot_id,
            simulated=self._simulated,
            detail=_clean(fact.detail),
        )
        message.occurred_at.FromMicroseconds(round((now if fact.occurred_at is None else fact.occurred_at) * 1e6))
        message.collected_at.FromMicroseconds(round(now * 1e6))
        if fact.gpu is not None:
            message.gpu.CopyFrom(_gpu(fact.gpu))
        if fact.mig is not None:
            message.mig.CopyFrom(pb.MigInstance(gpu_instance=fact.mig[0], compute_instance=fact.mig[1]))
        message.workloads.extend(_workload(workload) for workload in fact.workloads)
        if fact.body is not None:
            _set_body(message, fact.body)
        return message.SerializeToString()

    def snapshot_message(self, snapshot: Snapshot) -> pb.NodeSnapshot:
        """The snapshot as a wire message."""
        message = pb.NodeSnapshot(
            node=self.node,
            boot_id=self.boot_id,
            simulated=self._simulated,
            inventory=_inventory(snapshot.inventory),
            collectors={name: _clean(state) for name, state in snapshot.collectors.items()},
        )
        message.taken_at.FromMicroseconds(round(snapshot.taken_at * 1e6))
        for state in snapshot.gpus:
            entry = message.gpus.add(gpu=_gpu(state.gpu), lost=state.lost)
            for name, value in state.values.items():
                entry.values[name].CopyFrom(_value(value))
        for name, value in snapshot.values.items():
            message.values[name].CopyFrom(_value(value))
        return message

    def _next_identity(self, source: str) -> tuple[str, int]:
        self._last_seq[source] += 1
        return self.agent_epoch, self._last_seq[source]


def _set_body(message: pb.Evidence, body: Body) -> None:
    match body:
        case KernelRecord():
            message.kernel_record.CopyFrom(
                pb.KernelRecord(
                    line=_clean(body.line),
                    seq=body.seq,
                    facility=body.facility,
                    level=body.level,
                    monotonic_usec=body.monotonic_usec,
                    flags=body.flags,
                    malformed=body.malformed,
                )
            )
        case GpuEvent():
            message.gpu_event.CopyFrom(pb.GpuEvent(type=body.type, data=body.data))
        case Observation():
            message.observation.field = body.field
            message.observation.counter_reset = body.counter_reset
            for name in ("before", "after", "limit"):
                value: Value = getattr(body, name)
                if value is not None:
                    getattr(message.observation, name).CopyFrom(_value(value))
        case Gap():
            message.gap.CopyFrom(
                pb.Gap(
                    where=body.where,
                    lost_source=body.lost_source,
                    lost_epoch=body.lost_epoch,
                    first=body.first,
                    last=body.last,
                    lost_count=body.lost_count,
                    reason=_clean(body.reason),
                )
            )
        case Storm():
            message.storm.CopyFrom(
                pb.Storm(
                    boot_minute=body.boot_minute,
                    suppressed_count=body.suppressed_count,
                    first_seq=body.first_seq,
                    last_seq=body.last_seq,
                    last_line=_clean(body.last_line),
                )
            )
        case TextCapture():
            message.text_capture.CopyFrom(
                pb.TextCapture(
                    origin=_clean(body.origin),
                    boot_id=body.boot_id,
                    line_number=body.line_number,
                    line=_clean(body.line),
                )
            )
        case Inventory():
            message.inventory.CopyFrom(_inventory(body))


def _clean(text: str) -> str:
    """Text that protobuf accepts: lone surrogates, which stand for bytes that are not UTF-8, become backslash escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def _gpu(gpu: Gpu) -> pb.GpuIdentity:
    return pb.GpuIdentity(
        uuid=gpu.uuid, pci=gpu.pci, serial=gpu.serial, minor=gpu.minor, module_id=gpu.module_id, model=_clean(gpu.model)
    )


def _workload(workload: Workload) -> pb.Workload:
    return pb.Workload(
        namespace=_clean(workload.namespace),
        pod=_clean(workload.pod),
        pod_uid=_clean(workload.pod_uid),
        container=_clean(workload.container),
        pid=workload.pid,
        slurm_job=_clean(workload.slurm_job),
    )


def _inventory(inventory: Inventory) -> pb.Inventory:
    return pb.Inventory(
        driver_version=_clean(inventory.driver_version),
        nvml_version=_clean(inventory.nvml_version),
        kernel_version=_clean(inventory.kernel_version),
        gpus=[_gpu(gpu) for gpu in inventory.gpus],
        pci_gpus=inventory.pci_gpus,
        expected_gpus=inventory.expected_gpus,
        expected_from=inventory.expected_from,
    )


def _value(value: Value) -> pb.Value:
    match value:
        case bool():
            return pb.Value(flag=value)
        case int() | float():
            return pb.Value(number=value)
        case str():
            return pb.Value(text=_clean(value))
        case Unsupported():
            return pb.Value(unsupported=True)
        case Unreadable(error):
            return pb.Value(error=_clean(error))
        case None:
            return pb.Value()
