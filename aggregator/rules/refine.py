"""What a signal's own words change about what its code means: a fatal flag, a named recovery action, a repair that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from aggregator.model import Action, FaultClass, Resolution, Severity, Signal
from aggregator.rules.catalog import Entry


def refine(signal: Signal, entry: Entry) -> Entry:
    """The entry as this signal's attributes make it; the entry itself when they say nothing more."""
    refinement = _REFINEMENTS.get((signal.kind, signal.code)) or _REFINEMENTS.get((signal.kind, None))
    return refinement(signal, entry) if refinement else entry


def _sxid(signal: Signal, entry: Entry) -> Entry:
    """The line's own Fatal or Non-fatal outranks the table."""
    fatal = signal.attributes.get("fatal")
    if fatal is True and entry.severity is not Severity.CRITICAL:
        return replace(
            entry,
            severity=Severity.CRITICAL,
            action=Action.DRAIN,
            resolutions=(Resolution.DRAIN, Resolution.RESET_GPU, Resolution.CONTACT_SUPPORT),
            do_not=(),
            weight=max(entry.weight, 70),
        )
    if fatal is False and entry.severity is Severity.CRITICAL:
        return replace(entry, severity=Severity.WARNING, action=Action.NONE, weight=min(entry.weight, 40))
    return entry


def _row_remap(signal: Signal, entry: Entry) -> Entry:
    """64: a remap that is only pending waits for a reset; one that failed is the vendor's replacement criterion."""
    remap = signal.attributes.get("remap")
    if remap == "pending":
        return replace(
            entry,
            severity=Severity.WARNING,
            action=Action.DRAIN,
            resolutions=(Resolution.RESET_GPU, Resolution.DRAIN),
            do_not=(Resolution.RMA,),
        )
    if remap in ("failed", "page_failed"):
        return replace(
            entry,
            severity=Severity.CRITICAL,
            action=Action.DRAIN,
            resolutions=(Resolution.DRAIN, Resolution.RESET_GPU, Resolution.RMA, Resolution.CONTACT_SUPPORT),
            do_not=(),
        )
    return entry


_ACTIONS: Mapping[object, tuple[Severity, Action, tuple[Resolution, ...]]] = {
    "none": (Severity.INFO, Action.NONE, (Resolution.NONE, Resolution.MONITOR)),
    "gpu_reset": (Severity.CRITICAL, Action.DRAIN, (Resolution.RESET_GPU, Resolution.DRAIN)),
    "drain_and_reset": (Severity.CRITICAL, Action.DRAIN, (Resolution.DRAIN, Resolution.RESET_GPU)),
    "drain_p2p": (Severity.WARNING, Action.DRAIN, (Resolution.DRAIN, Resolution.INVESTIGATE)),
    "node_reboot": (Severity.CRITICAL, Action.REBOOT, (Resolution.REBOOT, Resolution.DRAIN)),
    "system_reboot": (Severity.CRITICAL, Action.REBOOT, (Resolution.REBOOT, Resolution.DRAIN)),
    "bus_reset": (Severity.CRITICAL, Action.DRAIN, (Resolution.RESET_GPU, Resolution.REBOOT, Resolution.DRAIN)),
    "recover_imex": (Severity.CRITICAL, Action.DRAIN, (Resolution.DRAIN, Resolution.REBOOT)),
}


def _recovery_action(signal: Signal, entry: Entry) -> Entry:
    """154 and NVML's field 230 name what the driver wants done."""
    named = _ACTIONS.get(signal.attributes.get("recovery_action"))
    if named is None:
        return entry
    severity, action, resolutions = named
    return replace(entry, severity=severity, action=action, resolutions=resolutions)


def _nvlink5(signal: Signal, entry: Entry) -> Entry:
    """144-150: most codes have harmless and fatal rows; the decoded row and the line's own word decide."""
    immediate = str(signal.attributes.get("immediate") or "")
    fatal = signal.attributes.get("fatal") is True
    if fatal or "RESET_GPU" in immediate:
        return replace(
            entry,
            severity=Severity.CRITICAL,
            fault_class=FaultClass.NVLINK,
            action=Action.DRAIN,
            resolutions=(Resolution.RESET_GPU, Resolution.DRAIN, Resolution.CONTACT_SUPPORT),
            weight=max(entry.weight, 70),
        )
    if immediate and set(immediate.split("|")) == {"IGNORE"}:
        return replace(
            entry,
            severity=Severity.INFO,
            action=Action.NONE,
            resolutions=(Resolution.MONITOR, Resolution.INVESTIGATE),
            weight=min(entry.weight, 30),
        )
    return entry


def _counted_ecc(signal: Signal, entry: Entry) -> Entry:
    """Uncorrectable errors in the board's lifetime, not seen to rise: its history, whatever has happened since."""
    if signal.attributes.get("scope") != "aggregate" or "before" in signal.attributes:
        return entry
    return replace(
        entry,
        severity=Severity.INFO,
        action=Action.NONE,
        resolutions=(Resolution.MONITOR,),
        do_not=(Resolution.RESET_GPU, Resolution.REBOOT, Resolution.POWER_CYCLE, Resolution.RMA),
        weight=min(entry.weight, 16),
    )


_REFINEMENTS: Mapping[tuple[str, int | None], Callable[[Signal, Entry], Entry]] = {
    ("sxid", None): _sxid,
    ("xid", 64): _row_remap,
    ("xid", 154): _recovery_action,
    ("recovery_action", None): _recovery_action,
    ("ecc_uncorrectable", None): _counted_ecc,
    **{("xid", code): _nvlink5 for code in range(144, 151)},
}
