"""What one investigation may use, and what it has used: before each call, room for that call and for one final turn is set aside.

Sizes before a call are estimates in tokens: what the endpoint counted last, and for what was added since, the ratio of tokens to
bytes that it showed. What was spent is the endpoint's own `usage` alone; where it gives none, the estimate is charged, not told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from aggregator.investigator.endings import Ending
from aggregator.investigator.llm import Capabilities, Usage
from aggregator.model import Spent

TOKENS_PER_BYTE = 0.34  # before anything was counted
CAUTION = 1.1
RESULTS_PER_TURN = 3  # results of the longest size that a turn is expected to bring
MIN_TURN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds of one investigation."""

    rounds: int = 12  # turns with tools; a final one and a repair may follow
    tokens: int = 400_000  # read and written, over all turns, cached ones included
    cost_usd: float = 2.0
    wall_seconds: float = 300.0
    turn_seconds: float = 120.0
    max_tokens: int = 16_384  # of one turn; thinking counts
    shown_characters: int = 8_000  # of one tool's answer; 0 is the built-in bound


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is running out."""

    word: Ending
    sentence: str


class Ledger:
    """Counts while the investigation runs."""

    def __init__(self, budget: Budget, capabilities: Capabilities, clock: Callable[[], float]) -> None:
        self.spent = Spent()
        self._budget, self._capabilities, self._clock = budget, capabilities, clock
        self._max_tokens = min(budget.max_tokens, capabilities.max_output_tokens)
        self._began = clock()
        self._charged_tokens, self._charged_usd = 0, 0.0
        self._counted = 0  # tokens of the conversation that the endpoint has counted
        self._added_bytes = 0  # since then
        self._all_bytes = 0
        self._ratio = TOKENS_PER_BYTE

    @property
    def max_tokens(self) -> int:
        """Of one turn."""
        return self._max_tokens

    @property
    def elapsed_seconds(self) -> float:
        """Since the investigation began, whatever the wall clock did."""
        return self._clock() - self._began

    def grew(self, text: str) -> None:
        """Something was added to the conversation."""
        size = len(text.encode("utf-8", "replace"))
        self._added_bytes += size
        self._all_bytes += size

    def took(self, usage: Usage, raw_bytes: int) -> None:
        """A turn came; `raw_bytes` is what it adds to the conversation, should the endpoint count nothing."""
        estimate = self._input_tokens()
        if usage.input_tokens:
            self._ratio = max(self._ratio, CAUTION * usage.input_tokens / max(self._all_bytes, 1))
        self._all_bytes += raw_bytes
        self._counted = usage.input_tokens + usage.output_tokens
        self._added_bytes = 0 if usage.input_tokens else self._all_bytes
        self._charge(usage if usage.input_tokens else Usage(input_tokens=estimate, output_tokens=raw_bytes))
        self.spent = replace(
            self.spent,
            rounds=self.spent.rounds + 1,
            input_tokens=self.spent.input_tokens + usage.input_tokens,
            cached_tokens=self.spent.cached_tokens + usage.cached_tokens,
            output_tokens=self.spent.output_tokens + usage.output_tokens,
            cost_usd=self.spent.cost_usd + self._capabilities.cost_usd(usage),
        )

    def asked_tools(self, count: int) -> None:
        """So many calls were answered."""
        self.spent = replace(self.spent, tool_calls=self.spent.tool_calls + count)

    def no_room(self) -> Shortage | None:
        """Why not even one more turn fits."""
        needed = Usage(input_tokens=self._input_tokens(), output_tokens=self._max_tokens)
        if self.elapsed_seconds >= self._budget.wall_seconds:
            return Shortage(Ending.WALL_CLOCK, f"{self._budget.wall_seconds:g} s are over")
        return self._beyond(needed)

    def last_turn(self) -> Shortage | None:
        """Why the next turn must be the final one: after another, there would be no room for it."""
        now = Usage(input_tokens=self._input_tokens(), output_tokens=self._max_tokens)
        results = int(RESULTS_PER_TURN * (self._budget.shown_characters or 24_000) * self._ratio)
        then = Usage(now.input_tokens + now.output_tokens + results, output_tokens=self._max_tokens)
        if self._seconds_before_final() < min(MIN_TURN_SECONDS, self._budget.wall_seconds / 10):
            return Shortage(
                Ending.WALL_CLOCK, f"of {self._budget.wall_seconds:g} s, {self.elapsed_seconds:.0f} are over"
            )
        if then.input_tokens + then.output_tokens > self._capabilities.max_input_tokens:
            return Shortage(Ending.TOKENS, "the model's context is nearly full")
        both = Usage(now.input_tokens + then.input_tokens, output_tokens=now.output_tokens + then.output_tokens)
        return self._beyond(both)

    def deadline_seconds(self, *, final: bool) -> float:
        """For the next turn, retries included."""
        left = self._budget.wall_seconds - self.elapsed_seconds if final else self._seconds_before_final()
        return max(0.1, min(self._budget.turn_seconds, left))

    def tool_seconds(self) -> float:
        """For the tools of one turn: they may not use up what the final turn needs."""
        return max(0.1, self._seconds_before_final())

    def _seconds_before_final(self) -> float:
        reserve = min(self._budget.turn_seconds, self._budget.wall_seconds / 4)
        return self._budget.wall_seconds - self.elapsed_seconds - reserve

    def _input_tokens(self) -> int:
        return self._counted + int(self._added_bytes * self._ratio)

    def _charge(self, usage: Usage) -> None:
        self._charged_tokens += usage.input_tokens + usage.output_tokens
        self._charged_usd += self._capabilities.cost_usd(usage)

    def _beyond(self, needed: Usage) -> Shortage | None:
        tokens = self._charged_tokens + needed.input_tokens + needed.output_tokens
        cost = self._charged_usd + self._capabilities.cost_usd(needed)
        if tokens > self._budget.tokens:
            return Shortage(Ending.TOKENS, f"of {self._budget.tokens} tokens, {self._charged_tokens} are used")
        if cost > self._budget.cost_usd:
            return Shortage(Ending.COST, f"of {self._budget.cost_usd:.2f} US$, {self._charged_usd:.2f} are used")
        return None
