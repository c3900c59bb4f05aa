"""Investigations, as people ask for them: to start one and follow it, to read what one did."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial

import grpc
from sqlalchemy import Connection

from aggregator import wire
from aggregator.identity import Authenticator
from aggregator.investigator.queue import Progress, Queue
from aggregator.model import SEVERITY_ORDER, Assessment, EvidenceKey, Incident, Investigation, Phase, Severity
from aggregator.pipeline import Pipeline
from aggregator.server.answering import answer, caller, stream
from aggregator.server.refusal import Refusal, invalid
from aggregator.store import Store, investigations, queries
from aggregator.store.arrivals import Delivery, Record
from aggregator.store.investigations import Job, TranscriptEntry
from protos.v1 import sentinel_pb2, sentinel_pb2_grpc

OPERATOR = "operator"  # source of what a person reports
NODE_CONDITION = "node_condition"
LONGEST = {"node": 253, "condition": 316, "message": 4_000, "incident_id": 500}  # characters of a request's fields
TAKEN_UP_SECONDS = 10.0  # for the correlator to take up what a person reported, and for an outcome to be joined
LOOK_SECONDS = 0.05

Judged = tuple[Incident, Assessment]
Query = Callable[[Connection], tuple[Incident, Assessment | None] | None]


class Investigations(sentinel_pb2_grpc.SentinelServiceServicer):
    """The part of SentinelService that investigates."""

    authenticator: Authenticator
    investigator: Queue | None = None  # None where no model is configured
    _store: Store
    _pipeline: Pipeline

    @stream
    async def Investigate(  # noqa: N802 - gRPC's name
        self, request: sentinel_pb2.InvestigateRequest
    ) -> AsyncIterator[sentinel_pb2.InvestigateResponse]:
        """Look into an incident, or into what a person reports of a node; ends with the assessment, whatever happens."""
        _check(request)
        incident, assessment = await self._incident(request)
        yield sentinel_pb2.InvestigateResponse(
            progress=f"incident {incident.id}: {assessment.verdict.severity.value} by rules"
        )
        if self.investigator is None:
            yield sentinel_pb2.InvestigateResponse(
                progress="no model is configured (LLM_API=none): the rules' verdict stands",
                assessment=wire.assessment_message(assessment),
            )
            return
        investigation_id = await self.investigator.ask(incident, assessment, caller.get())
        async for step in self.investigator.follow(investigation_id):
            yield _progress(step)
        yield sentinel_pb2.InvestigateResponse(
            progress="done",
            investigation_id=investigation_id,
            assessment=wire.assessment_message(await self._joined(incident.id, investigation_id)),
        )

    @answer
    async def GetTranscript(  # noqa: N802
        self, request: sentinel_pb2.GetTranscriptRequest
    ) -> sentinel_pb2.GetTranscriptResponse:
        """What an investigation asked, got and concluded."""
        wanted = request.investigation_id
        if not wanted:
            raise invalid("investigation_id is empty")
        found = await self._store.read(partial(investigations.get, investigation_id=wanted))
        if found is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"no investigation {wanted!r}")
        return _transcript(*found)

    async def _incident(self, request: sentinel_pb2.InvestigateRequest) -> Judged:
        """The incident that is meant. A condition that a person reports is stored as such, and forms or joins one."""
        if request.incident_id:
            return await self._until_judged(partial(queries.get_incident, incident_id=request.incident_id), 0)
        if not request.condition:
            return await self._until_judged(partial(_worst_open, node=request.node), 0)
        key = EvidenceKey(request.node, OPERATOR, f"{request.condition}:{uuid.uuid4()}", 1)
        said = f"{caller.get()} reports {request.condition}" + (f": {request.message}" if request.message else "")
        payload = wire.declare(
            key,
            kind=NODE_CONDITION,
            phase=Phase.POINT,
            occurred_us=time.time_ns() // 1000,
            detail=said,
            simulated=False,
            condition={
                "condition": request.condition,
                "status": "True",
                "reason": "Reported",
                "message": request.message,
            },
        )
        await (await self._pipeline.receive(Delivery(request.node, "", (Record(key.seq, payload),))))
        return await self._until_judged(partial(_holding, node=request.node, evidence_id=str(key)), TAKEN_UP_SECONDS)

    async def _until_judged(self, query: Query, seconds: float) -> Judged:
        deadline = time.monotonic() + seconds
        while True:
            found = await self._store.read(query)
            if found is not None and found[1] is not None:
                return found[0], found[1]
            if time.monotonic() >= deadline:
                raise Refusal(grpc.StatusCode.NOT_FOUND, "no such incident; ListIncidents has those there are")
            await asyncio.sleep(LOOK_SECONDS)

    async def _joined(self, incident_id: str, investigation_id: str) -> Assessment:
        """The assessment that says what the investigation found; the one that stands where that takes too long."""
        deadline = time.monotonic() + TAKEN_UP_SECONDS
        while True:
            _, assessment = await self._until_judged(partial(queries.get_incident, incident_id=incident_id), 0)
            if assessment.investigation_id == investigation_id or time.monotonic() >= deadline:
                return assessment
            await asyncio.sleep(LOOK_SECONDS)


def _check(request: sentinel_pb2.InvestigateRequest) -> None:
    for name, longest in LONGEST.items():
        if len(getattr(request, name)) > longest:
            raise invalid(f"{name} is longer than {longest} characters")
    if not request.incident_id and not request.node:
        raise invalid("node is empty, and so is incident_id")


def _worst_open(connection: Connection, node: str) -> tuple[Incident, Assessment | None] | None:
    """The open incident of a node that is worst, the newest of them."""
    found = queries.list_incidents(connection, node=node)
    return max(
        found, key=lambda pair: SEVERITY_ORDER[pair[1].verdict.severity if pair[1] else Severity.OK], default=None
    )


def _holding(connection: Connection, node: str, evidence_id: str) -> tuple[Incident, Assessment | None] | None:
    """The open incident of a node that a fact is part of."""
    for incident, assessment in queries.list_incidents(connection, node=node):
        if any(signal.id.partition("#")[0] == evidence_id for signal in incident.signals):
            return incident, assessment
    return None


def _progress(step: Progress) -> sentinel_pb2.InvestigateResponse:
    spent = step.spent
    return sentinel_pb2.InvestigateResponse(
        progress=step.text,
        investigation_id=step.investigation_id,
        round=spent.rounds,
        tool=step.tool,
        input_tokens=spent.input_tokens,
        output_tokens=spent.output_tokens,
        cost_usd=spent.cost_usd,
    )


def _transcript(
    job: Job, found: Investigation | None, entries: list[TranscriptEntry]
) -> sentinel_pb2.GetTranscriptResponse:
    response = sentinel_pb2.GetTranscriptResponse(
        investigation_id=job.id,
        incident_id=job.incident_id,
        state=job.state,
        cost_usd=job.cost_usd,
        entries=map(_entry, entries),
    )
    if job.started_us is not None:
        response.started_at.CopyFrom(wire.stamp(job.started_us))
    if job.ended_us is not None:
        response.ended_at.CopyFrom(wire.stamp(job.ended_us))
    if found is not None:
        response.stop_reason, response.model, response.rounds = found.reason, found.model, found.spent.rounds
        response.input_tokens, response.cached_tokens = found.spent.input_tokens, found.spent.cached_tokens
        response.output_tokens = found.spent.output_tokens
    return response


def _entry(entry: TranscriptEntry) -> sentinel_pb2.TranscriptEntry:
    return sentinel_pb2.TranscriptEntry(
        at=wire.stamp(entry.at_us),
        round=entry.round,
        kind=entry.kind,
        id=entry.entry_id,
        title=entry.title,
        trust=entry.trust,
        text=entry.text,
        total_bytes=entry.total_bytes,
    )
