"""What leaves this program in words: an incident's change as plain values that every webhook's body is made of.

What a node, a tenant or a model wrote is data. It leaves on one line, bounded, with nothing in it that a chat client would act on:
nobody is mentioned by it, and no address in it can be clicked. The one link is ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from aggregator import render
from aggregator.model import Incident, Signal, Verdict
from aggregator.store.deliveries import Waiting

MAX_TEXT = 800  # characters of one text
MAX_LINE = 240  # of one piece of evidence
MAX_EVIDENCE = 8
MAX_NODES = 20
MAX_ITEMS = 6  # of a list

_MENTION = re.compile(r"@(?=\s*(?:here|channel|everyone|group|all)\b)", re.IGNORECASE)
_ADDRESS = re.compile(r":(?=//)|\b(?:mailto|tel|javascript|data):(?=\S)", re.IGNORECASE)
_WWW = re.compile(r"\bwww\.", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Site:
    """What messages say of this installation."""

    cluster: str
    pages_url: str = ""  # where people reach the pages; empty: messages hold no link

    def link(self, incident_id: str) -> str:
        """An incident's page."""
        return f"{self.pages_url.rstrip('/')}/incidents/{incident_id}" if self.pages_url else ""


@dataclass(frozen=True, slots=True)
class Fact:
    """One piece of cited evidence."""

    id: str
    signal: str
    at: str  # ISO 8601, UTC; empty where it has no time
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A change of an incident, as it is told. The first eight are the reference's."""

    node_name: str
    condition: str
    severity: str
    summary: str
    root_cause: str
    recommended_action: str
    confidence: float
    timestamp: str
    status: str  # opened, revised, resolved
    cluster: str
    incident_id: str
    assessment_id: str
    investigation_id: str
    subject: str
    nodes: tuple[str, ...]
    fault_class: str
    resolutions: tuple[str, ...]
    next_steps: tuple[str, ...]
    evidence: tuple[Fact, ...]
    origin: str
    degraded_reason: str
    disputed: tuple[str, ...]
    resolved_because: str
    simulated: bool
    link: str
    idempotency_id: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def notice(message: Waiting, site: Site) -> Notice:
    """What one message says."""
    incident, assessment = message.incident, message.assessment
    verdict = assessment.verdict
    cited = _cited(incident, verdict)
    return Notice(
        node_name=plain(incident.subject.node, MAX_LINE),
        condition=plain(_condition(cited), MAX_LINE),
        severity=verdict.severity.value,
        summary=plain(verdict.summary.removeprefix(verdict.root_cause).strip() or verdict.summary),
        root_cause=plain(verdict.root_cause),
        recommended_action=verdict.action.value,
        confidence=round(verdict.confidence, 2),
        timestamp=_iso(assessment.created_us),
        status=message.change,
        cluster=site.cluster,
        incident_id=incident.id,
        assessment_id=assessment.id,
        investigation_id=assessment.investigation_id,
        subject=plain(render.subject(incident)),
        nodes=_several(incident.nodes[:MAX_NODES]),
        fault_class=verdict.fault_class.value,
        resolutions=tuple(resolution.value for resolution in verdict.resolutions),
        next_steps=_several(verdict.next_steps[:MAX_ITEMS]),
        evidence=tuple(_fact(signal) for signal in cited[:MAX_EVIDENCE]),
        origin=assessment.origin,
        degraded_reason=plain(assessment.degraded_reason),
        disputed=_several(assessment.disputed[:MAX_ITEMS]),
        resolved_because=plain(incident.resolved_because),
        simulated=incident.simulated,
        link=site.link(incident.id),
        idempotency_id=message.idempotency_id,
    )


def plain(text: str, limit: int = MAX_TEXT) -> str:
    """One bounded line in which nothing mentions anybody, and nothing is an address that a client would make a link of."""
    line = render.visible(text[: 4 * limit])
    line = _WWW.sub("www[.]", _ADDRESS.sub(lambda found: found[0].replace(":", "[:]"), _MENTION.sub("(at)", line)))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _several(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(plain(text, MAX_LINE) for text in texts)


def _cited(incident: Incident, verdict: Verdict) -> list[Signal]:
    ids = frozenset(verdict.citations)
    return [signal for signal in incident.signals if signal.id in ids] or list(incident.signals[:1])


def _condition(cited: list[Signal]) -> str:
    """The node condition that was cited, else the first fact's name."""
    named = (str(signal.attributes["condition"]) for signal in cited if signal.attributes.get("condition"))
    return next(named, cited[0].name if cited else "")


def _fact(signal: Signal) -> Fact:
    at = _iso(signal.at_us) if signal.at_us is not None else ""
    return Fact(plain(signal.id, MAX_LINE), plain(signal.name, MAX_LINE), at, plain(signal.raw, MAX_LINE))


def _iso(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="milliseconds")


def only_set(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says nothing."""
    return {name: value for name, value in values.items() if value not in ("", (), [], None)}
