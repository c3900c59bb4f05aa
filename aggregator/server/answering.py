"""How a question is answered: readers alone are admitted, and a Refusal becomes the call's status."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import grpc

from aggregator.identity import Authenticator
from aggregator.server.refusal import Refusal, admission, authorization

caller: ContextVar[str] = ContextVar("caller")  # the name of whoever asks, while the question is answered

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
Response = TypeVar("Response")


class Admitting(Protocol):
    """A service that knows who may ask."""

    authenticator: Authenticator


Service = TypeVar("Service", bound=Admitting)
_Answer = Callable[[Service, Request], Awaitable[Response]]
_Method = Callable[[Service, Request, Context], Awaitable[Response]]
_Stream = Callable[[Service, Request], AsyncIterator[Response]]
_StreamMethod = Callable[[Service, Request, Context], AsyncIterator[Response]]


def answer(answer_one: _Answer[Service, Request, Response]) -> _Method[Service, Request, Response]:
    """A method that returns one message."""

    @functools.wraps(answer_one)
    async def method(self: Service, request: Request, context: Context) -> Response:
        try:
            with admission():
                caller.set(self.authenticator.admit_reader(authorization(context)))
            return await answer_one(self, request)
        except Refusal as refusal:
            await context.abort(refusal.code, refusal.text)

    return method


def stream(answer_many: _Stream[Service, Request, Response]) -> _StreamMethod[Service, Request, Response]:
    """A method that returns messages as they come."""

    @functools.wraps(answer_many)
    async def method(self: Service, request: Request, context: Context) -> AsyncIterator[Response]:
        try:
            with admission():
                caller.set(self.authenticator.admit_reader(authorization(context)))
            async for message in answer_many(self, request):
                yield message
        except Refusal as refusal:
            await context.abort(refusal.code, refusal.text)

    return method
