"""What the store knows beside an incident's own signals, as the rules take it: its node as last seen, its GPU's past.

The same for the pipeline, an investigation and a second judgement: a verdict must not depend on who asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from aggregator import rules, wire
from aggregator.assessor.history import earlier_signals
from aggregator.model import Incident
from aggregator.store import queries

HISTORY_US = 30 * 86_400 * 1_000_000  # a fault is compared with what its GPU had within this before it
MAX_HISTORY = 64  # incidents of one node that are looked through for it


def contexts(connection: Connection, incidents: Sequence[Incident], base: rules.Context) -> dict[str, rules.Context]:
    """By incident, the context to judge it in: `base` with what is stored. Two queries, however many incidents."""
    if not incidents:
        return {}
    since_us = min(incident.opened_us for incident in incidents) - HISTORY_US
    with_gpu = sorted({incident.subject.node for incident in incidents if incident.subject.kind == "gpu"})
    known = queries.recent_incidents(connection, with_gpu, since_us, MAX_HISTORY) if with_gpu else {}
    named = sorted({incident.subject.node for incident in incidents if incident.subject.kind != "fleet"})
    nodes = {name: _node_context(payload, base) for name, payload in queries.get_snapshots(connection, named).items()}
    return {
        incident.id: replace(
            nodes.get(incident.subject.node, base) if incident.subject.kind != "fleet" else base,
            earlier=earlier_signals(incident, known.get(incident.subject.node, ()), HISTORY_US),
        )
        for incident in incidents
    }


def _node_context(payload: bytes, base: rules.Context) -> rules.Context:
    """What the node's last snapshot shows; a GPU that is lost counts as one of its GPUs."""
    node = wire.decode_snapshot(payload)
    gpus = len(node.gpus) or node.gpu_count
    return replace(base, driver_version=node.driver_version, gpu_model=node.gpu_model, gpus_on_node=gpus or None)
