"""Two channels, one XID: the kernel log, NVML and DCGM may each report it. They are witnesses of one event, not repeats of it.

The k-th report of one channel is paired with the k-th of the other, per node, boot, GPU, MIG instance and code, within a few
seconds. Every XID carries `witnesses` ("kmsg", or "kmsg,nvml"): who saw it, hence also who did not. The later report carries
`witness_of`, the id of the one that it confirms, so that nobody counts it as a repeat.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from aggregator.correlator.places import key_of
from aggregator.correlator.state import Record, at_us, micros
from aggregator.model import Signal

CHANNELS = frozenset(("kmsg", "nvml", "dcgm"))


def testify(record: Record, signal: Signal, within_seconds: float) -> Signal:
    """The XID with its witnesses; an unconfirmed report of it in the record learns that it is confirmed."""
    if signal.kind != "xid" or signal.source not in CHANNELS or "witnesses" in signal.attributes:
        return signal
    first = next(iter(_unconfirmed(record, signal, micros(within_seconds))), None)
    if first is None:
        return _with(signal, witnesses=signal.source)
    witnesses = f"{first.attributes['witnesses']},{signal.source}"
    kept = record.keys[key_of(first)]
    kept[kept.index(first)] = _with(first, witnesses=witnesses)
    return _with(signal, witnesses=witnesses, witness_of=first.id)


def _unconfirmed(record: Record, signal: Signal, within_us: int) -> Iterable[Signal]:
    """Reports of the same XID by other channels that this channel has not confirmed, oldest first."""
    key = key_of(signal)
    for source in sorted(CHANNELS - {signal.source}):
        for other in record.keys.get(key._replace(source=source), ()):
            if (
                other.boot_id == signal.boot_id
                and abs(at_us(other) - at_us(signal)) <= within_us
                and "witness_of" not in other.attributes
                and signal.source not in str(other.attributes.get("witnesses", "")).split(",")
            ):
                yield other


def _with(signal: Signal, **attributes: str) -> Signal:
    return replace(signal, attributes={**signal.attributes, **attributes})
