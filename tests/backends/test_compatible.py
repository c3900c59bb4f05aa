"""Endpoints that only resemble OpenAI's: what they take is tried once, what they lack is put into words."""

from __future__ import annotations

import json

import pytest

from aggregator.investigator.llm import BackendFailed, FailureKind, Stop
from tests.backends.conftest import SCHEMA, TOOLS, open_session
from tests.doubles.llm import Status, answer, call, say

FINAL = {"severity": "critical", "confidence": 0.9}
IN_TEXT = '```json\n{"tool_calls": [{"name": "get_node_info", "arguments": {"node": "gpu-7"}}, {"name": "query_prometheus"}]}\n```'


@pytest.mark.parametrize(
    ("without", "trials", "tools", "schema"),
    [
        ((), 1, True, True),
        (("schema",), 2, True, False),
        (("schema_with_tools",), 2, True, False),
        (("tools",), 3, False, False),
        (("calls",), 3, False, False),
        (("tools", "schema", "models"), 3, False, False),
    ],
    ids=str,
)
async def test_what_an_endpoint_takes_is_tried_once(
    without: tuple[str, ...], trials: int, tools: bool, schema: bool
) -> None:
    """A schema that keeps a model from calling tools is not sent; the trial is not repeated."""
    script = [call("get_node_info", node="gpu-7") if tools else say(IN_TEXT), answer(FINAL)]
    async with open_session("openai-chat", script, without=without) as session:
        capabilities = await session.backend.probe()
        turns = await session.until_answered()
        await session.backend.probe()
        tried = [
            one for one in session.llm.requests if one.path == "/v1/chat/completions" and one not in session.llm.turns
        ]
        bodies = [turn.body for turn in session.llm.turns]
    assert len(tried) == trials
    assert capabilities.structured_output is schema
    assert json.loads(turns[-1].text) == FINAL
    for body in bodies:
        assert ("tools" in body, "response_format" in body) == (tools, schema)
        system = body["messages"][0]["content"]
        assert json.dumps(SCHEMA, separators=(",", ":")) in system
        assert all((tool.description in system) is not tools for tool in TOOLS)


async def test_calls_in_text_are_calls_and_their_results_are_told() -> None:
    """Ids tell them apart; a call that is none is told as such; the fence small models put around JSON is off."""
    odd = json.dumps({"tool_calls": [{"name": "get_node_info", "arguments": "gpu-7"}, 7]})
    final = f"```\n{json.dumps(FINAL)}\n```"
    async with open_session("openai-chat", [say(IN_TEXT), say(odd), say(final)], without={"tools"}) as session:
        turns = await session.until_answered()
        last = session.llm.turns[-1].body["messages"]
    assert [(one.name, one.arguments) for one in turns[0].calls] == [
        ("get_node_info", {"node": "gpu-7"}),
        ("query_prometheus", {}),
    ]
    assert [(one.name, one.arguments) for one in turns[1].calls] == [("get_node_info", None), ("", None)]
    assert len({one.id for turn in turns for one in turn.calls}) == 4
    assert [turn.stop for turn in turns] == [Stop.TOOLS, Stop.TOOLS, Stop.END]
    assert json.loads(turns[-1].text) == FINAL
    assert turns[0].calls[0].id in last[3]["content"]
    assert [message["role"] for message in last] == ["system", "user", "assistant", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("without", "kind"), [((), FailureKind.MODEL_UNKNOWN), (("models",), FailureKind.MODEL_UNKNOWN)]
)
async def test_a_model_that_the_endpoint_lacks_is_told(without: tuple[str, ...], kind: FailureKind) -> None:
    """By its list, or where it has none by its answer."""
    async with open_session("openai-chat", say("x"), model="gpt-5.5-turbo", without=without) as session:
        with pytest.raises(BackendFailed) as failed:
            await session.backend.probe()
    assert failed.value.kind is kind


async def test_the_window_an_endpoint_tells_is_believed() -> None:
    """vLLM adds it to its list of models."""
    async with open_session("openai-chat", [], context_tokens=8192) as session:
        assert (await session.backend.probe()).max_input_tokens == 8192


async def test_an_endpoint_that_is_down_is_not_taken_for_one_that_lacks_tools() -> None:
    """A trial that failed for another reason decides nothing: the next turn tries again."""
    async with open_session("openai-chat", [say("x")], on_trial=Status(503)) as session:
        for ask in (session.backend.probe, session.turn):
            with pytest.raises(BackendFailed) as failed:
                await ask()
            assert failed.value.kind is FailureKind.SERVER_ERROR
        tries = [one for one in session.llm.requests if one.probe]
        session.llm.on_trial = Status(403)
        with pytest.raises(BackendFailed):
            await session.turn()
        assert len([one for one in session.llm.requests if one.probe]) == len(tries) + 1
        session.llm.on_trial = None
        assert (await session.backend.probe()).structured_output
