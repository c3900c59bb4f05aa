"""Nothing but the facts decides: not how they are cut into steps, not a restart, not a replay."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from aggregator.correlator import Windows, restore, step
from aggregator.model import Incident, Phase, Signal
from tests.correlator.conftest import BOOT, RULES, START_US, Desk, final, gpu_pci, gpu_uuid, in_chunks

LATER = 5_000.0
POINTS = [("xid", code) for code in (13, 31, 45, 48, 63, 74, 79, 94, 119)] + [
    ("pcie_aer_fatal", None), ("soft_lockup", None), ("ecc_uncorrectable", None),
]  # fmt: skip
STATES = ["nvml_gpu_lost", "hw_thermal_slowdown", "row_remap_pending", "nvml_unavailable"]
CONTEXT = ["agent_started", "kernel_boot", "driver_unloaded", "driver_loaded", "gpu_reset_done", "gpu_assigned"]
kinds = st.one_of(
    st.tuples(st.sampled_from(POINTS), st.just(Phase.POINT)),
    st.tuples(st.sampled_from([(state, None) for state in STATES]), st.sampled_from([Phase.BEGAN, Phase.ENDED])),
    st.tuples(st.sampled_from([(kind, None) for kind in CONTEXT]), st.just(Phase.POINT)),
)


@st.composite
def sequences(draw: st.DrawFn) -> list[Signal]:
    """Signals of a few nodes in order of arrival, some late, some replayed."""
    signals = []
    at = 0.0
    for seq in range(draw(st.integers(1, 25))):
        at += draw(st.sampled_from([0.0, 0.2, 3.0, 70.0, 200.0, 2_000.0, 90_000.0]))
        (kind, code), phase = draw(kinds)
        gpu = draw(st.sampled_from([None, 0, 1, 2]))
        late = draw(st.sampled_from([0.0, 0.0, 0.0, 4.0, 300.0]))
        source = draw(st.sampled_from(["kmsg", "nvml"]))
        node = draw(st.sampled_from(["n1", "n1", "n1", "n2", "n3"]))
        signals.append(
            Signal(
                id=f"{node}/{source}/e/{seq}",
                kind=kind,
                code=code,
                node=node,
                source=source,
                order=seq,
                pci=None if gpu is None else gpu_pci(gpu),
                gpu_uuid=gpu_uuid(gpu) if gpu is not None and source == "nvml" else None,
                at_us=START_US + round((at - late) * 1e6),
                boot_id=draw(st.sampled_from([BOOT, BOOT, "boot-2"])),
                phase=phase,
                replayed=draw(st.sampled_from([False, False, True])),
            )
        )
    return signals


WINDOWS = Windows(fleet_nodes=2)


def run(
    chunks: list[list[Signal]], now: float, pause_after: int | None = None, *, restart: bool = False
) -> list[Incident]:
    """The incidents in the end. After a pause, in which there may be a restart, it is a little later: a restart takes time."""
    desk = Desk(WINDOWS)
    for number, chunk in enumerate(chunks):
        desk.take(*chunk, at=now)
        if number == pause_after:
            now += 0.001
            if restart:
                recent = [one for node in desk.state.nodes.values() for one in node.recent]
                desk.state = restore(desk.incidents.values(), recent, RULES)
    desk.take(at=now)
    return final(desk.incidents.values())


def end_of(signals: list[Signal]) -> float:
    return (max(one.at_us or 0 for one in signals) - START_US) / 1e6 + LATER


@given(sequences(), st.lists(st.integers(0, 100), max_size=8))
def test_any_cut_into_steps_gives_the_same_incidents(signals: list[Signal], cuts: list[int]) -> None:
    now = end_of(signals)
    assert run(in_chunks(signals, cuts), now) == run([signals], now)


@given(sequences(), st.integers(0, 100))
def test_a_restart_between_two_steps_changes_nothing(signals: list[Signal], cut: int) -> None:
    now = end_of(signals)
    chunks = in_chunks(signals, [cut])
    assert run(chunks, now, pause_after=0, restart=True) == run(chunks, now, pause_after=0)


@given(sequences())
def test_a_replay_into_an_empty_store_gives_the_same_ids_and_publishes_nothing(signals: list[Signal]) -> None:
    live = [replace(one, replayed=False) for one in signals]
    replayed = [replace(one, replayed=True) for one in signals]
    rebuilt = run([[one] for one in replayed], end_of(signals) + 1_000)
    assert [one.id for one in rebuilt] == [one.id for one in run([live], end_of(signals))]
    assert all(one.quiet for one in rebuilt)


@given(sequences())
def test_steps_in_the_facts_own_time_lose_none_and_double_none(signals: list[Signal]) -> None:
    desk = Desk(WINDOWS)
    for one in signals:
        desk.take(one)
    held = [
        known
        for incident in final(desk.incidents.values())
        if incident.subject.kind != "fleet"
        for known in incident.signals
    ]
    faults = [one for one in held if RULES.is_fault(one) and one.phase is not Phase.ENDED]
    assert len({one.id for one in faults}) == len(faults)
    assert sum(one.count for one in faults) == sum(
        RULES.is_fault(one) and one.phase is not Phase.ENDED for one in signals
    )


@given(sequences())
def test_waking_when_asked_is_enough(signals: list[Signal]) -> None:
    """Between two wakes nothing would have changed: a step at any other time says nothing new."""
    state = step(restore([], rule_book=RULES), signals, START_US, WINDOWS, RULES).state
    for _ in range(5):
        wake_us = step(state, [], START_US, WINDOWS, RULES).next_wake_us
        if wake_us is None or wake_us <= START_US:
            return
        assert step(state, [], wake_us - 1, WINDOWS, RULES).changes == ()
        state = step(state, [], wake_us, WINDOWS, RULES).state
