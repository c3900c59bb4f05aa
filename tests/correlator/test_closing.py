"""When an incident is over, when it is not, and when it continues."""

from __future__ import annotations

import pytest

from aggregator.correlator import Windows
from aggregator.model import IncidentState, Signal
from tests.correlator.conftest import START_US, Desk, began, ended, nvml, signal

HOUR, DAY = 3_600.0, 86_400.0


def stands(desk: Desk) -> tuple[str, str]:
    return desk.only().state.value, desk.only().resolved_because


def test_the_end_of_its_state_resolves_an_incident(desk: Desk) -> None:
    desk.take(began("hw_thermal_slowdown", 1, 0))
    (change,) = desk.take(ended("hw_thermal_slowdown", 1, 60))
    assert (change.kind, stands(desk)) == ("resolved", ("resolved", "recovered"))
    assert desk.only().resolved_us == START_US + 60_000_000


def test_every_state_must_have_ended(desk: Desk) -> None:
    desk.take(began("hw_thermal_slowdown", 1, 0), began("hw_thermal_slowdown", 2, 1))
    desk.take(ended("hw_thermal_slowdown", 1, 60))
    assert stands(desk) == ("open", "")
    desk.take(ended("hw_thermal_slowdown", 2, 90))
    assert stands(desk) == ("resolved", "recovered")


@pytest.mark.parametrize("lasting", [48, "ecc_uncorrectable"])
def test_the_end_of_heat_repairs_no_memory(desk: Desk, lasting: int | str) -> None:
    desk.take(signal(lasting, 1, 0), began("hw_thermal_slowdown", 1, 1), ended("hw_thermal_slowdown", 1, 60))
    assert stands(desk) == ("open", "")


def test_the_end_of_a_pending_remap_proves_the_reset_that_ends_the_rest(desk: Desk) -> None:
    desk.take(signal(63, 7, 0), nvml(63, 7, 0.1), nvml("ecc_uncorrectable", 7, 0.2), began("row_remap_pending", 7, 0.2))
    desk.take(ended("row_remap_pending", 7, 3))
    assert stands(desk) == ("resolved", "recovered")


def test_a_fault_after_its_repair_reopens_the_incident(desk: Desk) -> None:
    desk.take(signal(79, 5, 0), began("nvml_gpu_lost", 5, 1))
    desk.take(ended("nvml_gpu_lost", 5, 60))
    (change,) = desk.take(signal(79, 5, 4 * HOUR))
    assert (change.kind, len(desk.incidents)) == ("opened", 1)
    assert [one.code for one in desk.only().signals if one.kind == "xid"] == [79, 79]


def test_a_late_fact_revises_a_resolved_incident_and_leaves_it_resolved(desk: Desk) -> None:
    desk.take(began("nvml_gpu_lost", 5, 1), ended("nvml_gpu_lost", 5, 60))
    (change,) = desk.take(signal(79, 5, 0.5), at=600)
    assert (change.kind, stands(desk)) == ("revised", ("resolved", "recovered"))
    assert desk.only().signals[0].name == "xid 79"


def test_a_late_fact_leaves_a_quietly_closed_incident_closed(desk: Desk) -> None:
    desk.take(signal(13, 0, 0))
    desk.take(at=2 * HOUR)
    (change,) = desk.take(signal(43, 0, 1), at=2.1 * HOUR)
    assert (change.kind, stands(desk)) == ("revised", ("resolved", "quiet"))


@pytest.mark.parametrize(
    ("again", "incidents"),
    [
        (signal(13, 0, 20 * HOUR), 1),
        (signal(13, 0, 30 * HOUR), 2),
        (signal(31, 0, 20 * HOUR), 2),
        (signal(13, 1, 20 * HOUR), 2),
        (signal(13, 0, 20 * HOUR, boot_id="boot-2"), 1),
    ],
    ids=["the same fault", "a day later", "another fault", "another GPU", "after a reboot"],
)
def test_the_same_fault_continues_its_incident_and_no_other_does(desk: Desk, again: Signal, incidents: int) -> None:
    desk.take(signal(13, 0, 0))
    desk.take(at=2 * HOUR)
    (change,) = desk.take(again)
    assert change.kind == "opened"
    assert len(desk.incidents) == incidents


def test_silence_ends_what_needs_no_repair(desk: Desk) -> None:
    desk.take(signal(13, 0, 0))
    assert desk.next_wake_us == START_US + 3_600_000_000
    assert desk.take(at=HOUR - 1) == []
    (change,) = desk.take(at=HOUR)
    assert (change.kind, stands(desk)) == ("resolved", ("resolved", "quiet"))


def test_silence_about_a_fault_that_needs_repair_is_no_health(desk: Desk) -> None:
    desk.take(signal(79, 5, 0))
    desk.take(at=2 * DAY)
    assert stands(desk) == ("open", "")
    desk.take(at=8 * DAY)
    assert stands(desk) == ("resolved", "quiet")


def test_a_state_that_nobody_ended_still_holds(desk: Desk) -> None:
    desk.take(began("nvml_gpu_lost", 5, 0))
    desk.take(at=30 * DAY)
    assert stands(desk) == ("open", "")


def test_another_fault_of_a_gpu_that_is_still_lost_joins_its_incident(desk: Desk) -> None:
    desk.take(began("nvml_gpu_lost", 5, 0))
    desk.take(signal(119, 5, 5 * HOUR))
    assert [one.name for one in desk.only().signals] == ["nvml_gpu_lost", "xid 119"]


@pytest.mark.parametrize(
    ("repair", "because"),
    [
        (signal("kernel_boot", None, 600, boot_id="boot-2"), "rebooted"),
        (signal("agent_started", None, 600, boot_id="boot-2", source="agent"), "rebooted"),
        (signal("driver_loaded", None, 600), "recovered"),
        (signal("gpu_reset_done", 5, 600), "recovered"),
    ],
    ids=["boot", "agent in a new boot", "driver load", "reset"],
)
def test_a_repair_ends_an_incident_once_the_fault_had_time_to_show_itself_again(
    desk: Desk, repair: Signal, because: str
) -> None:
    desk.take(signal(79, 5, 0))
    desk.take(repair)
    assert stands(desk) == ("open", "")
    desk.take(at=600 + 180)
    assert stands(desk) == ("resolved", because)


@pytest.mark.parametrize(
    "no_repair",
    [
        signal("agent_started", None, 600, source="agent"),
        signal("gpu_reset_done", 4, 600),
        signal("gpu_assigned", 5, 600),
        ended("nvml_gpu_lost", 4, 600),
    ],
    ids=["agent in the same boot", "reset of another GPU", "a workload", "another GPU came back"],
)
def test_what_is_no_repair_leaves_it_open(desk: Desk, no_repair: Signal) -> None:
    desk.take(signal(79, 5, 0))
    desk.take(no_repair)
    desk.take(at=HOUR * 3)
    assert stands(desk) == ("open", "")


def test_a_fault_that_survives_the_reboot_keeps_the_incident_open(desk: Desk) -> None:
    desk.take(signal(79, 5, 0))
    desk.take(signal("kernel_boot", None, 600, boot_id="boot-2"))
    desk.take(signal(79, 5, 660, boot_id="boot-2"))
    desk.take(at=2 * HOUR)
    assert stands(desk) == ("open", "")
    assert {one.boot_id for one in desk.only().signals if one.code == 79} == {"boot-1", "boot-2"}


def test_a_state_that_a_restarted_agent_does_not_report_again_is_over(desk: Desk) -> None:
    desk.take(began("row_remap_pending", 5, 0), began("nvml_gpu_lost", 2, 0))
    desk.take(signal("agent_started", None, 100, source="agent"), began("nvml_gpu_lost", 2, 101))
    desk.take(at=100 + 600)
    by_kind = {one.signals[0].kind: one.state for one in desk.incidents.values()}
    assert by_kind == {"row_remap_pending": IncidentState.RESOLVED, "nvml_gpu_lost": IncidentState.OPEN}


UPGRADE = [
    pytest.param([signal("driver_unloaded", None, 0), began("nvml_unavailable", None, 1)], id="announced before"),
    pytest.param([began("nvml_unavailable", None, 0), signal("driver_unloaded", None, 1)], id="announced after"),
    pytest.param(
        [signal("driver_unloaded", None, 0), began("nvml_unavailable", None, 1), began("gpu_count_low", None, 2)],
        id="with GPUs gone",
    ),
]


@pytest.mark.parametrize("facts", UPGRADE)
def test_a_planned_state_holds_what_it_excuses_until_its_deadline(desk: Desk, facts: list[Signal]) -> None:
    for fact in facts:
        desk.take(fact)
    assert desk.only().held_because == "driver upgrade"
    assert (desk.only().held_until_us or 0) >= START_US + 900_000_000
    (change,) = desk.take(at=902)
    assert (change.kind, change.incident.held_until_us, change.incident.state) == ("revised", None, IncidentState.OPEN)


def test_a_hardware_fault_is_never_excused(desk: Desk) -> None:
    desk.take(signal("driver_unloaded", None, 0), began("nvml_unavailable", None, 1), signal(79, 5, 2))
    held = {one.signals[-1].kind: bool(one.held_because) for one in desk.incidents.values()}
    assert held == {"nvml_unavailable": True, "xid": False}


def test_what_was_open_before_the_plan_is_not_held(desk: Desk) -> None:
    desk.take(began("nvml_gpu_lost", 5, 0))
    desk.take(signal("driver_unloaded", None, 600))
    assert desk.only().held_because == ""


def test_replayed_facts_build_quietly_and_a_live_one_speaks(desk: Desk) -> None:
    (replayed,) = desk.take(signal(79, 5, 0, replayed=True), at=50)
    assert replayed.incident.quiet
    (live,) = desk.take(signal(79, 5, 60))
    assert not live.incident.quiet


def test_history_is_closed_as_it_arrives(desk: Desk) -> None:
    (change,) = desk.take(signal(13, 0, 0), at=3 * DAY)
    assert (change.kind, stands(desk)) == ("resolved", ("resolved", "quiet"))


def test_what_is_long_over_is_forgotten(desk: Desk) -> None:
    desk.take(signal(13, 0, 0))
    desk.take(at=2 * HOUR)
    desk.take(at=2 * DAY)
    assert not desk.state.nodes
    assert desk.next_wake_us is None


def test_windows_are_parameters() -> None:
    desk = Desk(Windows(quiet_close=5, burst_gap=2))
    desk.take(signal(13, 0, 0))
    desk.take(signal(31, 0, 3))
    assert len(desk.incidents) == 1  # not over yet
    desk.take(at=9)
    assert {one.resolved_because for one in desk.incidents.values()} == {"quiet"}
