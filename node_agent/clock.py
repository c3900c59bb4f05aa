"""How far the node's clock is from the server's, from probes: the one with the shortest round trip is the most exact."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

KEPT_SAMPLES = 8
DRIFT_PER_SECOND = 1e-4  # a bad quartz: what a sample loses in exactness as it ages


@dataclass(frozen=True, slots=True)
class Offset:
    """Server time minus node time in seconds, known within plus or minus `error`."""

    seconds: float
    error: float


class ClockEstimate:
    """Collects probes; times are seconds, wall clock unless said otherwise."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Offset]] = deque(maxlen=KEPT_SAMPLES)

    def add(self, *, sent_at: float, server_at: float, round_trip: float, monotonic: float) -> Offset:
        """Take one answered probe and return the best estimate now. The round trip is by the monotonic clock, so that a stepped
        wall clock spoils one sample at most; an old sample counts as less exact than it was."""
        newest = Offset(server_at - (sent_at + round_trip / 2), round_trip / 2)
        best = min((*self._aged(monotonic), newest), key=lambda offset: offset.error)
        if (
            abs(newest.seconds - best.seconds) > newest.error + best.error
        ):  # a clock was stepped: what was known is void
            self._samples.clear()
            best = newest
        self._samples.append((monotonic, newest))
        return best

    def _aged(self, monotonic: float) -> list[Offset]:
        return [Offset(o.seconds, o.error + DRIFT_PER_SECOND * (monotonic - taken)) for taken, o in self._samples]
