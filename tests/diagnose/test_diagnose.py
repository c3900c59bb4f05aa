"""`gcm-sentinel diagnose` as an operator runs it: inputs of every kind, the JSON contract, text, exit codes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aggregator import cli

FALLEN = "NVRM: Xid (PCI:0000:9b:00): 79, pid=1, name=x, GPU has fallen off the bus."
UUID = "GPU-509665ad-b600-ac93-3616-d754b23d636d"
LOG = f"[ 10.000000] usb 1-1: new device\n[ 11.000000] NVRM: GPU at PCI:0000:9b:00: {UUID}\n[ 12.000000] {FALLEN}\n"

MAIN = "import sys; from aggregator.cli import main; sys.exit(main())"
SIGNAL_KEYS = {"id", "kind", "code", "pci", "gpu_uuid", "mig", "line", "raw"}
INCIDENT_KEYS = {
    *("id", "subject", "severity", "fault_class", "action", "resolutions", "root_cause", "summary", "confidence"),
    *("citations", "rule_ids", "recurrence_advice", "open_questions"),
}


def diagnose(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    """Exit code, the JSON object (None when nothing was printed) and stderr."""
    code = cli.main(["diagnose", "--format", "json", *arguments])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


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
    assert set(found) == {"signals", "incidents", "severity", "lines_read", "lines_matched"}
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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(gzip.compress(LOG.encode()), "", id="gzip"),
        pytest.param(gzip.compress(LOG[:40].encode()) + gzip.compress(LOG[40:].encode()), "", id="gzip in two members"),
        pytest.param(LOG.encode("utf-16"), "", id="UTF-16 as PowerShell writes it"),
        pytest.param(LOG.encode("utf-16-le"), "", id="UTF-16 without its mark"),
        pytest.param(b"\xef\xbb\xbf" + LOG.encode(), "", id="UTF-8 with its mark"),
        pytest.param(b"caf\xe9 \xff\xfe\n" + LOG.encode(), "", id="not UTF-8 in places"),
        pytest.param(b"\x00\x01\x02\n" + LOG.encode(), "binary", id="binary around it"),
        pytest.param(LOG.replace("\n", "\r\n").encode(), "", id="CRLF"),
        pytest.param(LOG.encode().rstrip(b"\n"), "", id="no line end at the end"),
        pytest.param(b"x" * 3_000_000 + b"\n" + LOG.encode(), "", id="a line of three megabytes in front"),
    ],
)
def test_whatever_is_readable_is_diagnosed(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Encodings, compression and damage do not hide a fault; a notice says what is odd."""
    path = tmp_path / "log"
    path.write_bytes(content)
    code, found, err = diagnose(capsys, str(path))
    assert (code, found["severity"]) == (0, "critical")
    assert words in err
    assert bool(err) == bool(words)


def test_a_truncated_gzip_gives_what_came_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A download that broke off still holds its first lines."""
    path = tmp_path / "log.gz"
    noise = "".join(f"[ {number}.0] noise {number * 7919 % 10007}\n" for number in range(5_000))
    path.write_bytes(gzip.compress((LOG + noise).encode())[:-4_000])
    code, found, err = diagnose(capsys, str(path))
    assert (code, found["severity"]) == (0, "critical")
    assert 3 <= found["lines_read"] < 5_003
    assert f"{path}: the gzip data ends early" in err


def test_damaged_gzip_gives_what_came_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Garbage inside is named, not raised."""
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(LOG.encode()) + b"\x1f\x8b\x08garbage that is no gzip")
    code, found, err = diagnose(capsys, str(path))
    assert (code, found["severity"]) == (0, "critical")
    assert "the gzip data is damaged" in err


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_empty_input_is_one_valid_object(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON is always valid on exit 0; that there was nothing is said on stderr."""
    path = tmp_path / "empty"
    path.write_bytes(content)
    code, found, err = diagnose(capsys, str(path))
    assert (code, found["severity"], found["lines_read"]) == (0, "ok", len(content))
    assert ("is empty" in err) == (not content)


@pytest.mark.parametrize("name", ["missing", "directory"])
def test_what_cannot_be_opened_is_named_with_exit_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the file and says why; the inputs that can be read are still diagnosed."""
    (tmp_path / "directory").mkdir()
    bad, good = tmp_path / name, tmp_path / "good"
    good.write_text(LOG)
    code, found, err = diagnose(capsys, str(bad))
    assert (code, found) == (2, None)
    assert str(bad) in err
    assert len(err.splitlines()) == 1
    code, found, err = diagnose(capsys, str(bad), str(good))
    assert (code, found["severity"]) == (2, "critical")


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
