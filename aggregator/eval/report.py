"""An evaluation as one JSON object and as Markdown: the model beside what it must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aggregator import rules
from aggregator.eval.figures import Figures, by_pair, figures
from aggregator.eval.judge import Score
from aggregator.eval.run import ASKED, Mode, Outcome, Setup
from aggregator.eval.world import Pair

NAMES = {
    Mode.TOOLS: "model with tools",
    Mode.NO_TOOLS: "model, no tools",
    Mode.EVERYTHING: "model, everything fetched",
    Mode.RULES: "rules alone",
}
_SHARES = (
    ("pair_accuracy", "pairs solved: both twins right, deciding item cited"),
    ("triple_accuracy", "… and “cannot be checked” said where it is down"),
    ("right", "verdict right (class, action, first step), of twins"),
    ("cited", "deciding item cited, of twins"),
    ("said_unchecked", "source down: said, and the rules' verdict kept"),
    ("harm", "harm: rules right, final verdict wrong"),
    ("forbidden", "verdict with advice that does harm there"),
    ("dropped", "claims dropped by grounding"),
    ("degraded", "runs partial or degraded"),
)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is told."""

    about: Mapping[str, Any]
    modes: tuple[Figures, ...]
    pairs: Mapping[str, tuple[int, int]]  # with tools: solved, of how many times
    titles: Mapping[str, str]

    @property
    def as_json(self) -> dict[str, Any]:
        """One object; docs/eval.md says what stands in it."""
        pairs = {name: {"solved": solved, "times": times} for name, (solved, times) in self.pairs.items()}
        return {**self.about, "modes": {one.mode: asdict(one) for one in self.modes}, "pairs": pairs}


def report_of(
    pairs: Sequence[Pair], setup: Setup, outcome: Outcome, alone: Sequence[Score], scores: Sequence[Score]
) -> Report:
    """Of what is done; `about` tells how much that is."""
    asked = [figures(mode, [score for score in scores if score.mode == mode]) for mode in ASKED]
    about = {
        "model": setup.capabilities.model,
        "api": setup.backend.name,
        "endpoint": setup.endpoint,
        "setup": setup.digest,
        "rules_version": rules.VERSION,
        "worlds": len(pairs),
        "runs_planned": outcome.planned,
        "runs_done": outcome.done,
    }
    solved = by_pair(score for score in scores if score.mode == Mode.TOOLS)
    return Report(about, (*asked, figures(Mode.RULES, alone)), solved, {pair.name: pair.title for pair in pairs})


def as_markdown(report: Report) -> str:
    """A table of modes, then one of pairs."""
    about = report.about
    done = f"{about['runs_done']} of {about['runs_planned']} runs are done, at {about['endpoint']}"
    lines = [
        f"# {about['model']} over {about['worlds']} pairs of worlds",
        "",
        f"{done}; setup {about['setup']}, rules {about['rules_version']}.",
        "",
        *_table(("", *(NAMES[Mode(one.mode)] for one in report.modes)), _rows(report.modes)),
        "",
        "## Pairs, with tools",
        "",
        *_table(
            ("pair", "solved", "what differs"),
            [
                (name, f"{solved} of {times}", report.titles.get(name, ""))
                for name, (solved, times) in sorted(report.pairs.items())
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def _rows(modes: Sequence[Figures]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ("runs; pairs", *(f"{one.runs}; {one.pairs}" for one in modes)),
        *((text, *(_percent(getattr(one, name)) for one in modes)) for name, text in _SHARES),
        ("lines of advice taken out", *(str(one.removed) for one in modes)),
        ("calibration (Brier; 0 is best)", *(_number(one.brier, 3) for one in modes)),
        ("tokens a run", *(_number(one.tokens, 0) for one in modes)),
        ("rounds a run", *(_number(one.rounds, 1) for one in modes)),
        ("cost, all runs (US$)", *(f"{one.cost_usd:.2f}" for one in modes)),
        ("seconds p50; p95", *(f"{_number(one.seconds_p50, 1)}; {_number(one.seconds_p95, 1)}" for one in modes)),
    ]
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
