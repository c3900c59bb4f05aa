"""Every variable works through the real environment; a wrong one stops the start with one line that names it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aggregator.settings import (
    WATCHED_CONDITIONS,
    Address,
    Client,
    Settings,
    SettingsError,
    misspelt,
    without_credentials,
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GCM_SENTINEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("tokens.json", "cert.pem", "key.pem", "prompt.txt", "hooks.yaml"):
        (tmp_path / name).write_text("x")
    return tmp_path


def read(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"GCM_SENTINEL_{name}", value)
    return Settings.from_environment()


ACCEPTED = [
    ("STATE_DIR", "/data", Path("/data")),
    ("DATABASE_URL", "sqlite:////data/x.db", "sqlite:////data/x.db"),
    ("GRPC_ADDRESS", "127.0.0.1:1234", Address("127.0.0.1", 1234)),
    ("GRPC_ADDRESS", "[::1]:0", Address("::1", 0)),
    ("METRICS_ADDRESS", "0.0.0.0:9464", Address("0.0.0.0", 9464)),
    ("HTTP_ADDRESS", "localhost:80", Address("localhost", 80)),
    ("CLUSTER_NAME", "prod-1", "prod-1"),
    ("KUBERNETES", "off", "off"),
    ("RETENTION_DAYS", "7", 7),
    ("RETENTION_BYTES", "1073741824", 2**30),
    ("AGENT_SILENT_SECONDS", "90", 90),
    ("LLM_API", "none", "none"),
    ("MODEL", "some-model", "some-model"),
    ("LLM_BASE_URL", "http://localhost:8000/v1", "http://localhost:8000/v1"),
    ("PROMETHEUS_URL", "https://u:p@prometheus:9090", "https://u:p@prometheus:9090"),
    ("ALERTMANAGER_URL", "http://alertmanager:9093", "http://alertmanager:9093"),
    ("ACTION_MODE", "annotate", "annotate"),
    ("COOLDOWN_SECONDS", "0", 0),
    ("NODE_ALLOWLIST", "gpu-*,other", ("gpu-*", "other")),
    ("NODE_ALLOWLIST", '["gpu-*", "other"]', ("gpu-*", "other")),
    ("NODE_ALLOWLIST", "gpu-1", ("gpu-1",)),
    ("NODE_ALLOWLIST", " a , b ,", ("a", "b")),
    ("MAX_ACTIONS_PER_HOUR", "0", 0),
    ("WATCH_CONDITIONS", "A,B", ("A", "B")),
    ("WATCH_CONDITIONS", '["A"]', ("A",)),
    ("PLACE_LABELS", "rack=a/b,NVLink domain=c", ("rack=a/b", "NVLink domain=c")),
    ("MAX_TOOL_ROUNDS", "25", 25),
    ("MAX_TOOL_OUTPUT", "0", 0),
    ("INSECURE", "true", True),
    ("LOG_LEVEL", "debug", "DEBUG"),
]


@pytest.mark.parametrize(("name", "text", "value"), ACCEPTED)
def test_a_variable_reaches_its_setting(name: str, text: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert getattr(read(monkeypatch, **{name: text}), name.lower()) == value


@pytest.mark.parametrize("name", ["TOKENS_FILE", "SYSTEM_PROMPT_PATH", "WEBHOOKS_FILE"])
def test_a_file_variable_names_an_existing_file(name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert getattr(read(monkeypatch, **{name: str(files / "prompt.txt")}), name.lower()) == files / "prompt.txt"
    with pytest.raises(SettingsError, match=rf"^GCM_SENTINEL_{name}: .*nowhere"):
        read(monkeypatch, **{name: str(files / "nowhere")})


REFUSED = [
    ("DATABASE_URL", "postgresql://host/db"),
    ("DATABASE_URL", "sqlite:///"),
    ("GRPC_ADDRESS", "50051"),
    ("GRPC_ADDRESS", "host:70000"),
    ("METRICS_ADDRESS", "host"),
    ("HTTP_ADDRESS", "http://localhost:80"),
    ("CLUSTER_NAME", "a cluster"),
    ("KUBERNETES", "yes"),
    ("RETENTION_DAYS", "0"),
    ("RETENTION_DAYS", "many"),
    ("RETENTION_BYTES", "1"),
    ("AGENT_SILENT_SECONDS", "1"),
    ("LLM_API", "other"),
    ("LLM_BASE_URL", "localhost:8000"),
    ("PROMETHEUS_URL", "ftp://host"),
    ("ALERTMANAGER_URL", "http://host:port"),
    ("ACTION_MODE", "cordon"),
    ("COOLDOWN_SECONDS", "-1"),
    ("NODE_ALLOWLIST", '["a"'),
    ("MAX_ACTIONS_PER_HOUR", "-1"),
    ("WATCH_CONDITIONS", "[1, 2"),
    ("WATCH_CONDITIONS", "Gcm*Problem,Gcm[Problem"),
    ("WATCH_CONDITIONS", "Gcm Problem"),
    ("PLACE_LABELS", "rack"),
    ("PLACE_LABELS", "rack=a b"),
    ("WATCH_CONDITIONS", "x" * 201),
    ("MAX_TOOL_ROUNDS", "0"),
    ("MAX_TOOL_OUTPUT", "-1"),
    ("WEBHOOK_URL", "not-a-url"),
    ("INSECURE", "perhaps"),
    ("LOG_LEVEL", "LOUD"),
]


@pytest.mark.parametrize(("name", "text"), REFUSED)
def test_a_wrong_value_gives_one_line_that_names_the_variable(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError) as refused:
        read(monkeypatch, **{name: text})
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"GCM_SENTINEL_{name}: ")


def test_every_wrong_variable_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as refused:
        read(monkeypatch, RETENTION_DAYS="0", LOG_LEVEL="LOUD", GRPC_ADDRESS="x")
    assert len(str(refused.value).splitlines()) == 3


def test_a_variable_set_to_nothing_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, NODE_ALLOWLIST="", WATCH_CONDITIONS="", RETENTION_DAYS="", PROMETHEUS_URL="")
    assert settings.node_allowlist == ()
    assert settings.watch_conditions == WATCHED_CONDITIONS
    assert settings.retention_days == 30


@pytest.mark.parametrize("name", ["API_KEY", "WEBHOOK_URL"])
def test_a_secret_is_never_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, **{name: "https://hooks.example/T0PS3CRET"})
    assert "T0PS3CRET" not in repr(settings) + str(settings)


def test_a_refused_secret_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as refused:
        read(monkeypatch, WEBHOOK_URL="ftp://T0PS3CRET")
    assert "T0PS3CRET" not in str(refused.value)


@pytest.mark.parametrize("password", ["T0PS3CRET", "T0PS3CRET/x", "a/T0PS3CRET", "a@T0PS3CRET"])
def test_a_refused_url_is_quoted_without_its_password(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as refused:
        read(monkeypatch, PROMETHEUS_URL=f"ftp://user:{password}@host")
    assert "T0PS3CRET" not in str(refused.value)


def test_a_shown_url_has_no_credentials() -> None:
    assert without_credentials("https://u:p@host:9090/path?token=t#f") == "https://host:9090/path"


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"LLM_API": "anthropic"}, "API_KEY"),
        ({"LLM_API": "openai", "LLM_BASE_URL": "https://llm.example.com/v1"}, "API_KEY"),
        ({"LLM_API": "openai", "LLM_BASE_URL": "http://127.0.0.1:8000/v1"}, None),
        ({"LLM_API": "openai", "LLM_BASE_URL": "http://vllm.models.svc:8000/v1"}, None),
        ({"LLM_API": "openai", "LLM_BASE_URL": "http://10.1.2.3:8000"}, None),
        ({"LLM_API": "anthropic", "API_KEY": "k"}, None),
    ],
)
def test_a_remote_llm_needs_a_key_and_a_local_one_does_not(
    variables: dict[str, str], named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named is None:
        read(monkeypatch, **variables)
    else:
        with pytest.raises(SettingsError, match=f"^GCM_SENTINEL_{named}: "):
            read(monkeypatch, **variables)


@pytest.mark.parametrize("name", ["GRPC_ADDRESS", "HTTP_ADDRESS"])
@pytest.mark.parametrize("address", ["0.0.0.0:5000", "[::]:5000", "10.0.0.1:5000", "gpu-head:5000"])
def test_beyond_loopback_plaintext_is_refused(name: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=f"^GCM_SENTINEL_{name}: .*TLS_CERT_FILE"):
        read(monkeypatch, **{name: address})


def test_beyond_loopback_callers_must_be_known(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = {"TLS_CERT_FILE": str(files / "cert.pem"), "TLS_KEY_FILE": str(files / "key.pem")}
    with pytest.raises(SettingsError, match=r"^GCM_SENTINEL_GRPC_ADDRESS: .*TOKENS_FILE"):
        read(monkeypatch, GRPC_ADDRESS="0.0.0.0:1", **tls)
    read(monkeypatch, GRPC_ADDRESS="0.0.0.0:1", TOKENS_FILE=str(files / "tokens.json"), **tls)


def test_a_person_may_insist_on_plaintext(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, GRPC_ADDRESS="0.0.0.0:1", INSECURE="true").insecure


def test_the_metrics_port_may_be_plain_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not read(monkeypatch, METRICS_ADDRESS="0.0.0.0:1").metrics_address.is_loopback


@pytest.mark.parametrize(("given", "missing"), [("TLS_CERT_FILE", "TLS_KEY_FILE"), ("TLS_KEY_FILE", "TLS_CERT_FILE")])
def test_a_certificate_and_its_key_go_together(
    given: str, missing: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=f"^GCM_SENTINEL_{missing}: "):
        read(monkeypatch, **{given: str(files / "cert.pem")})


def test_the_database_is_in_the_state_directory_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, STATE_DIR="/data").database == Path("/data/sentinel.db")
    assert read(monkeypatch, DATABASE_URL="sqlite:////elsewhere/x.db").database == Path("/elsewhere/x.db")


def test_a_client_does_not_send_its_token_in_plaintext_over_a_network(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCM_SENTINEL_TOKEN_FILE", str(files / "tokens.json"))
    assert Client.from_environment().token_file
    monkeypatch.setenv("GCM_SENTINEL_AGGREGATOR_ADDRESS", "aggregator:50051")
    with pytest.raises(SettingsError, match=r"^GCM_SENTINEL_TLS_CA_FILE: "):
        Client.from_environment()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("GCM_SENTINEL_RETENTION_DAY", "GCM_SENTINEL_RETENTION_DAYS"),
        ("GCM_SENTINEL_KMSG", "GCM_SENTINEL_KMSG_PATH"),
        ("GCM_SENTINEL_XYZZY", ""),
    ],
)
def test_a_misspelt_variable_is_told_with_the_one_it_is_most_like(name: str, near: str) -> None:
    """Those of the agent, of the commands, and what a kubelet sets beside a Service, are known."""
    known = {
        "GCM_SENTINEL_STATE_DIR": "/data",
        "GCM_SENTINEL_TOKEN_FILE": "/token",
        "GCM_SENTINEL_NODE_NAME": "n",
        "GCM_SENTINEL_AGGREGATOR_SERVICE_HOST": "10.0.0.1",
        "GCM_SENTINEL_AGGREGATOR_SERVICE_PORT_GRPC": "50051",
        "GCM_SENTINEL_PORT": "tcp://10.0.0.1:50051",
        "GCM_SENTINEL_PORT_50051_TCP_ADDR": "10.0.0.1",
        "PATH": "/bin",
    }
    assert misspelt({name: "1", **known}) == {name: near}
