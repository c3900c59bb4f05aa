"""What an exporter exposes, read line by line with prometheus_client's parser: one bad line spoils no other.

Everything here may come from a hostile or broken exporter: names and labels that are none are counted and not shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from aggregator.investigator.sources.asking import number, stamp

MAX_LINES = 100_000
MAX_LINE = 8_000  # characters
MAX_LABEL = 200  # characters of a value that are shown
MAX_SAMPLES = 500  # that are shown

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One series' value."""

    name: str
    labels: Mapping[str, str]
    value: float | int | str
    at: str = ""  # where the exporter gave a time


@dataclass(frozen=True, slots=True)
class Exposition:
    """Everything that could be read, in the exporter's order."""

    samples: tuple[Sample, ...]
    unreadable_lines: int = 0


def read(body: bytes) -> Exposition:
    """Takes a while for large ones: not for the event loop."""
    lines = body.decode("utf-8", "replace").split("\n")
    wanted = [line for line in lines[:MAX_LINES] if line.strip() and not line.lstrip().startswith("#")]
    samples = [sample for line in wanted for sample in _samples(line)]
    return Exposition(tuple(samples), max(len(wanted) - len(samples), 0) + max(len(lines) - MAX_LINES, 0))


def _samples(line: str) -> Iterable[Sample]:
    if len(line) > MAX_LINE or "\r" in line[:-1]:
        return
    try:
        found = [sample for family in text_string_to_metric_families(line) for sample in family.samples]
        for sample in found[:1]:
            if _NAME.fullmatch(sample.name) and all(map(_NAME.fullmatch, sample.labels)):
                at = stamp(int(float(sample.timestamp) * 1e6)) if sample.timestamp is not None else ""
                yield Sample(sample.name, dict(sample.labels), number(sample.value), at)
    except (ValueError, IndexError, OverflowError):
        return  # counted by whoever counts lines


def shown(samples: Sequence[Sample], keeps: frozenset[str] | None, drops: frozenset[str]) -> Mapping[str, Any]:
    """Samples by metric; labels that are the same in all stand once. `keeps`: the only labels shown, None for all but `drops`."""
    cut = [_labelled(sample, keeps, drops) for sample in samples[:MAX_SAMPLES]]
    common = dict(set.intersection(*(set(labels.items()) for labels in cut))) if len(cut) > 1 else {}
    metrics: dict[str, list[dict[str, Any]]] = {}
    for sample, labels in zip(samples, cut, strict=False):
        own = {name: value for name, value in labels.items() if name not in common}
        at = {"at": sample.at} if sample.at else {}
        metrics.setdefault(sample.name, []).append({"labels": own, "value": sample.value, **at})
    left_out = {name for sample in samples for name in sample.labels if not _is_kept(name, keeps, drops)}
    return {
        "common_labels": dict(sorted(common.items())),
        "metrics": metrics,
        "total_series": len(samples),
        "truncated": len(samples) > MAX_SAMPLES,
        **({"labels_left_out": len(left_out)} if left_out else {}),
    }


def _labelled(sample: Sample, keeps: frozenset[str] | None, drops: frozenset[str]) -> dict[str, str]:
    return {name: value[:MAX_LABEL] for name, value in sample.labels.items() if _is_kept(name, keeps, drops)}


def _is_kept(name: str, keeps: frozenset[str] | None, drops: frozenset[str]) -> bool:
    return name in keeps if keeps is not None else name not in drops
