"""The clock offset: the most exact probe counts, an old one counts less, a stepped clock voids what was known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.clock import ClockEstimate


def probe(estimate: ClockEstimate, *, ahead: float, there: float, back: float, at: float = 0.0) -> tuple[float, float]:
    offset = estimate.add(sent_at=1e9 + at, server_at=1e9 + at + there + ahead, round_trip=there + back, monotonic=at)
    return offset.seconds, offset.error


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=20), st.floats(-100, 100))
def test_the_truth_is_always_within_the_stated_error(paths: list[tuple[float, float]], ahead: float) -> None:
    estimate = ClockEstimate()
    for number, (there, back) in enumerate(paths):
        seconds, error = probe(estimate, ahead=ahead, there=there, back=back, at=float(number))
        assert abs(seconds - ahead) <= error + 1e-5


def test_the_shortest_round_trip_counts() -> None:
    estimate = ClockEstimate()
    probe(estimate, ahead=3.0, there=0.001, back=0.001, at=0.0)
    assert probe(estimate, ahead=3.0, there=1.0, back=0.0, at=0.1) == pytest.approx((3.0, 0.001), abs=1e-4)


def test_a_sample_loses_its_exactness_with_age() -> None:
    estimate = ClockEstimate()
    probe(estimate, ahead=3.0, there=0.001, back=0.001, at=0.0)
    _, error = probe(estimate, ahead=3.0, there=0.01, back=0.01, at=1000.0)
    assert error == pytest.approx(0.01)


def test_a_stepped_clock_is_believed_at_once() -> None:
    estimate = ClockEstimate()
    probe(estimate, ahead=0.0, there=0.001, back=0.001)
    assert probe(estimate, ahead=3600.0, there=0.01, back=0.01, at=1.0)[0] == pytest.approx(3600.0, abs=0.01)
    assert probe(estimate, ahead=3600.0, there=0.5, back=0.0, at=2.0)[0] == pytest.approx(3600.0, abs=0.01)
