"""The cluster's nodes, kept as the API server tells them: listed once, then watched from that version on.

Whatever happens to the connection, the view in `nodes` becomes right again: a broken watch goes on from the last version it
heard of, one that is too old lists anew and finds what was deleted meanwhile. Readers are told which nodes changed, not each
change: a node that changes a thousand times while nobody looks is one change.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import aclosing

import structlog

from aggregator.kube.client import IDLE_SECONDS, Json, KubeClient
from aggregator.kube.errors import ApiError, Forbidden, Gone
from aggregator.kube.nodes import Node, Wanted, parse

PATH = "/api/v1/nodes"
PAGE = 100  # a node may be 100 kB of JSON, and parsing holds the loop
WATCH_SECONDS = (240, 360)  # a watch ends by itself between these, so that many aggregators do not return at once
MAX_REMOVED = 10_000
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0

log = structlog.get_logger(__name__)


class NodeWatch:
    """Every node of the cluster, by name. `nodes` may be read at any time, and is whole once `synced` is set."""

    def __init__(
        self,
        client: KubeClient,
        wanted: Wanted,
        *,
        on_up: Callable[[bool], None] = lambda _: None,
        on_rejected: Callable[[str], None] = lambda _: None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.nodes: dict[str, Node] = {}
        self.removed: dict[str, None] = {}  # names that were here and are gone, the latest last
        self.synced = asyncio.Event()
        self.up = False
        self._client = client
        self._wanted = wanted
        self._on_up = on_up
        self._on_rejected = on_rejected
        self._idle_seconds = idle_seconds
        self._version = ""  # what the next watch begins after; empty: list first
        self._changed: set[str] = set()
        self._waking = asyncio.Event()
        self._down_because = ""
        self._pause_seconds = FIRST_PAUSE_SECONDS
        on_up(False)

    async def changes(self, until: float | None = None) -> set[str]:
        """Names of nodes that changed, came or went since the last call; empty once time.monotonic() has reached `until`."""
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
                await self._waking.wait()
        except TimeoutError:
            return set()
        self._waking.clear()
        changed, self._changed = self._changed, set()
        return changed

    async def run(self) -> None:
        """Keep the view right until cancelled."""
        while True:
            began = time.monotonic()
            try:
                if not self._version:
                    await self._list()
                await self._follow()
            except Gone:
                log.info("kubernetes_watch_too_old", version=self._version)
                self._version = ""
            except ApiError as error:
                self._says_down(error)
            await self._pause(time.monotonic() - began)

    async def _list(self) -> None:
        """Take the view anew, and find what is no longer there."""
        listed: dict[str, Node] = {}
        async for page in self._client.pages(PATH, page=PAGE):
            version = page["metadata"]["resourceVersion"]
            for found in page.get("items") or ():
                if (node := self._parsed(found)) is not None:
                    listed[node.name] = node
            await asyncio.sleep(0)
        for name in self.nodes.keys() - listed.keys():
            self._put(name, None)
        for name, node in listed.items():
            self._put(name, node)
        self._version = version
        self._says_up()
        self.synced.set()
        self._waking.set()

    async def _follow(self) -> None:
        """One watch, until the server ends it or it breaks."""
        seconds = random.randint(*WATCH_SECONDS)  # noqa: S311 - spreads load
        events = self._client.watch(PATH, self._version, seconds=seconds, idle_seconds=self._idle_seconds)
        async with aclosing(events):
            async for event in events:
                self._says_up()
                self._take(event)

    def _take(self, event: Json) -> None:
        kind, found = event["type"], event.get("object") or {}
        if kind in ("ADDED", "MODIFIED", "DELETED") and (node := self._parsed(found)) is not None:
            self._put(node.name, None if kind == "DELETED" else node)
        self._version = (found.get("metadata") or {}).get("resourceVersion") or self._version

    def _parsed(self, found: Json) -> Node | None:
        try:
            return parse(found, self._wanted, self._on_rejected)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._on_rejected("node")
            log.warning("kubernetes_node_unreadable", why=repr(error))
            return None

    def _put(self, name: str, node: Node | None) -> None:
        if self.nodes.get(name) == node:
            return
        if node is None:
            del self.nodes[name]
            self.removed[name] = None
            if len(self.removed) > MAX_REMOVED:
                del self.removed[next(iter(self.removed))]
        else:
            self.nodes[name] = node
            self.removed.pop(name, None)
        self._changed.add(name)
        self._waking.set()

    # --- what is said of it

    def _says_up(self) -> None:
        if not self.up:
            self.up, self._down_because = True, ""
            self._on_up(True)
            log.info("kubernetes_watch_up", nodes=len(self.nodes))

    def _says_down(self, error: ApiError) -> None:
        """Say it once for each reason."""
        if self.up:
            self.up = False
            self._on_up(False)
        if (why := str(error)) != self._down_because:
            self._down_because = why
            lacking = {"lacking": f"{error.verb} {error.resource}"} if isinstance(error, Forbidden) else {}
            log.warning("kubernetes_watch_down", why=why, **lacking)

    async def _pause(self, lasted_seconds: float) -> None:
        """Wait before the next try, longer each time, unless the last one went well for a while."""
        if lasted_seconds > LONGEST_PAUSE_SECONDS:
            self._pause_seconds = FIRST_PAUSE_SECONDS
        await asyncio.sleep(random.uniform(0, self._pause_seconds))  # noqa: S311 - full jitter
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
