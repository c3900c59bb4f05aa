"""The aggregator's process beside a real API server, and without one."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
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


class Candidate:
    """One of several processes that share a lease, each with a store of its own."""

    def __init__(self, directory: Path, kubeconfig: Path) -> None:
        self.process = AggregatorProcess(directory, KUBERNETES="on", LEASE="default/sentinel")
        self.process.environment["KUBECONFIG"] = str(kubeconfig)
        self.process.start()

    def ready(self) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.process.metrics_address}/readyz", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def leads(self) -> bool:
        return self.ready()[0] == 200

    def stands_by(self) -> bool:
        return "stands by" in self.ready()[1]

    def tell(self, number: signal.Signals) -> None:
        assert self.process.process is not None
        self.process.process.popen.send_signal(number)

    def wait(self) -> int:
        assert self.process.process is not None
        return self.process.process.popen.wait(30)


@contextmanager
def candidates(directory: Path, kubeconfig: Path) -> Iterator[tuple[Candidate, Candidate]]:
    one = Candidate(directory / "one", kubeconfig)
    until(one.leads)
    other = Candidate(directory / "other", kubeconfig)
    until(other.stands_by)
    try:
        yield one, other
    finally:
        for candidate in (one, other):
            candidate.tell(signal.SIGCONT)
            candidate.process.stop()


@pytest.mark.slow
def test_of_two_processes_one_serves_and_the_other_takes_over(api_server: ApiServer, tmp_path: Path) -> None:
    """At once where the first is told to stop; and the one that waits ends when told to."""
    api_server.node("n1")
    with candidates(tmp_path, api_server.kubeconfig(tmp_path / "kubeconfig")) as (one, other):
        one.tell(signal.SIGTERM)
        assert one.wait() == 0
        until(other.leads, 12)
        third = Candidate(tmp_path / "third", tmp_path / "kubeconfig")
        until(third.stands_by)
        third.tell(signal.SIGTERM)
        assert third.wait() == 0


@pytest.mark.slow
def test_a_leader_that_was_paused_does_nothing_more(api_server: ApiServer, tmp_path: Path) -> None:
    """Another leads by the time it goes on: it stores nothing, and ends."""
    api_server.node("n1")
    with candidates(tmp_path, api_server.kubeconfig(tmp_path / "kubeconfig")) as (one, other):
        one.tell(signal.SIGSTOP)
        api_server.condition("n1", XID, "True")
        until(other.leads, 40)
        until(lambda: 'kind="node_condition_xid",node="n1"' in metrics(other.process))
        one.tell(signal.SIGCONT)
        one.wait()
        assert "leadership_lost" in log(one.process)
        assert one.process.directory.joinpath("sentinel.db").exists()
        with sqlite3.connect(one.process.directory / "sentinel.db") as database:
            (count,) = database.execute("SELECT count(*) FROM evidence").fetchone()
        assert count == 0
        assert other.leads()
