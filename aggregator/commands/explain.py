"""`gcm-sentinel explain`: what is known about an XID, an SXid or a signal kind, with sources. Needs no server and no GPU."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from aggregator.commands import generations, site_rules
from aggregator.model import Severity
from aggregator.render import visible
from aggregator.rules.catalog import CODED, Catalog, Entry
from aggregator.rules.kinds import KINDS
from aggregator.rules.wording import prohibition, step

SEVERITIES = {
    Severity.CRITICAL: "GPU or node unusable, or data at risk, until reset, reboot or repair",
    Severity.WARNING: "work lost or degraded: follow up",
    Severity.INFO: "worth a record",
    Severity.OK: "no fault",
}
_LABEL = 11  # columns in front of what a label says
_MOST = 100  # columns: longer lines read badly


class UsageError(Exception):
    """What was asked for cannot be looked up: exit code 2."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`xid 79`, `sxid 20034`, `signal KIND`; or a list of them."""
    parser.epilog = (
        "Examples: explain xid 79 · explain sxid 20034 · explain signal row_remap_pending · explain xid --list"
    )
    parser.add_argument("what", nargs="?", type=str.lower, choices=[*CODED, "signal"], help="what to explain")
    parser.add_argument("which", nargs="?", metavar="CODE|KIND", help="a number, or the name of a signal kind")
    parser.add_argument("--generation", metavar="G", help="GPU generation or model, for example hopper or H200")
    parser.add_argument("--driver", metavar="V", help="driver version, for example 550.54.15")
    parser.add_argument("--list", action="store_true", help="one line for everything known")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(args: argparse.Namespace) -> int:
    """Print it. A code that nobody knows is an answer too: 0."""
    try:
        catalog = site_rules.catalog(os.environ)
        text = _listing(catalog, args) if args.list else _explanation(catalog, args)
    except (UsageError, site_rules.SiteRulesError) as error:
        sys.stderr.write(f"gcm-sentinel explain: {visible(str(error))}\n")
        return 2
    sys.stdout.write(text)
    return 0


def _listing(catalog: Catalog, args: argparse.Namespace) -> str:
    if args.which is not None:
        raise UsageError("--list shows all of a kind: leave out the code")
    entries = [entry for entry in catalog.entries.values() if args.what in (None, _group(entry))]
    if args.json:
        return _as_json({"entries": [asdict(entry) for entry in entries]}, catalog)
    return "".join(
        f"{_called(entry):28} {entry.severity:9} {entry.fault_class:12} {entry.meaning}\n" for entry in entries
    )


def _explanation(catalog: Catalog, args: argparse.Namespace) -> str:
    kind, code = _asked(args.what, args.which)
    entry = catalog.entry(kind, code)
    known = entry is not None
    shown = entry or catalog.unknown(kind, code)
    here = list(_here(shown, args.generation, args.driver))
    if args.json:
        return _as_json({"known": known, **asdict(shown), "conditions": here}, catalog)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = min(shutil.get_terminal_size((_MOST, 24)).columns, _MOST)
    return "\n".join(_paragraphs(shown, known, here, catalog, width=width, colour=colour)) + "\n"


def _here(entry: Entry, generation: str | None, driver: str | None) -> Iterator[str]:
    """What holds for this entry on this GPU and driver; nothing for what is not given."""
    try:
        if generation is not None:
            yield from generations.on_generation(entry, generation) or [f"{generation}: it applies there."]
    except generations.Unknown as error:
        raise UsageError(f"--generation {error}") from error
    try:
        if driver is not None:
            nothing = f"{driver}: nothing about this entry depends on the driver, as far as is known."
            yield from generations.on_driver(entry, driver) or [nothing]
    except generations.Unknown as error:
        raise UsageError(f"--driver {error}") from error


def _asked(what: str | None, which: str | None) -> tuple[str, int | None]:
    if what is None or which is None:
        raise UsageError("say what to explain: xid CODE, sxid CODE or signal KIND; --list shows all")
    if what in CODED:
        if not (which.isascii() and which.isdecimal() and len(which) <= 9):
            raise UsageError(f"an {what} is a number, not {which!r}")
        return what, int(which)
    if which in CODED:
        raise UsageError(f"say which one: explain {which} CODE")
    if which not in KINDS:
        near = difflib.get_close_matches(which, KINDS, n=3)
        raise UsageError(
            f"no signal kind {which!r}; {'near: ' + ', '.join(near) if near else 'see explain signal --list'}"
        )
    return which, None


def _paragraphs(
    entry: Entry, known: bool, here: Iterable[str], catalog: Catalog, *, width: int, colour: bool
) -> Iterator[str]:
    title = f"{_called(entry)} · {entry.name}" if known else f"{_called(entry)} · not in the catalog"
    yield f"\x1b[1m{title}\x1b[0m" if colour else title
    yield textwrap.fill(entry.meaning, width)
    yield ""
    for label, lines in _sections(entry, here):
        yield from _labelled(label, lines, width)
    yield from _labelled("Rules", [f"version {catalog.version}, digest {catalog.digest[:12]}"], width)


def _sections(entry: Entry, here: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    yield "Severity", [f"{entry.severity}: {SEVERITIES[entry.severity]}"]
    yield "Class", [str(entry.fault_class)]
    yield "Node", [str(entry.action)]
    yield "Do now", [step(item) for item in entry.resolutions]
    yield "Avoid", [prohibition(item) for item in entry.do_not]
    yield "If again", [entry.recurrence_advice] if entry.recurrence_advice else []
    yield "Certainty", [_certainty(entry)]
    yield "Applies to", [entry.applies_to] if entry.applies_to else []
    yield "Here", list(here)
    yield "Note", [entry.note] if entry.note else []
    if entry.kind in KINDS and entry.code is None:
        yield "Attributes", [f"{name}: {meaning}" for name, meaning in KINDS[entry.kind].attributes.items()]
    yield "Sources", list(entry.sources)


def _certainty(entry: Entry) -> str:
    alone = f"read alone, this is right in about {entry.confidence:.0%} of cases"
    return f"{alone}; usually a consequence of something else" if entry.yields else alone


def _labelled(label: str, lines: list[str], width: int) -> Iterator[str]:
    for number, line in enumerate(lines):
        first = f"{label if number == 0 else '':{_LABEL}}"
        indent = " " * _LABEL
        yield textwrap.fill(
            line, width, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )


def _called(entry: Entry) -> str:
    spoken = {"xid": "XID", "sxid": "SXid"}
    return entry.kind if entry.code is None else f"{spoken[entry.kind]} {entry.code}"


def _group(entry: Entry) -> str:
    return entry.kind if entry.kind in CODED else "signal"


def _as_json(body: dict[str, object], catalog: Catalog) -> str:
    rules = {"version": catalog.version, "digest": catalog.digest}
    return json.dumps(body | {"rules": rules}, indent=2, ensure_ascii=False) + "\n"
