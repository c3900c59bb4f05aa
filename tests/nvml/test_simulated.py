"""The simulated driver makes the facts that the real one makes, for the same scenario."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from node_agent.evidence import Fact, Phase
from node_agent.nvml.codes import NOT_MIG
from tests.doubles.nvml.double import NvmlDouble, environment
from tests.nvml.conftest import Watched, watch, write_simulated


class SimulatedTwin:
    """The simulated driver's file for the two GPUs of a double."""

    def __init__(self, path: Path, double: NvmlDouble) -> None:
        self.path = path
        self.state: dict[str, Any] = {
            "driver_version": "570.158.01",
            "nvml_version": "12.570.158.01",
            "driver": "ok",
            "gpus": [
                {
                    "uuid": double.gpu(slot).uuid,
                    "pci": double.gpu(slot).pci,
                    "serial": double.gpu(slot).serial,
                    "minor": slot,
                    "module_id": slot + 1,
                    "model": double.gpu(slot).name,
                    "lost": False,
                    "values": {
                        "row_remap_pending": False,
                        "recovery_action": "none",
                        "ecc_volatile_uncorrected_total": 0,
                    },
                }
                for slot in range(2)
            ],
            "events": [],
        }
        self.write()

    def write(self) -> None:
        """Show what was changed."""
        write_simulated(self.path, self.state)

    def set(self, slot: int, **values: Any) -> None:
        """Change values of one GPU."""
        self.state["gpus"][slot]["values"].update(values)
        self.write()

    def push(self, slot: int, xid: int, mig: tuple[int, int] | None = None) -> None:
        """Deliver an XID."""
        events = self.state["events"]
        uuid = self.state["gpus"][slot]["uuid"]
        events.append({"number": len(events) + 1, "gpu_uuid": uuid, "type": 8, "data": xid, "mig": mig})
        self.write()


def _essence(facts: list[Fact]) -> list[tuple[Any, ...]]:
    ignored = {"evidence_gap"}  # only the real driver has an event set that can fail
    return [(f.kind, f.phase, f.gpu, f.mig, f.body, f.detail) for f in facts if f.kind not in ignored]


async def _scenario(watched: Watched, real: NvmlDouble | None, twin: SimulatedTwin) -> list[tuple[Any, ...]]:
    await watched.until_read()
    if real:
        real.push(1, 63, mig=(NOT_MIG, NOT_MIG))
    else:
        twin.push(1, 63)
    await watched.until("xid", Phase.POINT)
    if real:
        real.gpu(1).set(remap_pending=1)
    else:
        twin.set(1, row_remap_pending=True)
    await watched.until("row_remap_pending")
    if real:
        real.gpu(0).set(recovery_action=1)
    else:
        twin.set(0, recovery_action="gpu_reset")
    await watched.until("recovery_action")
    if real:
        real.gpu(0).set(ecc_volatile_uncorrected=7)
    else:
        twin.set(0, ecc_volatile_uncorrected_total=7)
    await watched.until("ecc_uncorrectable", Phase.POINT)
    if real:
        real.gpu(1).set(remap_pending=0)
    else:
        twin.set(1, row_remap_pending=False)
    await watched.until("row_remap_pending", Phase.ENDED)
    if real:
        real.push(0, 31, mig=(2, 0))
    else:
        twin.push(0, 31, mig=(2, 0))
    await watched.until("xid", Phase.POINT, count=2)
    if real:
        real.gpu(0).lose()
    else:
        twin.state["gpus"][0]["lost"] = True
        twin.write()
    await watched.until("nvml_gpu_lost")
    return _essence(watched.facts)


async def test_both_drivers_tell_the_same_story(double: NvmlDouble, tmp_path: Path) -> None:
    twin = SimulatedTwin(tmp_path / "driver.json", double)
    async with watch(tmp_path / "real", environ=environment(double)) as watched:
        real = await _scenario(watched, double, twin)
    async with watch(tmp_path / "simulated", simulated=twin.path) as watched:
        simulated = await _scenario(watched, None, twin)
    assert simulated == real


@pytest.fixture
def twin(double: NvmlDouble, tmp_path: Path) -> SimulatedTwin:
    """A healthy simulated node."""
    return SimulatedTwin(tmp_path / "driver.json", double)


@pytest.mark.parametrize(
    ("driver", "kind"), [("absent", "nvml_unavailable"), ("mismatch", "driver_version_mismatch"), ("hang", "nvml_hung")]
)
async def test_a_driver_that_goes_wrong_and_comes_back(
    twin: SimulatedTwin, tmp_path: Path, driver: str, kind: str
) -> None:
    async with watch(tmp_path / "state", simulated=twin.path) as watched:
        await watched.until_read()
        twin.state["driver"] = driver
        twin.write()
        await watched.until(kind)
        twin.state["driver"] = "ok"
        twin.write()
        await watched.until(kind, Phase.ENDED)


async def test_events_are_delivered_once_and_past_ones_never(twin: SimulatedTwin, tmp_path: Path) -> None:
    twin.push(0, 13)
    async with watch(tmp_path / "state", simulated=twin.path) as watched:
        await watched.until_read()
        twin.push(1, 79)
        await watched.until("xid", Phase.POINT)
        twin.set(1, recovery_action="node_reboot")
        await watched.until("recovery_action")
        await asyncio.sleep(0.3)
        assert [fact.detail for fact in watched.of("xid")] == ["0000:43:00.0: XID 79 delivered by NVML"]


async def test_a_gpu_that_leaves_the_file_is_missed(twin: SimulatedTwin, tmp_path: Path) -> None:
    async with watch(tmp_path / "state", simulated=twin.path) as watched:
        await watched.until_read()
        gone = twin.state["gpus"].pop()
        twin.write()
        await watched.until("gpu_count_low")
        twin.state["gpus"].append(gone)
        twin.write()
        await watched.until("gpu_count_low", Phase.ENDED)


@pytest.mark.parametrize("text", ["{", "null", "[]", "{}", "[" * 100_000, None])
async def test_a_broken_file_is_a_driver_that_cannot_be_used(
    twin: SimulatedTwin, tmp_path: Path, text: str | None
) -> None:
    async with watch(tmp_path / "state", simulated=twin.path) as watched:
        await watched.until_read()
        good = dict(twin.state)
        twin.path.unlink() if text is None else twin.path.write_text(text)
        assert str(twin.path) in (await watched.until("nvml_unavailable")).detail
        twin.state = good
        twin.write()
        await watched.until("nvml_unavailable", Phase.ENDED)


@pytest.mark.parametrize("change", [{"gpus": [7]}, {"events": [7]}], ids=["read", "watched"])
async def test_a_child_that_loses_a_thread_crashes_and_is_replaced(
    twin: SimulatedTwin, tmp_path: Path, change: dict[str, Any]
) -> None:
    """What nobody foresaw must not look like a hanging driver, nor like one without events."""
    async with watch(tmp_path / "state", simulated=twin.path) as watched:
        await watched.until_read()
        good = dict(twin.state)
        twin.state.update(change)
        twin.write()
        await watched.until("nvml_child_crashed")
        twin.state = good
        twin.write()
        await watched.until("nvml_child_crashed", Phase.ENDED)
