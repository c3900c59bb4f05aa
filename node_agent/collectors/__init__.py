"""Collectors: one file per signal source, each run by its own supervised task."""

from __future__ import annotations

from typing import Protocol

from node_agent.evidence import Report


class CollectorAbsent(Exception):
    """What a collector would read does not exist on this node. Expected: reported, looked for again later, never an error."""


class Collector(Protocol):
    """Reads one signal source and reports facts until cancelled."""

    name: str

    async def collect(self, report: Report) -> None:
        """Run until cancelled. Raise CollectorAbsent when there is nothing to read; any other exception is a failure that the
        supervisor reports as evidence (`collector_failed`) before it restarts the collector with backoff."""
        ...
