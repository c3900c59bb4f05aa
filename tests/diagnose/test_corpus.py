"""The corpus is well formed, and the engine judges it as well as issue 4 asks, also the part that nobody tunes on.

A failure names no held-out case: figures are compared, never scores, so that nothing of that set shows in an assertion's explanation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.kinds import KINDS
from tests.diagnose.scoring import Score, brier, judged, load, rate, scored, signal_recall

EVERY_CASE = [(case, held_out) for held_out in (False, True) for case in load(held_out=held_out)]
SETS = ("open", "held_out")


def coded(score: Score) -> bool:
    return score.coded


def not_coded(score: Score) -> bool:
    return not score.coded


# What is measured, over which cases, and the least that is accepted in percent: issue 4's figures.
FLOORS: dict[str, tuple[Callable[[Score], bool], Callable[[Score], bool], int]] = {
    "detection": (lambda score: score.detected, lambda _: True, 98),
    "lenient, with XID or SXid": (lambda score: score.lenient, coded, 95),
    "strict, with XID or SXid": (lambda score: score.strict, coded, 80),
    "lenient, without": (lambda score: score.lenient, not_coded, 85),
    "strict, without": (lambda score: score.strict, not_coded, 60),
}
FORBIDDEN_AT_MOST = {"open": 0, "held_out": 0}  # issue 4: none


@pytest.fixture(scope="module")
def every_score() -> dict[str, list[Score]]:
    return {"open": scored(held_out=False), "held_out": scored(held_out=True)}


@pytest.mark.parametrize("part", SETS)
@pytest.mark.parametrize("measure", FLOORS)
def test_rate_reaches_its_floor(every_score: dict[str, list[Score]], part: str, measure: str) -> None:
    good, counts, floor = FLOORS[measure]
    percent = 100 * rate([score for score in every_score[part] if counts(score)], good)
    assert percent >= floor


@pytest.mark.parametrize("part", SETS)
def test_no_more_forbidden_advice_than_known(every_score: dict[str, list[Score]], part: str) -> None:
    forbidden = sum(bool(score.harm) for score in every_score[part])
    assert forbidden <= FORBIDDEN_AT_MOST[part]


@pytest.mark.parametrize("part", SETS)
def test_nine_of_ten_expected_signal_kinds_are_found(every_score: dict[str, list[Score]], part: str) -> None:
    recall = signal_recall(every_score[part])
    assert recall >= 0.9


@pytest.mark.parametrize("part", SETS)
def test_confidence_is_calibrated(every_score: dict[str, list[Score]], part: str) -> None:
    score = brier(every_score[part])
    assert score <= 0.1


def test_corpus_is_as_large_and_as_negative_as_issue_4_asks() -> None:
    negatives = sum("negative" in case["tags"] for case, _ in EVERY_CASE)
    assert len(EVERY_CASE) >= 300
    assert negatives >= len(EVERY_CASE) / 4
    assert len({case["id"] for case, _ in EVERY_CASE}) == len(EVERY_CASE)


def test_every_published_xid_has_a_case() -> None:
    codes = {code for case, _ in EVERY_CASE for code in case["facts"]["xids"]}
    assert set(range(1, 174)) | {177} <= codes


@pytest.mark.parametrize("held_out", [False, True], ids=SETS)
def test_every_case_is_well_formed(*, held_out: bool) -> None:
    problems = [
        f"{case['theme']}, case {number} of the set: {problem}"
        for number, case in enumerate(load(held_out=held_out), 1)
        for problem in _problems(case, held_out=held_out)
    ]
    assert not problems


def _problems(case: dict[str, Any], *, held_out: bool) -> Sequence[str]:
    expected = case["expected"]
    advice, forbidden = set(expected["acceptable_actions"]), set(expected.get("must_not_recommend", ()))
    detect = expected["detect"]
    codes = {f"xid:{code}" for code in case["facts"]["xids"]} | {f"sxid:{code}" for code in case["facts"]["sxids"]}
    negative = "negative" in case["tags"]
    checks = {
        "wrong set": (int(hashlib.sha256(case["id"].encode()).hexdigest(), 16) % 3 == 0) == held_out,
        "severity": {expected["severity"], *expected.get("severity_also_ok", ())} <= set(Severity),
        "class": {expected["class"], *expected.get("class_also_ok", ())} <= set(FaultClass),
        "advice": advice | forbidden <= set(Resolution) | set(Action),
        "acceptable and forbidden": not advice & forbidden,
        "kind": all(name in KINDS for name in (_kind(name) for name in detect) if name),
        "codes differ from facts": codes == {name for name in detect if _kind(name) is None},
        "negative with code or fault": not negative or (not codes and expected["severity"] in ("ok", "info")),
        "no reason": case["why"].strip() != "",
        "no lines": bool(case["raw_log_lines"]),
    }
    return [name for name, holds in checks.items() if not holds]


def _kind(name: str) -> str | None:
    return name.removeprefix("signal:") if name.startswith("signal:") else None


CASE = {
    "facts": {"xids": [79], "sxids": [], "pci": []},
    "tags": [],
    "expected": {
        "detect": ["xid:79", "signal:pcie_surprise_down"],
        "must_not_detect": ["xid:*"],
        "severity": "critical",
        "class": "pcie",
        "class_also_ok": ["hardware"],
        "acceptable_actions": ["reboot", "drain"],
        "must_not_recommend": ["rma"],
    },
}
SEEN = ({"kind": "xid", "code": 79}, {"kind": "pcie_surprise_down", "code": None})
BEST = {"severity": "critical", "fault_class": "pcie", "action": "drain", "resolutions": ["reboot"], "confidence": 0.9}


@pytest.mark.parametrize(
    ("seen", "incidents", "wanted"),
    [
        pytest.param(SEEN, [BEST], (True, True, True, 1, False), id="all right"),
        pytest.param(SEEN[:1], [BEST], (True, True, True, 0, False), id="a kind missed is no code missed"),
        pytest.param((*SEEN, {"kind": "xid", "code": 13}), [BEST], (False, True, True, 1, False), id="a code too many"),
        pytest.param(SEEN, [BEST | {"fault_class": "hardware"}], (True, True, False, 1, False), id="second best class"),
        pytest.param(
            SEEN, [BEST | {"resolutions": ["monitor"]}], (True, True, False, 1, False), id="right only on node level"
        ),
        pytest.param(
            SEEN, [BEST | {"resolutions": ["reboot", "rma"]}], (True, False, False, 1, True), id="harm in a tail"
        ),
        pytest.param(SEEN, [BEST | {"severity": "info"}, BEST], (True, True, True, 1, False), id="the worst is judged"),
        pytest.param((), [], (False, False, False, 0, False), id="silence"),
    ],
)
def test_scorer_judges_as_the_labelling_standard_says(
    seen: Sequence[dict[str, Any]], incidents: list[dict[str, Any]], wanted: tuple[bool, bool, bool, int, bool]
) -> None:
    score = judged(CASE, {"signals": list(seen), "incidents": incidents})
    assert (score.detected, score.lenient, score.strict, score.signals_hit, bool(score.harm)) == wanted
