"""Network adapters, RDMA, NCCL and nvidia-peermem: trouble beside the GPUs that looks like theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aggregator.rules.grammar.reading import FULL_PCI, PROGRAM_LINES, Grammar, Line, Reading, normalise_pci, present

_NIC = re.compile(
    r"(?:mlx5_core|mlx4_core|mlx5_\w{1,40}|mlx5e\w{0,30}|bnxt_en|ice|i40e|efa|irdma|ena)"
    rf" ?(?P<bdf>{FULL_PCI})?(?P<text>.{{1,600}})",
    re.S,
)
_EVENTS = (
    ("insufficient_power", re.compile(r"insufficient power", re.I)),
    ("high_temperature", re.compile(r"high temperature|temperature.{0,40}(?:exceed|warning|threshold)", re.I)),
    (
        "health",
        re.compile(
            r"health|assert_(?:var|exit|callra)|"
            r"fatal error|sensors? fail|device.{0,20}(?:lost|removed)|wait_func|poll_health|fw_reset|unrecoverable",
            re.I,
        ),
    ),
    (
        "command_failed",
        re.compile(
            r"cmd_out_err|cmd_check|command failed|timeout.{0,40}(?:command|cmd)|ACCESS_REG|wait_func_handle|bad resource",
            re.I,
        ),
    ),
    (
        "link_down",
        re.compile(
            r"link (?:is )?down|port.{0,20}(?:down|module event.{0,40}(?:error|unplug))|cable (?:error|unplugged)", re.I
        ),
    ),
    ("firmware", re.compile(r"firmware.{0,60}(?:fail|error|reset)|fw.{0,20}(?:fail|error|reset)", re.I)),
    ("other", re.compile(r"tx timeout|TX timeout|err(?:or)?\b|failed|timeout", re.I)),
)
_NETDEV = re.compile(r"NETDEV WATCHDOG: |(?:eth|en|ib|rdma)\w{1,20}: (?:NIC )?Link is Down", re.I)
_IB_PORT = re.compile(
    r"(?:infiniband|ib\d{1,3}|mlx[45]_\d{1,3}).{0,60}"
    r"(?:port \d{1,2}.{0,40}(?:down|disabled|error state)|State: (?:Down|Initializing))|"
    r"Port \d{1,2} link_layer.{0,40}down|Physical state: (?:Disabled|Polling)",
    re.I,
)
_SEGFAULT = re.compile(
    r"(?P<process>[^\s\[][^\[\n]{0,63}?)\[(?P<pid>\d{1,10})\]: segfault at .{0,160}? in (?P<library>[\w.+-]{1,80})"
)
_TRAP = re.compile(
    r"traps: (?P<process>[^\[\n]{1,64}?)\[(?P<pid>\d{1,10})\] (?:general protection|trap).{0,160}? in (?P<library>[\w.+-]{1,80})"
)
_PEERMEM = re.compile(
    r"nv(?:idia)?[-_]peer[-_]?mem\S{0,10}.{0,160}(?:error|invalid|fail|skipping)|nv_get_p2p_free_callback", re.I
)
_NCCL = re.compile(
    r"\bNCCL (?:WARN|ERROR)\b|ncclUnhandledCudaError|ncclSystemError|ncclRemoteError|ncclInternalError|"
    r"NCCL.{0,40}(?:timeout|timed out|communicator was aborted)|Watchdog caught collective operation timeout",
    re.I,
)
_NCCL_HARMLESS = re.compile(
    r"NCCL WARN (?:NCCL_|Missing|Failed to open libibverbs|MSCCL|Could not find|OFI|NET/OFI)|plugin", re.I
)


def read_nic(line: Line) -> Iterator[Reading]:
    """A network adapter's trouble. PCIe errors in its name are read by the PCIe grammar."""
    text = line.text
    found = _NIC.match(text)
    if found is None:
        if _IB_PORT.search(text):
            yield Reading("infiniband_port_down", {"text": text})
        elif _NETDEV.match(text):
            yield Reading("nic_event", {"event": "link_down", "text": text})
        return
    if "PCIe Bus Error" in text or "AER:" in text or "available PCIe bandwidth" in text:
        return
    event = next((name for name, pattern in _EVENTS if pattern.search(text)), None)
    if event is not None:
        bdf = normalise_pci(found["bdf"]) if found["bdf"] else None
        yield Reading("nic_event", present(event=event, bdf=bdf, text=text))


def read_crash(line: Line) -> Iterator[Reading]:
    """A process that crashed inside NCCL, CUDA or the driver's user libraries."""
    found = _SEGFAULT.match(line.text) or _TRAP.match(line.text)
    if found is None:
        return
    library = found["library"].lower()
    if "nccl" in library:
        kind = "nccl_segfault"
    elif any(name in library for name in ("libcuda", "libcud", "libnvidia", "libcublas", "libtorch_cuda", "libnv")):
        kind = "app_segfault"
    else:
        return
    yield Reading(kind, {"process": found["process"].strip(), "pid": int(found["pid"]), "library": found["library"]})


def read_peermem(line: Line) -> Iterator[Reading]:
    """nvidia-peermem's complaints."""
    if _PEERMEM.search(line.text):
        yield Reading("peermem_error", {"text": line.text})


def read_nccl(line: Line) -> Iterator[Reading]:
    """NCCL's own words in a program's log."""
    if _NCCL.search(line.text) and not _NCCL_HARMLESS.search(line.text):
        yield Reading("nccl_error", {"text": line.text})


GRAMMARS = (
    Grammar(
        "nic",
        ("mlx", "bnxt", "netdev watchdog", "link is down"),
        read_nic,
    ),
    Grammar("crash", ("segfault at", "general protection"), read_crash),
    Grammar("peermem", ("nvidia-peermem", "nv_peer_mem", "nv_get_p2p"), read_peermem),
    Grammar("nccl", ("nccl", "watchdog caught"), read_nccl, PROGRAM_LINES),
)
