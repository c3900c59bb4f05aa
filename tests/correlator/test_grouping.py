"""Which facts are one incident."""

from __future__ import annotations

from collections.abc import Iterator, KeysView

import pytest

from aggregator.correlator import State, Windows, identify
from aggregator.correlator.state import MAX_RECORDS, Node
from aggregator.model import Gpu, IncidentState, Signal
from tests.correlator.conftest import Desk, began, gpu_pci, gpu_uuid, nvml, signal


def test_the_first_fact_opens_at_once_and_later_ones_revise(desk: Desk) -> None:
    first = desk.take(signal(48, 3, 0))
    second = desk.take(signal(63, 3, 1))
    assert [(change.kind, len(change.incident.signals)) for change in first + second] == [("opened", 1), ("revised", 2)]
    assert first[0].incident.id == second[0].incident.id


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param([signal(48, 3, 0), signal(63, 3, 170), signal(45, 3, 340)], 1, id="one GPU, one burst"),
        pytest.param([signal(48, 3, 0), signal(95, 3, 10_000)], 2, id="another fault long after the burst"),
        pytest.param([signal(13, 0, 0), signal(48, 5, 1)], 2, id="an application fault beside a dying GPU"),
        pytest.param([signal(79, 5, 0), signal(74, 4, 2), signal(74, 6, 3)], 1, id="neighbours of a dead GPU"),
        pytest.param([signal(74, 4, 0), signal(74, 6, 1), signal(79, 5, 2)], 1, id="neighbours reported before the dead GPU"),
        pytest.param([signal("pcie_aer_fatal", None, 0), signal(79, 5, 1)], 1, id="the port's error before the loss"),
        pytest.param([signal(79, 5, 0), signal("pcie_aer_fatal", None, 1)], 1, id="the port's error after the loss"),
        pytest.param([signal(79, 5, 0), signal("pcie_aer_fatal", None, 100)], 2, id="too long after to be its cause"),
        pytest.param([signal(48, gpu, gpu) for gpu in range(8)], 1, id="one fault on many GPUs at once"),
        pytest.param([signal(48, 0, 0), signal(48, 1, 100)], 2, id="one fault on two GPUs, not at once"),
        pytest.param([began("nvml_hung", None, 0), signal(119, 6, 5)], 1, id="a hang, then its cause"),
        pytest.param([signal("soft_lockup", None, 0), signal("hung_task", None, 5)], 1, id="two facts about the node"),
        pytest.param([signal("soft_lockup", None, 0), signal("io_error", None, 5)], 2, id="two facts about the node that cannot be one event"),
        pytest.param([signal("io_error", 3, 0), signal(13, 3, 5)], 2, id="two facts about a GPU that cannot be one event"),
        pytest.param([signal("io_error", 3, 0), signal(13, 3, 1_000)], 2, id="nor can they after the burst"),
        pytest.param([signal("row_remap_pending", 3, 0), signal(13, 3, 10_000)], 2, id="a fault while a repair waits quietly"),
        pytest.param([signal("row_remap_pending", 3, 0), signal("row_remap_pending", 3, 400_000)], 1, id="a state that is told again"),
        pytest.param(
            [signal("nic_event", None, at, attributes={"bdf": f"0000:b{at}:00.0"}) for at in (1, 9)], 1, id="one fault on two adapters"
        ),
        pytest.param([signal("nic_event", None, 0, attributes={"bdf": "0000:b1:00.0"}), signal("soft_lockup", None, 5)], 2, id="an adapter and the node"),
        pytest.param([signal("soft_lockup", None, 0), signal(13, 0, 5)], 2, id="the node and a GPU, unrelated"),
        pytest.param(
            [signal("sxid", None, at, code=24007, pci="0000:87:00.0") for at in (0, 1)], 1, id="two reports of one switch"
        ),
        pytest.param([signal(48, 3, 0), signal(48, 3, 1, node="n2")], 2, id="two nodes"),
    ],
)  # fmt: skip
def test_facts_of_one_event_are_one_incident(desk: Desk, facts: list[Signal], expected: int) -> None:
    for fact in facts:
        desk.take(fact)
    still = [incident for incident in desk.incidents.values() if not incident.resolved_because.startswith("merged")]
    assert len(still) == expected


def test_incidents_that_prove_to_be_one_are_merged_into_the_older(desk: Desk) -> None:
    (link,) = desk.take(signal(74, 2, 0))
    (peer,) = desk.take(signal(145, 7, 1))
    assert link.incident.id != peer.incident.id
    merged, gone = sorted(
        desk.take(signal("sxid", None, 2, code=24007, pci="0000:87:00.0")), key=lambda c: c.kind == "resolved"
    )
    assert (merged.kind, merged.incident.id, len(merged.incident.signals)) == ("revised", link.incident.id, 3)
    assert gone.incident.id == peer.incident.id
    assert gone.incident.resolved_because == f"merged into {link.incident.id}"


@pytest.mark.parametrize(
    ("facts", "subject"),
    [
        ([signal(48, 3, 0)], ("gpu", gpu_pci(3), None)),
        ([nvml(48, 3, 0)], ("gpu", gpu_pci(3), gpu_uuid(3))),
        ([signal("pcie_aer_fatal", None, 0), signal(79, 5, 1)], ("gpu", gpu_pci(5), None)),
        ([signal(74, 3, 0), signal(74, 4, 0)], ("nvlink_peers", None, None)),
        ([signal("sxid", None, 0, code=20034, pci="0000:87:00.0")], ("nvlink_peers", None, None)),
        ([signal(48, 3, 0), signal(48, 4, 0)], ("node", None, None)),
        ([signal("soft_lockup", None, 0)], ("node", None, None)),
        ([signal("nic_event", None, 0, pci="0000:aa:00.0")], ("node", None, None)),
    ],
)
def test_the_subject_is_what_the_facts_are_about(
    desk: Desk, facts: list[Signal], subject: tuple[str, str, str]
) -> None:
    desk.take(*facts)
    found = desk.only().subject
    assert (found.kind, found.pci, found.gpu_uuid) == subject


def test_a_uuid_and_an_address_of_one_gpu_meet_once_they_are_known_to_be_one(desk: Desk) -> None:
    desk.take(signal("inventory_changed", 3, 0, gpu_uuid=gpu_uuid(3)))
    desk.take(signal(48, None, 1, source="nvml", gpu_uuid=gpu_uuid(3)))
    desk.take(signal(48, 3, 2))
    assert {(one.pci, one.gpu_uuid) for one in desk.only().signals} == {(gpu_pci(3), gpu_uuid(3))}


class Counted(dict[str, Node]):
    """Nodes, and how often somebody looked through all of them."""

    looks = 0

    def __iter__(self) -> Iterator[str]:
        self.looks += 1
        return super().__iter__()

    def keys(self) -> KeysView[str]:  # what a copy of a mapping with an order of its own asks
        self.looks += 1
        return super().keys()


def test_inventories_teach_the_names_of_all_gpus_in_one_look_at_the_state(desk: Desk) -> None:
    """Ten thousand nodes are identified at a restart: each must cost its own GPUs alone."""
    before = Counted(n0=Node())
    inventories = [(f"n{node}", [Gpu(gpu_uuid(n), gpu_pci(n)) for n in range(8)]) for node in range(1, 200)]
    desk.state = identify(State(nodes=before), inventories)
    assert before.looks == 1
    desk.take(*(signal(48, 3, 1, node=f"n{node}") for node in range(1, 200)))
    assert {one.gpu_uuid for incident in desk.incidents.values() for one in incident.signals} >= {gpu_uuid(3)}
    assert all(one.subject.gpu_uuid for one in desk.incidents.values() if one.subject.kind == "gpu")


def test_facts_are_told_in_their_order_however_they_arrive(desk: Desk) -> None:
    desk.take(signal(45, 3, 2), signal(48, 3, 0), signal(63, 3, 1))
    assert [one.code for one in desk.only().signals] == [48, 63, 45]
    assert desk.only().opened_us == desk.only().signals[0].at_us


@pytest.mark.parametrize("kind", ["gpu_assigned", "driver_unloaded", "agent_started"])
def test_what_is_no_fault_opens_nothing(desk: Desk, kind: str) -> None:
    assert desk.take(signal(kind, 3, 0)) == []


def test_circumstances_before_a_fault_are_part_of_its_incident(desk: Desk) -> None:
    desk.take(signal("pcie_aer_corrected", None, 0), signal("gpu_assigned", 5, 1), signal("gpu_assigned", 2, 1))
    desk.take(signal(79, 5, 30))
    assert [one.name for one in desk.only().signals] == ["pcie_aer_corrected", "gpu_assigned", "xid 79"]


def test_two_witnesses_are_two_citations_of_one_event(desk: Desk) -> None:
    desk.take(signal(94, 4, 0), nvml(94, 4, 0.2))
    first, second = desk.only().signals
    assert first.attributes["witnesses"] == second.attributes["witnesses"] == "kmsg,nvml"
    assert second.attributes["witness_of"] == first.id
    assert "witness_of" not in first.attributes


def test_witnesses_are_paired_first_with_first(desk: Desk) -> None:
    kernel = [signal(31, 0, at) for at in (0, 1, 2)]
    reports = [nvml(31, 0, at) for at in (2.1, 2.2)]
    desk.take(*kernel, *reports)
    pairs = {one.id: one.attributes.get("witness_of") for one in desk.only().signals if one.source == "nvml"}
    assert pairs == {reports[0].id: kernel[0].id, reports[1].id: kernel[1].id}
    (alone,) = [one for one in desk.only().signals if one.attributes["witnesses"] == "kmsg"]
    assert alone.id == kernel[2].id


@pytest.mark.parametrize(
    "other",
    [
        nvml(94, 4, 6),
        nvml(95, 4, 0),
        nvml(94, 4, 0, boot_id="boot-2"),
        nvml(94, 4, 0, mig="3"),
        signal(94, 4, 0),
    ],
    ids=["too late", "another code", "another boot", "another instance", "the same channel"],
)
def test_what_is_no_second_witness_stays_a_fact_of_its_own(desk: Desk, other: Signal) -> None:
    desk.take(signal(94, 4, 0), other)
    assert all("witness_of" not in one.attributes for one in desk.only().signals)
    assert {one.attributes["witnesses"] for one in desk.only().signals} <= {"kmsg", "nvml"}


def test_a_storm_is_kept_small_counted_whole_and_hides_nothing_else(desk: Desk) -> None:
    for start in range(0, 3_000, 100):
        desk.take(*(signal(31, 0, 0.01 * (start + number)) for number in range(100)))
    desk.take(signal(79, 0, 31))
    incident = desk.only()
    storm = [one for one in incident.signals if one.code == 31]
    assert len(storm) == 16
    assert sum(one.count for one in storm) == 3_000
    assert [one.code for one in incident.signals][-1] == 79


def test_many_kinds_of_facts_are_kept_small_too(desk: Desk) -> None:
    desk.take(*(signal(1000 + number, 0, number * 0.1) for number in range(500)))
    assert len(desk.only().signals) == 48
    assert sum(one.count for one in desk.only().signals) == 500


def test_a_flood_of_different_faults_stays_bounded(desk: Desk) -> None:
    for number in range(300):
        desk.take(signal(2000 + number, None, number * 0.01, pci=f"{number:04x}:01:00.0"))
    assert len(desk.incidents) == MAX_RECORDS
    last = max(desk.incidents.values(), key=lambda one: one.updated_us)
    assert len(last.signals) <= 48
    assert sum(one.count for incident in desk.incidents.values() for one in incident.signals) == 300


def test_the_id_follows_from_the_founding_fact_alone(desk: Desk) -> None:
    fact = signal(48, 3, 0, id="n1/kmsg/boot-1/77")
    desk.take(fact, at=0)
    again = Desk(Windows(burst_gap=10))
    again.take(fact, signal(63, 3, 1), at=5_000)
    assert desk.only().id == again.only().id


def test_the_state_given_to_a_step_stays_as_it_was(desk: Desk) -> None:
    desk.take(signal(48, 3, 0))
    before, known = desk.state, desk.only()
    desk.take(signal(63, 3, 1), began("nvml_gpu_lost", 3, 2))
    desk.state = before
    (change,) = desk.take(signal(64, 3, 3))
    assert [one.code for one in change.incident.signals] == [48, 64]
    assert known.state is IncidentState.OPEN
