"""NVLink and NVSwitch: one switch behind many GPUs' errors, links that only count errors, the fabric manager."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from aggregator.model import Action, FaultClass, Resolution, Scalar, Severity, Signal
from aggregator.rules import wording
from aggregator.rules.burst import Burst, Reading, event_order
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others

LINK_XIDS = (74, 136, 144, 145, 146, 147, 148, 149, 150, 155)
COUNTED = ("nvlink_errors", "nvlink_link_down")


def switch_fault(burst: Burst, _: Context) -> Finding | None:
    """A switch reports a fatal error and several GPUs report their links: the switch is the common cause."""
    switch = burst.where(lambda s: s.kind == "sxid" and s.attributes.get("fatal") is not False)
    victims = {r.subject for r in burst.of("xid", *LINK_XIDS) if r.subject}
    if not switch or len(victims) < 2:
        return None
    return Finding(
        rule_id="nvlink/switch_fault",
        priority=85,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.NVLINK,
        action=Action.DRAIN,
        resolutions=(Resolution.DRAIN, Resolution.RESET_GPU, Resolution.REBOOT, Resolution.CONTACT_SUPPORT),
        confidence=0.88,
        cause=switch,
        explanation=f"{len(victims)} GPUs report their links with it: the switch they share is to blame, not the GPUs. "
        "GPUs and switches of the fabric are reset together.",
        recurrence_advice="If the same switch and link report again, have the baseboard diagnosed.",
        do_not=(Resolution.RMA,),
    )


def counted_errors(burst: Burst, _: Context) -> Finding | None:
    """Link error counters rose and no XID or SXid came: the link is marginal, the GPUs still work."""
    cause = burst.kinds(*COUNTED)
    if not cause or burst.where(lambda s: s.kind in ("xid", "sxid")):
        return None
    ends = list(dict.fromkeys(reading.subject for reading in cause if reading.subject))
    return Finding(
        rule_id="nvlink/counted_errors",
        priority=58,
        severity=Severity.WARNING,
        fault_class=FaultClass.NVLINK,
        action=Action.CORDON,
        resolutions=(Resolution.CORDON, Resolution.RUN_DIAG, Resolution.CHECK_MECHANICALS, Resolution.MONITOR),
        confidence=0.75,
        cause=cause,
        explanation=f"{len(ends)} GPUs count errors: look at the links between them first." if len(ends) > 1 else "",
        recurrence_advice="If the counters go on rising after a reset, have the link diagnosed with the node out of service.",
        do_not=(Resolution.RMA,),
    )


def origin(burst: Burst, _: Context) -> Finding | None:
    """Several GPUs report fatal link errors and no switch does: the earliest fatal one is where to look first."""
    fatal = [r for r in burst.of("xid", *LINK_XIDS) if r.entry.severity is Severity.CRITICAL]
    if len({reading.subject for reading in fatal}) < 2:
        return None
    lead = min(fatal, key=lambda r: event_order(r.signal))
    return Finding(
        rule_id="nvlink/origin",
        priority=80,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.NVLINK,
        action=Action.DRAIN,
        resolutions=(Resolution.RESET_GPU, Resolution.DRAIN, Resolution.RUN_DIAG, Resolution.CONTACT_SUPPORT),
        confidence=0.7,
        cause=(lead,),
        explanation=f"{len({reading.subject for reading in fatal})} GPUs report their links: the earliest report is the likelier "
        "origin.",
        open_questions=("Which end of the link reports again after a reset?",),
        do_not=(Resolution.RMA,),
    )


# Bits of 74's registers that mean something only when they come again on the same link (the vendor's table for Hopper).
PARITY = frozenset(
    ("1:4", "1:5", "3:0", "3:1", "3:2", "3:6", *(f"5:{bit}" for bit in (18, 19, 21, 22, 24, 25, 27, 28)))
)
HARDWARE = frozenset(("1:8", "1:9", "1:12", "1:16", "1:17", "1:21", "1:22", "1:24", "1:28", "3:16", "3:19"))
TOO_OFTEN = 3  # parity errors on one link: fewer are chance
DAY_US = 86_400_000_000


def same_link_again(burst: Burst, context: Context) -> Finding | None:
    """74 of one kind again on one link within a day: the link's own hardware, by the bits that the vendor's table lists."""
    reports = burst.of("xid", 74)
    cause = tuple(r for r in reports if _too_often(_of_link(r, reports, context), r))
    if not cause:
        return None
    count = wording.occurrences(_of_link(cause[0], reports, context))
    return Finding(
        rule_id="nvlink/same_link_again",
        priority=81,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.NVLINK,
        action=Action.DRAIN,
        resolutions=(
            Resolution.CHECK_MECHANICALS,
            Resolution.RUN_DIAG,
            Resolution.RESET_GPU,
            Resolution.CONTACT_SUPPORT,
        ),
        confidence=0.75,
        cause=cause,
        explanation=f"Link {cause[0].signal.attributes['link']} reported it {count} times within a day, with register bits that "
        "mean hardware when they come again: a reset alone will not last.",
        recurrence_advice="If it comes back after the seating and both ends were checked, run field diagnostics on both ends.",
        open_questions=("Does the other end of this link report the same?",),
        do_not=(Resolution.RMA,),
    )


def _of_link(report: Reading, reports: Iterable[Reading], context: Context) -> list[Signal]:
    """The 74s of the same GPU and link within the day before this one."""
    place, at_us = _link(report.signal), report.signal.at_us or 0
    known = (*context.earlier, *(reading.signal for reading in reports))
    there = (signal for signal in known if signal.kind == "xid" and signal.code == 74 and _link(signal) == place)
    return [signal for signal in there if None not in place and abs(at_us - (signal.at_us or 0)) <= DAY_US]


def _link(signal: Signal) -> tuple[Scalar, Scalar]:
    return (signal.pci or signal.gpu_uuid, signal.attributes.get("link"))


def _too_often(reports: Sequence[Signal], last: Reading) -> bool:
    def times(bits: Set[str]) -> int:
        return wording.occurrences(s for s in reports if bits & _bits(s)) if bits & _bits(last.signal) else 0

    return times(PARITY) >= TOO_OFTEN or times(HARDWARE) > 1


def _bits(signal: Signal) -> frozenset[str]:
    return frozenset(str(signal.attributes.get("register_bits") or "").split(","))


def fabric_manager(burst: Burst, _: Context) -> Finding | None:
    """The fabric manager failed and GPUs or programs complain of the fabric: it is the cause, the GPUs are well."""
    cause = burst.kinds("fabric_manager_failed")
    if not cause or burst.where(lambda s: s.kind in ("xid", "sxid") and s.code not in (45, 13, 31, 43)):
        return None
    return Finding(
        rule_id="nvlink/fabric_manager",
        priority=72,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.NVLINK,
        action=Action.DRAIN,
        resolutions=(Resolution.INVESTIGATE, Resolution.REBOOT, Resolution.UPDATE_DRIVER),
        confidence=0.75,
        cause=cause,
        explanation="Without the fabric manager CUDA cannot start on an NVSwitch host; no single GPU is at fault. "
        "Its version must be the driver's.",
        do_not=(Resolution.RMA,),
    )


def not_needed(burst: Burst, _: Context) -> Finding | None:
    """The fabric manager ends because the host has no NVSwitch: its service is enabled where it has nothing to do."""
    cause = burst.kinds("fabric_manager_failed")
    told = tuple(r for r in burst.context if r.signal.kind == "fabric_manager_not_needed")
    if not cause or not told or others(burst, cause):
        return None
    return Finding(
        rule_id="nvlink/fabric_manager_not_needed",
        priority=73,
        severity=Severity.INFO,
        fault_class=FaultClass.NONE,
        action=Action.NONE,
        resolutions=(Resolution.NONE, Resolution.CONFIG_CHANGE),
        confidence=0.85,
        cause=told,
        explanation="Without an NVSwitch the fabric manager has nothing to manage and ends: harmless. Its service may be disabled.",
        do_not=(Resolution.RMA, Resolution.RESET_GPU, Resolution.REBOOT),
    )


RULES: tuple[Rule, ...] = (not_needed, switch_fault, counted_errors, origin, same_link_again, fabric_manager)
