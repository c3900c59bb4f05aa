"""Planned states: what a driver upgrade or a shutdown makes look like a fault."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.burst import Burst
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others

CHANGES = ("driver_unloaded", "driver_loaded", "driver_yielded", "host_shutdown")
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
)


def driver_change(burst: Burst, context: Context) -> Finding | None:
    """The driver was unloaded or let go of on purpose: that it is not there is expected."""
    change = tuple(r for r in (*burst.context, *burst.faults) if r.signal.kind in CHANGES)
    gone = burst.kinds(*TRACES)
    if not gone or others(burst, gone) or not (change or context.planned_state):
        return None
    return Finding(
        rule_id="planned/driver_change",
        priority=97,
        severity=Severity.INFO,
        fault_class=FaultClass.DRIVER,
        action=Action.NONE,
        resolutions=(Resolution.MONITOR,),
        confidence=0.8,
        cause=change or gone,
        consequences=gone if change else (),
        root_cause=f"The GPUs are out of sight because of a planned change ({context.planned_state or 'the driver was unloaded'}).",
        explanation="Nothing says that hardware failed. Until they are back the GPUs cannot be observed.",
        recurrence_advice="If the GPUs are not back within the usual time of the change, look at the driver's installation.",
        do_not=(Resolution.RMA, Resolution.RESET_GPU),
    )


RULES: tuple[Rule, ...] = (driver_change,)
