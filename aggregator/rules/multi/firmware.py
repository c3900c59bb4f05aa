"""The GPU's firmware and the driver: system processor timeouts, hung calls, tasks stuck in the kernel."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.burst import Burst
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others

GSP = ("gsp_rpc_timeout", "gsp_heartbeat_timeout")
HANGS = ("nvml_hung", "driver_task_stuck", "hung_task")


def gsp_timeout(burst: Burst, _: Context) -> Finding | None:
    """The GPU's system processor does not answer; hung calls and stuck tasks follow from it."""
    cause = (*burst.of("xid", 119, 120), *burst.kinds(*GSP))
    if not cause:
        return None
    hangs = burst.kinds(*HANGS)
    processes = {r.signal.attributes.get("pid") for r in cause if r.signal.attributes.get("pid")}
    told = []
    if hangs:
        told.append("Calls into the driver hang: running jobs on this GPU will not end by themselves.")
    if len(processes) > 1:
        told.append(f"{len(processes)} different processes met it, so no single program is to blame.")
    return Finding(
        rule_id="firmware/gsp_timeout",
        priority=82,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.DRIVER,
        action=Action.DRAIN,
        resolutions=(Resolution.RESET_GPU, Resolution.REBOOT, Resolution.DRAIN, Resolution.UPDATE_DRIVER),
        confidence=0.88 if hangs else 0.82,
        cause=cause,
        consequences=others(burst, cause),
        explanation=" ".join(told),
        recurrence_advice="If it comes back, update driver and firmware; if it then follows the board, have the board diagnosed.",
        do_not=(Resolution.RMA,),
    )


def stuck_in_driver(burst: Burst, _: Context) -> Finding | None:
    """Tasks hang in the kernel after an XID's cleanup, without a firmware timeout in sight: only a reboot frees them."""
    hangs = burst.kinds("hung_task", "driver_task_stuck")
    cleanup = burst.of("xid", 45, 43, 13, 31)
    if not hangs or not cleanup:
        return None
    return Finding(
        rule_id="firmware/stuck_in_driver",
        priority=62,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.DRIVER,
        action=Action.DRAIN,
        resolutions=(Resolution.REBOOT, Resolution.DRAIN),
        confidence=0.6,
        cause=hangs,
        consequences=others(burst, hangs),
        explanation="A task that hangs in the kernel holds its GPU until the node is rebooted; the cleanup XIDs before it are "
        "no cause.",
        open_questions=(
            "Where do the stuck tasks hang: in the driver, or in a file system? Their kernel stacks tell.",
        ),
        do_not=(Resolution.RMA,),
    )


def driver_hung(burst: Burst, _: Context) -> Finding | None:
    """NVML does not answer and nothing says why: the node cannot be observed, which is not the same as broken."""
    cause = burst.kinds("nvml_hung")
    if not cause or burst.where(lambda s: s.kind in ("xid", "sxid")):
        return None
    return Finding(
        rule_id="observer/driver_hung",
        priority=64,
        severity=Severity.WARNING,
        fault_class=FaultClass.DRIVER,
        action=Action.CORDON,
        resolutions=(Resolution.INVESTIGATE, Resolution.CORDON, Resolution.REBOOT),
        confidence=0.6,
        cause=cause,
        consequences=others(burst, cause),
        explanation="While the driver does not answer, nothing is known of this node's GPUs: they cannot be called healthy.",
        open_questions=("Does nvidia-smi answer on the node, and is a process stuck in the driver?",),
        do_not=(Resolution.RMA,),
    )


RULES: tuple[Rule, ...] = (gsp_timeout, stuck_in_driver, driver_hung)
