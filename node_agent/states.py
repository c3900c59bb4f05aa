"""From repeated readings to facts: states that begin and end, counters that rose.

Steady values are no evidence. A state is reported when it begins and when it ends, both after as many agreeing readings as the
caller asks for; a counter when it rose, at every rise or, where rises are normal, at each tenfold step within a window.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from node_agent.evidence import Phase

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Entry:
    reported: bool = False
    disagreeing: int = 0


class States(Generic[K]):
    """Remembers which states were reported as begun."""

    def __init__(self) -> None:
        self._entries: dict[K, _Entry] = {}

    def update(self, key: K, holds: bool | None, *, confirm: int = 1) -> Phase | None:
        """Take one reading; None means it could not be read, which changes nothing. Returns BEGAN or ENDED once `confirm`
        consecutive readings disagree with what was reported last."""
        if holds is None:
            return None
        entry = self._entries.get(key) or _Entry()
        entry.disagreeing = entry.disagreeing + 1 if holds != entry.reported else 0
        if confirmed := entry.disagreeing >= confirm:
            entry.reported, entry.disagreeing = holds, 0
        if entry.reported or entry.disagreeing:
            self._entries[key] = entry
        else:
            self._entries.pop(key, None)
        if not confirmed:
            return None
        return Phase.BEGAN if holds else Phase.ENDED

    def sweep(self, present: Collection[K], *, confirm: int = 1) -> Iterator[tuple[K, Phase]]:
        """Take a whole view: every key in it holds, every other key that is remembered does not."""
        for key in [*present, *(known for known in self._entries if known not in present)]:
            if phase := self.update(key, key in present, confirm=confirm):
                yield key, phase


@dataclass(frozen=True, slots=True)
class Rise:
    """A counter went from `before` to `after`; `reset` when it had been set back in between."""

    before: int
    after: int
    reset: bool = False


@dataclass(slots=True)
class _Window:
    began_at: float
    base: int
    last: int
    next_step: int = 1
    reset: bool = False


class Rises(Generic[K]):
    """Compares counters with what they were. The first reading is the baseline.

    With window_seconds 0 every rise counts; else those that bring the rise within the window to 1, 10, 100 …
    """

    def __init__(self, window_seconds: float = 0.0) -> None:
        self._window_seconds = window_seconds
        self._windows: dict[K, _Window] = {}

    def update(self, key: K, value: int, now: float) -> Rise | None:
        """Take one reading at a monotonic time in seconds; the rise, if it is worth a fact."""
        window = self._windows.setdefault(key, _Window(now, value, value))
        if value < window.last:  # set back: whatever it counts now came after that
            window.base, window.reset, window.next_step = 0, True, 1
        elif now - window.began_at >= self._window_seconds:
            window.began_at, window.base, window.next_step, window.reset = now, window.last, 1, False
        window.last = value
        rise = value - window.base
        if rise < window.next_step:
            return None
        window.next_step = 10 ** (math.floor(math.log10(rise)) + 1)
        return Rise(window.base, value, window.reset)
