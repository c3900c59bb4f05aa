"""Turns evidence into signals: the one place that knows what a kernel line or a typed fact says.

Text goes through the grammars; facts that a collector has already typed pass through with their values as attributes. A line
that userspace wrote into the kernel log gives a `userspace_kernel_line` of tenant trust and nothing else, whatever it claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from aggregator.model import Evidence, Scalar, Signal, Trust
from aggregator.rules import formats, node_conditions, records
from aggregator.rules.grammar.reading import Grammar, Line, Origin, Reading
from aggregator.rules.grammar.xid_text import recovery_action
from aggregator.rules.kinds import CLUSTER_KINDS
from aggregator.rules.words import grammars_for

_TENANT_KINDS = frozenset(("userspace_kernel_line", "secondhand_xid"))
_PROGRAM_KINDS = frozenset(
    ("cuda_error", "nccl_error")
)  # only in what an operator hands in: no agent reads program logs
_RECOVERY_ACTIONS = (
    "none",
    "gpu_reset",
    "node_reboot",
    "drain_p2p",
    "drain_and_reset",
    "recover_imex",
    "bus_reset",
    "system_reboot",
)  # NVML field 230, by value
_TEXT_KINDS = frozenset(("kernel_line", "previous_boot_line"))


def read(evidence: Evidence) -> tuple[Signal, ...]:
    """The signals of one stored fact, in the order they stand in it; ids are the evidence's, with `#n` from the second on."""
    readings = _readings(evidence)
    known = (reading for reading in readings if evidence.gpu is not None or not _of_an_unknown_device(reading))
    return tuple(_signal(evidence, reading, number) for number, reading in enumerate(known, start=1))


def _readings(evidence: Evidence) -> list[Reading]:
    if evidence.kind in node_conditions.EVIDENCE_KINDS:
        return [node_conditions.read(evidence)]
    return _of_text(evidence) if evidence.text is not None else [_typed(evidence)]


def _of_an_unknown_device(reading: Reading) -> bool:
    """A slow link that the kernel found before any driver did: a log may tell elsewhere what it leads to, one fact does not."""
    return reading.kind == "pcie_gpu_degraded" and reading.attributes.get("device") == "unknown"


def readings_of(line: Line, grammars: Iterable[Grammar]) -> list[Reading]:
    """What the given grammars read in a line; kernel grammars are not asked about a program's words."""
    if line.origin is Origin.USERSPACE:
        return _forged(line, grammars)
    origin = Origin.KERNEL if line.origin is Origin.UNKNOWN and line.text.startswith("NVRM:") else line.origin
    asked = (grammar for grammar in grammars if origin in grammar.origins)
    readings = [reading for grammar in asked for reading in grammar.read(line)]
    if len(readings) > 1 and any(reading.kind == "xid" for reading in readings):  # quoted by a tool: said once
        readings = [reading for reading in readings if reading.kind != "secondhand_xid"]
    if line.repeated > 1:
        return [replace(reading, count=reading.count * line.repeated) for reading in readings]
    return readings


def trust_of(kind: str) -> Trust:
    """Hearsay and forged kernel lines are a tenant's; programs' errors and what the API server says of a node the cluster's;
    everything else comes from the kernel or the agent."""
    if kind in _PROGRAM_KINDS or kind in CLUSTER_KINDS:
        return Trust.CLUSTER
    return Trust.TENANT if kind in _TENANT_KINDS else Trust.HARDWARE


def _forged(line: Line, grammars: Iterable[Grammar]) -> list[Reading]:
    claims = readings_of(replace(line, origin=Origin.KERNEL), grammars)
    if not claims:
        return []
    first = claims[0]
    name = first.kind if first.code is None else f"{first.kind} {first.code}"
    return [Reading("userspace_kernel_line", {"claims": name, "facility": line.facility}, count=first.count)]


def _of_text(evidence: Evidence) -> list[Reading]:
    """A record's readings; its embedded newlines are part of one message or separate messages, as the record shows."""
    text = evidence.text or ""
    readings = [reading for message in records.messages(text) for reading in _message(evidence, message)]
    if evidence.kind == "kernel_storm":
        return [_storm(evidence, readings), *readings]
    if evidence.kind == "previous_boot_line":
        readings = readings or [Reading("previous_boot_line", {"text": text})]
        return [replace(reading, attributes={**reading.attributes, "previous_boot": True}) for reading in readings]
    return readings if evidence.kind in _TEXT_KINDS or readings else [_typed(evidence)]


def _message(evidence: Evidence, message: str) -> list[Reading]:
    message = message[: formats.MAX_LINE]
    grammars = grammars_for(message.lower())
    if not grammars:
        return []
    if evidence.kind == "previous_boot_line" or "malformed" in evidence.values:  # these keep their prefixes
        line = formats.parse(message)
        line = replace(line, origin=Origin.KERNEL) if line.origin is Origin.UNKNOWN else line
    else:
        origin = Origin.USERSPACE if _by_userspace(evidence) else Origin.KERNEL
        line = Line(message.strip(), origin, facility=evidence.facility, level=evidence.level)
    return readings_of(line, grammars)


def _by_userspace(evidence: Evidence) -> bool:
    """Whether a program wrote the text into the kernel log. An agent counts what programs wrote as a storm of its own, and names
    it in the epoch."""
    return evidence.facility != 0 or (evidence.kind == "kernel_storm" and evidence.key.epoch.endswith("/userspace"))


def _storm(evidence: Evidence, last: list[Reading]) -> Reading:
    attributes: dict[str, Scalar] = dict(evidence.values)
    if last:
        attributes |= {"last_kind": last[0].kind} | ({"last_code": last[0].code} if last[0].code is not None else {})
    return Reading("kernel_storm", attributes, count=_count(evidence.values, "suppressed_count"))


def _typed(evidence: Evidence) -> Reading:
    """A fact whose kind the collector has set: its values are the attributes."""
    attributes: dict[str, Scalar] = {name: value for name, value in evidence.values.items() if value is not None}
    if evidence.detail:
        attributes.setdefault("text", evidence.detail)
    code = None
    if evidence.kind in ("xid", "sxid"):
        code = _whole(evidence.values.get("data", evidence.values.get("code")))
    elif evidence.kind == "recovery_action":
        attributes["recovery_action"] = _named_action(evidence.values.get("after"))
    count = _count(evidence.values, "suppressed_count", "lost_count")
    return Reading(evidence.kind, attributes, code=code, count=count)


def _named_action(value: Scalar) -> str:
    number = _whole(value)
    if number is None:
        return recovery_action(str(value)) if value is not None else "unknown"
    return _RECOVERY_ACTIONS[number] if 0 <= number < len(_RECOVERY_ACTIONS) else "unknown"


def _count(values: Mapping[str, Scalar], *names: str) -> int:
    return next((number for name in names if (number := _whole(values.get(name)))), 1)


def _whole(value: Scalar) -> int | None:
    """A number that arrived as one, or as digits; NVML's values travel as doubles."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return int(value)
    except (ValueError, OverflowError):
        return None


def _signal(evidence: Evidence, reading: Reading, number: int) -> Signal:
    gpu = evidence.gpu
    attributes = dict(reading.attributes)
    if evidence.workloads:
        attributes["workload"] = ",".join(
            sorted({f"{held.namespace}/{held.pod}" for held in evidence.workloads if held.pod})
        )
    return Signal(
        id=evidence.id if number == 1 else f"{evidence.id}#{number}",
        kind=reading.kind,
        code=reading.code,
        node=evidence.key.node,
        pci=reading.pci or (gpu.pci if gpu else None),
        gpu_uuid=reading.gpu_uuid or (gpu.uuid if gpu else None),
        mig=reading.mig or evidence.mig,
        at_us=evidence.occurred_us,
        order=evidence.key.seq,
        raw=evidence.text if evidence.text is not None else evidence.detail,
        source=evidence.key.source,
        boot_id=str(evidence.values.get("captured_boot_id") or evidence.boot_id),
        phase=evidence.phase,
        trust=Trust.TENANT if _by_userspace(evidence) else trust_of(reading.kind),
        attributes=attributes,
        count=reading.count,
        simulated=evidence.simulated,
        replayed=evidence.replayed,
    )
