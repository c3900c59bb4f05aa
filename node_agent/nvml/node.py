"""What the agent knows of its node through NVML: the GPUs, those that are missing, and whether the driver can be asked at all.

Turns openings, readings and events into facts. No I/O: the collector drives it and reports what it returns.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from node_agent.evidence import (
    Fact,
    Gap,
    Gpu,
    GpuEvent,
    GpuState,
    Inventory,
    Observation,
    Phase,
    Snapshot,
)
from node_agent.nvml.codes import EVENT_CLOCK, EVENT_SINGLE_BIT_ECC, EVENT_XID
from node_agent.nvml.facts import SOURCE, Known, compare
from node_agent.nvml.protocol import DriverEvent, EnumeratedGpu, GpuReading, Opened, Reading
from node_agent.nvml.remembered import Remembered

DRIVER_CONDITIONS: Final = (
    "nvml_unavailable",
    "driver_version_mismatch",
    "nvml_permission_denied",
    "nvml_hung",
    "nvml_child_crashed",
)
GPU_COUNT_LOW: Final = "gpu_count_low"
DRIVER_YIELDED: Final = "driver_yielded"
EVENTS_PER_MINUTE: Final = 200  # per GPU; an application that faults in a loop must not fill the spool
_MINUTE: Final = 60.0
_READ_INSTEAD: Final = frozenset(
    {EVENT_SINGLE_BIT_ECC, EVENT_CLOCK}
)  # such events hasten a reading, which tells what changed


@dataclass(slots=True)
class _Minute:
    """Events of one GPU in the running minute."""

    began: float
    told: int = 0
    suppressed: int = 0


class Node:
    """The node through NVML. Times named `at` are monotonic seconds."""

    def __init__(self, remembered: Remembered | None, *, expected_gpus: int | None, kernel_version: str) -> None:
        known = remembered or Remembered()
        self._gpus: dict[str, Known] = {each.gpu.uuid: each for each in known.gpus}
        self._conditions = set(known.conditions)
        self._told_before_restart = set(known.conditions)
        self._driver_version, self._nvml_version = known.driver_version, known.nvml_version
        self._inventory_told = None if remembered is None else self._inventory_names()
        self._expected_gpus = expected_gpus
        self._kernel_version = kernel_version
        self._present: frozenset[str] = frozenset()
        self._counted: int | None = None
        self._low_count: int | None = None
        self._recovered = False
        self._minutes: dict[str, _Minute] = {}

    @property
    def has_gpus(self) -> bool:
        """Whether GPUs are known or expected here."""
        return bool(self._gpus) or bool(self._expected_gpus)

    @property
    def incomplete(self) -> bool:
        """Whether a GPU is lost or missing: another opening may find it."""
        return GPU_COUNT_LOW in self._conditions or any(known.lost for known in self._gpus.values())

    @property
    def outdated(self) -> bool:
        """Whether only a new opening shows what the driver has now."""
        return self._recovered

    def pci_addresses(self) -> frozenset[str]:
        """The GPUs that NVML offers and that answer."""
        return frozenset(known.gpu.pci for key, known in self._gpus.items() if key in self._present and not known.lost)

    def remembered(self) -> Remembered:
        """What a restart must not forget."""
        gpus = tuple(known for _, known in sorted(self._gpus.items()) if known.gpu.uuid)
        return Remembered(self._driver_version, self._nvml_version, frozenset(self._conditions), gpus)

    def snapshot(self) -> Snapshot:
        """The node's present state."""
        return Snapshot(
            taken_at=time.time(),
            inventory=self._inventory(),
            gpus=tuple(_state(known) for known in self._gpus.values()),
            values=dict.fromkeys(sorted(self._conditions), True),
        )

    # --- the driver
    def driver_is(self, condition: str | None, detail: str = "") -> list[Fact]:
        """The driver stands like this now: one of DRIVER_CONDITIONS, or None when it answers."""
        facts = [
            self._end(each, "NVML answers")
            for each in DRIVER_CONDITIONS
            if each in self._conditions and each != condition
        ]
        return facts + self._begin(condition, detail) if condition else facts

    def hang_is_final(self, detail: str) -> list[Fact]:
        """The hung child cannot be ended either: told anew, because it changes what helps."""
        self._conditions.discard("nvml_hung")
        return self._begin("nvml_hung", detail)

    def yielded(self, detail: str) -> list[Fact]:
        """No handle on the driver is held, on request."""
        return self._begin(DRIVER_YIELDED, detail)

    def resumed(self) -> list[Fact]:
        """The driver may be opened again."""
        return [self._end(DRIVER_YIELDED, "the driver is taken up again")] if DRIVER_YIELDED in self._conditions else []

    def opened(self, opened: Opened, at: float, *, confirmed: bool) -> list[Fact]:
        """Take in an enumeration. `confirmed` says that missing GPUs are missing on purpose."""
        self._driver_version, self._nvml_version = opened.driver_version, opened.nvml_version
        self._counted, self._recovered = len(opened.gpus), False
        answering = [entry.gpu for entry in opened.gpus if entry.gone is None]
        for gpu in answering:
            self._gpus[gpu.uuid] = replace(self._gpus.get(gpu.uuid, Known(gpu)), gpu=gpu)
        self._present = frozenset(gpu.uuid for gpu in answering)
        facts = self._forget_replaced(
            {gpu.pci for gpu in answering}, all_missing=confirmed or self._is_complete(opened)
        )
        facts += self._lose([entry for entry in opened.gpus if entry.gone is not None], at)
        return facts + self._judge_count(len(opened.gpus)) + self._judge_inventory()

    # --- readings and events
    def read(self, reading: Reading, at: float) -> list[Fact]:
        """Take in one group of calls."""
        facts: list[Fact] = []
        for each in reading.gpus:
            known = self._gpus.get(each.uuid)
            if known is None:
                continue
            self._gpus[each.uuid], found = compare(known, each, at)
            facts += found
            # The event set was made without a GPU that was lost then.
            self._recovered |= known.lost and known.was_read and not self._gpus[each.uuid].lost
        self._recovered |= reading.count != self._counted
        return facts + self._close_minutes(at)

    def event(self, event: DriverEvent, at: float) -> list[Fact]:
        """Take in one NVML event."""
        if event.type in _READ_INSTEAD:
            return []
        minute = self._minutes.setdefault(event.uuid, _Minute(at))
        if minute.told >= EVENTS_PER_MINUTE:
            minute.suppressed += 1
            return []
        minute.told += 1
        known = self._gpus.get(event.uuid)
        kind, words = (
            ("xid", f"XID {event.data}") if event.type == EVENT_XID else ("nvml_event", f"event {event.type:#x}")
        )
        detail = f"{known.name if known else 'a GPU that NVML does not name'}: {words} delivered by NVML"
        body = GpuEvent(event.type, event.data)
        gpu = known.gpu if known else None
        return [Fact(SOURCE, kind, detail, gpu=gpu, mig=event.mig, body=body, occurred_at=event.at)]

    def event_gap(self, reason: str) -> list[Fact]:
        """NVML's event set failed and was made anew: what happened in between was not delivered."""
        gap = Gap("nvml_events", f"NVML's event set failed ({reason}) and was made anew", lost_source=SOURCE)
        return [Fact(SOURCE, "evidence_gap", gap.reason, body=gap)]

    def _close_minutes(self, at: float) -> list[Fact]:
        facts = []
        for uuid in [uuid for uuid, minute in self._minutes.items() if at - minute.began >= _MINUTE]:
            suppressed = self._minutes.pop(uuid).suppressed
            if suppressed:
                known = self._gpus.get(uuid)
                reason = f"{suppressed} NVML events beyond {EVENTS_PER_MINUTE} a minute were counted instead of sent"
                gap = Gap("nvml_events", reason, lost_source=SOURCE, lost_count=suppressed)
                facts.append(Fact(SOURCE, "evidence_gap", reason, gpu=known.gpu if known else None, body=gap))
        return facts

    # --- GPUs that come and go
    def _is_complete(self, opened: Opened) -> bool:
        return self._expected_gpus is not None and len(opened.gpus) >= self._expected_gpus

    def _forget_replaced(self, taken: set[str], *, all_missing: bool) -> list[Fact]:
        """A missing GPU is replaced when another one sits at its address; strangers are named anew with each opening."""
        missing = [key for key in self._gpus if key not in self._present]
        gone = [
            key for key in missing if all_missing or self._gpus[key].gpu.pci in taken or not self._gpus[key].gpu.uuid
        ]
        return [fact for key in gone for fact in self._forget(key)]

    def _lose(self, failed: Iterable[EnumeratedGpu], at: float) -> list[Fact]:
        """NVML counts GPUs that it cannot name: they are the missing ones, and when none is missing, strangers."""
        missing = [key for key in self._gpus if key not in self._present]
        facts: list[Fact] = []
        for entry in failed:
            key = next((key for key in missing if _may_be(self._gpus[key].gpu, entry.gpu)), None)
            if key is None:
                key = entry.gpu.uuid or f"index {entry.index}"
                self._gpus[key] = Known(entry.gpu)
            else:
                missing.remove(key)
            self._gpus[key], found = compare(self._gpus[key], GpuReading(key, gone=entry.gone), at)
            facts += found
        return facts

    def _forget(self, key: str) -> list[Fact]:
        known = self._gpus.pop(key)
        return [
            Fact(
                SOURCE,
                kind,
                f"{known.name}: no longer part of this node",
                Phase.ENDED,
                known.gpu,
                body=Observation(problem.field),
            )
            for kind, problem in known.told.items()
        ]

    def _judge_count(self, count: int) -> list[Fact]:
        expected = self._expected_gpus if self._expected_gpus is not None else len(self._gpus)
        body = Observation("gpu_count", before=self._low_count, after=count, limit=expected)
        if count >= expected:
            self._low_count = None
            enough = f"NVML counts {count} GPUs"
            return [self._end(GPU_COUNT_LOW, enough, body)] if GPU_COUNT_LOW in self._conditions else []
        if count == self._low_count:
            return []
        self._low_count = count
        self._conditions.discard(GPU_COUNT_LOW)  # another count is told anew
        absent = ", ".join(known.name for key, known in self._gpus.items() if key not in self._present) or "unknown"
        detail = f"NVML counts {count} GPUs, {expected} are expected ({self._expected_from()}); missing: {absent}"
        return self._begin(GPU_COUNT_LOW, detail, body)

    def _judge_inventory(self) -> list[Fact]:
        names = self._inventory_names()
        if names == self._inventory_told:
            return []
        before, self._inventory_told = self._inventory_told, names
        gpus = len(self._gpus)
        detail = f"{gpus} GPUs, driver {self._driver_version}" + ("" if before else "; first inventory of this node")
        return [Fact(SOURCE, "inventory_changed", detail, body=self._inventory())]

    def _inventory_names(self) -> tuple[object, ...]:
        gpus = frozenset((each.gpu.uuid, each.gpu.pci, each.gpu.serial) for each in self._gpus.values())
        return self._driver_version, self._nvml_version, gpus

    def _inventory(self) -> Inventory:
        return Inventory(
            driver_version=self._driver_version,
            nvml_version=self._nvml_version,
            kernel_version=self._kernel_version,
            gpus=tuple(known.gpu for known in self._gpus.values()),
            expected_gpus=self._expected_gpus if self._expected_gpus is not None else len(self._gpus),
            expected_from=self._expected_from(),
        )

    def _expected_from(self) -> str:
        return "remembered" if self._expected_gpus is None else "configured"

    # --- states of the node
    def _begin(self, kind: str, detail: str, body: Observation | None = None) -> list[Fact]:
        if kind in self._conditions and kind not in self._told_before_restart:
            return []
        self._told_before_restart.discard(kind)
        self._conditions.add(kind)
        return [Fact(SOURCE, kind, detail, Phase.BEGAN, body=body)]

    def _end(self, kind: str, detail: str, body: Observation | None = None) -> Fact:
        self._told_before_restart.discard(kind)
        self._conditions.discard(kind)
        return Fact(SOURCE, kind, detail, Phase.ENDED, body=body)


def _may_be(known: Gpu, seen: Gpu) -> bool:
    """Whether what could be read of a failing GPU contradicts this one."""
    return seen.uuid in ("", known.uuid) and seen.pci in ("", known.pci)


def _state(known: Known) -> GpuState:
    if known.lost:
        return GpuState(known.gpu, {"nvml_return": known.values.get("nvml_return")}, lost=True)
    return GpuState(known.gpu, dict(known.values))
