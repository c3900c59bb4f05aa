"""What a signal's own words change about what its code means: a fatal flag, a named recovery action, a repair that failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from aggregator.model import Action, FaultClass, Resolution, Severity, Signal
from aggregator.rules.catalog import Entry


def refine(signal: Signal, entry: Entry) -> Entry:
    """The entry as this signal's attributes make it; what the site wrote stays as it wrote it."""
    refinement = _REFINEMENTS.get((signal.kind, signal.code)) or _REFINEMENTS.get((signal.kind, None))
    if refinement is None:
        return entry
    by_site: dict[str, Any] = {name: getattr(entry, name) for name in entry.site}
    return replace(refinement(signal, entry), **by_site)


_DIRE = re.compile(
    r"(?<!non-)(?<!non)\bfatal\b|fallen off the bus|\bis lost\b|uncontained|requires? (?:a )?(?:gpu )?reset|reset required",
    re.I,
)


def by_its_words(signal: Signal, entry: Entry) -> Entry:
    """What no table knows is as bad as the driver's own words for it; nothing else is guessed from them."""
    if not _DIRE.search(str(signal.attributes.get("text") or "")):
        return entry
    return replace(entry, severity=Severity.CRITICAL, action=Action.CORDON)


def _unreadable_xid(signal: Signal, entry: Entry) -> Entry:
    """A line is the driver's by its log's prefix or by its form: what has neither is shown and proves nothing."""
    if "unstamped" in signal.attributes:
        return replace(entry, severity=Severity.OK)
    return by_its_words(signal, entry)


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
        return replace(
            entry,
            severity=Severity.WARNING,
            action=Action.NONE,
            resolutions=(Resolution.MONITOR, Resolution.INVESTIGATE),
            weight=min(entry.weight, 40),
        )
    return entry


# 74's registers by "register:bit", as NVIDIA's catalog lists them for Hopper. What is not listed here keeps the table's advice.
_LINK_IGNORED = frozenset(("1:0", "1:23", "1:30"))
_LINK_THRESHOLDS = frozenset(("5:20", "5:23", "5:26", "5:29"))  # ECC counts crossed a threshold: the link goes on
_LINK_SYMPATHETIC = frozenset(("1:1", "1:20", "4:16", "4:17"))  # another device's error, seen from here


def _link_registers(signal: Signal, entry: Entry) -> Entry:
    """74: some bits are counted, or belong to the other end's error; a reset of this GPU would repair nothing."""
    bits = frozenset(str(signal.attributes.get("register_bits") or "").split(",")) - {""}
    if not bits or bits - _LINK_IGNORED - _LINK_THRESHOLDS - _LINK_SYMPATHETIC:
        return entry
    other_end = bool(bits & _LINK_SYMPATHETIC)
    return replace(
        entry,
        severity=Severity.WARNING if bits - _LINK_IGNORED else Severity.INFO,
        action=Action.NONE,
        resolutions=(Resolution.INVESTIGATE, Resolution.MONITOR) if other_end else (Resolution.MONITOR,),
        do_not=(Resolution.RESET_GPU, Resolution.RMA),
        note="Its registers speak of another device's error: look for the first report of this link's other end."
        if other_end
        else "Its registers only count: the link goes on working.",
        weight=min(entry.weight, 30),
    )


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
    "unknown": (Severity.WARNING, Action.NONE, (Resolution.INVESTIGATE, Resolution.CONTACT_SUPPORT)),
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
    if named is None or "truncated" in signal.attributes:  # a line that was cut names nothing, not something new
        return entry
    severity, action, resolutions = named
    fault_class = FaultClass.NONE if severity is Severity.INFO else entry.fault_class
    return replace(entry, severity=severity, fault_class=fault_class, action=action, resolutions=resolutions)


def _nvlink5(signal: Signal, entry: Entry) -> Entry:
    """144-150: most codes have harmless and fatal rows; the decoded row and the line's own word decide."""
    immediate = frozenset(str(signal.attributes.get("immediate") or "").split("|")) - {""}
    fatal = signal.attributes.get("fatal")
    if immediate == {"IGNORE"}:
        return replace(
            entry,
            severity=Severity.WARNING if fatal else Severity.INFO,
            action=Action.NONE,
            resolutions=(Resolution.MONITOR, Resolution.INVESTIGATE),
            do_not=(*entry.do_not, Resolution.RESET_GPU),
            weight=min(entry.weight, 30),
        )
    if fatal is not True and immediate and immediate <= {"IGNORE", "XID_154_EVAL"}:
        return replace(  # a 154 names what to do; without one only the application has to begin anew
            entry,
            severity=Severity.WARNING,
            action=Action.NONE,
            resolutions=(Resolution.RESTART_APP, Resolution.INVESTIGATE, Resolution.MONITOR),
        )
    if fatal is False and not immediate:
        return replace(entry, resolutions=(Resolution.INVESTIGATE, Resolution.MONITOR))
    if fatal or "RESET_GPU" in immediate:
        return replace(
            entry,
            severity=Severity.CRITICAL,
            fault_class=FaultClass.NVLINK,
            action=Action.DRAIN,
            resolutions=(Resolution.RESET_GPU, Resolution.DRAIN, Resolution.CONTACT_SUPPORT),
            weight=max(entry.weight, 70),
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


def _stuck_task(signal: Signal, entry: Entry) -> Entry:
    """A task of NVIDIA's that hangs in the kernel hangs in the driver: what holds for `driver_task_stuck`."""
    if signal.attributes.get("in_nvidia") is not True:
        return entry
    return replace(
        entry,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.DRIVER,
        action=Action.DRAIN,
        resolutions=(Resolution.REBOOT, Resolution.DRAIN, Resolution.INVESTIGATE),
    )


def _reset_failed(signal: Signal, entry: Entry) -> Entry:
    """A reset that was refused because somebody uses the GPU tells nothing about the GPU."""
    if signal.attributes.get("in_use") is not True:
        return entry
    return replace(
        entry,
        severity=Severity.WARNING,
        fault_class=FaultClass.SOFTWARE,
        action=Action.NONE,
        resolutions=(Resolution.DRAIN, Resolution.RESET_GPU, Resolution.INVESTIGATE),
        do_not=(Resolution.POWER_CYCLE, Resolution.RMA),
        note="Stop what uses the GPU (jobs, monitoring, persistence daemon, fabric manager), then reset it again.",
    )


def _init_failure(signal: Signal, entry: Entry) -> Entry:
    """A file of the driver's package that is not there: the GPU is well."""
    if signal.attributes.get("stage") != "firmware_file":
        return entry
    return replace(
        entry,
        fault_class=FaultClass.DRIVER,
        resolutions=(Resolution.UPDATE_DRIVER, Resolution.CONFIG_CHANGE, Resolution.REBOOT),
        weight=entry.weight + 1,  # it explains the failure to start that follows
        note="The driver cannot load the GPU's firmware: install the firmware files of exactly this driver version.",
    )


def _hardware_error(signal: Signal, entry: Entry) -> Entry:
    """A machine check or firmware report says itself how bad it is."""
    said = signal.attributes.get("severity")
    if said == "fatal":
        return replace(
            entry,
            severity=Severity.CRITICAL,
            action=Action.DRAIN,
            resolutions=(Resolution.REBOOT, Resolution.RUN_DIAG, Resolution.CONTACT_SUPPORT),
        )
    if said in ("corrected", "info"):
        return replace(entry, severity=Severity.INFO, resolutions=(Resolution.MONITOR,), weight=min(entry.weight, 14))
    return entry


def _margin(signal: Signal, entry: Entry) -> Entry:
    """A margin that is used up is heat; one that is not is a monitor's threshold."""
    margin = signal.attributes.get("margin_celsius")
    if not isinstance(margin, int | float) or margin >= 0:
        return entry
    return replace(
        entry,
        severity=Severity.WARNING,
        resolutions=(Resolution.CHECK_MECHANICALS, Resolution.INVESTIGATE, Resolution.MONITOR),
        weight=max(entry.weight, 53),
    )


def _other_device(signal: Signal, entry: Entry) -> Entry:
    """A fatal error of another device is worth a look at that device."""
    if signal.attributes.get("would_be") != "pcie_aer_fatal":
        return entry
    return replace(entry, severity=Severity.WARNING, resolutions=(Resolution.INVESTIGATE, Resolution.CHECK_MECHANICALS))


def _nic(signal: Signal, entry: Entry) -> Entry:
    """A link or an adapter that failed is worth a visit; what else an adapter reports is worth a record."""
    if signal.attributes.get("event") not in ("link_down", "health"):
        return entry
    return replace(
        entry,
        severity=Severity.WARNING,
        resolutions=(Resolution.CHECK_MECHANICALS, Resolution.INVESTIGATE, Resolution.MONITOR),
        weight=max(entry.weight, 34),
        note="Check the cable, the module and the switch port; jobs that use this network may hang or fail with it.",
    )


def _cuda_error(signal: Signal, entry: Entry) -> Entry:
    """An uncorrectable ECC error that a program was told of is a memory fault, whoever tells it."""
    error = str(signal.attributes.get("error") or "").lower()
    if "out of memory" in error.replace("_", " "):
        return replace(
            entry,
            severity=Severity.INFO,
            resolutions=(Resolution.FIX_APP, Resolution.CONFIG_CHANGE, Resolution.RESTART_APP),
            note="A program asked for more memory than the GPU had free; many programs catch this and go on.",
        )
    if "ecc" not in error or "uncorrectable" not in error:
        return entry
    return replace(
        entry,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.MEMORY,
        action=Action.DRAIN,
        resolutions=(Resolution.RESET_GPU, Resolution.DRAIN, Resolution.RUN_DIAG),
        do_not=(Resolution.RMA, Resolution.RESTART_APP),
        note="The driver's own lines about it (XID 48, 63, 94, 95) say which memory, and whether a reset is enough.",
    )


_REFINEMENTS: Mapping[tuple[str, int | None], Callable[[Signal, Entry], Entry]] = {
    ("sxid", None): _sxid,
    ("xid_malformed", None): _unreadable_xid,
    ("xid", 64): _row_remap,
    ("xid", 74): _link_registers,
    ("xid", 154): _recovery_action,
    ("recovery_action", None): _recovery_action,
    ("ecc_uncorrectable", None): _counted_ecc,
    ("hung_task", None): _stuck_task,
    ("gpu_reset_failed", None): _reset_failed,
    ("gpu_init_failure", None): _init_failure,
    ("host_machine_check", None): _hardware_error,
    ("thermal_margin_violation", None): _margin,
    ("cuda_error", None): _cuda_error,
    ("pcie_error_other_device", None): _other_device,
    ("nic_event", None): _nic,
    **{("xid", code): _nvlink5 for code in range(144, 151)},
}
