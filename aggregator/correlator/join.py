"""Which incident of its node a signal belongs to. Decided by what it is about and when it happened, never by when it arrived.

In this order: the incident about the same GPU in the same burst, if it can be one event with it; the one whose fact explains it;
one whose facts it explains; the same fault on another GPU a moment ago; the node's own. After the burst: an incident about the
same thing that is not over; the same fault again. Incidents that turn out to be one are merged into the older.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aggregator.correlator.close import has_open_state, lasts, needs_repair, repaired
from aggregator.correlator.places import NODE_WIDE, PLANNED, RESTARTS, Names, names_of
from aggregator.correlator.state import Node, Record, RuleBook, Windows, at_us, micros
from aggregator.model import Phase, Signal
from aggregator.rules.kinds import CLUSTER_KINDS


@dataclass(frozen=True, slots=True)
class Home:
    """Where a fault belongs: an incident, or none yet; and others that it shows to be the same."""

    record: Record | None
    absorbed: tuple[Record, ...] = ()
    in_burst: bool = False


def home_of(node: Node, signal: Signal, windows: Windows, rules: RuleBook) -> Home:
    """The incident that a fault joins."""
    names = names_of(signal)
    records = sorted(node.records.values(), key=lambda record: (-record.last_us, record.id))  # the latest first
    near = [record for record in records if _near(record, signal, _reach(record, signal, windows))]
    own = [record for record in near if names.gpu and _shares(record, names) and _kin(record, signal, rules)]
    known = next((record for record in near if _has(record, signal, names)), None)
    if known is not None and len(own) <= 1:
        return Home(known, in_burst=True)
    effects = [record for record in near if record not in own and _causes_one_of(signal, record, windows, rules)]
    if own or effects:
        return _joined([*own, *effects])
    found = (
        next((record for record in near if _is_caused_by(signal, record, windows, rules)), None)
        or _same_fault(near, signal, windows)
        or (None if names.gpu else _own_of_the_node(near, signal, names, rules))
    )
    if found is not None:
        return Home(found, in_burst=True)
    return Home(_unfinished(records, signal, windows, rules) or _again(records, signal, names, windows))


def homes_of_context(node: Node, signal: Signal, windows: Windows, rules: RuleBook) -> list[Record]:
    """The incidents to which something that is no fault belongs: an end, a repair, a planned state, a circumstance."""
    records = node.records.values()
    names = names_of(signal)
    if signal.phase is Phase.ENDED:
        begun = [record for record in records if _began_here(record, signal, names)]
        return [record for record in begun if _unrepaired_at(record, at_us(signal), windows)]
    if signal.kind in NODE_WIDE:
        return [
            record
            for record in records
            if _near(record, signal, windows.burst_gap) or _unrepaired_at(record, at_us(signal), windows)
        ]
    if signal.kind == "gpu_reset_done":
        return [
            record for record in records if _shares(record, names) and _unrepaired_at(record, at_us(signal), windows)
        ]
    near = [record for record in records if _near(record, signal, windows.burst_gap)]
    return [
        record
        for record in near
        if _shares(record, names)
        or _causes_one_of(signal, record, windows, rules)
        or _is_caused_by(signal, record, windows, rules)
    ]


def circumstances(node: Node, fault: Signal, windows: Windows, rules: RuleBook) -> Iterable[Signal]:
    """What was seen on the node around a fault, or since, that belongs to its incident."""
    at, names = at_us(fault), names_of(fault)
    for signal in node.recent:
        if signal.kind in RESTARTS and at_us(signal) >= at:
            yield signal
        elif signal.kind in PLANNED:
            recent = at - micros(windows.hold) <= at_us(signal) <= at + micros(windows.hold_lead)
            if (recent or lasts(signal, at, node.recent)) and _concerns(signal, names):
                yield signal
        elif abs(at_us(signal) - at) <= micros(windows.burst_gap) and (
            not names_disjoint(names_of(signal), names) or _causes(signal, fault, windows, rules)
        ):
            yield signal


def names_disjoint(one: Names, other: Names) -> bool:
    """Nothing in common."""
    return set(one.all).isdisjoint(other.all)


def _concerns(plan: Signal, names: Names) -> bool:
    return plan.kind in NODE_WIDE or not names_disjoint(names_of(plan), names)


def _near(record: Record, signal: Signal, gap_seconds: float) -> bool:
    gap = micros(gap_seconds)
    return record.first_us - gap <= at_us(signal) <= record.last_us + gap


def _reach(record: Record, signal: Signal, windows: Windows) -> float:
    """How far apart they may be: the cluster's checks run minutes apart, and find that late what was seen first hand."""
    second_hand = signal.kind in CLUSTER_KINDS or all(kind in CLUSTER_KINDS for kind, _ in record.faults)
    return windows.check_lag if second_hand else windows.burst_gap


def _shares(record: Record, names: Names) -> bool:
    return any(name in record.names for name in names.all)


def _has(record: Record, signal: Signal, names: Names) -> bool:
    """The same fault of the same thing is in it already: a storm ends its search here."""
    return (signal.kind, signal.code) in record.faults and any(
        head.kind == signal.kind and head.code == signal.code and not names_disjoint(names_of(head), names)
        for head in record.heads()
    )


def _causes(cause: Signal, effect: Signal, windows: Windows, rules: RuleBook) -> bool:
    """A cause is not reported long after its effect; a polled one may be reported a moment after it."""
    return at_us(cause) <= at_us(effect) + micros(windows.spread) and rules.explains(cause, effect)


def _causes_one_of(signal: Signal, record: Record, windows: Windows, rules: RuleBook) -> bool:
    return any(_causes(signal, head, windows, rules) for head in record.heads())


def _is_caused_by(signal: Signal, record: Record, windows: Windows, rules: RuleBook) -> bool:
    return any(_causes(head, signal, windows, rules) for head in record.heads())


def _same_fault(records: Iterable[Record], signal: Signal, windows: Windows) -> Record | None:
    """One switch, one driver or one job hits many GPUs at once."""
    fault, spread = (signal.kind, signal.code), micros(windows.spread)
    return next(
        (
            record
            for record in records
            if fault in record.faults and abs(at_us(signal) - record.faults[fault]) <= spread
        ),
        None,
    )


def _own_of_the_node(near: Iterable[Record], signal: Signal, names: Names, rules: RuleBook) -> Record | None:
    return next((record for record in near if _shares(record, names) and _kin(record, signal, rules)), None)


def _kin(record: Record, signal: Signal, rules: RuleBook) -> bool:
    return any(rules.kin(fault, signal) for fault in record.fault_heads())


def _unfinished(records: Iterable[Record], signal: Signal, windows: Windows, rules: RuleBook) -> Record | None:
    """After the burst: an incident about the same GPU that was not over at the time. A GPU that works on with a repair that waits,
    quietly, can meet another fault meanwhile; one that does not work cannot."""
    names, at = names_of(signal), at_us(signal)
    for record in records:
        if (
            not names.gpu
            or not _shares(record, names)
            or at < record.first_us
            or not _unrepaired_at(record, at, windows)
        ):
            continue
        quiet = at > record.last_us + micros(windows.quiet_close)
        if _has(record, signal, names) and (not quiet or has_open_state(record, windows)):
            return record
        broken = has_open_state(record, windows) and needs_repair(record, rules)
        if (not quiet or broken) and _kin(record, signal, rules):
            return record
    return None


def _again(records: Iterable[Record], signal: Signal, names: Names, windows: Windows) -> Record | None:
    """The same fault of the same thing within the time in which it continues its incident."""
    gap, reopen = micros(windows.burst_gap), micros(windows.reopen)
    for record in records:
        if record.first_us - gap <= at_us(signal) <= record.last_us + reopen and _has(record, signal, names):
            return record
    return None


def _unrepaired_at(record: Record, time_us: int, windows: Windows) -> bool:
    repair = repaired(record, windows)
    return repair is None or repair.at_us > time_us


def _began_here(record: Record, end: Signal, names: Names) -> bool:
    """The state whose end this is began in this incident."""
    return any(head.kind == end.kind and not names_disjoint(names_of(head), names) for head in record.heads())


def _joined(records: list[Record]) -> Home:
    oldest = min(records, key=lambda record: (record.first_us, record.id))
    return Home(oldest, tuple(record for record in records if record is not oldest), in_burst=True)
