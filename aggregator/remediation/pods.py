"""Which pods of a node a drain evicts, leaves alone, or must not touch. Pure, from plain JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MIRROR = "kubernetes.io/config.mirror"
OURS = ("app", "gcm-sentinel")
PROTECTED = ("kube-system",)  # namespaces

Pod = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator allows to be lost."""

    unmanaged: bool = False  # pods that nobody makes anew
    empty_dir: bool = False  # pods with data on the node


@dataclass(frozen=True, slots=True)
class Plan:
    """A node's pods; each is in one of these, or is left alone."""

    evict: tuple[Pod, ...]
    leaving: tuple[Pod, ...]  # evicted already, by whomever
    blocked: tuple[tuple[str, str], ...]  # namespace/name, why


def name_of(pod: Pod) -> str:
    """namespace/name."""
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def plan(pods: Iterable[Pod], rules: Rules) -> Plan:
    """Sort a node's pods."""
    evict, leaving, blocked = [], [], []
    for pod in pods:
        if _stays(pod):
            continue
        if pod["metadata"].get("deletionTimestamp"):
            leaving.append(pod)
        elif why := _why_not(pod, rules):
            blocked.append((name_of(pod), why))
        else:
            evict.append(pod)
    return Plan(tuple(evict), tuple(leaving), tuple(blocked))


def _stays(pod: Pod) -> bool:
    """DaemonSet and mirror pods would come back at once, finished ones hold nothing, and ours must see the end of it."""
    metadata = pod["metadata"]
    key, value = OURS
    return (
        _controller(pod) == "DaemonSet"
        or MIRROR in (metadata.get("annotations") or {})
        or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        or (metadata.get("labels") or {}).get(key) == value
    )


def _why_not(pod: Pod, rules: Rules) -> str:
    if pod["metadata"]["namespace"] in PROTECTED:
        return "it belongs to the cluster itself"
    if not _controller(pod) and not rules.unmanaged:
        return "nobody would make it anew"
    has_data = any("emptyDir" in volume for volume in (pod.get("spec") or {}).get("volumes") or ())
    return "it has data on the node (emptyDir)" if has_data and not rules.empty_dir else ""


def _controller(pod: Pod) -> str:
    owners = pod["metadata"].get("ownerReferences") or ()
    return next((str(owner.get("kind", "")) for owner in owners if owner.get("controller")), "")
