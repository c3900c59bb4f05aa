"""Takes a message out of its log's dress: prefix, time, host, container wrapping, quotes, colours.

Formats are told apart line by line, so any mixture may stand in one input. Layers are peeled from the outside in until none is
left: a pasted quote around a container runtime's prefix around a journal line is one line like any other. Who wrote a line
(kernel, a process that wrote to the kernel log, a program, nobody knows) is part of what the dress says, and decides whether
driver grammars may read it. Every pattern is anchored and its repetitions are bounded: no line costs more than its length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aggregator.rules import times
from aggregator.rules.grammar.reading import Line, Origin

MAX_LINE = 65_536  # characters: what follows is no message of a kernel or driver

_ANSI = re.compile(r"\x1b\[[0-?]{0,32}[ -/]{0,4}[@-~]|\x1b[()][A-Z0-9]|\x1b\][^\x07\x1b\n]{0,256}(?:\x07|\x1b\\)")
_CARET_ANSI = re.compile(r"\^\[\[[0-9;]{0,16}[A-Za-z]|\\u001b\[[0-9;]{0,16}m|\\x1b\[[0-9;]{0,16}m")
_QUOTE = re.compile(r"(?:\s{0,8}>(?= |>|\[|\t|$)){1,8} ?")
_BULLET = re.compile(r"\s{0,8}(?:[-*•]|\d{1,3}[.)]) (?=\[|NVRM:|kernel:|nvidia|[A-Z][a-z]{2} [ \d]\d |\d{4}-\d\d-)")
_TICKS = re.compile(r"`{1,3}([^`]+)`{1,3}$")

_KMSG = re.compile(r"(\d{1,4}),(\d{1,20}),(\d{1,20}),([^;\s]{0,64});")
_KMSG_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")
_PRIORITY = re.compile(r"<(\d{1,3})>(?=[\[\w ])")
_RFC5424 = re.compile(
    r"1 (\d{4}-\S{10,30}|-) (\S{1,255}) (\S{1,48}) (\S{1,128}) (\S{1,32}) (?:-|(?:\[[^\]]{0,1024}\]){1,8}) ?\ufeff?"
)
_CRI = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,9}(?:Z|[+-]\d\d:\d\d)) (?:stdout|stderr) [FP](?: |$)")
_POD = re.compile(r"\[pod/[\w.-]{1,253}/[\w.-]{1,63}\] ")
_COMPOSE = re.compile(r"[a-z0-9][\w.-]{0,80} {0,24}\| ")
_DECODED = re.compile(
    r"(kern|user|mail|daemon|auth|syslog|lpr|news|uucp|cron|authpriv|ftp|local\d) {0,4}:(\w{3,7}) {0,3}: ?"
)
_UPTIME = re.compile(r"\[ {0,8}(\d{1,10})\.(\d{1,9})(?: <[ \d.+]{1,20}>)?\](?:\[ {0,5}[TC]\d{1,7}\])? ?")
_DELTA = re.compile(r"\[ {0,8}\+\d{1,6}\.\d{1,9}\] ?|\[ {0,5}[TC]\d{1,7}\] ?|\[<[ \d.+]{1,20}>\] ?")
_CTIME = re.compile(r"\[(\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4})(?: \w{3,5})?\](?:\[ {0,5}[TC]\d{1,7}\])? ?")
_FABRIC_MANAGER = re.compile(r"\[(\w{3} \d\d \d{4} \d\d:\d\d:\d\d)\] \[(\w{3,8})\] \[tid (\d{1,10})\] ?")
_HUMAN = re.compile(r"\[\w{3} {1,2}\d{1,2} \d\d:\d\d\] ")
_ISO = re.compile(
    r"\[?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?: ?(?:Z|UTC|GMT|[+-]\d\d:?\d\d))?)\]?(?:\s+|: )"
)
_WEEKDAY_ISO = re.compile(r"\w{3} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?(?: [A-Z]{3,5})?) ")
_RFC3164 = re.compile(r"(\w{3} {1,2}\d{1,2} (?:\d{4} )?\d\d:\d\d:\d\d(?:\.\d{1,6})?(?: \d{4})?) ")
_EPOCH = re.compile(r"(\d{10})\.(\d{6}) ")
_TAG = re.compile(
    r"(?P<host>(?!kernel:)[A-Za-z0-9][\w.-]{0,254}) (?P<tag>[A-Za-z_(][\w./@()-]{0,63}?)(?:\[(?P<pid>\d{1,10})\])?: ?"
)
_BARE_TAG = re.compile(r"(?:(?P<host>[A-Za-z0-9][\w.-]{0,254}) )?(?P<tag>kernel): ?")
_NO_HOST_TAG = re.compile(r"(?P<tag>[A-Za-z_][\w./@-]{0,63})\[(?P<pid>\d{1,10})\]: ?")
_KLOG = re.compile(r"[IWEF](\d{4} \d\d:\d\d:\d\d)(?:\.\d{1,6})? {1,7}\d{1,8} [\w./-]{1,128}:\d{1,6}\] ")
_LOGFMT = re.compile(r"(?:time|ts)=\S")
_LOGFMT_MESSAGE = re.compile(r"\b(?:msg|message)=(\"(?:[^\"\\]|\\.){0,8192}\"?|\S{0,8192})")
_REPEATED = re.compile(r"message repeated (\d{1,9}) times?: \[ ?(.*?)\]?$", re.S)
_LEVELS = {"emerg": 0, "alert": 1, "crit": 2, "err": 3, "warn": 4, "notice": 5, "info": 6, "debug": 7}
_FACILITIES = {"kern": 0, "user": 1, "mail": 2, "daemon": 3, "auth": 4, "syslog": 5}

# First words of kernel messages that would pass for "host tag:".
_KERNEL_WORDS = frozenset(
    ("EDAC", "Memory", "INFO", "BUG", "WARNING", "nvme", "infiniband", "Kernel", "task", "Out", "usb", "PM")
)


@dataclass(slots=True)
class _Dress:
    """What has been peeled off so far."""

    text: str
    origin: Origin = Origin.UNKNOWN
    at_us: int | None = None
    uptime_us: int | None = None
    host: str = ""
    program: str = ""
    facility: int = 0
    level: int | None = None
    boot_id: str = ""
    peeled: list[Callable[..., object]] = field(default_factory=list)

    def cut(self, end: int) -> None:
        self.text = self.text[end:]


def uncoloured(text: str) -> str:
    """A text, one line or many, without terminal colours, raw or spelled out: they may stand inside a word."""
    if "\x1b" in text or "^[[" in text or "\\u001b" in text or "\\x1b" in text:
        return _CARET_ANSI.sub("", _ANSI.sub("", text))
    return text


def clean(raw: str) -> str:
    """A raw line without colours, carriage returns, quote marks, bullets and Markdown ticks; blanks in front are kept."""
    text = uncoloured(raw[:MAX_LINE].rstrip("\r\n \t\0"))
    text = text.lstrip("\ufeff").replace("\xa0", " ")
    head = text.lstrip()[:1]
    if head == ">" and (quote := _QUOTE.match(text)):
        text = text[quote.end() :]
        head = text.lstrip()[:1]
    if head == "`" and (ticks := _TICKS.match(text.strip())):
        text = ticks[1]
    if (head in "-*•" or head.isdigit()) and (bullet := _BULLET.match(text)):
        text = text[bullet.end() :]
    return text


def parse(raw: str, *, now_us: int | None = None) -> Line:
    """The message of a raw line. `now_us` gives times without a year theirs: the last that is not to come."""
    return parse_clean(clean(raw), now_us=now_us)


def parse_clean(text: str, *, now_us: int | None = None) -> Line:
    """As `parse`, of a line that went through `clean`."""
    dress = _Dress(text.lstrip())
    indent = len(text) - len(dress.text)
    for _ in range(6):
        if dress.text.startswith(_DRIVERS) or not _peel(dress, now_us):
            break
        indent = len(dress.text) - len(dress.text.lstrip())
        dress.text = dress.text.lstrip()
    return _line(dress, indent)


def _peel(dress: _Dress, now_us: int | None) -> bool:
    """Take off one layer. Each may occur once; what looks like a second one belongs to the message."""
    for layer in _LAYERS.get(dress.text[:1], _WORD_LAYERS):
        if layer not in dress.peeled and layer(dress, now_us):
            dress.peeled.append(layer)
            return True
    return False


def _line(dress: _Dress, indent: int) -> Line:
    if dress.text.startswith("message repeated ") and (repeated := _REPEATED.match(dress.text)):
        inner = parse_clean(repeated[2].strip())
        at_us, host, origin = dress.at_us or inner.at_us, dress.host or inner.host, dress.origin
        origin = inner.origin if origin is Origin.UNKNOWN else origin
        return replace(inner, at_us=at_us, host=host, origin=origin, repeated=int(repeated[1]))
    return Line(
        text=dress.text.rstrip(),
        origin=dress.origin,
        at_us=dress.at_us,
        uptime_us=dress.uptime_us,
        host=dress.host,
        program=dress.program,
        facility=dress.facility,
        level=dress.level,
        indent=indent,
        boot_id=dress.boot_id,
    )


def _kernel(dress: _Dress, facility: int, level: int | None) -> None:
    dress.facility, dress.level = facility, level
    dress.origin = Origin.KERNEL if facility == 0 else Origin.USERSPACE


def _kmsg(dress: _Dress, now_us: int | None) -> bool:
    found = _KMSG.match(dress.text)
    if found is None:
        return False
    prefix = int(found[1])
    _kernel(dress, prefix >> 3, prefix & 7)
    dress.uptime_us = int(found[3])
    dress.cut(found.end())
    if "\\x" in dress.text:
        dress.text = unescape(dress.text)
    return True


def unescape(text: str) -> str:
    """Undo the `\\xNN` escapes of /dev/kmsg: bytes, which may be parts of one UTF-8 character."""
    raw = _KMSG_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    try:
        return raw.encode("latin-1").decode("utf-8", "replace")
    except UnicodeEncodeError:  # characters beyond latin-1 were there unescaped
        return raw


def _priority(dress: _Dress, now_us: int | None) -> bool:
    found = _PRIORITY.match(dress.text)
    if found is None or int(found[1]) > 191:
        return False
    dress.cut(found.end())
    _kernel(dress, int(found[1]) >> 3, int(found[1]) & 7)
    modern = _RFC5424.match(dress.text)
    if modern:
        dress.at_us = times.parse(modern[1], now_us=now_us)
        dress.host = modern[2]
        dress.cut(modern.end())
        _tagged(dress, modern[3], None if modern[4] == "-" else modern[4])
    return True


def _tagged(dress: _Dress, tag: str, pid: str | None) -> None:
    """A syslog tag: the kernel's has no pid and, where a facility is known, facility 0."""
    if tag == "kernel" and pid is None:
        if dress.origin is not Origin.USERSPACE:
            dress.origin = Origin.KERNEL
        return
    dress.origin, dress.program = Origin.PROGRAM, tag


def _uptime(dress: _Dress, now_us: int | None) -> bool:
    found = _UPTIME.match(dress.text)
    if found is None:
        return False
    dress.uptime_us = int(found[1]) * 1_000_000 + int(found[2][:6].ljust(6, "0"))
    dress.cut(found.end())
    if dress.origin is Origin.UNKNOWN:
        dress.origin = Origin.KERNEL
    return True


def _ctime(dress: _Dress, now_us: int | None) -> bool:
    found = _CTIME.match(dress.text)
    if found is None:
        return False
    dress.at_us = times.parse(found[1], now_us=now_us)
    dress.cut(found.end())
    if dress.origin is Origin.UNKNOWN:
        dress.origin = Origin.KERNEL
    return True


def _fabric_manager(dress: _Dress, now_us: int | None) -> bool:
    found = _FABRIC_MANAGER.match(dress.text)
    if found is None:
        return False
    dress.at_us = times.parse(found[1], now_us=now_us)
    dress.level = _LEVELS.get(found[2].lower()[:4].rstrip("o"))
    dress.origin, dress.program = Origin.PROGRAM, "fabricmanager"
    dress.cut(found.end())
    return True


def _without_time(dress: _Dress, now_us: int | None) -> bool:
    found = _DELTA.match(dress.text) or _HUMAN.match(dress.text)
    if found is None:
        return False
    dress.cut(found.end())
    if dress.origin is Origin.UNKNOWN:
        dress.origin = Origin.KERNEL
    return True


def _pod(dress: _Dress, now_us: int | None) -> bool:
    found = _POD.match(dress.text)
    if found is None:
        return False
    dress.cut(found.end())
    return True


def _iso(dress: _Dress, now_us: int | None) -> bool:
    cri = _CRI.match(dress.text)
    if cri:
        dress.at_us = times.parse(cri[1], now_us=now_us)
        dress.cut(cri.end())
        return True
    found = _ISO.match(dress.text)
    if found is None:
        return False
    dress.at_us = times.parse(found[1], now_us=now_us)
    dress.cut(found.end())
    if "," in found[1] and "T" in found[1]:  # dmesg alone writes a comma after a T
        dress.origin = Origin.KERNEL if dress.origin is Origin.UNKNOWN else dress.origin
    else:
        _host_and_tag(dress)
    return True


def _bsd(dress: _Dress, now_us: int | None) -> bool:
    found = _RFC3164.match(dress.text) or _WEEKDAY_ISO.match(dress.text) or _EPOCH.match(dress.text)
    if found is None:
        return False
    at = int(found[1]) * 1_000_000 + int(found[2]) if found.re is _EPOCH else times.parse(found[1], now_us=now_us)
    if at is None:
        return False
    dress.at_us = at
    dress.cut(found.end())
    _host_and_tag(dress)
    return True


def _host_and_tag(dress: _Dress) -> None:
    found = _BARE_TAG.match(dress.text) or _TAG.match(dress.text) or _NO_HOST_TAG.match(dress.text)
    if found is None:
        return
    parts = found.groupdict()
    if parts.get("host") in _KERNEL_WORDS:
        return
    dress.host = parts.get("host") or dress.host
    dress.cut(found.end())
    _tagged(dress, found["tag"], parts.get("pid"))


def _decoded(dress: _Dress, now_us: int | None) -> bool:
    found = _DECODED.match(dress.text)
    if found is None:
        return False
    facility = _FACILITIES.get(found[1], 16)
    _kernel(dress, facility, _LEVELS.get(found[2]))
    dress.cut(found.end())
    return True


def _bare_kernel(dress: _Dress, now_us: int | None) -> bool:
    """`kernel: text` or `host kernel: text`, where the time was cut away or stands in front."""
    found = _BARE_TAG.match(dress.text)
    if found is None or dress.origin is Origin.PROGRAM:
        return False
    dress.host = found["host"] or dress.host
    dress.cut(found.end())
    _tagged(dress, "kernel", None)
    return True


def _compose(dress: _Dress, now_us: int | None) -> bool:
    found = _COMPOSE.match(dress.text)
    if found is None:
        return False
    dress.cut(found.end())
    return True


def _klog(dress: _Dress, now_us: int | None) -> bool:
    found = _KLOG.match(dress.text)
    if found is None:
        return False
    dress.origin, dress.program = Origin.PROGRAM, dress.program or "klog"
    dress.cut(found.end())
    return True


def _logfmt(dress: _Dress, now_us: int | None) -> bool:
    message = _LOGFMT_MESSAGE.search(dress.text) if _LOGFMT.match(dress.text) else None
    if message is None:
        return False
    dress.origin, dress.program = Origin.PROGRAM, dress.program or "logfmt"
    dress.text = message[1].strip('"').replace('\\"', '"')
    return True


def _json(dress: _Dress, now_us: int | None) -> bool:
    record = _loaded(dress.text)
    if record is None:
        return False
    nested = record.get("jsonPayload")
    return _json_record(dress, nested if isinstance(nested, dict) else record, now_us)


def _loaded(text: str) -> dict[str, Any] | None:
    try:
        record = json.loads(text.strip().rstrip(","))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _json_record(dress: _Dress, record: dict[str, Any], now_us: int | None) -> bool:
    if "MESSAGE" in record:
        _journal(dress, record)
        return True
    if "msg" in record and "pri" in record:  # dmesg --json
        dmesg_record(dress, record, now_us)
        return True
    for key in ("log", "message", "msg", "textPayload", "line", "MSG", "text"):
        if isinstance(record.get(key), str):
            dress.text = record[key].rstrip("\n")
            stamp = record.get("time") or record.get("timestamp") or record.get("@timestamp") or record.get("ts")
            dress.at_us = times.parse(str(stamp), now_us=now_us) if stamp is not None else dress.at_us
            return True
    return False


def _journal(dress: _Dress, record: dict[str, Any]) -> None:
    message = record["MESSAGE"]
    if isinstance(message, list):
        message = bytes(byte for byte in message if isinstance(byte, int) and 0 <= byte < 256).decode(
            "utf-8", "replace"
        )
    dress.text = str(message)
    dress.host = str(record.get("_HOSTNAME", ""))
    dress.boot_id = str(record.get("_BOOT_ID", ""))
    dress.level = _number(record.get("PRIORITY"))
    dress.at_us = _number(record.get("_SOURCE_REALTIME_TIMESTAMP")) or _number(record.get("__REALTIME_TIMESTAMP"))
    dress.origin = Origin.PROGRAM
    dress.program = str(record.get("SYSLOG_IDENTIFIER") or record.get("_COMM") or "journal")
    if dress.program == "kernel":  # anyone may call himself so: the transport says who he is
        dress.origin = Origin.USERSPACE
    if record.get("_TRANSPORT") == "kernel":
        _kernel(dress, _number(record.get("SYSLOG_FACILITY")) or 0, dress.level)


def dmesg_record(dress: _Dress, record: dict[str, Any], now_us: int | None) -> None:
    """One record of `dmesg --json`, plain or decoded (-x)."""
    facility, priority = record.get("fac"), record.get("pri")
    if isinstance(priority, int):
        _kernel(dress, priority >> 3, priority & 7)
    else:
        _kernel(dress, _FACILITIES.get(str(facility), 16) if facility is not None else 0, _LEVELS.get(str(priority)))
    stamp = record.get("time")
    if isinstance(stamp, int | float):
        dress.uptime_us = round(stamp * 1e6)
    elif isinstance(stamp, str):
        dress.at_us = times.parse(stamp, now_us=now_us)
    dress.text = str(record["msg"])


def _number(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None


JOURNAL_BYTES_WORDS = ('"message":[', '"message": [')  # journald writes text that is not UTF-8 as a list of numbers
DMESG_JSON_WORD = '"pri":'
_JSON_FIELD = re.compile(r'\s{0,40}"(pri|fac|time|caller|msg)":\s{0,20}(.{1,8192}?),?\s{0,20}$')
_JSON_BRACES = re.compile(r"[\s{}\[\],]{0,80}$")


class DmesgJson:
    """`dmesg --json` spreads a record over lines; this puts each back on one."""

    def __init__(self) -> None:
        self.inside = False
        self._fields: dict[str, str] = {}

    def record(self, raw: str) -> str | None:
        """A record in one line once it is whole, None while it is not; any other line as it came."""
        found = _JSON_FIELD.match(raw) if '"' in raw else None
        if found is None:
            self.inside = self.inside and _JSON_BRACES.match(raw) is not None
            return None if self.inside else raw
        self.inside = True
        self._fields[found[1]] = found[2]
        if found[1] != "msg":
            return None
        whole = ", ".join(f'"{name}": {value}' for name, value in self._fields.items())
        self._fields.clear()
        return "{" + whole + "}"


_LAST_REPEATED = re.compile(r"(?:[\w.-]{1,255} )?last message repeated (\d{1,9}) times?$")


def repeated_last(text: str) -> int:
    """How often syslog says the last line came again; 0 when it says no such thing."""
    found = _LAST_REPEATED.match(text) if "last message repeated" in text else None
    return int(found[1]) if found else 0


# Messages of these begin with words that no log's prefix begins with: nothing is left to peel.
_DRIVERS = ("NVRM:", "nvidia", "pcieport ", "mlx5_core ", "amdgpu ")

_Layer = Callable[[_Dress, int | None], bool]

# Layers by the first character of what is left: most lines are asked about two or three of them.
_WORD_LAYERS: tuple[_Layer, ...] = (_bsd, _bare_kernel, _decoded, _klog, _logfmt, _compose)
_LAYERS: dict[str, tuple[_Layer, ...]] = {
    "{": (_json,),
    "<": (_priority,),
    "[": (_uptime, _ctime, _fabric_manager, _iso, _without_time, _pod),
    **dict.fromkeys("0123456789", (_iso, _kmsg, _bsd, _compose)),
}
