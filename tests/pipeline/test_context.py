"""A fault is judged in the light of what the store knows beside it: its GPU's past, the node's GPUs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from aggregator.store.arrivals import Body, Delivery, Record
from protos.v1 import evidence_pb2
from tests.bench.load import kernel_line
from tests.pipeline.test_pipeline import FALLEN_OFF, Host, running
from tests.server.aggregator import snapshot

DAY = 86_400


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "sentinel.db"


async def send(host: Host, number: int, payload: bytes, body: Body = Body.EVIDENCE, spool: str = "spool") -> None:
    record = Record(number, payload, body=body)
    await (await host.pipeline.receive(Delivery("gpu-1", spool, (record,))))


def fallen(number: int, bus: str, days_ago: int) -> bytes:
    """A GPU that fell off the bus so long ago."""
    message = evidence_pb2.Evidence.FromString(kernel_line("gpu-1", "boot", number, FALLEN_OFF.format(bus=bus)))
    message.occurred_at.FromSeconds(int(time.time()) - days_ago * DAY)
    return message.SerializeToString()


async def latest(host: Host) -> str:
    """What the newest incident's verdict says to do if it comes back."""
    await host.settled()
    incidents = await host.incidents()
    _, assessment = max(incidents, key=lambda found: found[0].opened_us)
    assert assessment is not None
    return assessment.verdict.recurrence_advice


@pytest.mark.parametrize(("bus", "days_ago", "again"), [("3a", 10, True), ("3a", 60, False), ("4a", 10, False)])
async def test_a_gpu_s_past_is_known_when_it_fails_again(database: Path, bus: str, days_ago: int, again: bool) -> None:
    """An incident of the same GPU within a month, also one that was over before this process started."""
    async with running(database) as host:
        await send(host, 1, fallen(1, bus, days_ago))
        await host.settled()
    async with running(database) as host:
        await send(host, 2, fallen(2, "3a", 0))
        assert ("It happened before on this GPU" in await latest(host)) is again


@pytest.mark.parametrize(("gpus", "rule"), [(2, "thermal/node_overheats"), (4, "catalog/hw_thermal_slowdown")])
async def test_half_of_a_node_is_half_of_what_the_node_has(database: Path, gpus: int, rule: str) -> None:
    """One hot GPU of two is half of the node; also after a restart."""
    hot = evidence_pb2.Evidence.FromString(kernel_line("gpu-1", "agent", 1, ""))
    hot.ClearField("kernel_record")
    hot.source, hot.kind, hot.phase = "nvml", "hw_thermal_slowdown", evidence_pb2.PHASE_BEGAN
    hot.gpu.CopyFrom(evidence_pb2.GpuIdentity(uuid="GPU-0", pci="0000:10:00.0"))
    async with running(database) as host:
        await send(host, 1, snapshot("gpu-1", gpus).SerializeToString(), Body.SNAPSHOT, "samples")
    async with running(database) as host:
        await send(host, 1, hot.SerializeToString())
        await host.settled()
        ((_, assessment),) = await host.incidents()
        assert assessment is not None
        assert assessment.verdict.rule_ids[0] == rule
