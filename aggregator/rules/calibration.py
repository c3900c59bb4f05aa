"""From what an author thought of a rule to how often it is right: the confidence that a verdict carries.

Confidence is the probability that severity, class and advice of a verdict are all acceptable. The catalog and the rules give a
prior; authors are modest, and how modest differs between families of rules. For each family the doubt (1 - prior) is scaled by a
factor that was measured: with w wrong verdicts where the priors of a family expected d, the factor is (w + 1) / (d + 1), which
stays near 1 until there are cases enough. Measured once, on the open set of `tests/diagnose/corpus` (242 verdicts, 10 wrong) with
the rules as they were before anybody had tuned them on it, so that the figures do not flatter. A family that is not listed keeps
its priors.

`python -m tests.diagnose.calibration` prints the same figures for the rules as they are: a factor below the table's says that
they have become better, one above it that they claim too much.
"""

from __future__ import annotations

from collections.abc import Mapping

from aggregator.rules.kinds import CLUSTER_KINDS

DOUBT: Mapping[str, float] = {
    "application": 0.30,
    "bus": 0.25,
    "catalog/kind": 0.30,
    "catalog/sxid": 0.28,
    "catalog/xid": 0.11,
    "firmware": 0.38,
    "memory": 0.25,
    "nvlink": 0.57,
    "thermal": 0.89,
    "unknown": 0.32,
}
MOST = 0.97  # no log proves its own reading


def family(rule_id: str) -> str:
    """The part of a rule's id that says who wrote it: `bus/gpu_lost` is of `bus`, `catalog/xid/79` of `catalog/xid`."""
    first, _, rest = rule_id.partition("/")
    if first != "catalog":
        return first
    section = rest.partition("/")[0]
    if section in CLUSTER_KINDS:
        return "catalog/cluster"
    return f"catalog/{section}" if section in ("xid", "sxid") else "catalog/kind"


def calibrated(rule_id: str, prior: float) -> float:
    """The confidence of a verdict that this rule gave, from 0 to `MOST`."""
    return min(MOST, 1 - (1 - prior) * DOUBT.get(family(rule_id), 1.0))
