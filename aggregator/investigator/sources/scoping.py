"""Who may be asked about: made once for an investigation, from what the API server says, and never widened by what a model says."""

from __future__ import annotations

from dataclasses import replace

from aggregator.investigator.sources import Scope, Unavailable
from aggregator.investigator.sources.asking import Refused
from aggregator.investigator.sources.cluster import Listed, addresses_of
from aggregator.investigator.sources.logs import OPT_IN_LABEL
from aggregator.investigator.sources.workloads import Workloads

MAX_SIBLINGS = 500


async def widened(scope: Scope, workloads: Workloads) -> Scope:
    """The scope with the node's addresses, its jobs' siblings and the namespaces that opted in, as far as the API server says."""
    cluster = workloads.cluster
    try:
        node = await cluster.node(scope.node)
        siblings = await _siblings(scope, workloads)
        spaces = await cluster.list("/api/v1/namespaces", {"labelSelector": f"{OPT_IN_LABEL}=true"})
    except (Unavailable, Refused):
        return scope  # what could not be found is not in scope; the tools will say why
    opted_in = tuple(space["metadata"]["name"] for space in spaces.items)
    return replace(
        scope,
        node_addresses=addresses_of(node),
        siblings=siblings,
        log_namespaces=tuple(name for name in opted_in if name not in scope.denied_namespaces),
    )


async def _siblings(scope: Scope, workloads: Workloads) -> tuple[tuple[str, str, str], ...]:
    pods = workloads.gpu_pods((await workloads.cluster.pods_on(scope.node)).items, scope.denied_namespaces)
    lists: dict[str, Listed] = {}
    found: dict[tuple[str, str, str], None] = {}
    for pod in pods:
        for other in (await workloads.kin(pod, lists)).pods:
            metadata, node = other["metadata"], (other.get("spec") or {}).get("nodeName", "")
            if node and node != scope.node:
                found[metadata["namespace"], metadata["name"], node] = None
    return tuple(found)[:MAX_SIBLINGS]
