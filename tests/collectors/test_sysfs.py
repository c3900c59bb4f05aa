"""sysfs: each fact, its recovery, and what must not be one."""

from __future__ import annotations

import shutil

import pytest

from node_agent.collectors import CollectorAbsent
from node_agent.collectors.sysfs import SysfsCollector
from node_agent.evidence import Gpu, Observation, Phase
from tests.collectors.conftest import WatchNode
from tests.collectors.node_tree import GPUS, PORTS, NodeTree, write
from tests.collectors.watching import Facts, watching

GPU, OTHER_GPU = GPUS


async def test_a_healthy_node_gives_no_evidence_and_the_first_fault_is_seen(node: NodeTree, watch: WatchNode) -> None:
    async with watch() as facts:
        await facts.stay(0)
        write(node.controller / "ue_count", "1")
        await facts.first("host_memory_ue")
    assert watch.collector.pci_gpus == GPUS
    assert watch.collector.driver_version == "550.54.15"
    assert watch.collector.gpu_values[GPU] == {
        "pcie_link_width_lanes": 16,
        "pcie_link_width_max_lanes": 16,
        "pcie_link_speed_gts": 16.0,
        "pcie_link_speed_max_gts": 32.0,
        "aer_corrected_total": 0,
        "aer_nonfatal_total": 0,
        "aer_fatal_total": 0,
    }
    assert watch.collector.values["infiniband_mlx5_0_1_rate"] == "400 Gb/sec (4X NDR)"


async def test_a_gpu_link_that_loses_lanes_is_degraded_until_it_has_them_again(
    node: NodeTree, watch: WatchNode
) -> None:
    async with watch() as facts:
        write(node.device(GPU) / "current_link_width", "8")
        began = await facts.first("pcie_gpu_degraded", Phase.BEGAN)
        write(node.device(GPU) / "current_link_width", "16")
        await facts.first("pcie_gpu_degraded", Phase.ENDED)
        await facts.stay(2)
    assert began.gpu == Gpu(pci=GPU)
    assert began.body == Observation("pcie_link_width_lanes", None, 8, 16)
    assert "8 of 16" in began.detail


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({(GPU, "current_link_speed"): "2.5 GT/s PCIe"}, "an idle link runs slower on purpose"),
        ({(GPU, "current_link_width"): "8", (PORTS[GPU], "max_link_width"): "8"}, "the slot has no more lanes"),
        ({(PORTS[GPU], "max_link_width"): "1"}, "a virtual port claims one lane while sixteen are in use"),
        ({(GPU, "current_link_width"): "0", (GPU, "max_link_width"): "255"}, "a virtual device knows no width"),
    ],
)
async def test_a_link_is_not_degraded_because(
    changes: dict[tuple[str, str], str], why: str, node: NodeTree, watch: WatchNode
) -> None:
    for (address, attribute), text in changes.items():
        write(node.device(address) / attribute, text)
    async with watch() as facts:
        await facts.stay(0)


async def test_a_device_without_pcie_link_attributes_is_no_fault(node: NodeTree, watch: WatchNode) -> None:
    for path in node.device(GPU).glob("*_link_*"):
        path.unlink()
    async with watch() as facts:
        await facts.stay(0)


async def test_a_gpu_that_answers_with_all_ones_has_left_the_bus_and_is_not_called_narrow(
    node: NodeTree, watch: WatchNode
) -> None:
    async with watch() as facts:
        write(node.device(GPU) / "current_link_speed", "Unknown")
        write(node.device(GPU) / "current_link_width", "63")
        began = await facts.first("gpu_fallen_off_bus", Phase.BEGAN)
        write(node.device(GPU) / "current_link_width", "16")
        await facts.first("gpu_fallen_off_bus", Phase.ENDED)
        await facts.stay(2)
    assert began.gpu == Gpu(pci=GPU)


@pytest.mark.parametrize(
    ("attribute", "kind", "severity"),
    [
        ("aer_dev_correctable", "pcie_aer_corrected", "corrected"),
        ("aer_dev_nonfatal", "pcie_aer_nonfatal", "nonfatal"),
        ("aer_dev_fatal", "pcie_aer_fatal", "fatal"),
    ],
)
@pytest.mark.parametrize("address", [GPU, PORTS[GPU]])
async def test_errors_counted_at_a_gpu_or_its_port_name_that_gpu(
    attribute: str, kind: str, severity: str, address: str, node: NodeTree, watch: WatchNode
) -> None:
    node.count_aer(address, attribute, 3)  # from before the agent's start: its kernel lines tell of these
    async with watch() as facts:
        await facts.stay(0)
        node.count_aer(address, attribute, 5)
        fact = await facts.first(kind)
        await facts.stay(1)
    assert fact.gpu == Gpu(pci=GPU)
    assert fact.body == Observation(f"pci_{address}_aer_{severity}_total", 3, 5)
    assert "TOTAL" not in fact.detail


async def test_errors_at_a_port_above_several_gpus_blame_none_of_them(node: NodeTree, watch: WatchNode) -> None:
    second = "0000:3c:00.0"
    node.add_pci(second, f"pci0000:00/{PORTS[GPU]}/{second}", vendor="0x10de", kind="0x030000", driver="nvidia")
    async with watch(lambda: frozenset((*GPUS, second))) as facts:
        await facts.stay(0)
        node.count_aer(PORTS[GPU], "aer_dev_fatal", 1)
        assert (await facts.first("pcie_aer_fatal")).gpu is None
        await facts.stay(1)


async def test_corrected_errors_are_told_at_tenfold_steps_and_fatal_ones_each_time(
    node: NodeTree, watch: WatchNode
) -> None:
    async with watch() as facts:
        await facts.stay(0)
        for count, told in ((1, 1), (2, 1), (9, 1), (10, 2), (70, 2), (123, 3)):
            node.count_aer(GPU, "aer_dev_correctable", count)
            await facts.stay(told)
        for count in (1, 2):
            node.count_aer(GPU, "aer_dev_fatal", count)
            await facts.first("pcie_aer_fatal", count=count)


@pytest.mark.parametrize(
    ("kind", "nvml"),
    [("gpu_not_in_nvml", frozenset({OTHER_GPU})), ("gpu_not_on_bus", frozenset({*GPUS, GPU.replace("3b", "af")}))],
)
async def test_a_gpu_that_only_one_of_bus_and_nvml_sees_is_told_until_both_agree(
    kind: str, nvml: frozenset[str], watch: WatchNode
) -> None:
    seen: list[frozenset[str] | None] = [frozenset(GPUS)]
    async with watch(lambda: seen[-1]) as facts:
        await facts.stay(0)
        seen.append(nvml)
        began = await facts.first(kind, Phase.BEGAN)
        seen.append(None)  # the driver stops answering: nothing is known, so nothing has ended
        await facts.stay(1)
        seen.append(frozenset(GPUS))
        ended = await facts.first(kind, Phase.ENDED)
        await facts.stay(2)
    assert began.gpu == ended.gpu == Gpu(pci=next(iter(nvml ^ frozenset(GPUS))))


@pytest.mark.parametrize("driver", ["vfio-pci", "nouveau"])
async def test_a_gpu_that_another_driver_holds_is_not_missed_in_nvml(
    driver: str, node: NodeTree, watch: WatchNode
) -> None:
    node.bind(node.device(GPU), driver)
    async with watch(lambda: frozenset({OTHER_GPU})) as facts:
        await facts.stay(0)


async def test_a_gpu_that_leaves_the_bus_is_a_change_of_inventory(node: NodeTree, watch: WatchNode) -> None:
    async with watch(lambda: None) as facts:
        await facts.stay(0)
        node.remove(OTHER_GPU)
        fact = await facts.first("inventory_changed")
        await facts.stay(1)
    assert fact.body == Observation("pci_gpus", " ".join(GPUS), GPU)


async def test_a_new_driver_is_a_change_of_inventory(node: NodeTree, watch: WatchNode) -> None:
    async with watch() as facts:
        await facts.stay(0)
        (node.sys / "module/nvidia/version").unlink()
        await facts.first("inventory_changed", count=1)
        write(
            node.proc / "driver/nvidia/version",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder)\nGCC version: 12.3.0",
        )
        fact = await facts.first("inventory_changed", count=2)
    assert fact.body == Observation("driver_version", "", "570.86.15")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023", "535.129.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  550.54.15  Release Build", "550.54.15"),
        ("something new", "unknown"),
    ],
)
async def test_the_driver_names_its_version_in_proc(text: str, version: str, node: NodeTree, watch: WatchNode) -> None:
    (node.sys / "module/nvidia/version").unlink()
    write(node.proc / "driver/nvidia/version", text)
    async with watch() as facts:
        await facts.stay(0)
    assert watch.collector.driver_version == version


async def test_host_memory_errors_name_the_dimm(node: NodeTree, watch: WatchNode) -> None:
    async with watch() as facts:
        await facts.stay(0)
        write(node.controller / "dimm0/dimm_ue_count", "1")
        write(node.controller / "ue_count", "1")
        uncorrectable = await facts.first("host_memory_ue")
        for count, told in ((4, 2), (9, 2), (10, 3), (0, 3), (2, 4)):
            write(node.controller / "ce_count", str(count))
            await facts.stay(told)
    assert uncorrectable.body == Observation("edac_mc0_ue_total", 0, 1)
    assert "CPU0_DIMM_A1: 1" in uncorrectable.detail
    assert facts.all[-1].body == Observation("edac_mc0_ce_total", 0, 2, counter_reset=True)


async def test_a_port_that_goes_down_is_told_until_it_is_up(node: NodeTree, watch: WatchNode) -> None:
    node.add_adapter("mlx5_1", "0000:19:00.0")
    async with watch() as facts:
        await facts.stay(0)
        write(node.port() / "phys_state", "3: Disabled")
        write(node.port() / "state", "1: DOWN")
        began = await facts.first("nic_event", Phase.BEGAN)
        write(node.port() / "state", "4: ACTIVE")
        ended = await facts.first("nic_event", Phase.ENDED)
        await facts.stay(2)
    assert isinstance(began.body, Observation)
    assert isinstance(ended.body, Observation)
    assert began.body.field == ended.body.field == "infiniband_mlx5_0_1_state"
    assert began.body.after == "DOWN, Disabled"


async def test_a_port_that_was_never_up_has_no_cable_and_is_no_fault(node: NodeTree, watch: WatchNode) -> None:
    write(node.port() / "state", "1: DOWN")
    async with watch() as facts:
        await facts.stay(0)


@pytest.mark.parametrize(("counter", "told_at"), [("link_downed", (1, 2, 3)), ("symbol_error", (1, 10, 100))])
async def test_port_error_counters_are_told(
    counter: str, told_at: tuple[int, ...], node: NodeTree, watch: WatchNode
) -> None:
    async with watch() as facts:
        await facts.stay(0)
        for number, count in enumerate(told_at, start=1):
            write(node.port() / "counters" / counter, str(count))
            fact = await facts.first("nic_event", Phase.POINT, count=number)
            assert isinstance(fact.body, Observation)
            assert (fact.body.field, fact.body.after) == (f"infiniband_mlx5_0_1_{counter}_total", count)


async def test_an_adapter_with_fewer_lanes_is_degraded_until_it_has_them_again(
    node: NodeTree, watch: WatchNode
) -> None:
    async with watch() as facts:
        write(node.device("0000:18:00.0") / "current_link_width", "4")
        began = await facts.first("nic_pcie_degraded", Phase.BEGAN)
        write(node.device("0000:18:00.0") / "current_link_width", "16")
        await facts.first("nic_pcie_degraded", Phase.ENDED)
        await facts.stay(2)
    assert began.body == Observation("infiniband_mlx5_0_pcie_link_width_lanes", None, 4, 16)
    assert "0000:18:00.0" in began.detail


@pytest.mark.parametrize("missing", ["devices/system/edac", "class/infiniband"])
async def test_what_a_node_does_not_have_is_no_fault(missing: str, node: NodeTree, watch: WatchNode) -> None:
    shutil.rmtree(node.sys / missing)
    async with watch() as facts:
        await facts.stay(0)


async def test_gpus_are_not_missed_on_a_bus_that_cannot_be_seen(node: NodeTree) -> None:
    shutil.rmtree(node.sys / "bus")
    async with watching(SysfsCollector(node.sys, node.proc, lambda: frozenset(GPUS), interval_seconds=0.01)) as facts:
        await facts.stay(0)


async def test_without_sysfs_and_procfs_the_collector_is_absent(node: NodeTree) -> None:
    collector = SysfsCollector(node.sys / "none", node.proc / "none", lambda: None)
    with pytest.raises(CollectorAbsent):
        await collector.collect(Facts().report)
