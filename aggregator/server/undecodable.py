"""Bytes that are no message of the method they were sent to: the caller's mistake, told as such and counted.

gRPC itself would answer UNKNOWN and log a traceback for each.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from aggregator.outputs.metrics import Metrics

TEXT = "the request is no protobuf message of this method"

log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


Handler = Any  # grpc.RpcMethodHandler: its type knows neither coroutines nor that there may be none


class RefuseUndecodable(grpc.aio.ServerInterceptor):
    """Every method with one request refuses what cannot be decoded; a stream's read raises DecodeError, its reader's to refuse."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method's handler, in a shell that bears undecodable requests."""
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method
            return None
        serializer = handler.response_serializer
        decode = self._decoder(handler, handler_call_details.method)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(_refusing(handler.unary_unary), decode, serializer)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(_refusing_stream(handler.unary_stream), decode, serializer)
        return grpc.stream_stream_rpc_method_handler(handler.stream_stream, decode, serializer)

    def _decoder(self, handler: Handler, method: str) -> Callable[[bytes], Any]:
        """Decodes, and tells of what it cannot decode."""

        def decode(payload: bytes) -> Any:
            try:
                return handler.request_deserializer(payload)
            except DecodeError as error:
                self._metrics.undecodable(method)
                log.warning("request_undecodable", method=method, bytes=len(payload), reason=str(error))
                if handler.request_streaming:
                    raise
                return None

        return decode


def _refusing(answer: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
    async def refusing(request: Any, context: Context) -> Any:
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, TEXT)
        return await answer(request, context)

    return refusing


def _refusing_stream(answer: Callable[[Any, Context], Any]) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def refusing(request: Any, context: Context) -> AsyncIterator[Any]:
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, TEXT)
        answers = answer(request, context)
        if inspect.isawaitable(answers):  # one that writes through its context, as the health service does
            await answers
            return
        async for message in answers:
            yield message

    return refusing
