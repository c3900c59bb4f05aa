"""`gcm-sentinel rejudge --rules NEW`: judge stored incidents again under a rules overlay, and list whose verdict would change.

How a rule is tried before it is trusted. Reads the aggregator's database where it lies, running or not, and writes nothing. The
signals are those that were read when the evidence arrived; only their judgement is repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import DatabaseError

from aggregator import assessor, rules
from aggregator.commands.spans import span
from aggregator.model import Incident, Verdict
from aggregator.settings import Settings, SettingsError
from aggregator.store import beside, queries
from aggregator.store.opening import StoreUnusable, open_readers

PAGE = 200  # incidents read at a time


@dataclass(frozen=True, slots=True)
class Change:
    """An incident whose verdict would be another."""

    incident: Incident
    before: Verdict  # as published
    after: Verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The overlay, and how far back."""
    parser.epilog = "Run it with the aggregator's GCM_SENTINEL_STATE_DIR or GCM_SENTINEL_DATABASE_URL, on its machine."
    parser.add_argument("--rules", type=Path, required=True, metavar="NEW", help="the overlay to try (TOML)")
    parser.add_argument("--since", type=span, default=30 * 86_400, metavar="SPAN", help="12h, 7d … (default 30d)")
    parser.add_argument("--json", action="store_true", help="one JSON object per changed verdict")


def run(args: argparse.Namespace) -> int:
    """Print what would change; return the exit code."""
    try:
        catalog = rules.load(args.rules.read_bytes())
        database = Settings.from_environment().database
        seen, changes = _rejudged(database, catalog, time.time_ns() // 1000 - args.since * 1_000_000)
    except (rules.CatalogError, OSError) as error:
        return _refused(f"--rules: {error}")
    except (SettingsError, StoreUnusable) as error:
        return _refused(str(error))
    for change in changes:
        sys.stdout.write(_as_json(change) if args.json else _as_text(change))
    if not args.json:
        sys.stdout.write(f"{len(changes)} of {seen} verdicts would change under {rules.rules_version(catalog)}.\n")
    return 0


def _refused(reason: str) -> int:
    sys.stderr.write(f"gcm-sentinel rejudge: {reason}\n")
    return 2


def _rejudged(database: Path, catalog: rules.Catalog, since_us: int) -> tuple[int, list[Change]]:
    """How many incidents were judged, and those whose verdict differs in what an operator acts on. Raises StoreUnusable."""
    if not database.is_file():
        raise StoreUnusable(f"{database} does not exist; set GCM_SENTINEL_STATE_DIR as the aggregator has it")
    context = rules.Context(catalog=catalog)
    engine = open_readers(database)
    try:
        with engine.connect() as connection:
            judged = list(_rejudged_pages(connection, since_us, context))
    except DatabaseError as error:
        raise StoreUnusable(f"{database} cannot be read: {error.orig}") from error
    finally:
        engine.dispose()
    return len(judged), [change for change in judged if _advice(change.before) != _advice(change.after)]


def _rejudged_pages(connection: Connection, since_us: int, context: rules.Context) -> Iterator[Change]:
    """Incidents that were heard of since then, newest first, judged again in the light of what the store knows beside them."""
    before: tuple[int, str] | None = None
    while page := queries.list_incidents(connection, include_resolved=True, before=before, limit=PAGE):
        contexts = beside.contexts(connection, [incident for incident, _ in page], context)
        for incident, assessment in page:
            if assessment is not None and incident.updated_us >= since_us:
                yield _judged(incident, assessment.verdict, contexts[incident.id])
        before = (page[-1][0].opened_us, page[-1][0].id)


def _judged(incident: Incident, before: Verdict, context: rules.Context) -> Change:
    assessment = assessor.assess(incident, None, incident.updated_us, context=context)
    assert assessment is not None  # without an earlier one there is always a new one
    return Change(incident, before, assessment.verdict)


def _advice(verdict: Verdict) -> dict[str, object]:
    """What an operator acts on."""
    return {
        "severity": verdict.severity.value,
        "fault_class": verdict.fault_class.value,
        "action": verdict.action.value,
        "resolutions": [resolution.value for resolution in verdict.resolutions],
    }


def _as_json(change: Change) -> str:
    subject = change.incident.subject
    shown = {
        "incident": change.incident.id,
        "node": subject.node,
        "pci": subject.pci,
        "before": _advice(change.before) | {"rule_ids": list(change.before.rule_ids)},
        "after": _advice(change.after) | {"rule_ids": list(change.after.rule_ids)},
    }
    return json.dumps(shown) + "\n"


def _as_text(change: Change) -> str:
    subject = change.incident.subject
    lines = [f"{change.incident.id}  {subject.node} {subject.pci or ''}".rstrip()]
    for name, verdict in (("was", change.before), ("would be", change.after)):
        advice = ", ".join(resolution.value for resolution in verdict.resolutions)
        rule = verdict.rule_ids[0] if verdict.rule_ids else "no rule"
        lines.append(f"    {name:9} {verdict.severity} {verdict.fault_class}, {verdict.action}: {advice}  ({rule})")
    return "\n".join(lines) + "\n"
