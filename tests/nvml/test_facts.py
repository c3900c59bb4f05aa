"""What becomes evidence: changes and crossings, each once, and nothing that stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.evidence import UNSUPPORTED, Fact, Gpu, Observation, Phase, Unreadable, Value
from node_agent.nvml.counters import COUNTERS
from node_agent.nvml.facts import Known, compare
from node_agent.nvml.protocol import Gone, GpuReading

HEALTHY: Mapping[str, Value] = {
    "clocks_event_reasons": 1,
    "temperature_celsius": 41,
    "temperature_slowdown_celsius": 89,
    "memory_temperature_celsius": 48,
    "temperature_memory_max_celsius": 95,
    "temperature_margin_celsius": 46,
    "recovery_action": "none",
    "row_remap_pending": False,
    "row_remap_failure": False,
    "retired_page_pending": UNSUPPORTED,
    "sram_threshold_exceeded": False,
    "nvlink_states": "active active active",
    "fabric_state": "completed",
    "fabric_status": 0,
    "fabric_health_mask": 0x1AA,
    "fabric_health": "healthy",
    "pcie_width_lanes": 16,
    "pcie_width_max_lanes": 16,
    "pcie_generation": 1,
    "pcie_generation_max": 5,
    "utilization_percent": 0,
    "mig_enabled": False,
    "mig_layout": "",
    **dict.fromkeys(COUNTERS, 0),
}


class Walk:
    """One GPU through time."""

    def __init__(self, **values: Value) -> None:
        self.known = Known(Gpu(uuid="GPU-1", pci="0000:1b:00.0"))
        self.at = 1000.0
        self.first = self.read(**{**HEALTHY, **values})

    def read(self, seconds: float = 1.0, *, gone: Gone | None = None, **values: Value) -> list[Fact]:
        """Facts of one reading, so many seconds after the last."""
        self.at += seconds
        self.known, facts = compare(self.known, GpuReading("GPU-1", values, gone), self.at)
        return facts

    def hold(self, seconds: int, **values: Value) -> list[Fact]:
        """Facts of a reading each second while the values stay."""
        return [fact for _ in range(seconds) for fact in self.read(**values)]


def told(facts: list[Fact]) -> list[tuple[str, Phase]]:
    return [(fact.kind, fact.phase) for fact in facts]


# kind, bad values, seconds until told, good values, seconds until its end is told
STATES: list[tuple[str, dict[str, Any], int, dict[str, Any], int]] = [
    ("recovery_action", {"recovery_action": "gpu_reset"}, 0, {"recovery_action": "none"}, 0),
    ("row_remap_pending", {"row_remap_pending": True}, 0, {"row_remap_pending": False}, 0),
    ("row_remap_failure", {"row_remap_failure": True}, 0, {"row_remap_failure": False}, 0),
    ("retired_page_pending", {"retired_page_pending": True}, 0, {"retired_page_pending": False}, 0),
    ("sram_threshold_exceeded", {"sram_threshold_exceeded": True}, 0, {"sram_threshold_exceeded": False}, 0),
    ("nvlink_link_down", {"nvlink_states": "active inactive active"}, 0, {"nvlink_states": "active sleep active"}, 0),
    (
        "fabric_state",
        {"fabric_state": "in_progress", "fabric_status": UNSUPPORTED},
        30,
        {"fabric_state": "completed"},
        0,
    ),
    (
        "fabric_state",
        {"fabric_state": "completed", "fabric_status": 999},
        30,
        {"fabric_state": "completed", "fabric_status": 0},
        0,
    ),
    (
        "fabric_state",
        {"fabric_state": "completed", "fabric_health_mask": 0x1A9},
        30,
        {"fabric_state": "completed", "fabric_health_mask": 0x1AA},
        0,
    ),
    (
        "fabric_state",
        {"fabric_state": "completed", "fabric_health": "unhealthy"},
        30,
        {"fabric_state": "completed", "fabric_health": "healthy"},
        0,
    ),
    ("pcie_gpu_degraded", {"pcie_width_lanes": 8}, 10, {"pcie_width_lanes": 16}, 10),
    (
        "pcie_gpu_degraded",
        {"pcie_width_lanes": 16, "pcie_generation": 3, "utilization_percent": 99},
        10,
        {"pcie_width_lanes": 16, "pcie_generation": 5, "utilization_percent": 99},
        10,
    ),
    ("hw_slowdown", {"clocks_event_reasons": 0x8}, 2, {"clocks_event_reasons": 0}, 10),
    ("hw_thermal_slowdown", {"clocks_event_reasons": 0x48}, 2, {"clocks_event_reasons": 0x8 | 0x80 | 0x1}, 10),
    ("hw_power_brake", {"clocks_event_reasons": 0x88}, 2, {"clocks_event_reasons": 0}, 10),
    ("sw_thermal_slowdown", {"clocks_event_reasons": 0x24}, 10, {"clocks_event_reasons": 0x4}, 30),
    ("thermal_margin_violation", {"temperature_margin_celsius": -1}, 2, {"temperature_margin_celsius": 3}, 30),
    (
        "thermal_margin_violation",
        {"temperature_margin_celsius": UNSUPPORTED, "temperature_celsius": 90},
        2,
        {"temperature_celsius": 70},
        30,
    ),
    (
        "thermal_margin_violation",
        {"temperature_celsius": 60, "memory_temperature_celsius": 96},
        2,
        {"temperature_celsius": 60, "memory_temperature_celsius": 80},
        30,
    ),
    ("nvml_value_unreadable", {"power_watts": Unreadable("Unknown Error")}, 20, {"power_watts": 70.0}, 0),
]


@pytest.mark.parametrize(("kind", "bad", "begins", "good", "ends"), STATES)
def test_a_state_is_told_once_when_it_lasts_and_once_when_it_is_over(
    kind: str, bad: dict[str, Any], begins: int, good: dict[str, Any], ends: int
) -> None:
    walk = Walk()
    assert walk.hold(begins, **bad) == [], "too early"
    began = walk.read(**bad)
    assert told(began) == [(kind, Phase.BEGAN)]
    body = began[0].body
    assert isinstance(body, Observation)
    assert body.field
    assert walk.hold(60, **bad) == [], "a steady state is no news"
    ended = [fact for fact in walk.hold(ends, **good) if fact.kind == kind]
    assert ended == [], "too early"
    assert (kind, Phase.ENDED) in told(walk.read(**good))
    assert [fact for fact in walk.hold(60, **good) if fact.kind == kind] == []


@pytest.mark.parametrize(
    ("name", "bad"),
    [("row_remap_pending", True), ("recovery_action", "gpu_reset"), ("nvlink_states", "active inactive active")],
)
@pytest.mark.parametrize("nothing", [UNSUPPORTED, Unreadable("Unknown Error"), None])
def test_a_state_stands_while_nothing_can_be_said(name: str, bad: Value, nothing: Value) -> None:
    """A value that cannot be read is no recovery."""
    walk = Walk()
    walk.read(**{name: bad})
    assert walk.hold(5, **{name: nothing}) == []
    assert walk.read(**{name: bad}) == []


def test_a_blip_is_no_state() -> None:
    walk = Walk()
    for _ in range(20):
        assert walk.read(clocks_event_reasons=0x48) + walk.read(clocks_event_reasons=0x4) == []


def test_idle_and_power_cap_are_benign() -> None:
    walk = Walk()
    assert walk.hold(60, clocks_event_reasons=0x1) + walk.hold(60, clocks_event_reasons=0x4) == []


def test_a_generation_lowered_while_idle_is_benign_and_idling_is_no_recovery() -> None:
    walk = Walk()
    assert walk.hold(30, pcie_width_lanes=16, pcie_generation=1, utilization_percent=0) == []
    walk.hold(12, pcie_width_lanes=16, pcie_generation=1, utilization_percent=90)
    assert walk.hold(60, pcie_width_lanes=16, pcie_generation=1, utilization_percent=0) == []


def test_a_link_that_was_never_active_is_not_down() -> None:
    """An unbridged PCIe board shows every link inactive."""
    assert told(Walk(nvlink_states="inactive inactive inactive").first) == []


def test_another_recovery_action_is_told_anew() -> None:
    walk = Walk()
    walk.read(recovery_action="gpu_reset")
    (fact,) = walk.read(recovery_action="node_reboot")
    assert (fact.phase, fact.body) == (Phase.BEGAN, Observation("recovery_action", "gpu_reset", "node_reboot"))


def test_another_link_down_is_told_anew_with_all_of_them() -> None:
    walk = Walk()
    walk.read(nvlink_states="active inactive active")
    (fact,) = walk.read(nvlink_states="inactive inactive active")
    assert isinstance(fact.body, Observation)
    assert fact.body.after == "0,1"


def test_a_limit_of_zero_degrees_is_no_limit() -> None:
    """What a board without memory sensor gives."""
    walk = Walk(temperature_memory_max_celsius=0)
    assert walk.hold(10, temperature_celsius=41, memory_temperature_celsius=20) == []


@pytest.mark.parametrize("code", [15, 999, 17])
def test_a_lost_gpu_and_its_return(code: int) -> None:
    walk = Walk()
    assert told(walk.read(gone=Gone(code, "words"))) == [("nvml_gpu_lost", Phase.BEGAN)]
    assert walk.read(gone=Gone(code, "words")) == []
    assert told(walk.read(temperature_celsius=40)) == [("nvml_gpu_lost", Phase.ENDED)]


def test_a_loss_does_not_end_what_was_told_before() -> None:
    walk = Walk()
    walk.read(row_remap_pending=True)
    assert told(walk.read(gone=Gone(15, "GPU is lost"))) == [("nvml_gpu_lost", Phase.BEGAN)]
    assert walk.read(gone=Gone(15, "GPU is lost")) == []


# --- counters
EVERY_RISE = [counter for counter in COUNTERS.values() if counter.per_minute is None and not counter.covered_by]
RATED = [counter for counter in COUNTERS.values() if counter.per_minute is not None]


@pytest.mark.parametrize("counter", EVERY_RISE, ids=lambda counter: counter.field)
def test_every_rise_of_a_grave_counter_is_told_once(counter: Any) -> None:
    walk = Walk()
    (fact,) = walk.read(**{counter.field: 2})
    assert (fact.kind, fact.body) == (counter.kind, Observation(counter.field, 0, 2))
    assert walk.read(**{counter.field: 2}) == []
    assert told(walk.read(**{counter.field: 3})) == [(counter.kind, Phase.POINT)]


@pytest.mark.parametrize("counter", RATED, ids=lambda counter: counter.field)
def test_a_counter_of_corrected_errors_is_told_by_digits_and_by_rate(counter: Any) -> None:
    walk = Walk()
    assert told(walk.read(**{counter.field: 1})) == [(counter.kind, Phase.POINT)]
    assert walk.read(**{counter.field: 2}) == [], "single errors are corrected every day"
    assert told(walk.read(**{counter.field: 12})) == [(counter.kind, Phase.POINT)]
    grown = 12 + 3 * counter.per_minute
    facts = [
        fact for second in range(1, 121) for fact in walk.read(**{counter.field: 12 + second * counter.per_minute / 40})
    ]
    assert 2 <= len(facts) <= 4, "a storm costs about one fact a minute"
    assert walk.hold(120, **{counter.field: grown}) == []


def test_a_storm_of_corrected_errors_stays_bounded() -> None:
    walk = Walk()
    facts = [fact for second in range(600) for fact in walk.read(ecc_volatile_corrected_total=second * 1000)]
    assert len(facts) <= 10 + 6


def test_a_volatile_counter_that_falls_was_reset_and_repaired_nothing() -> None:
    walk = Walk()
    walk.read(ecc_volatile_uncorrected_total=5)
    (fact,) = walk.read(ecc_volatile_uncorrected_total=0)
    assert (fact.kind, fact.body) == (
        "ecc_counter_reset",
        Observation("ecc_volatile_uncorrected_total", 5, 0, counter_reset=True),
    )


def test_errors_after_a_reset_are_told_too() -> None:
    walk = Walk()
    walk.read(ecc_volatile_uncorrected_total=5)
    facts = walk.read(ecc_volatile_uncorrected_total=2)
    assert [fact.kind for fact in facts] == ["ecc_counter_reset", "ecc_uncorrectable"]
    assert facts[1].body == Observation("ecc_volatile_uncorrected_total", 0, 2)


def test_errors_since_driver_load_are_told_at_first_sight() -> None:
    (fact,) = Walk(ecc_volatile_uncorrected_total=3).first
    assert fact.body == Observation("ecc_volatile_uncorrected_total", None, 3)


def test_a_boards_history_is_no_news_at_first_sight() -> None:
    assert Walk(ecc_aggregate_uncorrected_total=9, row_remap_uncorrected_total=4, pcie_replay_total=7).first == []


def test_one_error_counted_in_both_totals_is_one_fact() -> None:
    walk = Walk()
    facts = walk.read(ecc_volatile_uncorrected_total=1, ecc_aggregate_uncorrected_total=1)
    assert [fact.body for fact in facts] == [Observation("ecc_volatile_uncorrected_total", 0, 1)]
    assert told(walk.read(ecc_volatile_uncorrected_total=2)) == [("ecc_uncorrectable", Phase.POINT)]
    assert walk.read(ecc_volatile_uncorrected_total=2, ecc_aggregate_uncorrected_total=2) == []


def test_an_error_before_a_driver_reload_shows_in_the_lifetime_total() -> None:
    """The volatile count is 0 again; the board's own count tells."""
    walk = Walk(ecc_aggregate_uncorrected_total=5)
    (fact,) = walk.read(ecc_volatile_uncorrected_total=0, ecc_aggregate_uncorrected_total=6)
    assert fact.body == Observation("ecc_aggregate_uncorrected_total", 5, 6)


def test_nvlink_errors_name_their_links() -> None:
    walk = Walk()
    (fact,) = walk.read(nvlink_crc_flit_errors_total=54102, nvlink_crc_flit_errors_by_link="3:54000 7:102")
    assert "3:54000 7:102" in fact.detail


def test_a_changed_mig_layout_is_a_fact() -> None:
    walk = Walk()
    assert [fact.body for fact in walk.read(mig_enabled=True, mig_layout="1/0")] == [
        Observation("mig_enabled", False, True)
    ]
    assert [fact.body for fact in walk.read(mig_layout="1/0 2/0")] == [Observation("mig_layout", "1/0", "1/0 2/0")]


# --- properties
_VALUES = st.fixed_dictionaries(
    {},
    optional={
        "clocks_event_reasons": st.sampled_from([0, 0x1, 0x4, 0x8, 0x20, 0x48, 0x88, UNSUPPORTED]),
        "temperature_celsius": st.integers(20, 110),
        "temperature_margin_celsius": st.one_of(st.integers(-10, 60), st.just(UNSUPPORTED)),
        "recovery_action": st.sampled_from(["none", "gpu_reset", "9", UNSUPPORTED, Unreadable("x")]),
        "row_remap_pending": st.sampled_from([True, False, UNSUPPORTED, Unreadable("x")]),
        "nvlink_states": st.sampled_from(["active active", "inactive active", "unknown sleep", UNSUPPORTED]),
        "fabric_state": st.sampled_from(["not_started", "in_progress", "completed", UNSUPPORTED]),
        "pcie_width_lanes": st.sampled_from([0, 8, 16, UNSUPPORTED]),
        "utilization_percent": st.integers(0, 100),
        "mig_layout": st.sampled_from(["", "1/0", "1/0 2/0"]),
        **{
            name: st.one_of(st.integers(0, 2000), st.sampled_from([UNSUPPORTED, Unreadable("x"), None]))
            for name in COUNTERS
        },
    },
)


@settings(max_examples=1000)
@given(walk=st.lists(_VALUES, min_size=1, max_size=12))
def test_what_stays_is_never_told_and_a_rise_never_missed(walk: list[dict[str, Any]]) -> None:
    """Whatever a GPU went through: once states have settled, the same reading again is silence for an hour; and each counter's
    told rises add up to what it rose."""
    gpu = Walk()
    risen = dict.fromkeys((counter.field for counter in EVERY_RISE), 0)
    told_rises = dict(risen)
    last = dict(risen)
    kinds = {counter.kind for counter in EVERY_RISE}
    for values in walk:
        facts = gpu.read(10, **values)
        for name in risen:
            after = values.get(name)
            if isinstance(after, int):
                fell = after < last[name]
                risen[name] += after if fell else after - last[name]
                last[name] = after
        for fact in facts:
            if fact.kind in kinds and isinstance(fact.body, Observation) and fact.body.field in risen:
                told_rises[fact.body.field] += fact.body.after - fact.body.before  # type: ignore[operator]
    assert told_rises == risen
    for _ in range(8):
        gpu.read(10, **walk[-1])
    assert [fact for _ in range(12) for fact in gpu.read(300, **walk[-1])] == []


@settings(max_examples=200)
@given(values=_VALUES)
def test_comparing_changes_nothing_it_was_given(values: dict[str, Any]) -> None:
    """Known is replaced, never changed: the old one still gives the same answer."""
    known, _ = compare(Known(Gpu(uuid="GPU-1")), GpuReading("GPU-1", HEALTHY), 0)
    frozen = replace(known, values=dict(known.values), told=dict(known.told), counts=dict(known.counts))
    once = compare(known, GpuReading("GPU-1", values), 50)
    assert known == frozen
    assert compare(known, GpuReading("GPU-1", values), 50) == once
