"""Which nodes stand in one rack, hang on one switch or share one NVLink domain: labels of Kubernetes, or an operator's own list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aggregator.investigator.sources import Unavailable
from aggregator.investigator.sources.asking import Refused
from aggregator.investigator.sources.cluster import Cluster

MAX_PEERS = 32  # of one kind that are in scope

Shared = tuple[str, Sequence[str]]  # name of the rack or switch, and the nodes there


@dataclass(frozen=True, slots=True)
class Places:
    """Who stands where."""

    declared: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)  # kind → name → nodes
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)  # kind → labels that name it
    cluster: Cluster | None = None

    async def neighbours(self, node: str, by: str) -> Shared:
        """The rack, switch or NVLink domain of a node and every node there. Raises Refused where nothing says, or Unavailable."""
        for name, nodes in self.declared.get(by, {}).items():
            if node in nodes:
                return name, nodes
        if self.cluster is not None and (found := await self._labelled(self.cluster, node, by)):
            return found
        raise Refused(f"nothing here says which {by} node {node} belongs to")

    async def peers(self, node: str) -> tuple[str, ...]:
        """Nodes that share anything with a node, as far as that can be known now."""
        found: dict[str, None] = {}
        for kind in ("nvlink", "switch", "rack"):
            try:
                _, nodes = await self.neighbours(node, kind)
            except (Refused, Unavailable):
                continue
            found |= dict.fromkeys([other for other in nodes if other != node][:MAX_PEERS])
        return tuple(found)

    async def _labelled(self, cluster: Cluster, node: str, by: str) -> Shared | None:
        labels = (await cluster.node(node))["metadata"].get("labels") or {}
        for label in self.labels.get(by, ()):
            if labels.get(label):
                listed = await cluster.list("/api/v1/nodes", {"labelSelector": f"{label}={labels[label]}"})
                return labels[label], [item["metadata"]["name"] for item in listed.items]
        return None
