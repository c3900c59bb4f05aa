"""Which nodes should be heard, and what the cluster knows of why one is not.

A node with GPUs should have an agent. Where it has none, the node itself may be down, no agent may be scheduled there, or the one
that is may not come up. Pods are asked for only while a node that should be heard is not: a well cluster is asked nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import structlog

from aggregator.kube.client import Json, KubeClient
from aggregator.kube.errors import ApiError
from aggregator.kube.watch import NodeWatch
from aggregator.rules.node_conditions import TRUE

SELECTOR = "app=gcm-sentinel"
PAGE = 100
LOOK_SECONDS = 30.0
NODE_DOWN, UNSCHEDULED, CRASHING = "node_down", "unscheduled", "crashing"
NOT_COMING_UP = frozenset((
    "CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "CreateContainerConfigError", "CreateContainerError",
    "RunContainerError",
))  # fmt: skip

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Expected:
    """A node that should be heard."""

    since_us: int  # when it came into the cluster
    hindrance: str = (
        ""  # what the cluster sees that keeps its agent from being heard: one of the three above, or nothing
    )


class Silence:
    """The nodes that should be heard."""

    def __init__(self, client: KubeClient, watch: NodeWatch, connected: Callable[[], Collection[str]]) -> None:
        self._client = client
        self._watch = watch
        self._connected = connected
        self._agents: Mapping[str, bool] | None = None  # node → whether its agent's pod comes up; None: not known
        self._said = ""

    @property
    def known(self) -> bool:
        """Whether the cluster's nodes have been listed."""
        return self._watch.synced.is_set()

    def expected(self) -> Mapping[str, Expected]:
        """Every node that should be heard, by name."""
        connected = frozenset(self._connected())
        return {
            node.name: Expected(node.created_us, "" if node.name in connected else self._hindrance(node.name))
            for node in list(self._watch.nodes.values())
            if node.has_gpus
        }

    def removed(self) -> Collection[str]:
        """Nodes that were deleted from the cluster while it was watched."""
        return self._watch.removed

    async def run(self) -> None:
        """Look after agents' pods until cancelled."""
        await self._watch.synced.wait()
        while True:
            connected = frozenset(self._connected())
            if any(node.has_gpus and node.name not in connected for node in self._watch.nodes.values()):
                await self._look()
            else:
                self._agents = None
            await asyncio.sleep(LOOK_SECONDS)

    def _hindrance(self, name: str) -> str:
        if self._watch.nodes[name].ready != TRUE:
            return NODE_DOWN
        if self._agents is None:
            return ""
        comes_up = self._agents.get(name)
        return UNSCHEDULED if comes_up is None else "" if comes_up else CRASHING

    async def _look(self) -> None:
        agents: dict[str, bool] = {}
        try:
            async for page in self._client.pages("/api/v1/pods", {"labelSelector": SELECTOR}, page=PAGE):
                for pod in page.get("items") or ():
                    if (node := (pod.get("spec") or {}).get("nodeName")) and _is_of_daemon_set(pod):
                        agents[node] = agents.get(node, False) or _comes_up(pod)
        except ApiError as error:
            self._agents = None
            if (why := str(error)) != self._said:
                self._said = why
                log.warning("agent_pods_unknown", why=why, consequence="why an agent is silent is not known")
            return
        self._agents, self._said = agents, ""


def _is_of_daemon_set(pod: Json) -> bool:
    return any(owner.get("kind") == "DaemonSet" for owner in (pod.get("metadata") or {}).get("ownerReferences") or ())


def _comes_up(pod: Json) -> bool:
    """False where it waits after a failure, or has failed for good."""
    status = pod.get("status") or {}
    return status.get("phase") != "Failed" and not (
        _waits(status.get("containerStatuses")) or _waits(status.get("initContainerStatuses"))
    )


def _waits(containers: Iterable[Json] | None) -> bool:
    reasons = (((one.get("state") or {}).get("waiting") or {}).get("reason") for one in containers or ())
    return any(reason in NOT_COMING_UP for reason in reasons)
