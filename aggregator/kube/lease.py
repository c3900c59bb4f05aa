"""One of several processes leads: a Lease object says which, and what it holds says until when.

A leader renews every few seconds and leads no longer than `TRUST_SECONDS` after it began its last successful renewal; others wait
`LEASE_SECONDS` from the last renewal they saw. So a leader that was paused, cut off or slow has stopped before another can begin.
Time is the machine's since boot, sleep included; nobody's wall clock matters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from aggregator.kube.client import Json, KubeClient
from aggregator.kube.errors import ApiError, Conflict, NotFound

LEASE_SECONDS = 15.0
TRUST_SECONDS = 10.0
RENEW_SECONDS = 3.0

log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """Another process may lead by now: whatever this one was about to do is not done."""


class Lease:
    """This process's candidacy. `epoch` counts leaders: it rises with each one, and never comes again."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,  # of this process, and of no other ever
        *,
        pace: float = 1.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`pace` scales every span of time; `clock` gives seconds since boot."""
        self.epoch = 0
        self._client = client
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._identity = identity
        self._pace = pace
        self._clock = clock or since_boot
        self._until = 0.0  # by our clock, as long as we lead
        self._seen: Json = {}  # the lease as it was last seen
        self._seen_at = 0.0  # when it was first seen so
        self._refused = ""

    @property
    def holder(self) -> str:
        """Who leads, as far as it was last seen; empty when nobody does."""
        return str((self._seen.get("spec") or {}).get("holderIdentity") or "")

    def holds(self) -> bool:
        """Whether this process leads now. Ask before every action: the answer is worth less the older it is."""
        return self._clock() < self._until

    def require(self) -> int:
        """The epoch in which this process leads. Raises LeaseLost."""
        if not self.holds():
            raise LeaseLost(f"{self.holder or 'nobody'} holds the lease {self._name}")
        return self.epoch

    async def acquire(self) -> int:
        """Return once this process leads, with its epoch."""
        while True:
            if await self._try():
                log.info("leading", lease=self._name, identity=self._identity, epoch=self.epoch)
                return self.epoch
            await asyncio.sleep(RENEW_SECONDS * self._pace)

    async def keep(self) -> None:
        """Renew until cancelled. Raises LeaseLost once this process no longer leads."""
        while True:
            await asyncio.sleep(RENEW_SECONDS * self._pace)
            await self._try()
            self.require()

    async def release(self) -> None:
        """Let another lead at once."""
        if not self.holds():
            return
        self._until = 0.0
        try:
            await self._write({"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()})
        except ApiError as error:
            log.warning("lease_not_released", lease=self._name, why=str(error))

    async def _try(self) -> bool:
        """One attempt to take the lease, or to renew it."""
        began = self._clock()
        try:
            async with asyncio.timeout(max(0.0, self._until - began) if self.holds() else None):
                taken = await self._take(began)
        except (ApiError, TimeoutError) as error:
            self._says_refused(str(error) or "no answer in time")
            return False
        if taken:
            self._until = began + TRUST_SECONDS * self._pace
            self._refused = ""
        return taken

    async def _take(self, began: float) -> bool:
        try:
            self._see(await self._client.get(f"{self._collection}/{self._name}"))
        except NotFound:
            body = {"metadata": {"name": self._name}, "spec": {"holderIdentity": "", "leaseTransitions": 0}}
            self._see(await self._client.post(self._collection, body))
        spec = self._seen["spec"]
        mine = self.holder == self._identity
        if not mine and self.holder and self._clock() - self._seen_at < LEASE_SECONDS * self._pace:
            return False
        # A name that comes again is another process: only who leads already goes on in its epoch.
        epoch = int(spec.get("leaseTransitions") or 0) + (0 if mine and self.holds() else 1)
        taken = {"holderIdentity": self._identity, "renewTime": _now(), "leaseTransitions": epoch}
        if epoch != self.epoch:
            taken |= {"acquireTime": _now(), "leaseDurationSeconds": round(LEASE_SECONDS)}
        try:
            self._see(await self._write(taken))
        except Conflict:
            return False
        self.epoch = epoch
        return True

    async def _write(self, spec: Json) -> Json:
        """Change the lease, if it is as it was last seen. Raises Conflict."""
        metadata = {"resourceVersion": self._seen["metadata"]["resourceVersion"]}
        return await self._client.patch(f"{self._collection}/{self._name}", {"metadata": metadata, "spec": spec})

    def _see(self, lease: Json) -> None:
        if lease["metadata"]["resourceVersion"] != (self._seen.get("metadata") or {}).get("resourceVersion"):
            self._seen_at = self._clock()
        self._seen = lease

    def _says_refused(self, why: str) -> None:
        if why != self._refused:
            self._refused = why
            log.warning("lease_unreachable", lease=self._name, why=why)


def since_boot() -> float:
    """Seconds since boot; goes on while the machine sleeps or the process is stopped."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
