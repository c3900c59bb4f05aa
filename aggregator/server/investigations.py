"""Investigations, as people ask for them: to start one and follow it, to read what one did."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from aggregator.identity import Authenticator
from aggregator.server.answering import answer, stream
from aggregator.server.refusal import Refusal
from aggregator.store import Store
from protos.v1 import sentinel_pb2, sentinel_pb2_grpc


class Investigations(sentinel_pb2_grpc.SentinelServiceServicer):
    """The part of SentinelService that investigates."""

    authenticator: Authenticator
    _store: Store

    @stream
    async def Investigate(  # noqa: N802 - gRPC's name
        self, request: sentinel_pb2.InvestigateRequest
    ) -> AsyncIterator[sentinel_pb2.InvestigateResponse]:
        """Look into a node's condition now; ends with the assessment."""
        text = "this version judges by rules alone and cannot investigate; ListIncidents has the verdicts"
        for message in list[sentinel_pb2.InvestigateResponse]():
            yield message
        raise Refusal(grpc.StatusCode.UNIMPLEMENTED, text)

    @answer
    async def GetTranscript(  # noqa: N802
        self, request: sentinel_pb2.GetTranscriptRequest
    ) -> sentinel_pb2.GetTranscriptResponse:
        """What an investigation asked, got and concluded."""
        raise Refusal(grpc.StatusCode.NOT_FOUND, f"no investigation {request.investigation_id!r}")
