"""What programs say about GPUs: NVML's errors in any tool's words, monitors' alerts, CUDA errors, and XIDs told second-hand.

A program's text never becomes an `xid`: it may be a quotation, a repetition, documentation or a decoy. An NVML error that a tool
prints is NVML's own statement and counts as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from aggregator.rules.grammar.forms import Attributes, constant, first, form, named
from aggregator.rules.grammar.reading import (
    CONTAINER,
    FULL_PCI,
    PROGRAM_LINES,
    Grammar,
    Line,
    Origin,
    Reading,
    normalise_pci,
    pci_in,
    present,
    uuid_in,
)


def _config_space(found: re.Match[str]) -> Attributes:
    """lspci reads ones from a device that does not answer."""
    address = _LSPCI.match(found.string)
    return present(stage="config_space", bdf=normalise_pci(address[0]) if address else None)


_NVML_FORMS = (
    form(
        "driver_version_mismatch",
        "version mismatch",
        r"Driver/library version mismatch|(?:driver|library|nvml).{0,40}version mismatch",
    ),
    form(
        "nvml_permission_denied",
        "insufficient permissions|no_permission",
        r"Insufficient Permissions|NVML_ERROR_NO_PERMISSION",
    ),
    form("nvml_gpu_lost", "gpu is lost|gpu_is_lost|gpu lost", r"GPU is lost|ERROR_GPU_IS_LOST|GPU lost"),
    form(
        "gpu_reset_required",
        "requires reset|reset_required|reset required",
        r"GPU requires reset|ERROR_RESET_REQUIRED|GPU.{0,20}reset required",
    ),
    form(
        "nvml_unavailable",
        "couldn't communicate|driver_not_loaded|driver not loaded|library_not_found|to initialize nvml|nvml error",
        r"couldn't communicate with the NVIDIA driver|ERROR_DRIVER_NOT_LOADED|Driver Not Loaded|ERROR_LIBRARY_NOT_FOUND|"
        r"(?:Failed|Unable) to initialize NVML|nvml error: ",
    ),
    form("module_conflict", "could not insert 'nvidia", r"could not insert 'nvidia[\w-]{0,16}':"),
    form("gpu_fallen_off_bus", "(rev ff)", r"NVIDIA.{1,80}\(rev ff\)", _config_space),
    form("gpu_count_low", "no devices were found", r"^No devices were found", lambda _: {"after": 0}),
    form("gpu_handle_error", "device handle", r"Unable to determine the device handle for (?:GPU|gpu)"),
    form(
        "nvlink_fabric_error",
        "system_not_ready|system not yet initialized|error 802",
        r"cudaErrorSystemNotReady|CUDA_ERROR_SYSTEM_NOT_READY|system not yet initialized|error 802",
    ),
)
_LSPCI = re.compile(r"(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")
_HANDLE = re.compile(r"device handle for (?:GPU|gpu)\s?([0-9A-Fa-f:.]{7,16})")

_MARGIN = re.compile(
    r"thermal margin (?P<margin>-?\d{1,4})\s?°?C?.{0,80}?(?:\((?:\w{1,20}=)(?P<limit>-?\d{1,4})\s?°?C?\))?", re.I
)
_LIMITS = (
    form("thermal_margin_violation", "thermal margin", r"thermal margin", lambda found: _margin(found.string)),
    form(
        "thermal_limit_low",
        "slowdown",
        r"(?:slowdown|shutdown) (?:temp|threshold|limit).{0,60}(?:lowered|set to|changed)",
    ),
    form(
        "thermal_violation",
        "thermal violations",
        r"Detected thermal violations totaling [\d.]{1,12} seconds(?: on(?: GPU (?P<index>\d{1,3}))?)?",
        named("index"),
    ),
    form(
        "thermal_violation",
        "dcgm_fr_thermal|gpu_temp_|temperature",
        r"DCGM_FR_THERMAL|GPU_TEMP_\w{2,40}VIOLATION|(?:gpu|memory|hbm) temperature .{0,60}(?:exceed|above|over)",
    ),
    form("power_violation", "dcgm_fr_power|power violation", r"DCGM_FR_POWER|power violation"),
)
_DCGM_ERROR = re.compile(r"\bDCGM_FR_[A-Z0-9_]{2,60}\b")
_DCGM_FAILED = re.compile(r"\bdcgmi? (?:diag|health).{0,60}\bfail", re.I)
_CUDA = re.compile(
    r"CUDA error(?: \d{1,4})?:? ?(?P<words>[\w ,'-]{3,120})|\b(?P<name>CUDA_ERROR_[A-Z_]{3,60}|cudaError[A-Z]\w{3,60})\b|"
    r"CUDA (?:driver|runtime) .{0,40}(?P<failure>fail\w{0,4}|error)|CUDA (?P<memory>out of memory)"
)

_MENTION = re.compile(
    r"(?<![A-Za-z0-9_])S?XID(?:_ERRORS?)?(?: error| code| errors)?[ \t]?[:=#]?[ \t]?\(?(?P<code>\d{1,5})(?!\d)", re.I
)
_QUOTED_LINE = re.compile(r"NVRM: Xid \((?:PCI:)?[0-9A-Fa-f:. A-Z-]{7,40}\): ?(?P<code>\d{1,6})")
_ABOUT_A_GPU = re.compile(r"\bgpus?\b|nvidia|nvrm|\bpci\b|fallen off|GPU-[0-9a-f]{8}|dcgm|health", re.I)
_NOT_A_REPORT = re.compile(
    r"^\s*(?:[$#%+]\s|[\w.-]{1,64}@[\w.-]{1,64}[:\s]\S{0,200}[$#]\s|(?:sudo|echo|printf|e?grep|rg|awk|sed|logger|journalctl|dmesg|cat|tee|curl|kubectl)\s|"
    r"(?:if|for|def|assert|return|import)\s)|"
    r"transaction|wraparound|vacuum|\bxid = |https?://|/\* |example|e\.g\.|documentation|see also|\bwhat (?:is|does)\b",
    re.I,
)
_WINDOWS_EVENT = re.compile(r"Event ?(?:ID)?:? ?(\d{1,5})", re.I)
_RESET_REFUSED = (
    form("gpu_reset_failed", "in use by", rf"^GPU {FULL_PCI}: In use by another client", constant(in_use=True)),
)
_RESET_DONE = re.compile(
    r"GPU reset executed: ?(?P<uuid>GPU-[0-9a-fA-F-]{8,40})?,? ?success: ?(?P<ok>true|false)|"
    r"GPU [0-9A-Fa-f:.]{7,16} was successfully reset"
)


def read_nvml_words(line: Line) -> Iterator[Reading]:
    """NVML's error strings and nvidia-smi's complaints, in whatever log they stand."""
    reading = first(_NVML_FORMS, line.text)
    if reading is None:
        return
    handle = _HANDLE.search(line.text)
    pci = reading.pci or (normalise_pci(handle[1].strip(":. ")) if handle else None)
    attributes = dict(reading.attributes)
    listed = attributes.pop("bdf", None)
    pci = pci or (str(listed) if listed else None)
    if line.program == CONTAINER and reading.kind in ("driver_version_mismatch", "nvml_unavailable"):
        attributes["container"] = True
    yield Reading(reading.kind, attributes, pci=pci, gpu_uuid=reading.gpu_uuid)


def _margin(text: str) -> Attributes:
    margin = _MARGIN.search(text)
    limit = re.search(r"\b(?:slowdown|shutdown|limit|threshold)\w{0,12}=(-?\d{1,4})", text)
    return present(margin_celsius=int(margin["margin"]) if margin else None, limit=int(limit[1]) if limit else None)


def read_monitors(line: Line) -> Iterator[Reading]:
    """Alerts of other monitors: DCGM's failures, temperature and power checks."""
    reading = first(_LIMITS, line.text)
    if reading is not None:
        yield reading
        return
    error = _DCGM_ERROR.search(line.text)
    if error or _DCGM_FAILED.search(line.text):
        attributes = present(text=line.text, error=error[0] if error else None, passed=False)
        yield Reading("dcgm_health", attributes, pci=pci_in(line.text), gpu_uuid=uuid_in(line.text))


def read_cuda(line: Line) -> Iterator[Reading]:
    """A program's CUDA error."""
    found = _CUDA.search(line.text)
    if found is None or line.origin is Origin.KERNEL:
        return
    error = (found["words"] or found["name"] or found["failure"] or found["memory"] or "").strip()
    yield Reading(
        "cuda_error", present(error=error, text=line.text), pci=pci_in(line.text), gpu_uuid=uuid_in(line.text)
    )


def read_secondhand(line: Line) -> Iterator[Reading]:
    """An XID that a program's text reports: kept as hearsay."""
    text = line.text
    if line.origin in (Origin.KERNEL, Origin.USERSPACE) or text.startswith("NVRM: Xid"):
        return
    quoted = _QUOTED_LINE.search(text)
    found = quoted or (_MENTION.search(text) if _ABOUT_A_GPU.search(text) else None)
    if found is None or _NOT_A_REPORT.search(text):
        return
    attributes = present(reported_code=int(found["code"]), reporter=line.program, text=text)
    yield Reading("secondhand_xid", attributes, pci=pci_in(text), gpu_uuid=uuid_in(text))


def read_windows(line: Line) -> Iterator[Reading]:
    """The Windows driver's events."""
    event = _WINDOWS_EVENT.search(line.text)
    yield Reading("nvlddmkm_event", present(event_id=int(event[1]) if event else None, text=line.text))


_POWER_SUPPLY = re.compile(
    r"power supply.{0,80}?(?<!un)(?:fail(?:ed|ure)|AC lost|input lost|lost|predictive)(?!.{0,60}(?:de-?assert|restored))|"
    r"PSU.{0,40}fail",
    re.I,
)


def read_event_log(line: Line) -> Iterator[Reading]:
    """What the board controller's event log says of the power supplies, in whatever program's words."""
    if _POWER_SUPPLY.search(line.text):
        yield Reading("host_power_event", {"text": line.text})


def read_reset(line: Line) -> Iterator[Reading]:
    """Whether a reset that somebody ran worked."""
    found = _RESET_DONE.search(line.text)
    if found is None:
        refused = first(_RESET_REFUSED, line.text)
        if refused is not None:
            yield refused
        return
    failed = (found["ok"] or "true") == "false"
    kind = "gpu_reset_failed" if failed else "gpu_reset_done"
    yield Reading(kind, {"text": line.text}, pci=pci_in(line.text), gpu_uuid=uuid_in(line.text))


GRAMMARS = (
    Grammar(
        "nvml_words",
        (
            "version mismatch",
            "insufficient permissions",
            "no_permission",
            "gpu is lost",
            "gpu_is_lost",
            "gpu lost",
            "requires reset",
            "reset_required",
            "reset required",
            "nvidia driver",
            "error_driver_not",
            "error_library_not",
            "initialize nvml",
            "nvml error",
            "driver not loaded",
            "could not insert 'nvidia",
            "(rev ff)",
            "no devices were found",
            "handle for gpu",
            "cuda",
            "error 802",
        ),
        read_nvml_words,
        PROGRAM_LINES,
    ),
    Grammar(
        "monitors",
        (
            "thermal margin",
            "thermal violations",
            "dcgm",
            "gpu_temp_",
            "gpu temperature",
            "hbm temperature",
            "memory temperature",
            "power violation",
            "slowdown",
        ),
        read_monitors,
        PROGRAM_LINES,
    ),
    Grammar("cuda", ("cuda",), read_cuda, PROGRAM_LINES),
    Grammar("secondhand", ("xid",), read_secondhand, PROGRAM_LINES),
    Grammar("windows", ("nvlddmkm",), read_windows, PROGRAM_LINES),
    Grammar("event_log", ("power supply", "psu"), read_event_log, (Origin.PROGRAM,)),
    Grammar("reset", ("gpu reset executed", "successfully reset", "gpu 0000"), read_reset, PROGRAM_LINES),
)
