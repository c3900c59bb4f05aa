"""Messages reach a real HTTP server that fails, hangs, asks for time, goes away and comes back: each at least once, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import structlog.testing
from pydantic import SecretStr

from aggregator.outputs.courier import Patience
from aggregator.outputs.endpoints import Endpoint
from aggregator.outputs.webhook import Webhook, open_client, retry_after_seconds
from aggregator.outputs.wording import Site
from tests.outputs.conftest import SOON, Desk, OpenDesk, fault, judged, resolved
from tests.outputs.receiver import HANG, Receiver, Reply
from tests.server.aggregator import eventually


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client() as opened:
        yield opened


def hook(receiver: Receiver, client: httpx2.AsyncClient, kind: str = "slack", per_minute: int = 6000) -> Webhook:
    endpoint = Endpoint(name="chat", kind=kind, url=SecretStr(f"{receiver.url}/secret-path"), per_minute=per_minute)  # type: ignore[arg-type]
    return Webhook(endpoint, client, Site("test"))


def told(receiver: Receiver) -> list[tuple[str, str]]:
    results = [request.body["sentinel_result"] for request in receiver.requests]
    return [(result["assessment_id"], result["status"]) for result in results]


def ids(receiver: Receiver) -> list[str]:
    return [request.headers["Idempotency-Key"] for request in receiver.requests]


async def test_a_message_arrives_once(desk: Desk, receiver: Receiver, client: httpx2.AsyncClient) -> None:
    async with desk.delivering(hook(receiver, client)):
        await desk.tell(fault(), judged(fault()))
        await desk.idle()
        await asyncio.sleep(0.1)
    assert told(receiver) == [("inc-1/1", "opened")]
    assert desk.metric("sentinel_deliveries_total", target="chat", outcome="sent") == 1
    assert desk.metric("sentinel_deliveries_waiting", target="chat") == 0


@pytest.mark.parametrize(
    "replies",
    [
        [Reply(500)] * 3,
        [Reply(503, "busy"), Reply(404, "no_service")],
        [Reply(302, "", (("Location", "http://127.0.0.1:1/elsewhere"),))],
        [Reply(401), Reply(403)],
    ],
)
async def test_what_fails_is_tried_again_under_the_same_id(
    desk: Desk, receiver: Receiver, client: httpx2.AsyncClient, replies: Sequence[Reply]
) -> None:
    receiver.replies.extend(replies)
    async with desk.delivering(hook(receiver, client)):
        await desk.tell(fault(), judged(fault()))
        await desk.idle()
    assert len(receiver.requests) == len(replies) + 1
    assert len(set(ids(receiver))) == 1
    assert desk.metric("sentinel_deliveries_total", target="chat", outcome="failed") == len(replies)


@pytest.mark.parametrize("status", [400, 410, 413])
async def test_what_a_target_refuses_is_given_up_and_the_rest_goes_on(
    desk: Desk, receiver: Receiver, client: httpx2.AsyncClient, status: int
) -> None:
    receiver.replies.append(Reply(status, "invalid_payload"))
    async with desk.delivering(hook(receiver, client)):
        await desk.tell(fault(1), judged(fault(1)))
        await desk.tell(fault(2), judged(fault(2)))
        await desk.idle()
        await asyncio.sleep(0.1)
    (dead,) = await desk.rows("dead")
    assert (dead.incident_id, dead.attempts, dead.last_error) == ("inc-1", 1, f"HTTP {status} invalid_payload")
    assert told(receiver)[1:] == [("inc-2/1", "opened")]
    assert desk.metric("sentinel_deliveries_dead", target="chat") == 1


async def test_a_target_that_asks_for_time_gets_it(desk: Desk, receiver: Receiver, client: httpx2.AsyncClient) -> None:
    """No message of any incident is tried meanwhile; what it asks for is bounded."""
    receiver.replies.extend([Reply(429, headers=(("Retry-After", "1"),))])
    async with desk.delivering(hook(receiver, client)):
        await desk.tell(fault(1), judged(fault(1)))
        await asyncio.sleep(0.2)
        await desk.tell(fault(2), judged(fault(2)))
        await desk.idle()
    first, *later = [request.at for request in receiver.requests]
    assert len(later) == 2
    assert min(later) - first >= 0.95


@pytest.mark.parametrize(
    ("asked", "seconds"), [("7", 7), ("999999", 3600), ("Wed, 21 Oct 2015 07:28:00 GMT", 1), ("soon", None)]
)
def test_what_a_target_asks_for_is_read_and_bounded(asked: str, seconds: float | None) -> None:
    found = retry_after_seconds(asked)
    assert found is None if seconds is None else Patience().pause(1, found) == seconds


async def test_a_target_that_is_away_misses_nothing_but_what_is_outdated(
    desk: Desk, client: httpx2.AsyncClient
) -> None:
    """Nobody listens; the last verdict waits; then somebody does."""
    first = Receiver()
    first.close()
    away = hook(first, client)
    async with desk.delivering(away):
        await desk.tell(fault(1), judged(fault(1)))
        await desk.tell(fault(2), judged(fault(2)))
        await asyncio.sleep(0.3)
        await desk.tell(fault(1), judged(fault(1), 2))
        await desk.tell(resolved(fault(2)), judged(fault(2), 2))
        await asyncio.sleep(0.1)
        assert desk.metric("sentinel_deliveries_waiting", target="chat") == 2
        back = Receiver(first.port)
        try:
            await desk.idle()
            assert dict(told(back)) == {"inc-1/2": "revised", "inc-2/2": "resolved"}
        finally:
            back.close()


async def test_changes_of_an_incident_keep_their_order(
    desk: Desk, receiver: Receiver, client: httpx2.AsyncClient
) -> None:
    """The second waits behind the first, which fails; another incident does not."""
    receiver.replies.extend([Reply(500)])
    async with desk.delivering(hook(receiver, client, kind="json")):
        for revision in range(1, 5):
            await desk.tell(fault(1), judged(fault(1), revision))
        await desk.tell(fault(2), judged(fault(2)))
        await desk.idle()
    seen = [identity for identity, _ in told(receiver) if identity.startswith("inc-1")]
    assert seen == ["inc-1/1", *(f"inc-1/{revision}" for revision in range(1, 5))]


async def test_a_target_that_hangs_costs_its_own_time_alone(
    desk: Desk, receiver: Receiver, client: httpx2.AsyncClient
) -> None:
    """It is let go after ten seconds; another target is told at once meanwhile."""
    other = Receiver()
    try:
        quick = Webhook(Endpoint(name="quick", url=SecretStr(other.url)), client, Site("test"))
        receiver.replies.append(Reply(HANG))
        began = time.monotonic()
        async with desk.delivering(hook(receiver, client), quick):
            await desk.tell(fault(), judged(fault()))
            await eventually(lambda: other.requests, seconds=2)
            await desk.idle(seconds=20)
        assert 9.0 < time.monotonic() - began < 15.0
        assert len(set(ids(receiver))) == 1
        assert len(receiver.requests) == 2
    finally:
        other.close()


async def test_what_is_too_old_is_given_up(desk: Desk, receiver: Receiver, client: httpx2.AsyncClient) -> None:
    receiver.otherwise = Reply(500)
    async with desk.delivering(hook(receiver, client), patience=replace(SOON, age_seconds=0.3)):
        await desk.tell(fault(), judged(fault()))
        await desk.idle()
    assert [row.last_error for row in await desk.rows("dead")] == ["HTTP 500"]


async def test_after_a_dead_letter_the_end_is_still_told(
    desk: Desk, receiver: Receiver, client: httpx2.AsyncClient
) -> None:
    receiver.replies.append(Reply(400))
    async with desk.delivering(hook(receiver, client)):
        await desk.tell(fault(), judged(fault()))
        await desk.idle()
        await desk.tell(resolved(fault()), judged(fault(), 2))
        await desk.idle()
    assert told(receiver)[-1] == ("inc-1/2", "resolved")
    assert await desk.rows() == []


async def test_the_rate_of_a_target_is_kept(desk: Desk, receiver: Receiver, client: httpx2.AsyncClient) -> None:
    """Attempts count, not messages."""
    async with desk.delivering(hook(receiver, client, per_minute=3)):
        for number in range(1, 6):
            await desk.tell(fault(number), judged(fault(number)))
        await asyncio.sleep(0.5)
    assert len(receiver.requests) == 3
    assert len(await desk.rows("waiting")) == 2


async def test_a_schedule_outlives_the_process(
    open_desk: OpenDesk, receiver: Receiver, client: httpx2.AsyncClient
) -> None:
    """The next run waits as long as the row says, counts on, and repeats the id."""
    slow = Patience(first_seconds=2.0)
    receiver.replies.append(Reply(500))
    async with open_desk() as desk, desk.delivering(hook(receiver, client), patience=slow):
        await desk.tell(fault(), judged(fault()))
        await eventually(lambda: desk.metric("sentinel_deliveries_total", target="chat", outcome="failed"))
    async with open_desk() as desk, desk.delivering(hook(receiver, client), patience=slow):
        await desk.idle()
        (sent,) = await desk.rows("sent")
    first, second = receiver.requests
    assert second.at - first.at >= 0.95
    assert len(set(ids(receiver))) == 1
    assert sent.attempts == 2


async def test_a_failing_target_says_so_once_and_keeps_its_secrets(
    desk: Desk, receiver: Receiver, client: httpx2.AsyncClient
) -> None:
    receiver.replies.extend([Reply(500, f"see {receiver.url}/secret-path")] * 4)
    with structlog.testing.capture_logs() as logs:
        async with desk.delivering(hook(receiver, client)):
            await desk.tell(fault(), judged(fault()))
            await desk.idle()
            await asyncio.sleep(0.05)
    assert [entry["event"] for entry in logs] == ["target_failing", "target_recovered"]
    assert "secret-path" not in repr(logs) + repr(await desk.rows("sent"))


async def test_a_secret_in_a_file_is_read_again(
    desk: Desk, receiver: Receiver, client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    """A rotated address is taken up without a restart; a missing one is a target that is away."""
    file = tmp_path / "url"
    file.write_text(f"{receiver.url}/old\n")
    target = Webhook(Endpoint(name="chat", url_file=file), client, Site("test"))
    async with desk.delivering(target):
        await desk.tell(fault(1), judged(fault(1)))
        await desk.idle()
        file.unlink()
        await desk.tell(fault(2), judged(fault(2)))
        await asyncio.sleep(0.1)
        assert "cannot be read" in (await desk.rows("waiting"))[0].last_error
        file.write_text(f"{receiver.url}/new")
        await desk.idle()
    assert [request.path for request in receiver.requests] == ["/old", "/new"]


async def test_a_flood_reaches_a_target_that_comes_back(
    desk: Desk, receiver: Receiver, client: httpx2.AsyncClient
) -> None:
    """While it is away few messages are tried; afterwards each incident is told once."""
    receiver.otherwise = Reply(503)
    async with desk.delivering(hook(receiver, client)):
        for number in range(100):
            await desk.tell(fault(number), judged(fault(number)))
        await asyncio.sleep(0.5)
        assert len(receiver.requests) < 40
        receiver.otherwise = Reply()
        before = len(receiver.requests)
        await desk.idle(seconds=20)
    assert len({identity for identity, _ in told(receiver)[before:]}) == len(receiver.requests) - before == 100
