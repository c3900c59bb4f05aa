"""What was decided and what was sent: audit records and deliveries, as people ask for them."""

from __future__ import annotations

import grpc

from aggregator.identity import Authenticator
from aggregator.server.answering import answer
from aggregator.server.refusal import Refusal
from aggregator.store import Store
from protos.v1 import sentinel_pb2, sentinel_pb2_grpc


class Records(sentinel_pb2_grpc.SentinelServiceServicer):
    """The part of SentinelService that reads records."""

    authenticator: Authenticator
    _store: Store

    @answer
    async def ListAuditRecords(  # noqa: N802 - gRPC's name
        self, request: sentinel_pb2.ListAuditRecordsRequest
    ) -> sentinel_pb2.ListAuditRecordsResponse:
        """Decisions, newest first."""
        raise Refusal(grpc.StatusCode.UNIMPLEMENTED, "this version takes no actions")

    @answer
    async def ListDeliveries(  # noqa: N802
        self, request: sentinel_pb2.ListDeliveriesRequest
    ) -> sentinel_pb2.ListDeliveriesResponse:
        """Messages that wait or were given up, oldest first."""
        raise Refusal(grpc.StatusCode.UNIMPLEMENTED, "this version sends no messages")
