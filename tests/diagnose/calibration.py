"""How much of the doubt of each family of rules is deserved, on the open set: `python -m tests.diagnose.calibration`."""

from __future__ import annotations

from collections import defaultdict

from aggregator.rules.calibration import DOUBT, family
from tests.diagnose.scoring import diagnosed, judged, load, worst


def main() -> None:
    """Print cases, wrong verdicts, those that the priors expect, the factor they give and the one in use."""
    wrong: dict[str, int] = defaultdict(int)
    doubts: dict[str, list[float]] = defaultdict(list)
    for case in load(held_out=False):
        output = diagnosed(case["raw_log_lines"])
        score = judged(case, output)
        if score.confidence is not None:
            name = family(worst(output)["rule_ids"][0])
            wrong[name] += not score.lenient
            doubts[name].append((1 - score.confidence) / DOUBT.get(name, 1.0))
    print("family          cases  wrong  expected  factor  in use")
    for name, parts in sorted(doubts.items()):
        factor = (wrong[name] + 1) / (sum(parts) + 1)
        in_use = DOUBT.get(name, 1.0)
        print(f"{name:15} {len(parts):5}  {wrong[name]:5}  {sum(parts):8.1f}  {factor:6.2f}  {in_use:6.2f}")


if __name__ == "__main__":
    main()
