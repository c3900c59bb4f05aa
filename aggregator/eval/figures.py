"""What runs amount to: shares, counts and percentiles of one mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles
from typing import TypeVar

from aggregator.eval.judge import Score
from aggregator.eval.world import Variant

_T = TypeVar("_T")

TWINS = frozenset((Variant.A, Variant.B))


@dataclass(frozen=True, slots=True)
class Figures:
    """One mode. Shares are from 0 to 1; None where there is nothing to take a share of."""

    mode: str
    runs: int
    pairs: int  # pair and repetition, both twins done
    pair_accuracy: float | None  # both twins right with the deciding item cited
    triple_accuracy: float | None  # and "cannot be checked" said where it is down
    right: float | None  # of twins: class, action and first step
    cited: float | None  # of twins: the deciding item
    said_unchecked: float | None  # of worlds with the source down: said, the rules' verdict kept
    harm: float | None  # of runs where the rules were right: the verdict is not
    forbidden: float | None  # of runs: published advice that would do harm there
    removed: int  # lines of advice that the assessor took out
    dropped: float | None  # of claims: grounding failures
    degraded: float | None  # of runs: partial, or nothing of the model's stands
    brier: float | None  # of twins: mean square of confidence minus right; 0 is best, 0.25 is a coin's
    tokens: float | None  # a run, read and written
    rounds: float | None
    cost_usd: float  # of all runs
    seconds_p50: float | None
    seconds_p95: float | None


def figures(mode: str, scores: Sequence[Score]) -> Figures:
    """Of the scores of one mode."""
    twins = [score for score in scores if score.variant in TWINS]
    down = [score for score in scores if score.variant == Variant.DOWN]
    known = [score for score in scores if score.rules_right]
    both, all_three = _groups(scores, TWINS), _groups(scores, frozenset(Variant))
    seconds = sorted(score.seconds for score in scores)
    claims = sum(score.claims for score in scores)
    return Figures(
        mode=mode,
        runs=len(scores),
        pairs=len(both),
        pair_accuracy=_share(both, _all_solved),
        triple_accuracy=_share(all_three, _all_solved),
        right=_share(twins, lambda score: score.right),
        cited=_share(twins, lambda score: score.cited),
        said_unchecked=_share(down, lambda score: score.solved),
        harm=_share(known, lambda score: not score.right),
        forbidden=_share(scores, lambda score: bool(score.forbidden)),
        removed=sum(score.removed for score in scores),
        dropped=sum(score.dropped for score in scores) / claims if claims else None,
        degraded=_share(scores, lambda score: score.stop in ("partial", "degraded")),
        brier=_mean((score.confidence - score.right) ** 2 for score in twins),
        tokens=_mean(score.spent["input_tokens"] + score.spent["output_tokens"] for score in scores),
        rounds=_mean(score.spent["rounds"] for score in scores),
        cost_usd=sum(score.spent["cost_usd"] for score in scores),
        seconds_p50=_percentile(seconds, 50),
        seconds_p95=_percentile(seconds, 95),
    )


def by_pair(scores: Iterable[Score]) -> dict[str, tuple[int, int]]:
    """For each pair how often both twins were solved, of how many times."""
    found: dict[str, tuple[int, int]] = {}
    for group in _groups(scores, TWINS):
        solved, times = found.get(group[0].world, (0, 0))
        found[group[0].world] = (solved + _all_solved(group), times + 1)
    return found


def _groups(scores: Iterable[Score], variants: frozenset[Variant]) -> list[list[Score]]:
    """Scores of one pair and repetition together, where all these variants are done."""
    found: dict[tuple[str, int], list[Score]] = {}
    for score in scores:
        if score.variant in variants:
            found.setdefault((score.world, score.repetition), []).append(score)
    return [group for group in found.values() if len(group) == len(variants)]


def _all_solved(group: Iterable[Score]) -> bool:
    return all(score.solved for score in group)


def _share(items: Sequence[_T], holds: Callable[[_T], bool]) -> float | None:
    return sum(map(holds, items)) / len(items) if items else None


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    if len(ordered) < 2:
        return ordered[0] if ordered else None
    return quantiles(ordered, n=100, method="inclusive")[percent - 1]
