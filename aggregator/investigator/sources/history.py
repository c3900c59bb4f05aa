"""`get_gpu_history` and `find_similar_incidents`: what happened before and elsewhere, in fields that code filled.

Nothing that anybody wrote about an earlier incident comes along: what a model once concluded is no evidence for the next.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aggregator import rules
from aggregator.investigator.sources import Answer, Scope, Tool
from aggregator.investigator.sources.asking import Refused, page, parameters, refusing, stamp
from aggregator.investigator.sources.past import (
    Incidents,
    Pairs,
    devices,
    jobs_of,
    jobs_of_all,
    names_of,
    nodes_that_held,
    nodes_with,
    read_incidents,
    structured,
)
from aggregator.model import Gpu, Incident, Trust, normalise_pci
from aggregator.store import Store

# node, "rack" or "switch" → its rack or switch, and the nodes there; raises Refused where nobody knows
Neighbours = Callable[[str, str], Awaitable[tuple[str, Sequence[str]]]]

MAX_SHOWN = 30
DAY_US = 86_400_000_000
_ALIKE = ("code", "model", "driver", "job", "rack", "switch")

_GPU_HISTORY = """\
Returns earlier incidents of a GPU, newest first, wherever its board was: node, times, how each ended, codes, the \
verdict's severity, class, action and resolutions. History follows UUID and serial number, not the slot. Default: the \
incident's GPU. A board that failed before is another case than one that never did."""
_SIMILAR = """\
Returns incidents of other nodes that are like this one, newest first, with how many nodes were compared and how many \
of them had any. by=code: the same XID or signal (`code`, default: this incident's faults). by=model, driver: nodes \
with the same GPU model or driver version. by=job: nodes of the same job. by=rack, switch: nodes there. Use it to tell \
one bad board from a rollout, a rack, a switch or a job: the same fault on many nodes has one cause. None found means \
only that none was recorded."""


async def nobody_knows(node: str, by: str) -> tuple[str, Sequence[str]]:
    """Where nothing says which node stands where."""
    raise Refused(f"nothing here says which {by} node {node} belongs to")


@dataclass(frozen=True)
class History:
    """Incidents of the past and of other nodes."""

    store: Store
    neighbours: Neighbours = nobody_knows
    name: str = "history"

    @property
    def tools(self) -> Sequence[Tool]:
        days = {"type": "integer", "minimum": 1, "maximum": 3650}
        gpu = {
            "type": "string",
            "maxLength": 100,
            "description": "UUID, serial number or PCI address of a GPU in scope",
        }
        code = {"type": "string", "maxLength": 64, "description": 'with by=code: "xid 79", "row_remap_pending"'}
        by = {"enum": list(_ALIKE), "description": "what they have in common"}
        of_gpu = parameters({"gpu": gpu, "days": {**days, "default": 365}})
        alike = parameters({"by": by, "code": code, "days": {**days, "default": 14}}, "by")
        return (
            Tool("get_gpu_history", _GPU_HISTORY, of_gpu, refusing(self.of_gpu)),
            Tool("find_similar_incidents", _SIMILAR, alike, refusing(self.similar), timeout_seconds=30.0),
        )

    async def unavailable(self) -> str:
        return ""

    async def of_gpu(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        known = await self.store.read(partial(devices, nodes=scope.nodes))
        gpu = _chosen(arguments.get("gpu", ""), scope, known)
        since_us = _since_us(arguments.get("days", 365))
        nodes = await self.store.read(partial(nodes_that_held, gpu=gpu))
        nodes = tuple(dict.fromkeys((*(node for node, item in known if item == gpu), *nodes))) or (scope.node,)
        found = await self.store.read(partial(read_incidents, nodes=nodes, since_us=since_us))
        its = [pair for pair in found.pairs if pair[0].id != scope.incident.id and _is_about(pair[0], gpu, scope)]
        names = {"uuid": gpu.uuid, "serial": gpu.serial, "pci": gpu.pci, "model": gpu.model}
        return _answer(found, its, {"gpu": names, "seen_on_nodes": list(nodes), "since": stamp(since_us)})

    async def similar(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        nodes: Sequence[str]
        by, since_us = arguments["by"], _since_us(arguments.get("days", 14))
        match by:
            case "code":
                return await self._by_code(scope, arguments.get("code", ""), since_us)
            case "job":
                return await self._by_job(scope, since_us)
            case "model" | "driver":
                value, nodes = await self.store.read(partial(nodes_with, like=scope.node, by=by))
                if not value:
                    raise Refused(f"the {by} of node {scope.node} is not known: no snapshot of it was received")
            case _:
                value, nodes = await self.neighbours(scope.node, by)
        return await self._on_nodes(scope, by, value, nodes, since_us)

    async def _by_code(self, scope: Scope, code: str, since_us: int) -> Answer:
        codes = (
            {" ".join(code.lower().split())} if code else {s.name for s in scope.incident.signals if rules.is_fault(s)}
        )
        if not codes:
            raise Refused("this incident holds no fault: give a code, for example xid 79")
        found = await self.store.read(partial(read_incidents, nodes=None, since_us=since_us))
        alike = [pair for pair in found.pairs if pair[0].subject.node != scope.node and codes & set(names_of(pair[0]))]
        compared = await self.store.read(partial(nodes_with, like="", by=""))
        return _answer(found, alike, _heading("code", sorted(codes), compared[1], alike, since_us))

    async def _by_job(self, scope: Scope, since_us: int) -> Answer:
        siblings = tuple(dict.fromkeys(node for _, _, node in scope.siblings if node != scope.node))
        jobs = await self.store.read(partial(jobs_of, incident=scope.incident))
        if not siblings and not jobs:
            raise Refused("no job is known that this node worked for: neither siblings in Kubernetes nor a Slurm job")
        found = await self.store.read(partial(read_incidents, nodes=siblings or None, since_us=since_us))
        alike = [pair for pair in found.pairs if pair[0].subject.node != scope.node]
        if not siblings:
            worked = await self.store.read(partial(jobs_of_all, incidents=[incident for incident, _ in alike]))
            alike = [pair for pair in alike if worked[pair[0].id] & jobs]
        return _answer(found, alike, _heading("job", f"{len(siblings)} nodes", siblings, alike, since_us))

    async def _on_nodes(self, scope: Scope, by: str, value: str, nodes: Sequence[str], since_us: int) -> Answer:
        others = tuple(node for node in nodes if node != scope.node)
        found = await self.store.read(partial(read_incidents, nodes=others, since_us=since_us))
        return _answer(found, found.pairs, _heading(by, value, others, found.pairs, since_us))


def _since_us(days: int) -> int:
    return max(time.time_ns() // 1000 - days * DAY_US, 0)


def _chosen(asked: str, scope: Scope, known: Sequence[tuple[str, Gpu]]) -> Gpu:
    """The GPU that is meant. Raises Refused with those that may be asked about."""
    subject = scope.incident.subject
    wanted = {asked, normalise_pci(asked)} if asked else {subject.gpu_uuid, subject.pci}
    for node, gpu in known:
        if {gpu.uuid, gpu.serial, gpu.pci} & (wanted - {None, ""}) and (asked or node == scope.node):
            return gpu
    if not asked and (subject.gpu_uuid or subject.pci):
        return Gpu(subject.gpu_uuid, subject.pci)
    shown = "; ".join(f"{node} {gpu.pci} {gpu.uuid}" for node, gpu in known[:64]) or "none is known"
    raise Refused(
        f"{f'no GPU {asked!r} is in scope' if asked else 'this incident is about no single GPU'}. GPUs: {shown}"
    )


def _is_about(incident: Incident, gpu: Gpu, scope: Scope) -> bool:
    """By UUID anywhere; by slot only where the incident knows no UUID and it is the node where the GPU is now."""
    signals = incident.signals
    if gpu.uuid and (incident.subject.gpu_uuid == gpu.uuid or any(signal.gpu_uuid == gpu.uuid for signal in signals)):
        return True
    unnamed = incident.subject.gpu_uuid is None and incident.subject.node == scope.node
    return unnamed and gpu.pci is not None and incident.subject.pci == gpu.pci


def _heading(by: str, value: object, compared: Iterable[str], found: Pairs, since_us: int) -> dict[str, Any]:
    return {
        "by": by,
        "value": value,
        "nodes_compared": len(set(compared)),
        "nodes_with_incidents": len({incident.subject.node for incident, _ in found}),
        "since": stamp(since_us),
    }


def _answer(found: Incidents, pairs: Pairs, heading: Mapping[str, Any]) -> Answer:
    shown, counts = page(pairs, MAX_SHOWN)
    codes = Counter(name for incident, _ in pairs for name in names_of(incident))
    value = {
        **heading,
        "incidents": [structured(incident, assessment) for incident, assessment in shown],
        "incidents_by_code": dict(codes.most_common(20)),
        **counts,
        "all_were_read": found.complete,
    }
    return Answer(value, Trust.CLUSTER)
