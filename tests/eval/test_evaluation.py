"""Scripted models over the real SDK and the real loop: who reads the deciding answer solves pairs, nobody else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator.eval.run import GIVE_UP, Mode
from aggregator.eval.stage import Staged
from aggregator.eval.world import Variant, load_pairs
from tests.doubles.llm import Asked, Status, Step, call
from tests.eval.conftest import FEW, PAIRS, Evaluates, of_mode
from tests.eval.models import Plays, guesser, keeps_to_the_rules, liar, oracle, playing, rambler, verdict_of


@pytest.mark.slow
async def test_a_model_that_reads_the_deciding_answer_solves_every_pair(evaluates: Evaluates) -> None:
    """Every expected verdict can be reached through grounding, the assessor's rules and the real tools' schemas."""
    outcome, scores = await evaluates(playing(PAIRS, oracle))
    assert (outcome.undone, outcome.failures) == (0, [])
    unsolved = [(s.world, s.variant, s.verdict, s.cited) for s in scores if s.mode == Mode.TOOLS and not s.solved]
    assert unsolved == []
    tools, everything, blind = (of_mode(scores, mode) for mode in (Mode.TOOLS, Mode.EVERYTHING, Mode.NO_TOOLS))
    assert (tools.pair_accuracy, tools.triple_accuracy, tools.harm, tools.dropped) == (1.0, 1.0, 0.0, 0.0)
    assert (everything.pair_accuracy, everything.triple_accuracy) == (1.0, 1.0)
    assert (blind.pair_accuracy, blind.harm) == (0.0, 0.0)
    assert tools.brier is not None
    assert tools.brier < 0.1


@pytest.mark.parametrize(
    "plays",
    [guesser("a"), guesser("b"), liar("a"), liar("b"), rambler, keeps_to_the_rules],
    ids=["guesses a", "guesses b", "lies a", "lies b", "rambles", "keeps to the rules"],
)
async def test_who_does_not_read_it_solves_no_pair(evaluates: Evaluates, plays: Plays) -> None:
    pairs = load_pairs(FEW)
    _, scores = await evaluates(playing(pairs, plays), pairs)
    assert {of_mode(scores, mode).pair_accuracy for mode in (Mode.TOOLS, Mode.NO_TOOLS, Mode.EVERYTHING)} == {0.0}


async def test_a_guess_harms_where_the_rules_were_right_and_a_lie_is_counted(
    evaluates: Evaluates, tmp_path: Path
) -> None:
    """The rules are right in one twin and in the third world: guessing the other twin's verdict makes both wrong. A misquoted
    claim is dropped, and a run that ends without one is degraded: the rules' verdict stands, and nothing is harmed."""
    pairs = load_pairs(["gsp-rollout"])
    _, guessed = await evaluates(playing(pairs, guesser("a")), pairs)
    _, lied = await evaluates(playing(pairs, liar("a")), pairs, out=tmp_path / "lies")
    assert of_mode(guessed, Mode.TOOLS).harm == 1.0
    told = of_mode(lied, Mode.TOOLS)
    assert (told.harm, told.dropped, told.degraded) == (0.0, pytest.approx(2 / 3, abs=0.2), pytest.approx(2 / 3))


async def test_an_endpoint_that_goes_away_leaves_runs_undone_and_the_next_call_does_those_alone(
    evaluates: Evaluates, tmp_path: Path
) -> None:
    pairs = load_pairs(FEW)
    plays = playing(pairs, oracle)

    def fails_later(asked: Asked) -> Step:
        return plays(asked) if asked.number < 12 else Status(503)

    first, kept = await evaluates(fails_later, pairs)
    assert 0 < first.done < first.planned
    assert len(first.failures) >= GIVE_UP
    assert "server_error" in first.failures[-1] or "overloaded" in first.failures[-1]
    assert len(kept) == first.done
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"setup": "half a li')
    seen: list[str] = []

    def counts(asked: Asked) -> Step:
        seen.append(asked.user_texts[0])
        return plays(asked)

    second, scores = await evaluates(counts, pairs)
    assert (second.done, second.undone) == (27, 0)
    assert len(scores) == 27
    third, _ = await evaluates(playing(pairs, rambler), pairs)
    assert third.done == 27
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 27 + 1
    assert of_mode(scores, Mode.TOOLS).pair_accuracy == 1.0
    assert seen


async def test_a_changed_world_is_measured_anew(evaluates: Evaluates, tmp_path: Path) -> None:
    pairs = load_pairs(["gsp-rollout"])
    await evaluates(playing(pairs, oracle), pairs)
    changed = [pairs[0].model_copy(update={"digest": "another"})]
    outcome, scores = await evaluates(playing(pairs, oracle), changed)
    assert (outcome.done, len(scores)) == (9, 9)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 18


async def test_a_quote_of_another_answer_is_no_proof(evaluates: Evaluates) -> None:
    """Nothing was found in the same rack, either: that the right words stand there too does not show who looked."""
    pairs = load_pairs(["gsp-rollout"])

    def looks_elsewhere(staged: Staged, asked: Asked) -> Step:
        if "find_similar_incidents" in asked.tools and not asked.results:
            return call("find_similar_incidents", by="rack")
        return verdict_of(staged, staged.pair.b, "t1", '"incidents": []')

    _, scores = await evaluates(playing(pairs, looks_elsewhere), pairs)
    found = next(score for score in scores if (score.mode, score.variant) == (Mode.TOOLS, Variant.B))
    assert (found.right, found.dropped, found.cited) == (True, 0, False)


async def test_a_page_of_the_deciding_answer_is_that_answer(evaluates: Evaluates) -> None:
    pairs = load_pairs(["old-firmware"])

    def pages(staged: Staged, asked: Asked) -> Step:
        question = staged.pair.question
        if question.tool not in asked.tools or len(asked.results) > 1:
            return verdict_of(staged, staged.pair.a, "t2", staged.pair.a.says[0])
        if asked.results:
            return call("read_result", id="t1", filter="vbios")
        return call(question.tool, **question.ask)

    _, scores = await evaluates(playing(pairs, pages), pairs)
    assert next(score for score in scores if (score.mode, score.variant) == (Mode.TOOLS, Variant.A)).solved


async def test_a_quote_that_both_twins_hold_is_no_proof(evaluates: Evaluates) -> None:
    """That a sensor was read does not show what it said."""
    pairs = load_pairs(["rack-heat"])

    def quotes_the_label(staged: Staged, asked: Asked) -> Step:
        question, twin = staged.pair.question, staged.pair.a
        if question.tool in asked.tools and not asked.results:
            return call(question.tool, **question.ask)
        return verdict_of(staged, twin, "t1", twin.says[0].rpartition(" ")[0])

    _, scores = await evaluates(playing(pairs, quotes_the_label), pairs)
    found = next(score for score in scores if (score.mode, score.variant) == (Mode.TOOLS, Variant.A))
    assert (found.right, found.dropped, found.cited) == (True, 0, False)
