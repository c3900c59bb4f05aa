"""Every kind of signal, every form of its message, and what must not be read: recorded in `golden/*.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from aggregator.model import Signal
from aggregator.rules import read_log
from aggregator.rules.kinds import CLUSTER_KINDS, COMMON, KINDS

GOLDEN = Path(__file__).parent / "golden"
CASES = [
    pytest.param(case, id=f"{path.stem}: {case['name']}")
    for path in sorted(GOLDEN.glob("*.toml"))
    for case in tomllib.loads(path.read_text())["case"]
]

# Kinds that only agents and the aggregator itself report: no text says them.
TYPED_ONLY = {
    *("agent_silent", "agent_stalled", "agent_started", "agent_stopped", "collector_failed", "driver_task_stuck"),
    *("driver_yielded", "duplicate_agent", "ecc_counter_reset", "evidence_gap", "gpu_assigned", "gpu_count_differs"),
    *(
        "gpu_not_in_nvml",
        "gpu_not_on_bus",
        "infiniband_errors",
        "inventory_changed",
        "kernel_storm",
        "mig_layout_changed",
    ),
    *(
        "nvml_child_crashed",
        "nvml_event",
        "nvml_hung",
        "nvml_value_unreadable",
        "previous_boot_line",
        "sysfs_read_stuck",
    ),
    *("sysfs_unreadable", "workloads_unobservable", "gpu_identity"),
    *CLUSTER_KINDS,
}


def shown(signal: Signal) -> str:
    """A signal as the golden files write it."""
    parts = [signal.kind, str(signal.code) if signal.code is not None else "", signal.pci or "-", signal.gpu_uuid or ""]
    parts.append(f"mig={signal.mig}" if signal.mig else "")
    parts.append(f"x{signal.count}" if signal.count > 1 else "")
    return " ".join(part for part in parts if part)


@pytest.mark.parametrize("case", CASES)
def test_text_is_read_as_recorded(case: dict[str, Any]) -> None:
    """All signals of a text, in order, and what the grammar took from the first."""
    signals = read_log(case["text"].strip("\n").split("\n"))
    assert [shown(signal) for signal in signals] == case["signals"]
    wanted = case.get("attributes", {})
    assert {name: signals[0].attributes.get(name) for name in wanted} == wanted if wanted else True


def test_every_kind_that_text_can_say_has_a_case() -> None:
    """A kind without a golden case, or one that no grammar gives, is a mistake."""
    covered = {name.split()[0] for case in CASES for name in case.values[0]["signals"]}
    assert covered | TYPED_ONLY == set(KINDS)
    assert not covered & TYPED_ONLY


@pytest.mark.parametrize("case", CASES)
def test_attributes_are_those_that_the_list_of_kinds_names(case: dict[str, Any]) -> None:
    """Rules and people may rely on `kinds.py`: a grammar sets nothing beside it."""
    for signal in read_log(case["text"].strip("\n").split("\n")):
        assert set(signal.attributes) <= set(KINDS[signal.kind].attributes) | set(COMMON)
