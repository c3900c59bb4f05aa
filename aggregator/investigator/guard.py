"""Notices that a model goes round in circles: first it is told, then the next turn is its last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from aggregator.investigator.toolbox import Answered, signature

SAME_TURN = 3  # times the same set of calls is made, live ones included
ERROR_TURNS = 2  # in a row in which nothing was answered


class Guard:
    """Watches the calls of one investigation."""

    def __init__(self) -> None:
        self.strikes = 0
        self._turns: Counter[frozenset[str]] = Counter()
        self._errors = 0

    def note(self, answered: Sequence[Answered]) -> str:
        """What is circular about a turn's calls; empty where nothing is."""
        calls = frozenset(signature(answer.call) for answer in answered)
        self._turns[calls] += 1
        self._errors = self._errors + 1 if all(answer.error for answer in answered) else 0
        reason = self._reason(answered, self._turns[calls])
        self.strikes += bool(reason)
        return reason

    def _reason(self, answered: Sequence[Answered], times: int) -> str:
        if self._errors >= ERROR_TURNS:
            return f"{self._errors} turns in a row brought errors alone"
        if all(answer.repeated for answer in answered):
            return "every call of this turn was answered before"
        if times >= SAME_TURN:
            return f"the same calls were made {times} times"
        return ""
