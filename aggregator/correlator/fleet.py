"""One fault on many nodes is one alert: a driver rollout, a power or network fault, a job that fails everywhere.

When incidents founded by the same fault open on enough nodes within a window, a fleet incident is made. It pages; its members keep
their own verdicts and name it. It ends with its last member, and is held while all of them are. It keeps the founding facts of
the first and the last members and counts the others, so that ten thousand nodes cost no more than sixteen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from aggregator.correlator.places import Key
from aggregator.correlator.state import Record, Windows, at_us, in_order, micros
from aggregator.model import Incident, IncidentState, Phase, Signal, Subject

MAX_NODES = 256  # named in a fleet incident; the others are counted
MAX_GROUPS = 512  # faults that are watched for across nodes

NARROW = ("rack ", "switch ", "NVLink domain ")  # places that few nodes share: there a few alike are no accident
SEPARATOR = "; "  # between places in a signal's attribute

Fault = tuple[str, int | None]  # kind, code


@dataclass(frozen=True, slots=True)
class Member:
    """An incident that a fault founded on a node."""

    node: str
    incident_id: str
    fault: Signal


@dataclass(slots=True)
class Fleet:
    """A fleet incident under work."""

    record: Record
    nodes: dict[str, None] = field(default_factory=dict)  # ordered by arrival
    members: dict[str, str] = field(default_factory=dict)  # open member → its node
    ended_us: dict[str, int] = field(default_factory=dict)  # member that is over → when it was

    def copy(self) -> Fleet:
        """A copy that can be changed while the original stays as it is."""
        return Fleet(self.record.copy(), dict(self.nodes), dict(self.members), dict(self.ended_us))

    def admit(self, members: Iterable[Member], now_us: int) -> None:
        """Take members in."""
        for member in members:
            example = replace(member.fault, count=1)  # counts nodes, not reports
            self.record.add(example, fault=True, heard_us=at_us(example), key=fleet_key(example))
            if len(self.nodes) < MAX_NODES:
                self.nodes[member.node] = None
            self.members[member.incident_id] = member.node
        self.record.touched_us = now_us

    def note(self, member: Incident) -> None:
        """A member is open, or is over."""
        if member.resolved_us is None:
            self.members[member.id] = member.subject.node
            self.ended_us.pop(member.id, None)
        else:
            self.members.pop(member.id, None)
            self.ended_us[member.id] = member.resolved_us


@dataclass(frozen=True, slots=True)
class Group:
    """A fault that is watched for across nodes: those that show it, and the fleet incident that was made of it last."""

    candidates: tuple[Member, ...] = ()
    fleet_id: str = ""
    last_us: int = 0  # last founding fault of that fleet incident
    place: str = ""  # the rack, switch or NVLink domain that made it one; only its nodes join


def incident_id(*identity: str) -> str:
    """The same identity gives the same id, whenever and wherever it is computed."""
    return f"inc-{blake2b(chr(0).join(identity).encode('utf-8', 'backslashreplace'), digest_size=8).hexdigest()}"


def fleet_key(fault: Signal) -> Key:
    """All founding facts of a fleet incident are one another's like."""
    return Key(fault.kind, fault.code, "fleet", None, "", Phase.POINT)


def placed(fault: Signal, places: tuple[str, ...]) -> Signal:
    """The fault with where its node stands, so that what a fleet incident's nodes share follows from its signals."""
    return replace(fault, attributes={**fault.attributes, "places": SEPARATOR.join(places)}) if places else fault


def narrow(fault: Signal) -> frozenset[str]:
    """The rack, switch and NVLink domain of a fault's node."""
    places = str(fault.attributes.get("places") or "").split(SEPARATOR)
    return frozenset(place for place in places if place.startswith(NARROW))


def _crowd(candidates: tuple[Member, ...], new: Member, windows: Windows) -> tuple[str, tuple[Member, ...]] | None:
    """Who makes a fleet incident: enough nodes anywhere, or fewer of one rack, switch or NVLink domain, and which."""
    if _nodes(candidates) >= windows.fleet_nodes:
        return "", candidates
    for place in sorted(narrow(new.fault)):
        peers = tuple(member for member in candidates if place in narrow(member.fault))
        if _nodes(peers) >= windows.peer_nodes:
            return place, peers
    return None


def _nodes(members: tuple[Member, ...]) -> int:
    return len({member.node for member in members})


def enter(group: Group, new: Member, windows: Windows) -> tuple[Group, tuple[Member, ...]]:
    """Count an incident that a fault founded. Returns the group and who joins its fleet incident now: nobody, as long as too few
    nodes show the fault. Decided by the faults' own times."""
    at, window = at_us(new.fault), micros(windows.fleet)
    of_it = not group.place or group.place in narrow(new.fault)
    if group.fleet_id and of_it and abs(at - group.last_us) <= window:
        return replace(group, last_us=max(at, group.last_us)), (new,)
    newest = max([at, *(at_us(member.fault) for member in group.candidates)])
    candidates = tuple(member for member in (*group.candidates, new) if newest - at_us(member.fault) <= window)
    crowd = _crowd(candidates, new, windows)
    if crowd is None:
        return replace(group, candidates=candidates), ()
    place, joining = crowd
    founder = min((member.fault for member in joining), key=in_order)
    return Group((), incident_id("fleet", founder.id), newest, place), joining


def settle(fleet: Fleet, held: tuple[int, str] | None, windows: Windows) -> Incident:
    """The fleet incident as it stands. `held` is until when, and why, all its open members are held."""
    record = fleet.record
    first_node = next(iter(fleet.nodes))
    is_open = bool(fleet.members)
    record.deadline_us = None if is_open else record.touched_us + micros(windows.reopen)
    return Incident(
        id=record.id,
        subject=Subject("fleet", first_node),
        nodes=tuple(fleet.nodes),
        signals=tuple(_with_first(record.signals(), windows.clock_error)),
        state=IncidentState.OPEN if is_open else IncidentState.RESOLVED,
        opened_us=record.first_us,
        updated_us=record.heard_us,
        resolved_us=None if is_open else max(fleet.ended_us.values(), default=record.last_us),
        resolved_because="" if is_open else "recovered",
        quiet=not record.live,
        held_until_us=held[0] if held and is_open else None,
        held_because=held[1] if held and is_open else "",
    )


def _with_first(signals: list[Signal], clock_error_seconds: float) -> Iterator[Signal]:
    """Say which node was first, where that is certain: by more than the nodes' clocks may be wrong."""
    for position, signal in enumerate(signals):
        attributes = {name: value for name, value in signal.attributes.items() if name != "first_by_seconds"}
        if position == 0 and len(signals) > 1:
            lead_us = at_us(signals[1]) - at_us(signal)
            if lead_us > micros(clock_error_seconds):
                attributes["first_by_seconds"] = lead_us / 1e6
        yield replace(signal, attributes=attributes)
