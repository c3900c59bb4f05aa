"""What a signal is about, and which kinds play a part in an incident's life: recovery, planned states, excuses.

Names are plain strings so that a PCI address and a UUID of one GPU meet in one set. Kinds come from `rules.kinds`; the tables
here say only how they matter for grouping in time, never what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from aggregator.model import Phase, Signal
from aggregator.rules.kinds import KINDS, About

NODE = "node"

# Planned states, by what people call them. They keep evidence and hold pages for what they excuse.
PLANNED: Mapping[str, str] = {
    "driver_unloaded": "driver upgrade",
    "driver_loaded": "driver upgrade",
    "driver_yielded": "driver released on request",
    "agent_stopped": "agent stopped on request",
    "host_shutdown": "host shutdown",
    "kernel_boot": "boot",
    "mig_layout_changed": "MIG change",
    "gpu_reset_done": "GPU reset",
    "node_driver_upgrade": "driver upgrade",
    "node_mig_change": "MIG change",
    "node_maintenance": "maintenance",
    "node_cordoned": "cordon",
}

# Planned states that last until their end is reported, rather than being reported once they have happened.
LASTING = frozenset(("node_driver_upgrade", "node_mig_change", "node_maintenance", "node_cordoned"))

# What a planned state excuses: things that are gone or cannot be observed. A hardware fault is never excused.
EXCUSED = frozenset(
    (
        "agent_silent", "collector_failed", "dcgm_unobservable", "driver_message", "driver_version_mismatch", "evidence_gap",
        "fabric_manager_failed", "fabric_state", "gpu_count_differs", "gpu_count_low", "gpu_handle_error", "gpu_not_in_nvml",
        "imex_error", "inventory_changed", "nvlink_link_down", "nvml_child_crashed", "nvml_gpu_lost", "nvml_hung",
        "nvml_permission_denied", "nvml_unavailable", "nvml_value_unreadable", "node_condition_dcgm", "node_condition_diagnostics",
        "node_condition_gpu_lost", "node_condition_nvlink", "node_condition_unknown", "node_unreachable",
    )
)  # fmt: skip

# A new run of the machine, the driver or the agent: context for every incident of the node that is not over.
RESTARTS = frozenset(("agent_started", "kernel_boot", "driver_loaded"))
NODE_WIDE = RESTARTS | LASTING | {"driver_unloaded", "driver_yielded", "agent_stopped", "host_shutdown"}

# States that last until the GPU is reset or comes back: their end is the end of what happened to that GPU.
UNTIL_RESET = frozenset(
    (
        "gpu_count_low", "gpu_fallen_off_bus", "gpu_handle_error", "gpu_not_in_nvml", "gpu_not_on_bus", "gpu_reset_required",
        "nvml_gpu_lost", "recovery_action", "retired_page_pending", "row_remap_pending",
    )
)  # fmt: skip

# Counters: reported as they rise, with nothing that ends.
COUNTED = frozenset(
    (
        "ecc_corrected", "ecc_uncorrectable", "nvlink_errors", "pcie_replay", "retired_page", "row_remapped",
        "infiniband_errors", "host_memory_ce",
    )
)  # fmt: skip

# Points that say no more than a state beside them: once the state has ended they are over too.
PASSING = frozenset(
    (
        "collector_failed", "dcgm_unobservable", "hw_power_brake", "hw_slowdown", "hw_thermal_slowdown", "nvml_child_crashed",
        "nvml_hung", "nvml_unavailable", "sw_power_cap", "sw_thermal_slowdown", "temperature_high", "thermal_margin_violation",
        "thermal_violation", "driver_message", "driver_task_stuck", "evidence_gap", "kernel_storm",
    )
)  # fmt: skip

_SWITCH_KINDS = frozenset(("sxid", "nvswitch_error"))
_NVLINK_XIDS = frozenset((74, 136, 137, *range(144, 151), 155))


class Names(NamedTuple):
    """What a signal is about; several names of one thing."""

    all: tuple[str, ...]
    gpu: bool


class Key(NamedTuple):
    """Signals with one key are one another's like: they are counted together."""

    kind: str
    code: int | None
    name: str
    mig: str | None
    source: str
    phase: Phase


def names_of(signal: Signal) -> Names:
    """A GPU's PCI address and UUID; else the switch or other device, by its address; else the condition that the cluster reports;
    else the node."""
    if condition := signal.attributes.get("condition"):
        return Names((f"condition {condition}",), gpu=False)
    printed = signal.attributes.get("bdf") if about(signal) is About.DEVICE else None
    device = signal.pci or signal.gpu_uuid or printed
    if device is None:
        return Names((NODE,), gpu=False)
    if _is_gpu(signal):
        return Names(tuple(name for name in (signal.pci, signal.gpu_uuid) if name), gpu=True)
    return Names((f"device {device}",), gpu=False)


def key_of(signal: Signal) -> Key:
    """See Key."""
    return Key(signal.kind, signal.code, names_of(signal).all[0], signal.mig, signal.source, signal.phase)


def is_link_fault(signal: Signal) -> bool:
    """About an NVLink or a switch."""
    if signal.kind == "xid":
        return signal.code in _NVLINK_XIDS
    return about(signal) is About.LINK


def about(signal: Signal) -> About | None:
    """What its kind is about; None for an unknown kind."""
    kind = KINDS.get(signal.kind)
    return kind.about if kind else None


def _is_gpu(signal: Signal) -> bool:
    if signal.kind in _SWITCH_KINDS or about(signal) is About.DEVICE:
        return False
    return signal.attributes.get("device", "gpu") == "gpu"
