"""Which signal can open an incident, and which cause on one device explains which effect on another of the same node.

These are relations between kinds, without time: the correlator adds the window.
"""

from __future__ import annotations

from collections.abc import Callable

from aggregator.model import Phase, Severity, Signal, Trust
from aggregator.rules.burst import read
from aggregator.rules.catalog import Catalog, load

LINK_XIDS = frozenset((74, 136, 137, 144, 145, 146, 147, 148, 149, 150, 155))
FIRMWARE_XIDS = frozenset((62, 109, 119, 120, 143))
MEMORY_XIDS = frozenset((48, 63, 64, 94, 95, 140))
BUS_KINDS = frozenset(
    (
        "gpu_fallen_off_bus",
        "nvml_gpu_lost",
        "pcie_surprise_down",
        "pcie_aer_fatal",
        "pcie_link_down",
        "pci_power_state_failure",
    )
)
BUS_TRACES = frozenset((
    "gpu_count_low", "gpu_count_differs", "gpu_not_in_nvml", "gpu_not_on_bus", "nvml_gpu_lost", "gpu_handle_error",
    "gpu_init_failure", "pcie_recovery_failed", "pcie_aer_nonfatal", "pcie_aer_corrected", "pcie_completion_timeout",
    "pcie_error_other_device",
))  # fmt: skip
LINK_KINDS = frozenset(
    (
        "nvlink_link_down",
        "nvlink_errors",
        "nvlink_fabric_error",
        "nvlink_link_training_failed",
        "fabric_state",
        "nvswitch_error",
    )
)
SWITCH_KINDS = frozenset(("sxid", "nvswitch_error", "fabric_manager_failed"))
FIRMWARE_KINDS = frozenset(("gsp_rpc_timeout", "gsp_heartbeat_timeout", "gsp_error", "pmu_halt"))
HANG_TRACES = frozenset(
    (
        "nvml_hung",
        "nvml_child_crashed",
        "driver_task_stuck",
        "hung_task",
        "soft_lockup",
        "collector_failed",
        "dcgm_unobservable",
    )
)
JOB_TRACES = frozenset(("nccl_error", "nccl_segfault", "app_segfault", "cuda_error", "peermem_error"))
HOST_KINDS = frozenset(
    ("host_power_event", "host_memory_ue", "host_machine_check", "kernel_panic", "hard_lockup", "host_shutdown")
)
DRIVER_CHANGES = frozenset(
    ("driver_unloaded", "driver_loaded", "driver_yielded", "module_conflict", "driver_version_mismatch")
)
DRIVER_TRACES = frozenset(
    ("nvml_unavailable", "nvml_gpu_lost", "gpu_count_low", "inventory_changed", "gpu_not_in_nvml", "dcgm_unobservable")
)


def is_fault(signal: Signal, catalog: Catalog | None = None) -> bool:
    """Whether a signal may open an incident: it says that something is wrong, now, and hardware or kernel said it.

    By the packaged catalog unless one is given.
    """
    if signal.phase is Phase.ENDED or signal.trust is Trust.TENANT:
        return False
    return read(signal, catalog or load()).entry.severity is not Severity.OK


def explains(cause: Signal, effect: Signal) -> bool:
    """Whether a cause on one subject explains an effect on another subject of the same node, if it came before or with it."""
    return any(is_cause(cause) and is_effect(effect) for is_cause, is_effect in _RELATIONS)


def _xid(codes: frozenset[int]) -> Callable[[Signal], bool]:
    return lambda signal: signal.kind == "xid" and signal.code in codes


def _lost(signal: Signal) -> bool:
    return signal.kind in BUS_KINDS or (signal.kind == "xid" and signal.code == 79)


def _link_effect(signal: Signal) -> bool:
    return signal.kind == "sxid" or signal.kind in LINK_KINDS or _xid(LINK_XIDS)(signal)


def _firmware(signal: Signal) -> bool:
    return signal.kind in FIRMWARE_KINDS or _xid(FIRMWARE_XIDS)(signal)


def _job_effect(signal: Signal) -> bool:
    return signal.kind in JOB_TRACES or (signal.kind == "xid" and signal.code == 45)


def _strong(signal: Signal) -> bool:
    """A fault of a device that kills the job on it, and with it the job's other processes."""
    return _lost(signal) or _firmware(signal) or _link_effect(signal) or _xid(MEMORY_XIDS)(signal)


_Test = Callable[[Signal], bool]
_RELATIONS: tuple[tuple[_Test, _Test], ...] = (
    (_lost, _link_effect),  # its neighbours and the switches see the dead GPU's links fail
    (_lost, lambda s: s.kind in BUS_TRACES or s.kind in HANG_TRACES),
    (lambda s: s.kind in ("pcie_aer_fatal", "pcie_link_down", "pcie_surprise_down"), _lost),
    (lambda s: s.kind in SWITCH_KINDS, _link_effect),
    (lambda s: s.kind == "sxid", lambda s: s.kind == "sxid"),  # one fabric: switches complain of each other
    (_xid(LINK_XIDS), _link_effect),  # both ends of a link report it
    (_firmware, lambda s: s.kind in HANG_TRACES),
    (lambda s: s.kind in HANG_TRACES, _firmware),  # NVML may stall before the driver's own timeout is printed
    (_strong, _job_effect),
    (lambda s: s.kind == "oom_kill", _job_effect),
    (lambda s: s.kind in HOST_KINDS, lambda s: True),
    (lambda s: s.kind in DRIVER_CHANGES, lambda s: s.kind in DRIVER_TRACES),
)
