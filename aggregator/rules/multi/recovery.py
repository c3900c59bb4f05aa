"""The driver's own word on what ends a fault: XID 154 and NVML's recovery action outrank the table's advice."""

from __future__ import annotations

from dataclasses import replace

from aggregator.model import SEVERITY_ORDER, Action, Severity
from aggregator.rules.burst import Burst, event_order
from aggregator.rules.finding import Finding


def with_named_recovery(finding: Finding, burst: Burst) -> Finding:
    """The finding, with the action that the driver named last on a device it blames; unchanged when it named none,
    or when that has been done since."""
    subjects = {reading.subject for reading in finding.cause}
    named = [
        reading
        for reading in (*burst.of("xid", 154), *burst.kinds("recovery_action"))
        if reading.signal.attributes.get("recovery_action", "unknown") not in ("unknown", "none")
        and reading.subject in subjects
    ]
    if not named or burst.restarts_after(named):
        return finding
    last = max(named, key=lambda reading: event_order(reading.signal))
    rest = tuple(item for item in finding.resolutions if item not in last.entry.resolutions)
    worse: Severity = max(finding.severity, last.entry.severity, key=SEVERITY_ORDER.__getitem__)
    return replace(
        finding,
        severity=worse,
        action=Action.DRAIN
        if finding.action is Action.DRAIN
        else last.entry.action,  # its jobs leave before it is rebooted
        resolutions=last.entry.resolutions + rest,
        permits=finding.permits + last.entry.resolutions,
        do_not=tuple(item for item in finding.do_not if item not in last.entry.resolutions),
    )
