"""Just enough of HTTP/1.1, over asyncio streams: one request a connection, and full control over how an answer goes wrong."""

from __future__ import annotations

import asyncio
import http
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class HttpRequest:
    """A request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes


async def read_request(reader: asyncio.StreamReader) -> HttpRequest:
    """Raises asyncio.IncompleteReadError where the client went away."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        return HttpRequest(method, path, headers, await _read_chunks(reader))
    return HttpRequest(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


class Answer:
    """One answer to one request."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send all of it."""
        given = {"content-type": "application/json", **(headers or {}), "content-length": str(len(body))}
        self._head(status, given)
        self._writer.write(body)
        await self._writer.drain()

    async def start(self, status: int = 200, content_type: str = "text/event-stream; charset=utf-8") -> None:
        """Open an answer of unknown length."""
        self._head(status, {"content-type": content_type, "transfer-encoding": "chunked", "cache-control": "no-cache"})
        await self._writer.drain()

    async def chunk(self, data: bytes) -> None:
        """Send a part of it. Raises ConnectionError where nobody listens any more."""
        self._writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self._writer.drain()

    async def end(self) -> None:
        """Close an answer of unknown length as HTTP wants it."""
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def cut(self) -> None:
        """Drop the connection."""
        self._writer.transport.abort()

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        phrase = http.HTTPStatus(status).phrase if status in iter(http.HTTPStatus) else "Overloaded"
        lines = [
            f"HTTP/1.1 {status} {phrase}",
            *(f"{name}: {value}" for name, value in headers.items()),
            "connection: close",
        ]
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
