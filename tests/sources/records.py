"""Facts, snapshots and incidents as they stand in a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aggregator import assessor
from aggregator.model import Assessment, Incident, IncidentState, Signal, Subject
from aggregator.store import Store, verdicts
from aggregator.store.arrivals import Body, Delivery, Record
from aggregator.store.verdicts import Judgement
from protos.v1 import evidence_pb2 as pb
from tests.sources.history import NODE

PCI, UUID, SERIAL = "0000:3b:00.0", "GPU-00000001-0000-0000-0000-000000000000", "1650000000001"
BOOT = "boot-a"


def fact(kind: str, seq: int, at_us: int, *, node: str = NODE, source: str = "kmsg", **fields: Any) -> pb.Evidence:
    """One Evidence message."""
    message = pb.Evidence(node=node, source=source, epoch=BOOT, seq=seq, kind=kind, boot_id=BOOT, **fields)
    message.phase = message.phase or pb.PHASE_POINT
    message.occurred_at.FromMicroseconds(at_us)
    return message


def kernel_line(text: str, seq: int, at_us: int, *, facility: int = 0, node: str = NODE, **fields: Any) -> pb.Evidence:
    record = pb.KernelRecord(line=text, seq=seq, facility=facility, level=4)
    return fact("kernel_line", seq, at_us, node=node, kernel_record=record, **fields)


def gpu(pci: str = PCI, uuid: str = UUID, serial: str = SERIAL) -> pb.GpuIdentity:
    return pb.GpuIdentity(uuid=uuid, pci=pci, serial=serial, model="NVIDIA H100")


def snapshot(
    node: str = NODE, *, gpus: Sequence[pb.GpuIdentity] = (), driver: str = "550.54.15", **values: pb.Value
) -> pb.NodeSnapshot:
    """A NodeSnapshot whose GPUs all have these values."""
    message = pb.NodeSnapshot(node=node, boot_id=BOOT, collectors={"nvml": "running"})
    message.taken_at.FromMicroseconds(1_795_478_400_000_000)
    message.inventory.driver_version = driver
    for one in gpus or (gpu(),):
        message.inventory.gpus.append(one)
        state = message.gpus.add(gpu=one)
        for name, value in values.items():
            state.values[name].CopyFrom(value)
    return message


async def keep(store: Store, *messages: pb.Evidence | pb.NodeSnapshot) -> None:
    """Store what agents sent."""
    for number, message in enumerate(messages, 1):
        body = Body.EVIDENCE if isinstance(message, pb.Evidence) else Body.SNAPSHOT
        record = Record(number, message.SerializeToString(), body)
        await (await store.append(Delivery(message.node, f"spool-{message.node}", (record,))))


def incident(
    number: int,
    node: str,
    at_us: int,
    *,
    code: int = 79,
    gpu_uuid: str | None = None,
    pci: str | None = PCI,
    **more: Any,
) -> Incident:
    """An incident of one XID."""
    signal = Signal(
        f"{node}/kmsg/{BOOT}/{number}", "xid", code, node, pci=pci, gpu_uuid=gpu_uuid, at_us=at_us, source="kmsg"
    )
    subject = Subject("gpu", node, pci=pci, gpu_uuid=gpu_uuid)
    made = Incident(f"inc-{number}", subject, (node,), (signal,), IncidentState.OPEN, at_us, at_us)
    return replace(made, **more)


async def judge(store: Store, *incidents: Incident, words: str = "") -> None:
    """Store incidents with the rules' verdict; `words` stand where a model's would."""
    judged = []
    for one in incidents:
        assessment = assessor.assess(one, None, one.opened_us)
        judged.append(Judgement(one, _with_words(assessment, words), "opened"))
    await store.write(lambda connection: verdicts.save_step(connection, 0, judged, incidents[0].opened_us))


def _with_words(assessment: Assessment | None, words: str) -> Assessment | None:
    if assessment is None or not words:
        return assessment
    verdict = replace(assessment.verdict, root_cause=words, summary=words, next_steps=(words,))
    return replace(assessment, verdict=verdict, origin="llm", disputed=(words,))
