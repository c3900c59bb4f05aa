"""What is done to nodes and pods: the only place in this program that changes either. Constructed in execute mode alone.

Each change names the version of the object it was decided on: whoever was faster makes it fail, and it is decided anew. Nothing is
ever deleted or forced: pods leave through the Eviction API, with the grace they ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aggregator.kube.client import Json, KubeClient
from aggregator.kube.errors import Conflict, Forbidden, NotFound, TooManyRequests
from aggregator.remediation import pods
from aggregator.remediation.nodes import CORDONED, MANAGER, TAINT, cordoned_by_us, is_cordoned, matters

Effect = Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
MAX_EVICTIONS = 50  # in one step
TRIES = 20  # at an object that others change


@dataclass(frozen=True, slots=True)
class Step:
    """How far a drain is."""

    evicted: tuple[str, ...]  # in this step
    remaining: tuple[str, ...]  # on their way out, or to be evicted yet
    blocked: tuple[str, ...]  # with the reason


class Executor:
    """The hands."""

    def __init__(self, client: KubeClient, *, effect: Effect = "NoSchedule", rules: pods.Rules) -> None:
        self._client = client
        self._effect = effect
        self._rules = rules

    async def cordon(self, node: Json, incident_id: str) -> str:
        """Let nothing new be scheduled there; say what was done. Raises ApiError.

        By server-side apply: an API server notes who owns a field of an object only from its first apply on, and that note is how
        our own cordon is known again.
        """
        if is_cordoned(node):
            return "it was cordoned by us already" if cordoned_by_us(node) else "it was cordoned by another already"
        mine = {"metadata": {"annotations": {CORDONED: incident_id}}, "spec": {"unschedulable": True}}
        await self._change(node, mine, "apply")
        return "cordoned"

    async def taint(self, node: Json, value: str) -> str:
        """Set our taint; others' stay as they are, the time they were added included. Raises ApiError."""
        taints = list((node.get("spec") or {}).get("taints") or ())
        mine = {"key": TAINT, "value": value, "effect": self._effect}
        if any(taint.get("key") == TAINT and taint.get("effect") == self._effect for taint in taints):
            return "it carried our taint already"
        await self._change(node, {"spec": {"taints": [*taints, mine]}}, "merge")
        return f"tainted {TAINT}={value}:{self._effect}"

    async def release(self, node: Json) -> str:
        """Undo what is ours, and nothing else; empty where nothing is. Raises ApiError."""
        done = []
        taints = list((node.get("spec") or {}).get("taints") or ())
        kept = [taint for taint in taints if taint.get("key") != TAINT]
        if kept != taints:
            node = await self._change(node, {"spec": {"taints": kept}}, "merge")
            done.append("our taint was removed")
        if cordoned_by_us(node):
            await self._change(node, {}, "apply")  # applying nothing gives up what we alone own
            done.append("uncordoned")
        return ", ".join(done)

    async def drain(self, node: str) -> Step:
        """Evict what may be evicted now, and say what is left. Raises ApiError."""
        found = await self._client.items("/api/v1/pods", {"fieldSelector": f"spec.nodeName={node}"})
        planned = pods.plan(found, self._rules)
        evicted: list[str] = []
        remaining = [pods.name_of(pod) for pod in planned.leaving]
        blocked = [f"{name}: {why}" for name, why in planned.blocked]
        for pod in planned.evict[:MAX_EVICTIONS]:
            name, refused = pods.name_of(pod), await self._evict(pod)
            remaining.append(name)
            (blocked if refused else evicted).append(f"{name}: {refused}" if refused else name)
        remaining += [pods.name_of(pod) for pod in planned.evict[MAX_EVICTIONS:]]
        return Step(tuple(evicted), tuple(remaining), tuple(blocked))

    async def _evict(self, pod: pods.Pod) -> str:
        """Why it is refused; empty where it is not. The pod's own grace stands."""
        metadata = pod["metadata"]
        name, namespace, uid = metadata["name"], metadata["namespace"], metadata["uid"]
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        try:
            await self._client.post(f"/api/v1/namespaces/{namespace}/pods/{name}/eviction", body)
        except TooManyRequests:
            return "its disruption budget allows none now"
        except (NotFound, Conflict):
            return ""  # gone, or another pod by now
        except Forbidden as error:
            return str(error)
        return ""

    async def _change(self, node: Json, change: Json, kind: Literal["apply", "merge"]) -> Json:
        """Change a node that still is as it was decided on: what no decision looks at may have changed. Raises Conflict."""
        name = node["metadata"]["name"]
        path, params = f"/api/v1/nodes/{name}", {"fieldManager": MANAGER}
        if kind == "apply":
            params["force"] = "true"  # who set it before does not matter: the node is as it was decided on
        for _ in range(TRIES):
            seen = {field: node["metadata"][field] for field in ("uid", "resourceVersion")}
            metadata = {**change.get("metadata", {}), **seen, "name": name}
            body = {"apiVersion": "v1", "kind": "Node", **change, "metadata": metadata}
            try:
                return await self._client.patch(path, body, kind, params)
            except Conflict:
                now = await self._client.get(path)
                if matters(now) != matters(node):
                    raise
                node = now
        raise Conflict(f"node {name} changes too often")
