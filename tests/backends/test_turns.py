"""What a model says arrives whole, and goes back as it came."""

from __future__ import annotations

import json

import pytest

from aggregator.investigator.llm import Stop, Usage, UserEntry
from tests.backends.conftest import CONVERSATION, MODELS, open_session, two_rounds
from tests.doubles.llm import Call, Reply, Tokens, answer, call, calls, say


async def test_a_conversation_of_three_rounds_is_accepted_by_the_endpoint(api: str) -> None:
    """Nothing is refused: results match calls, thinking and encrypted reasoning come back unaltered."""
    async with open_session(api, two_rounds()) as session:
        turns = await session.until_answered()
        assert [turn.stop for turn in turns] == [Stop.TOOLS, Stop.TOOLS, Stop.END]
        assert json.loads(turns[-1].text) == {"severity": "critical", "confidence": 0.9}
        assert [call.name for call in turns[1].calls] == ["query_prometheus", "get_node_info"]
        assert turns[1].calls[0].arguments == {"query": "up"}
        assert {turn.model for turn in turns} == {MODELS[api]}
        assert session.llm.refused == []


async def test_a_turn_goes_back_with_all_it_said(api: str) -> None:
    """Text and calls with their arguments, in the order in which they came."""
    wanted = calls(
        Call("get_node_info", {"node": "first"}), Call("query_prometheus", {"query": "second"}), text="before both"
    )
    async with open_session(api, [wanted, answer({})]) as session:
        await session.until_answered()
        sent = json.dumps(session.llm.turns[1].body[CONVERSATION[api]])
    places = [sent.find(word) for word in ("before both", "get_node_info", "first", "query_prometheus", "second")]
    assert -1 not in places
    assert places[0] < min(places[1:3]) <= max(places[1:3]) < min(places[3:])


@pytest.mark.parametrize("api", ["anthropic", "openai-responses"])
async def test_what_a_newer_api_adds_goes_back_byte_exact(api: str) -> None:
    """Fields and numbers that this version does not know are part of what the model said."""
    extra = {"newer": {"ratio": 1.0, "list": [1, None, "ü\u2028\x00"]}}
    script = [
        Reply(thinking="Hm…\n\u202e", redacted="b64==", calls=(Call("get_node_info", {"node": "ü"}),), extra=extra),
        answer({}),
    ]
    async with open_session(api, script) as session:
        turn = await session.turn()
        assert all(block["newer"] == extra["newer"] for block in turn.entry.raw)
        session.answer(turn.calls)
        await session.turn()
        sent = session.llm.turns[1].body
        assert json.dumps(extra["newer"]) in json.dumps(sent)


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        ("end_turn", Stop.END),
        ("stop_sequence", Stop.END),
        ("max_tokens", Stop.MAX_TOKENS),
        ("refusal", Stop.REFUSAL),
        ("pause_turn", Stop.PAUSE),
        ("model_context_window_exceeded", Stop.CONTEXT_OVERFLOW),
        ("of_next_year", Stop.END),
    ],
)
async def test_stop_reasons_of_messages(reason: str, stop: Stop) -> None:
    """Every reason that Anthropic documents has its word, an unknown one goes by what the turn holds."""
    async with open_session("anthropic", say("so far", stop=reason)) as session:
        assert (await session.turn()).stop is stop


@pytest.mark.parametrize(
    ("reply", "stop"),
    [
        (say("so far"), Stop.END),
        (call("get_node_info"), Stop.TOOLS),
        (say("so far", stop="max_output_tokens"), Stop.MAX_TOKENS),
        (say("so far", stop="content_filter"), Stop.REFUSAL),
        (say("so far", stop="of_next_year"), Stop.MAX_TOKENS),
        (Reply(refusal="I can't help with that."), Stop.REFUSAL),
    ],
)
async def test_stop_reasons_of_responses(reply: Reply, stop: Stop) -> None:
    """Complete, incomplete for each reason, refused."""
    async with open_session("openai-responses", reply) as session:
        assert (await session.turn()).stop is stop


@pytest.mark.parametrize(
    ("reply", "stop"),
    [
        (say("so far"), Stop.END),
        (call("get_node_info"), Stop.TOOLS),
        (Reply(calls=(Call("get_node_info"),), stop="stop"), Stop.TOOLS),  # Ollama
        (say("so far", stop="length"), Stop.MAX_TOKENS),
        (say("so far", stop="content_filter"), Stop.REFUSAL),
        (Reply(refusal="I can't help with that."), Stop.REFUSAL),
        (say("so far", stop="of_next_year"), Stop.END),
    ],
)
async def test_stop_reasons_of_chat(reply: Reply, stop: Stop) -> None:
    """Those of compatible endpoints, their slips included."""
    async with open_session("openai-chat", reply) as session:
        assert (await session.turn()).stop is stop


@pytest.mark.parametrize("written", ['{"node": "gp', "[1]", '"gpu-7"', '{"n": NaN}', "{" * 5000, "null"])
async def test_arguments_that_are_no_object_are_told_and_can_be_answered(api: str, written: str) -> None:
    """The call arrives without arguments and with what was written; its turn goes back and is accepted."""
    async with open_session(api, [calls(Call("get_node_info", written)), answer({})]) as session:
        turn = await session.turn()
        assert turn.calls[0].arguments is None
        assert turn.calls[0].raw == written
        session.answer(turn.calls, "arguments must be an object")
        assert (await session.turn()).stop is Stop.END


async def test_a_call_without_arguments_has_none(api: str) -> None:
    """Nothing written is the empty object."""
    async with open_session(api, [calls(Call("get_node_info", "")), answer({})]) as session:
        turn = await session.turn()
        assert [(one.name, one.arguments) for one in turn.calls] == [("get_node_info", {})]
        session.answer(turn.calls)
        await session.turn()


async def test_tools_nobody_has_are_calls_all_the_same(api: str) -> None:
    """Whether a tool exists is the loop's to say."""
    async with open_session(api, call("rm_rf", path="/")) as session:
        turn = await session.turn()
        assert [(one.name, one.arguments) for one in turn.calls] == [("rm_rf", {"path": "/"})]


async def test_usage_is_the_endpoints_own(api: str) -> None:
    """Input counts cached tokens and those written to the cache; output counts reasoning."""
    usage = Tokens(input=1000, output=70, cached=600, cache_written=0 if api == "openai-chat" else 300)
    async with open_session(api, say("done", usage=usage)) as session:
        turn = await session.turn()
        assert turn.usage == Usage(1000, 600, usage.cache_written, 70)


async def test_text_is_told_as_it_comes(api: str) -> None:
    """Piece by piece; thinking is not text."""
    said: list[str] = []
    async with open_session(api, say("one two three four five", thinking="never shown", chunk_chars=4)) as session:
        turn = await session.turn(said.append)
    assert len(said) > 3
    assert "".join(said) == turn.text == "one two three four five"


@pytest.mark.parametrize(
    ("api", "reply"),
    [
        ("anthropic", Reply(thinking="and so", stop="max_tokens", extra={"signature": ""})),
        ("anthropic", Reply(text=" \n", stop="max_tokens")),
        ("openai-responses", Reply(thinking="and so", stop="max_output_tokens", extra={"encrypted_content": ""})),
        ("openai-chat", Reply(text=" \n", stop="length")),
    ],
)
async def test_a_turn_that_was_cut_before_it_said_anything_leaves_no_hole(api: str, reply: Reply) -> None:
    """Blank text and unsealed thinking are taken from nobody: they are left out, and the conversation goes on."""
    async with open_session(api, [reply, answer({})]) as session:
        turn = await session.turn()
        assert turn.stop is Stop.MAX_TOKENS
        assert turn.entry.raw == ()
        session.entries.append(UserEntry("Answer now."))
        assert (await session.turn()).stop is Stop.END


async def test_a_paused_turn_goes_on_from_itself() -> None:
    """The turn is sent back as the last message, which is the one prefill there is."""
    async with open_session("anthropic", [say("first half,", stop="pause_turn"), say(" second half")]) as session:
        assert (await session.turn()).stop is Stop.PAUSE
        assert (await session.turn()).text == " second half"
        assert session.llm.turns[1].body["messages"][-1]["role"] == "assistant"


async def test_calls_get_ids_of_their_own_where_the_endpoint_gives_none() -> None:
    """Some compatible endpoints leave ids out: those made up differ within a turn and between turns."""
    step = calls(Call("get_node_info", {}, id=None), Call("query_prometheus", {}, id=None))
    async with open_session("openai-chat", [step, step, answer({})]) as session:
        turns = await session.until_answered()
        assert len({one.id for turn in turns for one in turn.calls}) == 4
