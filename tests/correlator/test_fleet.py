"""One fault on many nodes is one alert."""

from __future__ import annotations

import pytest

from aggregator.correlator import restore
from aggregator.correlator.fleet import MAX_NODES
from aggregator.model import Incident, IncidentState
from tests.correlator.conftest import RULES, Desk, began, ended, signal


def fleet_of(desk: Desk) -> Incident | None:
    return next((one for one in desk.incidents.values() if one.subject.kind == "fleet"), None)


def members_of(desk: Desk) -> list[Incident]:
    return [one for one in desk.incidents.values() if one.subject.kind != "fleet"]


def test_enough_nodes_with_one_fault_make_one_fleet_incident(desk: Desk) -> None:
    for number in range(7):
        desk.take(signal(79, number % 3, number, node=f"n{number}"))
    fleet = fleet_of(desk)
    assert fleet is not None
    assert fleet.nodes == tuple(f"n{number}" for number in range(7))
    assert {one.fleet_id for one in members_of(desk)} == {fleet.id}
    assert len(members_of(desk)) == 7


@pytest.mark.parametrize(
    "facts",
    [
        [signal(79, 0, at, node=f"n{at}") for at in range(4)],
        [signal(79, gpu, gpu * 100) for gpu in range(8)],
        [signal(79, 0, 400 * at, node=f"n{at}") for at in range(8)],
        [signal(code, 0, 0, node=f"n{code}") for code in range(70, 80)],
    ],
    ids=["too few nodes", "one node", "too far apart", "different faults"],
)
def test_less_than_that_makes_none(desk: Desk, facts: list) -> None:  # type: ignore[type-arg]
    for fact in facts:
        desk.take(fact)
    assert fleet_of(desk) is None


def test_it_ends_with_its_last_member(desk: Desk) -> None:
    for number in range(5):
        desk.take(began("nvml_gpu_lost", 0, number, node=f"n{number}"))
    for number in range(5):
        fleet = fleet_of(desk)
        assert fleet is not None
        assert fleet.state is IncidentState.OPEN
        desk.take(ended("nvml_gpu_lost", 0, 60 + number, node=f"n{number}"))
    fleet = fleet_of(desk)
    assert fleet is not None
    assert (fleet.state, fleet.resolved_because) == (IncidentState.RESOLVED, "recovered")


@pytest.mark.parametrize("announced_first", [True, False])
def test_a_driver_upgrade_on_ten_nodes_pages_nobody(desk: Desk, announced_first: bool) -> None:
    for number in range(10):
        name = f"n{number}"
        facts = [signal("driver_unloaded", None, number, node=name), began("nvml_unavailable", None, number, node=name)]
        desk.take(*(facts if announced_first else reversed(facts)))
    assert len(desk.incidents) == 11
    assert all(one.held_until_us for one in desk.incidents.values())
    for number in range(10):
        desk.take(ended("nvml_unavailable", None, 20 + number, node=f"n{number}"))
    assert {one.state for one in desk.incidents.values()} == {IncidentState.RESOLVED}


def test_one_node_that_no_plan_excuses_lifts_the_hold_of_the_fleet_incident(desk: Desk) -> None:
    for number in range(6):
        if number:
            desk.take(signal("driver_unloaded", None, 0, node=f"n{number}"))
        desk.take(began("nvml_unavailable", None, 1, node=f"n{number}"))
    fleet = fleet_of(desk)
    assert fleet is not None
    assert fleet.held_until_us is None


@pytest.mark.parametrize(("lead", "certain"), [(1.0, False), (10.0, True)])
def test_a_first_node_is_claimed_only_beyond_the_clocks_error(desk: Desk, lead: float, certain: bool) -> None:
    desk.take(signal(79, 0, 0, node="n0"))
    desk.take(*(signal(79, 0, lead + number, node=f"n{number}") for number in range(1, 6)))
    fleet = fleet_of(desk)
    assert fleet is not None
    assert ("first_by_seconds" in fleet.signals[0].attributes) is certain


def test_thousands_of_nodes_cost_one_small_incident(desk: Desk) -> None:
    for start in range(0, 2_000, 100):
        desk.take(*(signal(79, 0, (start + number) * 0.02, node=f"n{start + number}") for number in range(100)))
    fleet = fleet_of(desk)
    assert fleet is not None
    assert len(fleet.signals) == 16
    assert sum(one.count for one in fleet.signals) == 2_000
    assert len(fleet.nodes) == MAX_NODES


def test_it_goes_on_after_a_restart(desk: Desk) -> None:
    for number in range(6):
        desk.take(began("nvml_gpu_lost", 0, number, node=f"n{number}"))
    desk.state = restore(desk.incidents.values(), rule_book=RULES)
    assert desk.take(at=10) == []
    desk.take(began("nvml_gpu_lost", 0, 20, node="n6"))
    fleet = fleet_of(desk)
    assert fleet is not None
    assert len(fleet.nodes) == 7
    desk.take(*(ended("nvml_gpu_lost", 0, 60, node=f"n{number}") for number in range(7)))
    assert {one.state for one in desk.incidents.values()} == {IncidentState.RESOLVED}
