"""How an incident stands: open or resolved, held or not, and when time alone will change that.

All of it follows from the incident's signals, when it was last heard of, and the present time. A state ends when its end is
reported. A point ends with a repair: the end of a state that only a reset ends, a reset, a driver load, a reboot. Silence ends
what needs no repair. A reopened incident is simply one with a fault after its last repair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aggregator.correlator.places import (
    COUNTED,
    EXCUSED,
    LASTING,
    NODE,
    PASSING,
    PLANNED,
    RESTARTS,
    UNTIL_RESET,
    Key,
    about,
    is_link_fault,
    names_of,
)
from aggregator.correlator.state import Record, RuleBook, Windows, at_us, in_order, micros
from aggregator.model import Incident, IncidentState, Phase, Signal, Subject
from aggregator.rules.kinds import CLUSTER_KINDS, About

DEADLINE_GRAIN_US = (
    250_000  # deadlines are rounded up to this, so that ten thousand of them do not wake us ten thousand times
)
NOT_REPORTED_ANEW = frozenset(
    ("kmsg", "kmsg_storm", "kmsg_previous_boot", "pstore")
)  # an agent's restart says nothing of these


@dataclass(frozen=True, slots=True)
class Repair:
    """When a fault was over, and what ended it: recovered or rebooted."""

    at_us: int
    because: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How an incident stands at a time, and when that changes by itself."""

    resolved_us: int | None = None
    because: str = ""
    deadline_us: int | None = None


def repaired(record: Record, windows: Windows) -> Repair | None:
    """When the last of its faults was over; None while one is not. May lie ahead: a restart takes effect after a while."""
    mending = record.of(_mends)
    if not mending:
        return None
    repairs = []
    for fault in record.fault_signals():
        found = _repair_of(fault, mending, windows)
        if found is not None:
            repairs.append(found)
        elif fault.phase is Phase.BEGAN or fault.kind not in PASSING:
            return None
    return max(repairs, key=lambda repair: repair.at_us, default=None)


def _mends(key: Key) -> bool:
    return key.phase is Phase.ENDED or key.kind in RESTARTS or key.kind == "gpu_reset_done"


def _repair_of(fault: Signal, mending: Iterable[Signal], windows: Windows) -> Repair | None:
    """The first thing that ended a fault."""
    repairs = (_repair_by(mend, fault, windows) for mend in mending if at_us(mend) >= at_us(fault))
    return min((repair for repair in repairs if repair), key=lambda repair: repair.at_us, default=None)


def _repair_by(mend: Signal, fault: Signal, windows: Windows) -> Repair | None:
    at, settled = at_us(mend), at_us(mend) + micros(windows.settle)
    if mend.phase is Phase.ENDED:
        return Repair(at, "recovered") if _end_covers(mend, fault) else None
    if fault.kind in CLUSTER_KINDS:  # says itself when it is over, and knows of no boot
        return None
    if mend.kind in ("kernel_boot", "agent_started") and mend.boot_id != fault.boot_id:
        return Repair(settled, "rebooted")
    if mend.kind == "agent_started":
        reported_anew = fault.phase is Phase.BEGAN and fault.source not in NOT_REPORTED_ANEW
        return Repair(at + micros(windows.reconfirm), "recovered") if reported_anew else None
    if fault.phase is Phase.BEGAN:
        return None
    if mend.kind == "driver_loaded" and about(fault) in (About.GPU, About.LINK):
        return Repair(settled, "recovered")
    if mend.kind == "gpu_reset_done" and _share_a_gpu(mend, fault):
        return Repair(settled, "recovered")
    return None


def _end_covers(end: Signal, fault: Signal) -> bool:
    """The end of the state itself, or of one that a reset of the same GPU ended."""
    if end.kind == fault.kind:
        return bool(set(names_of(end).all) & set(names_of(fault).all))
    resettable = fault.phase is Phase.POINT or fault.kind in COUNTED
    return end.kind in UNTIL_RESET and resettable and _share_a_gpu(end, fault)


def _share_a_gpu(one: Signal, other: Signal) -> bool:
    names, others = names_of(one), names_of(other)
    return names.gpu and others.gpu and not set(names.all).isdisjoint(others.all)


def has_open_state(record: Record, windows: Windows) -> bool:
    """A state began and nothing ended it: silence then means that it still holds. So does one that a log only mentions."""
    begun = record.of(_lasts)
    mending = record.of(_mends)
    return any(state.id not in record.circumstances and _repair_of(state, mending, windows) is None for state in begun)


def needs_repair(record: Record, rules: RuleBook) -> bool:
    """Whether its faults stay until they are repaired. The rules are asked once for the signals it holds."""
    if record.needs_repair is None:
        record.needs_repair = rules.needs_repair(record.signals())
    return record.needs_repair


def _lasts(key: Key) -> bool:
    if key.phase is Phase.BEGAN:
        return key.kind not in COUNTED
    return key.phase is Phase.POINT and key.kind in UNTIL_RESET


def standing(record: Record, now_us: int, windows: Windows, rules: RuleBook) -> Standing:
    """See Standing."""
    if record.forced:
        return Standing(record.last_us, record.forced)
    repair = repaired(record, windows)
    if repair is not None:
        due = _rounded(repair.at_us)
        return Standing(repair.at_us, repair.because) if due <= now_us else Standing(deadline_us=due)
    if has_open_state(record, windows):
        return Standing()
    quiet_us = _rounded(record.heard_us + micros(windows.quiet_close))
    if quiet_us <= now_us and needs_repair(record, rules):
        quiet_us = _rounded(record.heard_us + micros(windows.critical_close))
    return Standing(quiet_us, "quiet") if quiet_us <= now_us else Standing(deadline_us=quiet_us)


def hold(record: Record, windows: Windows, rules: RuleBook) -> tuple[int, str] | None:
    """Until when planned states excuse every fault of the incident, and what people call the last of them."""
    plans = sorted(record.of(lambda key: key.kind in PLANNED), key=in_order, reverse=True)
    if not plans:
        return None
    until, because = 0, ""
    for fault in record.fault_signals():
        excused = (plan for plan in plans if fault.kind in EXCUSED or rules.explains(plan, fault))
        plan = next((plan for plan in excused if _covers(plan, fault, plans, windows)), None)
        if plan is None:
            return None
        last_us = max(at_us(plan), at_us(fault)) if lasts(plan, at_us(fault), plans) else at_us(plan)
        if (end := last_us + micros(windows.hold)) > until:
            until, because = end, PLANNED[plan.kind]
    return (until, because) if until else None


def _covers(plan: Signal, fault: Signal, plans: Sequence[Signal], windows: Windows) -> bool:
    since, until = at_us(plan) - micros(windows.hold_lead), at_us(plan) + micros(windows.hold)
    return since <= at_us(fault) and (at_us(fault) <= until or lasts(plan, at_us(fault), plans))


def lasts(plan: Signal, time_us: int, plans: Iterable[Signal]) -> bool:
    """Whether a planned state that began before a time had not ended by then."""
    if plan.kind not in LASTING or plan.phase is not Phase.BEGAN or at_us(plan) > time_us:
        return False
    return not any(
        other.kind == plan.kind and other.phase is Phase.ENDED and at_us(plan) <= at_us(other) <= time_us
        for other in plans
    )


def settle(record: Record, node: str, now_us: int, windows: Windows, rules: RuleBook) -> Incident:
    """The incident as it stands now. Sets the record's next deadline."""
    stands = standing(record, now_us, windows, rules)
    is_open = stands.resolved_us is None
    deadlines = [stands.deadline_us if is_open else record.touched_us + micros(windows.reopen)]
    held = hold(record, windows, rules) if is_open else None
    if held is not None:
        held = (_rounded(held[0]), held[1])
        held = held if held[0] > now_us else None
    if held is not None:
        deadlines.append(held[0])
    record.deadline_us = min((deadline for deadline in deadlines if deadline is not None), default=None)
    signals = tuple(record.signals())
    return Incident(
        id=record.id,
        subject=subject_of(record, node, signals),
        nodes=(node,),
        signals=signals,
        state=IncidentState.OPEN if is_open else IncidentState.RESOLVED,
        opened_us=record.first_us,
        updated_us=record.heard_us,
        resolved_us=stands.resolved_us,
        resolved_because=stands.because,
        quiet=not record.live,
        held_until_us=held[0] if held else None,
        held_because=held[1] if held else "",
        fleet_id=record.fleet_id,
    )


def subject_of(record: Record, node: str, signals: Sequence[Signal]) -> Subject:
    """One GPU, the peers of an NVLink fault, or the node."""
    addresses = [name for name in record.gpu_names if ":" in name]
    uuids = [name for name in record.gpu_names if ":" not in name]
    if max(len(addresses), len(uuids)) == 1:
        return Subject("gpu", node, pci=next(iter(addresses), None), gpu_uuid=next(iter(uuids), None))
    linked = any(is_link_fault(signal) for signal in signals if signal.phase is not Phase.ENDED)
    return Subject("nvlink_peers" if linked else NODE, node)


def _rounded(deadline_us: int) -> int:
    return -(-deadline_us // DEADLINE_GRAIN_US) * DEADLINE_GRAIN_US
