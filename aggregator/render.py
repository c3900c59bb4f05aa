"""The one renderer of an incident: terminal, page and export say the same, in the order in which an engineer reads it.

`describe` gives the content as plain values (the page's template walks them), `render_text` sets it for a terminal. What a node,
a tenant or a model wrote is data: control characters become visible text here, so no line of a log can move a cursor, change a
colour or hide another line.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from aggregator.model import Assessment, Claim, Incident, IncidentState, Severity, Signal, Verdict

MIN_WIDTH = 40
MAX_TIMELINE = 40  # entries; the first and the last are shown
MAX_LINE = 2_000  # characters of one captured text

COLOURS = {Severity.CRITICAL: "1;31", Severity.WARNING: "1;33", Severity.INFO: "1;36", Severity.OK: "1;32"}
BOLD, DIM, PLAIN = "1", "2", "0"


@dataclass(frozen=True, slots=True)
class Entry:
    """One fact of the timeline."""

    time: str  # UTC with milliseconds; the line number where the text has no time
    name: str  # "xid 79"
    text: str  # its words, on one line
    cited: bool
    note: str = ""  # who saw it, how often
    evidence_id: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A list under a heading."""

    heading: str
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """An incident in words."""

    id: str
    severity: Severity | None  # None while it is not judged
    headline: str
    standing: tuple[str, ...]  # open, resolved, held, simulated: one line each
    cause: str
    summary: str
    facts: tuple[tuple[str, str], ...]  # class, action, confidence …
    timeline: tuple[Entry, ...]
    left_out: int  # timeline entries that are not shown
    sections: tuple[Section, ...]
    rules: str


def describe(incident: Incident, assessment: Assessment | None) -> Description:
    """The incident's content, every text safe to print."""
    verdict = assessment.verdict if assessment else None
    timeline, left_out = _timeline(incident, frozenset(verdict.citations if verdict else ()))
    return Description(
        id=visible(incident.id),
        severity=verdict.severity if verdict else None,
        headline=f"{verdict.severity.value if verdict else 'not judged yet'}: {subject(incident)}",
        standing=tuple(_standing(incident, assessment)),
        cause=visible(verdict.root_cause) if verdict else "",
        summary=_beyond_cause(verdict) if verdict else "Its facts are below; the verdict follows.",
        facts=tuple(_facts(assessment)),
        timeline=timeline,
        left_out=left_out,
        sections=tuple(section for section in _sections(assessment) if section.items),
        rules=_rules(assessment),
    )


def _beyond_cause(verdict: Verdict) -> str:
    """The summary without the root cause it may begin with: that stands above it."""
    return visible(verdict.summary.removeprefix(verdict.root_cause).strip())


def render_text(incident: Incident, assessment: Assessment | None, *, width: int = 100, colour: bool = False) -> str:
    """The incident as text of at most `width` columns, ending in a newline; ANSI colours only when asked for."""
    description = describe(incident, assessment)
    page = _Page(max(width, MIN_WIDTH), colour)
    page.headline(description)
    for line in description.standing:
        page.paragraph(line, style=DIM)
    page.blank()
    page.paragraph(description.cause, style=BOLD)
    page.paragraph(description.summary)
    if description.facts:
        page.blank()
        page.paragraph(" · ".join(f"{name}: {value}" for name, value in description.facts))
    page.heading("Order of events (* = what the verdict rests on)")
    page.timeline(description)
    for section in description.sections:
        page.heading(section.heading)
        for item in section.items:
            page.item(item)
    if description.rules:
        page.blank()
        page.paragraph(description.rules, style=DIM)
    return page.text()


def subject(incident: Incident) -> str:
    """What the incident is about: "gpu-node-07, GPU 0000:3a:00.0"."""
    about, node = incident.subject, visible(incident.subject.node) or "this log"
    if about.kind == "fleet":
        others = len(incident.nodes) - 1
        return f"{node} and {others} other node{'s' if others != 1 else ''}"
    if about.kind == "gpu":
        names = [visible(name) for name in (about.pci, about.gpu_uuid) if name]
        return f"{node}, GPU {' '.join(names)}"
    if about.kind == "nvlink_peers":
        return f"{node}, NVLink"
    return node


def visible(text: str) -> str:
    """Text on one line with nothing in it that a terminal would act on: control, format and bidirectional characters shown as
    escapes, line breaks as spaces."""
    text = text[:MAX_LINE] + "…" if len(text) > MAX_LINE else text
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in " ".join(text.split()))


def clock(time_us: int) -> str:
    """A time as ISO 8601, UTC, whole seconds."""
    return _moment(time_us).strftime("%Y-%m-%d %H:%M:%S UTC")


def _shown(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _moment(time_us: int) -> datetime:
    try:
        return datetime.fromtimestamp(time_us / 1e6, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


def _standing(incident: Incident, assessment: Assessment | None) -> Iterator[str]:
    timed = any(signal.line is None for signal in incident.signals)
    if incident.state is IncidentState.RESOLVED:
        when = f" at {clock(incident.resolved_us)}" if incident.resolved_us is not None else ""
        yield f"Resolved{when}: {visible(incident.resolved_because)}."
    elif timed:
        yield f"Open since {clock(incident.opened_us)}."
    if incident.held_until_us is not None:
        yield f"Pages and actions wait until {clock(incident.held_until_us)}: {visible(incident.held_because)}."
    if incident.fleet_id:
        yield f"Part of {visible(incident.fleet_id)}, which pages for it."
    if incident.simulated:
        yield "SIMULATED: these facts come from a simulated driver."
    if assessment is not None and assessment.degraded_reason:
        word = "Partial" if assessment.partial else "Degraded"
        yield f"{word}: {visible(assessment.degraded_reason)}."


def _facts(assessment: Assessment | None) -> Iterator[tuple[str, str]]:
    if assessment is None:
        return
    verdict = assessment.verdict
    yield "class", verdict.fault_class.value
    yield "node", verdict.action.value if verdict.action.value != "none" else "leave as it is"
    yield "confidence", f"{verdict.confidence:.0%}"
    if assessment.cost_usd:
        yield "investigation", f"${assessment.cost_usd:.2f}"


def _timeline(incident: Incident, cited: frozenset[str]) -> tuple[tuple[Entry, ...], int]:
    """The facts in their order. A long one keeps its ends and everything that is cited."""
    entries = [_entry(signal, signal.id in cited, many_nodes=len(incident.nodes) > 1) for signal in incident.signals]
    if len(entries) <= MAX_TIMELINE:
        return tuple(entries), 0
    half = MAX_TIMELINE // 2
    cited_between = [entry for entry in entries[half:-half] if entry.cited][:half]
    kept = (*entries[:half], *cited_between, *entries[-half:])
    return kept, len(entries) - len(kept)


def _entry(signal: Signal, cited: bool, *, many_nodes: bool) -> Entry:
    time = f"line {signal.line}" if signal.line is not None else ""
    if signal.at_us is not None and signal.line is None:
        time = _moment(signal.at_us).strftime("%H:%M:%S.%f")[:-3]
    return Entry(
        time=time,
        name=visible(signal.name if not many_nodes else f"{signal.node}: {signal.name}"),
        text=visible(signal.raw) or "(no text)",
        cited=cited,
        note=visible(", ".join(_notes(signal))),
        evidence_id=visible(signal.id),
    )


def _notes(signal: Signal) -> Iterator[str]:
    if signal.phase.value != "point":
        yield signal.phase.value
    if signal.count > 1:
        yield f"stands for {signal.count} reports"
    witnesses = str(signal.attributes.get("witnesses", ""))
    channels = {"kmsg": "the kernel log", "nvml": "NVML", "dcgm": "DCGM"}
    if witnesses and "," not in witnesses:
        yield f"seen by {channels.get(witnesses, witnesses)} only"
    elif "witness_of" in signal.attributes:
        yield f"the same event, seen by {channels.get(signal.source, signal.source)}"


def _sections(assessment: Assessment | None) -> Iterator[Section]:
    if assessment is None:
        return
    verdict = assessment.verdict
    now, later = verdict.next_steps[:1], verdict.next_steps[1:]
    if not verdict.next_steps:
        now = tuple(resolution.value.replace("_", " ") for resolution in verdict.resolutions)
    yield Section("Do now", _all_visible(now))
    yield Section("Then", _all_visible(later))
    yield Section("If it comes back", _all_visible((verdict.recurrence_advice,)))
    yield Section("Do not", _all_visible(verdict.do_not))
    yield Section("Proved by the investigation", _claims(assessment.claims))
    yield Section("Speaks against it", _all_visible(assessment.counter_evidence))
    yield Section("Disputed", _all_visible(assessment.disputed))
    yield Section("Could not be checked", _all_visible(assessment.unchecked))
    yield Section("What would settle it", _all_visible(verdict.open_questions))
    yield Section("Claimed and not proved", _claims(assessment.dropped_claims))


def _claims(claims: Iterable[Claim]) -> tuple[str, ...]:
    """Each claim with its quotes, or with why it was dropped."""
    return tuple(visible(f"{claim.text} {_proof(claim)}") for claim in claims)


def _proof(claim: Claim) -> str:
    if claim.dropped_because:
        return f"(dropped: {claim.dropped_because})"
    return "; ".join(f"[{part.item_id}] “{part.quote}”" for part in claim.support)


def _rules(assessment: Assessment | None) -> str:
    if assessment is None:
        return ""
    verdict = assessment.verdict
    names = ", ".join(verdict.rule_ids) or "no rule"
    judges = f"rules and {assessment.model}" if assessment.origin == "llm" else "rules"
    transcript = f" Transcript: {assessment.investigation_id}." if assessment.investigation_id else ""
    return visible(
        f"Judged by {judges} ({names}; version {verdict.rules_version or 'unknown'}), revision {assessment.revision}.{transcript}"
    )


def _all_visible(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(visible(text) for text in texts if text)


class _Page:
    """Lines of at most a width."""

    def __init__(self, width: int, colour: bool) -> None:
        self._width, self._colour = width, colour
        self._lines: list[str] = []

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def blank(self) -> None:
        self._lines.append("")

    def headline(self, description: Description) -> None:
        style = COLOURS[description.severity] if description.severity else BOLD
        severity, _, about = description.headline.partition(": ")
        self.paragraph(f"{severity.upper()}  {about}  [{description.id}]", style=style)

    def heading(self, text: str) -> None:
        self.blank()
        self.paragraph(text, style=BOLD)

    def paragraph(self, text: str, *, style: str = PLAIN) -> None:
        self._add(text, "", "", style)

    def item(self, text: str) -> None:
        self._add(text, "  - ", "    ", PLAIN)

    def timeline(self, description: Description) -> None:
        for position, entry in enumerate(description.timeline):
            if description.left_out and position == len(description.timeline) - MAX_TIMELINE // 2:
                self._add(f"… {description.left_out} more facts …", "    ", "    ", DIM)
            head = f"{entry.time}  {entry.name}" + (f"  ({entry.note})" if entry.note else "")
            self._add(head, "  * " if entry.cited else "    ", "      ", BOLD if entry.cited else PLAIN)
            self._add(entry.text, "      ", "      ", DIM)

    def _add(self, text: str, first: str, rest: str, style: str) -> None:
        if not text:
            return
        wrapped = textwrap.wrap(
            text,
            self._width,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=True,
            break_on_hyphens=False,
        )
        self._lines.extend(
            f"\x1b[{style}m{line}\x1b[0m" if self._colour and style != PLAIN else line for line in wrapped
        )
