"""What a Node object says that is worth evidence: conditions that are bad or cannot tell, and states that somebody planned."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from aggregator.kube.client import FIELD_MANAGER
from aggregator.kube.nodes import Condition, Node
from aggregator.rules.node_conditions import TRUE, family_of

CONDITION, CONDITION_UNKNOWN = "node_condition", "node_condition_unknown"
UPGRADE_LABEL = "nvidia.com/gpu-driver-upgrade-state"
MIG_LABEL = "nvidia.com/mig.config.state"
MAINTENANCE_ANNOTATION = "gcm-sentinel/maintenance"
UPGRADE_AT_REST = frozenset(("", "upgrade-required", "upgrade-done", "upgrade-failed", "unknown"))
MIG_IN_PROGRESS = frozenset(("pending", "rebooting"))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that stands on a node now."""

    kind: str  # of the evidence
    name: str  # condition type, label or annotation
    status: str
    reason: str = ""
    message: str = ""
    since_us: int = 0  # 0 where nobody says

    @property
    def key(self) -> str:
        """Tells the states of one node apart."""
        return f"{self.kind}:{self.name}"


def watches(globs: Sequence[str]) -> Callable[[str], bool]:
    """Whether a condition's type is watched, by the globs."""
    pattern = re.compile("|".join(f"(?:{translate(glob)})" for glob in globs) or r"(?!)")
    return lru_cache(maxsize=4096)(lambda name: pattern.match(name) is not None)


def findings(node: Node, watched: Callable[[str], bool]) -> Iterator[Finding]:
    """Everything that stands on a node."""
    for condition in node.conditions.values():
        if watched(condition.type) and (found := _of_condition(condition)) is not None:
            yield found
    yield from _planned(node)
    yield from _failed_by_operator(node)


def clear_seconds(key: str) -> float:
    """How long the good status of a state must last before it is believed."""
    kind, _, name = key.partition(":")
    return family_of(name).clear_seconds if kind in (CONDITION, CONDITION_UNKNOWN) else 0.0


def _of_condition(condition: Condition) -> Finding | None:
    """None where the condition is well. Status alone decides: a message may contradict it."""
    family = family_of(condition.type)
    kind = {family.bad: CONDITION, family.blind: CONDITION_UNKNOWN}.get(condition.status)
    if kind is None:
        return None
    return Finding(kind, condition.type, condition.status, condition.reason, condition.message, condition.transition_us)


def _planned(node: Node) -> Iterator[Finding]:
    if node.unschedulable and node.cordoned_by != FIELD_MANAGER:
        yield Finding("node_cordoned", "unschedulable", TRUE, node.cordoned_by, "", node.cordoned_us)
    upgrade = node.labels.get(UPGRADE_LABEL, "")
    if upgrade not in UPGRADE_AT_REST:
        yield Finding("node_driver_upgrade", UPGRADE_LABEL, upgrade)
    if node.labels.get(MIG_LABEL) in MIG_IN_PROGRESS:
        yield Finding("node_mig_change", MIG_LABEL, node.labels[MIG_LABEL])
    if (said := node.annotations.get(MAINTENANCE_ANNOTATION)) is not None:
        yield Finding("node_maintenance", MAINTENANCE_ANNOTATION, TRUE, "", said[:200])


def _failed_by_operator(node: Node) -> Iterator[Finding]:
    """What the GPU operator gave up on stands in its labels alone."""
    for label, failed in ((UPGRADE_LABEL, "upgrade-failed"), (MIG_LABEL, "failed")):
        if node.labels.get(label) == failed:
            yield Finding(CONDITION, label, failed)
