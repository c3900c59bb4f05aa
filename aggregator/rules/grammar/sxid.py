"""NVSwitch reports: SXid lines of the switch driver, and the fabric manager's log about the same errors.

The switch driver prints up to three lines an error: `22013, Non-fatal, Link 60 …`, `22013, Severity 0 Engine instance …` and
`22013, Data {…}`. The first is the event; the other two describe it and are no events of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from aggregator.rules.grammar.reading import (
    FULL_PCI,
    PCI,
    PROGRAM_LINES,
    Grammar,
    Line,
    Reading,
    normalise_pci,
    present,
    worst_word,
)

_SXID = re.compile(
    rf"(?P<switch>nvidia-nvswitch\d{{0,4}}): SXid \((?:PCI:)?(?P<pci>{PCI})\): ?(?P<code>\d{{1,6}})(?P<rest>(?:[, ].*)?)$",
    re.S,
)
_EVENT = re.compile(r"(?:(Fatal|Non-?fatal)(?:, | |$))?(?:Link (-?\d{1,4})(?:,? |$))?(.*)$", re.S | re.I)
_SEVERITY = re.compile(r"Severity (\d+)(?: Engine instance (\d+))?")
_DATA = re.compile(r"Data \{([^}]*)")
_SWITCH_TEXT = re.compile(r"(?P<switch>nvidia-nvswitch\d{0,4}): (?:\([^)]{0,40}\):? ?)?(?P<text>.{1,400})", re.S)
_FM_SXID = re.compile(
    r"detected NVSwitch (?P<fatal>non-fatal|fatal) error (?P<code>\d{1,6})\b"
    rf"(?: on fid (?P<fid>\d+))?(?: on NVSwitch pci bus id (?P<pci>{FULL_PCI}))?"
    r"(?: physical id (?P<physical>\d+))?(?: port (?P<port>\d+))?"
)


def read_sxid(line: Line) -> Iterator[Reading]:
    """An SXid, or the detail lines of one."""
    found = _SXID.match(line.text)
    if found is None:
        return
    rest = found["rest"].lstrip(", ")
    switch, code, pci = found["switch"], int(found["code"]), normalise_pci(found["pci"])
    severity, data = _SEVERITY.match(rest), _DATA.match(rest)
    if severity or data:
        detail = present(
            switch=switch,
            severity=int(severity[1]) if severity else None,
            engine_instance=int(severity[2]) if severity and severity[2] else None,
            data=data[1].strip() if data else None,
        )
        yield Reading("sxid_detail", detail, code=code, pci=pci)
        return
    event = _EVENT.match(rest)
    fatal, link, text = event.groups() if event else (None, None, rest)
    attributes = present(
        switch=switch,
        fatal=None if fatal is None else not fatal.lower().startswith("non"),
        link=int(link) if link else None,
        text=(text or "").strip(),
        words=worst_word(rest),
    )
    yield Reading("sxid", attributes, code=code, pci=pci)


_SWITCH_ERRORS = re.compile(r"fatal|fail|error|timed? ?out|not respond|lost|unable|cannot|halt", re.I)


def read_switch(line: Line) -> Iterator[Reading]:
    """What the switch driver says without an SXid, where it is about trouble."""
    found = _SWITCH_TEXT.match(line.text)
    if found is None or "SXid (" in line.text or not _SWITCH_ERRORS.search(found["text"]):
        return
    yield Reading("nvswitch_error", present(switch=found["switch"], text=found["text"]))


_FM_FAILED = re.compile(
    r"(?:failed to (?:initialize|start|configure|detect|open|load|connect|find|bind|allocate)|initialization failed|"
    r"configuration failed|fabric manager.{0,40}(?:exit|abort|fail|terminat)|exiting due to|topology.{0,30}(?:fail|mismatch)|"
    r"not compatible|version mismatch|cannot (?:find|open|continue))",
    re.I,
)
_FM_FABRIC = re.compile(
    r"(?:fabric.{0,40}(?:error|fail|degraded)|link training fail|training failed|access link failure|trunk link failure|"
    r"nvlink.{0,60}(?:inactive|fail|error|down|degraded)|NVSwitch.{0,40}(?:fatal|failure|lost|degraded))",
    re.I,
)
_FM_TRAINING = re.compile(r"(?:connection|link) training failed|failed to train", re.I)
_IMEX = re.compile(
    r"\bdegraded\b|connection lost|lost connection|failed to|unavailable|timed? ?out|not ready|\[ERROR\]", re.I
)
_FM_PROGRAMS = ("fabricmanager", "nv-fabricmanager", "nvidia-fabricmanager", "nv-fabric")
_NOT_NEEDED = re.compile(r"NV_WARN_NOTHING_TO_DO|no NVSwitch(?:es)? (?:devices? )?(?:found|detected|present)", re.I)
_FM_UNIT = re.compile(
    r"nvidia-fabricmanager\.service: (?:Failed|Main process exited|Control process exited|Start request repeated)"
)


def read_fabric_manager(line: Line) -> Iterator[Reading]:
    """The fabric manager's own log, and what systemd says about its service."""
    text = line.text
    sxid = _FM_SXID.search(text)
    if sxid:
        switch = f"physical id {sxid['physical']}" if sxid["physical"] else None
        attributes = present(
            fatal=sxid["fatal"] == "fatal",
            link=int(sxid["port"]) if sxid["port"] else None,
            switch=switch,
            reporter="fabric_manager",
            text=text,
        )
        yield Reading("sxid", attributes, code=int(sxid["code"]), pci=normalise_pci(sxid["pci"] or ""))
        return
    ours = any(name in line.program for name in _FM_PROGRAMS)
    if _NOT_NEEDED.search(text) and (ours or "abric" in text):
        yield Reading("fabric_manager_not_needed", {"text": text})
    elif _FM_UNIT.search(text) or (_names_fabric_manager(line, ours) and _FM_FAILED.search(text)):
        yield Reading("fabric_manager_failed", {"text": text})
    elif ours and _FM_TRAINING.search(text):
        yield Reading("nvlink_link_training_failed", {"text": text})
    elif ours and _FM_FABRIC.search(text):
        yield Reading("nvlink_fabric_error", {"text": text})


def read_imex(line: Line) -> Iterator[Reading]:
    """The IMEX daemon's own log, about its domain."""
    if ("imex" in line.program or "IMEX domain" in line.text) and _IMEX.search(line.text):
        yield Reading("imex_error", {"text": line.text})


def _names_fabric_manager(line: Line, ours: bool) -> bool:
    return ours or "fabric manager" in line.text.lower() or "fabricmanager" in line.text.lower()


GRAMMARS = (
    Grammar("sxid", ("sxid (",), read_sxid),
    Grammar("nvswitch", ("nvidia-nvswitch",), read_switch),
    Grammar("fabric_manager", ("nvswitch", "fabric", "nvlink", "nv_warn_nothing"), read_fabric_manager, PROGRAM_LINES),
    Grammar("imex", ("nvidia-imex", "nv-imex", "imex domain"), read_imex, PROGRAM_LINES),
)
