"""The pairs hold what makes them fair: the same trigger, one fact that differs, and no way to solve one without it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aggregator.eval.figures import figures
from aggregator.eval.recorded import real_sources, registry_of
from aggregator.eval.run import Mode, rules_alone
from aggregator.eval.stage import bundle_of, scope_of, stage
from aggregator.eval.world import Pair, Variant, WorldError, baseline, load_pairs, packaged
from aggregator.investigator.framing import Gate
from aggregator.investigator.items import Shown
from aggregator.investigator.llm import ToolCall
from aggregator.investigator.results import admitted
from aggregator.investigator.toolbox import Answered, Toolbox
from tests.eval.conftest import PAIRS

each_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)


def ask(pair: Pair, variant: Variant, tool: str, arguments: dict[str, object]) -> Answered:
    """One call, through the loop's own toolbox."""

    async def asked() -> Answered:
        toolbox = Toolbox(registry_of(pair, variant), scope_of(stage(pair)), Gate(), Shown(), 8_000)
        return (await toolbox.answer([ToolCall("c1", tool, arguments)]))[0]

    return asyncio.run(asked())


def test_there_are_at_least_twenty_pairs_on_nodes_of_their_own() -> None:
    assert len(PAIRS) >= 20
    assert len({pair.node for pair in PAIRS}) == len(PAIRS)


@each_pair
def test_what_a_model_sees_first_is_the_same_in_every_variant(pair: Pair) -> None:
    """The bundle is made of the trigger alone; that no answer stands in it is what makes the twins twins."""
    first, second = (bundle_of(stage(pair), Gate()) for _ in range(2))
    assert first == second
    words = "\n".join(item.text for item in first.items)
    assert not [passage for twin in (pair.a, pair.b) for passage in twin.says if passage in words]


@each_pair
def test_exactly_one_recorded_answer_differs(pair: Pair) -> None:
    a, b, down = (pair.recordings(variant) for variant in Variant)
    assert a[0].answer != b[0].answer
    assert a[1:] == b[1:] == down
    assert (a[0].tool, a[0].where, a[0].trust) == (b[0].tool, b[0].where, b[0].trust)


@each_pair
def test_the_deciding_question_is_one_that_the_real_tool_takes_and_tells_the_twins_apart(pair: Pair) -> None:
    """Asked through the loop's toolbox: the schema is the real tool's, and each passage stands in one twin's answer alone."""
    question = pair.question
    texts = {}
    for variant in (Variant.A, Variant.B):
        answered = ask(pair, variant, question.tool, dict(question.ask))
        assert answered.item is not None, answered.text
        texts[variant] = answered.item.text
    for variant, twin, other in ((Variant.A, pair.a, Variant.B), (Variant.B, pair.b, Variant.A)):
        assert all(passage in texts[variant] and passage not in texts[other] for passage in twin.says)
    assert ask(pair, Variant.DOWN, question.tool, dict(question.ask)).error == "unavailable"


@each_pair
def test_no_verdict_is_right_in_both_twins(pair: Pair) -> None:
    """So neither the rules nor any guess that does not look can solve a pair; the first step is another in each."""
    assert not set(pair.a.first) & set(pair.b.first)
    assert not set(pair.a.first) & set(pair.a.forbidden)
    assert not set(pair.b.first) & set(pair.b.forbidden)


@each_pair
def test_the_rules_are_right_in_one_twin_so_that_there_is_something_to_harm(pair: Pair) -> None:
    verdict = stage(pair).verdict
    assert [pair.a.fits(verdict), pair.b.fits(verdict)].count(True) == 1


def test_rules_alone_solve_no_pair() -> None:
    told = figures(Mode.RULES, rules_alone(PAIRS))
    assert (told.pairs, told.pair_accuracy, told.harm, told.said_unchecked) == (len(PAIRS), 0.0, 0.0, 0.0)


@pytest.mark.parametrize("tool", sorted(tool.name for source in real_sources() for tool in source.tools))
def test_every_tool_answers_for_a_healthy_node_where_a_pair_says_nothing(tool: str) -> None:
    """What is not recorded would read as an empty answer: each tool but the catalog's has one in its own form."""
    answers = [answer for answer in baseline("n1") if answer.tool == tool]
    assert answers or tool == "explain_code"
    assert all(admitted(Gate(), answer.answer)[1] > 10 for answer in answers)


def test_a_question_about_a_node_outside_the_world_is_refused() -> None:
    pair = PAIRS[0]
    assert "outside this investigation" in ask(pair, Variant.A, "get_node_info", {"node_name": "elsewhere"}).text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title = 'x'", "node: Field required"),
        ("title = ", "Invalid value"),
        ("surprise = 1", "surprise: Extra inputs"),
    ],
)
def test_a_file_that_is_no_pair_is_told_by_name_and_field(tmp_path: Path, text: str, says: str) -> None:
    good = (packaged() / "gsp-rollout.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(f"{text}\n{good}" if "surprise" in text else text)
    with pytest.raises(WorldError, match=r"mine\.toml: ") as problem:
        load_pairs([str(tmp_path)])
    assert says in str(problem.value)


def test_an_own_folder_of_worlds_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text((packaged() / "gsp-rollout.toml").read_text(encoding="utf-8"))
    assert [pair.name for pair in load_pairs([str(tmp_path), "dead-fan"])] == ["mine", "dead-fan"]
