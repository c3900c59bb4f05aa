"""One step at work: copies what it changes, leaves what it was given alone, and says in the end what changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from aggregator import rules as packaged
from aggregator.correlator import fleet
from aggregator.correlator.close import settle
from aggregator.correlator.fleet import Fault, Fleet, Group, Member, incident_id
from aggregator.correlator.join import Home, circumstances, home_of, homes_of_context
from aggregator.correlator.places import names_of
from aggregator.correlator.state import (
    MAX_NAMES,
    MAX_RECENT,
    MAX_RECORDS,
    Node,
    Record,
    RuleBook,
    Windows,
    at_us,
    micros,
    opens,
)
from aggregator.correlator.witness import testify
from aggregator.model import Incident, IncidentState, Severity, Signal
from aggregator.rules import Catalog, Context, load

MERGED = "merged into "


@dataclass(frozen=True, slots=True)
class State:
    """Everything remembered. A step never changes the state it is given."""

    nodes: Mapping[str, Node] = field(default_factory=dict)
    groups: Mapping[Fault, Group] = field(default_factory=dict)
    fleets: Mapping[str, Fleet] = field(default_factory=dict)
    wake_us: int | None = None  # before this, time alone changes nothing


@dataclass(frozen=True, slots=True)
class Change:
    """An incident that is new or differs from what was handed out last."""

    incident: Incident
    kind: str  # opened (also again), revised, resolved


@dataclass(frozen=True, slots=True)
class Step:
    """What a step gives: the next state, what changed, and when time alone will change something."""

    state: State
    changes: tuple[Change, ...]
    next_wake_us: int | None


def rules_of(catalog: Catalog | None = None, places: Callable[[str], tuple[str, ...]] = lambda _: ()) -> RuleBook:
    """The rule engine's answers, by the packaged catalog unless one is given."""
    context = Context(catalog=catalog or load())
    return RuleBook(
        is_fault=lambda signal: packaged.is_fault(signal, context.catalog),
        explains=packaged.explains,
        kin=packaged.kin,
        needs_repair=lambda signals: packaged.judge(signals, context).severity is Severity.CRITICAL,
        places=places,
    )


class Work:
    """The changeable side of a step."""

    def __init__(self, state: State, now_us: int, windows: Windows, rules: RuleBook) -> None:
        self.now_us, self.windows, self.rules = now_us, windows, rules
        self._state = state
        self._nodes: dict[str, Node] = {}
        self._groups = dict(state.groups)
        self._fleets: dict[str, Fleet] = {}
        self._forgotten: set[str] = set()  # fleets
        self._edited: dict[str, tuple[str, Record]] = {}  # incident id → its node and the step's own copy
        self._changes: list[Change] = []

    def node(self, name: str) -> Node:
        """A node that may be changed."""
        if name not in self._nodes:
            known = self._state.nodes.get(name)
            self._nodes[name] = known.copy() if known else Node()
        return self._nodes[name]

    def take(self, signal: Signal) -> None:
        """Find the signal's incidents and put it in."""
        node = self.node(signal.node)
        signal = self._named(node, signal)
        if opens(signal, self.rules.is_fault):
            self._take_fault(node, signal)
            return
        self._remember(node, signal)
        for record in homes_of_context(node, signal, self.windows, self.rules):
            self._edit(node, signal.node, record).add(signal, fault=False)

    def recall(self, signal: Signal) -> None:
        """Take up context from before a restart."""
        node = self.node(signal.node)
        self._remember(node, self._named(node, signal))

    def _remember(self, node: Node, signal: Signal) -> None:
        """Keep context for faults to come."""
        node.recent = (*node.recent, signal)[-MAX_RECENT:]

    def learn(self, node: Node, name: str, pci: str | None, uuid: str | None) -> None:
        """One GPU of the node has these names."""
        if not pci or not uuid or node.gpu_names.get(uuid) == pci:
            return
        node.gpu_names |= {pci: uuid, uuid: pci}
        while len(node.gpu_names) > MAX_NAMES:
            del node.gpu_names[next(iter(node.gpu_names))]
        for record in list(node.records.values()):
            if (pci in record.gpu_names) != (uuid in record.gpu_names):
                self._copied(node, name, record).gpu_names.update({pci: None, uuid: None})

    def _named(self, node: Node, signal: Signal) -> Signal:
        """The signal with a time and with every name of its GPU that is known."""
        pci, uuid = signal.pci, signal.gpu_uuid
        if names_of(signal).gpu:
            self.learn(node, signal.node, pci, uuid)
            pci = pci or node.gpu_names.get(uuid or "")
            uuid = uuid or node.gpu_names.get(pci or "")
        when = self.now_us if signal.at_us is None else signal.at_us
        if (pci, uuid, when) == (signal.pci, signal.gpu_uuid, signal.at_us):
            return signal
        return replace(signal, pci=pci, gpu_uuid=uuid, at_us=when)

    def _take_fault(self, node: Node, signal: Signal) -> None:
        home = home_of(node, signal, self.windows, self.rules)
        if home.record is None and not self._has_room(node):
            home = Home(max(node.records.values(), key=lambda record: (record.last_us, record.id)))
        record = self._edit(node, signal.node, home.record) if home.record else self._found(node, signal)
        for other in home.absorbed:
            self._merge(node, signal.node, other, into=record)
        if not home.in_burst:
            for circumstance in list(circumstances(node, signal, self.windows, self.rules)):
                record.add(circumstance, fault=False)
        signal = testify(record, signal, self.windows.witness)
        record.add(signal, fault=True, heard_us=self._heard(record, signal))
        if home.record is None:
            self._enter_group(self._member(signal, record.id))

    def _found(self, node: Node, signal: Signal) -> Record:
        """A new incident, named after the fact that founds it."""
        record = Record(incident_id(signal.id))
        if record.id in node.records:  # the fact was sent again after its incident had moved out of reach
            return self._edit(node, signal.node, node.records[record.id])
        node.records[record.id] = record
        self._edited[record.id] = (signal.node, record)
        record.touched_us = self.now_us
        return record

    def _has_room(self, node: Node) -> bool:
        """Room for one more incident on the node, if need be by forgetting one that is over."""
        over = [record.id for record in node.records.values() if not record.open and record.id not in self._edited]
        for oldest in over[: max(0, len(node.records) + 1 - MAX_RECORDS)]:
            del node.records[oldest]
        return len(node.records) < MAX_RECORDS

    def _merge(self, node: Node, name: str, other: Record, into: Record) -> None:
        """The older incident takes the other's signals; the other is closed and forgotten."""
        other = self._edit(node, name, other)
        for signal in other.signals():
            into.add(signal, fault=opens(signal, self.rules.is_fault), heard_us=other.heard_us)
        other.forced = f"{MERGED}{into.id}"
        del node.records[other.id]

    def _edit(self, node: Node, name: str, record: Record) -> Record:
        """A record that a signal may be put into."""
        record = self._copied(node, name, record)
        record.touched_us = self.now_us
        return record

    def _copied(self, node: Node, name: str, record: Record) -> Record:
        if record.id not in self._edited:
            twin = record.copy()
            node.records[record.id] = twin
            self._edited[record.id] = (name, twin)
        return self._edited[record.id][1]

    def _heard(self, record: Record, signal: Signal) -> int:
        """When silence begins to count: on arrival, but for history and for what is older than the incident's end."""
        at = at_us(signal)
        if signal.replayed or self.now_us - at > micros(self.windows.late):
            return min(at, self.now_us)
        over = record.live and record.closed_us is not None and record.closed_us < self.now_us
        if over and record.incident and at <= (record.incident.resolved_us or 0):
            return min(at, self.now_us)
        return self.now_us

    def _member(self, fault: Signal, incident: str) -> Member:
        return Member(fault.node, incident, fleet.placed(fault, self.rules.places(fault.node)))

    def _enter_group(self, member: Member) -> None:
        """Count a new incident across nodes; with enough of them there is a fleet incident."""
        key = (member.fault.kind, member.fault.code)
        if key not in self._groups and len(self._groups) >= fleet.MAX_GROUPS:
            del self._groups[next(iter(self._groups))]
        group, joining = fleet.enter(self._groups.get(key, Group()), member, self.windows)
        self._groups[key] = group
        if not joining:
            return
        self._fleet(group.fleet_id).admit(joining, self.now_us)
        for joined in joining:
            node = self.node(joined.node)
            if record := node.records.get(joined.incident_id):
                self._copied(node, joined.node, record).fleet_id = group.fleet_id

    def _fleet(self, fleet_id: str) -> Fleet:
        """A fleet that may be changed."""
        if fleet_id not in self._fleets:
            known = self._state.fleets.get(fleet_id)
            self._fleets[fleet_id] = known.copy() if known else Fleet(Record(fleet_id))
        return self._fleets[fleet_id]

    def finish(self) -> Step:
        """Settle what was touched and what is due."""
        scanned = self._touch_due()
        for name, record in self._edited.values():
            self._settle(name, record)
        for touched in self._fleets.values():
            if touched.nodes and touched.record.id not in self._forgotten:
                self._emit(touched.record, fleet.settle(touched, self._all_held(touched), self.windows))
        wake_us = self._next_wake(scanned)
        return Step(self.freeze(wake_us), tuple(self._changes), wake_us)

    def _touch_due(self) -> bool:
        """Touch what time alone may have changed; forget what is long over. False when nothing can be due yet."""
        if self._state.wake_us is None or self._state.wake_us > self.now_us:
            return False
        for name, known in self._state.nodes.items():
            for record in [record for record in known.records.values() if self._is_due(record)]:
                node = self.node(name)
                if record.id in self._edited or record.id not in node.records:
                    continue
                if record.open or not record.touched_us:
                    self._copied(node, name, record)
                else:
                    del node.records[record.id]
        for fleet_id in [known.record.id for known in self._state.fleets.values() if self._is_due(known.record)]:
            touched = self._fleet(fleet_id)
            if not touched.members and touched.record.touched_us:
                self._forgotten.add(fleet_id)
            touched.record.touched_us = touched.record.touched_us or self.now_us
        return True

    def _is_due(self, record: Record) -> bool:
        return record.deadline_us is not None and record.deadline_us <= self.now_us

    def _settle(self, name: str, record: Record) -> None:
        record.touched_us = record.touched_us or self.now_us
        incident = settle(record, name, self.now_us, self.windows, self.rules)
        if record.fleet_id:
            self._fleet(record.fleet_id).note(incident)
        self._emit(record, incident)

    def _emit(self, record: Record, incident: Incident) -> None:
        """Say that an incident changed, if it did."""
        before, record.incident = record.incident, incident
        if incident.state is IncidentState.OPEN:
            record.closed_us = None
        elif record.closed_us is None:
            record.closed_us = self.now_us
        was_open = before is not None and before.state is IncidentState.OPEN
        if before == incident or (before is None and record.forced):
            return
        if incident.state is IncidentState.OPEN:
            kind = "revised" if was_open else "opened"
        else:
            kind = "resolved" if was_open or before is None else "revised"
        self._changes.append(Change(incident, kind))

    def _all_held(self, touched: Fleet) -> tuple[int, str] | None:
        """Until when every open member is held; None when one is not."""
        until, because = 0, ""
        for member, name in touched.members.items():
            node = self._nodes.get(name) or self._state.nodes.get(name)
            record = node.records.get(member) if node else None
            incident = record.incident if record else None
            if incident is None or incident.held_until_us is None:
                return None
            until, because = max(until, incident.held_until_us), incident.held_because
        return (until, because) if until else None

    def _next_wake(self, scanned: bool) -> int | None:
        records: Iterator[Record]
        if scanned:
            nodes = {**self._state.nodes, **self._nodes}.values()
            records = chain.from_iterable(node.records.values() for node in nodes)
            known = None
        else:
            records = (record for _, record in self._edited.values())
            known = self._state.wake_us
        fleets = (touched.record for touched in {**self._state.fleets, **self._fleets}.values())
        deadlines = [record.deadline_us for record in chain(records, fleets) if record.deadline_us is not None]
        return min([*deadlines, *([known] if known is not None else [])], default=None)

    def freeze(self, wake_us: int | None) -> State:
        """The next state."""
        nodes = {**self._state.nodes, **self._nodes}
        for name, node in self._nodes.items():
            if node.empty:
                del nodes[name]
        fleets = {**self._state.fleets, **self._fleets}
        for fleet_id in self._forgotten:
            del fleets[fleet_id]
        return State(nodes, self._groups, fleets, wake_us)

    def restore_fleet(self, record: Record, incident: Incident) -> None:
        """Take up a stored fleet incident; its members follow."""
        record.deadline_us = 0
        self._fleets[incident.id] = Fleet(record, dict.fromkeys(incident.nodes))
        for kind, code in record.faults:
            shared = frozenset.intersection(*(fleet.narrow(fault) for fault in record.fault_signals()))
            self._groups[kind, code] = Group((), incident.id, record.last_us, min(shared, default=""))

    def restore_record(self, record: Record, incident: Incident) -> None:
        """Take up a stored incident of one node."""
        name = incident.subject.node
        node = self.node(name)
        for signal in incident.signals:
            if names_of(signal).gpu:
                self.learn(node, name, signal.pci, signal.gpu_uuid)
        self.learn(node, name, incident.subject.pci, incident.subject.gpu_uuid)
        record.gpu_names |= {node.gpu_names[known]: None for known in record.gpu_names if known in node.gpu_names}
        record.deadline_us = 0
        node.records[record.id] = record
        if incident.fleet_id:
            self._fleet(incident.fleet_id).note(incident)
            return
        founder = next((signal for signal in incident.signals if incident_id(signal.id) == incident.id), None)
        if founder is not None:
            key = (founder.kind, founder.code)
            group = self._groups.get(key, Group())
            self._groups[key] = replace(group, candidates=(*group.candidates, self._member(founder, incident.id)))
