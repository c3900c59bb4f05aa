"""The PCIe bus: GPUs that vanish, what came before, and what merely follows."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.burst import Burst
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others

LOST = ("gpu_fallen_off_bus", "nvml_gpu_lost", "pcie_surprise_down")
BEFORE = ("pcie_aer_fatal", "pcie_aer_nonfatal", "pcie_link_down", "pcie_completion_timeout", "host_power_event")


def lost(burst: Burst, context: Context) -> Finding | None:
    """A GPU left the bus: what other GPUs, switches and the driver say afterwards follows from it."""
    cause = (*burst.of("xid", 79), *burst.kinds(*LOST))
    if not cause:
        return None
    several = len({reading.subject for reading in cause if reading.subject}) > 1
    return Finding(
        rule_id="bus/several_gpus_lost" if several else "bus/gpu_lost",
        priority=95,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.PCIE,
        action=Action.DRAIN,
        resolutions=(
            Resolution.REBOOT,
            Resolution.POWER_CYCLE,
            Resolution.CHECK_MECHANICALS,
            Resolution.CONTACT_SUPPORT,
        ),
        confidence=0.85 if several else 0.9,
        cause=tuple(sorted(cause, key=lambda r: (r.signal.at_us or 0, r.signal.order))),
        consequences=others(burst, cause),
        explanation=_explanation(burst, several=several),
        recurrence_advice=_again(context),
        open_questions=_questions(burst, several=several),
        do_not=(Resolution.RMA,),
    )


def _explanation(burst: Burst, *, several: bool) -> str:
    before = burst.kinds(*BEFORE)
    told = "PCIe errors on its path came with it, which speaks for the link, the riser or the power. " if before else ""
    if several:
        return told + "Several GPUs left at once: look at the host, its power and its baseboard before any single GPU."
    return told + "Messages of other GPUs and switches about this one's links are consequences."


def _again(context: Context) -> str:
    if context.happened_before("xid 79"):
        return "It happened before on this GPU: reseat it, check power and firmware, then run field diagnostics on the board."
    return "If it comes back after a reboot, reseat the GPU, check its power and cabling, then contact support."


def _questions(burst: Burst, *, several: bool) -> tuple[str, ...]:
    questions = []
    if not burst.kinds(*BEFORE):
        questions.append("Does the BMC's event log show a power, thermal or PCIe event at that time?")
    if several:
        questions.append("Do the lost GPUs share a PCIe switch, riser or power supply?")
    return tuple(questions)


def degraded_link(burst: Burst, _: Context) -> Finding | None:
    """A GPU's link is narrower than it can be, and nothing worse."""
    cause = burst.kinds("pcie_gpu_degraded")
    if not cause or len(burst.faults) > len(cause):
        return None
    narrow = any(reading.signal.attributes.get("width_degraded") for reading in cause)
    return Finding(
        rule_id="bus/degraded_link",
        priority=50,
        severity=Severity.WARNING,
        fault_class=FaultClass.PCIE,
        action=Action.NONE,
        resolutions=(Resolution.CHECK_MECHANICALS, Resolution.RUN_DIAG, Resolution.MONITOR),
        confidence=0.75 if narrow else 0.5,
        cause=cause,
        open_questions=() if narrow else ("Was the GPU under load? An idle link lowers its speed on purpose.",),
        do_not=(Resolution.RMA,),
    )


RULES: tuple[Rule, ...] = (lost, degraded_link)
