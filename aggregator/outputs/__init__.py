"""Where assessments go: one file per output. An output fails alone and says so."""

from __future__ import annotations

from typing import Protocol

from aggregator.model import Assessment, Incident


class Output(Protocol):
    """Takes every committed change of an incident."""

    name: str

    def publish(self, incident: Incident, assessment: Assessment | None, change: str) -> None:
        """`assessment` is the incident's present one; `change` is opened (also again), revised or resolved. Quiet incidents, which
        were rebuilt from replayed facts, come too: they are shown as they stand and announced to nobody."""
        ...
