"""`get_gcm_health`: what GCM's health checks and node-problem-detector say of a node, by their metrics and by its conditions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator.investigator.sources import Answer, Scope, Tool, Unavailable, promql
from aggregator.investigator.sources.asking import NODE_NAME, Refused, node_in_scope, parameters, refusing
from aggregator.investigator.sources.cluster import Cluster
from aggregator.investigator.sources.confined import ConfinedPrometheus, Question
from aggregator.investigator.sources.nodes import conditions
from aggregator.investigator.sources.prometheus import Addresses, no_addresses, node_names
from aggregator.investigator.sources.series import shaped
from aggregator.model import Trust

_FAMILIES = ("problem_gauge", "problem_counter")
_PREFIXES = ("Gcm", "NPD", "Dcgm")

_ABOUT = """\
Returns the state of GCM's health checks and node-problem-detector for a node: problem_gauge (1: this problem, `type`, \
stands now), problem_counter (how often each `reason` was seen) from Prometheus, and the node's Gcm… and NPD… \
conditions. Checks run every five minutes and a failed one stays True until its cause is gone; an XID check stays True \
while the line is in the kernel log; a message may contradict the status. A check that could not run reads like one \
that failed."""


@dataclass(frozen=True)
class GcmHealth:
    """GCM's health checks; either of the two may be missing."""

    prometheus: ConfinedPrometheus | None = None
    cluster: Cluster | None = None
    addresses: Addresses = no_addresses
    name: str = "gcm-health"

    @property
    def tools(self) -> Sequence[Tool]:
        schema = parameters({"node_name": NODE_NAME}, "node_name")
        return (Tool("get_gcm_health", _ABOUT, schema, refusing(self.health), live=True, timeout_seconds=45.0),)

    async def unavailable(self) -> str:
        return ""  # who asks is told which half is missing

    async def health(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool. Raises Unavailable where neither half can be asked."""
        node = node_in_scope(scope, arguments["node_name"])
        problems: list[str] = []
        metrics, trust = await self._metrics(scope, node, problems)
        found = await self._conditions(node, problems)
        if len(problems) == 2:
            raise Unavailable("; ".join(problems))
        return Answer({"node": node, **metrics, "conditions": found, "not_asked": problems}, trust)

    async def _metrics(self, scope: Scope, node: str, problems: list[str]) -> tuple[dict[str, Any], Trust]:
        if self.prometheus is None:
            problems.append("metrics: no Prometheus is configured")
            return {}, Trust.CLUSTER
        names = await node_names(scope, [node], self.addresses)
        allowed, now = promql.Allowed(_FAMILIES), time.time()
        metrics: dict[str, Any] = {}
        trust = Trust.CLUSTER
        try:
            for family in _FAMILIES:
                query = promql.read(f"max by (type, reason) ({family})", allowed, now)
                found = await self.prometheus.ask(Question(query, names, now, 300, 60))
                metrics[family] = shaped(found.result, 0)["result"]
                trust = Trust.TENANT if found.is_tenants else trust
        except (Unavailable, Refused) as error:
            problems.append(f"metrics: {error}")
        return metrics, trust

    async def _conditions(self, node: str, problems: list[str]) -> list[dict[str, Any]]:
        if self.cluster is None:
            problems.append("conditions: there is no Kubernetes")
            return []
        try:
            found = conditions(await self.cluster.node(node))
        except (Unavailable, Refused) as error:
            problems.append(f"conditions: {error}")
            return []
        return [condition for condition in found if condition["type"].startswith(_PREFIXES)]
