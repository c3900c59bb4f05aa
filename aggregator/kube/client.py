"""The only Kubernetes client: plain JSON over one asynchronous connection pool, with a deadline on everything.

The `kubernetes` package says where the server is and who we are (`access`); requests go through httpx2, because its watches can be
cancelled and cost no thread (docs/adr/0005). Credentials that are refused are read anew once: tokens rotate.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx2

from aggregator.kube.access import Access, AccessWrong
from aggregator.kube.errors import Unauthorized, Unreachable, refusal

Json = dict[str, Any]
Params = Mapping[str, str | int]

FIELD_MANAGER = "gcm-sentinel"
REQUEST_SECONDS = 30.0
CONNECT_SECONDS = 5.0
IDLE_SECONDS = 90.0  # a watch hears a bookmark about each minute
AUTHORIZATION_SECONDS = 30.0  # how long a header is used before it is asked for anew
PAGE = 500  # objects of a list that are asked for at once
MAX_EVENT_BYTES = 16 * 2**20  # an object is at most 1.5 MiB in etcd; JSON may take more
_PATCHES = {
    "apply": "application/apply-patch+yaml",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}


class KubeClient:
    """Requests to one API server. Paths begin with /api or /apis. Everything raises ApiError, of the kind that fits."""

    def __init__(self, load: Callable[[], Access]) -> None:
        self._load = load
        self._access: Access | None = None
        self._http: httpx2.AsyncClient | None = None
        self._open: list[httpx2.AsyncClient] = []
        self._stale = False  # the credentials were refused: read them anew before the next request
        self._header = ""
        self._header_until = 0.0
        self._reading = asyncio.Lock()

    async def get(self, path: str, params: Params | None = None) -> Json:
        """One object, or one page of a list."""
        return await self._request("GET", path, params=params)

    async def text(self, path: str, params: Params | None = None) -> str:
        """An answer that is no JSON: a pod's log, a health check."""
        return (await self._answer("GET", path, params=params)).text

    async def post(self, path: str, body: Json, params: Params | None = None) -> Json:
        """Make an object."""
        return await self._request("POST", path, body, params=params)

    async def delete(self, path: str, body: Json | None = None, params: Params | None = None) -> Json:
        """Delete an object; `body` holds DeleteOptions."""
        return await self._request("DELETE", path, body, params=params)

    async def patch(
        self,
        path: str,
        body: object,
        kind: Literal["apply", "merge", "strategic", "json"] = "merge",
        params: Params | None = None,
    ) -> Json:
        """Change an object; "apply" is server-side apply under our field manager, without force unless params say so."""
        params = {"fieldManager": FIELD_MANAGER, **(params or {})}
        return await self._request("PATCH", path, body, params=params, content_type=_PATCHES[kind])

    async def pages(self, path: str, params: Params | None = None, *, page: int = PAGE) -> AsyncIterator[Json]:
        """A list, page by page: each holds `items` and `metadata.resourceVersion`. Raises Gone where it took too long."""
        token = ""
        while True:
            asked: dict[str, str | int] = {**(params or {}), "limit": page}
            found = await self.get(path, asked | ({"continue": token} if token else {}))
            yield found
            token = found.get("metadata", {}).get("continue", "")
            if not token:
                return

    async def items(self, path: str, params: Params | None = None, *, page: int = PAGE) -> list[Json]:
        """A whole list, for small ones."""
        return [item async for found in self.pages(path, params, page=page) for item in found.get("items") or ()]

    async def watch(
        self,
        path: str,
        resource_version: str,
        params: Params | None = None,
        *,
        seconds: int = 300,
        idle_seconds: float = IDLE_SECONDS,
    ) -> AsyncGenerator[Json]:
        """Events from a version on, until the server ends the watch after so many seconds. The first is of type OPEN: the server
        has accepted. Bookmarks are among them.

        Raises Gone when the version is too old, Unreachable after `idle_seconds` of silence. Close the iterator (`aclosing`).
        """
        asked: dict[str, str | int] = {
            "watch": 1,
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": seconds,
        }
        async with self._stream(path, {**(params or {}), **asked}, idle_seconds) as response:
            yield {"type": "OPEN"}
            async for line in _lines(response):
                event: Json = _parsed(line)
                if event.get("type") == "ERROR":
                    status = event.get("object") or {}
                    raise refusal(int(status.get("code") or 500), status)
                yield event

    async def check(self) -> str:
        """Read the configuration and say where it came from. Raises AccessWrong."""
        return (await asyncio.to_thread(self._load)).came_from

    async def close(self) -> None:
        """Drop every connection."""
        for connections in self._open:
            await connections.aclose()

    # --- one request

    async def _request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Params | None = None,
        content_type: str = "application/json",
    ) -> Json:
        answer = await self._answer(method, path, body, params=params, content_type=content_type)
        return _parsed(answer.content)

    async def _answer(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Params | None = None,
        content_type: str = "application/json",
    ) -> httpx2.Response:
        content = None if body is None else json.dumps(body).encode()
        headers = {"content-type": content_type} if content is not None else {}
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                answer = await self._send(method, path, params, content, headers)
                if answer.status_code == 401:
                    self._stale = True
                    answer = await self._send(method, path, params, content, headers)
        except (TimeoutError, httpx2.RequestError) as error:
            raise Unreachable(_said(error)) from error
        if answer.is_error:
            raise refusal(answer.status_code, _status(answer.content), answer.headers)
        return answer

    async def _send(
        self, method: str, path: str, params: Params | None, content: bytes | None, headers: Mapping[str, str]
    ) -> httpx2.Response:
        access, http = await self._ready()
        return await http.request(
            method,
            path,
            params=dict(params or {}),
            content=content,
            headers={**headers, **await self._authorization(access)},
            extensions=_extensions(access),
        )

    @asynccontextmanager
    async def _stream(self, path: str, params: Params, idle_seconds: float) -> AsyncIterator[httpx2.Response]:
        patience = httpx2.Timeout(CONNECT_SECONDS, read=idle_seconds)
        try:
            for attempt in (1, 2):
                access, http = await self._ready()
                headers = await self._authorization(access)
                request = http.stream(
                    "GET", path, params=dict(params), headers=headers, timeout=patience, extensions=_extensions(access)
                )
                async with request as response:
                    if response.status_code == 401 and attempt == 1:
                        self._stale = True
                        continue
                    if response.is_error:
                        raise refusal(response.status_code, _status(await response.aread()), response.headers)
                    yield response
                    return
        except httpx2.RequestError as error:
            raise Unreachable(_said(error)) from error

    # --- who we are

    async def _ready(self) -> tuple[Access, httpx2.AsyncClient]:
        """Who we are and the connections, both made or made anew where need be. Raises Unauthorized."""
        async with self._reading:
            if self._access is None or self._stale:
                await self._read_access()
            assert self._access is not None
            assert self._http is not None
            return self._access, self._http

    async def _read_access(self) -> None:
        try:
            access = await asyncio.to_thread(self._load)
        except AccessWrong as error:
            raise Unauthorized(str(error)) from error
        if self._http is None or self._access is None or not access.same_server(self._access):
            self._open.append(_connections(access))  # what runs on older connections goes on there
            self._http = self._open[-1]
        self._access, self._stale, self._header_until = access, False, 0.0

    async def _authorization(self, access: Access) -> dict[str, str]:
        if time.monotonic() >= self._header_until:
            try:
                self._header = await asyncio.to_thread(access.authorization)
            except AccessWrong as error:
                raise Unauthorized(str(error)) from error
            self._header_until = time.monotonic() + AUTHORIZATION_SECONDS
        return {"authorization": self._header} if self._header else {}


def _connections(access: Access) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        base_url=access.url,
        verify=access.tls,
        proxy=access.proxy,
        timeout=httpx2.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS),
        limits=httpx2.Limits(max_connections=32, max_keepalive_connections=8),
        headers={"user-agent": FIELD_MANAGER, "accept": "application/json"},
        trust_env=False,  # the package has read what the environment says of proxies
    )


async def _lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    """Whole lines as they come."""
    held = bytearray()
    async for chunk in response.aiter_bytes():
        held += chunk
        if b"\n" not in chunk:
            if len(held) > MAX_EVENT_BYTES:
                raise Unreachable(f"an event is longer than {MAX_EVENT_BYTES} bytes")
            continue
        *lines, rest = bytes(held).split(b"\n")
        held = bytearray(rest)
        for line in lines:
            if line.strip():
                yield line


def _parsed(content: bytes) -> Json:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise Unreachable(f"the answer is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Unreachable("the answer is no JSON object")
    return found


def _status(content: bytes) -> Json:
    """The Status object of a refusal; a proxy's own page is shown as its message."""
    try:
        return _parsed(content)
    except Unreachable:
        return {"message": content[:500].decode("utf-8", "replace")}


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return f"no answer in time ({type(error).__name__})"
    return str(error) or type(error).__name__


def _extensions(access: Access) -> dict[str, str]:
    return {"sni_hostname": access.server_name} if access.server_name else {}
