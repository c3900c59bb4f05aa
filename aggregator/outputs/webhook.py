"""Webhooks: one POST a message. What went wrong is said without the address, which is a secret."""

from __future__ import annotations

import asyncio
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from aggregator.outputs import Refused, Unavailable
from aggregator.outputs.endpoints import Endpoint, check_address
from aggregator.outputs.pagerduty import pagerduty_body
from aggregator.outputs.slack import json_body, slack_body
from aggregator.outputs.wording import Notice, Site, notice
from aggregator.store.deliveries import Route, Waiting

SECONDS = 10.0  # for one attempt
CONNECT_SECONDS = 5.0
MAX_ANSWER_BYTES = 512  # read of an answer
NEVER = (400, 410, 413, 415, 422)  # this message will not be taken later either

_ONE_WORD = re.compile(rb"[a-z_]{3,40}")  # what Slack answers; anything longer might repeat what it was sent


def open_client() -> httpx2.AsyncClient:
    """One client for all webhooks: no proxy of the environment, no redirect, which could lead a secret elsewhere."""
    timeout = httpx2.Timeout(SECONDS, connect=CONNECT_SECONDS)
    return httpx2.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=False)


class Webhook:
    """A target that is told by HTTP."""

    lanes = 1

    def __init__(self, endpoint: Endpoint, client: httpx2.AsyncClient, site: Site) -> None:
        self.route = Route(endpoint.name, severities=endpoint.severities, supersedes=endpoint.kind != "json")
        self.per_minute = endpoint.per_minute
        self._endpoint = endpoint
        self._client = client
        self._site = site

    async def send(self, message: Waiting) -> None:
        """Return once the endpoint took it."""
        try:
            address, key = await asyncio.to_thread(lambda: (self._endpoint.address(), self._endpoint.key()))
            check_address(address)
        except ValueError as error:
            raise Unavailable(str(error)) from None
        body = self._body(notice(message, self._site), key)
        headers = {"Idempotency-Key": message.idempotency_id, "User-Agent": "gcm-sentinel"}
        try:
            async with (
                asyncio.timeout(SECONDS),
                self._client.stream("POST", address, json=body, headers=headers) as answer,
            ):
                _judge(answer, await _beginning(answer))
        except TimeoutError:
            raise Unavailable(f"no answer in {SECONDS:g} seconds") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Unavailable(f"not reached: {type(error).__name__}") from None

    def _body(self, told: Notice, key: str) -> dict[str, Any]:
        if self._endpoint.kind == "pagerduty":
            return pagerduty_body(told, key)
        return slack_body(told) if self._endpoint.kind == "slack" else json_body(told)


async def _beginning(answer: httpx2.Response) -> bytes:
    """The first bytes of an answer, however long it is."""
    read = b""
    async for piece in answer.aiter_raw(MAX_ANSWER_BYTES):
        read += piece
        if len(read) >= MAX_ANSWER_BYTES:
            break
    return read[:MAX_ANSWER_BYTES]


def _judge(answer: httpx2.Response, body: bytes) -> None:
    """Raises Refused or Unavailable unless the message was taken."""
    status = answer.status_code
    if 200 <= status < 300:
        return
    word = body.strip()
    said = f"HTTP {status} {word.decode()}" if _ONE_WORD.fullmatch(word) else f"HTTP {status}"
    if status in NEVER:
        raise Refused(said)
    if 300 <= status < 400:
        raise Unavailable(f"{said}: redirects are not followed")
    raise Unavailable(said, retry_after_seconds(answer.headers.get("Retry-After", "")))


def retry_after_seconds(text: str) -> float | None:
    """Seconds, from either form of the header; None where it says nothing that can be read."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
