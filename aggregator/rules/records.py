"""Which physical lines are one message: records with embedded newlines, and lines that a paste or a terminal has wrapped.

The driver prints some messages over several lines of one record, each with its own `NVRM:`. Logs that keep lines apart, and
pastes that wrap at the window's edge, need them put together before a grammar can read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from aggregator.rules.grammar.reading import Line

_MAX_MESSAGE = 2_000  # characters: no message of the driver is longer

# First lines of messages that the driver spreads over lines: complete when they end with a full stop.
_OPENS = re.compile(
    r"NVRM: (?:The NVIDIA GPU \S+|\(PCI ID|API mismatch:|This PCI I/O region assigned|This can occur when|"
    r"This is usually caused|GPU \S+: RmInitAdapter.*\($|.* installed in this system)"
)
_PREFIX = re.compile(r"\s{0,200}NVRM:\s{0,40}")
_DRIVER_START = re.compile(r"NVRM:|nvidia|kernel:|\[|<\d|GPU |XID|Xid")

_REPORT = re.compile(r"(?:NVRM: Xid|nvidia-nvswitch\d{0,4}: SXid)\b")
_COMPLETE_HEAD = re.compile(r"[^()]{0,80}\([^()]{0,80}\): ?\d")
_CODE_DIGITS = 5
_CODE_AT_END = re.compile(r"[^()]{0,80}\([^()]{0,80}\): ?\d{1,5}$")
_CODE_GOES_ON = re.compile(r"\d{0,4}, ?(?:pid=|name=|[A-Z])")
_HEADS = ("NVRM:", "NVRM: Xid")  # of a report, broken at a blank
_HEAD_GOES_ON = re.compile(r"(?:Xid )?\((?:PCI:)?[0-9A-Fa-f]")
_HEX_CUT = re.compile(r"0x[0-9a-fA-F]{0,15}$")


def messages(record: str) -> Iterator[str]:
    """The messages of one record: its lines joined where they are one message, else one by one."""
    whole: str | None = None
    for piece in record.split("\n"):
        longer = None if whole is None else _driver_continues(whole, piece)
        if longer is not None:
            whole = longer
            continue
        if whole:
            yield whole
        whole = piece
    if whole:
        yield whole


def unfinished(text: str) -> bool:
    """True when a message may go on in the next line."""
    if text in _HEADS:
        return True
    if _REPORT.match(text):
        head = _COMPLETE_HEAD.match(text)
        if head is None or text.count("(") > text.count(")"):
            return True
        return len(text) < head.end() + _CODE_DIGITS and _CODE_AT_END.match(text) is not None
    return text.startswith("NVRM: ") and _OPENS.match(text) is not None and not text.endswith(".")


def joined(whole: str, line: Line) -> str | None:
    """The message with its next line, or None when that line is not part of it."""
    if len(whole) > _MAX_MESSAGE:
        return None
    continued = _driver_continues(whole, line.text)
    if continued is not None:
        return continued
    if whole in _HEADS and not line.stamped and _HEAD_GOES_ON.match(line.text):
        return f"{whole} {line.text}"
    if line.stamped or not line.text or _DRIVER_START.match(line.text) or not _REPORT.match(whole):
        return None
    return _unwrapped(whole, line.text)


def _driver_continues(whole: str, piece: str) -> str | None:
    if not _OPENS.match(whole) or whole.endswith(".") or len(whole) > _MAX_MESSAGE:
        return None
    prefix = _PREFIX.match(piece)
    if prefix is None or (_OPENS.match(piece.lstrip()) and not piece.lstrip().startswith("NVRM: (PCI ID")):
        return None
    return f"{whole.rstrip()} {piece[prefix.end() :].strip()}"


def _unwrapped(whole: str, rest: str) -> str | None:
    if _CODE_AT_END.match(whole):
        return whole + rest if _CODE_GOES_ON.match(rest) else None
    if not _COMPLETE_HEAD.match(whole):
        tight, loose = whole + rest, f"{whole} {rest}"
        return tight if _COMPLETE_HEAD.match(tight) else loose if _COMPLETE_HEAD.match(loose) else None
    return whole + rest if _HEX_CUT.search(whole) else f"{whole} {rest}"
