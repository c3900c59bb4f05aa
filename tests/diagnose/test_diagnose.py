"""`gcm-sentinel diagnose` as an operator runs it: inputs of every kind, the JSON contract, text, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator import cli
from aggregator.rules import VERSION
from tests.diagnose.running import FALLEN, LOG, MAIN, UUID, diagnose

SIGNAL_KEYS = {"id", "kind", "code", "pci", "gpu_uuid", "mig", "line", "raw"}
INCIDENT_KEYS = {
    *("id", "subject", "severity", "fault_class", "action", "resolutions", "root_cause", "summary", "confidence"),
    *("citations", "rule_ids", "recurrence_advice", "open_questions"),
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log in which one GPU falls off the bus."""
    path = tmp_path / "dmesg with a space.log"
    path.write_text(LOG)
    return path


def test_the_json_contract(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exactly the keys and words of DESIGN §5; citations are ids of signals."""
    code, found, err = diagnose(capsys, str(log))
    assert (code, err) == (0, "")
    assert set(found) == {"signals", "incidents", "severity", "lines_read", "lines_matched", "rules_version"}
    assert (found["severity"], found["lines_read"]) == ("critical", 3)
    (signal,) = found["signals"]
    assert set(signal) == SIGNAL_KEYS
    wanted = ("xid", 79, "0000:9b:00.0", UUID, 3, f"[ 12.000000] {FALLEN}")
    assert tuple(signal[name] for name in ("kind", "code", "pci", "gpu_uuid", "line", "raw")) == wanted
    (incident,) = found["incidents"]
    assert set(incident) == INCIDENT_KEYS
    assert incident["subject"] == {"pci": "0000:9b:00.0", "gpu_uuid": UUID}
    assert incident["fault_class"] in ("pcie", "hardware")
    assert set(incident["citations"]) <= {signal["id"]}
    assert incident["resolutions"]
    assert 0 < incident["confidence"] <= 1


@pytest.mark.parametrize(
    ("line", "severity", "pci"),
    [
        ("NVRM: Xid (PCI:0000:3b:00): , pid=22, name=x", "warning", "0000:3b:00.0"),
        ("NVRM: Xid 79 (PCI:0000:66:00) GPU has gone", "warning", "0000:66:00.0"),
        ("NVRM: Xid (PCI:0000:66", "warning", None),
        ("NVRM: Xid (PCI:0000:3b:00): GPU has fallen off the bus.", "critical", "0000:3b:00.0"),
        ("NVRM: Xid (PCI:0000:3b:00): 999, pid=1, name=x, of a driver to come", "warning", "0000:3b:00.0"),
        ("NVRM: Xid (PCI:0000:3b:00): 999, pid=1, name=x, Fatal, of a driver to come", "critical", "0000:3b:00.0"),
        ("NVRM: Xid (PCI:0000:3b:00): 999, pid=1, name=x, non-fatal, of a driver to come", "warning", "0000:3b:00.0"),
    ],
)
def test_an_xid_that_nobody_can_read_or_knows_is_never_ok(
    line: str, severity: str, pci: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its class is unknown, its severity the line's own words or else a warning; the GPU is named where it is legible."""
    path = tmp_path / "log"
    path.write_text(f"[ 10.000000] {line}\n")
    _, found, _ = diagnose(capsys, str(path))
    (incident,) = found["incidents"]
    assert (incident["severity"], incident["fault_class"], incident["subject"]["pci"]) == (severity, "unknown", pci)
    assert "rma" not in incident["resolutions"]


def test_an_unreadable_xid_that_nothing_shows_to_be_the_driver_s_is_told_and_proves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a log's prefix nor the driver's form: a test's text, a quotation, a sentence about XIDs."""
    path = tmp_path / "log"
    path.write_text("NVRM: Xid (invalid): some error\n")
    _, found, _ = diagnose(capsys, str(path))
    assert [signal["kind"] for signal in found["signals"]] == ["xid_malformed"]
    assert (found["severity"], found["incidents"]) == ("ok", [])


def test_text_names_the_verdict_and_its_proof(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a person reads: severity, GPU, the cited line, what to do; no colours in a pipe."""
    assert cli.main(["diagnose", str(log)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("CRITICAL")
    assert "0000:9b:00.0" in out
    assert "line 3" in out
    assert "Do now" in out
    assert "\x1b" not in out


def test_a_healthy_log_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing found is an answer."""
    path = tmp_path / "dmesg"
    path.write_text("[ 1.0] usb 1-1: new device\n")
    code, found, _ = diagnose(capsys, str(path))
    assert (code, found["severity"], found["incidents"], found["lines_read"]) == (0, "ok", [], 1)
    assert cli.main(["diagnose", str(path)]) == 0
    assert "No fault" in capsys.readouterr().out


def test_stdin_is_read_by_default_and_by_name() -> None:
    """A pipe is how most logs arrive."""
    command = [sys.executable, "-c", MAIN, "diagnose", "--format", "json"]
    for arguments in ([], ["-"]):
        done = subprocess.run([*command, *arguments], input=LOG, capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(done.stdout)["severity"] == "critical"


def test_several_files_are_one_diagnosis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Signals of each file keep their own line numbers and have ids of their own."""
    paths = [tmp_path / name for name in ("a", "b")]
    for path, pci in zip(paths, ("01", "02"), strict=True):
        path.write_text(FALLEN.replace("9b", pci) + "\n")
    code, found, _ = diagnose(capsys, *map(str, paths))
    assert code == 0
    assert [signal["line"] for signal in found["signals"]] == [1, 1]
    assert len({signal["id"] for signal in found["signals"]}) == 2
    assert found["lines_read"] == 2


def test_the_worst_incident_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads only the first knows the worst."""
    path = tmp_path / "log"
    path.write_text(
        "2025-01-01T00:00:00Z n kernel: NVRM: Xid (PCI:0000:01:00): 43, pid=1, name=x, Ch 00000018\n"
        f"2025-01-09T00:00:00Z n kernel: {FALLEN}\n"
    )
    _, found, _ = diagnose(capsys, str(path))
    assert [incident["severity"] for incident in found["incidents"]] == ["critical", "info"]


def test_times_apart_are_incidents_apart_and_a_burst_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines without a time belong to those around them."""
    path = tmp_path / "log"
    path.write_text(
        "2025-01-01T00:00:00Z n kernel: NVRM: Xid (PCI:0000:01:00): 31, pid=1, name=x, Ch 00000018\n"
        "NVRM: Xid (PCI:0000:01:00): 43, pid=1, name=x, Ch 00000018\n"
        "2025-01-09T00:00:00Z n kernel: NVRM: Xid (PCI:0000:02:00): 43, pid=1, name=x, Ch 00000018\n"
    )
    _, found, _ = diagnose(capsys, str(path))
    assert sorted(incident["subject"]["pci"] for incident in found["incidents"]) == ["0000:01:00.0", "0000:02:00.0"]


def test_a_reboot_inside_a_log_is_told_without_a_time_of_day(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seconds since boot are no date in 1970, and nobody's page waits for a command line."""
    path = tmp_path / "dmesg"
    path.write_text(
        "[ 5000.0] NVRM: Xid (PCI:0000:3b:00): 63, Row Remapper: New row (0x0000abcd) marked for remapping, reset gpu to activate.\n"
        "[ 6000.0] reboot: Restarting system\n"
        "[    0.0] Linux version 5.15.0-91-generic (buildd@lcy02)\n"
        "[  900.0] NVRM: Xid (PCI:0000:3b:00): 31, pid=44, name=python, Ch 00000018\n"
    )
    assert cli.main(["diagnose", str(path)]) == 0
    out = capsys.readouterr().out
    assert "Resolved: rebooted." in out
    assert "1970" not in out
    assert "wait until" not in out


def test_a_wrong_overlay_stops_with_its_variable(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A site's rules are either used or refused, never silently left out."""
    monkeypatch.setenv("GCM_SENTINEL_RULES_OVERLAY", str(log))
    code, found, err = diagnose(capsys, str(log))
    assert (code, found) == (2, None)
    assert "GCM_SENTINEL_RULES_OVERLAY" in err
    monkeypatch.setenv("GCM_SENTINEL_RULES_OVERLAY", str(log.parent / "missing"))
    assert diagnose(capsys, str(log))[0] == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("--driver", "banana"), ("--driver", "55"), ("--gpu-model", "banana"), ("--gpu-model", "x\x1b[31m")],
)
def test_an_option_that_means_nothing_is_refused(
    option: str, value: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a typing error would pass for a condition that was looked at."""
    code, found, err = diagnose(capsys, option, value, str(log))
    assert (code, found) == (2, None)
    assert err.startswith(f"gcm-sentinel diagnose: {option} ")
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("options", "line", "said"),
    [
        (["--driver", "535.104.05"], FALLEN, "XID 79 on 535.104.05: prints no XID 154"),
        (["--driver", "R570"], FALLEN, "XID 79 on R570: an XID 154 follows"),
        (
            ["--gpu-model", "Tesla V100-SXM2-16GB"],
            "NVRM: Xid (PCI:0000:9b:00): 149, x",
            "the vendor does not list it there",
        ),
        (["--gpu-model", "NVIDIA L40S"], "NVRM: Xid (PCI:0000:9b:00): 149, x", "has no column for it"),
        (["--gpu-model", "NVIDIA GB200"], "NVRM: Xid (PCI:0000:9b:00): 149, x", ""),
        (["--gpu-model", "NVIDIA H100 80GB HBM3"], FALLEN, ""),
        (
            [],
            f"NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.104.05  x\n{FALLEN}",
            "on 535.104.05: prints no XID 154",
        ),
    ],
)
def test_driver_and_model_are_weighed(
    options: list[str], line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given or read from the text: what they change about a code stands beside the verdict."""
    path = tmp_path / "log"
    path.write_text(line + "\n")
    assert cli.main(["diagnose", *options, str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert said in out
    assert bool(said) == (" on " in out.partition("Judged by rules")[2])


def test_json_names_the_rules_and_the_overlay_that_judged(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digest tells which data a verdict came from, a site's included."""
    _, plain, _ = diagnose(capsys, str(log))
    overlay = tmp_path / "site.toml"
    overlay.write_text('version = "site 3"\n[xid.79]\nseverity = "warning"\n')
    monkeypatch.setenv("GCM_SENTINEL_RULES_OVERLAY", str(overlay))
    _, found, _ = diagnose(capsys, str(log))
    assert plain["rules_version"] == VERSION
    assert found["rules_version"].startswith("1+site 3@")
    assert found["rules_version"].partition("@")[2] != VERSION.partition("@")[2]


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """`diagnose … | head` ends quietly."""
    path = tmp_path / "log"
    path.write_text(
        "".join(f"[{number * 1000}.0] NVRM: Xid (PCI:0000:{number:02x}:00): 31, x{number}\n" for number in range(200))
    )
    command = f"'{sys.executable}' -c '{MAIN}' diagnose '{path}' | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout


def test_nothing_heavy_is_imported() -> None:
    """A 100-line file takes under half a second because Python's start is all there is."""
    code = "import sys, aggregator.commands.diagnose; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {
        "pydantic",
        "pydantic_settings",
        "sqlalchemy",
        "alembic",
        "grpc",
        "google",
        "structlog",
        "starlette",
        "uvicorn",
    }
    assert not loaded & (heavy | {"jinja2", "prometheus_client", "asyncio", "protos"})
