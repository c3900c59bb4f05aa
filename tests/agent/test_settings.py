"""Every variable of the agent: a wrong one stops the start with one line that names it and says what it must be."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from node_agent.settings import Settings, SettingsError, misspelt

TLS = {"TLS_CA_FILE": __file__}


def settings(**variables: str) -> Settings:
    return Settings.from_environment({f"GCM_SENTINEL_{name}": value for name, value in variables.items()})


def test_nothing_needs_to_be_set() -> None:
    given = settings()
    assert given.node_name == socket.gethostname()
    assert given.aggregator_address == "localhost:50051"
    assert given.state_dir == Path("/var/lib/gcm-sentinel")
    assert given.socket_path == Path("/var/lib/gcm-sentinel/agent.sock")
    assert given.kmsg_path == Path("/dev/kmsg")
    assert given.metrics_address == ("127.0.0.1", 9465)
    assert (given.nvml, given.expected_gpus, given.simulated) == ("auto", None, False)


def test_a_variable_set_to_nothing_is_unset() -> None:
    assert settings(NODE_NAME=" ", EXPECTED_GPUS="", METRICS_ADDRESS="").metrics_address == ("127.0.0.1", 9465)


def test_a_simulated_driver_names_its_file() -> None:
    given = settings(NVML=f"simulated:{__file__}")
    assert (given.nvml, given.simulated_driver, given.simulated) == ("simulated", Path(__file__), True)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("NODE_NAME", "two words", "node name"),
        ("NODE_NAME", "a/b", "node name"),
        ("NODE_NAME", "-node", "node name"),
        ("NODE_NAME", "n" * 254, "1 to 253"),
        ("AGGREGATOR_ADDRESS", "localhost", "HOST:PORT"),
        ("AGGREGATOR_ADDRESS", "localhost:0", "port"),
        ("AGGREGATOR_ADDRESS", "localhost:70000", "65535"),
        ("AGGREGATOR_ADDRESS", "::1:50051", r"\[IPV6\]"),
        ("AGGREGATOR_ADDRESS", "aggregator.monitoring:50051", "GCM_SENTINEL_TLS_CA_FILE"),
        ("AGGREGATOR_ADDRESS", "10.0.0.1:50051", "GCM_SENTINEL_INSECURE=true"),
        ("STATE_DIR", "/" + "d" * 107, "too long"),
        ("SYSFS_ROOT", "/nowhere", "not a directory"),
        ("PROC_ROOT", "/etc/passwd", "not a directory"),
        ("NVML", "maybe", "auto, on, off or simulated:FILE"),
        ("NVML", "simulated", "auto, on, off or simulated:FILE"),
        ("NVML", "simulated:/nowhere", "not a readable file"),
        ("NVML", "simulated:", "not a readable file"),
        ("EXPECTED_GPUS", "-1", "from 0 to 256"),
        ("EXPECTED_GPUS", "eight", "from 0 to 256"),
        ("EXPECTED_GPUS", "257", "from 0 to 256"),
        ("DCGM_EXPORTER_URL", "localhost:9400/metrics", "http://"),
        ("METRICS_ADDRESS", "9465", "HOST:PORT"),
        ("METRICS_ADDRESS", ":9465", "HOST:PORT"),
        ("TOKEN_FILE", "/nowhere/token", "not a readable file"),
        ("TLS_CA_FILE", "/nowhere/ca.pem", "not a readable file"),
        ("INSECURE", "perhaps", "true or false"),
        ("LOG_LEVEL", "loud", "DEBUG, INFO, WARNING or ERROR"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=rf"GCM_SENTINEL_{name}: .*{says}"):
        settings(**{name: value})


@pytest.mark.parametrize(
    "address",
    ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/run/aggregator.sock", pytest.param("127.9.9.9:1", id="127/8")],
)
def test_plaintext_is_allowed_on_this_machine(address: str) -> None:
    assert settings(AGGREGATOR_ADDRESS=address).aggregator_address == address


@pytest.mark.parametrize("allowance", [TLS, {"INSECURE": "true"}], ids=["tls", "by name"])
def test_an_aggregator_elsewhere_needs_tls_or_an_allowance(allowance: dict[str, str]) -> None:
    assert settings(AGGREGATOR_ADDRESS="aggregator:50051", **allowance).aggregator_address == "aggregator:50051"


SERVICE_LINKS = {  # what a kubelet sets beside a Service
    "GCM_SENTINEL_AGGREGATOR_SERVICE_HOST": "10.0.0.1",
    "GCM_SENTINEL_AGGREGATOR_SERVICE_PORT_GRPC": "50051",
    "GCM_SENTINEL_PORT": "tcp://10.0.0.1:50051",
    "GCM_SENTINEL_PORT_50051_TCP_ADDR": "10.0.0.1",
}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("GCM_SENTINEL_NODENAME", "; did you mean GCM_SENTINEL_NODE_NAME?"),
        ("GCM_SENTINEL_RETENTION_DAY", "; did you mean GCM_SENTINEL_RETENTION_DAYS?"),
        ("GCM_SENTINEL_XYZZY", ""),
    ],
)
def test_a_misspelt_variable_is_told_with_the_one_it_is_most_like(name: str, near: str) -> None:
    known = {"GCM_SENTINEL_NODE_NAME": "n", "GCM_SENTINEL_TOKENS_FILE": "the aggregator's", "PATH": "/bin"}
    (line,) = misspelt({name: "1", **known, **SERVICE_LINKS})
    assert line == f"{name} is no variable of gcm-sentinel and is ignored{near}"


def busy_port() -> tuple[socket.socket, str]:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"127.0.0.1:{listener.getsockname()[1]}"


def start(state_dir: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "GCM_SENTINEL_STATE_DIR": str(state_dir),
        "GCM_SENTINEL_NVML": "off",
        "GCM_SENTINEL_METRICS_ADDRESS": "127.0.0.1:0",
        **{f"GCM_SENTINEL_{name}": value for name, value in variables.items()},
    }
    command = [sys.executable, "-m", "node_agent", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)


def assert_refused(result: subprocess.CompletedProcess[str], name: str, says: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert f"GCM_SENTINEL_{name}: " in result.stderr
    assert says in result.stderr


def test_the_process_exits_2_with_one_line_for_a_wrong_variable(tmp_path: Path) -> None:
    assert_refused(start(tmp_path, EXPECTED_GPUS="many"), "EXPECTED_GPUS", "from 0 to 256")


def test_a_state_dir_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(start(tmp_path / "file" / "state"), "STATE_DIR", "Not a directory")


def test_a_proc_without_boot_id_is_named(tmp_path: Path) -> None:
    assert_refused(start(tmp_path, PROC_ROOT=str(tmp_path)), "PROC_ROOT", "boot_id")


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    listener, address = busy_port()
    with listener:
        assert_refused(start(tmp_path, METRICS_ADDRESS=address), "METRICS_ADDRESS", "in use")


def test_yielding_needs_an_agent_that_runs(tmp_path: Path) -> None:
    result = start(tmp_path, "--yield", "5")
    assert result.returncode == 3
    assert "is an agent running" in result.stderr


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "86401"])
def test_yielding_takes_seconds_of_at_most_a_day(tmp_path: Path, seconds: str) -> None:
    result = start(tmp_path, f"--yield={seconds}")
    assert result.returncode == 2
    assert "86400" in result.stderr
