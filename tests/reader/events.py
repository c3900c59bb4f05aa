"""Structured kernel events, and how each supported log format prints one: what the round trip tests generate from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from hypothesis import strategies as st

HOST = "gpu-node-07"


@dataclass(frozen=True)
class Event:
    """What must come back."""

    name: str  # kind and code
    pci: str
    mig: str | None
    message: str


pcis = st.builds("{:04x}:{:02x}:{:02x}".format, st.integers(0, 0x1F), st.integers(0, 0xFF), st.integers(0, 0x1F))
names = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:[]", min_size=1, max_size=15)
processes = st.one_of(
    st.just(""),
    st.just("pid='<unknown>', name=<unknown>, "),
    st.builds("pid={}, name={}, ".format, st.integers(1, 4_000_000), names),
)
texts = st.sampled_from(
    (
        "GPU has fallen off the bus.",
        "Ch 00000018",
        "Graphics SM Warp Exception on (GPC 7, TPC 7, SM 0): Illegal Instruction Parameter",
        "NVLink: fatal error detected on link 14(0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0)",
        "Timeout after 45s of waiting for RPC response from GPU4 GSP! Expected function 76 (GSP_RM_CONTROL) (0x20801702 0x4).",
        "future driver detail: 79 of 100%, \\ \"quoted\" µs",
    )
)  # fmt: skip


@st.composite
def xids(draw: st.DrawFn) -> Event:
    """Any XID in the current form, MIG instances included."""
    pci, code, text = draw(pcis), draw(st.integers(1, 999)), draw(texts)
    mig = draw(st.one_of(st.none(), st.tuples(st.integers(0, 14), st.one_of(st.none(), st.integers(0, 7)))))
    where = ""
    if mig is not None:
        where = f" GPU-I:{mig[0]:02d}" + ("" if mig[1] is None else f" GPU-CI:{mig[1]:02d}")
    message = f"NVRM: Xid (PCI:{pci}{where}): {code}, {draw(processes)}{text}"
    instance = None if mig is None else str(mig[0]) + ("" if mig[1] is None else f"/{mig[1]}")
    return Event(f"xid {code}", f"{pci}.0", instance, message)


@st.composite
def sxids(draw: st.DrawFn) -> Event:
    """Any SXid, with or without a link."""
    pci, code = draw(pcis), draw(st.integers(10_000, 29_999))
    link = draw(st.one_of(st.just(""), st.builds("Link {:02d} ".format, st.integers(0, 63))))
    severity = draw(st.sampled_from(("Fatal, ", "Non-fatal, ")))
    message = (
        f"nvidia-nvswitch{draw(st.integers(0, 5))}: SXid (PCI:{pci}.0): {code:05d}, {severity}{link}some unit failed"
    )
    return Event(f"sxid {code}", f"{pci}.0", None, message)


events = st.one_of(xids(), sxids())
micros = st.integers(1_500_000_000_000_000, 1_790_000_000_000_000)


def _when(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).replace(microsecond=at_us % 1_000_000)


def _uptime(at_us: int) -> str:
    """Kernel time: any will do."""
    return f"{at_us // 1_000_000 % 10_000_000:5d}.{at_us % 1_000_000:06d}"


def _iso(at_us: int) -> str:
    return _when(at_us).strftime("%Y-%m-%dT%H:%M:%S")


def _micro(at_us: int) -> str:
    return f"{at_us % 1_000_000:06d}"


def _escaped(message: str) -> str:
    out = []
    for character in message:
        if character == "\\" or ord(character) > 126:
            out += [f"\\x{byte:02x}" for byte in character.encode()]
        else:
            out.append(character)
    return "".join(out)


@dataclass(frozen=True)
class Format:
    """How a log prints a message; `precision_us` of its wall time, 0 where it has none."""

    render: Callable[[str, int], str]
    precision_us: int = 0


def _journal(message: str, at: int) -> str:
    fields = {
        "_TRANSPORT": "kernel",
        "MESSAGE": message,
        "__REALTIME_TIMESTAMP": str(at),
        "_HOSTNAME": HOST,
        "PRIORITY": "4",
    }
    return json.dumps(fields)


def _journal_bytes(message: str, at: int) -> str:
    return json.dumps({"_TRANSPORT": "kernel", "MESSAGE": list(message.encode()), "__REALTIME_TIMESTAMP": str(at)})


def _dmesg_json(message: str, at: int) -> str:
    text = json.dumps(message)
    return f'{{\n   "dmesg": [\n      {{\n         "pri": 4,\n         "time": {_uptime(at)},\n         "msg": {text}\n      }}\n   ]\n}}'


def _dmesg_json_decoded(message: str, at: int) -> str:
    text = json.dumps(message)
    return f'      {{\n         "fac": "kern",\n         "pri": "warn",\n         "time": {_uptime(at)},\n         "msg": {text}\n      }},{{'


def _dmesg_json_list(message: str, at: int) -> str:
    noise = '{"pri":6,"time":1.5,"msg":"usb 1-1: new device {{[["}'
    record = json.dumps({"pri": 4, "time": float(_uptime(at)), "msg": message}, separators=(",", ":"))
    return f'{{"dmesg":[{noise},{record},{noise}]}}'


def _journal_pretty(message: str, at: int) -> str:
    fields = {
        "_BOOT_ID": "b",
        "__REALTIME_TIMESTAMP": str(at),
        "MESSAGE": message,
        "_TRANSPORT": "kernel",
        "PRIORITY": "4",
    }
    return json.dumps(fields, indent=8).replace('": ', '" : ')


def _journal_jq(message: str, at: int) -> str:
    fields = {"MESSAGE": message, "_TRANSPORT": "kernel", "__REALTIME_TIMESTAMP": str(at), "_HOSTNAME": HOST}
    return json.dumps(fields, indent=2, sort_keys=True)


FORMATS: dict[str, Format] = {
    "bare": Format(lambda m, at: m),
    "kmsg": Format(lambda m, at: f"4,1227,{at % 10**13},-;{_escaped(m)}"),
    "kmsg with more fields": Format(lambda m, at: f"4,1227,{at % 10**13},c,caller=T77;{_escaped(m)}"),
    "dmesg": Format(lambda m, at: f"[{_uptime(at)}] {m}"),
    "dmesg with caller": Format(lambda m, at: f"[{_uptime(at)}][ T1234] {m}"),
    "dmesg delta": Format(lambda m, at: f"[{_uptime(at)} <    0.000123>] {m}"),
    "dmesg -T": Format(lambda m, at: f"[{_when(at).strftime('%a %b %e %H:%M:%S %Y')}] {m}", 1_000_000),
    "dmesg iso": Format(lambda m, at: f"{_iso(at)},{_micro(at)}+00:00 {m}", 1),
    "dmesg -x": Format(lambda m, at: f"kern  :warn  : [{_uptime(at)}] {m}"),
    "dmesg -x iso": Format(lambda m, at: f"kern  :err   : {_iso(at)},{_micro(at)}+00:00 {m}", 1),
    "dmesg -H": Format(lambda m, at: f"[  +0.000123] {m}"),
    "dmesg --raw": Format(lambda m, at: f"<4>[{_uptime(at)}] {m}"),
    "dmesg -J": Format(_dmesg_json),
    "dmesg -J -x": Format(_dmesg_json_decoded),
    "dmesg -J in one line": Format(_dmesg_json_list),
    "journalctl json-pretty": Format(_journal_pretty, 1),
    "journalctl json through jq": Format(_journal_jq, 1),
    "journalctl short": Format(lambda m, at: f"{_when(at).strftime('%b %d %H:%M:%S')} {HOST} kernel: {m}"),
    "journalctl short-iso": Format(lambda m, at: f"{_iso(at)}+0000 {HOST} kernel: {m}", 1_000_000),
    "journalctl short-precise": Format(
        lambda m, at: f"{_when(at).strftime('%b %d %H:%M:%S')}.{_micro(at)} {HOST} kernel: {m}"
    ),
    "journalctl short-unix": Format(lambda m, at: f"{at // 1_000_000}.{_micro(at)} {HOST} kernel: {m}", 1),
    "journalctl short-monotonic": Format(lambda m, at: f"[{_uptime(at)}] {HOST} kernel: {m}"),
    "journalctl short-full": Format(
        lambda m, at: f"{_when(at).strftime('%a %Y-%m-%d %H:%M:%S')} UTC {HOST} kernel: {m}", 1_000_000
    ),
    "journalctl json": Format(_journal, 1),
    "journalctl json, bytes": Format(_journal_bytes, 1),
    "kern.log": Format(lambda m, at: f"{_when(at).strftime('%b %e %H:%M:%S')} {HOST} kernel: [{_uptime(at)}] {m}"),
    "rsyslog, new style": Format(lambda m, at: f"{_iso(at)}.{_micro(at)}+00:00 {HOST} kernel: [{_uptime(at)}] {m}", 1),
    "RFC 3164": Format(lambda m, at: f"<4>{_when(at).strftime('%b %e %H:%M:%S')} {HOST} kernel: {m}"),
    "RFC 5424": Format(lambda m, at: f"<4>1 {_iso(at)}.{_micro(at)}Z {HOST} kernel - - - {m}", 1),
    "RFC 5424 with data": Format(lambda m, at: f'<4>1 {_iso(at)}Z {HOST} kernel - - [x@1 a="b"] {m}', 1_000_000),
    "RFC 5424 without priority": Format(lambda m, at: f"1 {_iso(at)}.{_micro(at)}Z {HOST} kernel - - - {m}", 1),
    "stern": Format(lambda m, at: f"dmesg-x7k reader [{_uptime(at)}] {m}"),
    "CRI": Format(lambda m, at: f"{_iso(at)}.{_micro(at)}000Z stdout F [{_uptime(at)}] {m}", 1),
    "Docker json-file": Format(
        lambda m, at: json.dumps({"log": m + "\n", "stream": "stdout", "time": f"{_iso(at)}.{_micro(at)}Z"}), 1
    ),
    "kubectl logs --timestamps": Format(lambda m, at: f"{_iso(at)}.{_micro(at)}Z {m}", 1),
    "kubectl logs --prefix": Format(lambda m, at: f"[pod/dmesg-x7k/reader] [{_uptime(at)}] {m}"),
    "docker compose": Format(lambda m, at: f"dmesg-1  | [{_uptime(at)}] {m}"),
    "kernel tag alone": Format(lambda m, at: f"kernel: [{_uptime(at)}] {m}"),
    "Cloud logging": Format(lambda m, at: json.dumps({"textPayload": m, "timestamp": f"{_iso(at)}.{_micro(at)}Z"}), 1),
}

DRESSES: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "quoted": lambda text: "\n".join(f"> {line}" for line in text.split("\n")),
    "quoted twice": lambda text: "\n".join(f"> > {line}" for line in text.split("\n")),
    "coloured like dmesg": lambda text: text.replace("NVRM: ", "\x1b[33mNVRM: \x1b[0m\x1b[1m\x1b[31m"),
    "coloured": lambda text: "\n".join(f"\x1b[32m{line}\x1b[0m" for line in text.split("\n")),
    "CRLF": lambda text: text.replace("\n", "\r\n") + "\r",
    "fenced": lambda text: f"```\n{text}\n```",
    "indented": lambda text: "\n".join(f"    {line}" for line in text.split("\n")),
}
