"""The agent's own metrics and probes: they answer while the event loop hangs, and bound what a client can take."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node_agent.evidence import Fact
from node_agent.heartbeat import Heartbeat
from node_agent.probes import CONCURRENT_REQUESTS, Probes, Vitals

WELL = Vitals(
    node="node-1",
    agent_version="1.2.3",
    beat_age_seconds=0.5,
    loop_lag_seconds=0.01,
    not_ready="",
    connected=True,
    dials=3,
    sync_lag_seconds=1.5,
    nvml_deadline_misses=2,
    clock_offset_seconds=0.25,
    clock_error_seconds=0.001,
    evidence_by_kind={"xid": 4, "evidence_gap": 1},
    spool_bytes={"events": 1000, "samples": 10},
    unacked_bytes={"events": 7, "samples": 0},
    collector_states={"kmsg": "running", "dcgm": "absent: GCM_SENTINEL_DCGM_EXPORTER_URL is not set"},
)


class Served:
    vitals = WELL

    def __init__(self) -> None:
        self.probes = Probes(("127.0.0.1", 0), lambda: self.vitals)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.probes.port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served()
    yield server
    server.probes.close()


def test_metrics_say_how_the_agent_stands(served: Served) -> None:
    status, text = served.get("/metrics")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("sentinel_agent")
    }
    assert status == 200
    assert samples == {
        ("sentinel_agent_info", "node-1", "1.2.3"): 1,
        ("sentinel_agent_evidence_total", "evidence_gap"): 1,
        ("sentinel_agent_evidence_total", "xid"): 4,
        ("sentinel_agent_spool_bytes", "events"): 1000,
        ("sentinel_agent_spool_bytes", "samples"): 10,
        ("sentinel_agent_unacked_bytes", "events"): 7,
        ("sentinel_agent_unacked_bytes", "samples"): 0,
        ("sentinel_agent_collector_state", "dcgm", "absent"): 1,
        ("sentinel_agent_collector_state", "kmsg", "running"): 1,
        ("sentinel_agent_spool_in_memory",): 0,
        ("sentinel_agent_connected",): 1,
        ("sentinel_agent_sync_lag_seconds",): 1.5,
        ("sentinel_agent_loop_lag_seconds",): 0.01,
        ("sentinel_agent_dials_total",): 3,
        ("sentinel_agent_gaps_total",): 1,
        ("sentinel_agent_nvml_deadline_misses_total",): 2,
        ("sentinel_agent_clock_offset_seconds",): 0.25,
        ("sentinel_agent_clock_error_seconds",): 0.001,
    }
    assert "process_resident_memory_bytes" in text


def test_metrics_are_in_the_classic_text_format(served: Served) -> None:
    """Not every scraper reads OpenMetrics: each sample stands under the TYPE line of its own name, whose type is an old one."""
    served.vitals = replace(WELL, node='a"b\\c\nd')
    types, samples = {}, set()
    for line in served.get("/metrics")[1].splitlines():
        if line.startswith("# TYPE"):
            _, _, name, types[name] = line.split()
        elif not line.startswith("#"):
            samples.add(line.partition(" ")[0].partition("{")[0])
    assert set(types) == samples
    assert set(types.values()) == {"counter", "gauge"}
    assert r'node="a\"b\\c\nd"' in served.get("/metrics")[1]


def test_an_unknown_clock_offset_is_not_zero(served: Served) -> None:
    served.vitals = replace(WELL, clock_offset_seconds=None, clock_error_seconds=None)
    assert "clock_offset" not in served.get("/metrics")[1]


def test_a_hung_event_loop_is_unhealthy_and_said(served: Served) -> None:
    assert served.get("/healthz") == (200, "ok\n")
    served.vitals = replace(WELL, beat_age_seconds=14.0)
    assert served.get("/healthz") == (503, "the event loop has not run for 14 s\n")


def test_readiness_says_why_not(served: Served) -> None:
    assert served.get("/readyz") == (200, "ok\n")
    served.vitals = replace(WELL, not_ready="collectors have not started")
    assert served.get("/readyz") == (503, "collectors have not started\n")


def test_other_paths_name_the_ones_there_are(served: Served) -> None:
    assert served.get("/") == (404, "/metrics, /healthz or /readyz\n")


def test_clients_that_hold_on_take_a_bounded_share(served: Served) -> None:
    idle = [socket.create_connection(("127.0.0.1", served.probes.port)) for _ in range(CONCURRENT_REQUESTS)]
    try:
        with socket.create_connection(("127.0.0.1", served.probes.port)) as one_more:
            one_more.settimeout(3)
            assert one_more.recv(1) == b""  # turned away at once, not queued behind them
    finally:
        for connection in idle:
            connection.close()


def test_a_port_in_use_is_an_error(served: Served) -> None:
    with pytest.raises(OSError, match="in use"):
        Probes(("127.0.0.1", served.probes.port), lambda: WELL)


async def test_a_blocked_loop_is_noticed_and_reported() -> None:
    facts: list[Fact] = []
    heartbeat = Heartbeat(facts.append, lambda: None, stall_seconds=0.3)
    async with asyncio.timeout(10):
        task = asyncio.create_task(heartbeat.run())
        await asyncio.sleep(0.1)
        time.sleep(1.5)  # noqa: ASYNC251
        assert heartbeat.age_seconds > 1.5
        while not facts:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task.cancel()
    assert facts[0].kind == "agent_stalled"
    assert heartbeat.lag_seconds > 0.3


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /healthz?verbose HTTP/1.0\n\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"\xff\xfe\r\n\r\n", b"405"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"200"),
    ],
)
def test_any_request_is_answered(served: Served, request_: bytes, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.probes.port), timeout=5) as connection:
        connection.sendall(request_)
        assert connection.recv(4096).split()[1] == status
    assert served.get("/healthz") == (200, "ok\n")
