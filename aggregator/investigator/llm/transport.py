"""The way to an endpoint: one HTTP client under either SDK, and the only place that holds the key.

The SDKs read keys, base URLs, extra headers and proxies from their own environment variables and follow redirects with the whole
prompt. Under this client none of that has an effect: requests leave with headers from a short list, the key is put on last, no
proxy and no redirect is taken, and what comes back is bounded.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx2
from pydantic import SecretStr

MAX_RESPONSE_BYTES = 16 * 2**20  # of one answer: 32,000 tokens streamed one by one are about 5 MiB
MAX_LINE_BYTES = (
    4 * 2**20
)  # and of one line in it, which an SDK gathers before it looks: the largest holds a whole answer
KEPT_HEADERS = frozenset({"host", "accept", "content-type", "content-length", "transfer-encoding", "anthropic-version"})
PLACEHOLDER = "in-the-transport"  # the SDKs insist on a key: they never see the real one

for _name in ("anthropic", "openai", "httpx2", "httpcore2"):  # they log whole prompts where somebody asks for DEBUG
    logging.getLogger(_name).setLevel(logging.WARNING)


class TooMuch(httpx2.TransportError):
    """An answer beyond its bound, or compressed so that its size cannot be bounded."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go, and with which key."""

    base_url: str
    key: SecretStr = field(default=SecretStr(""), repr=False)

    def redact(self, text: str, limit: int = 300) -> str:
        """What an endpoint said, fit to be shown: one bounded line without control characters or the key."""
        key = self.key.get_secret_value()
        for secret in (key, quote(key, safe="")) if key else ():
            text = text.replace(secret, "[key]")
        return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:limit]


def http_client(endpoint: Endpoint, *, connect_seconds: float, idle_seconds: float) -> httpx2.AsyncClient:
    """A client whose reads each wait `idle_seconds` at most: a stream that only sends pings is alive, a silent one is not."""
    timeout = httpx2.Timeout(idle_seconds, connect=connect_seconds, pool=connect_seconds)
    return httpx2.AsyncClient(
        transport=_Guarded(endpoint.key), timeout=timeout, follow_redirects=False, trust_env=False, cookies=None
    )


class _Guarded(httpx2.AsyncBaseTransport):
    def __init__(self, key: SecretStr) -> None:
        self._key = key
        self._inner = httpx2.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = [(name, value) for name, value in request.headers.multi_items() if name in KEPT_HEADERS]
        headers += [("user-agent", "gcm-sentinel"), ("accept-encoding", "identity")]
        if self._key.get_secret_value():
            headers.append(("authorization", f"Bearer {self._key.get_secret_value()}"))
        sent = httpx2.Request(
            request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
        )
        response = await self._inner.handle_async_request(sent)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise TooMuch("the answer is compressed, which was not asked for")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        total = line = 0
        async for chunk in self._inner:
            total += len(chunk)
            newline = chunk.rfind(b"\n")
            line = len(chunk) - newline - 1 if newline >= 0 else line + len(chunk)
            if total > MAX_RESPONSE_BYTES or line > MAX_LINE_BYTES:
                raise TooMuch(f"the answer is beyond {MAX_RESPONSE_BYTES} bytes, or {MAX_LINE_BYTES} in one line")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
