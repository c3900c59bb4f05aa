"""The host around the GPUs: whose crash it was, and what its firmware reported piece by piece."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.burst import Burst, Reading
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule

NVIDIA_VENDOR = "10de"


def crash(burst: Burst, _: Context) -> Finding | None:
    """The kernel crashed for a machine check, or inside the NVIDIA driver: the crash has a known owner."""
    panics = burst.kinds("kernel_panic")
    checks = tuple(r for r in burst.kinds("host_machine_check") if r.signal.attributes.get("severity") == "fatal")
    if not panics:
        return None
    if checks or any("machine check" in _text(reading) for reading in panics):
        return _crash(burst, checks or panics, FaultClass.HARDWARE)
    inside = tuple(r for r in panics if str(r.signal.attributes.get("module", "")).startswith("nvidia"))
    return _crash(burst, inside, FaultClass.DRIVER) if inside else None


def _crash(burst: Burst, cause: tuple[Reading, ...], owner: FaultClass) -> Finding:
    hardware = owner is FaultClass.HARDWARE
    repair = (Resolution.RUN_DIAG,) if hardware else (Resolution.UPDATE_DRIVER,)
    return Finding(
        rule_id="host/machine_check" if hardware else "host/crash_in_driver",
        priority=87,
        severity=Severity.CRITICAL,
        fault_class=owner,
        action=Action.DRAIN,
        resolutions=(Resolution.REBOOT, *repair, Resolution.CONTACT_SUPPORT),
        confidence=0.85,
        cause=cause,
        explanation="The processor reported a fatal hardware error, and the kernel stopped for it: the host, not its GPUs."
        if hardware
        else "The kernel crashed in a function of the NVIDIA driver.",
        recurrence_advice="If it comes back, have the host's processor, memory and boards diagnosed."
        if hardware
        else "If it comes back, look for an XID before it, try another driver branch and send the vendor the trace.",
        do_not=(Resolution.RMA, Resolution.RESET_GPU),
    )


def firmware_report(burst: Burst, _: Context) -> Finding | None:
    """The platform's firmware reports a fatal PCIe error of an NVIDIA device, one field a line: the same as AER fatal."""
    report = burst.kinds("host_machine_check")
    said = {name: str(value).lower() for r in report for name, value in r.signal.attributes.items()}
    fatal = any(r.signal.attributes.get("severity") == "fatal" for r in report)
    if not fatal or "pcie" not in said.get("component", "") or said.get("vendor") != NVIDIA_VENDOR:
        return None
    return Finding(
        rule_id="host/firmware_reports_gpu",
        priority=91,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.PCIE,
        action=Action.DRAIN,
        resolutions=(
            Resolution.REBOOT,
            Resolution.POWER_CYCLE,
            Resolution.CHECK_MECHANICALS,
            Resolution.CONTACT_SUPPORT,
        ),
        confidence=0.85,
        cause=report,
        root_cause=f"The platform's firmware reports a fatal PCIe error of the NVIDIA device {said.get('bdf', '')}".rstrip()
        + ".",
        explanation="It is the firmware's form of a fatal AER error: the device may not answer until it is reset with its link.",
        recurrence_advice="If it comes back after a reboot, reseat the GPU, check riser, power and cabling, then contact support.",
        do_not=(Resolution.RMA,),
    )


def _text(reading: Reading) -> str:
    return str(reading.signal.attributes.get("text", "")).lower()


RULES: tuple[Rule, ...] = (crash, firmware_report)
