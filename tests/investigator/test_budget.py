"""Room for the final turn is set aside before each call, in tokens, dollars and time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.investigator.budget import Budget, Ledger
from aggregator.investigator.llm import Capabilities, Usage

MODEL = Capabilities(
    "m", 200_000, 64_000, structured_output=True, input_usd=2, cached_usd=0.2, cache_written_usd=2.5, output_usd=10
)


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ledger(model: Capabilities = MODEL, clock: Clock | None = None, **fields: float) -> Ledger:
    return Ledger(Budget(**fields), model, clock or Clock())  # type: ignore[arg-type]


@given(
    st.integers(20_000, 500_000),
    st.lists(st.tuples(st.integers(0, 30_000), st.integers(1, 16_384), st.integers(0, 4_000)), max_size=30),
)
def test_the_budget_is_never_exceeded_by_more_than_was_not_foreseen(
    tokens: int, turns: list[tuple[int, int, int]]
) -> None:
    """Whatever turns cost, a turn begins only where it and its answer fit; and where another is allowed, the final one still fits
    after it, as long as results are no longer than expected."""
    book = ledger(tokens=tokens)
    book.grew("x" * 9_000)
    used, conversation = 0, 9_000 * 0.34
    for added, output, _ in turns:
        if book.no_room() is not None:
            break
        final = book.last_turn() is not None
        read = int(conversation)
        assert used + read + book.max_tokens <= tokens + 2
        used += read + output
        book.took(Usage(input_tokens=read, output_tokens=output), 0)
        conversation += output
        if final:
            break
        results = min(added, 3 * 8_000)
        book.grew("y" * results)
        conversation += results * 0.34
        assert book.no_room() is None or results > 3 * 8_000


def test_the_estimate_follows_what_the_endpoint_counts() -> None:
    """A tokenizer that makes more of the same bytes leaves less room."""
    sparse, dense = ledger(tokens=150_000), ledger(tokens=150_000)
    for book, tokens in ((sparse, 3_000), (dense, 15_000)):
        book.grew("x" * 10_000)
        book.took(Usage(input_tokens=tokens, output_tokens=100), 400)
        book.grew("y" * 60_000)
    assert sparse.last_turn() is None
    assert dense.last_turn() is not None


def test_an_endpoint_that_counts_nothing_is_charged_by_estimate() -> None:
    """So that a budget binds there too; what was spent is not made up."""
    book = ledger(tokens=100_000)
    book.grew("x" * 30_000)
    for _ in range(6):
        book.took(Usage(), 2_000)
    assert book.no_room() is not None
    assert (book.spent.rounds, book.spent.input_tokens, book.spent.output_tokens, book.spent.cost_usd) == (6, 0, 0, 0.0)


def test_what_was_spent_is_what_was_counted() -> None:
    """Cached tokens at their price."""
    book = ledger()
    book.took(Usage(input_tokens=10_000, cached_tokens=6_000, cache_written_tokens=2_000, output_tokens=1_000), 0)
    book.asked_tools(3)
    spent = book.spent
    assert (spent.input_tokens, spent.cached_tokens, spent.output_tokens, spent.tool_calls) == (10_000, 6_000, 1_000, 3)
    assert spent.cost_usd == pytest.approx((2_000 * 2 + 6_000 * 0.2 + 2_000 * 2.5 + 1_000 * 10) / 1e6)


def test_dollars_bind_where_there_is_a_price() -> None:
    """And only there."""
    unpriced = Capabilities("m", 200_000, 64_000, structured_output=True)
    assert (ledger(cost_usd=0.1).no_room() or ledger(cost_usd=0.1).last_turn()) is not None
    assert ledger(unpriced, cost_usd=0.0).last_turn() is None


def test_a_models_context_binds() -> None:
    """The final turn must still fit into it."""
    small = Capabilities("m", 40_000, 8_000, structured_output=True)
    book = ledger(small)
    assert book.max_tokens == 8_000
    assert book.last_turn() is None
    book.grew("x" * 60_000)
    shortage = book.last_turn()
    assert shortage is not None
    assert "context" in shortage.sentence


def test_time_is_left_for_the_final_turn() -> None:
    """A turn before it ends in time; tools too."""
    clock = Clock()
    book = ledger(clock=clock, wall_seconds=100, turn_seconds=60)
    assert book.deadline_seconds(final=False) == 60
    clock.now += 50
    assert (book.deadline_seconds(final=False), book.deadline_seconds(final=True), book.tool_seconds()) == (25, 50, 25)
    assert book.last_turn() is None
    clock.now += 20
    shortage = book.last_turn()
    assert shortage is not None
    assert shortage.word == "wall_clock"
    assert book.no_room() is None
    clock.now += 30
    assert book.no_room() is not None
