"""Counters of one GPU: when a rise is a fact, and what a fall means. Pure.

Errors that must never happen are told at every rise. Errors that a healthy part corrects now and then are told when their count
gains a digit, or when they come faster than a rate: a storm costs one fact a minute, not one each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from node_agent.evidence import Observation, Value


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter. `per_minute` None: every rise is told.

    `since_load`: counts from driver load, so that a first sight above zero is news; and a fall is a reset that is told itself.
    `covered_by`: another counter that rises for the same errors; only what goes beyond it is told.
    """

    field: str
    kind: str
    text: str
    per_minute: float | None = None
    since_load: bool = False
    covered_by: str = ""


@dataclass(frozen=True, slots=True)
class Count:
    """What is known of a counter: last seen, last told and when (seconds), and the covering counter when this one was seen."""

    seen: float
    told: float
    told_at: float
    covering: float = 0.0


_ALL: Final = (
    Counter("ecc_volatile_uncorrected_total", "ecc_uncorrectable", "uncorrectable ECC errors", since_load=True),
    Counter(
        "ecc_aggregate_uncorrected_total",
        "ecc_uncorrectable",
        "uncorrectable ECC errors in the board's life",
        covered_by="ecc_volatile_uncorrected_total",
    ),
    Counter("ecc_volatile_corrected_total", "ecc_corrected", "corrected ECC errors", per_minute=100, since_load=True),
    Counter("row_remap_uncorrected_total", "row_remapped", "rows remapped after uncorrectable errors"),
    Counter("row_remap_corrected_total", "row_remapped", "rows remapped after corrected errors"),
    Counter("retired_pages_double_bit_total", "retired_page", "pages retired after double-bit errors"),
    Counter("retired_pages_single_bit_total", "retired_page", "pages retired after single-bit errors"),
    Counter("nvlink_crc_flit_errors_total", "nvlink_errors", "NVLink CRC errors", per_minute=100),
    Counter("nvlink_replay_errors_total", "nvlink_errors", "NVLink replays", per_minute=10),
    Counter("nvlink_recovery_errors_total", "nvlink_errors", "NVLink recoveries", per_minute=1),
    Counter("nvlink_recovery_events_total", "nvlink_errors", "NVLink recoveries", per_minute=1),
    Counter("nvlink_recovery_failed_events_total", "nvlink_errors", "failed NVLink recoveries"),
    Counter("pcie_replay_total", "pcie_replay", "PCIe replays", per_minute=10),
)
COUNTERS: Final[Mapping[str, Counter]] = {counter.field: counter for counter in _ALL}


@dataclass(frozen=True, slots=True)
class Step:
    """A counter after one reading, and what that reading told: (kind, observation) pairs."""

    count: Count
    told: tuple[tuple[str, Observation], ...] = ()


def number(value: Value) -> float | None:
    """The value when it is a number."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def advance(
    counter: Counter, known: Count | None, values: Mapping[str, Value], at: float, *, first: bool
) -> Step | None:
    """Take in one reading; None when it has no number for this counter.

    `first` says that this is the GPU's first reading: a lifetime counter then gives its baseline, which is no news.
    """
    after = number(values.get(counter.field))
    if after is None:
        return None
    covering = number(values.get(counter.covered_by)) or 0.0
    if known is None:
        if first and not counter.since_load:
            return Step(Count(after, after, at, covering))
        return _rise(counter, Count(0, 0, at, covering), after, None, covering, at)
    if after >= known.seen:
        return _rise(counter, known, after, known.seen, covering, at)
    step = _rise(counter, Count(0, 0, at, covering), after, 0, covering, at)
    if not counter.since_load:
        return step
    reset = Observation(counter.field, before=known.seen, after=after, counter_reset=True)
    return replace(step, told=(("ecc_counter_reset", reset), *step.told))


def _rise(counter: Counter, known: Count, after: float, before: float | None, covering: float, at: float) -> Step:
    seen = Count(after, known.told, known.told_at, covering)
    if counter.covered_by:
        covered = covering - known.covering if covering >= known.covering else covering
        news = after - known.seen > covered
    elif counter.per_minute is None:
        news = after > known.seen
    else:
        news = _grew(known, after, counter.per_minute, at)
        before = before if before is None else known.told
    if not news:
        return Step(seen)
    told = replace(seen, told=after, told_at=at)
    return Step(told, ((counter.kind, Observation(counter.field, before=before, after=after)),))


def _grew(known: Count, after: float, per_minute: float, at: float) -> bool:
    rise, minutes = after - known.told, (at - known.told_at) / 60
    return _digits(after) > _digits(known.told) or (minutes >= 1 and rise >= per_minute * minutes)


def _digits(count: float) -> int:
    return len(str(int(count))) if count >= 1 else 0
