"""The agent lets go of the driver on request, so that an upgrade or a GPU reset is not blocked, and takes it up again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from node_agent.collectors.nvml import SnapshotUnavailable
from node_agent.evidence import Phase
from tests.doubles.nvml.double import Action, NvmlDouble, environment
from tests.nvml.conftest import Watched, is_process, watch


async def test_no_handle_on_the_driver_remains(watched: Watched, double: NvmlDouble) -> None:
    """As soon as the call returns: NVML was shut down, no process holds a device file, the child is gone."""
    child = int(double.state.last_pid)
    assert double.holders() == [child]
    await watched.collector.yield_driver(30)
    assert (double.holders(), double.clients) == ([], 0)
    assert not is_process(child)
    assert watched.collector.yielded_until == pytest.approx(time.time() + 30, abs=3)
    await watched.until("driver_yielded")


async def test_while_yielded_nothing_is_read_and_that_is_said(watched: Watched, double: NvmlDouble) -> None:
    await watched.collector.yield_driver(30)
    await watched.until("driver_yielded")
    loads = double.loads
    with pytest.raises(SnapshotUnavailable, match="let go of the driver"):
        await watched.collector.snapshot(1)
    assert watched.collector.nvml_gpus() is None
    await watched.rounds()
    assert double.loads == loads
    assert [fact.phase for fact in watched.of("driver_yielded")] == [Phase.BEGAN]


async def test_it_resumes_by_itself(watched: Watched, double: NvmlDouble) -> None:
    await watched.collector.yield_driver(0.5)
    await watched.until("driver_yielded", Phase.ENDED)
    assert (await watched.values())["temperature_celsius"] == 41
    assert watched.collector.yielded_until is None


async def test_it_resumes_on_command_and_sees_the_new_driver(watched: Watched, double: NvmlDouble) -> None:
    await watched.collector.yield_driver(30)
    await watched.until("driver_yielded")
    double.state.driver_version = b"580.95.05"
    await watched.collector.resume()
    await watched.until("driver_yielded", Phase.ENDED)
    await watched.until("inventory_changed", Phase.POINT, count=2)
    assert (await watched.collector.snapshot(5)).inventory.driver_version == "580.95.05"


async def test_a_second_yield_extends_the_first(watched: Watched) -> None:
    await watched.collector.yield_driver(0.4)
    await watched.collector.yield_driver(30)
    await asyncio.sleep(0.8)
    assert watched.of("driver_yielded", Phase.ENDED) == []


async def test_it_yields_while_the_driver_refuses(double: NvmlDouble, tmp_path: Path) -> None:
    double.refuse(18)
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until("driver_version_mismatch")
        await watched.collector.yield_driver(30)
        await watched.until("driver_yielded")
        assert watched.of("driver_version_mismatch", Phase.ENDED) == [], "letting go of a driver repairs nothing"


async def test_a_driver_that_hangs_at_shutdown_is_killed_once(watched: Watched, double: NvmlDouble) -> None:
    child = int(double.state.last_pid)
    double.rule("nvmlShutdown", Action.HANG, count=1)
    await watched.collector.yield_driver(30)
    assert double.holders() == []
    assert not is_process(child)
    assert "nvmlShutdown" in (await watched.until("nvml_hung")).detail


async def test_stopping_the_agent_shuts_nvml_down(double: NvmlDouble, tmp_path: Path) -> None:
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until_read()
        began = time.monotonic()
    assert time.monotonic() - began < 1.5
    assert (double.clients, double.holders()) == (0, [])


async def test_stopping_the_agent_during_a_hang_leaves_no_process(double: NvmlDouble, tmp_path: Path) -> None:
    async with watch(tmp_path / "state", environ=environment(double)) as watched:
        await watched.until_read()
        child = int(double.state.last_pid)
        double.rule("nvmlDeviceGetCount_v2", Action.HANG)
        await asyncio.sleep(0.3)
        began = time.monotonic()
    assert time.monotonic() - began < 1.5
    assert not is_process(child)
