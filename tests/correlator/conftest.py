"""Signals by the handful, and a rule book of a few lines in place of the packaged rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import pytest

from aggregator.correlator import Change, RuleBook, State, Windows, step
from aggregator.model import Incident, Phase, Signal

BOOT = "boot-1"
START_US = 1_800_000_000_000_000
CONTEXT = frozenset(
    (
        "agent_started", "agent_stopped", "driver_loaded", "driver_unloaded", "driver_yielded", "gpu_assigned", "gpu_reset_done",
        "kernel_boot", "inventory_changed", "pcie_aer_corrected",
    )
)  # fmt: skip
CAUSES = {
    ("sxid", None): {("xid", 74), ("xid", 145)},
    ("xid", 79): {("xid", 74), ("xid", 45), ("pcie_replay", None)},
    ("xid", 119): {("nvml_hung", None)},
    ("pcie_aer_fatal", None): {("xid", 79)},
    ("pcie_aer_corrected", None): {("xid", 79)},
}


def _explains(cause: Signal, effect: Signal) -> bool:
    names = CAUSES.get((cause.kind, cause.code)) or CAUSES.get((cause.kind, None), set())
    return (effect.kind, effect.code) in names


RULES = RuleBook(
    is_fault=lambda signal: signal.kind not in CONTEXT,
    explains=_explains,
    kin=lambda one, other: one.kind == other.kind or "io_error" not in (one.kind, other.kind),
    needs_repair=lambda signals: any(signal.code in (48, 79) or signal.kind == "nvml_gpu_lost" for signal in signals),
)
_seq = count(1)


def gpu_pci(number: int) -> str:
    return f"0000:{0x10 + number:02x}:00.0"


def gpu_uuid(number: int) -> str:
    return f"GPU-{number:08x}-0000"


def signal(kind: str | int, gpu: int | None = None, at: float = 0.0, **fields: Any) -> Signal:
    """A signal `at` seconds after the start; a number stands for that XID as the kernel log reports it."""
    seq = next(_seq)
    defaults: dict[str, Any] = {
        "kind": "xid" if isinstance(kind, int) else kind,
        "code": kind if isinstance(kind, int) else None,
        "node": "n1",
        "source": "kmsg",
        "boot_id": BOOT,
        "pci": None if gpu is None else gpu_pci(gpu),
        "at_us": START_US + round(at * 1e6),
        "order": seq,
    }
    merged = {**defaults, **fields}
    return Signal(id=merged.pop("id", f"{merged['node']}/{merged['source']}/e/{seq}"), **merged)


def nvml(kind: str | int, gpu: int | None = None, at: float = 0.0, **fields: Any) -> Signal:
    """The same by NVML, which knows UUID and address."""
    uuid = None if gpu is None else gpu_uuid(gpu)
    return signal(kind, gpu, at, **{"source": "nvml", "gpu_uuid": uuid, **fields})


def began(kind: str, gpu: int | None = None, at: float = 0.0, **fields: Any) -> Signal:
    return nvml(kind, gpu, at, phase=Phase.BEGAN, **fields)


def ended(kind: str, gpu: int | None = None, at: float = 0.0, **fields: Any) -> Signal:
    return nvml(kind, gpu, at, phase=Phase.ENDED, **fields)


@dataclass
class Desk:
    """Follows the correlator over several steps and remembers what it said."""

    windows: Windows = field(default_factory=Windows)
    state: State = field(default_factory=State)
    incidents: dict[str, Incident] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    next_wake_us: int | None = None

    def take(self, *signals: Signal, at: float | None = None) -> list[Change]:
        """One step with these signals, at the time of the last one unless given."""
        times = [one.at_us for one in signals if one.at_us is not None]
        now_us = max(times, default=START_US) if at is None else START_US + round(at * 1e6)
        done = step(self.state, signals, now_us, self.windows, RULES)
        self.state, self.next_wake_us = done.state, done.next_wake_us
        self.changes = list(done.changes)
        self.incidents |= {change.incident.id: change.incident for change in done.changes}
        return self.changes

    def only(self) -> Incident:
        """The one incident there is."""
        (incident,) = self.incidents.values()
        return incident

    def named(self) -> list[list[str]]:
        """What each incident holds, as sorted lists of signal names."""
        return sorted(sorted(one.name for one in incident.signals) for incident in self.incidents.values())


@pytest.fixture
def desk() -> Desk:
    return Desk()


def final(incidents: Iterable[Incident]) -> list[Incident]:
    """Incidents in a fixed order, without those that were merged into others."""
    kept = [incident for incident in incidents if not incident.resolved_because.startswith("merged")]
    return sorted(kept, key=lambda incident: incident.id)


def in_chunks(signals: Sequence[Signal], cuts: Sequence[int]) -> list[Sequence[Signal]]:
    """The sequence cut at these positions."""
    edges = [0, *sorted(cut % (len(signals) + 1) for cut in cuts), len(signals)]
    return [signals[start:end] for start, end in pairwise(edges)]
