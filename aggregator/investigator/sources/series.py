"""Prometheus' results as a model reads them: few characters, valid JSON, and never silently less than there is.

Too many series give their number, what multiplies them and a query that would fit, instead of the first few of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aggregator.investigator.sources.asking import number, stamp
from aggregator.investigator.sources.labels import is_tenant_label

MAX_LABEL = 200  # characters of a value
MAX_SERIES = 60
MAX_VALUES = 4000  # over all series
MAX_RAW = 120  # samples of a series that came without steps


def shaped(data: Mapping[str, Any], step_seconds: float, named: frozenset[str] = frozenset()) -> Mapping[str, Any]:
    """A result with `total_series` and `truncated`. Tenants' labels are left out, but for those that the query named."""
    kind, found = data.get("resultType"), data["result"]
    if kind in ("scalar", "string"):
        return {"result": number(found[1]), "total_series": 1, "truncated": False}
    values = sum(len(series.get("values", ())) or 1 for series in found)
    if len(found) > MAX_SERIES or (step_seconds and values > MAX_VALUES):
        return _too_many(found, values)
    left_out: set[str] = set()
    series = [_series(item, step_seconds, named, left_out) for item in found]
    return {
        "result": series,
        "total_series": len(found),
        "truncated": any("values_left_out" in item for item in series),
        **({"labels_left_out": sorted(left_out)} if left_out else {}),
    }


def _series(item: Mapping[str, Any], step_seconds: float, named: frozenset[str], left_out: set[str]) -> dict[str, Any]:
    shown: dict[str, Any] = {"labels": shown_labels(item["metric"], named, left_out)}
    if "value" in item:
        return shown | {"at": _time(item["value"][0]), "value": number(item["value"][1])}
    if step_seconds:
        return shown | _course(item.get("values", ()), step_seconds)
    raw = item.get("values", ())
    shown["samples"] = [[_time(at), number(value)] for at, value in raw[-MAX_RAW:]]
    return shown | ({"values_left_out": len(raw) - MAX_RAW} if len(raw) > MAX_RAW else {})


def shown_labels(labels: Mapping[str, str], named: frozenset[str], left_out: set[str]) -> dict[str, str]:
    """Labels without tenants' words; the names of those left out are added to the set."""
    kept = {}
    for name, value in labels.items():
        if is_tenant_label(name) and name not in named:
            left_out.add(name)
        else:
            kept[name] = value[:MAX_LABEL]
    return kept


def _course(values: Sequence[Sequence[Any]], step_seconds: float) -> dict[str, Any]:
    """Values in steps from the first on; null where there is none."""
    if not values:
        return {"values": []}
    first = float(values[0][0])
    course: list[Any] = [None] * (round((float(values[-1][0]) - first) / step_seconds) + 1)
    for at, value in values:
        course[round((float(at) - first) / step_seconds)] = number(value)
    finite = [value for value in course if isinstance(value, int | float)]
    extremes = {"least": min(finite), "most": max(finite), "last": course[-1]} if finite else {}
    return {"from": _time(first), "to": _time(values[-1][0]), "values": course, **extremes}


def _too_many(found: Sequence[Mapping[str, Any]], values: int) -> Mapping[str, Any]:
    kinds: dict[str, Counter[str]] = {}
    for item in found:
        for name, value in item["metric"].items():
            kinds.setdefault(name, Counter())[value] += 1
    widest = sorted(kinds.items(), key=lambda kind: -len(kind[1]))[:15]
    by = _grouping((name, len(values)) for name, values in widest)
    return {
        "result": [],
        "total_series": len(found),
        "total_values": values,
        "truncated": True,
        "values_per_label": {name: len(values) for name, values in widest},
        "suggestion": f"too much to show (at most {MAX_SERIES} series, {MAX_VALUES} values): "
        f"use topk(10, …), an aggregation such as max by ({by}) (…), a matcher on a label above, or a shorter range or longer step",
    }


def _grouping(widths: Iterable[tuple[str, int]]) -> str:
    """A label that tells few things apart, but more than one."""
    fit = [name for name, width in widths if 1 < width <= 16 and name != "__name__" and not is_tenant_label(name)]
    return fit[0] if fit else "__name__"


def _time(seconds: Any) -> str:
    return stamp(int(float(seconds) * 1e6))
