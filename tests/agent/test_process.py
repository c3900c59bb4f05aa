"""The agent as a process, from a kernel line to the aggregator, and to its end."""

from __future__ import annotations

import asyncio
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from protos.v1 import evidence_pb2
from tests.agent.process import AgentProcess
from tests.agent.scripted_aggregator import ScriptedAggregator

XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus. #{}"


async def connected(aggregator: ScriptedAggregator, hellos: int = 1) -> None:
    await aggregator.until(lambda: len(aggregator.hellos) >= hellos, seconds=20)


def address(aggregator: ScriptedAggregator) -> str:
    return f"127.0.0.1:{aggregator.port}"


def lines(aggregator: ScriptedAggregator) -> list[str]:
    """Kernel lines as stored: each identity once, in order."""
    stored = {(e.source, e.epoch, e.seq): e.kernel_record.line for e in aggregator.evidence("kernel_line")}
    return list(stored.values())


async def test_a_misspelt_variable_is_said_and_stops_nothing(tmp_path: Path) -> None:
    async with AgentProcess(tmp_path, "127.0.0.1:1", EXPECTED_GPU="8") as agent:
        line = await agent.logged("GCM_SENTINEL_EXPECTED_GPU is no variable")
        assert line["level"] == "warning"
        assert "did you mean GCM_SENTINEL_EXPECTED_GPUS?" in line["message"]
        await agent.logged("metrics and probes on port")


async def test_a_kernel_line_reaches_the_aggregator_in_milliseconds(
    aggregator: ScriptedAggregator, tmp_path: Path
) -> None:
    latencies = []
    async with AgentProcess(tmp_path, address(aggregator)) as agent:
        await connected(aggregator)
        for number in range(30):
            written_at = time.monotonic()
            agent.kernel(XID.format(number))
            await aggregator.until(lambda count=number + 1: len(lines(aggregator)) >= count)
            latencies.append(aggregator.arrivals[-1][3] - written_at)
            await asyncio.sleep(0.02)
        rss = agent.rss_kib()
    print(
        f"kernel line to server: median {statistics.median(latencies) * 1e3:.1f} ms, worst {max(latencies) * 1e3:.1f} ms; "
        f"RSS {rss / 1024:.1f} MiB without NVML"
    )
    assert lines(aggregator) == [XID.format(number) for number in range(30)]
    assert statistics.median(latencies) < 0.5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_with_everything_delivered(
    aggregator: ScriptedAggregator, tmp_path: Path, number: signal.Signals
) -> None:
    async with AgentProcess(tmp_path, address(aggregator)) as agent:
        await connected(aggregator)
        code, seconds = await agent.stop(number)
    assert code == 0
    assert seconds < 5
    assert aggregator.evidence()[0].kind == "agent_started"
    assert aggregator.evidence()[-1].kind == "agent_stopped"
    assert not (agent.state_dir / "agent.sock").exists()


async def test_a_missing_kernel_log_is_evidence_and_one_line_with_the_way_out(
    aggregator: ScriptedAggregator, tmp_path: Path
) -> None:
    """Silence is never health: a node whose kernel log cannot be seen says so."""
    async with AgentProcess(tmp_path, address(aggregator), KMSG_PATH=str(tmp_path / "nothing")) as agent:
        await aggregator.until(lambda: bool(aggregator.evidence("collector_failed")))
        record = await agent.logged("collector kmsg failed")
    (fact,) = aggregator.evidence("collector_failed")
    for text in (fact.detail, record["message"]):
        assert f"no kernel log: {tmp_path}/nothing does not exist" in text
        assert "GCM_SENTINEL_KMSG_PATH" in text
    assert "exception" not in record


READ_ONLY = 'mount -t tmpfs none "$0" && mount -o remount,ro "$0" && exec "$@"'
NAMESPACES = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not NAMESPACES, reason="needs `unshare -rm` to mount a disk")
async def test_a_read_only_disk_is_said_and_blinds_nobody(aggregator: ScriptedAggregator, tmp_path: Path) -> None:
    """A node whose disk has turned read-only may be failing: just then it must be seen."""
    agent = AgentProcess(tmp_path, address(aggregator))
    agent.state_dir.mkdir()
    agent.under = ("unshare", "-rm", "sh", "-c", READ_ONLY, str(agent.state_dir))
    async with agent:
        await agent.logged("records are kept in memory, and no socket is served")
        await connected(aggregator)
        agent.kernel(XID.format(0))
        await aggregator.until(lambda: lines(aggregator) == [XID.format(0)])
        (fact,) = aggregator.evidence("collector_failed")
        assert fact.phase == evidence_pb2.PHASE_BEGAN
        assert "Read-only file system; records are kept in memory" in fact.detail
        port = await agent.metrics_port()
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read())
        assert b"sentinel_agent_spool_in_memory 1.0" in page
        code, seconds = await agent.stop()
    assert (code, seconds < 5) == (0, True)
    assert aggregator.evidence()[-1].kind == "agent_stopped"


@pytest.mark.parametrize("trouble", ["nobody listens", "never says hello", "stopped reading"])
async def test_it_leaves_in_time_whatever_the_aggregator_does(
    aggregator: ScriptedAggregator, tmp_path: Path, trouble: str
) -> None:
    if trouble == "nobody listens":
        await aggregator.stop()
    aggregator.script.silent = trouble == "never says hello"
    async with AgentProcess(tmp_path, address(aggregator)) as agent:
        await agent.metrics_port()
        if trouble == "stopped reading":
            await connected(aggregator)
            aggregator.script.reading.clear()
        await asyncio.sleep(0.3)
        code, seconds = await agent.stop()
    assert (code, seconds < 5) == (0, True)


async def test_a_blocked_event_loop_cannot_keep_it_from_leaving(tmp_path: Path) -> None:
    code = """
import asyncio, time
from node_agent.signals import stop_on_signals
async def block():
    stop_on_signals()
    print("blocked", flush=True)
    time.sleep(60)
asyncio.run(block())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    began = time.monotonic()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert time.monotonic() - began < 5


async def test_what_was_seen_while_cut_off_arrives_after_a_kill(aggregator: ScriptedAggregator, tmp_path: Path) -> None:
    async with AgentProcess(tmp_path, address(aggregator)) as agent:
        await connected(aggregator)
        await aggregator.stop()
        expected = []
        for number in range(150):
            expected.append(XID.format(number))
            agent.kernel(expected[-1])
        await asyncio.sleep(1.0)
        await agent.stop(signal.SIGKILL)
        await aggregator.start()
        await agent.start()
        await connected(aggregator, hellos=2)
        await aggregator.until(lambda: len(lines(aggregator)) >= 150)
        expected.append(XID.format("after"))
        agent.kernel(expected[-1])
        await aggregator.until(lambda: len(lines(aggregator)) >= 151)
    assert lines(aggregator) == expected
    first, second = aggregator.hellos
    assert first.installation_id == second.installation_id


async def test_two_agents_cannot_share_a_state_directory(aggregator: ScriptedAggregator, tmp_path: Path) -> None:
    async with AgentProcess(tmp_path, address(aggregator)) as agent:
        await connected(aggregator)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "node_agent", env=agent.environment, stderr=asyncio.subprocess.PIPE
        )
        _, stderr = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 2
        assert b"GCM_SENTINEL_STATE_DIR: " in stderr.splitlines()[-1]
        agent.kernel(XID.format("still observed"))
        await aggregator.until(lambda: len(lines(aggregator)) == 1)


async def test_its_probes_answer_and_its_metrics_count(aggregator: ScriptedAggregator, tmp_path: Path) -> None:
    def get(port: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return str(response.read().decode())

    async with AgentProcess(tmp_path, address(aggregator)) as agent:
        port = await agent.metrics_port()
        await connected(aggregator)
        agent.kernel(XID.format(1))
        await aggregator.until(lambda: len(lines(aggregator)) == 1)
        await asyncio.sleep(0.2)
        assert await asyncio.to_thread(get, port, "/healthz") == "ok\n"
        assert await asyncio.to_thread(get, port, "/readyz") == "ok\n"
        metrics = await asyncio.to_thread(get, port, "/metrics")
    for sample in (
        'sentinel_agent_evidence_total{kind="kernel_line"} 1.0',
        'sentinel_agent_collector_state{collector="kmsg",state="running"} 1.0',
        'sentinel_agent_unacked_bytes{log="events"} 0.0',
        "sentinel_agent_connected 1.0",
    ):
        assert sample in metrics


async def test_a_node_without_gpus_still_shows_its_collectors(aggregator: ScriptedAggregator, tmp_path: Path) -> None:
    async with AgentProcess(tmp_path, address(aggregator)):
        await aggregator.until(lambda: bool(aggregator.payloads("samples")), seconds=20)
    snapshot = evidence_pb2.NodeSnapshot.FromString(aggregator.payloads("samples")[0])
    assert snapshot.collectors["kmsg"] == "running"
    assert snapshot.collectors["dcgm"].startswith("absent: ")
    assert snapshot.inventory.kernel_version == platform.release()


def test_a_missing_package_of_the_agent_names_the_extra() -> None:
    code = "import sys; sys.modules['pynvml'] = None; from aggregator.cli import main; sys.exit(main(['agent']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert result.returncode == 2
    assert "pynvml is missing" in result.stderr
    assert "[agent]" in result.stderr


async def test_the_command_talks_to_the_running_agent(aggregator: ScriptedAggregator, tmp_path: Path) -> None:
    command = shutil.which("gcm-sentinel", path=str(Path(sys.executable).parent))
    assert command is not None
    async with AgentProcess(tmp_path, address(aggregator)) as agent:
        await connected(aggregator)
        process = await asyncio.create_subprocess_exec(
            command, "agent", "--yield", "5", env=agent.environment, stdout=asyncio.subprocess.PIPE
        )
        stdout, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert b"holds no handle on the driver" in stdout
