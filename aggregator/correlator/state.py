"""What the correlator remembers between steps, and the spans of time that it decides by.

A `Record` is an incident under work. Everything it holds follows from the incident's own signals, so that a state restored from
stored incidents goes on exactly as the one that was lost. A storm costs each signal the same: per kind, place and source the
first and the last few signals are kept, and what lies between is counted.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from aggregator.correlator.places import Key, key_of, names_of
from aggregator.model import Incident, IncidentState, Phase, Signal

KEEP_FIRST = 8  # signals of one key
KEEP_LAST = 8
MAX_KEYS = 48  # per incident: beyond it signals are counted with their like
MAX_RECORDS = 64  # incidents remembered per node: what would be one more joins the latest
MAX_RECENT = 24  # context signals remembered per node
MAX_NAMES = 64  # GPU names remembered per node


def micros(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * 1_000_000)


@dataclass(frozen=True, slots=True)
class Windows:
    """Spans of time, in seconds."""

    burst_gap: float = 180.0  # silence that ends a burst: what belongs together is closer than this
    check_lag: float = 900.0  # a check of the cluster may find so much later what was seen first hand
    spread: float = 60.0  # one fault on several GPUs within this is one fault
    witness: float = 5.0  # two channels' reports of one XID are no further apart
    quiet_close: float = 3_600.0  # silence that ends an incident whose fault needs no repair
    critical_close: float = 604_800.0  # silence that ends one whose fault does: then nobody will tell us any more
    reopen: float = 86_400.0  # the same fault within this continues its incident
    settle: float = 180.0  # after a reboot, reset or driver load a fault has this long to show itself again
    reconfirm: float = 600.0  # after an agent's restart a state has this long to be reported again
    hold: float = 900.0  # how long a planned state excuses what it explains
    hold_lead: float = 60.0  # and how long before it was reported
    late: float = 86_400.0  # a fact older than this on arrival is history: it keeps nothing open
    fleet: float = 300.0  # the same fault on several nodes within this is one fleet incident
    fleet_nodes: int = 5  # that many nodes
    peer_nodes: int = 3  # or that many of one rack, switch or NVLink domain
    clock_error: float = 2.0  # order between nodes is claimed only beyond this


@dataclass(frozen=True, slots=True)
class RuleBook:
    """What the correlator asks of others. All of it answers at once, from what is known."""

    is_fault: Callable[[Signal], bool]  # may it open an incident?
    explains: Callable[[Signal, Signal], bool]  # does the first, elsewhere on the node, explain the second?
    kin: Callable[[Signal, Signal], bool]  # can two faults of one thing be one event?
    # does silence prove nothing, because the fault stays until repaired?
    needs_repair: Callable[[Sequence[Signal]], bool]
    places: Callable[[str], tuple[str, ...]] = lambda _: ()  # where a node stands: "rack r7", "driver 570.86.15"


class Record:
    """An incident under work: its signals by key, and what follows from them."""

    __slots__ = (
        "circumstances", "closed_us", "deadline_us", "faults", "first_us", "fleet_id", "forced", "gpu_names", "heard_us", "id",
        "incident", "keys", "last_us", "live", "needs_repair", "other_names", "touched_us",
    )  # fmt: skip

    def __init__(self, incident_id: str) -> None:
        self.id = incident_id
        self.incident: Incident | None = None  # as it was last handed out
        self.keys: dict[Key, list[Signal]] = {}
        self.circumstances: set[str] = set()  # ids of kept signals that are no faults
        self.faults: dict[tuple[str, int | None], int] = {}  # (kind, code) → its last time
        self.gpu_names: dict[str, None] = {}  # ordered: the first fault's GPU comes first
        self.other_names: dict[str, None] = {}
        self.first_us = 0  # of the faults; 0 before the first
        self.last_us = 0
        self.heard_us = 0  # when it was last heard of, by our clock
        self.closed_us: int | None = None  # when it was found to be over, by our clock
        self.touched_us = 0  # when a signal last came in, by our clock; 0: not since the state was restored
        self.live = False  # holds a fact that no earlier store had acknowledged
        self.fleet_id = ""
        self.forced = ""  # why it was closed from outside
        self.needs_repair: bool | None = None  # asked when silence would close it
        self.deadline_us: int | None = None  # when time alone changes it

    def copy(self) -> Record:
        """A copy that can be changed while the original stays as it is."""
        twin = Record.__new__(Record)
        for name in Record.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.keys = {key: list(signals) for key, signals in self.keys.items()}
        twin.faults, twin.gpu_names, twin.other_names = dict(self.faults), dict(self.gpu_names), dict(self.other_names)
        twin.circumstances = set(self.circumstances)
        return twin

    @property
    def names(self) -> Mapping[str, None]:
        """What it is about: its GPUs, else the node or the devices that its faults name."""
        return self.gpu_names or self.other_names

    @property
    def open(self) -> bool:
        """As it was last handed out."""
        return self.incident is None or self.incident.state is IncidentState.OPEN

    def signals(self) -> list[Signal]:
        """Kept signals in their order of events."""
        return sorted((signal for kept in self.keys.values() for signal in kept), key=in_order)

    def of(self, wanted: Callable[[Key], bool]) -> list[Signal]:
        """Kept signals whose key is wanted."""
        return [signal for key, kept in self.keys.items() if wanted(key) for signal in kept]

    def fault_signals(self) -> list[Signal]:
        """Kept faults."""
        return [signal for kept in self.keys.values() for signal in kept if signal.id not in self.circumstances]

    def heads(self) -> Iterator[Signal]:
        """One signal of each key, the earliest; ends of states left out."""
        return (kept[0] for key, kept in self.keys.items() if key.phase is not Phase.ENDED)

    def fault_heads(self) -> Iterator[Signal]:
        """The earliest of each key that is a fault."""
        return (head for head in self.heads() if head.id not in self.circumstances)

    def add(self, signal: Signal, *, fault: bool, heard_us: int = 0, key: Key | None = None) -> None:
        """Take a signal in, and fold one of its like where too many are kept."""
        kept = self.keep(signal, key)
        if kept is None:
            return
        self.heard_us = max(self.heard_us, heard_us)
        self.needs_repair = None
        if not signal.replayed:
            self.live = True
        if fault:
            self.note_fault(signal)
        elif kept:
            self.circumstances.add(signal.id)

    def keep(self, signal: Signal, key: Key | None = None) -> bool | None:
        """Insert a signal in order among its like; False when it is only counted, None when it is here already."""
        key = key or key_of(signal)
        if key not in self.keys and len(self.keys) >= MAX_KEYS:
            like = next((known for known in self.keys if known.kind == signal.kind), next(iter(self.keys)))
            self._count(like, signal)
            return False
        kept = self.keys.setdefault(key, [])
        if any(known.id == signal.id for known in kept):
            return None
        insort(kept, signal, key=in_order)
        if len(kept) > KEEP_FIRST + KEEP_LAST:
            folded = kept.pop(KEEP_FIRST)
            self.circumstances.discard(folded.id)
            self._count(key, folded)
        return True

    def _count(self, key: Key, folded: Signal) -> None:
        """Let a kept signal stand for one that is not."""
        kept = self.keys[key]
        kept[0] = replace(kept[0], count=kept[0].count + folded.count)

    def note_fault(self, signal: Signal) -> None:
        """Stretch what the incident covers by a fault."""
        at = at_us(signal)
        self.first_us = min(self.first_us, at) if self.faults else at
        self.last_us = max(self.last_us, at)
        fault = (signal.kind, signal.code)
        if fault in self.faults or len(self.faults) < MAX_KEYS:
            self.faults[fault] = max(self.faults.get(fault, at), at)
        names = names_of(signal)
        known = self.gpu_names if names.gpu else self.other_names
        if len(known) < MAX_NAMES:
            known.update(dict.fromkeys(names.all))


class Node:
    """What is remembered of one node."""

    __slots__ = ("gpu_names", "recent", "records")

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.gpu_names: dict[str, str] = {}  # GPU UUID ↔ PCI address, both ways
        self.recent: tuple[Signal, ...] = ()  # context that a later fault may need

    def copy(self) -> Node:
        """A copy whose records are still shared: they are copied when they change."""
        twin = Node()
        twin.records, twin.gpu_names, twin.recent = dict(self.records), dict(self.gpu_names), self.recent
        return twin

    @property
    def empty(self) -> bool:
        """Nothing worth remembering."""
        return not (self.records or self.gpu_names or self.recent)


def at_us(signal: Signal) -> int:
    """When it happened. The correlator stamps signals without a time on arrival."""
    assert signal.at_us is not None
    return signal.at_us


def in_order(signal: Signal) -> tuple[int, int, int, str]:
    """Sort key for the order of events; it does not depend on the order of arrival."""
    return (signal.at_us or 0, signal.order, len(signal.id), signal.id)


def rebuild(incident: Incident, is_fault: Callable[[Signal], bool], key: Callable[[Signal], Key] = key_of) -> Record:
    """The record behind a stored incident."""
    record = Record(incident.id)
    for signal in incident.signals:
        record.keep(signal, key(signal))
        if opens(signal, is_fault):
            record.note_fault(signal)
        else:
            record.circumstances.add(signal.id)
    record.incident = incident
    record.heard_us, record.live, record.fleet_id = incident.updated_us, not incident.quiet, incident.fleet_id
    record.closed_us = None if record.open else 0
    return record


def opens(signal: Signal, is_fault: Callable[[Signal], bool]) -> bool:
    """A fault that may open an incident: the end of a state never does."""
    return signal.phase is not Phase.ENDED and is_fault(signal)
