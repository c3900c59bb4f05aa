"""`query_prometheus`: any PromQL over allowed metrics, about the nodes in scope alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator.investigator.sources import Answer, Scope, Tool, promql
from aggregator.investigator.sources.asking import (
    Refused,
    instant_us,
    node_in_scope,
    parameters,
    readable,
    refusing,
    seconds,
    stamp,
)
from aggregator.investigator.sources.confined import ConfinedPrometheus, Found, Question
from aggregator.investigator.sources.labels import ADDRESS_LABELS, NODE_LABELS, NodeNames, is_tenant_label
from aggregator.investigator.sources.series import MAX_SERIES, shaped
from aggregator.model import Trust

METRICS = (
    "DCGM_FI_", "DCGM_EXP_", "nvidia_", "nvlink_", "nvswitch_", "gpu_", "amd_", "rocm_", "node_", "instance:node_", "ipmi_",
    "redfish_", "problem_", "kube_node_", "kubelet_", "up",
)  # fmt: skip
MAX_NODES = 16
MAX_RANGE_SECONDS = 7 * 86_400
MAX_POINTS = 120  # of one series
AUTO_POINTS = 60
LEAST_STEP_SECONDS = 15

Addresses = Callable[[str], Awaitable[Sequence[str]]]

_QUERY = "PromQL without any matcher for the node, which is added to every selector. See the description for allowed metrics."
_MODE = (
    "instant: the values now. range: their course over `duration`. auto: instant, and a range where that finds nothing"
)
_STEP = (
    f'distance of a range\'s points, for example "1m"; default: chosen for {AUTO_POINTS} points, at most {MAX_POINTS}'
)
_NODES = "nodes in scope to look at, to compare peers for example; default: the incident's node"
_PARAMETERS = parameters(
    {
        "query": {"type": "string", "minLength": 1, "maxLength": promql.MAX_LENGTH, "description": _QUERY},
        "duration": {"type": "string", "description": 'how far back: "30m", "6h", at most "7d"', "default": "5m"},
        "mode": {"enum": ["auto", "instant", "range"], "default": "auto", "description": _MODE},
        "end": {"type": "string", "description": "last moment looked at, RFC 3339: 2026-11-23T14:05:00Z; default: now"},
        "step": {"type": "string", "description": _STEP},
        "nodes": {
            "type": "array",
            "items": {"type": "string", "maxLength": 253},
            "minItems": 1,
            "maxItems": MAX_NODES,
            "uniqueItems": True,
            "description": _NODES,
        },
        "node_label": {
            "enum": [*NODE_LABELS, *ADDRESS_LABELS],
            "description": "the label that names the node in these series; default: found out by asking",
        },
    },
    "query",
)

_DESCRIPTION = f"""\
Asks Prometheus in PromQL about the incident's node, or other nodes in scope. Returns the query as it was sent, its \
series with labels and values (of an instant, or in steps over a range), who produced them, and warnings. Use it for \
the course of temperature, power, clocks, ECC, NVLink, network or host load before and during a fault, and to compare \
a node with its peers. Allowed metrics: {{}} (one that ends in _ or : is the beginning of a name). A range is at most \
{readable(MAX_RANGE_SECONDS)}; more than {MAX_SERIES} series give their number and what multiplies them instead. \
Naming a label that tenants write (pod, namespace, container) makes the answer one that proves nothing by itself. \
Nothing found is no proof of health: the metric may not be collected here."""


async def no_addresses(node: str) -> Sequence[str]:
    """Where nothing knows nodes' addresses, series are known by names alone."""
    return ()


@dataclass(frozen=True)
class Prometheus:
    """The metrics of nodes."""

    api: ConfinedPrometheus
    metrics: tuple[str, ...] = METRICS  # that may be asked for: see promql.Allowed
    addresses: Addresses = no_addresses  # of a node: exporters are known by them
    name: str = "prometheus"

    @property
    def tools(self) -> Sequence[Tool]:
        description = _DESCRIPTION.format(", ".join(self.metrics))
        return (
            Tool("query_prometheus", description, _PARAMETERS, refusing(self.query), live=True, timeout_seconds=45.0),
        )

    async def unavailable(self) -> str:
        return await self.api.unavailable()

    async def query(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        names = await node_names(scope, arguments.get("nodes", ()), self.addresses)
        question = self._question(arguments, names)
        mode, label = arguments.get("mode", "auto"), arguments.get("node_label", "")
        found = await self.api.ask(question, mode=mode, label=label)
        named = frozenset(filter(is_tenant_label, question.query.words))
        return Answer(_shown(question, found, named), Trust.TENANT if named or found.is_tenants else Trust.CLUSTER)

    def _question(self, arguments: Mapping[str, Any], names: NodeNames) -> Question:
        """Raises Refused."""
        end = instant_us(arguments["end"]) / 1e6 if arguments.get("end") else time.time()
        duration = seconds(arguments.get("duration", "5m"), most=MAX_RANGE_SECONDS)
        step = float(max(LEAST_STEP_SECONDS, -(-duration // AUTO_POINTS)))
        if "step" in arguments:
            step = float(seconds(arguments["step"], most=MAX_RANGE_SECONDS))
        if duration / step > MAX_POINTS:
            most = readable(-(-duration // MAX_POINTS))
            raise Refused(f"{duration / step:.0f} points a series, at most {MAX_POINTS}: use a step of {most} or more")
        query = promql.read(arguments["query"], promql.Allowed(self.metrics), end)
        for label, value in sorted(query.equal):
            # It would find nothing, and absent() of it would read as if that node had no such series.
            if label in NODE_LABELS and value and value not in names.nodes:
                raise Refused(
                    f"{label}={value!r} names no node that this query is about ({', '.join(names.nodes)}): "
                    "leave the matcher out, and name nodes in scope in `nodes`"
                )
        return Question(query, names, end, duration, step)


async def node_names(scope: Scope, nodes: Sequence[str], addresses: Addresses) -> NodeNames:
    """How labels may write these nodes, the incident's own where none is named. Raises Refused."""
    wanted = [node_in_scope(scope, node) for node in nodes or [scope.node]]
    found = await asyncio.gather(*(addresses(node) for node in wanted))
    own = {scope.node: scope.node_addresses} if scope.node_addresses else {}
    return NodeNames({node: own.get(node, its) for node, its in zip(wanted, found, strict=True)})


def _shown(question: Question, found: Found, named: frozenset[str]) -> Mapping[str, Any]:
    notes = sorted({choice.note for choice in found.choices if choice.note})
    looked = {"until": stamp(int(question.end * 1e6))}
    if found.step_seconds:
        since = stamp(int((question.end - question.duration) * 1e6))
        looked |= {"since": since, "step": readable(question.step)}
    return {
        "nodes": list(question.names.nodes),
        "query": found.sent,
        "producers": sorted({producer for choice in found.choices for producer in choice.producers})[:20],
        **looked,
        **({"warnings": list(found.warnings)} if found.warnings else {}),
        **({"notes": notes} if notes else {}),
        **shaped(found.result, found.step_seconds, named),
    }
