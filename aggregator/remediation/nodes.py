"""What a Node object says about who acts on it: us, or somebody whose work is not to be touched. Pure, from plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MANAGER = "gcm-sentinel-executor"  # field manager of what is done here: it is how our own cordon is known again
CORDONED = (
    "gcm-sentinel/cordoned"  # annotation: the incident we cordoned for; set and removed together with unschedulable
)
TAINT = "gcm-sentinel/fault"
OPT_OUT = "gcm-sentinel/opt-out"  # label; any value but "false"

# Taints, labels and annotations by which other actors say that they are at work, or that a node is leaving.
OTHERS: Mapping[str, str] = {
    "ToBeDeletedByClusterAutoscaler": "the cluster autoscaler",
    "karpenter.sh/disrupted": "Karpenter",
    "node.kubernetes.io/out-of-service": "whoever took it out of service",
    "aws-node-termination-handler/": "the AWS node termination handler",
    "cloud.google.com/impending-node-termination": "Google Cloud",
    "dgxc.nvidia.com/nvsentinel-state": "NVSentinel",
    "k8saas.nvidia.com/cordon-by": "NVSentinel",
    "quarantineHealthEvent": "NVSentinel",
    "weave.works/kured-reboot-in-progress": "kured",
    "remediation.medik8s.io/": "medik8s",
    "cluster.x-k8s.io/delete-machine": "Cluster API",
}

Node = Mapping[str, Any]


def opted_out(node: Node) -> bool:
    """Labelled to be left alone."""
    value = _of(node, "labels").get(OPT_OUT)
    return value is not None and value != "false"


def handled_by(node: Node) -> str:
    """Another actor that is at work on a node; empty where nobody is."""
    if node["metadata"].get("deletionTimestamp"):
        return "whoever deletes it"
    taints = (taint["key"] for taint in (node.get("spec") or {}).get("taints") or ())
    for mark in (*taints, *_of(node, "labels"), *_of(node, "annotations")):
        for known, actor in OTHERS.items():
            if mark == known or (known.endswith("/") and mark.startswith(known)):
                return actor
    if is_cordoned(node) and not cordoned_by_us(node):
        return f"whoever cordoned it ({', '.join(sorted(cordoned_by(node))) or 'unknown'})"
    return ""


def is_cordoned(node: Node) -> bool:
    """Nothing new is scheduled there."""
    return bool((node.get("spec") or {}).get("unschedulable"))


def cordoned_by_us(node: Node) -> bool:
    """We did it, and nobody did it again since."""
    return is_cordoned(node) and CORDONED in _of(node, "annotations") and cordoned_by(node) == {MANAGER}


def cordoned_by(node: Node) -> set[str]:
    """The field managers that own unschedulable; empty also where the API server does not know."""
    return {
        str(entry.get("manager", ""))
        for entry in node["metadata"].get("managedFields") or ()
        if "f:unschedulable" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    }


def is_ready(node: Node) -> bool:
    """As its kubelet says."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def matters(node: Node) -> tuple[object, ...]:
    """What decisions look at: heartbeats and annotations of others change all the time."""
    return (node["metadata"]["uid"], node.get("spec") or {}, _of(node, "labels"), handled_by(node), opted_out(node))


def _of(node: Node, what: str) -> Mapping[str, str]:
    return node["metadata"].get(what) or {}
