"""`gcm-sentinel diagnose`: logs in, verdicts out; needs no server, no cluster and no key.

Reads whatever an operator has at hand, groups it as the aggregator would, and judges each incident with the same rules.
`--format json` is a contract (DESIGN §5): one object on stdout. Notices about the input go to stderr. Exit codes: 0 done; 2 an
input could not be read at all, an option's value means nothing, or the rules overlay is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aggregator import assessor, correlator, rules
from aggregator.commands import generations, site_rules
from aggregator.commands.log_input import LogInput, Unreadable
from aggregator.model import SEVERITY_ORDER, Assessment, Incident, IncidentState, Severity, Signal, Subject, Verdict
from aggregator.render import render_text, visible
from aggregator.rules import LogReader

_PROGRESS_SECONDS = 0.2
_MAX_EARLIER = 20  # incidents of one GPU that a later one is compared with
_MAX_CONDITIONS = 5  # codes
_WALL_US = 10 * 365 * 86_400 * 1_000_000  # times before 1980 are seconds since boot
_MAX_WIDTH = 120  # columns: longer lines of prose are hard to read


class UsageError(Exception):
    """An option's value means nothing. The message names the option: exit code 2."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was read and concluded."""

    signals: tuple[Signal, ...]
    findings: tuple[tuple[Incident, Assessment], ...]  # worst first
    lines_read: int
    lines_matched: int
    rules_version: str  # of the rules and the site's overlay
    inputs_unread: int = 0

    @property
    def severity(self) -> Severity:
        """The worst finding's; ok without any."""
        return self.findings[0][1].verdict.severity if self.findings else Severity.OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Inputs, output format, and what the text may not tell by itself."""
    parser.description = (
        "Read logs (dmesg, journal, kmsg, syslog, fabric manager, nvidia-smi, dcgm-exporter …), print the verdict."
    )
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="files, plain or packed (gzip, xz, bzip2); - or nothing reads stdin"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="what to print (text)")
    parser.add_argument(
        "--gpu-model", default="", metavar="M", help="GPU model, where the text does not name it: H100, B200 …"
    )
    parser.add_argument(
        "--driver", default="", metavar="V", help="NVIDIA driver version, where the text does not name it"
    )


def run(args: argparse.Namespace) -> int:
    """Diagnose the named inputs; return the exit code."""
    try:
        catalog = site_rules.catalog(os.environ)
        _check(args)
    except (site_rules.SiteRulesError, UsageError) as error:
        _notice(str(error))
        return 2
    paths = list(dict.fromkeys(args.files)) or ["-"]
    readers = _read_all(paths)
    unread = len(paths) - len(readers)
    if readers:
        context = rules.Context(
            driver_version=args.driver or _first(reader.driver_version for reader in readers),
            gpu_model=args.gpu_model or _first(reader.gpu_model for reader in readers),
            catalog=catalog,
        )
        diagnosis = diagnose(readers, context)
        try:
            _print(replace(diagnosis, inputs_unread=unread), args.format, context)
        except BrokenPipeError:  # whoever reads us has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2 if unread else 0


def _check(args: argparse.Namespace) -> None:
    """What is given about GPU and driver must mean something. Raises UsageError."""
    for option, given, check in (
        ("--gpu-model", args.gpu_model, generations.columns_of),
        ("--driver", args.driver, generations.branch_of),
    ):
        try:
            if given:
                check(given)
        except generations.Unknown as error:
            raise UsageError(f"{option} {error}") from error


def diagnose(readers: Sequence[LogReader], context: rules.Context) -> Diagnosis:
    """Group what was read into incidents as the aggregator does, and judge each."""
    signals = tuple(signal for reader in readers for signal in reader.signals())
    timed = _timed(signals)
    now_us = max((signal.at_us or 0 for signal in timed), default=0)
    step = correlator.step(
        correlator.State(), timed, now_us, correlator.Windows(), correlator.rules_of(context.catalog)
    )
    incidents = {change.incident.id: change.incident for change in step.changes}
    told = sorted(
        (incident for incident in incidents.values() if not _merged(incident)), key=lambda incident: incident.opened_us
    )
    findings = sorted(_judged(told, context), key=_rank)
    return Diagnosis(
        signals=signals,
        findings=tuple(findings),
        lines_read=sum(reader.lines_read for reader in readers),
        lines_matched=sum(reader.lines_matched for reader in readers),
        rules_version=rules.rules_version(context.catalog),
    )


def _judged(incidents: Iterable[Incident], context: rules.Context) -> Iterator[tuple[Incident, Assessment]]:
    """Each incident, oldest first, with its assessment in the light of what the input holds of the same GPU before it."""
    before: dict[Subject, list[Incident]] = {}
    for incident in incidents:
        past = before.setdefault(incident.subject, [])
        earlier = (other for other in past[-_MAX_EARLIER:] if other.updated_us < incident.opened_us)
        history = tuple(signal for other in earlier for signal in other.signals) if incident.subject.pci else ()
        past.append(incident)
        assessment = assessor.assess(incident, None, incident.updated_us, context=replace(context, earlier=history))
        assert assessment is not None  # without an earlier one there is always a new one
        yield _offline(incident), assessment


def _offline(incident: Incident) -> Incident:
    """Without what only a running aggregator knows: nobody is paged from here, and kernel time is no time of day."""
    resolved_us = incident.resolved_us if (incident.resolved_us or 0) >= _WALL_US else None
    return replace(incident, held_until_us=None, resolved_us=resolved_us)


def _rank(finding: tuple[Incident, Assessment]) -> tuple[int, bool, int]:
    """Worst first; of equals those that are not over, in the order in which they began."""
    incident, assessment = finding
    over = incident.state is IncidentState.RESOLVED
    return (-SEVERITY_ORDER[assessment.verdict.severity], over, incident.opened_us)


def _merged(incident: Incident) -> bool:
    """What turned out to be part of another incident is told there."""
    return incident.resolved_because.startswith("merged into ")


def _read_all(paths: Sequence[str]) -> list[LogReader]:
    """Read every input that can be read; a notice names each that cannot."""
    readers: list[LogReader] = []
    for path in paths:
        try:
            source = LogInput(path, _notice)
            reader = LogReader(name=source.name if len(paths) > 1 else "", now_us=time.time_ns() // 1000)
            with contextlib.closing(source):
                _read(source, reader)
        except Unreadable as error:
            _notice(str(error))
        else:
            readers.append(reader)
    return readers


def _read(source: LogInput, reader: LogReader) -> None:
    progress = Progress(source)
    for block in source.blocks():
        reader.feed(block)
        progress.show(reader.lines_read)
    reader.finish()
    progress.clear()
    if reader.signals_dropped:
        _notice(f"{source.name}: {reader.signals_dropped} further signals were too many to keep")


class Progress:
    """A progress bar on stderr, where that is a terminal and the reading takes longer than a blink."""

    def __init__(self, source: LogInput) -> None:
        self._source = source
        self._on = sys.stderr.isatty()
        self._next = time.monotonic() + 2 * _PROGRESS_SECONDS
        self._shown = False

    def show(self, lines: int) -> None:
        """Draw it anew, at most five times a second."""
        if not self._on or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _PROGRESS_SECONDS
        self._shown = True
        done = f"{self._source.bytes_read / 1e6:,.0f} MB"
        if self._source.size:
            part = min(1.0, self._source.bytes_read / self._source.size)
            done = f"[{'#' * round(30 * part):<30}] {part:4.0%}  {done}"
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        line = f"{done}  {lines:,} lines  {visible(self._source.name)}"
        sys.stderr.write(f"\r\x1b[K{line[: width - 1]}")  # one in the last column would begin a new line
        sys.stderr.flush()

    def clear(self) -> None:
        """Take it away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")


def _timed(signals: Sequence[Signal]) -> list[Signal]:
    """Signals that can be grouped: what has no time takes that of the line before it, else of the first that has one."""
    last = next((signal.at_us for signal in signals if signal.at_us is not None), 0)
    timed = []
    for order, signal in enumerate(signals):
        last = last if signal.at_us is None else signal.at_us
        timed.append(replace(signal, at_us=last, order=order))
    return timed


def _first(values: Iterable[str | None]) -> str:
    return next((value for value in values if value), "")


def _notice(text: str) -> None:
    sys.stderr.write(f"gcm-sentinel diagnose: {visible(text)}\n")


def _print(diagnosis: Diagnosis, form: str, context: rules.Context) -> None:
    if form == "json":
        json.dump(as_json(diagnosis), sys.stdout, ensure_ascii=True)
        sys.stdout.write("\n")
    else:
        width, colour = (
            shutil.get_terminal_size((100, 24)).columns,
            sys.stdout.isatty() and not os.environ.get("NO_COLOR"),
        )
        sys.stdout.write(as_text(diagnosis, context, width=min(width, _MAX_WIDTH), colour=bool(colour)))
    sys.stdout.flush()


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """The contract's object."""
    return {
        "signals": [
            {
                "id": signal.id,
                "kind": signal.kind,
                "code": signal.code,
                "pci": signal.pci,
                "gpu_uuid": signal.gpu_uuid,
                "mig": signal.mig,
                "line": signal.line,
                "raw": signal.raw,
            }
            for signal in diagnosis.signals
        ],
        "incidents": [_incident_json(incident, assessment.verdict) for incident, assessment in diagnosis.findings],
        "severity": diagnosis.severity.value,
        "lines_read": diagnosis.lines_read,
        "lines_matched": diagnosis.lines_matched,
        "rules_version": diagnosis.rules_version,
    }


def _incident_json(incident: Incident, verdict: Verdict) -> dict[str, Any]:
    return {
        "id": incident.id,
        "subject": {"pci": incident.subject.pci, "gpu_uuid": incident.subject.gpu_uuid},
        "severity": verdict.severity.value,
        "fault_class": verdict.fault_class.value,
        "action": verdict.action.value,
        "resolutions": [resolution.value for resolution in verdict.resolutions],
        "root_cause": verdict.root_cause,
        "summary": verdict.summary,
        "confidence": verdict.confidence,
        "citations": list(verdict.citations),
        "rule_ids": list(verdict.rule_ids),
        "recurrence_advice": verdict.recurrence_advice,
        "open_questions": list(verdict.open_questions),
    }


def as_text(diagnosis: Diagnosis, context: rules.Context, *, width: int, colour: bool) -> str:
    """What a person reads: every incident, worst first, and how much of the input it rests on."""
    parts = [render_text(*finding, width=width, colour=colour) for finding in diagnosis.findings]
    parts += [textwrap.fill(line, width) + "\n" for line in _conditions(diagnosis, context)]
    read = f"{diagnosis.lines_matched:,} of {diagnosis.lines_read:,} lines tell something about GPUs or their host."
    if not parts:
        read = f"No fault of a GPU or its host. {read}"
    if diagnosis.inputs_unread:  # what was not read is not healthy
        read = f"{read} {diagnosis.inputs_unread} of the inputs could not be read."
    return "\n".join([*parts, f"{read}\n"])


def _conditions(diagnosis: Diagnosis, context: rules.Context) -> Iterator[str]:
    """What driver and GPU model, as given or read, change about the codes that verdicts rest on."""
    cited = {item for _, assessment in diagnosis.findings for item in assessment.verdict.citations}
    codes = dict.fromkeys((signal.kind, signal.code) for signal in diagnosis.signals if signal.id in cited)
    entries = [entry for kind, code in codes if code is not None and (entry := context.catalog.entry(kind, code))]
    for entry in entries[:_MAX_CONDITIONS]:
        for given, look_up in (
            (context.gpu_model, generations.on_generation),
            (context.driver_version, generations.on_driver),
        ):
            with contextlib.suppress(generations.Unknown):  # the text names what this release does not know
                yield from (f"{entry.kind.upper()} {entry.code} on {visible(said)}" for said in look_up(entry, given))
