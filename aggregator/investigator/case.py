"""What the store knows about an incident when an investigation begins, as plain values: `bundle` makes items of them.

Of earlier incidents only fields that code filled go in, never prose: what a model once wrote cannot reach another investigation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection

from aggregator import wire
from aggregator.model import Assessment, Gpu, Incident, Verdict
from aggregator.store import queries

MAX_EARLIER = 20  # earlier incidents of the node
MAX_OPEN = 200  # open incidents looked through for peers in the same state
MAX_PEERS = 20


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node as its agent described it last."""

    agent_version: str
    boot_id: str
    last_heard_us: int
    simulated: bool = False
    snapshot_us: int | None = None  # None: no snapshot was ever received
    driver_version: str = ""
    driver_works: bool = True
    gpu_count: int = 0
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class Other:
    """Another incident, without a word of what anybody wrote about it."""

    id: str
    node: str
    opened_us: int
    resolved_us: int | None
    resolved_because: str
    codes: tuple[str, ...]
    same_gpu: bool
    judged: tuple[str, ...]  # severity, class, action, resolutions


@dataclass(frozen=True, slots=True)
class Case:
    """Everything an investigation begins with."""

    incident: Incident
    verdict: Verdict  # the rules' own: see assessor.judged
    basis: str  # see assessor.basis_of
    now_us: int
    node: NodeFacts | None = None
    earlier: tuple[Other, ...] = ()  # of this node, newest first
    peers: tuple[Other, ...] = ()  # other nodes with an open incident that shares a code
    condition: str = ""  # what a person or Kubernetes says is wrong
    message: str = ""


def read_case(
    connection: Connection,
    incident: Incident,
    verdict: Verdict,
    basis: str,
    now_us: int,
    *,
    condition: str = "",
    message: str = "",
) -> Case:
    """Read the store. Runs on a reader's thread."""
    node = incident.subject.node
    stored = queries.list_incidents(connection, node=node, include_resolved=True, limit=MAX_EARLIER + 1)
    opened = queries.list_incidents(connection, limit=MAX_OPEN)
    codes = set(codes_of(incident))
    peers = [other for other in _others(opened, incident) if other.node != node and codes & set(other.codes)]
    return Case(
        incident=incident,
        verdict=verdict,
        basis=basis,
        now_us=now_us,
        node=_node(connection, node),
        earlier=tuple(_others(stored, incident))[:MAX_EARLIER],
        peers=tuple(sorted(peers, key=lambda other: (other.opened_us, other.id)))[:MAX_PEERS],
        condition=condition,
        message=message,
    )


def codes_of(incident: Incident) -> tuple[str, ...]:
    """Names of an incident's signals, each once, in their order."""
    return tuple(dict.fromkeys(signal.name for signal in incident.signals))


def _others(stored: Iterable[tuple[Incident, Assessment | None]], incident: Incident) -> Iterable[Other]:
    mine = {name for name in (incident.subject.pci, incident.subject.gpu_uuid) if name}
    for other, assessment in stored:
        if other.id == incident.id:
            continue
        verdict = assessment.verdict if assessment else None
        yield Other(
            id=other.id,
            node=other.subject.node,
            opened_us=other.opened_us,
            resolved_us=other.resolved_us,
            resolved_because=other.resolved_because,
            codes=codes_of(other),
            same_gpu=other.subject.node == incident.subject.node
            and bool(mine & {other.subject.pci, other.subject.gpu_uuid}),
            judged=(verdict.severity, verdict.fault_class, verdict.action, *verdict.resolutions) if verdict else (),
        )


def _node(connection: Connection, name: str) -> NodeFacts | None:
    row = queries.get_node(connection, name)
    if row is None:
        return None
    facts = NodeFacts(row.agent_version, row.boot_id, row.last_seen_us, row.simulated)
    payload = queries.get_snapshots(connection, [name]).get(name)
    if payload is None:
        return facts
    state = wire.decode_snapshot(payload)
    return NodeFacts(
        agent_version=row.agent_version,
        boot_id=row.boot_id,
        last_heard_us=row.last_seen_us,
        simulated=row.simulated,
        snapshot_us=state.taken_us,
        driver_version=state.driver_version,
        driver_works=state.driver_works,
        gpu_count=state.gpu_count,
        gpus=state.gpus,
    )
