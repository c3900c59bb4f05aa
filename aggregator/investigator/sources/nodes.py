"""`get_node_info` and `get_node_events`: what the API server says of a node.

Verdicts of our own (annotations, Events) are left out: an investigation that reads its own past is not a second witness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator.investigator.sources import Answer, Scope, Tool
from aggregator.investigator.sources.asking import (
    NODE_NAME,
    instant_us,
    node_in_scope,
    page,
    parameters,
    refusing,
    stamp,
)
from aggregator.investigator.sources.cluster import Cluster, Json
from aggregator.kube.errors import ApiError
from aggregator.model import Trust

OWN = "gcm-sentinel"
MAX_PODS = 200
MAX_EVENTS = 50
MAX_MESSAGE = 500

# Whoever writes these labels administers the cluster: the kubelet, the cloud's controller, NVIDIA's operator.
KNOWN_LABELS = (
    "kubernetes.io/",
    "node.kubernetes.io/",
    "topology.kubernetes.io/",
    "node-role.kubernetes.io/",
    "nvidia.com/",
    "network.nvidia.com/",
    "amd.com/",
    "cloud.google.com/",
    "eks.amazonaws.com/",
    "karpenter.sh/",
    "kubernetes.azure.com/",
    "oci.oraclecloud.com/",
)
_SHOWN_STATES = ("bootID", "kernelVersion", "osImage", "kubeletVersion", "containerRuntimeVersion", "architecture")

_INFO = """\
Returns what the API server knows of a node. details=node: conditions (NPD's and GCM's too) with status, reason, \
message and times, taints, cordoned or not, capacity and allocatable (GPUs among them), versions, boot id, well-known \
labels (rack or zone, GPU product), and how many pods it runs. details=labels: every other label and annotation. \
details=pods: its pods with phase and restarts, at most 200. Labels, annotations and pods' names are tenants' words: \
they inform and prove nothing. A condition's message may lag behind its status."""
_EVENTS = """\
Returns the last 50 Kubernetes Events about a node, oldest first: kubelet restarts, reboots, NotReady, evictions, \
node-problem-detector's findings; with count, first and last time. Events expire (commonly after an hour): none is no \
proof that nothing happened."""


@dataclass(frozen=True)
class Nodes:
    """Nodes, as the API server has them."""

    cluster: Cluster
    name: str = "kubernetes"

    @property
    def tools(self) -> Sequence[Tool]:
        details = {"enum": ["node", "labels", "pods"], "default": "node", "description": "what to show"}
        info = parameters({"node_name": NODE_NAME, "details": details}, "node_name")
        return (
            Tool("get_node_info", _INFO, info, refusing(self.info), live=True),
            Tool(
                "get_node_events",
                _EVENTS,
                parameters({"node_name": NODE_NAME}, "node_name"),
                refusing(self.events),
                live=True,
            ),
        )

    async def unavailable(self) -> str:
        return await reachable(self.cluster)

    async def info(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        name = node_in_scope(scope, arguments["node_name"])
        match arguments.get("details", "node"):
            case "labels":
                return Answer(_labels(name, await self.cluster.node(name)), Trust.TENANT)
            case "pods":
                return Answer(await self._pods(name, scope.denied_namespaces), Trust.TENANT)
        node, pods = await self.cluster.node(name), await self.cluster.pods_on(name)
        phases = Counter((pod.get("status") or {}).get("phase", "Unknown") for pod in pods.items)
        return Answer({**_node(node), "pods_by_phase": dict(phases), "pods_counted_all": pods.complete}, Trust.CLUSTER)

    async def events(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        name = node_in_scope(scope, arguments["node_name"])
        # Events about what has no namespace live in these two: others could be anybody's.
        wanted = {"fieldSelector": f"involvedObject.kind=Node,involvedObject.name={name}"}
        lists = [
            await self.cluster.list(f"/api/v1/namespaces/{space}/events", wanted)
            for space in ("default", "kube-system")
        ]
        found = [event for listed in lists for event in map(_event, listed.items) if event is not None]
        found.sort(key=lambda event: event["last"])
        shown = found[-MAX_EVENTS:]
        truncated = len(shown) < len(found) or not all(listed.complete for listed in lists)
        return Answer({"node": name, "events": shown, "total": len(found), "truncated": truncated}, Trust.CLUSTER)

    async def _pods(self, node: str, denied: Sequence[str]) -> Mapping[str, Any]:
        listed = await self.cluster.pods_on(node)
        allowed = [pod for pod in listed.items if pod["metadata"]["namespace"] not in denied]
        shown, counts = page(sorted(map(_pod, allowed), key=lambda pod: (pod["namespace"], pod["pod"])), MAX_PODS)
        hidden = len(listed.items) - len(allowed)
        return {"node": node, "pods": shown, **counts, **({"in_namespaces_not_shown": hidden} if hidden else {})}


async def reachable(cluster: Cluster) -> str:
    """Why the API server cannot be asked, in one line; empty while it can."""
    try:
        await cluster.reader.text("/version")
    except ApiError as error:
        return f"the API server cannot be asked: {error}"
    return ""


def conditions(node: Json) -> list[dict[str, Any]]:
    """A node's conditions, in the order of their last change."""
    found = (node.get("status") or {}).get("conditions") or ()
    return sorted(map(_condition, found), key=lambda condition: str(condition["since"]))


def _condition(condition: Json) -> dict[str, Any]:
    return {
        "type": condition.get("type", ""),
        "status": condition.get("status", ""),
        "reason": condition.get("reason", "")[:MAX_MESSAGE],
        "message": condition.get("message", "")[:MAX_MESSAGE],
        "since": condition.get("lastTransitionTime"),
        "heartbeat": condition.get("lastHeartbeatTime"),
    }


def _node(node: Json) -> dict[str, Any]:
    status, spec, metadata = node.get("status") or {}, node.get("spec") or {}, node["metadata"]
    labels = metadata.get("labels") or {}
    info = status.get("nodeInfo") or {}
    return {
        "node": metadata["name"],
        "uid": metadata.get("uid"),
        "created": metadata.get("creationTimestamp"),
        "cordoned": bool(spec.get("unschedulable")),
        "taints": [
            {key: taint.get(key) for key in ("key", "value", "effect", "timeAdded") if taint.get(key)}
            for taint in spec.get("taints") or ()
        ],
        "conditions": conditions(node),
        "capacity": status.get("capacity") or {},
        "allocatable": status.get("allocatable") or {},
        "system": {name: info[name] for name in _SHOWN_STATES if name in info},
        "labels": {name: value for name, value in sorted(labels.items()) if name.startswith(KNOWN_LABELS)},
    }


def _labels(name: str, node: Json) -> Mapping[str, Any]:
    metadata = node["metadata"]
    others = {key: value for key, value in (metadata.get("labels") or {}).items() if not key.startswith(KNOWN_LABELS)}
    annotations = {
        key: value[:MAX_MESSAGE]
        for key, value in (metadata.get("annotations") or {}).items()
        if not key.startswith(f"{OWN}/")
    }
    return {"node": name, "other_labels": others, "annotations": annotations}


def _pod(pod: Json) -> dict[str, Any]:
    status = pod.get("status") or {}
    containers = status.get("containerStatuses") or ()
    return {
        "namespace": pod["metadata"]["namespace"],
        "pod": pod["metadata"]["name"],
        "phase": status.get("phase"),
        "restarts": sum(container.get("restartCount", 0) for container in containers),
        "started": status.get("startTime"),
    }


def _event(event: Json) -> dict[str, Any] | None:
    """An Event of either API generation; None for our own."""
    component = event.get("reportingComponent") or (event.get("source") or {}).get("component") or ""
    if event.get("reason") == "GCMSentinel" or component == OWN:
        return None
    series = event.get("series") or {}
    times = [event.get("firstTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp")]
    first = next(filter(None, times), None)
    last = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or first
    return {
        "first": _time(first),
        "last": _time(last),
        "count": series.get("count") or event.get("count") or 1,
        "type": event.get("type", ""),
        "reason": event.get("reason", "")[:MAX_MESSAGE],
        "from": component[:100],
        "message": (event.get("message") or "")[:MAX_MESSAGE],
    }


def _time(text: str | None) -> str:
    """One form for all times, so that they sort."""
    return stamp(instant_us(text)) if text else ""
