"""What one rule concludes: the seam between the engine and the rules that need more than one signal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.burst import Burst, Reading
from aggregator.rules.context import Context


@dataclass(frozen=True, slots=True)
class Finding:
    """A conclusion with its proof. Of several findings the one with the highest priority is the verdict."""

    rule_id: str
    priority: int  # on the scale of Entry.weight: a rule outranks the single readings it explains
    severity: Severity
    fault_class: FaultClass
    action: Action
    resolutions: tuple[Resolution, ...]
    confidence: float  # prior: see `calibration`
    cause: tuple[Reading, ...]  # what it blames, the one that names it first
    proof: tuple[Reading, ...] = ()  # what is not blamed, and yet a reason for the conclusion
    caution: float = 1.0  # share of the confidence that is left where the evidence speaks against itself
    root_cause: str = ""  # one sentence; empty: rendered from the cause's entry
    explanation: str = ""  # sentences for the summary
    recurrence_advice: str = ""
    open_questions: tuple[str, ...] = ()
    do_not: tuple[Resolution, ...] = ()
    permits: tuple[Resolution, ...] = ()  # advice that the single entries forbid and these signals together warrant
    beside: tuple[Finding, ...] = ()  # faults of their own in the same incident


Rule = Callable[[Burst, Context], Finding | None]


def others(burst: Burst, blamed: Iterable[Reading]) -> tuple[Reading, ...]:
    """The burst's faults that are not among the blamed."""
    ids = {reading.signal.id for reading in blamed}
    return tuple(reading for reading in burst.faults if reading.signal.id not in ids)
