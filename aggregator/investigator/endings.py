"""How an investigation can end short of an answer: a bounded set of words, which are metric labels too, each with a sentence."""

from __future__ import annotations

from enum import StrEnum

from aggregator.investigator.llm import FailureKind


class Ending(StrEnum):
    """Why there is no whole answer, beside what an endpoint does (`FailureKind`)."""

    REFUSAL = "refusal"
    MAX_TOKENS = "max_tokens"
    PAUSED = "paused"
    NO_ANSWER = "no_answer"  # nothing of the asked form, twice
    UNGROUNDED = "ungrounded"  # no root cause that holds
    TOOLS_AT_END = "tools_at_end"  # it went on asking after the last turn
    TOKENS = "tokens"
    COST = "cost"
    WALL_CLOCK = "wall_clock"
    INTERNAL = "internal"


WORDS = frozenset((*Ending, *FailureKind))
TRANSIENT = frozenset(
    (
        FailureKind.RATE_LIMITED,
        FailureKind.OVERLOADED,
        FailureKind.SERVER_ERROR,
        FailureKind.UNREACHABLE,
        FailureKind.TIMEOUT,
        FailureKind.INCOMPLETE,
    )
)  # worth another attempt later


class Ended(Exception):
    """An investigation stops here; what was accepted so far stands."""

    def __init__(self, word: Ending | FailureKind, sentence: str) -> None:
        super().__init__(f"{word.value}: {sentence}")
        self.word = word


def word_of(reason: str) -> str:
    """The word that a reason begins with, for a metric's label."""
    word, colon, _ = reason.partition(":")
    return word if colon and word in WORDS else "other"
