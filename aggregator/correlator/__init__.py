"""Signals into incidents: which facts are about one event, in what order they happened, and when it is over.

Pure. `step` takes signals in the order they were stored (a node's own order is kept; nodes interleave; late facts happen) and
returns the next state with what changed; it never alters the state it was given. What a signal joins depends on what it is about
and when it happened, so cutting the same sequence into other steps, or replaying it into an empty store, gives the same incidents
under the same ids. Only closing looks at the clock.

The first fault of an incident opens it at once, under an id made from that fact's identity; later facts revise it. A fault like one
that it holds, about the same thing, within `Windows.reopen` continues the incident under its id, over reboots too, so that repeats
are seen by the rules; any other fault after the burst starts a new one. A fact older than a resolved incident's end revises it
and leaves it resolved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aggregator.correlator import fleet, work
from aggregator.correlator.state import RuleBook, Windows, rebuild
from aggregator.correlator.work import Change, State, Step, Work, rules_of
from aggregator.model import Gpu, Incident, Signal

__all__ = ["Change", "RuleBook", "State", "Step", "Windows", "identify", "restore", "rules_of", "step"]


def step(
    state: State, signals: Sequence[Signal], now_us: int, windows: Windows, rule_book: RuleBook | None = None
) -> Step:
    """Take signals in and let time pass until now_us. `rule_book` is the packaged rules unless given."""
    working = Work(state, now_us, windows, rule_book or work.rules_of())
    for signal in signals:
        working.take(signal)
    return working.finish()


def restore(incidents: Iterable[Incident], recent: Sequence[Signal] = (), rule_book: RuleBook | None = None) -> State:
    """The state behind stored incidents: those open, and those updated within `Windows.reopen`. `recent` are late context signals
    of the nodes, in their order, where there are any: what a later fault may need to be understood."""
    working = Work(State(), 0, Windows(), rule_book or work.rules_of())
    known = sorted(incidents, key=lambda incident: (incident.opened_us, incident.id))
    for incident in (incident for incident in known if incident.subject.kind == "fleet"):
        working.restore_fleet(rebuild(incident, working.rules.is_fault, fleet.fleet_key), incident)
    for incident in known:
        if incident.subject.kind != "fleet" and not incident.resolved_because.startswith(work.MERGED):
            working.restore_record(rebuild(incident, working.rules.is_fault), incident)
    for signal in recent:
        working.recall(signal)
    return working.freeze(wake_us=0)


def identify(state: State, inventories: Iterable[tuple[str, Iterable[Gpu]]]) -> State:
    """Learn nodes' GPU names from their inventories, so that a PCI address and a UUID are known to mean one GPU. Give all at once
    what is known at once: each call looks through the whole state."""
    working = Work(state, 0, Windows(), work.rules_of())
    for node, gpus in inventories:
        for gpu in gpus:
            working.learn(working.node(node), node, gpu.pci, gpu.uuid)
    return working.freeze(wake_us=state.wake_us)
