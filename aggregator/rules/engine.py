"""Judges the signals of one incident. Pure, deterministic, and independent of the order in which signals are given.

First every signal is read by itself (the catalog, and its own words). Then the rules that need several signals say what
they find, and so does the strongest single reading, unless a rule blames it already. The finding of the highest priority is the
verdict; one that it does not account for is told as a second matter. What the driver names to recover the device, and what the
site's own rules say of the cause, is laid over it. Last a guard removes advice that an entry involved forbids: no rule can
recommend what would harm.

Confidence is the prior that the reading is right (catalog, or rule), calibrated by how often its family of rules is
(`calibration`), and lowered when a line contradicts its own code. Citations are the ids of the signals that the verdict rests on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from aggregator.model import SEVERITY_ORDER, Action, FaultClass, Resolution, Severity, Signal, Verdict
from aggregator.rules import multi, wording
from aggregator.rules.burst import Burst, Reading, burst_of, event_order, fact
from aggregator.rules.calibration import calibrated, family
from aggregator.rules.catalog import Catalog
from aggregator.rules.context import EMPTY, Context
from aggregator.rules.finding import Finding
from aggregator.rules.multi.recovery import with_named_recovery
from aggregator.rules.relations import follows_from
from aggregator.rules.site import with_site_rules

NODE_ACTIONS = {
    Action.CORDON: Resolution.CORDON,
    Action.DRAIN: Resolution.DRAIN,
    Action.REBOOT: Resolution.REBOOT,
}
CONTRADICTION = 0.7  # of the confidence is left where a line contradicts its own code


def judge(signals: Sequence[Signal], context: Context = EMPTY) -> Verdict:
    """The verdict on an incident's signals. Never raises for what signals contain."""
    burst = burst_of(signals, context.catalog)
    version = rules_version(context.catalog)
    if not burst.faults:
        return _no_fault(burst, version)
    main, others = _ranked(burst, context)
    finding = with_site_rules(with_named_recovery(main, burst))
    return _verdict(replace(finding, beside=_beside(finding, others)), burst, version)


def rules_version(catalog: Catalog) -> str:
    """What names the rules on every verdict: the catalog's version and the head of its digest."""
    return f"{catalog.version}@{catalog.digest[:12]}"


def _ranked(burst: Burst, context: Context) -> tuple[Finding, list[Finding]]:
    """What is concluded, and what else could be. A single reading competes unless a rule accounts for it: that rule knows more."""
    found = [finding for rule in multi.ALL if (finding := rule(burst, context)) is not None]
    alone = _single(burst)
    lead = alone.cause[0].signal
    earlier = [r.signal for finding in found for r in finding.cause if event_order(r.signal) <= event_order(lead)]
    if not any(_accounts_for(cause, lead) for cause in earlier):
        found.append(alone)
    main = max(found, key=lambda finding: finding.priority)
    return main, [finding for finding in found if finding is not main]


def _beside(main: Finding, others: Iterable[Finding]) -> tuple[Finding, ...]:
    """Faults of another kind that need a repair of their own: the main one neither rests on them nor brought them about."""
    return tuple(
        other
        for other in others
        if other.severity is Severity.CRITICAL
        and family(other.rule_id) != family(main.rule_id)
        and not any(_accounts_for(known.signal, r.signal) for known in (*main.cause, *main.proof) for r in other.cause)
    )


def _accounts_for(cause: Signal, effect: Signal) -> bool:
    return fact(cause) == fact(effect) or follows_from(cause, effect)


def leading(readings: Sequence[Reading]) -> Reading:
    """The reading that explains most: the one of the highest weight, the worst and then the earliest among equals."""
    return min(readings, key=lambda r: (-r.entry.weight, -SEVERITY_ORDER[r.entry.severity], event_order(r.signal)))


def _single(burst: Burst) -> Finding:
    """The verdict that needs no rule: the leading reading, with its equals on other devices."""
    lead = leading(burst.faults)
    same = tuple(r for r in burst.faults if (r.signal.kind, r.signal.code) == (lead.signal.kind, lead.signal.code))
    contradicts = "body_suggests" in lead.signal.attributes
    return Finding(
        rule_id=_entry_id(lead),
        priority=lead.entry.weight,
        severity=_worst([lead.entry.severity, *(r.entry.severity for r in same)]),
        fault_class=lead.entry.fault_class,
        action=lead.entry.action,
        resolutions=lead.entry.resolutions,
        confidence=lead.entry.confidence,
        caution=CONTRADICTION if contradicts else 1.0,
        cause=same,
        explanation=wording.contradiction(lead) if contradicts else lead.entry.note,
        recurrence_advice=lead.entry.recurrence_advice,
        do_not=lead.entry.do_not,
    )


def _verdict(finding: Finding, burst: Burst, version: str) -> Verdict:
    forbidden = set().union(*(reading.entry.do_not for reading in finding.cause)) - set(finding.permits)
    forbidden |= set(finding.do_not)
    resolutions = tuple(r for r in finding.resolutions if r not in forbidden) or (Resolution.INVESTIGATE,)
    action = Action.NONE if NODE_ACTIONS.get(finding.action) in forbidden else finding.action
    cited = {reading.signal.id: reading.signal for reading in (*finding.cause, *finding.proof, *burst.faults)}
    unknown = tuple(dict.fromkeys(wording.unknown_code_question(r) for r in burst.faults if not r.known))
    return Verdict(
        severity=finding.severity,
        fault_class=finding.fault_class,
        action=action,
        resolutions=resolutions,
        root_cause=finding.root_cause or wording.root_cause(finding),
        summary=wording.summary(finding, burst),
        confidence=round(max(0.01, calibrated(finding.rule_id, finding.confidence) * finding.caution), 2),
        citations=tuple(signal.id for signal in sorted(cited.values(), key=event_order)),
        rule_ids=tuple(dict.fromkeys((finding.rule_id, *(_entry_id(reading) for reading in finding.cause)))),
        recurrence_advice=finding.recurrence_advice or finding.cause[0].entry.recurrence_advice,
        open_questions=finding.open_questions + unknown,
        do_not=tuple(wording.prohibition(item) for item in sorted(forbidden)),
        next_steps=tuple(wording.step(item) for item in resolutions),
        rules_version=version,
    )


def _no_fault(burst: Burst, version: str) -> Verdict:
    cited = (*(reading.signal.id for reading in burst.context), *(signal.id for signal in burst.ended))
    return Verdict(
        severity=Severity.OK,
        fault_class=FaultClass.NONE,
        action=Action.NONE,
        resolutions=(Resolution.NONE,),
        root_cause="No fault was found.",
        summary=wording.no_fault(burst),
        confidence=0.9,
        citations=cited,
        rule_ids=("no_fault",),
        rules_version=version,
    )


def _entry_id(reading: Reading) -> str:
    known = "catalog" if reading.known else "unknown"
    return f"{known}/{reading.signal.name.replace(' ', '/')}"


def _worst(severities: Iterable[Severity]) -> Severity:
    return max(severities, key=SEVERITY_ORDER.__getitem__)
