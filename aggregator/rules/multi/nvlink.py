"""NVLink and NVSwitch: one switch behind many GPUs' errors, links that only count errors, the fabric manager."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.burst import Burst, event_order
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


RULES: tuple[Rule, ...] = (not_needed, switch_fault, counted_errors, origin, fabric_manager)
