"""Of several processes one leads, and has stopped before another begins."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

import pytest

from aggregator.kube.client import KubeClient
from aggregator.kube.lease import LEASE_SECONDS, TRUST_SECONDS, Lease, LeaseLost, since_boot
from tests.cluster.api_server import ApiServer
from tests.kube.conftest import Connect
from tests.server.aggregator import eventually

LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
PACE = 0.1  # 15 seconds become 1.5


@dataclass
class Clock:
    """A machine's clock since boot, which a test moves."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return since_boot() + self.ahead


def lease(client: KubeClient, identity: str, clock: Clock | None = None, pace: float = PACE) -> Lease:
    return Lease(client, "default", "sentinel", identity, pace=pace, clock=clock)


async def test_one_leads_and_the_others_wait(api_server: ApiServer, connect: Connect) -> None:
    async with connect(api_server) as client:
        one, other = lease(client, "one"), lease(client, "other")
        assert await one.acquire() == 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await other.acquire()
        assert (one.holds(), other.holds(), other.holder) == (True, False, "one")
        assert one.require() == 1
        with pytest.raises(LeaseLost, match="one holds"):
            other.require()
    spec = api_server.request("GET", f"{LEASES}/sentinel")["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"], spec["leaseDurationSeconds"]) == ("one", 1, 15)


async def test_while_it_is_renewed_nobody_else_leads(api_server: ApiServer, connect: Connect) -> None:
    async with connect(api_server) as client:
        one, other = lease(client, "one"), lease(client, "other")
        await one.acquire()
        keeping = asyncio.create_task(one.keep())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(LEASE_SECONDS * PACE * 2):
                await other.acquire()
        assert one.holds()
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


async def test_what_is_released_is_taken_at_once(api_server: ApiServer, connect: Connect) -> None:
    async with connect(api_server) as client:
        one, other = lease(client, "one", pace=1.0), lease(client, "other", pace=1.0)
        await one.acquire()
        await one.release()
        assert not one.holds()
        began = time.monotonic()
        assert await other.acquire() == 2
        assert time.monotonic() - began < 2
        await one.release()  # of what it no longer holds: nothing happens
        assert other.holds()


async def test_a_leader_that_is_cut_off_stops_before_another_begins(
    own_api_server: ApiServer, connect: Connect
) -> None:
    """Asked at each instant, never two lead."""
    async with connect(own_api_server) as client:
        one, other = lease(client, "one"), lease(client, "other")
        await one.acquire()
        keeping = asyncio.create_task(one.keep())
        with own_api_server.paused():
            with pytest.raises(LeaseLost):
                async with asyncio.timeout(30):
                    await keeping
            assert not one.holds()
        assert await other.acquire() == 2


async def test_two_never_lead_at_one_time(api_server: ApiServer, connect: Connect) -> None:
    """Neither does the pace of their renewals matter, nor who gives up."""
    async with connect(api_server) as client:
        both = [lease(client, "one"), lease(client, "other")]

        async def compete(mine: Lease) -> None:
            while True:
                await mine.acquire()
                with contextlib.suppress(LeaseLost):
                    for _ in range(3):
                        await mine._try()
                        mine.require()
                if mine.epoch % 2:
                    await mine.release()
                else:
                    await asyncio.sleep(TRUST_SECONDS * PACE)  # silent, as one that was killed

        competing = [asyncio.create_task(compete(mine)) for mine in both]
        epochs: list[int] = []
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            leading = [mine for mine in both if mine.holds()]
            assert len(leading) <= 1
            epochs += [mine.epoch for mine in leading if mine.epoch not in epochs]
            await asyncio.sleep(0.002)
        for task in competing:
            task.cancel()
        await asyncio.gather(*competing, return_exceptions=True)
    assert epochs == sorted(epochs)
    assert len(epochs) >= 3


async def test_a_process_that_was_stopped_knows_it_at_once(api_server: ApiServer, connect: Connect) -> None:
    clock = Clock()
    async with connect(api_server) as client:
        one = lease(client, "one", clock, pace=1.0)
        await one.acquire()
        clock.ahead = TRUST_SECONDS + 0.1
        with pytest.raises(LeaseLost):
            one.require()
        assert await one.acquire() == 2  # nobody took it meanwhile: a new epoch all the same


async def test_rights_that_are_missing_are_said_and_waited_for(
    api_server: ApiServer, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    token = api_server.service_account("leader", [])
    async with connect(api_server, token) as client:
        acquiring = asyncio.create_task(lease(client, "one").acquire())
        seen: list[str] = []

        def named() -> bool:
            seen.append(capsys.readouterr().out)
            return 'cannot get resource "leases"' in "".join(seen)

        await eventually(named)
        rule = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "patch"]}
        api_server.permit("leader", [rule])
        async with asyncio.timeout(10):
            assert await acquiring == 1
