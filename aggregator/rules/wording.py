"""The sentences of a verdict. Facts come from signals and entries; nothing is said that no signal or entry holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from aggregator.model import Resolution, Signal
from aggregator.rules.burst import Burst, Reading, event_order, fact, first
from aggregator.rules.entry import Entry
from aggregator.rules.finding import Finding

STEPS: Mapping[Resolution, str] = {
    Resolution.NONE: "Nothing needs to be done.",
    Resolution.RESTART_APP: "Restart the application that held the GPU.",
    Resolution.FIX_APP: "Look for the bug in the application: compute-sanitizer names the access.",
    Resolution.RESET_GPU: "Reset the GPU (nvidia-smi --gpu-reset) once no process holds it; on NVSwitch systems with its peers.",
    Resolution.REBOOT: "Reboot the node once its jobs have left.",
    Resolution.POWER_CYCLE: "Power-cycle the node: a warm reboot may not bring the device back.",
    Resolution.CORDON: "Cordon the node: no new jobs.",
    Resolution.DRAIN: "Drain the node: let its jobs leave before anything is reset.",
    Resolution.RMA: "Open a replacement case for the GPU with the cited lines.",
    Resolution.RUN_DIAG: "Run the vendor's diagnostics (dcgmi diag -r 3, field diagnostics) with the node out of service.",
    Resolution.CHECK_MECHANICALS: "Check seating, cabling, cooling and power of the device.",
    Resolution.UPDATE_DRIVER: "Update the driver: later branches change this behaviour.",
    Resolution.UPDATE_FIRMWARE: "Update the firmware.",
    Resolution.CONTACT_SUPPORT: "Collect nvidia-bug-report.sh and contact the vendor's support.",
    Resolution.INVESTIGATE: "Investigate: the evidence does not settle it yet.",
    Resolution.MONITOR: "Watch whether it comes back.",
    Resolution.CONFIG_CHANGE: "Correct the configuration.",
}
PROHIBITIONS: Mapping[Resolution, str] = {
    Resolution.CORDON: "Do not cordon the node for this.",
    Resolution.DRAIN: "Do not drain the node for this: other jobs are not affected.",
    Resolution.REBOOT: "Do not reboot for this.",
    Resolution.POWER_CYCLE: "Do not power-cycle for this.",
    Resolution.RESET_GPU: "Do not reset the GPU for this.",
    Resolution.RMA: "Do not replace the GPU on this evidence.",
    Resolution.RESTART_APP: "Do not restart the application on this GPU before it is repaired.",
}
RESTARTS: Mapping[str, str] = {
    "kernel_boot": "The node was started anew",
    "driver_loaded": "The driver was loaded",
    "gpu_reset_done": "The GPU was reset",
}
ONE_REPORT_US = 1_000_000
LONGEST_NAME = 64
CHANNELS: Mapping[str, str] = {"kmsg": "the kernel log", "nvml": "NVML", "dcgm": "DCGM", "log": "the log"}


def step(resolution: Resolution) -> str:
    """What to do, as one sentence."""
    return STEPS[resolution]


def prohibition(resolution: Resolution) -> str:
    """What not to do, as one sentence."""
    return PROHIBITIONS.get(resolution, f"Do not {resolution.replace('_', ' ')} for this.")


def root_cause(finding: Finding) -> str:
    """One sentence: where, what, and what the code means."""
    lead = finding.cause[0]
    places = list(dict.fromkeys(place(reading) for reading in _told(finding)))
    return f"{listed(places)}, {spoken(lead.signal)}: {_uncapitalised(lead.entry.meaning)}"


def spoken(signal: Signal) -> str:
    """A signal's name for a sentence: "XID 79", "row remap pending"."""
    if signal.code is not None:
        return f"{signal.kind.upper().replace('SXID', 'SXid')} {signal.code}"
    return signal.kind.replace("_", " ")


def summary(finding: Finding, burst: Burst) -> str:
    """One paragraph: what happened, what was reported around it, what the rule adds, what proves nothing."""
    told = _told(finding)
    reported = _reported(told) if not finding.root_cause else ""
    sentences = [finding.root_cause or root_cause(finding), f"It was {reported}." if reported else ""]
    sentences += [*_around(told, burst), *_restarted(told, burst), _shared(burst), finding.explanation]
    sentences += [
        f"A second matter: {each.root_cause or root_cause(each)} {step(each.resolutions[0])}" for each in finding.beside
    ]
    if burst.forged:
        sentences.append(f"{len(burst.forged)} lines were written by userspace and prove nothing.")
    return " ".join(sentence.strip() for sentence in sentences if sentence)


def _told(finding: Finding) -> list[Reading]:
    """What the root cause speaks of: all that is blamed where a rule words it itself, else what is named as the first is."""
    lead = finding.cause[0].signal
    return [reading for reading in finding.cause if finding.root_cause or reading.signal.name == lead.name]


def _around(told: Sequence[Reading], burst: Burst) -> list[str]:
    """What else was reported, by when: order is told, and nothing more is claimed by it."""
    began, lines = event_order(first(told).signal), {fact(reading.signal) for reading in told}
    rest = [reading for reading in burst.faults if fact(reading.signal) not in lines]
    before = [reading for reading in rest if event_order(reading.signal) < began]
    after = [reading for reading in rest if event_order(reading.signal) > began]
    halves = (("before", before), ("after", after))
    return [f"Reported {when} it: {counted(readings)}." for when, readings in halves if readings]


def _restarted(told: Sequence[Reading], burst: Burst) -> list[str]:
    """What has been done since, for whoever would do it again."""
    return [f"{RESTARTS[reading.signal.kind]} after it." for reading in burst.restarts_after(told)[:1]]


def _shared(burst: Burst) -> str:
    """What all nodes of a fault that many show have in common."""
    faults = [reading.signal for reading in burst.faults]
    nodes = {signal.node for signal in faults}
    if len(nodes) < 2:
        return ""
    first, *others = [str(signal.attributes.get("places") or "").split("; ") for signal in faults]
    common = [place for place in first if place and all(place in other for other in others)]
    return f"All of its nodes share {listed(common)}." if common else ""


def no_fault(burst: Burst) -> str:
    """What to say when nothing is wrong."""
    if burst.forged:
        return f"No fault: {len(burst.forged)} lines that look like a driver's were written by userspace and prove nothing."
    if burst.ended:
        return "What was wrong is over; nothing is wrong now."
    return "Nothing in the input says that hardware, driver or applications failed."


def contradiction(reading: Reading) -> str:
    """A line whose text belongs to another code."""
    suggests = reading.signal.attributes["body_suggests"]
    return f"The line contradicts itself: its text is what XID {suggests} prints, so the code is taken with caution."


def quoted(name: object) -> str:
    """A name that a program gave itself: shown as such, on one line, and not at any length."""
    text = "".join(character if character.isprintable() else "?" for character in str(name))
    return json.dumps(text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…", ensure_ascii=False)


def by_site(entry: Entry, names: Sequence[str]) -> str:
    """Whose word it is."""
    called = entry.name if entry.code is None else f"{entry.kind.upper().replace('SXID', 'SXid')} {entry.code}"
    return f"This site's own rules for {called} decide {listed([name.replace('_', ' ') for name in names])}."


def unknown_code_question(reading: Reading) -> str:
    """What would settle a code that no table holds."""
    return f"What does the vendor's present documentation say of {spoken(reading.signal)}? It is in no table here."


def place(reading: Reading) -> str:
    """Where a signal is, for a sentence."""
    signal = reading.signal
    if signal.kind == "sxid" and signal.pci:
        return f"NVSwitch {signal.pci}"
    if signal.pci or signal.gpu_uuid:
        mig = f" (MIG {signal.mig})" if signal.mig else ""
        return f"GPU {signal.pci or signal.gpu_uuid}{mig}"
    if signal.attributes.get("bdf"):
        return f"Device {signal.attributes['bdf']}"
    return f"Node {signal.node}" if signal.node else "The node"


def counted(readings: Iterable[Reading]) -> str:
    """Names with counts: "XID 45 (6 times), hung task"."""
    reports: dict[str, list[Reading]] = {}
    for reading in readings:
        reports.setdefault(spoken(reading.signal), []).append(reading)
    return listed([_named(name, same) for name, same in reports.items()])


def _named(name: str, same: Sequence[Reading]) -> str:
    count = occurrences(reading.signal for reading in same)
    notes = [f"{count} times"] if count > 1 else []
    notes += [] if same[0].known else ["in no table here"]
    return f"{name} ({', '.join(notes)})" if notes else name


def occurrences(signals: Iterable[Signal]) -> int:
    """How often something happened that these signals, all of one name, report. Lines about one device and process within a second
    are one report in several lines; another channel's report of an event is no repeat of it."""
    last: dict[tuple[object, ...], tuple[int | None, int]] = {}
    total = 0
    for signal in sorted(signals, key=event_order):
        if "witness_of" in signal.attributes:
            continue
        device = (
            signal.attributes.get("bdf") or signal.pci or signal.gpu_uuid
        )  # a port's own, where it reports another's
        about = (signal.node, device, signal.attributes.get("pid"), signal.attributes.get("link"))
        at_us, counted_there = last.get(about, (None, 0))
        soon = at_us is not None and signal.at_us is not None and signal.at_us - at_us < ONE_REPORT_US
        new = max(0, signal.count - counted_there) if soon else signal.count
        total += new
        last[about] = (signal.at_us, counted_there + new if soon else new)
    return total


def listed(items: list[str], most: int = 4) -> str:
    """Items for a sentence, the rest of a long list counted."""
    if len(items) > most:
        items = [*items[:most], f"{len(items) - most} more"]
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" and {items[-1]}"


def _uncapitalised(sentence: str) -> str:
    """A sentence that goes on after a colon; a name or an abbreviation keeps its capital."""
    first, _, _ = sentence.partition(" ")
    return sentence if first[1:] != first[1:].lower() else sentence[:1].lower() + sentence[1:]


def _reported(readings: Iterable[Reading]) -> str:
    """How often, and by which channels: "reported 3 times, seen by the kernel log and NVML". Nothing of a single plain report."""
    signals = [reading.signal for reading in readings]
    times = occurrences(signals)
    channels = sorted({name for signal in signals for name in _channels(signal)})
    seen = listed([CHANNELS.get(name, name) for name in channels]) if channels else ""
    if len(channels) == 1:  # worth saying only where another channel could have seen it too
        seen = f"{seen} only" if any("witnesses" in signal.attributes for signal in signals) else ""
    parts = (f"reported {times} times" if times > 1 else "", f"seen by {seen}" if seen else "")
    return ", ".join(part for part in parts if part)


def _channels(signal: Signal) -> list[str]:
    return [name for name in str(signal.attributes.get("witnesses") or signal.source).split(",") if name]
