"""What is known beside the signals themselves. Every part may be missing: rules then judge without it, or ask for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from aggregator.model import Signal
from aggregator.rules.catalog import Catalog, load


@dataclass(frozen=True, slots=True)
class Context:
    """What a judgement may use beside the incident's signals."""

    driver_version: str = ""
    gpu_model: str = ""
    gpus_on_node: int | None = None
    earlier: tuple[Signal, ...] = ()  # what earlier incidents of the same GPU held
    planned_state: str = ""  # for example "driver upgrade": what it explains is no fault
    catalog: Catalog = field(default_factory=load)

    def happened_before(self, name: str) -> bool:
        """Whether an earlier incident of this GPU held a signal of this name ("xid 79")."""
        return any(signal.name == name for signal in self.earlier)


EMPTY = Context()
