"""Confidence: calibrated by family, in the order of the priors, never certain."""

from __future__ import annotations

import pytest

from aggregator.rules.calibration import DOUBT, MOST, calibrated, family


@pytest.mark.parametrize(
    ("rule_id", "name"),
    [
        ("bus/gpu_lost", "bus"),
        ("catalog/xid/79", "catalog/xid"),
        ("catalog/sxid/12020", "catalog/sxid"),
        ("catalog/hung_task", "catalog/kind"),
        ("unknown/xid/999", "unknown"),
        ("no_fault", "no_fault"),
    ],
)
def test_a_rule_belongs_to_the_family_of_its_author(rule_id: str, name: str) -> None:
    """Rules that were written together are measured together."""
    assert family(rule_id) == name


@pytest.mark.parametrize("name", [*DOUBT, "a family that nobody has measured"])
def test_a_higher_prior_gives_a_higher_confidence_and_never_certainty(name: str) -> None:
    """Calibration changes how sure a verdict is, not which of two is surer; no doubt grows."""
    steps = [calibrated(name, prior / 100) for prior in range(100)]
    assert steps == sorted(steps)
    assert steps[-1] <= MOST
    assert all(step >= min(MOST, prior / 100) - 1e-9 for prior, step in enumerate(steps))


def test_what_nobody_has_measured_keeps_its_prior() -> None:
    """No experience, no claim."""
    assert calibrated("host/machine_check", 0.5) == 0.5
