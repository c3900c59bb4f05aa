"""What was decided and what was sent: audit records and deliveries, as people ask for them."""

from __future__ import annotations

import json
from functools import partial

from aggregator import wire
from aggregator.identity import Authenticator
from aggregator.server.answering import answer
from aggregator.server.paging import make_token, page_size, read_token
from aggregator.server.refusal import invalid
from aggregator.store import Store, audit, deliveries
from protos.v1 import sentinel_pb2, sentinel_pb2_grpc

UNDELIVERED = (deliveries.WAITING, deliveries.DEAD)


class Records(sentinel_pb2_grpc.SentinelServiceServicer):
    """The part of SentinelService that reads records."""

    authenticator: Authenticator
    _store: Store

    @answer
    async def ListAuditRecords(  # noqa: N802 - gRPC's name
        self, request: sentinel_pb2.ListAuditRecordsRequest
    ) -> sentinel_pb2.ListAuditRecordsResponse:
        """Decisions, newest first."""
        size = page_size(request.page_size)
        before = read_token(request, request.page_token, (int,))
        found = await self._store.read(
            partial(
                audit.list_records,
                node=request.node,
                incident_id=request.incident_id,
                before_id=int(before[0]) if before else None,
                limit=size + 1,
            )
        )
        return sentinel_pb2.ListAuditRecordsResponse(
            records=[_record(recorded) for recorded in found[:size]],
            next_page_token=make_token(request, [found[size - 1].id]) if len(found) > size else "",
        )

    @answer
    async def ListDeliveries(  # noqa: N802
        self, request: sentinel_pb2.ListDeliveriesRequest
    ) -> sentinel_pb2.ListDeliveriesResponse:
        """Messages that wait or were given up, oldest first."""
        size = page_size(request.page_size)
        after = int((read_token(request, request.page_token, (int,)) or [0])[0])
        if unknown := sorted(set(request.states) - set(UNDELIVERED)):
            raise invalid(f"states: {unknown[0]!r} is none of {', '.join(UNDELIVERED)}")
        wanted = tuple(dict.fromkeys(request.states)) or UNDELIVERED
        rows = await self._store.read(
            partial(deliveries.list_deliveries, states=wanted, after_id=after, limit=size + 1)
        )
        return sentinel_pb2.ListDeliveriesResponse(
            deliveries=[_delivery(row) for row in rows[:size]],
            next_page_token=make_token(request, [rows[size - 1].id]) if len(rows) > size else "",
        )


def _record(recorded: audit.Recorded) -> sentinel_pb2.AuditRecord:
    record = recorded.record
    return sentinel_pb2.AuditRecord(
        id=recorded.id,
        at=wire.stamp(recorded.at_us),
        node=record.node,
        incident_id=record.incident_id,
        assessment_id=record.assessment_id,
        action=record.action,
        outcome=record.outcome,
        reasons=record.reasons,
        inputs_json=json.dumps(record.inputs),
        actor=record.actor,
    )


def _delivery(row: deliveries.DeliveryRow) -> sentinel_pb2.DeliveryStatus:
    return sentinel_pb2.DeliveryStatus(
        id=row.id,
        target=row.target,
        incident_id=row.incident_id,
        change=row.change,
        state=row.state,
        attempts=row.attempts,
        next_attempt_at=wire.stamp(row.next_attempt_us) if row.state == deliveries.WAITING else None,
        last_error=row.last_error,
        created_at=wire.stamp(row.created_us),
    )
