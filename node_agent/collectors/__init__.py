"""Collectors: one file per signal source, each run by its own supervised task."""

from __future__ import annotations

from typing import Protocol

from node_agent.absence import CollectorAbsent
from node_agent.evidence import Report

__all__ = ["Collector", "CollectorAbsent"]


class Collector(Protocol):
    """Reads one signal source and reports facts until cancelled."""

    name: str

    async def collect(self, report: Report) -> None:
        """Run until cancelled. Raise CollectorAbsent when there is nothing to read; any other exception is a failure that the
        supervisor reports as evidence (`collector_failed`) before it restarts the collector with backoff."""
        ...
