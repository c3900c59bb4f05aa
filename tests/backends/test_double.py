"""The scripted endpoint refuses what real ones refuse: otherwise no test here would prove anything."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tests.backends.conftest import open_session
from tests.doubles.llm import KEY, Reply, ScriptedLlm, answer, call, calls, for_each_conversation, say
from tests.doubles.llm.script import Call

PATHS = {"anthropic": "/v1/messages", "openai-responses": "/v1/responses", "openai-chat": "/v1/chat/completions"}
Body = dict[str, Any]
ROUND = Reply(
    thinking="Look first.", calls=(Call("get_node_info", {"node": "a"}), Call("query_prometheus", {"query": "up"}))
)


def set_(name: str, value: Any) -> Callable[[Body], None]:
    return lambda body: body.__setitem__(name, value)


def drop(where: str, at: int) -> Callable[[Body], None]:
    return lambda body: body[where].pop(at)


def cut_first_result(body: Body) -> None:
    body["messages"][2]["content"].pop(0)


def strict_tools(body: Body) -> None:
    tool = body["tools"][0]
    body["tools"] = [{**tool, "name": f"tool_{n}", "strict": True} for n in range(13)]


def retold(body: Body) -> None:
    body["messages"][1]["content"][0]["thinking"] = "Look later."


def mark_all(body: Body) -> None:
    for block in [*body["tools"], *body["messages"][2]["content"]]:
        block["cache_control"] = {"type": "ephemeral"}


MESSAGES: list[tuple[str, Callable[[Body], Any], str]] = [
    ("forced tool", set_("tool_choice", {"type": "any"}), "Forced tool use"),
    ("one forced tool", set_("tool_choice", {"type": "tool", "name": "get_node_info"}), "Forced tool use"),
    ("temperature", set_("temperature", 0), "temperature"),
    ("top_p", set_("top_p", 0.9), "top_p"),
    ("unknown parameter", set_("max_tool_calls", 3), "Extra inputs are not permitted"),
    ("thinking budget", set_("thinking", {"type": "enabled", "budget_tokens": 2000}), "thinking.type.enabled"),
    ("prefill", lambda body: body["messages"].append({"role": "assistant", "content": "{"}), "prefill"),
    ("orphan result", lambda body: body["messages"].pop(1), "unexpected `tool_use_id`"),
    ("a result missing", cut_first_result, "without `tool_result` blocks"),
    ("no results", lambda body: body["messages"][2].update(content="Go on."), "without `tool_result` blocks"),
    ("thinking missing", lambda body: body["messages"][1]["content"].pop(0), "Expected `thinking`"),
    ("thinking altered", retold, "Invalid `signature`"),
    ("duplicate tools", lambda body: body["tools"].append(body["tools"][0]), "must be unique"),
    ("strict tools", strict_tools, "compiled grammar is too large"),
    ("five breakpoints", mark_all, "maximum of 4 blocks"),
    ("blank text", lambda body: body["messages"][0]["content"].append({"type": "text", "text": " "}), "non-whitespace"),
    (
        "bounded schema",
        lambda body: body["output_config"]["format"]["schema"]["properties"]["confidence"].update(minimum=0),
        "'minimum' is not supported",
    ),
    (
        "open schema",
        lambda body: body["output_config"]["format"]["schema"].pop("additionalProperties"),
        "additionalProperties",
    ),
    ("too much output", set_("max_tokens", 1_000_000), "maximum allowed number of output tokens"),
    ("not streamed", set_("stream", False), "streams only"),
]
RESPONSES: list[tuple[str, Callable[[Body], Any], str]] = [
    ("forced tool", set_("tool_choice", "required"), "Forced tool choice"),
    ("temperature", set_("temperature", 0), "'temperature'"),
    ("unknown parameter", set_("max_tokens", 3), "Unknown parameter: 'max_tokens'"),
    ("stored", set_("store", True), "'store' must be false"),
    ("stored by default", lambda body: body.pop("store"), "'store' must be false"),
    ("no encrypted reasoning", set_("include", []), "reasoning.encrypted_content"),
    ("orphan output", drop("input", 2), "No tool call found"),
    ("an output missing", drop("input", 4), "No tool output found"),
    ("reasoning missing", drop("input", 1), "without its required 'reasoning' item"),
    ("reasoning altered", lambda body: body["input"][1].update(encrypted_content="x"), "could not be verified"),
    ("duplicate tools", lambda body: body["tools"].append(body["tools"][0]), "Duplicate function name"),
    ("strict tools", strict_tools, "compiled grammar is too large"),
    ("prefill", lambda body: body["input"].append({"role": "assistant", "content": "{"}), "must not end with"),
    ("open schema", lambda body: body["text"]["format"]["schema"].pop("required"), "must name every property"),
]
CHAT: list[tuple[str, Callable[[Body], Any], str]] = [
    ("forced tool", set_("tool_choice", "required"), "Forced tool choice"),
    ("temperature", set_("temperature", 0), "'temperature'"),
    ("unknown parameter", set_("thinking", {}), "Unknown parameter: 'thinking'"),
    ("orphan result", drop("messages", 2), "must be a response to"),
    ("a result missing", drop("messages", 3), "did not have response messages"),
    (
        "arguments that are no JSON",
        lambda body: body["messages"][2]["tool_calls"][0]["function"].update(arguments="{"),
        "no JSON",
    ),
    ("prefill", lambda body: body["messages"].append({"role": "assistant", "content": "{"}), "must end with"),
    ("duplicate tools", lambda body: body["tools"].append(body["tools"][0]), "Duplicate function name"),
]
REFUSED = [
    pytest.param(api, change, words, id=f"{api}: {name}")
    for api, cases in (("anthropic", MESSAGES), ("openai-responses", RESPONSES), ("openai-chat", CHAT))
    for name, change, words in cases
]


def post(llm: ScriptedLlm, path: str, body: Body) -> httpx2.Response:
    headers = {"authorization": f"Bearer {KEY}", "anthropic-version": "2023-06-01"}
    return httpx2.post(f"{llm.url}{path}", json=body, headers=headers, trust_env=False)


@pytest.mark.parametrize(("api", "change", "words"), REFUSED)
async def test_one_wrong_thing_in_a_good_request_is_refused(
    api: str, change: Callable[[Body], Any], words: str
) -> None:
    """With 400, in the shape and about in the words of the real endpoint; the same request without it is taken."""
    async with open_session(api, [ROUND, *[answer({})] * 2]) as session:
        await session.until_answered()
        good = session.llm.turns[1].body
        changed = copy.deepcopy(good)
        change(changed)
        refused = post(session.llm, PATHS[api], changed)
        taken = post(session.llm, PATHS[api], good)
    assert refused.status_code == 400
    assert words in refused.json()["error"]["message"]
    assert taken.status_code == 200


@pytest.mark.parametrize("path", PATHS.values())
def test_size_key_and_model_are_checked(path: str) -> None:
    """413, 401 and 404 as real endpoints have them."""
    body = {"model": "claude-sonnet-5-5", "stream": True, "messages": [], "input": []}
    with ScriptedLlm(say("x"), max_bytes=1000) as llm:
        assert post(llm, path, {**body, "metadata": {"x": "y" * 1000}}).status_code == 413
        assert post(llm, path, {**body, "model": "nobody"}).status_code == 404
        assert httpx2.post(f"{llm.url}{path}", json=body, trust_env=False).status_code == 401


async def test_a_script_at_its_end_fails_the_test() -> None:
    """A loop that asks too often is found out."""
    llm = ScriptedLlm([])
    with llm:
        body = {"model": "gpt-5.5", "stream": True, "messages": [{"role": "user", "content": "Hello?"}]}
        assert "the script is at its end" in post(llm, PATHS["openai-chat"], body).text
        assert llm.problems == ["request 0: the script has 0 steps"]
        with pytest.raises(AssertionError, match="the script has 0 steps"):
            llm.__exit__(None, None, None)
        llm.problems.clear()


async def test_a_script_may_be_a_function_of_what_was_asked(api: str) -> None:
    """It sees system, tools, results and turns, whatever the wire format."""
    seen = []

    def script(asked: Any) -> Reply:
        seen.append(asked)
        return (
            calls(Call("get_node_info", {"node": "a"}, id="c1")) if asked.turns == 0 else answer(asked.result_of("c1"))
        )

    async with open_session(api, script) as session:
        turns = await session.until_answered()
    assert "all is well" in turns[-1].text
    assert [asked.turns for asked in seen] == [0, 1]
    assert seen[0].tools == ("get_node_info", "query_prometheus")
    assert seen[0].user_texts[0].startswith("GPU 0000:3a:00.0")
    assert seen[0].system.startswith("You look into faults")
    assert seen[1].results[0][0] == "c1"
    assert seen[1].schema is not None


async def test_conversations_side_by_side_each_take_their_own_steps(api: str) -> None:
    """They are told apart by their first text."""
    async with open_session(api, for_each_conversation(call("get_node_info"), answer({}))) as session:
        first = await session.turn()
        other = [*session.entries]
        session.entries[:] = [type(other[0])("another incident")]
        assert (await session.turn()).calls
        session.entries[:] = other
        session.answer(first.calls)
        assert (await session.turn()).text == "{}"


def test_it_serves_in_a_process_of_its_own() -> None:
    """For whole programs under test: it prints its URL and ends when asked to."""
    command = [sys.executable, "-m", "tests.doubles.llm", "tests.backends.test_double:ROUND"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        listed = httpx2.get(f"{url}/v1/models", headers={"authorization": f"Bearer {KEY}"}, trust_env=False)
        process.terminate()
        assert process.wait(timeout=20) == 0
    assert "local-model" in json.dumps(listed.json())
