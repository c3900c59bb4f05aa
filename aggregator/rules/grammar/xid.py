"""The driver's XID report, in every form it has had.

Built from how the driver prints it (open-gpu-kernel-modules, kernel_rc.c): `NVRM: Xid (PCI:DDDD:BB:DD[ GPU-I:nn[ GPU-CI:nn]]): N,
[pid=P, name=S, ]text[ caused by previous Xid M]`. Older drivers print no `PCI:`, no pid and name, quoted or `<unknown>` ones, a
function, no comma after the number. What the text means per code is read in `xid_text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from aggregator.model import Scalar
from aggregator.rules.grammar.reading import PCI, Grammar, Line, Origin, Reading, normalise_pci, present, worst_word
from aggregator.rules.grammar.xid_text import read_text

_HEAD = re.compile(
    rf"NVRM: Xid \((?:PCI:)?(?P<pci>{PCI}|[0-9A-Fa-f]{{4}}:[0-9A-Fa-f]{{2}})"
    r"(?: GPU-I:(?P<gi>\d{1,3})(?: GPU-CI:(?P<ci>\d{1,3}))?)?\): ?(?P<code>\d{1,6})(?P<rest>(?:[,:; (].*)?)$",
    re.S,
)
_PLACE = re.compile(rf"\((?:PCI:)?({PCI})(?=[ )])")  # an address that was cut could be another GPU's
_PID = re.compile(r"pid=(?:'[^']{0,64}'|\"[^\"]{0,64}\"|<[^>]{0,64}>|(?P<pid>\d{1,10}))(?:,\s*|\s+|$)")
_QUOTED_NAME = re.compile(
    r"name=(?:'(?P<single>[^']{0,64})'|\"(?P<double>[^\"]{0,64})\"|(?P<unknown><unknown>))(?:,\s*|$)"
)
# What the driver's own words begin with: where a name with commas in it must have ended.
_TEXT_STARTS = re.compile(r"[A-Z]|Ch |channel |0x|intr|errorString|engine", re.S)
_PREVIOUS = re.compile(r",? ?caused by previous Xid (\d{1,6})")
_COMM_MAX = 15  # the kernel keeps 15 bytes of a process's name

# Quoted by a tool that prints what it found: nothing but tags, times, levels and keys stands before the quoted line.
# Atomic, because its parts overlap: no line may cost more than its length.
_TOOL_TAGS = re.compile(
    r"(?>\[[^\]]{0,80}\]|\([^)]{0,80}\)|[\d:.,TZ+-]{4,40}|[\w./-]{1,40}[:=]|[A-Z]{3,9}|[|>*-]|\s+){0,16}+[\"'`]?$"
)


def read_xid(line: Line) -> Iterator[Reading]:
    """An XID, with the repair state that its text announces as a signal of its own."""
    start = line.text.find("NVRM: Xid")
    if start < 0 or (start > 0 and not _quoted_by_a_tool(line, start)):
        return
    text = line.text[start:].rstrip("\"'` ") if start else line.text
    head = _HEAD.match(text)
    if head is None:
        if start == 0:
            yield _malformed(text, line)
        return
    xid = _reading(head)
    yield xid
    yield from _announced(xid)


def _malformed(text: str, line: Line) -> Reading:
    """A report cut off, garbled, or of a form to come."""
    place = _PLACE.search(text)
    attributes = present(text=text, words=worst_word(text), unstamped=True if line.origin is Origin.UNKNOWN else None)
    return Reading("xid_malformed", attributes, pci=_pci(place[1]) if place else None)


def _quoted_by_a_tool(line: Line, start: int) -> bool:
    return line.origin is Origin.UNKNOWN and start <= 200 and _TOOL_TAGS.match(line.text, 0, start) is not None


def _reading(head: re.Match[str]) -> Reading:
    code = int(head["code"])
    attributes, text = _process(head["rest"].lstrip(" ,:;"))
    previous = _PREVIOUS.search(text) if "previous" in text else None
    if previous:
        attributes["previous_xid"] = int(previous[1])
        text = (text[: previous.start()] + text[previous.end() :]).strip(" ,")
    if text:
        attributes["text"] = text
    attributes |= read_text(code, text)
    mig = None
    if head["gi"] is not None:
        mig = str(int(head["gi"])) + (f"/{int(head['ci'])}" if head["ci"] is not None else "")
    return Reading("xid", attributes, code=code, pci=_pci(head["pci"]), mig=mig)


def _pci(printed: str) -> str | None:
    """Very old drivers print bus and device alone, the bus with four digits."""
    return normalise_pci(printed[2:] if len(printed) == 7 and printed[4] == ":" else printed)


def _process(rest: str) -> tuple[dict[str, Scalar], str]:
    """pid and name where printed, and the text after them."""
    attributes: dict[str, Scalar] = {}
    pid = _PID.match(rest)
    if pid is None:
        return attributes, rest
    if pid["pid"]:
        attributes["pid"] = int(pid["pid"])
    rest = rest[pid.end() :]
    if not rest.startswith("name="):
        return attributes, rest
    quoted = _QUOTED_NAME.match(rest)
    if quoted:
        name, rest = quoted["single"] or quoted["double"] or "", rest[quoted.end() :]
    else:
        name, rest = _bare_name(rest[5:])
    if name and name != "<unknown>":
        attributes["process"] = name
    return attributes, rest


def _bare_name(rest: str) -> tuple[str, str]:
    """A name may hold commas: it ends at the first one after which the driver's own words begin, else at the first."""
    first = None
    at = rest.find(", ")
    while 0 <= at <= _COMM_MAX + 1:
        first = at if first is None else first
        if _TEXT_STARTS.match(rest, at + 2):
            return rest[:at], rest[at + 2 :]
        at = rest.find(", ", at + 1)
    if first is None:
        name, _, text = rest.partition(", ")
        return name.rstrip(", "), text
    return rest[:first], rest[first + 2 :]


def _announced(xid: Reading) -> Iterable[Reading]:
    """63, 64 and 177 say in words whether a remap waits for a reset or has failed: states that other channels report too."""
    remap = xid.attributes.get("remap")
    kind = {
        "recorded": "row_remap_pending",
        "pending": "row_remap_pending",
        "failed": "row_remap_failure",
        "page_recorded": "retired_page_pending",
    }.get(str(remap))
    if kind is not None:
        yield replace(xid, kind=kind, code=None, attributes=present(text=xid.attributes.get("text"), xid=xid.code))


GRAMMAR = Grammar("xid", ("nvrm: xid",), read_xid)
