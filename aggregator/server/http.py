"""HTTP inside the one event loop: an application on an address that is bound before anything else starts."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from aggregator.server import AddressInUse

SHUTDOWN_SECONDS = 1


class HttpServer:
    """Serves one application. Bound when made, so that a port in use is known before the first promise is given."""

    def __init__(
        self, app: Starlette, host: str, port: int, *, certificate: str | None = None, key: str | None = None
    ) -> None:
        """certificate and key are PEM files. Raises AddressInUse."""
        self._socket = _bind(host, port)
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ssl_certfile=certificate,
                ssl_keyfile=key,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._socket.getsockname()[1]
        return port

    async def serve(self) -> None:
        """Serve until `stop`."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Finish requests and return from `serve`."""
        self._server.should_exit = True


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process, which stops its parts in their order."""
        yield


def probes(registry: CollectorRegistry, unready: Callable[[], str | None]) -> Starlette:
    """/metrics, /healthz (the loop runs) and /readyz (evidence is accepted; else why not)."""

    async def metrics(_: Request) -> Response:
        return Response(await run_in_threadpool(generate_latest, registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        reason = unready()
        return PlainTextResponse(f"{reason or 'ok'}\n", status_code=503 if reason else 200)

    return Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise AddressInUse(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return bound
