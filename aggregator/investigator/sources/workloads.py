"""`get_workload_info`: the GPU work on a node, and how its siblings fare on other nodes.

Numbers and states come from the API server and are cluster-class. Names and labels are tenants' words, so they are shown apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from aggregator.investigator.sources import Answer, Scope, Tool
from aggregator.investigator.sources.asking import NODE_NAME, node_in_scope, page, parameters, refusing
from aggregator.investigator.sources.cluster import Cluster, Json, Listed, controller
from aggregator.investigator.sources.labels import SYSTEM_NAMESPACES
from aggregator.investigator.sources.nodes import reachable
from aggregator.investigator.sources.owners import Family, family
from aggregator.model import Trust

GPU_RESOURCES = ("nvidia.com/gpu", "nvidia.com/mig-*", "nvidia.com/gpu.shared", "amd.com/gpu", "gpu.intel.com/*")
MAX_PODS = 20
MAX_SIBLINGS = 50
_STATES = frozenset(("Completed", "Error", "OOMKilled", "Evicted", "ContainerCannotRun", "DeadlineExceeded", "StartError",
                     "CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "ContainerCreating", "PodInitializing",
                     "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "NodeLost", "Preempting",
                     "UnexpectedAdmissionError", "NodeShutdown", "Terminated", "ContainerStatusUnknown"))  # fmt: skip

_ABOUT = """\
Returns the pods on a node that request GPUs: GPUs requested (summed over containers, MIG slices too), phase, \
restarts, each container's state with exit code and reason, and the same of the job's other pods on other nodes \
(siblings), with counts of how many failed where. Use it to tell a job that fails everywhere from a node that fails \
every job. names=true adds names, namespaces, images and labels, which are tenants' words that prove nothing. Outside \
Kubernetes, or for Slurm jobs, ask get_node_evidence instead."""


@dataclass(frozen=True)
class Workloads:
    """GPU pods and their jobs."""

    cluster: Cluster
    resources: tuple[str, ...] = GPU_RESOURCES  # names of what counts as a GPU; "*" stands for the rest of a name
    system_namespaces: tuple[str, ...] = SYSTEM_NAMESPACES
    name: str = "workloads"

    @property
    def tools(self) -> Sequence[Tool]:
        names = {"type": "boolean", "default": False, "description": "show names, namespaces, images and labels too"}
        schema = parameters({"node_name": NODE_NAME, "names": names}, "node_name")
        return (Tool("get_workload_info", _ABOUT, schema, refusing(self.info), live=True, timeout_seconds=45.0),)

    async def unavailable(self) -> str:
        return await reachable(self.cluster)

    async def info(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        node = node_in_scope(scope, arguments["node_name"])
        listed = await self.cluster.pods_on(node)
        named = bool(arguments.get("names", False))
        shown, counts = page(self.gpu_pods(listed.items, scope.denied_namespaces), MAX_PODS)
        lists: dict[str, Listed] = {}
        described = [await self._described(pod, lists, named=named, number=at) for at, pod in enumerate(shown, 1)]
        value = {"node": node, "pods": described, **counts, "all_pods_read": listed.complete}
        return Answer(value, Trust.TENANT if named else Trust.CLUSTER)

    def gpu_pods(self, pods: Iterable[Json], denied: Sequence[str]) -> list[Json]:
        """Tenants' pods that request GPUs, by name."""
        hidden = {*denied, *self.system_namespaces}
        found = [
            pod
            for pod in pods
            if pod["metadata"]["namespace"] not in hidden
            and controller(pod).get("kind") != "DaemonSet"
            and requested(pod, self.resources)
        ]
        return sorted(found, key=lambda pod: (pod["metadata"]["namespace"], pod["metadata"]["name"]))

    async def kin(self, pod: Json, lists: dict[str, Listed]) -> Family:
        """A pod's job; lists of namespaces are read once."""
        namespace = pod["metadata"]["namespace"]
        if namespace not in lists:
            lists[namespace] = await self.cluster.list(f"/api/v1/namespaces/{namespace}/pods")
        return await family(self.cluster, pod, lists[namespace])

    async def _described(self, pod: Json, lists: dict[str, Listed], *, named: bool, number: int) -> dict[str, Any]:
        kin = await self.kin(pod, lists)
        others = [other for other in kin.pods if other["metadata"]["uid"] != pod["metadata"]["uid"]]
        siblings, counts = page([_state(other) for other in others], MAX_SIBLINGS)
        ids = {"pod": f"pod {number}"} if not named else _names(pod, kin)
        return {
            **ids,
            "gpus": requested(pod, self.resources),
            **_state(pod),
            "containers": _containers(pod, named=named),
            "job": [owner.kind for owner in kin.owners if owner.path],
            "siblings": siblings,
            "siblings_by_state": dict(
                Counter(f"{_outcome(other)} on {_node(other)}" for other in others).most_common(30)
            ),
            **{f"siblings_{name}": value for name, value in counts.items()},
            "siblings_complete": kin.complete,
        }


def requested(pod: Json, resources: Sequence[str]) -> dict[str, int | str]:
    """GPUs by resource, as the scheduler counts them: the sum over containers, or an init container's where that is more."""
    patterns = [re.compile(re.escape(name).replace(r"\*", ".*")) for name in resources]
    totals: dict[str, Decimal] = {}
    spec = pod.get("spec") or {}
    for container in spec.get("containers") or ():
        for name, amount in _requests(container, patterns).items():
            totals[name] = totals.get(name, Decimal(0)) + amount
    for container in spec.get("initContainers") or ():
        for name, amount in _requests(container, patterns).items():
            totals[name] = max(totals.get(name, Decimal(0)), amount)
    return {name: int(total) for name, total in sorted(totals.items()) if total > 0}


def _requests(container: Json, patterns: Sequence[re.Pattern[str]]) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    both = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {
        name: _amount(value) for name, value in both.items() if any(pattern.fullmatch(name) for pattern in patterns)
    }


def _amount(text: object) -> Decimal:
    """Extended resources are whole numbers; the API server may write a thousand as 1k."""
    try:
        return Decimal(str(text).replace("k", "e3"))
    except InvalidOperation:
        return Decimal(0)


def _state(pod: Json) -> dict[str, Any]:
    status = pod.get("status") or {}
    return {
        "node": _node(pod),
        "phase": status.get("phase", "Unknown"),
        "outcome": _outcome(pod),
        "started": status.get("startTime"),
        "restarts": sum(container.get("restartCount", 0) for container in status.get("containerStatuses") or ()),
    }


def _outcome(pod: Json) -> str:
    """How its containers ended, worst first; else its phase."""
    ended = [state for container in _statuses(pod) for state in _ended(container)]
    failed = [state for state in ended if state.get("exitCode")]
    if failed:
        return f"exit {failed[0]['exitCode']} {_reason(failed[0])}".strip()
    return str((pod.get("status") or {}).get("phase", "Unknown"))


def _ended(container: Json) -> Iterable[Json]:
    for when in ("state", "lastState"):
        state = (container.get(when) or {}).get("terminated")
        if state:
            yield state


def _containers(pod: Json, *, named: bool) -> list[dict[str, Any]]:
    shown = []
    for number, container in enumerate(_statuses(pod), 1):
        now, before = container.get("state") or {}, (container.get("lastState") or {}).get("terminated")
        state: dict[str, Any] = {
            "container": container["name"] if named else f"container {number}",
            "state": next(iter(now), "unknown"),
            "restarts": container.get("restartCount", 0),
            **_detail(next(iter(now.values()), {})),
        }
        if before:
            state["before"] = _detail(before)
        shown.append(state)
    return shown


def _detail(state: Json) -> dict[str, Any]:
    kept = {
        name: state[name] for name in ("exitCode", "signal", "startedAt", "finishedAt") if state.get(name) is not None
    }
    reason = _reason(state)
    return kept | ({"reason": reason} if reason else {})


def _reason(state: Json) -> str:
    """The kubelet's own words alone; `message` is what the container wrote."""
    reason = str(state.get("reason") or "")
    return reason if reason in _STATES else ""


def _statuses(pod: Json) -> list[Json]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _names(pod: Json, kin: Family) -> dict[str, Any]:
    metadata = pod["metadata"]
    return {
        "pod": metadata["name"],
        "namespace": metadata["namespace"],
        "owners": [f"{owner.kind} {owner.name}" for owner in kin.owners],
        "labels": dict(sorted((metadata.get("labels") or {}).items())[:30]),
        "images": [container.get("image", "") for container in (pod.get("spec") or {}).get("containers") or ()][:10],
    }


def _node(pod: Json) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "no node")
