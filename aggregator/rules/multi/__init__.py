"""Rules that need more than one signal, one file per subsystem; each exports RULES."""

from __future__ import annotations

from aggregator.rules.finding import Rule
from aggregator.rules.multi import application, bus, firmware, host, memory, nvlink, planned, thermal

ALL: tuple[Rule, ...] = (
    *memory.RULES,
    *bus.RULES,
    *nvlink.RULES,
    *firmware.RULES,
    *application.RULES,
    *thermal.RULES,
    *host.RULES,
    *planned.RULES,
)
