"""Where assessments go: one file per output. An output fails alone and says so.

An `Output` is told in the pipeline's own loop, and answers at once. A `Target` is elsewhere and may be slow or away: it is told
from rows in the store, by a courier of its own.
"""

from __future__ import annotations

from typing import Protocol

from aggregator.model import Assessment, Incident
from aggregator.store.deliveries import Route, Waiting


class Output(Protocol):
    """Takes every committed change of an incident."""

    name: str

    def publish(self, incident: Incident, assessment: Assessment | None, change: str) -> None:
        """`assessment` is the incident's present one; `change` is opened (also again), revised or resolved. Quiet incidents, which
        were rebuilt from replayed facts, come too: they are shown as they stand and announced to nobody."""
        ...


class Target(Protocol):
    """Takes messages over a network, at least once, those of one incident in order."""

    route: Route
    per_minute: int  # messages, attempts included: the most it is sent
    lanes: int  # messages at a time, of different incidents

    async def send(self, message: Waiting) -> None:
        """Return once it is delivered. Raises Refused, Unavailable or NotYet, whose words go to people and hold no secret."""
        ...


class Refused(Exception):
    """This message will never be taken."""


class Unavailable(Exception):
    """Nothing is taken now."""

    def __init__(self, text: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds  # as the target asks


class NotYet(Exception):
    """The target works, and this message is to be brought again."""

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds
