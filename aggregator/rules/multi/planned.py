"""Planned states: what a driver upgrade or a shutdown makes look like a fault."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules import wording
from aggregator.rules.burst import Burst
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others

CHANGES = (
    *("driver_unloaded", "driver_loaded", "driver_yielded", "host_shutdown"),
    *("node_driver_upgrade", "node_mig_change", "node_maintenance"),
)
TRACES = (
    "nvml_unavailable",
    "nvml_gpu_lost",
    "gpu_count_low",
    "inventory_changed",
    "driver_version_mismatch",
    "dcgm_unobservable",
    "gpu_not_in_nvml",
    "agent_silent",
    "collector_failed",
    "node_condition_gpu_lost",
    "node_condition_dcgm",
    "node_condition_diagnostics",
    "node_condition_unknown",
    "node_unreachable",
)


def driver_change(burst: Burst, context: Context) -> Finding | None:
    """The driver was unloaded or let go of on purpose: that it is not there is expected."""
    change = tuple(r for r in (*burst.context, *burst.faults) if r.signal.kind in CHANGES)
    gone = burst.kinds(*TRACES)
    if not gone or others(burst, gone) or not (change or context.planned_state):
        return None
    what = context.planned_state or wording.spoken(change[0].signal)
    return Finding(
        rule_id="planned/driver_change",
        priority=97,
        severity=Severity.INFO,
        fault_class=FaultClass.DRIVER,
        action=Action.NONE,
        resolutions=(Resolution.MONITOR,),
        confidence=0.8,
        cause=gone,
        proof=change,
        root_cause=f"The GPUs are out of sight because of a planned change ({what}).",
        explanation="Nothing says that hardware failed. Until they are back the GPUs cannot be observed.",
        recurrence_advice="If the GPUs are not back within the usual time of the change, look at the driver's installation.",
        do_not=(Resolution.RMA, Resolution.RESET_GPU),
    )


def links_taken_down(burst: Burst, context: Context) -> Finding | None:
    """Software took NVLinks down while the driver was unloaded: unloading does that."""
    cause = burst.of("xid", 155)
    change = tuple(r for r in burst.context if r.signal.kind == "driver_unloaded")
    if not cause or others(burst, (*cause, *burst.kinds(*TRACES))) or not (change or context.planned_state):
        return None
    return Finding(
        rule_id="planned/links_taken_down",
        priority=97,
        severity=Severity.INFO,
        fault_class=FaultClass.NVLINK,
        action=Action.NONE,
        resolutions=(Resolution.MONITOR,),
        confidence=0.8,
        cause=cause,
        explanation="The driver was unloaded at that time, and takes its links down then." if change else "",
        recurrence_advice="If links go down while the driver stays loaded, find the software that takes them down.",
        do_not=(Resolution.RMA, Resolution.REBOOT, Resolution.POWER_CYCLE),
    )


RULES: tuple[Rule, ...] = (driver_change, links_taken_down)
