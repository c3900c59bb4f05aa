"""The host around the GPUs: memory, processors, lockups, stuck tasks, disks, power, boot and shutdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aggregator.rules.grammar.forms import Attributes, constant, first, form, named
from aggregator.rules.grammar.reading import FULL_PCI, Grammar, Line, Reading, present

_NVIDIA_TASK = re.compile(r"^(?:nvidia|nv-|nv_|nvc|cuda|dcgm|nv\d)|gpud|cache_mgr", re.I)


def _task(found: re.Match[str]) -> Attributes:
    groups = found.groupdict()
    name = groups.get("process") or ""
    return present(
        process=name,
        pid=int(groups["pid"]) if groups.get("pid") else None,
        seconds=int(groups["seconds"]) if groups.get("seconds") else None,
        cpu=int(groups["cpu"]) if groups.get("cpu") else None,
        in_nvidia=True if _NVIDIA_TASK.match(name) else None,
    )


def _out_of_memory(found: re.Match[str]) -> Attributes:
    return _task(found) | present(cgroup=True if found.string.lower().startswith("memory cgroup") else None)


def _edac(found: re.Match[str]) -> Attributes:
    return present(location=found["location"].strip() if found["location"] else None)


def _machine_check(found: re.Match[str]) -> Attributes:
    """An exception stops the kernel; events that are only logged were corrected."""
    what = (found["what"] or "").strip().lower()
    return present(severity={"exception": "fatal", "events logged": "corrected"}.get(what))


_FORMS = (
    form(
        "hung_task",
        "blocked for more than",
        r"task (?P<process>.{1,64}?):(?P<pid>\d{1,10}) blocked (?:in I/O wait )?for more than (?P<seconds>\d{1,7}) seconds",
        _task,
    ),
    form(
        "soft_lockup",
        "soft lockup",
        r"soft lockup - CPU#(?P<cpu>\d{1,5}) stuck for (?P<seconds>\d{1,6})s!? ?"
        r"(?:\[(?P<process>[^\]]{1,64}?):(?P<pid>\d{1,10})\])?",
        _task,
    ),
    form("hard_lockup", "hard lockup", r"hard lockup on cpu (?P<cpu>\d{1,5})|hard lockup", named("cpu")),
    form("rcu_stall", "rcu", r"rcu.{0,40}(?:detected stalls?|self-detected stall|stall)|rcu: .{0,30}kthread starved"),
    form(
        "oom_kill",
        "killed process",
        r"(?:out of memory|oom).{0,40}Killed process (?P<pid>\d{1,10})(?:,? \((?P<process>[^)]{1,64})\))?",
        _out_of_memory,
    ),
    form(
        "host_memory_ue",
        "edac",
        r"EDAC \S{1,40}: (?P<count>\d{1,9}) UE\b(?: .{0,80}? on (?P<location>\S{1,80}))?",
        _edac,
    ),
    form(
        "host_memory_ce",
        "edac",
        r"EDAC \S{1,40}: (?P<count>\d{1,9}) CE\b(?: .{0,80}? on (?P<location>\S{1,80}))?",
        _edac,
    ),
    form("host_memory_ue", "memory failure", r"Memory failure: (?P<location>0x[0-9a-f]{1,16})?", _edac),
    form(
        "host_memory_ue",
        "hardware memory error|uncorrected hardware",
        r"Uncorrected hardware memory error|Hardware memory error.{0,40}poison",
    ),
    form(
        "host_thermal",
        "temperature above threshold|critical temperature",
        r"critical temperature reached|(?:CPU\d{0,5}|Core|Package).{0,40}temperature above threshold",
    ),
    form(
        "host_machine_check",
        "event severity",
        r"\[Hardware Error\]:\s{0,8}event severity: (?P<severity>fatal|recoverable|corrected|info)",
        named(),
    ),
    form(
        "host_machine_check",
        "section_type",
        r"\[Hardware Error\]:\s{0,8}(?:Error \d+, type|section_type): (?P<component>[\w /-]{1,60})",
        named(),
    ),
    form(
        "host_machine_check",
        "vendor_id",
        r"\[Hardware Error\]:\s{0,8}vendor_id: 0x(?P<vendor>[0-9a-f]{4})\b",
        named(),
    ),
    form(
        "host_machine_check",
        "device_id",
        rf"\[Hardware Error\]:\s{{0,8}}device_id: (?P<bdf>{FULL_PCI})",
        named(),
    ),
    form(
        "host_machine_check",
        "machine check|mce:",
        r"mce: \[Hardware Error\]: (?:CPU \d+: )?Machine check(?P<what> Exception| events logged|: \d)?",
        _machine_check,
    ),
    form("kernel_panic", "kernel panic", r"Kernel panic - not syncing"),
    form(
        "kernel_panic",
        "oops|unable to handle|general protection",
        r"^(?:BUG: unable to handle|Oops: |general protection fault|Internal error: Oops)",
    ),
    form(
        "io_error",
        "i/o error",
        r"(?:blk_update_request: )?(?:critical )?I/O error,? dev (?P<device>\w{1,20})|Buffer I/O error on dev",
        named(),
    ),
    form(
        "io_error",
        "nvme",
        r"(?P<device>nvme\d{1,4}): "
        r"(?:I/O .{0,60}timeout|controller is down|Device not ready|Removing after probe failure|"
        r".{0,60}(?:reset failed|Abort status))",
        named(),
    ),
    form(
        "io_error",
        "ext4-fs error|xfs|read-only|btrfs",
        r"EXT4-fs error|Remounting filesystem read-only|BTRFS.{0,40}error|"
        r"XFS \([\w-]{1,30}\): "
        r".{0,60}(?:corruption|shut(?:ting)? ?down|metadata I/O error)",
    ),
    form(
        "io_error",
        "failed command|hard resetting link",
        r"ata\d{1,3}(?:\.\d\d)?: (?:failed command|hard resetting link)",
    ),
    form(
        "host_power_event",
        "power",
        r"power supply.{0,60}(?:fail|lost|absent|predictive)|power.?(?:loss|failure|lost|fail)\b|"
        r"PSU.{0,40}fail|AC lost(?!.{0,40}de-?assert)",
    ),
    form(
        "host_shutdown",
        "restarting system|power down|systemd-shutdown|resetting",
        r"^(?:reboot: |systemd-shutdown|sysrq: Resetting|ACPI: PM: Preparing to enter system sleep state S5)",
    ),
    form("kernel_boot", "linux version", r"^Linux version \d"),
    form(
        "rate_limited",
        "callbacks suppressed|suppressed",
        r"(?P<count>\d{1,10}) callbacks suppressed|Suppressed (?P<more>\d{1,10}) messages",
        constant(),
    ),
)
_SUPPRESSED = re.compile(r"(\d{1,10}) callbacks suppressed|Suppressed (\d{1,10}) messages")
_COUNT = re.compile(r"EDAC \S{1,40}: (\d{1,9}) [UC]E\b")
_TRACE_IN_DRIVER = re.compile(r"RIP: \S{1,10}:(?P<function>\S{1,80}) \[(?P<module>nvidia\w{0,16}|nvidia-\w{1,16})\]")


def read_host(line: Line) -> Iterator[Reading]:
    """What happened to the host."""
    reading = first(_FORMS, line.text)
    if reading is None:
        return
    count = _COUNT.search(line.text) or _SUPPRESSED.search(line.text)
    number = next((int(part) for part in count.groups() if part), 1) if count else 1
    yield Reading(reading.kind, dict(reading.attributes), count=max(number, 1))


def read_trace(line: Line) -> Iterator[Reading]:
    """A kernel crash trace whose failing function belongs to the NVIDIA driver."""
    found = _TRACE_IN_DRIVER.search(line.text)
    if found:
        yield Reading("kernel_panic", {"module": found["module"], "text": line.text})


GRAMMARS = (
    Grammar(
        "host",
        (
            "blocked for more than",
            "lockup",
            "rcu",
            "killed process",
            "edac",
            "memory failure",
            "hardware memory error",
            "temperature above threshold",
            "critical temperature",
            "[hardware error]",
            "kernel panic",
            "unable to handle",
            "oops",
            "general protection",
            "i/o error",
            "nvme",
            "ext4-fs error",
            "xfs (",
            "failed command",
            "hard resetting link",
            "power",
            "reboot:",
            "linux version",
            "suppressed",
        ),
        read_host,
    ),
    Grammar("trace", ("[nvidia",), read_trace),
)
