"""What a site's overlay says of a code holds also where a rule that combines signals would say otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aggregator.rules import wording
from aggregator.rules.finding import Finding

VERDICT_FIELDS = ("severity", "fault_class", "action", "resolutions", "recurrence_advice")


def with_site_rules(finding: Finding) -> Finding:
    """The finding, with what the site's overlay says of its cause; unchanged where it says nothing."""
    entry = next((reading.entry for reading in finding.cause if reading.entry.site), None)
    if entry is None:
        return finding
    ours: dict[str, Any] = {name: getattr(entry, name) for name in VERDICT_FIELDS if name in entry.site}
    if not ours:
        return finding
    return replace(
        finding,
        **ours,
        permits=finding.permits + ours.get("resolutions", ()),
        do_not=tuple(item for item in finding.do_not if item not in ours.get("resolutions", ())),
        explanation=f"{finding.explanation} {wording.by_site(entry, tuple(ours))}".strip(),
    )
