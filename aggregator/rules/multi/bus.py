"""The PCIe bus: GPUs that vanish, what came before, and what merely follows."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.burst import Burst, Reading, precedes
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others
from aggregator.rules.relations import LINK_XIDS

LOST = ("gpu_fallen_off_bus", "nvml_gpu_lost", "pcie_surprise_down")
ON_THE_PATH = ("pcie_aer_fatal", "pcie_aer_nonfatal", "pcie_link_down", "pcie_completion_timeout")
LINK_REPORTS = ("sxid", "nvlink_link_down", "nvlink_errors", "nvlink_fabric_error", "nvswitch_error")
TOGETHER_US = 60_000_000  # GPUs that are lost within this share a cause


def lost(burst: Burst, context: Context) -> Finding | None:
    """A GPU left the bus: what other GPUs, switches and the driver say afterwards follows from it."""
    cause = _lost(burst)
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
        cause=cause,
        proof=burst.kinds(*ON_THE_PATH),
        explanation=_explanation(burst, cause, several=several),
        recurrence_advice=_again(context),
        open_questions=_questions(burst, several=several),
        do_not=(Resolution.RMA,),
    )


def _lost(burst: Burst) -> tuple[Reading, ...]:
    """What says so, the driver's own XID first."""
    return (*burst.of("xid", 79), *burst.kinds(*LOST))


def _explanation(burst: Burst, cause: tuple[Reading, ...], *, several: bool) -> str:
    told = []
    if burst.kinds(*ON_THE_PATH):
        told.append("PCIe errors were reported with it, which speaks for the link, the riser or the power.")
    if several and _together(cause):
        told.append("Several GPUs left at once: look at the host, its power and its baseboard before any single GPU.")
    elif several:
        told.append("The GPUs left one after the other: look at what they share before any single GPU.")
    if burst.kinds(*LINK_REPORTS) or burst.of("xid", *LINK_XIDS):
        told.append("Messages of other GPUs and switches about its links are consequences.")
    return " ".join(told)


def _together(cause: tuple[Reading, ...]) -> bool:
    starts = {reading.subject: reading.signal.at_us or 0 for reading in reversed(cause)}
    return max(starts.values()) - min(starts.values()) <= TOGETHER_US


def _again(context: Context) -> str:
    if context.happened_before("xid 79"):
        return "It happened before on this GPU: reseat it, check power and firmware, then run field diagnostics on the board."
    return "If it comes back after a reboot, reseat the GPU, check its power and cabling, then contact support."


def _questions(burst: Burst, *, several: bool) -> tuple[str, ...]:
    questions = []
    if not burst.kinds(*ON_THE_PATH):
        questions.append("Does the BMC's event log show a power, thermal or PCIe event at that time?")
    if several:
        questions.append("Do the lost GPUs share a PCIe switch, riser or power supply?")
    return tuple(questions)


def power_lost(burst: Burst, _: Context) -> Finding | None:
    """A supply failed and GPUs left the bus with it: they lost their power, so the supply comes first."""
    cause, gone = burst.kinds("host_power_event"), _lost(burst)
    if not cause or not gone or not precedes(cause, gone, TOGETHER_US):
        return None
    gpus = len({reading.subject for reading in gone if reading.subject})
    return Finding(
        rule_id="bus/power_lost",
        priority=97,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.HARDWARE,
        action=Action.DRAIN,
        resolutions=(
            Resolution.CHECK_MECHANICALS,
            Resolution.POWER_CYCLE,
            Resolution.REBOOT,
            Resolution.CONTACT_SUPPORT,
        ),
        confidence=0.85 if gpus > 1 else 0.7,
        cause=cause,
        explanation=f"{gpus or 'One or more'} GPU{'s' if gpus != 1 else ''} left the bus with it. "
        "Restore the supply first (its feed, the unit, the BMC's event log), then power-cycle the node.",
        recurrence_advice="If it comes back with all supplies healthy, check their redundancy and the rack's power budget.",
        open_questions=("What does the BMC's event log say of the power supplies at that time?",),
        do_not=(Resolution.RMA,),
    )


def degraded_link(burst: Burst, _: Context) -> Finding | None:
    """A GPU's link is narrower or slower than it can be, and nothing worse than corrected errors on it."""
    cause = burst.kinds("pcie_gpu_degraded")
    if not cause or others(burst, (*cause, *burst.kinds("pcie_aer_corrected", "pcie_replay"))):
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
        explanation="Lanes are missing: that is no power saving." if narrow else "",
        open_questions=() if narrow else ("Was the GPU under load? An idle link lowers its speed on purpose.",),
        do_not=(Resolution.RMA,),
    )


RULES: tuple[Rule, ...] = (lost, power_lost, degraded_link)
