"""What the NVIDIA kernel driver says without a number: presence, start, firmware, power state, asserts, identity.

Each rule is one form of the driver's message, tried in order; a line that fits none is kept as `driver_message`, with the worst
word in it, unless it is one of the driver's harmless banners.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from aggregator.rules.grammar.forms import Attributes, constant, first, form
from aggregator.rules.grammar.reading import (
    FULL_PCI,
    UUID,
    Grammar,
    Line,
    Reading,
    normalise_pci,
    normalise_uuid,
    pci_in,
    present,
    worst_word,
)


def _adapter(found: re.Match[str]) -> Attributes:
    minor = found.groupdict().get("minor")
    return present(stage="adapter", rm_status=found.groupdict().get("status"), minor=int(minor) if minor else None)


def _gsp(found: re.Match[str]) -> Attributes:
    text = found.string
    function = re.search(r"function (\d{1,5})", text)
    waited = re.search(r"after (\d{1,5})s", text)
    instance = re.search(r"\bGPU(\d{1,3})\b", text)
    return present(
        rpc_function=int(function[1]) if function else None,
        timeout_seconds=int(waited[1]) if waited else None,
        instance=int(instance[1]) if instance else None,
        rate_limited=True if "Rate limiting" in text else None,
    )


def _assert(found: re.Match[str]) -> Attributes:
    status = re.search(r"\b(NV_ERR_\w{2,60})", found.string)
    return present(status=status[1] if status else None)


def _link(found: re.Match[str]) -> Attributes:
    link = re.search(r"\blink[ #:]{0,2}(\d{1,3})\b", found.string, re.I)
    return present(link=int(link[1]) if link else None)


def _fallen(found: re.Match[str]) -> Attributes:
    device = re.search(r"PCI ID: ([0-9a-f]{4}:[0-9a-f]{4})", found.string, re.I)
    return present(stage="probe" if device else "runtime", vendor_device=device[1].lower() if device else None)


def _versions(found: re.Match[str]) -> Attributes:
    client, module = ((part or "").rstrip(".,") for part in found.groups())
    return present(library_version=client, kernel_version=module)


_FORMS = (
    form("gpu_fallen_off_bus", "fallen off the bus", "", _fallen),
    form(
        "gpu_init_failure",
        "rminitadapter failed",
        r"RmInitAdapter failed!? ?(?:\((?P<status>0x[0-9a-f]+:0x[0-9a-f]+(?::\d+)?)\))?",
        _adapter,
    ),
    form(
        "gpu_init_failure",
        "rm_init_adapter",
        r"rm_init_adapter failed(?:.{0,60}?minor number:? ?(?P<minor>\d+))?",
        _adapter,
    ),
    form(
        "gpu_init_failure",
        "probe routine failed|devices were initialized|adapters were initialized",
        "",
        constant(stage="probe"),
    ),
    form("gpu_init_failure", "firmware image", r"No firmware image found", constant(stage="firmware_file")),
    form(
        "gpu_init_failure",
        "gsp|gfw",
        r"cannot bootstrap|Cannot initialize GSP|_kgspBootGspRm|Gfw_?Boot|GSP firmware.{0,60}(?:fail|not found|unable)|"
        r"failed to (?:load|wait for|boot).{0,40}(?:GSP|GFW)",
        constant(stage="gsp_firmware"),
    ),
    form(
        "pci_config_failure",
        "pci i/o region|bar|misconfigured",
        r"I/O region assigned.{0,60}invalid|BAR\d? is 0M|"
        r"(?:map|enough|assign|claim).{0,40}\bBAR|misconfigured|BAR\d?.{0,40}not assigned",
    ),
    form(
        "driver_version_mismatch",
        "api mismatch",
        r"API mismatch(?::.{0,80}?version:? (?P<client>[\d.]{3,20}).{0,160}?module.{0,20}?version:? (?P<module>[\d.]{3,20}))?",
        _versions,
    ),
    form(
        "unsupported_gpu",
        "support|open kernel|legacy nvidia|only ready",
        r"not supported by|requires use of the NVIDIA open kernel|legacy NVIDIA driver|nvidia\.ko is only ready",
    ),
    form("module_conflict", "another driver|nouveau|conflicting|probe routine was not called"),
    form("gpu_reset_required", "rate limiting gsp rpc", "", _gsp),
    form("gsp_heartbeat_timeout", "heartbeat|heart beat", r"heart ?beat.{0,60}(?:time|stopp|lost|fail)", _gsp),
    form("rc_watchdog", "rc watchdog|krcwatchdog"),
    form("pmu_halt", "pmu", r"PMU.{0,40}(?:HALT|breakpoint)|HALT.{0,20}PMU"),
    form("gsp_error", "gsp", r"GSP.?CrashCat|GSP.{0,30}(?:crash|exception|panic|fault)|kgspHealthCheck", _gsp),
    form(
        "gsp_rpc_timeout",
        "rpc",
        r"rpcRecvPoll.{0,20}timed? ?out|waiting for RPC response|kgspRpcRecvPoll|GSP RPC.{0,40}time",
        _gsp,
    ),
    form(
        "nvlink_link_training_failed",
        "link",
        r"(?:postRxDetLink|RxDetect?Link|Rx Detect Link).{0,80}fail|nvlink.{0,80}train\w*.{0,40}(?:fail|error)|"
        r"(?:failed to train|training failed).{0,80}link",
        _link,
    ),
    form(
        "nvlink_fabric_error",
        "fabric|nvlink",
        r"(?:fabric|nvlink).{0,80}(?:probe|register|state|domain).{0,60}(?:fail|error|time)",
        _link,
    ),
    form("power_violation", "power", r"auxiliary power|power (?:cable|connector|supply)|insufficient power"),
    form("fan_failure", "fan", r"\bfan\b.{0,40}(?:fail|error|stopp|stuck)"),
    form(
        "thermal_violation",
        "temperature|thermal|overheat",
        r"over-?temperature|thermal (?:shutdown|event|limit)|overheat|temperature.{0,30}exceed",
    ),
    form("gpu_reset_failed", "reset", r"failed to reset|reset.{0,30}fail|unable to reset"),
    form("gpu_reset_required", "reset", r"(?:needs|requires?|required) (?:to be |a )?(?:gpu )?reset|reset required"),
    form(
        "ecc_uncorrectable", "uncorrectable|double|dbe", r"uncorrectable (?:ECC|memory|DRAM|SRAM)|double.?bit|\bDBE\b"
    ),
    form("row_remap_failure", "remapper", r"Remapper:?.{0,120}(?:fail|full|reserved row)"),
    form("row_remap_pending", "remapper", r"Remapper:?.{0,120}(?:pending|marked)"),
    form(
        "driver_assert",
        "assert|check|nv_err_gpu_is_lost|gpu lost|gpulost|bad register read|sanity",
        r"nvAssert|Assertion failed|nvCheck\w*Failed|Check failed:|NV_ERR_GPU_IS_LOST|GPU lost|osHandleGpuLost|"
        r"SanityCheckRegRead|bad register read",
        _assert,
    ),
    form("imex_error", "imex", r"\bimex\b.{0,80}(?:fail|error|timed? ?out)"),
)

_IDENTITY = re.compile(rf"GPU at (?:PCI:)?({FULL_PCI}): ({UUID})")
_SERIAL = re.compile(r"(?:GPU Board Serial Number: ?|GPU ([0-9a-fA-F:.]{7,16}): GPU serial number is )([0-9]{5,20})")
_BANNER = re.compile(r"loading NVIDIA UNIX.{0,80}?\s(\d{3}\.\d{1,3}(?:\.\d{1,3})?)\b")
_UNLOADED = re.compile(r"nvidia-modeset: Unloading|nvidia-nvlink: Unregistered (?:the )?Nvlink Core")
_DEVICE_LINE = re.compile(rf"nvidia ({FULL_PCI}): (.{{1,400}})", re.S)
_POWER_STATE = re.compile(r"Unable to change power state|can't change power state|refused to change power state", re.I)
_RPC_TABLE = re.compile(
    r"\s*(?:entry function|-?\d+ {2,}\d+ |GPU\d{0,3} (?:GSP RPC buffer|RPC (?:history|event)|GSP RPC history))"
)
_HARMLESS = re.compile(
    r"(?:kernel tainted|VGA|Persistence mode|objects? leaked|PAT (?:configuration|is)|using the|loading|nvidia_p2p|"
    r"GPU at|GPU Board|os_schedule|faulting|A GPU crash dump|nvidia-bug-report|Enabling|.{0,40}freed|.{0,60}nvidia-persistenced)",
    re.I,
)
_FIRMWARE_FILE = re.compile(r"Direct firmware load for (nvidia/\S{1,100}) failed with error (-\d{1,4})")
_MODULE_ERROR = re.compile(
    r"nvidia-modeset: ERROR:|nvidia-uvm: .{0,120}(?:fatal error|RC error|global fatal|error state)", re.I
)
_MODULE = re.compile(
    r"nvidia(?:[_-]\w{1,16})?: (?:version magic|disagrees about version|Unknown symbol|"
    r"loading out-of-tree module .*fail|Key was rejected)",
)


def read_nvrm(line: Line) -> Iterator[Reading]:
    """A message with the driver's own prefix that is no XID."""
    if not line.text.startswith("NVRM:") or line.text.startswith("NVRM: Xid"):
        return
    text = line.text[5:].lstrip()
    identity = _identity(text)
    if identity is not None:
        yield identity
        return
    banner = _BANNER.match(text)
    if banner:
        yield Reading("driver_loaded", {"driver_version": banner[1]})
        return
    if _RPC_TABLE.match(text):
        return
    reading = first(_FORMS, text)
    if reading is not None:
        yield reading
        return
    if not _HARMLESS.match(text):
        yield Reading("driver_message", {"text": text, "words": worst_word(text)}, pci=pci_in(text))


def _identity(text: str) -> Reading | None:
    named = _IDENTITY.match(text)
    if named:
        return Reading("gpu_identity", {}, pci=normalise_pci(named[1]), gpu_uuid=normalise_uuid(named[2]))
    serial = _SERIAL.match(text)
    if serial:
        return Reading("gpu_identity", {"serial": serial[2]}, pci=normalise_pci(serial[1] or ""))
    return None


def read_nvidia_modules(line: Line) -> Iterator[Reading]:
    """The driver's other modules, and what the kernel says in the name of a GPU's device."""
    text = line.text
    device = _DEVICE_LINE.match(text)
    if device and _POWER_STATE.search(device[2]):
        attributes = {"device": "gpu", "text": device[2]}
        yield Reading("pci_power_state_failure", attributes, pci=normalise_pci(device[1]))
    elif device and (missing := _FIRMWARE_FILE.search(device[2])):
        attributes = {"stage": "firmware_file", "text": device[2], "file": missing[1]}
        yield Reading("gpu_init_failure", attributes, pci=normalise_pci(device[1]))
    elif _UNLOADED.match(text):
        yield Reading("driver_unloaded")
    elif _MODULE_ERROR.match(text):
        yield Reading("driver_message", {"text": text, "words": "error"})
    elif _MODULE.match(text):
        yield Reading("module_conflict", {"text": text})
    elif text.startswith("nvidia-nvlink:") and worst_word(text) == "error":
        yield Reading("nvlink_fabric_error", {"text": text}, pci=pci_in(text))


GRAMMARS = (
    Grammar("nvrm", ("nvrm:",), read_nvrm),
    Grammar("nvidia_modules", ("nvidia 0", "nvidia-", "nvidia:", "nvidia_"), read_nvidia_modules),
)
