"""Looks at everything a decision needs, as it is now: the node and the switch from the API server, the fault from the node itself,
budgets from the store. What cannot be read speaks against acting."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Connection

from aggregator.assessor.join import disagreements
from aggregator.kube import nodes as watched
from aggregator.kube.client import Json, KubeClient
from aggregator.kube.errors import ApiError, NotFound
from aggregator.kube.walls import WallAbsent, Walls
from aggregator.model import Action, Assessment, Incident, IncidentState
from aggregator.remediation.confirm import Answer, Ask, hardware_facts, unconfirmed_because
from aggregator.remediation.nodes import handled_by, opted_out
from aggregator.remediation.policy import Case
from aggregator.store import Store, audit
from aggregator.store.audit import Begun

FLEET_US = 600_000_000  # nodes that become critical within ten minutes do so together

View = Callable[[], Mapping[str, watched.Node]]


async def _nobody(_: str) -> Answer:
    return Answer(answered=False)


@dataclass(slots=True)
class Surroundings:
    """Where to look. `view`, `ask` and `leads` are given once there is something behind them; until then nothing is allowed."""

    client: KubeClient
    store: Store
    walls: Walls
    kill_switch: str  # namespace/name of a ConfigMap: while it exists, nothing is done
    persistent: bool  # the store outlives this process
    fresh_seconds: float
    view: View = field(default=dict)  # every node; empty while that is not known
    ask: Ask = _nobody
    leads: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the store knows of actions."""

    begun: Begun | None
    last_hour: int
    draining: str
    newly_critical: int


@dataclass(frozen=True, slots=True)
class Situation:
    """A case, and the objects it was read from."""

    case: Case
    node: Json | None
    begun: Begun | None


async def look(around: Surroundings, incident: Incident, assessment: Assessment, action: Action) -> Situation:
    """Everything a decision about one action needs. Raises ApiError where the node cannot be read."""
    now_us = time.time_ns() // 1000
    name = incident.subject.node
    stored = await around.store.read(partial(_stored, incident=incident, action=action, now_us=now_us))
    node = await read_node(around.client, name)
    resumed = stored.begun is not None and stored.begun.state == audit.DOING
    unconfirmed = ""
    if node is not None and not resumed:  # a node that is being drained may fall silent: that proves nothing
        unconfirmed = await unconfirmed_because(incident, assessment, node, around.ask, now_us, around.fresh_seconds)
    others = [one for one in _peers(around.view()) if one.name != name]
    case = Case(
        action=action,
        node=name,
        open=incident.state is IncidentState.OPEN,
        subject_kind=incident.subject.kind,
        fleet_id=incident.fleet_id,
        quiet=incident.quiet,
        held_because=incident.held_because if (incident.held_until_us or 0) > now_us else "",
        simulated=incident.simulated,
        origin=assessment.origin,
        degraded_reason=assessment.degraded_reason,
        partial=assessment.partial,
        disputed=len(disagreements(assessment.disputed)),
        confidence=assessment.verdict.confidence,
        hardware_support=bool(hardware_facts(incident, assessment)),
        unconfirmed_because=unconfirmed,
        node_uid=_uid(node, stored.begun),
        opted_out=node is not None and opted_out(node),
        handled_by=handled_by(node) if node is not None else "",
        resumed=resumed,
        nodes_total=len(others) + 1 if others or around.view() else 0,
        nodes_unavailable=sum(one.unschedulable or one.ready != "True" for one in others),
        actions_last_hour=stored.last_hour,
        draining=stored.draining,
        newly_critical_nodes=stored.newly_critical,
        stopped_because=await _stopped(around),
        store_persistent=around.persistent,
        store_refusal=around.store.refusal or "",
        wall_absent_because=await _wall(around),
        leads=around.leads(),
    )
    return Situation(case, node, stored.begun)


async def read_node(client: KubeClient, name: str) -> Json | None:
    """The Node object; None where there is none."""
    try:
        return await client.get(f"/api/v1/nodes/{name}")
    except NotFound:
        return None


def _uid(node: Json | None, begun: Begun | None) -> str:
    """Empty also where another machine has the name by now."""
    uid = str(node["metadata"]["uid"]) if node is not None else ""
    return uid if begun is None or begun.node_uid == uid else ""


def _peers(view: Mapping[str, watched.Node]) -> list[watched.Node]:
    """The nodes with GPUs; all of them where none is known to have any."""
    return [node for node in view.values() if node.has_gpus] or list(view.values())


def _stored(connection: Connection, incident: Incident, action: Action, now_us: int) -> _Stored:
    others = [drain.node for drain in audit.unfinished_drains(connection) if drain.incident_id != incident.id]
    return _Stored(
        begun=audit.begun_for(connection, incident.id).get(action.value),
        last_hour=audit.started_since(connection, now_us - audit.HOUR_US),
        draining=next(iter(others), ""),
        newly_critical=audit.newly_critical_nodes(connection, now_us - FLEET_US),
    )


async def _stopped(around: Surroundings) -> str:
    namespace, _, name = around.kill_switch.partition("/")
    try:
        await around.client.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}")
    except NotFound:
        return ""
    except ApiError as error:
        return f"whether the kill switch is set cannot be read: {error}"
    return f"the kill switch is set: ConfigMap {around.kill_switch}"


async def _wall(around: Surroundings) -> str:
    try:
        await around.walls.check(anew=True)
    except (ApiError, WallAbsent) as error:
        return f"the last wall is not proved: {error}"
    return ""
