"""Score the diagnosis of the corpus: what was detected, how it was judged, whether its advice could harm, how true its confidence is.

    .venv/bin/python -m tests.diagnose.scoring [--show] [--held-out]

The labels' meaning is in `corpus/README.md`. The held-out set is scored by its figures alone: `--show` would spoil it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator.commands.diagnose import as_json, diagnose
from aggregator.rules import Context, LogReader

CORPUS = Path(__file__).parent / "corpus"
NOW_US = 1_798_761_600_000_000  # 2027-01-01: fixed, for lines that name no year
_RANK = ("ok", "info", "warning", "critical")
_NOTHING: dict[str, Any] = {
    "severity": "ok",
    "fault_class": "none",
    "action": "none",
    "resolutions": ["none"],
    "confidence": None,
}


@dataclass(frozen=True, slots=True)
class Score:
    """One case, judged. `signals_wanted` and `signals_hit` count expected kinds that are no code."""

    case: dict[str, Any] = field(repr=False)  # a failing test must not read held-out cases aloud
    detected: bool
    signals_wanted: int
    signals_hit: int
    severity_ok: bool
    class_ok: bool
    action_ok: bool
    strict: bool
    harm: frozenset[str]
    confidence: float | None
    got: str = field(repr=False)

    @property
    def lenient(self) -> bool:
        """Severity, class and action are all acceptable."""
        return self.severity_ok and self.class_ok and self.action_ok

    @property
    def coded(self) -> bool:
        """The case holds an XID or SXid of a driver."""
        return bool(self.case["facts"]["xids"] or self.case["facts"]["sxids"])

    @property
    def negative(self) -> bool:
        """Nothing is to be diagnosed."""
        return "negative" in self.case["tags"]


def load(*, held_out: bool) -> list[dict[str, Any]]:
    """The open or the held-out cases, each with its theme (the file's name) as `theme`."""
    folder = CORPUS / "held_out" if held_out else CORPUS
    return [
        json.loads(line) | {"theme": path.stem}
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").split("\n")  # not splitlines: a case may hold odd line ends
        if line
    ]


def diagnosed(lines: Sequence[str]) -> dict[str, Any]:
    """What `diagnose --format json` prints for these lines."""
    reader = LogReader(now_us=NOW_US)
    reader.feed("\n".join(lines) + "\n")
    reader.finish()
    context = Context(driver_version=reader.driver_version or "", gpu_model=reader.gpu_model or "")
    output: dict[str, Any] = json.loads(json.dumps(as_json(diagnose([reader], context))))
    return output


def worst(output: dict[str, Any]) -> dict[str, Any]:
    """The incident that is judged: the worst, of equals the first."""
    return max(output["incidents"], key=lambda incident: _RANK.index(incident["severity"]), default=_NOTHING)


def judged(case: dict[str, Any], output: dict[str, Any]) -> Score:
    """Hold one output against its case's labels; of several incidents the worst is judged, of equals the first."""
    expected = case["expected"]
    got = {
        f"{signal['kind']}:{signal['code']}" if signal["kind"] in ("xid", "sxid") else f"signal:{signal['kind']}"
        for signal in output["signals"]
    }
    top = worst(output)
    first, advice = top["resolutions"][0], set(top["resolutions"])
    acceptable = set(expected["acceptable_actions"])
    # The node-level action may carry the advice too; its `none` says only that the node stays in service.
    harm = (advice | ({top["action"]} - {"none"})) & set(expected.get("must_not_recommend", ()))
    kinds = {name for name in expected["detect"] if name.startswith("signal:")}
    return Score(
        case=case,
        detected=_detected(got, expected),
        signals_wanted=len(kinds),
        signals_hit=len(kinds & got),
        severity_ok=top["severity"] in {expected["severity"], *expected.get("severity_also_ok", ())},
        class_ok=top["fault_class"] in {expected["class"], *expected.get("class_also_ok", ())},
        action_ok=bool((advice | {top["action"]}) & acceptable) and not harm,
        strict=(top["severity"], top["fault_class"]) == (expected["severity"], expected["class"])
        and first in acceptable
        and not harm,
        harm=frozenset(harm),
        confidence=top["confidence"],
        got=f"{sorted(got)} {top['severity']} {top['fault_class']} {top['action']} {top['resolutions']} {top['confidence']}",
    )


def _detected(got: set[str], expected: dict[str, Any]) -> bool:
    """Every code was read, no other was, and nothing that must not be detected was."""
    codes = {name for name in got if name.startswith(("xid:", "sxid:"))}
    optional = set(expected.get("also_ok_detect", ()))
    wanted = {name for name in expected["detect"] if not name.startswith("signal:")}
    return codes - optional == wanted - optional and not got & set(expected.get("must_not_detect", ()))


def scored(*, held_out: bool) -> list[Score]:
    """Diagnose and judge one of the two sets."""
    return [judged(case, diagnosed(case["raw_log_lines"])) for case in load(held_out=held_out)]


def rate(scores: Iterable[Score], good: Callable[[Score], bool]) -> float:
    """Share of scores that are good; 1.0 of none."""
    verdicts = [good(score) for score in scores]
    return sum(verdicts) / len(verdicts) if verdicts else 1.0


def signal_recall(scores: Sequence[Score]) -> float:
    """Share of expected signal kinds that were found."""
    wanted = sum(score.signals_wanted for score in scores)
    return sum(score.signals_hit for score in scores) / wanted if wanted else 1.0


def brier(scores: Iterable[Score]) -> float:
    """Mean squared distance of confidence from being right (lenient); 0 is perfect, 0.25 is a coin."""
    errors = [(score.confidence - score.lenient) ** 2 for score in scores if score.confidence is not None]
    return sum(errors) / len(errors) if errors else 0.0


def reliability(scores: Iterable[Score]) -> list[tuple[float, int, float, float]]:
    """Per tenth of confidence: its lower bound, how many cases, their mean confidence, their share that is right."""
    bins: dict[int, list[Score]] = {}
    for score in scores:
        if score.confidence is not None:
            bins.setdefault(min(9, int(score.confidence * 10)), []).append(score)
    return [
        (
            tenth / 10,
            len(held),
            sum(score.confidence or 0 for score in held) / len(held),
            rate(held, lambda s: s.lenient),
        )
        for tenth, held in sorted(bins.items())
    ]


def figures(name: str, scores: Sequence[Score]) -> str:
    """One line of rates."""
    parts = {
        "detect": rate(scores, lambda s: s.detected),
        "signals": signal_recall(scores),
        "severity": rate(scores, lambda s: s.severity_ok),
        "class": rate(scores, lambda s: s.class_ok),
        "action": rate(scores, lambda s: s.action_ok),
        "lenient": rate(scores, lambda s: s.lenient),
        "strict": rate(scores, lambda s: s.strict),
    }
    rates = "  ".join(f"{part} {100 * value:5.1f}" for part, value in parts.items())
    forbidden = sum(bool(score.harm) for score in scores)
    return f"{name:20} n {len(scores):3}  {rates}  forbidden {forbidden}  brier {brier(scores):.3f}"


def report(scores: Sequence[Score]) -> str:
    """Figures of all parts of a set, and how reliable its confidence is."""
    lines = [
        figures("all", scores),
        figures("with XID or SXid", [score for score in scores if score.coded]),
        figures("without", [score for score in scores if not score.coded]),
        figures("negative", [score for score in scores if score.negative]),
        "",
        *(figures(theme, [s for s in scores if s.case["theme"] == theme]) for theme in _themes(scores)),
        "",
        "confidence   cases   mean   right",
        *(
            f"{low:.1f} - {low + 0.1:.1f}    {count:5}   {mean:.2f}   {right:.2f}"
            for low, count, mean, right in reliability(scores)
        ),
    ]
    return "\n".join(lines)


def _themes(scores: Iterable[Score]) -> list[str]:
    return sorted(Counter(score.case["theme"] for score in scores))


def _differences(scores: Iterable[Score]) -> Iterable[str]:
    for score in scores:
        missed = score.signals_wanted - score.signals_hit
        if score.detected and score.lenient and score.strict and not missed:
            continue
        marks = [
            *(["DETECT"] if not score.detected else []),
            *([f"{missed} signal(s) missed"] if missed else []),
            *([f"HARM {sorted(score.harm)}"] if score.harm else []),
            *(["not lenient"] if not score.lenient else ["not strict"] if not score.strict else []),
        ]
        yield f"{score.case['theme']}/{score.case['id']}: {', '.join(marks)}\n    got  {score.got}\n    want {score.case['expected']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.diagnose.scoring", description=__doc__)
    parser.add_argument("--show", action="store_true", help="list what differs from its labels (open set only)")
    parser.add_argument("--held-out", action="store_true", help="score the held-out set")
    options = parser.parse_args(arguments)
    if options.show and options.held_out:
        parser.error("--show reads cases aloud; the held-out set is to stay unread")
    scores = scored(held_out=options.held_out)
    if options.show:
        print("\n".join(_differences(scores)), end="\n\n")
    print(report(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
