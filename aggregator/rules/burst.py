"""The signals of one incident as the rules see them: each beside what the catalog says of it, in the order of events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aggregator.model import Phase, Severity, Signal, Trust
from aggregator.rules.catalog import CODED, Catalog, Entry
from aggregator.rules.ports import attributed
from aggregator.rules.refine import by_its_words, refine


@dataclass(frozen=True, slots=True)
class Reading:
    """A signal and what it means by itself, its own words taken into account."""

    signal: Signal
    entry: Entry
    known: bool  # False: no table holds its code

    @property
    def subject(self) -> str | None:
        """The device it is about, by PCI address or else UUID; None for the node."""
        return self.signal.pci or self.signal.gpu_uuid


@dataclass(frozen=True, slots=True)
class Burst:
    """An incident's readings in the order of events. `ended` holds the signals that say a state is over."""

    faults: tuple[Reading, ...]
    context: tuple[Reading, ...]  # what is no fault by itself: identities, driver loads, healthy values
    ended: tuple[Signal, ...]
    forged: tuple[Signal, ...]  # written by userspace: shown, and evidence of nothing

    def of(self, kind: str, *codes: int) -> tuple[Reading, ...]:
        """Faults of one kind; of these codes, when codes are given."""
        return tuple(r for r in self.faults if r.signal.kind == kind and (not codes or r.signal.code in codes))

    def kinds(self, *kinds: str) -> tuple[Reading, ...]:
        """Faults of any of these kinds."""
        return tuple(r for r in self.faults if r.signal.kind in kinds)

    def where(self, test: Callable[[Signal], bool]) -> tuple[Reading, ...]:
        """Faults whose signal passes the test."""
        return tuple(r for r in self.faults if test(r.signal))

    @property
    def subjects(self) -> tuple[str, ...]:
        """Devices that faults are about, in the order of their first fault."""
        return tuple(dict.fromkeys(r.subject for r in self.faults if r.subject))

    def restarts_after(self, readings: Iterable[Reading]) -> tuple[Reading, ...]:
        """What started GPUs anew after the last of some faults: a boot, a driver load, or a reset of a device that has faults."""
        last = max(event_order(reading.signal) for reading in readings)
        return tuple(r for r in self.context if event_order(r.signal) > last and self._starts_anew(r))

    def _starts_anew(self, reading: Reading) -> bool:
        if reading.signal.kind == "gpu_reset_done":
            return reading.subject in self.subjects
        return reading.signal.kind in ("kernel_boot", "driver_loaded")


def fact(signal: Signal) -> str:
    """The line or evidence that a signal was read from: several signals of one are one report."""
    return signal.id.partition("#")[0]


def event_order(signal: Signal) -> tuple[int, int, str]:
    """Sorts signals into the order of events: time, where known, then the order of their input."""
    return (signal.at_us or 0, signal.order, signal.id)


def read(signal: Signal, catalog: Catalog) -> Reading:
    """A signal with its entry, refined by its own words."""
    code = signal.code if signal.kind in CODED else None
    entry = catalog.entry(signal.kind, code)
    if entry is None:
        unknown = by_its_words(signal, catalog.unknown(signal.kind, signal.code))
        return Reading(signal, refine(signal, unknown), known=False)
    return Reading(signal, refine(signal, entry), known=True)


def burst_of(signals: Iterable[Signal], catalog: Catalog) -> Burst:
    """Sort signals into the order of events and apart by what they say."""
    ordered = attributed(sorted(signals, key=event_order))
    readings = [read(s, catalog) for s in ordered if s.trust is not Trust.TENANT and s.phase is not Phase.ENDED]
    return Burst(
        faults=tuple(r for r in readings if r.entry.severity is not Severity.OK),
        context=tuple(r for r in readings if r.entry.severity is Severity.OK),
        ended=tuple(s for s in ordered if s.trust is not Trust.TENANT and s.phase is Phase.ENDED),
        forged=tuple(s for s in ordered if s.trust is Trust.TENANT),
    )


def first(readings: Iterable[Reading]) -> Reading:
    """The earliest of some readings."""
    return min(readings, key=lambda r: event_order(r.signal))


def precedes(one: Iterable[Reading], other: Iterable[Reading], lag_us: int = 0) -> bool:
    """Whether the first of some readings came before the first of others, or not later than `lag_us` after it."""
    earlier, later = first(one).signal, first(other).signal
    return event_order(earlier) < event_order(later) or (earlier.at_us or 0) < (later.at_us or 0) + lag_us
