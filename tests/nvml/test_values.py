"""Every value is read by the call that gives it, in its unit; what a GPU does not offer is unsupported and never 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent.evidence import UNSUPPORTED, Unreadable
from node_agent.nvml.protocol import read_reading
from tests.doubles.nvml.double import DoubleGpu, NvmlDouble, environment
from tests.nvml.children import Child
from tests.nvml.conftest import Watched, watch

Change = Callable[[DoubleGpu], object]


def _set(**numbers: Any) -> Change:
    return lambda gpu: gpu.set(**numbers)


@pytest.fixture(scope="module")
def opened(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NvmlDouble, Child]]:
    """One driver, opened once, for all values."""
    double = NvmlDouble(nvml_library, tmp_path_factory.mktemp("values") / "page", gpus=2)
    child = Child(environment(double))
    child.ask("open")
    yield double, child
    child.leave()
    double.close()


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("clocks_event_reasons", _set(clocks_event_reasons=0x48), 0x48),
        ("temperature_celsius", _set(temperature=77), 77),
        ("memory_temperature_celsius", _set(memory_temperature=91), 91),
        ("temperature_margin_celsius", _set(margin=-3), -3),
        ("recovery_action", _set(recovery_action=4), "drain_and_reset"),
        ("recovery_action", _set(recovery_action=42), "42"),
        ("ecc_volatile_corrected_total", _set(ecc_volatile_corrected=11), 11),
        ("ecc_volatile_uncorrected_total", _set(ecc_volatile_uncorrected=2**40), 2**40),
        ("ecc_aggregate_corrected_total", _set(ecc_aggregate_corrected=13), 13),
        ("ecc_aggregate_uncorrected_total", _set(ecc_aggregate_uncorrected=14), 14),
        ("sram_threshold_exceeded", _set(sram_threshold_exceeded=1), True),
        ("sram_volatile_corrected_total", _set(sram_volatile_corrected=3), 3),
        ("sram_volatile_uncorrected_total", _set(sram_volatile_parity=2, sram_volatile_secded=5), 7),
        ("sram_aggregate_corrected_total", _set(sram_aggregate_corrected=4), 4),
        ("sram_aggregate_uncorrected_total", _set(sram_aggregate_parity=1, sram_aggregate_secded=1), 2),
        ("row_remap_corrected_total", _set(remap_corrected=1), 1),
        ("row_remap_uncorrected_total", _set(remap_uncorrected=2), 2),
        ("row_remap_pending", _set(remap_pending=1), True),
        ("row_remap_failure", _set(remap_failure=1), True),
        ("row_remap_banks_max", _set(banks_max=600), 600),
        ("row_remap_banks_high", _set(banks_high=30), 30),
        ("row_remap_banks_partial", _set(banks_partial=7), 7),
        ("row_remap_banks_low", _set(banks_low=2), 2),
        ("row_remap_banks_none", _set(banks_none=1), 1),
        ("nvlink_states", lambda gpu: gpu.link(3, link_state=0), "active active active inactive" + " active" * 14),
        ("nvlink_active_links", lambda gpu: gpu.link(3, link_state=0), 17),
        ("nvlink_crc_flit_errors_total", lambda gpu: (gpu.link(3, link_crc=5), gpu.link(7, link_crc=2)), 7),
        ("nvlink_crc_flit_errors_by_link", lambda gpu: (gpu.link(3, link_crc=5), gpu.link(7, link_crc=2)), "3:5 7:2"),
        ("nvlink_replay_errors_total", lambda gpu: gpu.link(0, link_replay=9), 9),
        ("nvlink_recovery_errors_total", lambda gpu: gpu.link(17, link_recovery=1), 1),
        ("fabric_state", _set(fabric_state=2), "in_progress"),
        ("fabric_status", _set(fabric_status=999), 999),
        ("fabric_status", _set(fabric_state=2, fabric_status=999), UNSUPPORTED),
        ("fabric_health_mask", _set(fabric_health_mask=0x1A9), 0x1A9),
        ("fabric_health", _set(fabric_health_summary=3), "limited_capacity"),
        ("fabric_cluster_uuid", _set(fabric_uuid="ab" * 16), "abababab-abab-abab-abab-abababababab"),
        ("fabric_clique_id", _set(fabric_clique=32766), 32766),
        ("fabric_clique_id", _set(fabric_version=2, fabric_clique=5), 5),
        ("fabric_state", _set(fabric_state=0), UNSUPPORTED),
        ("pcie_width_lanes", _set(pcie_width=8), 8),
        ("pcie_width_max_lanes", _set(pcie_width_max=8), 8),
        ("pcie_generation", _set(pcie_generation=1), 1),
        ("pcie_generation_max", _set(pcie_generation_max=4), 4),
        ("pcie_replay_total", _set(pcie_replay=6), 6),
        ("power_watts", _set(power_mw=512_345), 512.345),
        ("power_limit_watts", _set(power_limit_mw=650_000), 650),
        ("clock_sm_mhz", _set(clock_sm=1410), 1410),
        ("clock_memory_mhz", _set(clock_memory=2500), 2500),
        ("clock_sm_max_mhz", _set(clock_sm_max=1755), 1755),
        ("clock_memory_max_mhz", _set(clock_memory_max=2600), 2600),
        ("utilization_percent", _set(utilization=97), 97),
        ("mig_enabled", _set(mig_mode=1), True),
        ("mig_pending_enabled", _set(mig_mode_pending=1), True),
        ("mig_layout", lambda gpu: (gpu.set(mig_mode=1), gpu.partition((2, 0), (1, 0))), "1/0 2/0"),
        ("temperature_shutdown_celsius", _set(threshold_shutdown=90), 90),
        ("temperature_slowdown_celsius", _set(threshold_slowdown=87), 87),
        ("temperature_memory_max_celsius", _set(threshold_memory_max=105), 105),
        ("temperature_gpu_max_celsius", _set(threshold_gpu_max=83), 83),
        ("temperature_shutdown_tlimit_celsius", _set(fields={193: -7}), -7),
        ("temperature_slowdown_tlimit_celsius", _set(fields={194: -1}), -1),
        ("temperature_memory_max_tlimit_celsius", _set(fields={195: 2}), 2),
        ("temperature_gpu_max_tlimit_celsius", _set(fields={196: 1}), 1),
        ("board_part_number", _set(board_part="699-2G530-0200-000"), "699-2G530-0200-000"),
        ("vbios_version", _set(vbios="96.00.99.00.01"), "96.00.99.00.01"),
        ("ecc_enabled", _set(ecc_enabled=0), False),
        ("ecc_pending_enabled", _set(ecc_enabled=1), True),
        ("xid_events_registered", _set(), True),
    ],
)
def test_value(opened: tuple[NvmlDouble, Child], name: str, change: Change, expected: Any) -> None:
    """A changed number arrives under its name, in its unit."""
    double, child = opened
    gpu = double.gpu(1)
    gpu.reset("h100")
    change(gpu)
    readings = {reading.uuid: reading for reading in read_reading(child.ask("snapshot")).gpus}
    assert readings[gpu.uuid].values[name] == expected


async def test_identity_is_uuid_pci_serial_minor_module_and_model(watched: Watched) -> None:
    gpu = (await watched.collector.snapshot(5)).gpus[1].gpu
    assert (gpu.uuid, gpu.pci, gpu.serial) == (
        "GPU-00000001-1111-2222-3333-000000000001",
        "0000:43:00.0",
        "1650123000001",
    )
    assert (gpu.minor, gpu.module_id, gpu.model) == (1, 2, "NVIDIA H100 80GB HBM3")


async def test_driver_and_nvml_versions_are_in_the_inventory(watched: Watched) -> None:
    inventory = (await watched.collector.snapshot(5)).inventory
    assert (inventory.driver_version, inventory.nvml_version) == ("570.158.01", "12.570.158.01")


UNSUPPORTED_SETS = {
    "h100": {"retired_pages_single_bit_total", "retired_page_pending", "nvlink_recovery_events_total"},
    "a100_mig": {"row_remap_pending", "row_remap_corrected_total", "fabric_state", "temperature_margin_celsius"},
    "b200": {"nvlink_crc_flit_errors_total", "nvlink_replay_errors_by_link", "retired_page_pending"},
    "v100": {"recovery_action", "row_remap_failure", "sram_threshold_exceeded", "mig_enabled"},
    "rtx4090": {
        *("ecc_volatile_corrected_total", "ecc_volatile_uncorrected_total", "ecc_enabled", "row_remap_pending"),
        *("row_remap_banks_max", "retired_page_pending", "sram_threshold_exceeded", "nvlink_states", "fabric_state"),
        *("memory_temperature_celsius", "temperature_margin_celsius", "recovery_action", "board_part_number"),
    },
}


@pytest.mark.parametrize("profile", UNSUPPORTED_SETS)
async def test_what_a_model_does_not_offer_is_unsupported(
    make_double: Callable[..., NvmlDouble], tmp_path: Path, profile: str
) -> None:
    """Per model; and nothing a model lacks makes a fault or hides another value."""
    async with watch(tmp_path / "state", environ=environment(make_double(profile))) as watched:
        await watched.until_read()
        values = await watched.values()
        assert {name for name in UNSUPPORTED_SETS[profile] if values[name] is not UNSUPPORTED} == set()
        assert isinstance(values["temperature_celsius"], int)
        await watched.rounds()
        assert {fact.kind for fact in watched.facts} == {"inventory_changed"}


async def test_blackwell_counts_nvlink_recoveries_in_other_fields(
    make_double: Callable[..., NvmlDouble], tmp_path: Path
) -> None:
    double = make_double("b200")
    double.gpu(0).link(4, link_recovery_events=6, link_recovery_failed=1)
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until_read()
        values = await watched.values()
    assert (values["nvlink_recovery_events_total"], values["nvlink_recovery_failed_events_by_link"]) == (6, "4:1")


async def test_retired_pages_are_counted_where_rows_are_not_remapped(
    make_double: Callable[..., NvmlDouble], tmp_path: Path
) -> None:
    double = make_double("v100")
    double.gpu(0).set(retired_single_bit=3, retired_double_bit=1, retired_pending=1)
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until_read()
        values = await watched.values()
    assert (values["retired_pages_single_bit_total"], values["retired_pages_double_bit_total"]) == (3, 1)
    assert values["retired_page_pending"] is True


OLDER = [
    ("nvmlDeviceGetTemperatureV", "temperature_celsius", 41),
    ("nvmlDeviceGetCurrentClocksEventReasons", "clocks_event_reasons", 1),
]


@pytest.mark.parametrize(("function", "name", "expected"), OLDER)
async def test_an_older_driver_is_asked_by_its_older_function(
    watched: Watched, double: NvmlDouble, function: str, name: str, expected: int
) -> None:
    double.rule(function, ret=13)
    assert (await watched.values())[name] == expected


async def test_fields_that_an_older_driver_lacks_are_read_by_their_functions(
    make_double: Callable[..., NvmlDouble], tmp_path: Path
) -> None:
    """Field ids that the driver does not know are INVALID_ARGUMENT; the functions still answer."""
    double = make_double()
    for field in (4, 91, 144, 145, 165, 230):
        double.gpu(0).fail_field(field, 2)
    double.gpu(0).set(ecc_volatile_uncorrected=2, remap_pending=1)
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until_read()
        values = await watched.values()
    assert (values["ecc_volatile_uncorrected_total"], values["row_remap_pending"]) == (2, True)
    assert (values["nvlink_active_links"], values["recovery_action"]) == (18, UNSUPPORTED)


async def test_a_value_whose_call_fails_is_an_error_and_hides_no_other(watched: Watched, double: NvmlDouble) -> None:
    double.rule("nvmlDeviceGetPowerUsage", ret=999, gpu=0)
    double.gpu(0).fail_field(82, 999)
    values = await watched.values(0)
    assert values["power_watts"] == values["memory_temperature_celsius"] == Unreadable("Unknown Error")
    assert (values["temperature_celsius"], values["recovery_action"]) == (41, "none")
    assert (await watched.values(1))["power_watts"] == 71
