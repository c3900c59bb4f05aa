"""The people's side: read-only questions, answered from the store, and from the live agent for CollectNow."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection

from aggregator import wire
from aggregator.identity import Authenticator
from aggregator.model import SEVERITY_ORDER, Assessment, Incident, normalise_pci
from aggregator.pipeline import Pipeline
from aggregator.server.answering import Context, answer
from aggregator.server.investigations import Investigations
from aggregator.server.paging import make_token, page_size, read_token
from aggregator.server.presence import Presence
from aggregator.server.records import Records
from aggregator.server.refusal import Refusal, admission, authorization, invalid
from aggregator.server.sessions import COLLECT_SECONDS, CollectFailed, Sessions
from aggregator.store import queries
from aggregator.store.queries import EvidenceFilter, StoredRow
from protos.v1 import evidence_pb2, sentinel_pb2

WATCH_PAGE = 200
MAX_WATCHERS = 100
MAX_BEHIND = 10_000  # rows a watcher may be behind before it is moved forward, and told how many it missed
MAX_FILTERS = 100  # kinds or severities in one request


class SentinelService(Investigations, Records):
    """Every question a person or program may ask."""

    def __init__(
        self, pipeline: Pipeline, sessions: Sessions, presence: Presence, authenticator: Authenticator
    ) -> None:
        self.authenticator = authenticator
        self._pipeline = pipeline
        self._store = pipeline.store
        self._sessions = sessions
        self._presence = presence
        self._watchers = 0

    @answer
    async def ListNodes(self, request: sentinel_pb2.ListNodesRequest) -> sentinel_pb2.ListNodesResponse:  # noqa: N802
        """Nodes by name."""
        size = page_size(request.page_size)
        after = str((read_token(request, request.page_token, (str,)) or [""])[0])
        nodes = await self._store.read(lambda c: self._nodes(c, queries.list_nodes(c, after, size + 1)))
        token = make_token(request, [nodes[size - 1].name]) if len(nodes) > size else ""
        return sentinel_pb2.ListNodesResponse(nodes=nodes[:size], next_page_token=token)

    @answer
    async def GetNode(self, request: sentinel_pb2.GetNodeRequest) -> sentinel_pb2.GetNodeResponse:  # noqa: N802
        """One node with its latest snapshot."""
        name = _required(request.node, "node")

        def query(connection: Connection) -> sentinel_pb2.GetNodeResponse | None:
            row = queries.get_node(connection, name)
            if row is None:
                return None
            response = sentinel_pb2.GetNodeResponse(node=self._nodes(connection, [row])[0])
            payload = queries.get_snapshots(connection, [name]).get(name)
            if payload is not None:
                response.snapshot.ParseFromString(payload)
            return response

        return _found(await self._store.read(query), f"node {name!r} has never reported")

    @answer
    async def ListEvidence(self, request: sentinel_pb2.ListEvidenceRequest) -> sentinel_pb2.ListEvidenceResponse:  # noqa: N802
        """Stored evidence, oldest first."""
        size = page_size(request.page_size)
        after = int((read_token(request, request.page_token, (int,)) or [0])[0])
        wanted = _evidence_filter(request)

        def query(connection: Connection) -> list[StoredRow]:
            return queries.list_evidence(connection, _with_other_names(connection, wanted), after, size + 1)

        rows = await self._store.read(query)
        token = make_token(request, [rows[size - 1].id]) if len(rows) > size else ""
        return sentinel_pb2.ListEvidenceResponse(
            evidence=[_evidence(row) for row in rows[:size]], next_page_token=token
        )

    async def WatchEvidence(  # noqa: N802 - gRPC's name
        self, request: sentinel_pb2.WatchEvidenceRequest, context: Context
    ) -> AsyncIterator[sentinel_pb2.WatchEvidenceResponse]:
        """Evidence as it is stored, until the caller leaves."""
        try:
            wanted = self._watch_filter(request, context)
        except Refusal as refusal:
            await context.abort(refusal.code, refusal.text)
        self._watchers += 1
        try:
            async for response in self._follow(wanted):
                yield response
        finally:
            self._watchers -= 1

    @answer
    async def CollectNow(self, request: sentinel_pb2.CollectNowRequest) -> sentinel_pb2.CollectNowResponse:  # noqa: N802
        """A fresh reading, through the agent's own stream."""
        name = _required(request.node, "node")
        session = self._sessions.current(name)
        if session is None:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, f"no agent of node {name!r} is connected")
        try:
            return sentinel_pb2.CollectNowResponse(snapshot=await session.collect(COLLECT_SECONDS))
        except TimeoutError as error:
            raise Refusal(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"the agent of {name!r} did not answer in {COLLECT_SECONDS:g} seconds",
            ) from error
        except CollectFailed as error:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE, f"the agent of {name!r} could not read its GPUs: {error}"
            ) from error

    @answer
    async def ListIncidents(self, request: sentinel_pb2.ListIncidentsRequest) -> sentinel_pb2.ListIncidentsResponse:  # noqa: N802
        """Incidents, newest first."""
        size = page_size(request.page_size)
        before = _before(read_token(request, request.page_token, (int, str)))
        severities = _bounded(request.severities, "severities")
        if unknown := sorted(set(severities) - set(SEVERITY_ORDER)):
            raise invalid(f"severities: {unknown[0]!r} is none of {', '.join(SEVERITY_ORDER)}")
        found = await self._store.read(
            lambda connection: queries.list_incidents(
                connection,
                node=request.node,
                severities=severities,
                include_resolved=request.include_resolved,
                before=before,
                limit=size + 1,
            )
        )
        last = found[size - 1][0] if len(found) > size else None
        return sentinel_pb2.ListIncidentsResponse(
            incidents=[wire.incident_message(*pair) for pair in found[:size]],
            next_page_token=make_token(request, [last.opened_us, last.id]) if last else "",
        )

    @answer
    async def GetIncident(self, request: sentinel_pb2.GetIncidentRequest) -> sentinel_pb2.GetIncidentResponse:  # noqa: N802
        """One incident with its timeline."""
        incident_id = _required(request.id, "id")

        def query(connection: Connection) -> tuple[Incident, Assessment | None] | None:
            return queries.get_incident(connection, incident_id)

        incident, assessment = _found(await self._store.read(query), f"no incident {incident_id!r}")
        return sentinel_pb2.GetIncidentResponse(
            incident=wire.incident_message(incident, assessment, with_timeline=True)
        )

    @answer
    async def ListAssessments(  # noqa: N802
        self, request: sentinel_pb2.ListAssessmentsRequest
    ) -> sentinel_pb2.ListAssessmentsResponse:
        """Assessments, newest first."""
        size = page_size(request.page_size)
        before = _before(read_token(request, request.page_token, (int, str)))
        found = await self._store.read(
            lambda connection: queries.list_assessments(
                connection, node=request.node, incident_id=request.incident_id, before=before, limit=size + 1
            )
        )
        last = found[size - 1] if len(found) > size else None
        return sentinel_pb2.ListAssessmentsResponse(
            assessments=[wire.assessment_message(assessment) for assessment in found[:size]],
            next_page_token=make_token(request, [last.created_us, last.id]) if last else "",
        )

    @answer
    async def GetAssessment(self, request: sentinel_pb2.GetAssessmentRequest) -> sentinel_pb2.GetAssessmentResponse:  # noqa: N802
        """One assessment."""
        assessment_id = _required(request.id, "id")
        found = await self._store.read(lambda connection: queries.get_assessment(connection, assessment_id))
        assessment = _found(found, f"no assessment {assessment_id!r}")
        return sentinel_pb2.GetAssessmentResponse(assessment=wire.assessment_message(assessment))

    def _watch_filter(self, request: sentinel_pb2.WatchEvidenceRequest, context: Context) -> EvidenceFilter:
        with admission():
            self.authenticator.admit_reader(authorization(context))
        if self._watchers >= MAX_WATCHERS:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_WATCHERS} watchers are open, the most allowed")
        gpu_uuids, pcis = _gpu_names(request.gpu)
        return EvidenceFilter(node=request.node, kinds=_bounded(request.kinds, "kinds"), gpu_uuids=gpu_uuids, pcis=pcis)

    def _nodes(self, connection: Connection, rows: list[queries.NodeRow]) -> list[sentinel_pb2.Node]:
        counts = queries.open_incident_counts(connection, [row.name for row in rows])
        return [
            sentinel_pb2.Node(
                name=row.name,
                connected=self._sessions.current(row.name) is not None,
                last_seen_at=wire.stamp(self._presence.last_heard_us(row.name) or row.last_seen_us),
                agent_version=row.agent_version,
                boot_id=row.boot_id,
                clock_offset_usec=row.clock_offset_us,
                clock_error_usec=row.clock_error_us,
                simulated=row.simulated,
                open_incidents=counts.get(row.name, 0),
                observed=self._presence.observed(row.name),
            )
            for row in rows
        ]

    async def _follow(self, wanted: EvidenceFilter) -> AsyncIterator[sentinel_pb2.WatchEvidenceResponse]:
        """Rows as they are committed. Who reads too slowly is moved forward, and told how many it missed."""
        last = await self._store.read(queries.last_evidence_id)
        skipped = 0
        while True:
            newest = self._pipeline.last_stored_id
            if newest - last > MAX_BEHIND:
                passed = newest - WATCH_PAGE
                skipped += await self._store.read(functools.partial(_count, wanted=wanted, after=last, up_to=passed))
                last = passed
            rows = await self._store.read(functools.partial(_next_rows, wanted=wanted, after=last))
            for row in rows:
                yield sentinel_pb2.WatchEvidenceResponse(evidence=_evidence(row), skipped=skipped)
                skipped = 0
            last = rows[-1].id if len(rows) == WATCH_PAGE else max(last, newest)
            if len(rows) < WATCH_PAGE:
                await self._pipeline.stored_beyond(last)


def _count(connection: Connection, wanted: EvidenceFilter, after: int, up_to: int) -> int:
    return queries.count_evidence(connection, _with_other_names(connection, wanted), after, up_to)


def _next_rows(connection: Connection, wanted: EvidenceFilter, after: int) -> list[StoredRow]:
    return queries.list_evidence(connection, _with_other_names(connection, wanted), after, WATCH_PAGE)


T = TypeVar("T")


def _found(answer: T | None, otherwise: str) -> T:
    if answer is None:
        raise Refusal(grpc.StatusCode.NOT_FOUND, otherwise)
    return answer


def _required(text: str, field: str) -> str:
    if not text:
        raise invalid(f"{field} is empty")
    return text


def _bounded(values: Any, field: str) -> tuple[str, ...]:
    if len(values) > MAX_FILTERS:
        raise invalid(f"{field} holds more than {MAX_FILTERS} values")
    return tuple(values)


def _before(key: list[int | str] | None) -> tuple[int, str] | None:
    return None if key is None else (int(key[0]), str(key[1]))


def _evidence_filter(request: sentinel_pb2.ListEvidenceRequest) -> EvidenceFilter:
    since_us = _time_us(request.since, "since") if request.HasField("since") else None
    until_us = _time_us(request.until, "until") if request.HasField("until") else None
    if since_us is not None and until_us is not None and until_us <= since_us:
        raise invalid("until is not after since")
    gpu_uuids, pcis = _gpu_names(request.gpu)
    return EvidenceFilter(request.node, since_us, until_us, _bounded(request.kinds, "kinds"), gpu_uuids, pcis)


def _gpu_names(gpu: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a GPU is asked for by: UUIDs, and PCI addresses in their normal form."""
    pci = normalise_pci(gpu)
    return ((), (pci,)) if pci else ((gpu,) if gpu else (), ())


def _time_us(time: Timestamp, field: str) -> int:
    if not 0 <= time.seconds * 1_000_000 < wire.MAX_TIME_US or not 0 <= time.nanos < 1_000_000_000:
        raise invalid(f"{field} is no time between 1970 and 9999")
    return time.seconds * 1_000_000 + time.nanos // 1000


def _with_other_names(connection: Connection, wanted: EvidenceFilter) -> EvidenceFilter:
    """A GPU asked for by one name is meant by its other name too: kernel lines know only the PCI address."""
    if not wanted.node or not (wanted.gpu_uuids or wanted.pcis):
        return wanted
    payload = queries.get_snapshots(connection, [wanted.node]).get(wanted.node)
    known = wire.gpu_names(payload) if payload is not None else {}
    pcis = tuple(known[uuid] for uuid in wanted.gpu_uuids if uuid in known)
    uuids = tuple(uuid for uuid, pci in known.items() if pci in wanted.pcis)
    return EvidenceFilter(
        wanted.node,
        wanted.since_us,
        wanted.until_us,
        wanted.kinds,
        wanted.gpu_uuids + uuids,
        wanted.pcis + pcis,
    )


def _evidence(row: StoredRow) -> sentinel_pb2.StoredEvidence:
    """The fact as its agent sent it: fields this version does not know are passed on."""
    fact = evidence_pb2.Evidence.FromString(row.payload)
    return sentinel_pb2.StoredEvidence(
        id=f"{fact.node}/{fact.source}/{fact.epoch}/{fact.seq}",
        evidence=fact,
        stored_at=wire.stamp(row.stored_us),
        signals=row.signals,
    )
