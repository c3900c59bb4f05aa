"""sysfs: what blocks, sleeps or fails to be read hurts nothing else, and is said."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from node_agent.attributes import Attributes
from node_agent.evidence import Gpu, Phase, Unreadable
from tests.collectors.conftest import WatchNode
from tests.collectors.node_tree import GPUS, NodeTree, block, is_waited_for, release, write
from tests.collectors.watching import never_blocked, until

GPU, OTHER_GPU = GPUS
SHORT_DEADLINE = 0.2


async def test_a_read_that_hangs_is_told_costs_one_thread_and_hurts_no_other_gpu(
    node: NodeTree, watch: WatchNode
) -> None:
    blocked = node.device(GPU) / "current_link_width"
    block(blocked)
    async with watch(deadline_seconds=SHORT_DEADLINE) as facts, never_blocked():
        began = await facts.first("sysfs_read_stuck", Phase.BEGAN)
        write(node.device(OTHER_GPU) / "current_link_width", "8")
        assert (await facts.first("pcie_gpu_degraded", Phase.BEGAN)).gpu == Gpu(pci=OTHER_GPU)
        await facts.stay(2)
        await until(
            lambda: sum(thread.name.startswith("reads ") for thread in threading.enumerate()) == 1, "one thread"
        )
        release(blocked, "16")
        ended = await facts.first("sysfs_read_stuck", Phase.ENDED)
        await facts.stay(3)
    assert began.gpu == ended.gpu == Gpu(pci=GPU)
    assert f"pci {GPU}" in began.detail


@pytest.mark.parametrize(
    ("attribute", "source"),
    [
        ("sys/module/nvidia/version", "driver version"),
        ("sys/devices/system/edac/mc/mc0/ue_count", "edac"),
        ("sys/class/infiniband/mlx5_0/ports/1/state", "infiniband mlx5_0"),
        ("proc/7/stat", "tasks"),
    ],
)
async def test_each_source_that_hangs_is_told_by_name_and_the_gpus_are_watched_on(
    attribute: str, source: str, node: NodeTree, watch: WatchNode
) -> None:
    blocked = node.sys.parent / attribute
    healthy = blocked.read_text()
    block(blocked)
    async with watch(deadline_seconds=SHORT_DEADLINE) as facts, never_blocked():
        began = await facts.first("sysfs_read_stuck", Phase.BEGAN)
        assert f"reading {source} has not returned" in began.detail
        node.count_aer(GPU, "aer_dev_fatal", 1)
        await facts.first("pcie_aer_fatal")
        release(blocked, healthy)
        await facts.first("sysfs_read_stuck", Phase.ENDED)


@pytest.mark.parametrize(("attribute", "text"), [("power/runtime_status", "suspended"), ("power_state", "D3cold")])
async def test_a_sleeping_gpu_is_not_read_and_its_states_stay_as_they_were(
    attribute: str, text: str, node: NodeTree, watch: WatchNode
) -> None:
    path = node.device(GPU)
    async with watch(deadline_seconds=SHORT_DEADLINE) as facts:
        write(path / "current_link_width", "8")
        await facts.first("pcie_gpu_degraded", Phase.BEGAN)
        write(path / attribute, text)
        await until(lambda: watch.collector.gpu_values[GPU] == {"pci_power": "asleep"}, "sleep")
        for name in ("current_link_width", "max_link_width", "current_link_speed", "max_link_speed"):
            block(path / name)
        await facts.stay(1, seconds=3 * SHORT_DEADLINE)
        assert not any(is_waited_for(path / name) for name in ("current_link_width", "current_link_speed"))


async def test_a_sleeping_adapter_and_its_ports_are_not_read(node: NodeTree, watch: WatchNode) -> None:
    write(node.device("0000:18:00.0") / "power/runtime_status", "suspended")
    block(node.port() / "state")
    block(node.device("0000:18:00.0") / "current_link_width")
    async with watch(deadline_seconds=SHORT_DEADLINE) as facts:
        await facts.stay(0, seconds=3 * SHORT_DEADLINE)


async def test_counters_of_a_virtual_function_are_not_read(node: NodeTree, watch: WatchNode) -> None:
    (node.device("0000:18:00.0") / "physfn").symlink_to("../0000:17:00.0")
    block(node.port() / "counters/link_downed")
    async with watch(deadline_seconds=SHORT_DEADLINE) as facts:
        await facts.stay(0, seconds=3 * SHORT_DEADLINE)


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        (f"bus/pci/devices/{GPU}/current_link_width", f"pci {GPU}"),
        ("class/infiniband/mlx5_0/ports/1/state", "infiniband mlx5_0"),
        ("devices/system/edac/mc/mc0/ce_count", "edac mc0"),
    ],
)
async def test_an_attribute_that_cannot_be_read_is_told_and_is_neither_a_fault_nor_health(
    attribute: str, name: str, node: NodeTree, watch: WatchNode
) -> None:
    path = node.sys / attribute
    path.unlink()
    path.mkdir()  # reading it fails with EISDIR
    async with watch() as facts:
        began = await facts.first("sysfs_unreadable", Phase.BEGAN)
        await facts.stay(1)
    assert began.detail.startswith(f"cannot read {name}")
    assert "EISDIR" in began.detail


@pytest.mark.parametrize(
    ("attribute", "bad", "kind"),
    [
        (f"bus/pci/devices/{GPU}/current_link_width", "8", "pcie_gpu_degraded"),
        ("class/infiniband/mlx5_0/ports/1/state", "1: DOWN", "nic_event"),
    ],
)
async def test_a_fault_that_can_no_longer_be_seen_has_not_ended(
    attribute: str, bad: str, kind: str, node: NodeTree, watch: WatchNode
) -> None:
    path = node.sys / attribute
    async with watch() as facts:
        await facts.stay(0)
        write(path, bad)
        await facts.first(kind, Phase.BEGAN)
        path.unlink()
        path.mkdir()
        await facts.first("sysfs_unreadable", Phase.BEGAN)
        await facts.stay(2)


def test_an_attribute_whose_read_failed_is_left_alone_for_a_while(tmp_path: Path) -> None:
    """Drivers may log each refusal: asking again at once would flood the kernel log."""
    path = tmp_path / "counter"
    path.mkdir()
    patient, eager = Attributes(retry_seconds=60.0), Attributes(retry_seconds=0.0)
    assert patient.read(str(path)) == eager.read(str(path)) == Unreadable("EISDIR")
    write(path, "5")
    assert patient.number(str(path)) == Unreadable("EISDIR")
    assert eager.number(str(path)) == 5


async def test_many_sources_that_hang_cost_one_thread_each(node: NodeTree, watch: WatchNode) -> None:
    """Never a growing number, however long it lasts."""
    before = threading.active_count()
    blocked = [node.device(gpu) / "current_link_width" for gpu in GPUS]
    blocked += [node.port() / "state", node.controller / "ue_count", node.proc / "7/stat"]
    for path in blocked:
        block(path)
    async with watch(deadline_seconds=SHORT_DEADLINE) as facts, never_blocked():
        await facts.first("sysfs_read_stuck", Phase.BEGAN, count=len(blocked))
        for _ in range(20):
            await asyncio.sleep(0.02)
            assert threading.active_count() <= before + len(blocked) + 2  # two that are reading what does not hang
        await facts.stay(len(blocked))
        for path in blocked:
            release(path, "")
