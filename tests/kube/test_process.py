"""The aggregator's process beside a real API server, and without one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aggregator.demo.processes import AggregatorProcess
from tests.cluster.api_server import ApiServer

XID = "GcmXidErrorsProblem"
READ_NODES = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}]


@contextmanager
def serving(directory: Path, kubeconfig: Path | None, kubernetes: str = "on") -> Iterator[AggregatorProcess]:
    process = AggregatorProcess(directory / "state", KUBERNETES=kubernetes)
    process.environment["KUBECONFIG"] = str(kubeconfig or "")
    process.start()
    process.wait_ready()
    try:
        yield process
    finally:
        process.stop()


def metrics(process: AggregatorProcess) -> str:
    with urllib.request.urlopen(f"http://{process.metrics_address}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def log(process: AggregatorProcess) -> str:
    return (process.directory / "serve.log").read_text()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def up(process: AggregatorProcess) -> str:
    (line,) = [one for one in metrics(process).splitlines() if one.startswith("sentinel_kubernetes_watch_up{")]
    return line.rpartition(" ")[2]


def test_a_condition_is_an_assessment_on_the_metrics_page(api_server: ApiServer, tmp_path: Path) -> None:
    api_server.node("n1")
    with serving(tmp_path, api_server.kubeconfig(tmp_path / "kubeconfig")) as process:
        until(lambda: up(process) == "1.0")
        api_server.condition("n1", XID, "True", message="NVRM: Xid 79")
        wanted = 'kind="node_condition_xid",node="n1",severity="warning"} 1.0'
        until(lambda: wanted in metrics(process))
        process.stop()
    assert '"level": "error"' not in log(process)


def test_an_api_server_that_is_away_is_said_and_waited_for(own_api_server: ApiServer, tmp_path: Path) -> None:
    server = own_api_server
    server.node("n1")
    server.condition("n1", XID, "True")
    server.stop_server()
    with serving(tmp_path, server.kubeconfig(tmp_path / "kubeconfig")) as process:
        until(lambda: "kubernetes_watch_down" in log(process))
        assert up(process) == "0.0"
        assert log(process).count("kubernetes_watch_down") == 1
        server.start_server()
        until(lambda: up(process) == "1.0", 40)
        until(lambda: 'kind="node_condition_xid",node="n1"' in metrics(process))


def test_a_missing_verb_is_named_and_everything_else_works(api_server: ApiServer, tmp_path: Path) -> None:
    api_server.node("n1")
    token = api_server.service_account("aggregator", [])
    with serving(tmp_path, api_server.kubeconfig(tmp_path / "kubeconfig", token)) as process:
        until(lambda: '"lacking": "list nodes"' in log(process))
        api_server.permit("aggregator", READ_NODES)
        until(lambda: up(process) == "1.0", 40)


def test_without_a_cluster_it_works_on_agents_alone_and_says_so_once(tmp_path: Path) -> None:
    with serving(tmp_path, None, "auto") as process:
        until(lambda: "no_cluster" in log(process))
        assert "sentinel_kubernetes_watch_up{" not in metrics(process)
    assert log(process).count("no_cluster") == 1


@pytest.mark.parametrize(
    ("kubernetes", "kubeconfig", "named"),
    [
        ("on", "absent", "absent: there is no such file"),
        ("auto", "wrong", "wrong"),
        ("on", "", "KUBECONFIG names no file"),
        ("perhaps", "", "perhaps"),
    ],
)
def test_what_can_be_seen_to_be_wrong_stops_the_start(
    kubernetes: str, kubeconfig: str, named: str, tmp_path: Path
) -> None:
    (tmp_path / "wrong").write_text("no: kubeconfig")
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "KUBECONFIG": str(tmp_path / kubeconfig) if kubeconfig else "",
        "GCM_SENTINEL_KUBERNETES": kubernetes,
        "GCM_SENTINEL_STATE_DIR": str(tmp_path / "state"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "aggregator"], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("GCM_SENTINEL_")]
    assert line.startswith("GCM_SENTINEL_KUBERNETES: ")
    assert named in line
