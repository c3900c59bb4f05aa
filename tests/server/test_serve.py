"""`gcm-sentinel serve` and the commands around it, as processes, the way users start them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from aggregator.demo.play import wait_for_inventory
from aggregator.demo.processes import AggregatorProcess, DidNotStart, SimulatedNode
from protos.v1 import agent_pb2, agent_pb2_grpc, sentinel_pb2, sentinel_pb2_grpc
from tests.server.aggregator import lines, xid

MAIN = "import sys; from aggregator.cli import main; sys.exit(main())"  # what the console script does


@pytest.fixture
def aggregator(tmp_path: Path) -> Iterator[AggregatorProcess]:
    process = AggregatorProcess(tmp_path / "a state")
    process.start()
    process.wait_ready()
    yield process
    process.stop()


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GCM_SENTINEL_")}
    environment = {**clean, **{f"GCM_SENTINEL_{name}": value for name, value in variables.items()}}
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def hear_interrupts() -> None:
    """A shell's background job ignores SIGINT, and so would what a test run in the background starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def serve(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    free = dict.fromkeys(("GRPC_ADDRESS", "METRICS_ADDRESS", "HTTP_ADDRESS"), "127.0.0.1:0")
    return command("serve", **{"STATE_DIR": str(tmp_path), **free, **variables})


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def deliver(address: str, records: list[agent_pb2.SpoolRecord], node: str = "gpu-1") -> None:
    requests = [
        agent_pb2.ConnectRequest(hello=agent_pb2.AgentHello(node=node, installation_id="i")),
        agent_pb2.ConnectRequest(batch=agent_pb2.RecordBatch(spool_id="s", records=records)),
    ]
    with grpc.insecure_channel(address) as channel:
        answers = list(agent_pb2_grpc.AgentServiceStub(channel).Connect(iter(requests), timeout=10))
    assert answers[-1].ack.offset == records[-1].end_offset


def test_it_answers_on_all_its_ports(aggregator: AggregatorProcess) -> None:
    assert get(aggregator.metrics_address, "/healthz") == (200, "ok\n")
    assert get(aggregator.metrics_address, "/readyz") == (200, "ok\n")
    deliver(aggregator.address, [xid(1)])
    deadline = time.monotonic() + 10
    while "sentinel_assessment_active{" not in get(aggregator.metrics_address, "/metrics")[1]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    status, page = get(aggregator.http_address, "/")
    assert status == 200
    assert "gpu-1" in page


def test_it_leaves_well_within_a_grace_period_and_keeps_what_it_confirmed(aggregator: AggregatorProcess) -> None:
    deliver(aggregator.address, lines(1, 100))
    with grpc.insecure_channel(aggregator.address) as channel:
        watch = sentinel_pb2_grpc.SentinelServiceStub(channel).WatchEvidence(sentinel_pb2.WatchEvidenceRequest())
        open_streams = agent_pb2_grpc.AgentServiceStub(channel).Connect(
            iter([agent_pb2.ConnectRequest(hello=agent_pb2.AgentHello(node="gpu-1", installation_id="i"))])
        )
        next(open_streams)
        assert aggregator.process is not None
        began = time.monotonic()
        aggregator.process.popen.send_signal(signal.SIGTERM)
        assert aggregator.process.popen.wait(10) == 0
        assert time.monotonic() - began < 15  # half of what Kubernetes grants; about 2 s where nothing else runs
        watch.cancel()
    with closing(sqlite3.connect(aggregator.directory / "sentinel.db")) as database:
        assert database.execute("SELECT count(*) FROM evidence WHERE kind = 'kernel_line'").fetchone() == (100,)


def test_the_banner_tells_the_facts_and_no_secret(tmp_path: Path) -> None:
    process = AggregatorProcess(
        tmp_path,
        PROMETHEUS_URL="http://user:T0PS3CRET@prometheus:9090/?token=T0PS3CRET",
        LLM_API="openai",
        API_KEY="T0PS3CRET",
        WEBHOOK_URL="https://hooks.example/T0PS3CRET",
        CLUSTER_NAME="prod",
    )
    process.start()
    process.wait_ready()
    process.stop()
    log = (tmp_path / "serve.log").read_text()
    records = [json.loads(line) for line in log.splitlines()]
    (banner,) = [record for record in records if record["event"] == "serving"]
    assert "T0PS3CRET" not in log
    assert banner["prometheus_url"] == "http://prometheus:9090/"
    assert (banner["cluster"], banner["action_mode"], banner["cooldown_seconds"]) == ("prod", "recommend", 3600)


@pytest.mark.parametrize("variable", ["GRPC_ADDRESS", "METRICS_ADDRESS", "HTTP_ADDRESS"])
def test_a_port_in_use_names_the_variable(variable: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = serve(tmp_path, **{variable: f"127.0.0.1:{taken.getsockname()[1]}"})
        port = taken.getsockname()[1]
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"GCM_SENTINEL_{variable}: cannot listen on 127.0.0.1:{port}: ")


def test_tls_files_that_cannot_be_used_name_their_variable(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    refused = serve(tmp_path, TLS_CERT_FILE=str(tmp_path / "no.pem"), TLS_KEY_FILE=str(tmp_path / "no.pem"))
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("GCM_SENTINEL_TLS_CERT_FILE: ")


def test_a_rules_overlay_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.toml"
    overlay.write_text("[xid.13]\nseverity = 'dreadful'\n")
    refused = serve(tmp_path, RULES_OVERLAY=str(overlay))
    assert refused.returncode == 2
    assert refused.stderr.startswith("GCM_SENTINEL_RULES_OVERLAY: ")
    assert "dreadful" in refused.stderr
    missing = serve(tmp_path, RULES_OVERLAY=str(tmp_path / "missing"))
    assert (missing.returncode, "GCM_SENTINEL_RULES_OVERLAY" in missing.stderr) == (2, True)


def test_a_wrong_variable_names_itself(tmp_path: Path) -> None:
    refused = serve(tmp_path, RETENTION_DAYS="0", LOG_LEVEL="LOUD")
    assert refused.returncode == 2
    assert [line.partition(":")[0] for line in refused.stderr.splitlines()] == [
        "GCM_SENTINEL_RETENTION_DAYS",
        "GCM_SENTINEL_LOG_LEVEL",
    ]


def test_a_database_that_cannot_be_used_names_the_variable_and_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "sentinel.db").write_bytes(b"no database at all" * 500)
    refused = serve(tmp_path)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("GCM_SENTINEL_STATE_DIR: ")
    assert "restore a backup" in line


def test_a_second_aggregator_on_one_state_is_refused(aggregator: AggregatorProcess) -> None:
    refused = serve(aggregator.directory)
    assert refused.returncode == 2
    assert "in use by another aggregator" in refused.stderr


def test_tokens_that_cannot_be_read_name_the_variable(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("{}")
    refused = serve(tmp_path, TOKENS_FILE=str(tmp_path / "tokens.json"))
    assert refused.returncode == 2
    assert refused.stderr.startswith("GCM_SENTINEL_TOKENS_FILE: ")


def test_evidence_is_shown_as_lines_and_as_json(aggregator: AggregatorProcess) -> None:
    deliver(aggregator.address, [*lines(1, 2, text="nvidia \x1b[31m red"), xid(3)])
    shown = command("evidence", "gpu-1", AGGREGATOR_ADDRESS=aggregator.address)
    assert shown.returncode == 0
    assert len(shown.stdout.splitlines()) == 3
    assert "\x1b" not in shown.stdout
    assert "xid 79" in shown.stdout
    as_json = command("evidence", "gpu-1", "--json", "--gpu", "3a:00.0", AGGREGATOR_ADDRESS=aggregator.address)
    (entry,) = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert entry["id"] == "gpu-1/kmsg/boot-a/3"
    nothing = command("evidence", "gpu-7", AGGREGATOR_ADDRESS=aggregator.address)
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "nothing of node 'gpu-7'" in nothing.stderr


def test_evidence_of_one_gpu_is_followed(aggregator: AggregatorProcess) -> None:
    deliver(aggregator.address, [xid(1)])
    following = subprocess.Popen(
        [sys.executable, "-c", MAIN, "evidence", "gpu-1", "--gpu", "3a:00.0", "--follow", "--json"],
        env={**os.environ, "GCM_SENTINEL_AGGREGATOR_ADDRESS": aggregator.address},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    try:
        first = following.stdout.readline()  # it is listening now
        deliver(aggregator.address, [xid(2, bus="5d"), xid(3)])
        shown = [json.loads(line)["id"] for line in (first, following.stdout.readline())]
    finally:
        following.terminate()
        following.wait()
        following.stdout.close()
    assert shown == ["gpu-1/kmsg/boot-a/1", "gpu-1/kmsg/boot-a/3"]


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "named"),
    [
        (("gpu-1",), {"AGGREGATOR_ADDRESS": "127.0.0.1:1"}, 3, "GCM_SENTINEL_AGGREGATOR_ADDRESS"),
        (("gpu-1",), {"AGGREGATOR_ADDRESS": "nonsense"}, 2, "GCM_SENTINEL_AGGREGATOR_ADDRESS"),
        (("gpu-1",), {"TOKEN_FILE": "/nowhere"}, 2, "GCM_SENTINEL_TOKEN_FILE"),
        (("gpu-1", "--since", "soon"), {}, 2, "--since"),
    ],
)
def test_the_evidence_command_says_what_is_wrong(
    arguments: tuple[str, ...], variables: dict[str, str], code: int, named: str
) -> None:
    failed = command("evidence", *arguments, **variables)
    assert failed.returncode == code
    assert named in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_backup_of_a_running_aggregator_serves(aggregator: AggregatorProcess, tmp_path: Path) -> None:
    deliver(aggregator.address, lines(1, 50))
    copy = tmp_path / "copy" / "sentinel.db"
    made = command("backup", str(copy), STATE_DIR=str(aggregator.directory))
    assert made.returncode == 0, made.stderr
    assert command("backup", str(copy), STATE_DIR=str(aggregator.directory)).returncode == 2
    elsewhere = command("backup", str(tmp_path / "other.db"), STATE_DIR=str(tmp_path / "nowhere"))
    assert elsewhere.returncode == 2
    assert "does not exist; set GCM_SENTINEL_STATE_DIR as the aggregator has it" in elsewhere.stderr
    restored = AggregatorProcess(copy.parent)
    restored.start()
    restored.wait_ready()
    shown = command("evidence", "gpu-1", AGGREGATOR_ADDRESS=restored.address)
    restored.stop()
    assert len(shown.stdout.splitlines()) == 50


def start_demo(directory: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, "demo", *arguments],
        preexec_fn=hear_interrupts,
        env={**os.environ, "TMPDIR": directory},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(directory: str) -> list[str]:
    """Command lines of the living processes that were given a place in this directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if directory.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def stop_demo(after_seconds: float, number: signal.Signals, *arguments: str) -> None:
    """Interrupt a demo so long after its first process was started, and see it leave with nothing left behind."""
    with tempfile.TemporaryDirectory() as short:  # sockets are made in it
        demo = start_demo(short, *arguments)
        deadline = time.monotonic() + 20
        while not list(Path(short).rglob("serve.log")) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(after_seconds)
        demo.send_signal(number)
        began = time.monotonic()
        _, complaint = demo.communicate(timeout=20)
        assert (demo.returncode, complaint) == (0 if "--live" in arguments else 130, "")
        assert time.monotonic() - began < 8
        assert list(Path(short).iterdir()) == []
        assert processes_of(short) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_leaves_nothing_behind(number: signal.Signals) -> None:
    stop_demo(0, number, "--scenario", "transient_xid")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--scenario", "driver_upgrade_ten_nodes"), ("--live",)])
def test_a_demo_can_be_stopped_at_any_moment(arguments: tuple[str, ...]) -> None:
    """Whatever it does then: starting its first process, its tenth, waiting for one, playing."""
    moments = random.Random(20261123)
    for _ in range(10):
        number = moments.choice([signal.SIGINT, signal.SIGTERM])
        stop_demo(moments.uniform(0, 2.5), number, *arguments)


def test_a_demo_dies_with_its_processes() -> None:
    with tempfile.TemporaryDirectory() as short:
        demo = start_demo(short, "--scenario", "transient_xid")
        assert demo.stderr is not None
        deadline = time.monotonic() + 20
        while not list(Path(short).rglob("agent.log")) and time.monotonic() < deadline:
            time.sleep(0.01)
        demo.kill()
        demo.wait()
        demo.stderr.close()
        deadline = time.monotonic() + 5
        while (left := processes_of(short)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []


def test_a_demo_runs_where_the_temporary_directory_is_too_long_for_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    demo = start_demo(str(deep), "--scenario", "gpu_fallen_off_bus")
    _, complaint = demo.communicate(timeout=60)
    assert (demo.returncode, complaint) == (0, "")


def test_an_agent_that_ends_at_once_is_told_at_once(tmp_path: Path) -> None:
    node = SimulatedNode("gpu-1", tmp_path / "node", "127.0.0.1:1")
    node.agent.environment["GCM_SENTINEL_EXPECTED_GPUS"] = "many"
    node.agent.start()
    with (
        grpc.insecure_channel("127.0.0.1:1") as channel,
        pytest.raises(DidNotStart, match=r"gpu-1 ended: .*EXPECTED_GPUS"),
    ):
        wait_for_inventory(sentinel_pb2_grpc.SentinelServiceStub(channel), [node], time.sleep)


def test_what_make_run_says_to_try_next_works() -> None:
    with tempfile.TemporaryDirectory() as short:  # sockets are made in it
        live = subprocess.Popen(
            [sys.executable, "-c", MAIN, "demo", "--live"],
            preexec_fn=hear_interrupts,
            env={**os.environ, "TMPDIR": short},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert live.stdout is not None
        try:
            shown = ""
            while "Ctrl-C stops" not in shown:
                shown += (line := live.stdout.readline())
                assert line, shown
            assert "gpu-node-12: one GPU falls off the bus" in shown
            (asked,) = re.findall(r"-plaintext (\S+) gcm_sentinel\.v1\.SentinelService/ListIncidents", shown)
            assert asked == "127.0.0.1:50051" or f"GCM_SENTINEL_AGGREGATOR_ADDRESS={asked} " in shown
            assert "xid 79" in command("evidence", "gpu-node-12", AGGREGATOR_ADDRESS=asked).stdout
        finally:
            live.send_signal(signal.SIGINT)
            code = live.wait(timeout=20)
            live.stdout.close()
        assert code == 0
        assert list(Path(short).iterdir()) == []


def test_a_misspelt_variable_is_said_and_stops_nothing(tmp_path: Path) -> None:
    process = AggregatorProcess(tmp_path, RETENTION_DAY="7")
    process.start()
    process.wait_ready()
    process.stop()
    records = [json.loads(line) for line in (tmp_path / "serve.log").read_text().splitlines()]
    said = [(one["variable"], one["did_you_mean"]) for one in records if one["event"] == "variable_unknown"]
    assert said == [("GCM_SENTINEL_RETENTION_DAY", "GCM_SENTINEL_RETENTION_DAYS")]


@pytest.mark.parametrize("mode", ["annotate", "execute"])
def test_a_mode_that_writes_needs_a_cluster(tmp_path: Path, mode: str) -> None:
    ended = serve(tmp_path, ACTION_MODE=mode, KUBERNETES="off")
    assert (ended.returncode, ended.stderr) == (
        2,
        f"GCM_SENTINEL_ACTION_MODE: {mode} needs a cluster, and there is none\n",
    )


def test_a_wrong_kubeconfig_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    ended = serve(tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == f"GCM_SENTINEL_KUBERNETES: kubeconfig {tmp_path / 'none'}: there is no such file\n"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_both_metrics_pages_satisfy_prometheus(aggregator: AggregatorProcess, tmp_path: Path) -> None:
    """Prometheus's own checker finds nothing to complain of, once there is something to show."""
    node = SimulatedNode("gpu-1", tmp_path / "node", aggregator.address)
    node.agent.start()
    try:
        node.kernel("NVRM: Xid (PCI:{gpu5}): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.")
        deadline = time.monotonic() + 20
        while "sentinel_assessment_active{" not in get(aggregator.metrics_address, "/metrics")[1]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for address in (aggregator.metrics_address, node.agent.metrics_address):
            checked = subprocess.run(
                ["promtool", "check", "metrics"],
                input=get(address, "/metrics")[1],
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
            assert (checked.returncode, checked.stderr) == (0, "")
    finally:
        node.agent.stop()
