"""Rules that need more than one signal, one file per subsystem; each exports RULES."""

from __future__ import annotations

from aggregator.rules.finding import Rule

ALL: tuple[Rule, ...] = ()
