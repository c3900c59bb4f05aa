"""Whatever a model asks and whatever a tool does: every call gets an answer, in order, in time, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from aggregator.investigator.items import Shown
from aggregator.investigator.llm import ToolCall
from aggregator.investigator.sources import Answer, Registry, Scope, Tool, Unavailable
from aggregator.investigator.toolbox import MAX_CALLS, Answered, Toolbox
from aggregator.model import Trust
from tests.investigator.conftest import Source, gate_of, incident_of, registry_of, scope_of, tool


def box(*tools: Tool, bound: int = 1_000, why_not: str = "") -> Toolbox:
    return Toolbox(registry_of(*tools, why_not=why_not), scope_of(incident_of()), gate_of(), Shown(), bound)


def ask(name: str, raw: str = "", number: int = 1, **arguments: Any) -> ToolCall:
    return ToolCall(f"call_{number}", name, None if raw else arguments, raw)


async def one(toolbox: Toolbox, call: ToolCall, **fields: Any) -> Answered:
    (answered,) = await toolbox.answer([call], **fields)
    return answered


async def test_an_answer_becomes_an_item_with_its_class() -> None:
    """Framed, with an id that claims can cite."""
    answered = await one(box(tool("get_pod_logs", Answer("a line", Trust.TENANT))), ask("get_pod_logs", query="x"))
    assert answered.item is not None
    assert (answered.item.id, answered.item.text, answered.item.trust) == ("t1", "a line", Trust.TENANT)
    assert answered.text == '<<<t1 00000001 | tenant | get_pod_logs {"query": "x"}>>>\na line\n<<<end t1 00000001>>>'


async def _raises(scope: Scope, arguments: Mapping[str, Any]) -> Answer:
    raise RuntimeError("api_key=abcdef123456 went wrong")


async def _unavailable(scope: Scope, arguments: Mapping[str, Any]) -> Answer:
    raise Unavailable("nobody listens")


async def _cancels(scope: Scope, arguments: Mapping[str, Any]) -> Answer:
    raise asyncio.CancelledError


async def _hangs(scope: Scope, arguments: Mapping[str, Any]) -> Answer:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if "deaf" not in arguments.get("query", ""):
                raise


async def _bad_type(scope: Scope, arguments: Mapping[str, Any]) -> Answer:
    class Odd:
        def __str__(self) -> str:
            raise ValueError("no words")

    return Answer(Odd(), Trust.CLUSTER)


@pytest.mark.parametrize(
    ("call", "word", "says"),
    [
        pytest.param(
            ask("no_such"),
            "unknown_tool",
            "Tools: cancels, hangs, raises, read_result, strange, unavailable, wrong",
            id="unknown",
        ),
        pytest.param(ask("raises", raw='{"query": '), "bad_arguments", "not one JSON object", id="malformed"),
        pytest.param(ask("raises", query=5), "bad_arguments", "not of type 'string'", id="wrong type"),
        pytest.param(ask("raises", other="x"), "bad_arguments", '"query"', id="unknown parameter"),
        pytest.param(ask("raises", query="x" * 30_000), "bad_arguments", "too long", id="too long"),
        pytest.param(ask("read_result"), "bad_arguments", "'id' is a required property", id="page of nothing"),
        pytest.param(ask("read_result", id="t9"), "bad_arguments", "no result of that id", id="page of no result"),
        pytest.param(ask("raises"), "failed", "RuntimeError", id="raises"),
        pytest.param(ask("unavailable"), "unavailable", "nobody listens", id="unavailable"),
        pytest.param(ask("cancels"), "failed", "gave up", id="cancels itself"),
        pytest.param(ask("hangs"), "timeout", "within 0.05 s", id="hangs"),
        pytest.param(ask("strange"), "failed", "no words", id="odd value"),
        pytest.param(ask("wrong"), "error", "namespace?", id="asks for something else"),
    ],
)
async def test_what_goes_wrong_is_an_answer_that_nothing_can_cite(call: ToolCall, word: str, says: str) -> None:
    """It says what to do; it holds no secret; it has no id."""
    toolbox = box(
        tool("raises", _raises), tool("unavailable", _unavailable), tool("cancels", _cancels), tool("strange", _bad_type),
        tool("hangs", _hangs, timeout_seconds=0.05), tool("wrong", Answer("which namespace?", Trust.CLUSTER, is_error=True)),
    )  # fmt: skip
    answered = await one(toolbox, call)
    assert (answered.error, answered.item) == (word, None)
    assert says in answered.text
    assert answered.text.startswith("<<<error ")
    assert "abcdef123456" not in answered.text
    assert (call.name in toolbox.unchecked) == (word in ("failed", "unavailable", "timeout"))


async def test_a_tool_that_is_deaf_to_being_stopped_is_left_behind() -> None:
    """The investigation goes on."""
    async with asyncio.timeout(3):
        answered = await one(box(tool("hangs", _hangs, timeout_seconds=0.05)), ask("hangs", query="deaf"))
    assert answered.error == "timeout"
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.get_coro().close()  # type: ignore[union-attr]  # it would outlive the test


async def test_one_failure_costs_its_neighbours_nothing() -> None:
    """Answers stand in the order of the calls."""
    toolbox = box(tool("raises", _raises), tool("query_prometheus", "93"))
    found = await toolbox.answer([ask("raises"), ask("query_prometheus", number=2), ask("no_such", number=3)])
    assert [(one.call.id, one.error) for one in found] == [
        ("call_1", "failed"),
        ("call_2", ""),
        ("call_3", "unknown_tool"),
    ]


async def test_what_works_later_was_checked() -> None:
    """A source that was down for one call alone does not stand on the assessment."""
    up = iter([False, True])

    async def sometimes(scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        if not next(up):
            raise Unavailable("restarting")
        return Answer("93", Trust.CLUSTER)

    toolbox = box(tool("query_prometheus", sometimes))
    await one(toolbox, ask("query_prometheus"))
    assert toolbox.unchecked == {"query_prometheus": "It cannot be asked now: restarting"}
    assert (await one(toolbox, ask("query_prometheus"))).item is not None
    assert toolbox.unchecked == {}


async def test_the_same_call_is_asked_once() -> None:
    """In one turn or in two, whatever the order of its arguments; a live tool is asked again in the next turn."""
    asked: list[str] = []

    async def note(scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        asked.append(str(arguments.get("query")))
        return Answer("93", Trust.HARDWARE)

    toolbox = box(tool("quiet", note), tool("live", note, live=True))
    first = await toolbox.answer(
        [ask("quiet", query="q"), ask("live", query="l"), ask("quiet", query="q"), ask("live", query="l")]
    )
    again = await toolbox.answer([ask("quiet", query="q"), ask("live", query="l")])
    assert asked == ["q", "l", "l"]
    assert [one.item.id if one.item else one.repeated for one in (*first, *again)] == [
        "t1",
        "t2",
        True,
        True,
        True,
        "t3",
    ]
    assert "its result is t1" in first[2].text
    assert "its result is t2" in first[3].text
    assert [one.item.live for one in first[:2] if one.item] == [False, True]


async def test_a_turn_with_too_many_calls_is_answered_in_part() -> None:
    """Every call has an answer all the same."""
    found = await box(tool("query_prometheus", "93")).answer(
        [ask("query_prometheus", query=str(n)) for n in range(MAX_CALLS + 2)]
    )
    assert [one.error for one in found] == [""] * MAX_CALLS + ["too_many"] * 2


async def test_a_page_is_worth_what_it_is_a_page_of() -> None:
    """Same class, an id of its own, the words it was asked with, the text redacted as before."""
    log = "\n".join(f"line {number}: password=hunter{number}" for number in range(200))
    toolbox = box(tool("get_pod_logs", Answer(log, Trust.TENANT)))
    whole = await one(toolbox, ask("get_pod_logs", query="pattern"))
    page = await one(toolbox, ask("read_result", id="t1", filter="line 10[0-4]", range="1-200"))
    assert whole.item is not None
    assert page.item is not None
    assert (page.item.id, page.item.trust, page.item.asked) == ("t2", Trust.TENANT, ("pattern",))
    assert page.item.text.split("\n")[1:] == [
        f"line {number}: password=[redacted:secret]" for number in range(100, 105)
    ]
    assert "hunter" not in whole.item.text
    assert whole.total == len(log)


async def test_a_gigabyte_or_binary_is_an_answer_like_any_other() -> None:
    """Shown in part, counted whole."""
    toolbox = box(tool("huge", "x" * 10**9), tool("binary", b"\x7fELF" * 1000))
    huge, binary = await toolbox.answer([ask("huge"), ask("binary")])
    assert huge.item is not None
    assert binary.item is not None
    assert len(huge.text) < 2_000
    assert huge.total == 10**9
    assert binary.item.text == "4000 bytes of binary data, not shown"


async def test_all_tools_of_a_turn_together_have_a_limit() -> None:
    """Beside each one's own."""
    async with asyncio.timeout(5):
        answered = await one(box(tool("hangs", _hangs, timeout_seconds=60)), ask("hangs"), limit_seconds=0.05)
    assert answered.error == "timeout"


def test_tools_are_told_in_an_order_that_never_changes() -> None:
    """Whatever order they are registered in; read_result is one of them."""
    names = ["query_prometheus", "get_node_info", "explain_code"]
    told = [[spec.name for spec in box(*(tool(name, "") for name in order)).specs] for order in (names, names[::-1])]
    assert told[0] == told[1] == ["explain_code", "get_node_info", "query_prometheus", "read_result"]


def test_no_source_takes_the_name_of_a_tool_of_ours() -> None:
    """It would answer in its place."""
    with pytest.raises(ValueError, match="read_result"):
        box(tool("read_result", ""))


class TestLookingAround:
    """Which sources cannot be asked is known before the first question."""

    async def test_what_a_source_says(self) -> None:
        assert await box(why_not="no URL is set").look_around() == {"bench": "no URL is set"}

    async def test_a_source_that_hangs_or_raises(self) -> None:
        class Broken(Source):
            async def unavailable(self) -> str:
                if self.name == "slow":
                    await asyncio.sleep(3600)
                raise OSError("token=abcdef123456")

        registry = Registry.of(Broken((), "slow"), Broken((), "odd"), Source((), "well"))
        toolbox = Toolbox(registry, scope_of(incident_of()), gate_of(), Shown(), 0)
        assert await toolbox.look_around(0.05) == {
            "slow": "It did not answer within 0.05 s.",
            "odd": "It failed: OSError: token=[redacted:secret]",
        }
