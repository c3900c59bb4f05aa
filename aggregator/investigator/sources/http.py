"""One way to ask an HTTP server that an operator named: no redirect, no ambient proxy, bounded in time and bytes.

Nothing a model writes becomes part of an address: paths are the callers' own, its words travel as parameters. A connection is
made for each question, so that a server that moved or was restarted is no special case and nothing is left to close.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from aggregator.investigator.sources import Unavailable
from aggregator.settings import without_credentials

MAX_BYTES = 4 * 2**20
TIMEOUT_SECONDS = 15.0

Parameters = Mapping[str, str | Sequence[str]]


class TooLarge(Exception):
    """The answer has more bytes than are read; the text says how many that is."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body's value. Raises ValueError; nested too deep to be read is one."""
        try:
            return json.loads(self.body)
        except RecursionError as error:
            raise ValueError("nested too deep") from error


@dataclass(frozen=True, slots=True)
class Credentials:
    """How we say who we are. Files are read for each question, since they are renewed."""

    token_file: Path | None = None
    basic_file: Path | None = None  # user:password in one line
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    def headers(self) -> dict[str, str]:
        """Raises Unavailable where a file cannot be read; the text names the file and nothing of its content."""
        if self.token_file is not None:
            return {"authorization": f"Bearer {_content(self.token_file)}"}
        if self.basic_file is not None:
            return {"authorization": f"Basic {base64.b64encode(_content(self.basic_file).encode()).decode()}"}
        return {}


@dataclass(frozen=True)
class Endpoint:
    """A server at one base URL."""

    url: str
    credentials: Credentials = field(default_factory=Credentials)
    max_bytes: int = MAX_BYTES
    timeout_seconds: float = TIMEOUT_SECONDS

    async def get(self, path: str, parameters: Parameters | None = None) -> Reply:
        """Raises Unavailable or TooLarge."""
        return await self._send("GET", path, params=dict(parameters) if parameters else None)

    async def post(self, path: str, parameters: Parameters) -> Reply:
        """The same with the parameters as a form, which may be long."""
        return await self._send("POST", path, data=dict(parameters))

    @property
    def shown(self) -> str:
        """Where it is, for people."""
        return without_credentials(self.url)

    async def _send(self, method: str, path: str, **parts: Any) -> Reply:
        # Not compressed: a few bytes that unpack to gigabytes are then no case at all.
        headers = {"accept-encoding": "identity", "user-agent": "gcm-sentinel", **self.credentials.headers()}
        timeout = httpx2.Timeout(self.timeout_seconds)
        try:
            async with (
                httpx2.AsyncClient(
                    verify=self._verify, trust_env=False, follow_redirects=False, timeout=timeout
                ) as client,
                client.stream(method, self.url.rstrip("/") + path, headers=headers, **parts) as response,
            ):
                body = await self._read(response)
        except httpx2.TimeoutException as error:
            raise Unavailable(f"{self.shown} did not answer within {self.timeout_seconds:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise Unavailable(f"{self.shown}: {str(error)[:200] or type(error).__name__}") from error
        if 300 <= response.status_code < 400:
            raise Unavailable(f"{self.shown} answers with a redirect ({response.status_code}), which is not followed")
        if response.status_code in (401, 403):
            raise Unavailable(f"{self.shown} refuses us ({response.status_code}): check its credentials")
        return Reply(response.status_code, body)

    async def _read(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self.max_bytes:
                raise TooLarge(f"more than {self.max_bytes // 2**20} MiB")
        return bytes(body)

    @cached_property
    def _verify(self) -> ssl.SSLContext | bool:
        """The system's authorities, or the operator's own. Raises Unavailable."""
        if urlsplit(self.url).scheme != "https":
            return False
        files = self.credentials
        try:
            context = ssl.create_default_context(cafile=files.ca_file)
            if files.certificate_file is not None:
                context.load_cert_chain(files.certificate_file, files.key_file, password="")
        except OSError as error:  # an SSLError is one
            raise Unavailable(f"the TLS files for {self.shown} cannot be used: {error}") from error
        return context


def _content(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise Unavailable(f"{path} cannot be read") from error
    if not text or not text.isprintable():
        raise Unavailable(f"{path} holds no credentials")
    return text
