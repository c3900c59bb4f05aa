"""Prefixes that logs put before a message, one layer a function: each takes its own off, or says that it is not there.

Who wrote a line (kernel, a process that wrote to the kernel log, a program, nobody knows) is part of what a prefix says, and
decides whether driver grammars may read it. Every pattern is anchored and its repetitions are bounded: no line costs more than
its length.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from aggregator.rules import times
from aggregator.rules.formats.dress import FACILITIES, LEVELS, OTHER_FACILITY, Dress
from aggregator.rules.formats.json_records import json_record
from aggregator.rules.grammar.reading import CONTAINER, Origin

_KMSG = re.compile(r"(\d{1,4}),(\d{1,20}),(\d{1,20}),([^;\s]{0,64});")
_KMSG_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")
_PRIORITY = re.compile(r"<(\d{1,3})>(?=[\[\w ])")
_RFC5424 = re.compile(
    r"1 (\d{4}-\S{10,30}|-) (\S{1,255}) (\S{1,48}) (\S{1,128}) (\S{1,32}) (?:-|(?:\[[^\]]{0,1024}\]){1,8}) ?\ufeff?"
)
_CRI = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,9}(?:Z|[+-]\d\d:\d\d)) (?:stdout|stderr) [FP](?: |$)")
_POD = re.compile(r"\[pod/[\w.-]{1,253}/[\w.-]{1,63}\] ")
_COMPOSE = re.compile(
    r"[a-z0-9][\w.-]{0,80} {0,24}\| |[a-z0-9][a-z0-9.-]{0,252} [a-z0-9-]{1,63} (?=\[ {0,8}\d{1,10}\.\d{6}\] )"
)
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
_RFC3164 = re.compile(r"(\w{2,5}\.? {1,2}\d{1,2} (?:\d{4} )?\d\d:\d\d:\d\d(?:\.\d{1,6})?(?: \d{4})?) ")
_EPOCH = re.compile(r"(\d{10})\.(\d{6}) ")
_TAG = re.compile(
    r"(?P<host>(?!kernel:)[A-Za-z0-9][\w.-]{0,254}) (?P<tag>[A-Za-z_(][\w./@()-]{0,63}?)(?:\[(?P<pid>\d{1,10})\])?: ?"
)
_BARE_TAG = re.compile(r"(?:(?P<host>[A-Za-z0-9][\w.-]{0,254}) )?(?P<tag>kernel): ?")
_NO_HOST_TAG = re.compile(r"(?P<tag>[A-Za-z_][\w./@-]{0,63})\[(?P<pid>\d{1,10})\]: ?")
_ANY_TAG = re.compile(r"kernel:|[A-Za-z0-9][\w.-]{0,254} [A-Za-z_(][\w./@()-]{0,63}(?:\[\d{1,10}\])?:")
_KLOG = re.compile(r"[IWEF](\d{4} \d\d:\d\d:\d\d)(?:\.\d{1,6})? {1,7}\d{1,8} [\w./-]{1,128}:\d{1,6}\] ")
_LOGFMT = re.compile(r"(?:time|ts)=\S")
_LOGFMT_MESSAGE = re.compile(r"\b(?:msg|message)=(\"(?:[^\"\\]|\\.){0,8192}\"?|\S{0,8192})")

# First words of kernel messages that would pass for "host tag:".
_KERNEL_WORDS = frozenset(
    ("EDAC", "Memory", "INFO", "BUG", "WARNING", "nvme", "infiniband", "Kernel", "task", "Out", "usb", "PM")
)

# Messages of these begin with words that no log's prefix begins with: nothing is left to peel.
DRIVERS = ("NVRM:", "nvidia", "pcieport ", "mlx5_core ", "amdgpu ")

Layer = Callable[[Dress, int | None], bool]


def peel(dress: Dress, now_us: int | None) -> bool:
    """Take off one layer; False when none is left. Each may occur once: what looks like a second belongs to the message."""
    for layer in _LAYERS.get(dress.text[:1], _WORD_LAYERS):
        if layer not in dress.peeled and layer(dress, now_us):
            dress.peeled.append(layer)
            return True
    return False


def _kmsg(dress: Dress, now_us: int | None) -> bool:
    found = _KMSG.match(dress.text)
    if found is None:
        return False
    prefix = int(found[1])
    dress.from_kernel_log(prefix >> 3, prefix & 7)
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


def _priority(dress: Dress, now_us: int | None) -> bool:
    found = _PRIORITY.match(dress.text)
    if found is None or int(found[1]) > 191:
        return False
    dress.cut(found.end())
    dress.from_kernel_log(int(found[1]) >> 3, int(found[1]) & 7)
    _rfc5424(dress, now_us)
    return True


def _rfc5424(dress: Dress, now_us: int | None) -> bool:
    """With its priority in front or, as some files keep it, without."""
    found = _RFC5424.match(dress.text)
    if found is None:
        return False
    dress.at_us = times.parse(found[1], now_us=now_us)
    dress.host = found[2]
    dress.cut(found.end())
    dress.tagged(found[3], None if found[4] == "-" else found[4])
    return True


def _uptime(dress: Dress, now_us: int | None) -> bool:
    found = _UPTIME.match(dress.text)
    if found is None:
        return False
    dress.uptime_us = int(found[1]) * 1_000_000 + int(found[2][:6].ljust(6, "0"))
    dress.cut(found.end())
    dress.kernel_unless_known()
    return True


def _ctime(dress: Dress, now_us: int | None) -> bool:
    found = _CTIME.match(dress.text)
    if found is None:
        return False
    dress.at_us = times.parse(found[1], now_us=now_us)
    dress.cut(found.end())
    dress.kernel_unless_known()
    return True


def _fabric_manager(dress: Dress, now_us: int | None) -> bool:
    found = _FABRIC_MANAGER.match(dress.text)
    if found is None:
        return False
    dress.at_us = times.parse(found[1], now_us=now_us)
    dress.level = LEVELS.get(found[2].lower()[:4].rstrip("o"))
    dress.origin, dress.program = Origin.PROGRAM, "fabricmanager"
    dress.cut(found.end())
    return True


def _without_time(dress: Dress, now_us: int | None) -> bool:
    found = _DELTA.match(dress.text) or _HUMAN.match(dress.text)
    if found is None:
        return False
    dress.cut(found.end())
    dress.kernel_unless_known()
    return True


def _pod(dress: Dress, now_us: int | None) -> bool:
    found = _POD.match(dress.text)
    if found is None:
        return False
    dress.program = dress.program or CONTAINER
    dress.cut(found.end())
    return True


def _iso(dress: Dress, now_us: int | None) -> bool:
    cri = _CRI.match(dress.text)
    if cri:
        dress.at_us = times.parse(cri[1], now_us=now_us)
        dress.program = dress.program or CONTAINER
        dress.cut(cri.end())
        return True
    found = _ISO.match(dress.text)
    if found is None:
        return False
    dress.at_us = times.parse(found[1], now_us=now_us)
    dress.cut(found.end())
    if "," in found[1] and "T" in found[1]:  # dmesg alone writes a comma after a T
        dress.kernel_unless_known()
    else:
        _host_and_tag(dress)
    return True


def _bsd(dress: Dress, now_us: int | None) -> bool:
    found = _RFC3164.match(dress.text) or _WEEKDAY_ISO.match(dress.text) or _EPOCH.match(dress.text)
    if found is None:
        return False
    at = int(found[1]) * 1_000_000 + int(found[2]) if found.re is _EPOCH else times.parse(found[1], now_us=now_us)
    if at is None and not _ANY_TAG.match(dress.text, found.end()):  # an odd date before a tag is still a date
        return False
    dress.at_us = at
    dress.cut(found.end())
    _host_and_tag(dress)
    return True


def _host_and_tag(dress: Dress) -> None:
    found = _BARE_TAG.match(dress.text) or _TAG.match(dress.text) or _NO_HOST_TAG.match(dress.text)
    if found is None:
        return
    parts = found.groupdict()
    if parts.get("host") in _KERNEL_WORDS:
        return
    dress.host = parts.get("host") or dress.host
    dress.cut(found.end())
    dress.tagged(found["tag"], parts.get("pid"))


def _decoded(dress: Dress, now_us: int | None) -> bool:
    found = _DECODED.match(dress.text)
    if found is None:
        return False
    facility = FACILITIES.get(found[1], OTHER_FACILITY)
    dress.from_kernel_log(facility, LEVELS.get(found[2]))
    dress.cut(found.end())
    return True


def _bare_kernel(dress: Dress, now_us: int | None) -> bool:
    """`kernel: text` or `host kernel: text`, where the time was cut away or stands in front."""
    found = _BARE_TAG.match(dress.text)
    if found is None or dress.origin is Origin.PROGRAM:
        return False
    dress.host = found["host"] or dress.host
    dress.cut(found.end())
    dress.tagged("kernel", None)
    return True


def _compose(dress: Dress, now_us: int | None) -> bool:
    """`service | text` of docker compose; `pod container [stamp] text` of stern."""
    found = _COMPOSE.match(dress.text)
    if found is None:
        return False
    dress.cut(found.end())
    return True


def _klog(dress: Dress, now_us: int | None) -> bool:
    found = _KLOG.match(dress.text)
    if found is None:
        return False
    dress.origin, dress.program = Origin.PROGRAM, dress.program or "klog"
    dress.cut(found.end())
    return True


def _logfmt(dress: Dress, now_us: int | None) -> bool:
    message = _LOGFMT_MESSAGE.search(dress.text) if _LOGFMT.match(dress.text) else None
    if message is None:
        return False
    dress.origin, dress.program = Origin.PROGRAM, dress.program or "logfmt"
    dress.text = message[1].strip('"').replace('\\"', '"')
    return True


# Layers by the first character of what is left: most lines are asked about two or three of them.
_WORD_LAYERS: tuple[Layer, ...] = (_bsd, _bare_kernel, _decoded, _klog, _logfmt, _compose)
_LAYERS: dict[str, tuple[Layer, ...]] = {
    "{": (json_record,),
    "<": (_priority,),
    "[": (_uptime, _ctime, _fabric_manager, _iso, _without_time, _pod),
    **dict.fromkeys("0123456789", (_iso, _kmsg, _bsd, _rfc5424, _compose)),
}
