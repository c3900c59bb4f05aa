"""Takes assessments from the store like any other target, decides, acts, and writes down both.

A message is brought again until nothing is left to do, so a long drain is many short steps, and a restart goes on where the last
process stopped. What is about to be done is in the store before it is done; each step is decided anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import structlog

from aggregator.kube.client import Json
from aggregator.kube.errors import ApiError, Conflict
from aggregator.model import Action, Assessment, Incident, IncidentState
from aggregator.outputs import NotYet, Unavailable
from aggregator.outputs.metrics import Metrics
from aggregator.remediation.executor import Executor
from aggregator.remediation.nodes import CORDONED, TAINT, is_ready
from aggregator.remediation.policy import ACTIONS, Limits, decide
from aggregator.remediation.situation import Situation, Surroundings, look, read_node
from aggregator.store import audit, queries
from aggregator.store.audit import DOING, DONE, FAILED, RELEASED, Begun, Record
from aggregator.store.deliveries import Audience, Route, Waiting

RELEASE = "release"
MAX_NAMED = 20  # pods in a reason

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds."""

    again: float = 300.0  # until a decision against is made again, where it may change by itself
    step: float = 5.0  # between two looks at a drain
    drain: float = 1800.0  # for a whole drain


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chose."""

    limits: Limits
    dry_run: bool = False  # everything is decided and written down, nothing is sent
    uncordon_on_recovery: bool = False
    pace: Pace = Pace()


class Remediator:
    """A target that acts. One message at a time, so that budgets hold without locks."""

    per_minute = 600
    lanes = 1

    def __init__(self, around: Surroundings, executor: Executor, metrics: Metrics, options: Options) -> None:
        self.route = Route("remediation", Audience.NOTED)
        self.around = around
        self._executor = executor
        self._metrics = metrics
        self._options = options

    async def send(self, message: Waiting) -> None:
        """Decide and act on one assessment, or go on with what was begun. Raises Unavailable or NotYet."""
        incident, assessment = message.incident, message.assessment
        try:
            action = assessment.verdict.action
            over = incident.state is IncidentState.RESOLVED
            await self._end_unfinished(incident, assessment, None if over else action)
            if over:
                await self._after(incident, assessment)
            elif action in ACTIONS:
                await self._decide(incident, assessment, action)
        except Conflict as error:
            raise NotYet(f"the node changed meanwhile: {error}", self._options.pace.step) from error
        except ApiError as error:
            raise Unavailable(str(error)) from error

    # --- one decision

    async def _decide(self, incident: Incident, assessment: Assessment, action: Action) -> None:
        situation = await look(self.around, incident, assessment, action)
        if situation.begun is not None and situation.begun.state != DOING:
            return  # done, or given up: its record says so
        limits, pace = self._options.limits, self._options.pace
        decision = decide(situation.case, limits)
        inputs = {**asdict(situation.case), "limits": asdict(limits)}
        outcome = "denied" if not decision.allowed else "dry_run" if self._options.dry_run else "allowed"
        if situation.begun is None or not decision.allowed:
            await self._record(incident, assessment, action.value, outcome, decision.reasons, inputs)
        if not decision.allowed and decision.temporary:
            raise NotYet("; ".join(decision.reasons), pace.again)
        if not decision.allowed and situation.begun is not None:
            await self._finish(incident, assessment, action, FAILED, ["stopped", *decision.reasons])
        if outcome == "allowed" and situation.node is not None:
            await self._act(incident, assessment, action, situation, situation.node)

    async def _act(
        self, incident: Incident, assessment: Assessment, action: Action, situation: Situation, node: Json
    ) -> None:
        begun = situation.begun or await self._begin(incident, action, node)
        if not self.around.leads():  # looking took a while
            raise NotYet("another process leads", self._options.pace.again)
        state = DONE
        if action is Action.TAINT:
            said = [await self._executor.taint(node, assessment.verdict.fault_class.value)]
        else:
            said = [await self._executor.cordon(node, incident.id)]
        if action is Action.DRAIN:
            state, report = await self._drain(incident, begun, node)
            said += report
        await self._finish(incident, assessment, action, state, said)

    async def _begin(self, incident: Incident, action: Action, node: Json) -> Begun:
        now_us = time.time_ns() // 1000
        begun = Begun(
            incident_id=incident.id,
            kind=action.value,
            node=incident.subject.node,
            node_uid=node["metadata"]["uid"],
            state=DOING,
            started_us=now_us,
            deadline_us=now_us + int(self._options.pace.drain * 1e6),
        )
        most = self._options.limits.max_actions_per_hour
        if not await self.around.store.write(partial(audit.begin, begun=begun, now_us=now_us, max_per_hour=most)):
            raise NotYet("the hour's actions are used up", self._options.pace.again)
        return begun

    async def _drain(self, incident: Incident, begun: Begun, node: Json) -> tuple[str, list[str]]:
        """One step; returns once it is over, with how it ended. Raises NotYet while it is not."""
        step = await self._executor.drain(begun.node)
        evicted = tuple(dict.fromkeys((*begun.evicted, *step.evicted)))
        if step.evicted:
            note = partial(audit.evicted, incident_id=incident.id, kind=begun.kind, pods=evicted)
            await self.around.store.write(note)
        parts = (("evicted", evicted), ("blocked", step.blocked), ("remaining", step.remaining))
        report = [f"{word} {len(names)}: {_named(names)}" for word, names in parts if names]
        if not step.remaining and not step.blocked:
            return DONE, report
        if step.remaining and time.time_ns() // 1000 < begun.deadline_us:
            raise NotYet("; ".join(report), self._options.pace.step)
        if not is_ready(node):
            report.append("the node is not ready: pods cannot end there, see to the machine; nothing is forced")
        return FAILED, ["the node is not empty", *report]

    async def _finish(
        self, incident: Incident, assessment: Assessment, action: Action, state: str, said: Iterable[str]
    ) -> None:
        await self.around.store.write(partial(audit.end, incident_id=incident.id, kind=action.value, state=state))
        await self._record(incident, assessment, action.value, state, tuple(said), {})

    # --- afterwards

    async def _end_unfinished(self, incident: Incident, assessment: Assessment, wanted: Action | None) -> None:
        """Stop what was begun and is wanted no longer."""
        for action in (await self._begun(incident)).values():
            if action.state == DOING and action.kind != wanted:
                said = ["stopped", "the verdict changed" if wanted else "the incident is over"]
                await self._finish(incident, assessment, Action(action.kind), FAILED, said)

    async def _after(self, incident: Incident, assessment: Assessment) -> None:
        """The incident is over: what was done for it is undone where that was asked for."""
        begun = await self._begun(incident)
        if begun and all(action.state != RELEASED for action in begun.values()):
            await self._release(incident, assessment, begun)

    async def _begun(self, incident: Incident) -> dict[str, Begun]:
        return await self.around.store.read(partial(audit.begun_for, incident_id=incident.id))

    async def _release(self, incident: Incident, assessment: Assessment, begun: dict[str, Begun]) -> None:
        node = await read_node(self.around.client, incident.subject.node)
        others = await self.around.store.read(partial(queries.list_incidents, node=incident.subject.node))
        against = [
            why
            for failed, why in (
                (not self._options.uncordon_on_recovery, "undoing is not configured"),
                (incident.resolved_because != "recovered", f"no recovery is proved: {incident.resolved_because}"),
                (node is None, "the cluster has no such node"),
                (any(one.subject.kind != "fleet" for one, _ in others), "the node has another open incident"),
                (not self.around.leads(), "another process leads"),
            )
            if failed
        ]
        inputs = {"resolved_because": incident.resolved_because, "begun": sorted(begun)}
        if against or node is None or self._options.dry_run:
            outcome = "denied" if against else "dry_run"
            return await self._record(incident, assessment, RELEASE, outcome, tuple(against), inputs)
        done = await self._executor.release(node)
        for kind in begun:
            await self.around.store.write(partial(audit.end, incident_id=incident.id, kind=kind, state=RELEASED))
        said = done or f"nothing there is ours: no taint {TAINT}, no cordon marked {CORDONED}"
        return await self._record(incident, assessment, RELEASE, DONE, (said,), inputs)

    async def _record(
        self,
        incident: Incident,
        assessment: Assessment,
        action: str,
        outcome: str,
        reasons: tuple[str, ...],
        inputs: Mapping[str, object],
    ) -> None:
        node = incident.subject.node
        made = Record(node, incident.id, assessment.id, action, outcome, reasons, inputs)
        if await self.around.store.write(partial(audit.record, made=made, now_us=time.time_ns() // 1000)):
            self._metrics.decided(action, outcome)
            log.info("remediation", node=node, incident=incident.id, action=action, outcome=outcome, reasons=reasons)


def _named(names: Iterable[str]) -> str:
    found = list(names)
    rest = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return ", ".join(found[:MAX_NAMED]) + rest if found else "none"
