"""What happened to a GPU before: a repeat is judged differently from a first time, and a board's history moves with the board."""

from __future__ import annotations

from collections.abc import Iterable

from aggregator.model import Incident, Signal, Subject

MOST = 20  # incidents of one GPU that a later one is compared with


def earlier_signals(incident: Incident, known: Iterable[Incident], within_us: int) -> tuple[Signal, ...]:
    """The signals that earlier incidents of the same GPU held so long before this one began, of the latest `MOST` of them, oldest
    first; none where the incident is not about one GPU."""
    if incident.subject.kind != "gpu":
        return ()
    before = sorted(
        (other for other in known if _precedes(other, incident)), key=lambda other: (other.opened_us, other.id)
    )
    return tuple(
        signal
        for other in before[-MOST:]
        for signal in other.signals
        if signal.at_us is not None and incident.opened_us - within_us <= signal.at_us < incident.opened_us
    )


def _precedes(other: Incident, incident: Incident) -> bool:
    merged = other.resolved_because.startswith("merged into ")
    return other.opened_us < incident.opened_us and not merged and _same_gpu(other.subject, incident.subject)


def _same_gpu(one: Subject, other: Subject) -> bool:
    """By UUID where both are known: another board may be in the same slot since."""
    if one.gpu_uuid and other.gpu_uuid:
        return one.gpu_uuid == other.gpu_uuid
    return one.node == other.node and one.pci is not None and one.pci == other.pci
