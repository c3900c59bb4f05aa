"""Host memory errors as EDAC counts them: uncorrectable ones are facts each, corrected ones at each tenfold step in an hour."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from node_agent.attributes import Attributes, children
from node_agent.evidence import Fact, Observation, Unreadable
from node_agent.states import Rises

WINDOW_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Controller:
    """One memory controller's counters. `dimms` names the DIMMs that ever had errors of a kind, with their counts."""

    name: str
    corrected: int | None
    uncorrected: int | None
    dimms: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()


def read_controllers(sysfs_root: Path, attributes: Attributes) -> tuple[Controller, ...]:
    """All memory controllers; none where the kernel has no EDAC driver for them."""
    base = sysfs_root / "devices" / "system" / "edac" / "mc"
    return tuple(_controller(base / name, attributes) for name in children(base, "mc"))


class MemoryErrors:
    """Turns controllers' counters into facts."""

    def __init__(self) -> None:
        self._uncorrected: Rises[str] = Rises()
        self._corrected: Rises[str] = Rises(WINDOW_SECONDS)

    def judge(self, controller: Controller) -> Iterator[Fact]:
        """Facts for what rose since the last reading."""
        kinds = (
            ("host_memory_ue", "uncorrectable", "ue", self._uncorrected, controller.uncorrected),
            ("host_memory_ce", "corrected", "ce", self._corrected, controller.corrected),
        )
        for kind, word, short, rises, value in kinds:
            rise = None if value is None else rises.update(controller.name, value, time.monotonic())
            if rise is not None:
                where = controller.dimms.get(short) or "DIMM unknown"
                yield Fact(
                    source="sysfs",
                    kind=kind,
                    detail=f"{controller.name}: {rise.after - rise.before} {word} memory errors more ({where})",
                    body=Observation(
                        field=f"edac_{controller.name}_{short}_total",
                        before=rise.before,
                        after=rise.after,
                        counter_reset=rise.reset,
                    ),
                )


def _controller(path: Path, attributes: Attributes) -> Controller:
    corrected, uncorrected = (attributes.number(f"{path}/{name}") for name in ("ce_count", "ue_count"))
    return Controller(
        name=path.name,
        corrected=corrected if isinstance(corrected, int) else None,
        uncorrected=uncorrected if isinstance(uncorrected, int) else None,
        dimms={
            short: _dimms(path, short, attributes) for short, count in (("ce", corrected), ("ue", uncorrected)) if count
        },
        errors=tuple(
            f"{path.name}/{name}: {reading.error}"
            for name, reading in (("ce_count", corrected), ("ue_count", uncorrected))
            if isinstance(reading, Unreadable)
        ),
    )


def _dimms(path: Path, short: str, attributes: Attributes) -> str:
    """DIMMs with errors of one kind since boot, for people: `CPU0_DIMM_A1: 3`."""
    found = []
    for dimm in (*children(path, "dimm"), *children(path, "rank")):
        count = attributes.number(f"{path}/{dimm}/dimm_{short}_count")
        if isinstance(count, int) and count:
            found.append(f"{attributes.read(f'{path}/{dimm}/dimm_label') or dimm}: {count}")
    return ", ".join(found)
