"""What the store holds of other incidents and other nodes, read for a comparison: bounded, and without a word of prose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, tuple_

from aggregator import wire
from aggregator.investigator.sources.asking import stamp
from aggregator.model import Assessment, Gpu, Incident
from aggregator.store import queries
from aggregator.store.schema import evidence, incident_nodes, incidents
from aggregator.store.serial import load_incident
from aggregator.store.verdicts import latest_assessments

MAX_READ = 2000  # incidents of one question
MAX_INVENTORIES = 20_000  # that are looked through for a board
MAX_FACTS = 5  # of an incident that are looked at for its job

Pairs = Sequence[tuple[Incident, Assessment | None]]


@dataclass(frozen=True, slots=True)
class Incidents:
    """Incidents with their present assessments, newest first."""

    pairs: Pairs
    complete: bool


def read_incidents(connection: Connection, nodes: Sequence[str] | None, since_us: int) -> Incidents:
    """Incidents of nodes, of all where `nodes` is None, opened since. Those across nodes are left out: their members stand here."""
    statement = select(incidents.c.body).where(incidents.c.opened_us >= since_us)
    if nodes is not None:
        theirs = select(incident_nodes.c.incident_id).where(incident_nodes.c.node.in_(nodes))
        statement = statement.where(incidents.c.id.in_(theirs))
    newest_first = statement.order_by(incidents.c.opened_us.desc(), incidents.c.id.desc()).limit(MAX_READ + 1)
    bodies = list(connection.scalars(newest_first))
    found = [incident for incident in map(load_incident, bodies[:MAX_READ]) if incident.subject.kind != "fleet"]
    present = latest_assessments(connection, [incident.id for incident in found])
    return Incidents([(incident, present.get(incident.id)) for incident in found], len(bodies) <= MAX_READ)


def devices(connection: Connection, nodes: Sequence[str]) -> list[tuple[str, Gpu]]:
    """(node, GPU) of every GPU that the nodes' last snapshots know."""
    payloads = queries.get_snapshots(connection, nodes)
    known = ((node, wire.decode_snapshot(payloads[node])) for node in nodes if node in payloads)
    return [(node, gpu) for node, state in known for gpu in state.gpus]


def nodes_that_held(connection: Connection, gpu: Gpu) -> tuple[str, ...]:
    """Nodes whose inventory once named a GPU by UUID or serial number."""
    names = [name.encode() for name in (gpu.uuid, gpu.serial) if name and len(name) >= 6]
    if not names:
        return ()
    statement = (
        select(evidence.c.node, evidence.c.payload)
        .where(evidence.c.kind == "inventory_changed")
        .order_by(evidence.c.id.desc())
        .limit(MAX_INVENTORIES)
    )
    rows = connection.execute(statement)
    return tuple(dict.fromkeys(node for node, payload in rows if any(name in payload for name in names)))


def nodes_with(connection: Connection, like: str, by: str) -> tuple[str, tuple[str, ...]]:
    """Model or driver version of a node, and the nodes that have the same; all that have a snapshot where `by` is empty."""
    states = [wire.decode_snapshot(payload) for payload in queries.all_snapshots(connection)]
    values = {state.node: state.gpu_model if by == "model" else state.driver_version for state in states}
    if not by:
        return "", tuple(values)
    value = values.get(like, "")
    return value, tuple(node for node, other in values.items() if other == value)


def jobs_of(connection: Connection, incident: Incident) -> frozenset[str]:
    """Slurm jobs that held the GPUs of an incident."""
    return jobs_of_all(connection, [incident])[incident.id]


def jobs_of_all(connection: Connection, incidents: Iterable[Incident]) -> Mapping[str, frozenset[str]]:
    """The same of several, by incident."""
    return {incident.id: _jobs(connection, incident) for incident in incidents}


def _jobs(connection: Connection, incident: Incident) -> frozenset[str]:
    keys = [key for signal in incident.signals[:MAX_FACTS] if (key := _key(signal.id)) is not None]
    identity = tuple_(evidence.c.node, evidence.c.source, evidence.c.epoch, evidence.c.seq)
    rows = connection.scalars(select(evidence.c.payload).where(identity.in_(keys)))
    facts = [wire.decode(payload) for payload in rows]
    return frozenset(workload.slurm_job for fact in facts for workload in fact.workloads if workload.slurm_job)


def _key(signal_id: str) -> tuple[str, str, str, int] | None:
    """A signal's id is its evidence's, with "#n" where that holds several."""
    parts = signal_id.partition("#")[0].split("/")
    if len(parts) < 4 or not parts[-1].isdecimal():
        return None
    return parts[0], parts[1], "/".join(parts[2:-1]), int(parts[-1])


def structured(incident: Incident, assessment: Assessment | None) -> dict[str, Any]:
    """An incident in fields that code filled."""
    subject = incident.subject
    shown: dict[str, Any] = {
        "id": incident.id,
        "node": subject.node,
        "pci": subject.pci,
        "gpu_uuid": subject.gpu_uuid,
        "opened": stamp(incident.opened_us),
        "state": incident.state.value,
        "codes": list(names_of(incident))[:20],
    }
    if incident.resolved_us is not None:
        shown |= {"resolved": stamp(incident.resolved_us), "resolved_because": incident.resolved_because}
    if assessment is not None:
        verdict = assessment.verdict
        shown["verdict"] = {
            "severity": verdict.severity.value,
            "fault_class": verdict.fault_class.value,
            "action": verdict.action.value,
            "resolutions": [item.value for item in verdict.resolutions],
            "rule_ids": list(verdict.rule_ids),
            "by": assessment.origin,
        }
    return {name: value for name, value in shown.items() if value not in (None, "")}


def names_of(incident: Incident) -> tuple[str, ...]:
    """Names of an incident's signals, each once, in their order."""
    return tuple(dict.fromkeys(signal.name for signal in incident.signals))
