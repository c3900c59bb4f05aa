"""Which signal can open an incident, which cause explains which effect, and which faults of one thing can be one event at all.

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
RESET_TRACES = frozenset(("gpu_init_failure", "gpu_reset_required", "gpu_reset_failed"))
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
ENDED_PROCESSES = frozenset(("oom_kill", "nccl_segfault", "app_segfault"))
HOST_KINDS = frozenset(("host_memory_ue", "host_machine_check", "kernel_panic", "hard_lockup", "host_shutdown"))
DISK_KINDS = frozenset(("io_error",))
NETWORK_KINDS = frozenset(("nic_event", "nic_pcie_degraded", "infiniband_port_down", "infiniband_errors"))
SIGNAL_KINDS = frozenset(  # how well a PCIe link carries data
    ("pcie_gpu_degraded", "pcie_replay", "pcie_aer_corrected", "pcie_aer_nonfatal", "pcie_completion_timeout")
)
CLOCK_KINDS = frozenset((
    "hw_slowdown", "hw_power_brake", "hw_thermal_slowdown", "sw_thermal_slowdown", "thermal_limit_low", "power_limit_low",
    "thermal_violation", "thermal_margin_violation", "power_violation", "fan_failure",
))  # fmt: skip
POWER_EFFECTS = (
    BUS_TRACES | HANG_TRACES | LINK_KINDS | JOB_TRACES | CLOCK_KINDS | {"pcie_link_down", "pcie_recovery_failed"}
)
SENT_BY_BUS = frozenset((32, 80))  # commands that may have been damaged on their way over PCIe
DRIVER_CHANGES = frozenset((
    "driver_unloaded", "driver_loaded", "driver_yielded", "module_conflict", "driver_version_mismatch", "node_driver_upgrade",
))  # fmt: skip
DRIVER_TRACES = frozenset((
    "nvml_unavailable", "nvml_gpu_lost", "gpu_count_low", "inventory_changed", "gpu_not_in_nvml", "dcgm_unobservable",
    "node_condition_gpu_lost", "node_condition_dcgm", "node_condition_unknown", "node_condition_diagnostics",
))  # fmt: skip
MEMORY_FAULTS = frozenset((
    "ecc_uncorrectable", "ecc_corrected", "sram_threshold_exceeded", "row_remap_pending", "row_remap_failure", "row_remapped",
    "retired_page", "retired_page_pending",
))  # fmt: skip


def is_fault(signal: Signal, catalog: Catalog | None = None) -> bool:
    """Whether a signal may open an incident: it says that something is wrong, now, and hardware or kernel said it.

    By the packaged catalog unless one is given.
    """
    if signal.phase is Phase.ENDED or signal.trust is Trust.TENANT:
        return False
    return read(signal, catalog or load()).entry.severity is not Severity.OK


def explains(cause: Signal, effect: Signal) -> bool:
    """Whether a cause on one subject explains an effect on another subject of the same node, if it came before or with it."""
    return any(is_cause(cause) and is_effect(effect) for is_cause, is_effect in _RELATIONS) or _one_process(
        cause, effect
    )


def follows_from(cause: Signal, effect: Signal) -> bool:
    """Whether an effect on any subject needs no cause of its own beside this one: as `explains`, and what a GPU that is gone or
    hangs does itself."""
    gone = _lost(cause) and (_firmware(effect) or _lost(effect) or effect.kind in BUS_TRACES)
    hung = _firmware(cause) and effect.kind in RESET_TRACES
    return explains(cause, effect) or ((gone or hung) and _one_gpu(cause, effect))


def kin(one: Signal, other: Signal) -> bool:
    """Whether two faults of one thing, close in time, can be one event. A disk's timeout, a slow link or a hot GPU is not part of
    a program's crash because both name the same GPU or node."""
    mine, theirs = _domain(one), _domain(other)
    if mine == theirs or not {mine, theirs} & _APART or frozenset((mine, theirs)) in _MEET:
        return True
    return explains(one, other) or explains(other, one)


_APART = frozenset(("disk", "network", "signal", "clocks"))
_MEET = frozenset((frozenset(("signal", "bus")), frozenset(("clocks", "bus"))))  # they precede a GPU that is lost
_DOMAINS = {
    **dict.fromkeys(DISK_KINDS, "disk"),
    **dict.fromkeys(NETWORK_KINDS, "network"),
    **dict.fromkeys(SIGNAL_KINDS, "signal"),
    **dict.fromkeys(CLOCK_KINDS, "clocks"),
}


def _domain(signal: Signal) -> str:
    if _lost(signal):
        return "bus"
    return "signal" if _xid(SENT_BY_BUS)(signal) else _DOMAINS.get(signal.kind, "")


def _one_gpu(one: Signal, other: Signal) -> bool:
    return bool({one.pci, one.gpu_uuid} & {other.pci, other.gpu_uuid} - {None})


def _one_process(cause: Signal, effect: Signal) -> bool:
    """A process that crashed or was killed, and what its end left behind. Where a line names no process, it may be any."""
    if cause.kind not in ENDED_PROCESSES or not _job_effect(effect):
        return False
    names = ("pid", "process")
    told = [(cause.attributes.get(name), effect.attributes.get(name)) for name in names]
    known = [one == other for one, other in told if one is not None and other is not None]
    return any(known) or not known


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


def _cut_off(signal: Signal) -> bool:
    """The node lost a network, or the adapter to it."""
    if signal.kind == "nic_event":
        return signal.attributes.get("event") in ("link_down", "health")
    return signal.kind == "infiniband_port_down"


def _strong(signal: Signal) -> bool:
    """A fault of a device that kills the job on it, and with it the job's other processes."""
    return _lost(signal) or _firmware(signal) or _link_effect(signal) or _xid(MEMORY_XIDS)(signal)


_Test = Callable[[Signal], bool]
_CHECK = "node_condition"


def _checks(*names: str) -> _Test:
    kinds = frozenset(f"{_CHECK}_{name}" for name in names) | {_CHECK}
    return lambda signal: signal.kind in kinds


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
    (lambda s: s.kind in DISK_KINDS or _cut_off(s), lambda s: s.kind == "hung_task"),
    (lambda s: _cut_off(s), lambda s: s.kind == "nccl_error"),
    (lambda s: s.kind == "host_power_event", lambda s: _lost(s) or s.kind in POWER_EFFECTS),
    (lambda s: s.kind in HOST_KINDS, lambda s: True),
    (lambda s: s.kind in DRIVER_CHANGES, lambda s: s.kind in DRIVER_TRACES),
    # A check of the cluster finds later what was seen first hand; checks that fail together are one event.
    (lambda s: s.kind == "xid", _checks("xid")),
    (lambda s: s.kind in MEMORY_FAULTS or _xid(MEMORY_XIDS)(s), _checks("ecc", "diagnostics")),
    (lambda s: _lost(s) or s.kind in BUS_TRACES, _checks("gpu_lost", "dcgm", "diagnostics", "pcie")),
    (lambda s: s.kind in SIGNAL_KINDS or s.kind == "pcie_aer_fatal", _checks("pcie", "diagnostics")),
    (_link_effect, _checks("nvlink", "diagnostics")),
    (lambda s: s.kind in CLOCK_KINDS, _checks("thermal", "power", "diagnostics")),
    (_firmware, _checks("process", "gpu_lost", "dcgm", "diagnostics", "unknown")),
    (lambda s: s.kind in HANG_TRACES, _checks("process", "dcgm", "diagnostics", "unknown")),
    (lambda s: s.kind in DRIVER_TRACES, _checks("driver", "gpu_lost", "dcgm", "diagnostics", "unknown")),
    (lambda s: s.kind in NETWORK_KINDS, _checks("network")),
    (lambda s: s.kind == "agent_silent" or s.kind in HOST_KINDS or _cut_off(s), lambda s: s.kind == "node_unreachable"),
    (lambda s: s.kind == "node_unreachable", lambda s: s.kind == "agent_silent"),
    (lambda s: s.kind.startswith(_CHECK), lambda s: s.kind.startswith(_CHECK)),
)
