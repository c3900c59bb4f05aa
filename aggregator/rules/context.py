"""What is known beside the signals themselves. Every part may be missing: rules then judge without it, or ask for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from aggregator.rules.catalog import Catalog, load


@dataclass(frozen=True, slots=True)
class Context:
    """What a judgement may use beside the incident's signals."""

    driver_version: str = ""
    gpu_model: str = ""
    gpus_on_node: int | None = None
    earlier_codes: tuple[str, ...] = ()  # signal names of earlier incidents of this GPU, once per incident
    planned_state: str = ""  # for example "driver upgrade": what it explains is no fault
    catalog: Catalog = field(default_factory=load)


EMPTY = Context()
