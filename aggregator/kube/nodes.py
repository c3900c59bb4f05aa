"""What the aggregator keeps of a Node object: a few hundred bytes of what may be tens of kilobytes.

Parsed from plain JSON. Ten thousand nodes share their label keys and values. Texts that anybody may write are cut.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

MAX_MESSAGE = 4096  # characters of a condition's message that are kept
MAX_REASON = 256
MAX_TYPE = 160  # a condition of a longer type is refused: it is part of an evidence's identity
MAX_CONDITIONS = 64  # watched ones of one node; more are refused
READY = "Ready"
OURS = "gcm-sentinel/"  # labels and annotations of ours
GPU_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915")
MIG_RESOURCES = "nvidia.com/mig-"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a node, as its monitor set it last."""

    type: str
    status: str  # True, False, Unknown
    reason: str
    message: str
    transition_us: int  # 0 where the monitor gave no time


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class Node:
    """One node as the API server tells it."""

    name: str
    uid: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]  # those that are wanted
    conditions: Mapping[str, Condition]  # those that are watched, and Ready
    taints: tuple[Taint, ...]
    unschedulable: bool
    cordoned_by: str  # field manager that set unschedulable; empty where nobody did
    cordoned_us: int  # when, as far as its managed fields tell; else 0
    gpus: int  # capacity, MIG devices included
    boot_id: str
    created_us: int

    @property
    def has_gpus(self) -> bool:
        """It should have GPUs: it says so, or its labels do."""
        return self.gpus > 0 or self.labels.get("nvidia.com/gpu.present") == "true"

    @property
    def ready(self) -> str:
        """True, False or Unknown, as its kubelet (or the lack of it) says."""
        found = self.conditions.get(READY)
        return found.status if found else "Unknown"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which conditions and annotations are kept."""

    condition: Callable[[str], bool]
    annotations: frozenset[str] = frozenset()


def parse(found: Mapping[str, Any], wanted: Wanted, on_rejected: Callable[[str], None] = lambda _: None) -> Node:
    """A Node object as a Node. Raises KeyError, TypeError, ValueError or AttributeError for what is none."""
    metadata, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
    conditions = list(_conditions(status, wanted, on_rejected))
    unschedulable = bool(spec.get("unschedulable"))
    cordoned_by, cordoned_us = _cordoned(metadata.get("managedFields") or ()) if unschedulable else ("", 0)
    return Node(
        name=metadata["name"],
        uid=metadata["uid"],
        labels=_shared(metadata.get("labels") or {}),
        annotations=_shared(
            {
                key: value
                for key, value in (metadata.get("annotations") or {}).items()
                if key.startswith(OURS) or key in wanted.annotations
            }
        ),
        conditions={condition.type: condition for condition in conditions},
        taints=tuple(_taint(taint) for taint in spec.get("taints") or ()),
        unschedulable=unschedulable,
        cordoned_by=cordoned_by,
        cordoned_us=cordoned_us,
        gpus=_gpus(status.get("capacity") or {}),
        boot_id=(status.get("nodeInfo") or {}).get("bootID", ""),
        created_us=time_us(metadata.get("creationTimestamp")),
    )


def time_us(text: str | None) -> int:
    """An RFC 3339 time as microseconds; 0 where there is none."""
    if not text:
        return 0
    try:
        return max(0, round(datetime.fromisoformat(text).timestamp() * 1_000_000))
    except (ValueError, OverflowError):
        return 0


def _conditions(status: Mapping[str, Any], wanted: Wanted, on_rejected: Callable[[str], None]) -> Iterator[Condition]:
    kept = 0
    for found in status.get("conditions") or ():
        kind = str(found.get("type", ""))
        if not wanted.condition(kind):
            continue
        if len(kind) > MAX_TYPE or kept == MAX_CONDITIONS:
            on_rejected("condition")
            continue
        kept += 1
        yield Condition(
            type=sys.intern(kind),
            status=sys.intern(str(found.get("status", ""))[:16]),
            reason=sys.intern(str(found.get("reason") or "")[:MAX_REASON]),
            message=str(found.get("message") or "")[:MAX_MESSAGE],
            transition_us=time_us(found.get("lastTransitionTime")),
        )


def _taint(found: Mapping[str, Any]) -> Taint:
    return Taint(sys.intern(found["key"]), found.get("value", ""), sys.intern(found.get("effect", "")))


def _shared(texts: Mapping[str, str]) -> dict[str, str]:
    return {sys.intern(key): sys.intern(value) if len(value) <= 64 else value for key, value in texts.items()}


def _cordoned(managed: Any) -> tuple[str, int]:
    """Who set unschedulable, and when that manager last wrote."""
    return next(
        (
            (str(entry.get("manager", "")), time_us(entry.get("time")))
            for entry in managed
            if "f:unschedulable" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        ),
        ("", 0),
    )


def _gpus(capacity: Mapping[str, str]) -> int:
    counts = [
        int(amount)
        for name, amount in capacity.items()
        if (name in GPU_RESOURCES or name.startswith(MIG_RESOURCES)) and str(amount).isdecimal()
    ]
    return sum(counts)
