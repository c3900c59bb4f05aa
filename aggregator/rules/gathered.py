"""Signals of a log as they gather: repeats are counted, memory is bounded.

The same words again within a minute (or, without times, within some lines) are one signal with a count: a driver that prints
a line for each channel of a dying process reports once. The same words an hour later are a recurrence, and kept apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aggregator.model import Signal

MAX_SIGNALS = 20_000  # kept apart; later ones are counted in the last of their kind, code and GPU
_REPEAT_US = 60_000_000
_REPEAT_LINES = 100
_MAX_KEYS = 50_000

_Key = tuple[object, ...]


@dataclass(slots=True)
class _Kept:
    signal: Signal
    uptime_us: int | None
    count: int
    last_us: int | None
    last_line: int


class Gathered:
    """Signals in the order they came."""

    def __init__(self) -> None:
        self.dropped = 0
        self._kept: list[_Kept] = []
        self._by_words: dict[_Key, _Kept] = {}
        self._by_kind: dict[_Key, _Kept] = {}
        self._last: list[_Kept] = []

    def add(self, signals: Sequence[Signal], words: str, number: int, uptime_us: int | None) -> None:
        """Take what one line said; `words` is its message, which tells a repetition from a new fact."""
        self._last = [kept for signal in signals if (kept := self._add(signal, words, number, uptime_us)) is not None]

    def repeat_last(self, times: int) -> None:
        """The log says that its last line came so many times more."""
        for kept in self._last:
            kept.count += times

    def signals(self) -> tuple[Signal, ...]:
        """Everything kept. Kernel time stands in for a wall clock where the whole log has none."""
        wall = any(kept.signal.at_us is not None for kept in self._kept)
        hosts = {kept.signal.node for kept in self._kept if kept.signal.node}
        only_host = hosts.pop() if len(hosts) == 1 else ""
        return tuple(
            replace(
                kept.signal,
                count=kept.count,
                node=kept.signal.node or only_host,
                at_us=kept.signal.at_us if wall else kept.uptime_us,
            )
            for kept in self._kept
        )

    def _add(self, signal: Signal, words: str, number: int, uptime_us: int | None) -> _Kept | None:
        subject = (signal.kind, signal.code, signal.node, signal.boot_id, signal.pci, signal.gpu_uuid, signal.mig)
        at_us = signal.at_us if signal.at_us is not None else uptime_us
        same = self._by_words.get((*subject, words))
        if same is not None and _soon(same, at_us, number):
            return _counted(same, signal.count, at_us, number)
        if len(self._kept) >= MAX_SIGNALS:
            alike = self._by_kind.get(subject)
            if alike is None:
                self.dropped += 1
                return None
            return _counted(alike, signal.count, at_us, number)
        kept = _Kept(signal, uptime_us, signal.count, at_us, number)
        self._kept.append(kept)
        if len(self._by_words) > _MAX_KEYS:
            self._by_words.clear()
        self._by_words[(*subject, words)] = self._by_kind[subject] = kept
        return kept


def _soon(kept: _Kept, at_us: int | None, number: int) -> bool:
    if at_us is None or kept.last_us is None:
        return number - kept.last_line <= _REPEAT_LINES
    return abs(at_us - kept.last_us) <= _REPEAT_US


def _counted(kept: _Kept, count: int, at_us: int | None, number: int) -> _Kept:
    kept.count += count
    kept.last_us, kept.last_line = at_us, number
    return kept
