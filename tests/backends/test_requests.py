"""What is sent: the same beginning on every turn, cached, nothing that endpoints refuse or that the environment says."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest

from aggregator.investigator.llm import UserEntry
from tests.backends.conftest import CONVERSATION, SCHEMA, TOOLS, open_session, two_rounds
from tests.doubles.llm import KEY, Reply, answer, calls, say
from tests.doubles.llm.script import Call

FORBIDDEN = ("temperature", "top_p", "top_k", "tool_choice", "stop_sequences", "previous_response_id")


def without_marks(value: Any) -> Any:
    """The same request without marks of the cache."""
    if isinstance(value, dict):
        return {name: without_marks(inner) for name, inner in value.items() if name != "cache_control"}
    return [without_marks(inner) for inner in value] if isinstance(value, list) else value


async def test_each_request_begins_with_the_whole_of_the_one_before(api: str) -> None:
    """Tools, system, thinking, format and all messages stay, byte for byte; the conversation only grows."""
    async with open_session(api, two_rounds()) as session:
        await session.until_answered()
        session.entries.append(UserEntry("The answer lacks a quote. Once more."))
        bodies = [without_marks(turn.body) for turn in session.llm.turns]
    assert len(bodies) == 3
    said = CONVERSATION[api]
    for before, after in itertools.pairwise(bodies):
        grown = copy.deepcopy(after)
        grown[said] = grown[said][: len(before[said])]
        assert json.dumps(grown) == json.dumps(before)
        assert len(after[said]) > len(before[said])


async def test_nine_tenths_of_what_was_read_before_come_from_the_cache(api: str) -> None:
    """By the endpoint's own count, also where one turn brings more results than a breakpoint looks back."""
    wide = calls(*(Call("get_node_info", {"node": f"gpu-{n}"}) for n in range(24)))
    async with open_session(api, [wide, wide, answer({})]) as session:
        turns = await session.until_answered()
    for before, after in itertools.pairwise(turns):
        assert after.usage.cached_tokens > 0.9 * before.usage.input_tokens


async def test_no_parameter_that_endpoints_refuse(api: str) -> None:
    """Neither sampling nor forced tools; tools are not strict and take the same form on each turn."""
    async with open_session(api, two_rounds()) as session:
        await session.until_answered()
        for turn in session.llm.turns:
            assert not set(FORBIDDEN) & turn.body.keys()
            assert [tool.get("function", tool)["name"] for tool in turn.body["tools"]] == [tool.name for tool in TOOLS]
            assert not any(tool.get("function", tool).get("strict") for tool in turn.body["tools"])


async def test_the_answers_schema_goes_along_on_every_turn_without_its_bounds(api: str) -> None:
    """Endpoints refuse bounds: they stand in the description, where the model reads them."""
    async with open_session(api, two_rounds()) as session:
        await session.until_answered()
        bodies = [turn.body for turn in session.llm.turns]
    place = {
        "anthropic": lambda body: body["output_config"]["format"],
        "openai-responses": lambda body: body["text"]["format"],
        "openai-chat": lambda body: body["response_format"]["json_schema"],
    }[api]
    for body in bodies:
        schema = place(body)["schema"]
        assert schema["properties"]["confidence"] == {"type": "number", "description": "(minimum: 0, maximum: 1)"}
        assert schema["properties"]["severity"] == SCHEMA["properties"]["severity"]


@pytest.mark.parametrize(("asked", "sent"), [(16_384, 16_384), (1_000_000, 128_000)])
async def test_as_many_tokens_as_asked_for_but_no_more_than_the_model_has(asked: int, sent: int) -> None:
    """Beyond its limit an endpoint refuses the request."""
    async with open_session("anthropic", say("x")) as session:
        await session.turn(max_tokens=asked)
        assert session.llm.turns[0].body["max_tokens"] == sent


async def test_anthropic_marks_where_the_cache_is_written() -> None:
    """The end of the system text, and our last two messages; never more than four marks."""
    async with open_session("anthropic", two_rounds()) as session:
        await session.until_answered()
        body = session.llm.turns[2].body
    ours = [message for message in body["messages"] if message["role"] == "user"]
    assert ["cache_control" in message["content"][-1] for message in ours] == [False, True, True]
    assert "cache_control" in body["system"][-1]
    assert json.dumps(body).count("cache_control") == 3
    assert body["thinking"] == {"type": "adaptive", "display": "summarized"}


async def test_openai_stores_nothing_and_caches_by_what_incidents_share() -> None:
    """The cache key is that of instructions and tools: the incident has no part in it."""
    keys = []
    for incident in ("first", "second"):
        async with open_session("openai-responses", say("x")) as session:
            session.entries[:] = [UserEntry(incident)]
            await session.turn()
            body = session.llm.turns[0].body
        assert body["store"] is False
        assert body["include"] == ["reasoning.encrypted_content"]
        keys.append(body["prompt_cache_key"])
    assert keys[0] == keys[1]


HOSTILE = {
    "ANTHROPIC_API_KEY": "sk-ant-ambient",
    "ANTHROPIC_AUTH_TOKEN": "ambient-token",
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:1",
    "ANTHROPIC_CUSTOM_HEADERS": "authorization: Bearer ambient\nx-api-key: ambient\nx-leak: ambient",
    "OPENAI_API_KEY": "sk-ambient",
    "OPENAI_ADMIN_KEY": "sk-admin-ambient",
    "OPENAI_BASE_URL": "http://127.0.0.1:1",
    "OPENAI_ORG_ID": "org-ambient",
    "OPENAI_PROJECT_ID": "proj-ambient",
    "OPENAI_CUSTOM_HEADERS": "Authorization: Bearer ambient\nx-leak: ambient",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "HTTPS_PROXY": "http://127.0.0.1:1",
    "ALL_PROXY": "http://127.0.0.1:1",
    "NO_PROXY": "",
}


@pytest.mark.parametrize("key", [KEY, ""])
async def test_the_environment_of_the_sdks_has_no_part_in_it(
    api: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No ambient key, URL, header or proxy; without a key of ours none is sent at all."""
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.lower(), value)
    async with open_session(api, say("x"), key=key, accepts=key or None) as session:
        await session.backend.probe()
        await session.turn()
        requests = session.llm.requests
    assert len(requests) >= 2
    for request in requests:
        assert "ambient" not in json.dumps(dict(request.headers))
        assert request.headers.get("authorization") == (f"Bearer {KEY}" if key else None)
        assert "x-api-key" not in request.headers


async def test_headers_are_few(api: str) -> None:
    """Nothing about this machine travels along."""
    async with open_session(api, Reply(text="x")) as session:
        await session.turn()
        sent = set(session.llm.turns[0].headers)
    assert sent <= {
        "host",
        "accept",
        "accept-encoding",
        "content-type",
        "content-length",
        "user-agent",
        "authorization",
        "anthropic-version",
    }
