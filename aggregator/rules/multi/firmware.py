"""The GPU's firmware and the driver: system processor timeouts, hung calls, tasks stuck in the kernel."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Severity, Signal
from aggregator.rules.burst import Burst, Reading, precedes
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others

GSP = ("gsp_rpc_timeout", "gsp_heartbeat_timeout")
STUCK = ("driver_task_stuck", "hung_task", "soft_lockup")
CLEANUP = (45, 43, 13, 31)


def gsp_timeout(burst: Burst, _: Context) -> Finding | None:
    """The GPU's system processor does not answer; hung calls and stuck tasks follow from it."""
    cause = _gsp(burst)
    if not cause:
        return None
    return Finding(
        rule_id="firmware/gsp_timeout",
        priority=82,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.DRIVER,
        action=Action.DRAIN,
        resolutions=(*_recovery(burst), Resolution.DRAIN, Resolution.UPDATE_DRIVER),
        confidence=0.88 if burst.kinds("nvml_hung", *STUCK) else 0.82,
        cause=cause,
        explanation=" ".join((*_hanging(burst), *_not_one_program(cause))),
        recurrence_advice="If it comes back, update driver and firmware; if it then follows the board, have the board diagnosed.",
        do_not=(Resolution.RMA,),
    )


def pmu_halted(burst: Burst, _: Context) -> Finding | None:
    """The GPU's power micro-controller halted first: that its system processor then does not answer is no second fault."""
    cause, gsp = (*burst.of("xid", 62), *burst.kinds("pmu_halt")), _gsp(burst)
    follows = (*gsp, *burst.kinds("nvml_hung", *STUCK))
    if not cause or not follows or (gsp and not precedes(cause, gsp)):
        return None
    return Finding(
        rule_id="firmware/pmu_halted",
        priority=83,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.HARDWARE,
        action=Action.DRAIN,
        resolutions=(*_recovery(burst), Resolution.DRAIN, Resolution.RUN_DIAG),
        confidence=0.8,
        cause=cause,
        explanation=" ".join(
            (
                *(("The halt came first: what the system processor reports comes after it.",) if gsp else ()),
                *_hanging(burst),
            )
        ),
        do_not=(Resolution.RMA,),
    )


def _gsp(burst: Burst) -> tuple[Reading, ...]:
    return (*burst.of("xid", 119, 120), *burst.kinds(*GSP))


def _recovery(burst: Burst) -> tuple[Resolution, Resolution]:
    """A GPU that a task holds in the kernel cannot be reset."""
    if burst.kinds(*STUCK):
        return Resolution.REBOOT, Resolution.RESET_GPU
    return Resolution.RESET_GPU, Resolution.REBOOT


def _hanging(burst: Burst) -> tuple[str, ...]:
    if burst.kinds(*STUCK):
        return (
            "Tasks are stuck in the kernel: while one holds the GPU it cannot be reset, and only a reboot frees it.",
        )
    return ("Calls into the driver hang.",) if burst.kinds("nvml_hung") else ()


def _not_one_program(cause: tuple[Reading, ...]) -> tuple[str, ...]:
    programs = {str(r.signal.attributes["process"]) for r in cause if r.signal.attributes.get("process")}
    return (f"{len(programs)} different programs met it, so no single one is to blame.",) if len(programs) > 1 else ()


def stuck_in_driver(burst: Burst, _: Context) -> Finding | None:
    """Tasks hang in the kernel after an XID's cleanup, without a firmware timeout in sight: only a reboot frees them."""
    cleanup = burst.of("xid", *CLEANUP)
    hangs = tuple(r for r in burst.kinds("hung_task", "driver_task_stuck") if _in_the_driver(r.signal, cleanup))
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
        explanation="A task that hangs in the kernel holds its GPU until the node is rebooted; an XID of its cleanup is no cause.",
        open_questions=(
            "Where do the stuck tasks hang: in the driver, or in a file system? Their kernel stacks tell.",
        ),
        do_not=(Resolution.RMA,),
    )


def _in_the_driver(task: Signal, cleanup: tuple[Reading, ...]) -> bool:
    """It is the driver's by its name or kind, or it is a process whose channel an XID names."""
    if task.kind == "driver_task_stuck" or task.attributes.get("in_nvidia") is True:
        return True
    names = {task.attributes.get("pid"), task.attributes.get("process")} - {None}
    return any(names & {r.signal.attributes.get("pid"), r.signal.attributes.get("process")} for r in cleanup)


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
        explanation="While the driver does not answer, nothing is known of this node's GPUs: they cannot be called healthy.",
        open_questions=("Does nvidia-smi answer on the node, and is a process stuck in the driver?",),
        do_not=(Resolution.RMA,),
    )


def seen_in_a_container(burst: Burst, _: Context) -> Finding | None:
    """A container cannot use the driver: its libraries may be its own, so nothing is known yet of the node."""
    cause = burst.where(lambda s: s.attributes.get("container") is True)
    if not cause or others(burst, cause):
        return None
    return Finding(
        rule_id="observer/seen_in_a_container",
        priority=65,
        severity=Severity.WARNING,
        fault_class=FaultClass.DRIVER,
        action=Action.NONE,
        resolutions=(Resolution.INVESTIGATE, Resolution.CONFIG_CHANGE),
        confidence=0.6,
        cause=cause,
        explanation="A container wrote this, of the libraries that it has: it says nothing of the node's other workloads.",
        recurrence_advice="If new containers of other images fail as well, the node's driver was changed without a reload.",
        open_questions=("Does nvidia-smi work on the node itself, and in a container of another image?",),
        do_not=(Resolution.RMA, Resolution.RESET_GPU, Resolution.REBOOT, Resolution.DRAIN, Resolution.CORDON),
    )


RULES: tuple[Rule, ...] = (gsp_timeout, pmu_halted, stuck_in_driver, driver_hung, seen_in_a_container)
