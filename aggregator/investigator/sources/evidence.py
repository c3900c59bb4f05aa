"""`get_node_evidence` and `collect_node_evidence`: what agents saw, from the store, and what one sees now through its stream."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import Connection

from aggregator import wire
from aggregator.investigator.sources import Answer, Scope, Tool, Unavailable
from aggregator.investigator.sources.asking import (
    NODE_NAME,
    Refused,
    instant_us,
    node_in_scope,
    parameters,
    refusing,
    stamp,
)
from aggregator.model import Evidence, Trust, normalise_pci
from aggregator.store import Store, queries
from aggregator.store.queries import EvidenceFilter, StoredRow

Collect = Callable[[str], Awaitable[bytes]]  # node → serialized NodeSnapshot; raises Unavailable

MAX_LIMIT = 200
COLLECT_SECONDS = 15.0

# Who holds a GPU is told in names that tenants chose; a condition is what somebody else says of the node.
_SECONDHAND_SOURCES = frozenset(("workloads",))
_SECONDHAND_KINDS = frozenset(("node_condition", "gpu_assigned"))

_STORED = """\
Returns the stored facts of a node's agent in the order they were stored: kernel lines verbatim, NVML and DCGM facts, \
sysfs, gaps, with time, phase, GPU and values. Default: from an hour before the incident until now. `total` counts all \
that fit; `next` goes on where a page ended. what=facts gives what the kernel and the hardware said. what=secondhand \
gives lines that programs wrote into the kernel log, who held the GPUs, and reported conditions: others' words, which \
prove nothing. what=snapshot gives the last full reading of every GPU that was received, also of a node that is gone. \
Outside Kubernetes and for Slurm jobs this is where workloads are found."""
_LIVE = """\
Asks the node's agent for a full reading of its GPUs now, through its own stream (a few seconds): per GPU temperature, \
power, clocks, throttle reasons, ECC counts, row remapping, retired pages, NVLink and PCIe state, and how each \
collector stands. "unsupported" is a value that the device does not have and never zero; "error: …" one that could not \
be read. Use it to see whether a fault still stands."""
_TIME = "RFC 3339, for example 2026-11-23T14:05:00Z"
_GPU = {"type": "string", "maxLength": 100, "description": "only this GPU: its UUID or PCI address"}
_PARAMETERS = parameters(
    {
        "node_name": {**NODE_NAME, "default": ""},
        "what": {"enum": ["facts", "secondhand", "snapshot"], "default": "facts"},
        "since": {"type": "string", "description": f"facts from here on, {_TIME}"},
        "until": {"type": "string", "description": f"facts before this, {_TIME}"},
        "kinds": {
            "type": "array",
            "items": {"type": "string", "maxLength": 64},
            "maxItems": 20,
            "description": "only these kinds, for example kernel_line, xid, row_remap_pending, ecc_uncorrectable",
        },
        "gpu": _GPU,
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 50},
        "after": {"type": "integer", "minimum": 0, "description": "`next` of the page before"},
    }
)


@dataclass(frozen=True)
class NodeEvidence:
    """The agents' facts."""

    store: Store
    collect: Collect | None = None  # None where no agent can be asked
    name: str = "evidence"

    @property
    def tools(self) -> Sequence[Tool]:
        live = parameters({"node_name": {**NODE_NAME, "default": ""}, "gpu": _GPU})
        stored = Tool("get_node_evidence", _STORED, _PARAMETERS, refusing(self.stored), live=True)
        now = Tool("collect_node_evidence", _LIVE, live, refusing(self.now), live=True, timeout_seconds=COLLECT_SECONDS)
        return (stored, now)

    async def unavailable(self) -> str:
        return ""

    async def stored(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        node = node_in_scope(scope, arguments.get("node_name", ""))
        what, gpu = arguments.get("what", "facts"), arguments.get("gpu", "")
        if what == "snapshot":
            return await self._snapshot(node, gpu)
        limit, after = arguments.get("limit", 50), arguments.get("after", 0)
        wanted = _filter(scope, node, arguments)
        rows, total = await self.store.read(partial(_page, wanted=wanted, gpu=gpu, after=after, limit=limit + 1))
        shown = [(row, wire.decode(row.payload, replayed=row.replayed)) for row in rows[:limit]]
        firsthand = what == "facts"
        kept = [_fact(row, fact, firsthand=firsthand) for row, fact in shown if is_firsthand(fact) == firsthand]
        value = {
            "node": node,
            "since": stamp(wanted.since_us or 0),
            "until": stamp(wanted.until_us or 0),
            "facts": kept,
            "left_out_here": len(shown) - len(kept),
            "total": total,
            "truncated": len(rows) > limit,
            **({"next": rows[limit - 1].id} if len(rows) > limit else {}),
        }
        return Answer(value, Trust.HARDWARE if firsthand else Trust.TENANT)

    async def now(self, scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        """The tool."""
        node = node_in_scope(scope, arguments.get("node_name", ""))
        if self.collect is None:
            raise Unavailable("agents cannot be asked from here")
        return _read_snapshot(await self.collect(node), node, arguments.get("gpu", ""))

    async def _snapshot(self, node: str, gpu: str) -> Answer:
        payload = (await self.store.read(partial(queries.get_snapshots, names=[node]))).get(node)
        if payload is None:
            raise Refused(f"no snapshot of node {node} was ever received")
        return _read_snapshot(payload, node, gpu)


def is_firsthand(fact: Evidence) -> bool:
    """True for what the hardware, the kernel or the agent itself said."""
    written_by_kernel = fact.facility == 0
    return written_by_kernel and fact.key.source not in _SECONDHAND_SOURCES and fact.kind not in _SECONDHAND_KINDS


def _filter(scope: Scope, node: str, arguments: Mapping[str, Any]) -> EvidenceFilter:
    """Raises Refused."""
    kinds = tuple(arguments.get("kinds", ()))
    since_us = instant_us(arguments["since"]) if "since" in arguments else scope.since_us
    until_us = instant_us(arguments["until"]) if "until" in arguments else time.time_ns() // 1000 + 1
    if until_us <= since_us:
        raise Refused("until is not after since")
    return EvidenceFilter(node, since_us, until_us, kinds)


def _page(
    connection: Connection, wanted: EvidenceFilter, gpu: str, after: int, limit: int
) -> tuple[list[StoredRow], int]:
    if gpu:
        wanted = _with_gpu(connection, wanted, gpu)
    rows = queries.list_evidence(connection, wanted, after, limit)
    return rows, queries.count_evidence(connection, wanted, 0, queries.last_evidence_id(connection))


def _with_gpu(connection: Connection, wanted: EvidenceFilter, gpu: str) -> EvidenceFilter:
    """Both names of the GPU: kernel lines know only the PCI address."""
    payload = queries.get_snapshots(connection, [wanted.node]).get(wanted.node)
    known = wire.gpu_names(payload) if payload is not None else {}
    pci = normalise_pci(gpu)
    if pci:
        return replace(wanted, pcis=(pci,), gpu_uuids=tuple(uuid for uuid, other in known.items() if other == pci))
    return replace(wanted, gpu_uuids=(gpu,), pcis=tuple(pci for uuid, pci in known.items() if uuid == gpu))


def _fact(row: StoredRow, fact: Evidence, *, firsthand: bool) -> dict[str, Any]:
    gpu = fact.gpu
    words: dict[str, Any] = {
        "kind": fact.kind,
        "phase": fact.phase.value,
        "source": fact.key.source,
        "gpu": {n: v for n, v in (("uuid", gpu.uuid), ("pci", gpu.pci), ("serial", gpu.serial)) if v} if gpu else None,
        "mig": fact.mig,
        "detail": fact.detail,
        "text": fact.text,
        "values": {name: _plain(value) for name, value in fact.values.items() if value is not None},
        "signals": list(row.signals),
        "boot_id": fact.boot_id,
        "time_estimated": fact.time_estimated,
        "simulated": fact.simulated,
    }
    if not firsthand:
        words["written_by"] = "userspace" if fact.facility else "reported"
        words["workloads"] = [
            {
                n: v
                for n, v in (("namespace", w.namespace), ("pod", w.pod), ("slurm_job", w.slurm_job), ("pid", w.pid))
                if v
            }
            for w in fact.workloads
        ]
    return {"id": fact.id, "at": stamp(fact.occurred_us), **{name: word for name, word in words.items() if word}}


def _read_snapshot(payload: bytes, node: str, gpu: str) -> Answer:
    try:
        snapshot = wire.snapshot_values(payload)
    except wire.Malformed as error:
        raise Unavailable(f"the reading of {node} cannot be understood") from error
    if gpu:
        names = {gpu, normalise_pci(gpu)}
        chosen = [state for state in snapshot["gpus"] if names & {state["uuid"], state["pci"]}]
        if not chosen:
            known = ", ".join(f"{state['pci']} {state['uuid']}" for state in snapshot["gpus"]) or "none"
            raise Refused(f"node {node} has no GPU {gpu!r}; it has: {known}")
        snapshot["gpus"] = chosen
    for state in (snapshot, *snapshot["gpus"]):
        state["values"] = {name: _plain(value) for name, value in state["values"].items()}
    return Answer(snapshot, Trust.HARDWARE)


def _plain(value: Any) -> Any:
    """A value that JSON can hold."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
