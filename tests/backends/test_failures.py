"""What endpoints do wrong: each has a kind, asking again is bounded, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate

import pytest
from structlog.testing import capture_logs

from aggregator.investigator.llm import BackendFailed, FailureKind
from aggregator.investigator.llm.attempts import Patience
from tests.backends.conftest import QUICK, open_session
from tests.doubles.llm import Broken, Huge, Redirect, Status, Step, call, forever, say

LONG = say("a long answer of many words " * 4, thinking="thinking it over")
PAGE = b"<html><body>502 Bad Gateway</body></html>"


async def failure(
    api: str, step: Step, *, patience: Patience = QUICK, deadline_seconds: float = 20.0
) -> tuple[BackendFailed, int]:
    """How a turn fails at an endpoint that always does the same, and how often it was asked."""
    async with open_session(api, forever(step), patience=patience) as session:
        if api == "openai-chat":
            await session.backend.probe()
        with pytest.raises(BackendFailed) as failed:
            await session.turn(deadline_seconds=deadline_seconds)
        return failed.value, len(session.llm.turns)


@pytest.mark.parametrize(
    ("status", "kind", "asked"),
    [
        (Status(401), FailureKind.AUTHENTICATION, 1),
        (Status(402, kind="billing_error"), FailureKind.QUOTA, 1),
        (Status(403), FailureKind.AUTHENTICATION, 1),
        (Status(404), FailureKind.MODEL_UNKNOWN, 1),
        (Status(404, body=PAGE), FailureKind.UNREADABLE, 1),
        (Status(400, message="messages.3: odd"), FailureKind.INVALID_REQUEST, 1),
        (Status(400, message="prompt is too long: 1000001 tokens > 1000000 maximum"), FailureKind.CONTEXT_OVERFLOW, 1),
        (Status(400, message="This model's maximum context length is 8192 tokens"), FailureKind.CONTEXT_OVERFLOW, 1),
        (Status(400, message="Your credit balance is too low"), FailureKind.QUOTA, 1),
        (Status(400, kind="context_length_exceeded"), FailureKind.CONTEXT_OVERFLOW, 1),
        (Status(413), FailureKind.CONTEXT_OVERFLOW, 1),
        (Status(422), FailureKind.INVALID_REQUEST, 1),
        (Status(429, kind="insufficient_quota"), FailureKind.QUOTA, 1),
        (Status(429), FailureKind.RATE_LIMITED, 5),
        (Status(500), FailureKind.SERVER_ERROR, 5),
        (Status(502, body=PAGE), FailureKind.SERVER_ERROR, 5),
        (Status(503), FailureKind.SERVER_ERROR, 5),
        (Status(529), FailureKind.OVERLOADED, 5),
        (Status(408), FailureKind.SERVER_ERROR, 5),
        (Status(409), FailureKind.SERVER_ERROR, 5),
        (Redirect("http://127.0.0.1:1/v1/elsewhere"), FailureKind.UNREACHABLE, 1),
        (Huge(64 * 2**20, status=500), FailureKind.UNREADABLE, 1),
        (Huge(64 * 2**20), FailureKind.UNREADABLE, 1),
        (Status(200, body=PAGE, headers={"content-type": "text/html"}), FailureKind.INCOMPLETE, 2),
        (Status(200, body=b'{"done": true}'), FailureKind.INCOMPLETE, 2),
    ],
    ids=lambda value: f"{value.code}-{value.kind or value.message[:12]}" if isinstance(value, Status) else None,
)
async def test_each_answer_has_its_kind_and_only_passing_ones_are_asked_again(
    api: str, status: Step, kind: FailureKind, asked: int
) -> None:
    """What would fail again is not asked again."""
    failed, count = await failure(api, status)
    assert (failed.kind, count) == (kind, asked)
    assert "\n" not in str(failed)
    assert len(str(failed)) < 400


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("cut", FailureKind.INCOMPLETE),
        ("end", FailureKind.INCOMPLETE),
        ("garbage", FailureKind.UNREADABLE),
        ("silence", FailureKind.TIMEOUT),
    ],
)
@pytest.mark.parametrize("after_events", [0, 4])
async def test_a_broken_stream_is_discarded_and_asked_for_once_more(
    api: str, how: str, kind: FailureKind, after_events: int
) -> None:
    """Half a turn is no turn; twice is a failure."""
    async with open_session(api, [Broken(LONG, how, after_events), LONG]) as session:
        if api == "openai-chat":
            await session.backend.probe()
        assert (await session.turn()).text == LONG.text
    failed, count = await failure(api, Broken(LONG, how, after_events))
    assert (failed.kind, count) == (kind, 2)


@pytest.mark.parametrize("after_events", range(1, 12))
async def test_a_stream_that_ends_anywhere_before_its_stop_reason_is_no_turn(api: str, after_events: int) -> None:
    """Also inside a call, where the SDKs return normally."""
    step = Broken(call("get_node_info", node="gpu-7", reason="because it fell off the bus " * 6), "end", after_events)
    failed, count = await failure(api, step)
    assert (failed.kind, count) == (FailureKind.INCOMPLETE, 2)


@pytest.mark.parametrize(
    ("api", "kind", "expected", "asked"),
    [
        ("anthropic", "overloaded_error", FailureKind.OVERLOADED, 5),
        ("anthropic", "api_error", FailureKind.SERVER_ERROR, 5),
        ("anthropic", "rate_limit_error", FailureKind.RATE_LIMITED, 5),
        ("anthropic", "invalid_request_error", FailureKind.INVALID_REQUEST, 1),
        ("openai-responses", "server_error", FailureKind.SERVER_ERROR, 5),
        ("openai-responses", "rate_limit_exceeded", FailureKind.RATE_LIMITED, 5),
        ("openai-responses", "context_length_exceeded", FailureKind.CONTEXT_OVERFLOW, 1),
        ("openai-chat", "server_error", FailureKind.SERVER_ERROR, 5),
        ("openai-chat", "insufficient_quota", FailureKind.QUOTA, 1),
    ],
)
async def test_an_error_amid_the_stream_counts_as_if_it_had_come_at_once(
    api: str, kind: str, expected: FailureKind, asked: int
) -> None:
    """The SDKs raise it bare, with status 200, and would not ask again."""
    failed, count = await failure(api, Broken(LONG, "error", kind=kind))
    assert (failed.kind, count) == (expected, asked)


@pytest.mark.parametrize(
    ("code", "kind", "asked"),
    [
        ("server_error", FailureKind.SERVER_ERROR, 5),
        ("rate_limit_exceeded", FailureKind.RATE_LIMITED, 5),
        ("bio_policy", FailureKind.INVALID_REQUEST, 1),
    ],
)
async def test_a_response_that_failed_is_a_failure_of_its_code(code: str, kind: FailureKind, asked: int) -> None:
    """Responses ends such streams in an orderly way."""
    failed, count = await failure("openai-responses", say("so far", stop=f"failed:{code}"))
    assert (failed.kind, count) == (kind, asked)


async def test_after_passing_faults_the_turn_comes(api: str) -> None:
    """Each retry is a line in the log with its kind, and the turn is whole."""
    async with open_session(api, [Status(529), Status(429, retry_after="0"), Broken(LONG, "cut"), LONG]) as session:
        if api == "openai-chat":
            await session.backend.probe()
        with capture_logs() as logs:
            assert (await session.turn()).text == LONG.text
    assert [line["kind"] for line in logs if line["event"] == "llm_asked_again"] == [
        "overloaded",
        "rate_limited",
        "incomplete",
    ]


@pytest.mark.parametrize("header", ["1", "0.9", "date"])
async def test_an_endpoint_is_not_asked_again_before_it_said(api: str, header: str) -> None:
    """Retry-After in seconds, or as a date, is the least wait."""
    given = formatdate(time.time() + 2, usegmt=True) if header == "date" else header
    async with open_session(api, [Status(429, retry_after=given), LONG]) as session:
        if api == "openai-chat":
            await session.backend.probe()
        started = time.monotonic()
        await session.turn()
        assert 0.8 < time.monotonic() - started < 10


@pytest.mark.parametrize("header", ["3600", "4294967", "inf", formatdate(4e9, usegmt=True)])
async def test_who_asks_for_more_patience_than_we_have_is_left_alone(api: str, header: str) -> None:
    """The turn fails at once: neither a long wait nor a request too early."""
    started = time.monotonic()
    failed, count = await failure(api, Status(429, retry_after=header))
    assert (failed.kind, count) == (FailureKind.RATE_LIMITED, 1)
    assert time.monotonic() - started < 10


async def test_the_most_patience_is_ours_to_set(api: str) -> None:
    """Also where the wait would fit into the deadline."""
    hasty = Patience(longest_retry_after_seconds=0.5, first_backoff_seconds=0.01)
    failed, count = await failure(api, Status(429, retry_after="2"), patience=hasty)
    assert (failed.kind, count) == (FailureKind.RATE_LIMITED, 1)


@pytest.mark.parametrize("header", ["-5", "nan", "soon", ""])
async def test_a_wait_that_means_nothing_is_ours_to_choose(api: str, header: str) -> None:
    """Asked again after our own pause."""
    async with open_session(api, [Status(503, retry_after=header), LONG]) as session:
        assert (await session.turn()).text == LONG.text


@pytest.mark.parametrize(
    "step", [Broken(LONG, "silence"), say("slow", chunk_seconds=0.3), Status(429, retry_after="2")]
)
async def test_the_deadline_holds_whatever_the_endpoint_does(api: str, step: Step) -> None:
    """Silence, a drip that is never idle, and waits: the turn fails at its deadline or before."""
    patient = Patience(idle_seconds=30.0, first_backoff_seconds=0.01)
    started = time.monotonic()
    async with open_session(api, forever(step), patience=patient) as session:
        if api == "openai-chat":
            await session.backend.probe()
        begun = time.monotonic()
        with pytest.raises(BackendFailed) as failed:
            await session.turn(deadline_seconds=0.7)
        assert time.monotonic() - begun < 2
    assert failed.value.kind in (FailureKind.TIMEOUT, FailureKind.RATE_LIMITED)
    assert time.monotonic() - started < 20


async def test_nobody_at_the_address_is_unreachable(api: str) -> None:
    """Asked again as often as patience allows, then said."""
    async with open_session(api, []) as session:
        session.llm.stop()
        with pytest.raises(BackendFailed) as failed:
            await session.turn()
    assert failed.value.kind is FailureKind.UNREACHABLE


async def test_cancelling_a_turn_ends_it_at_once(api: str) -> None:
    """Shutdown waits for no endpoint."""
    async with open_session(api, Broken(LONG, "silence"), patience=Patience(idle_seconds=30.0)) as session:
        task = asyncio.create_task(session.turn())
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(2):
                await task


@pytest.mark.parametrize("api", ["anthropic"])
async def test_pings_are_life(api: str) -> None:
    """A stream whose bytes keep coming is not idle, however long it thinks."""
    async with open_session(api, say("slow", chunk_seconds=0.3), patience=Patience(idle_seconds=0.6)) as session:
        assert (await session.turn()).text == "slow"


async def test_the_largest_request_is_told_as_overflow(api: str) -> None:
    """The loop can then shorten: refused by size as by tokens."""
    async with open_session(api, say("x"), context_tokens=1100) as session:
        if api == "openai-chat":
            await session.backend.probe()
        with pytest.raises(BackendFailed) as failed:
            await session.turn(system="word " * 4000)
        assert failed.value.kind is FailureKind.CONTEXT_OVERFLOW
