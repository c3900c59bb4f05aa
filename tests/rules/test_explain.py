"""`gcm-sentinel explain`, as a person calls it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"pydantic", "grpc", "google", "sqlalchemy", "starlette", "structlog", "prometheus_client", "asyncio"}


def explain(*words: str, overlay: Path | None = None, columns: int = 100) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"COLUMNS": str(columns)}
    if overlay is not None:
        environ["GCM_SENTINEL_RULES_OVERLAY"] = str(overlay)
    start = "import sys; from aggregator.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "explain", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environ, check=False, timeout=60)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["xid", "79"], ["XID 79", "fallen off the bus", "critical", "pcie", "Reboot the node", "docs.nvidia.com"]),
        (["XID", "79"], ["XID 79", "fallen off the bus"]),
        (["sxid", "20034"], ["SXid 20034", "critical", "nvlink", "79"]),
        (["signal", "row_remap_failure"], ["replacement", "Attributes", "before: value before"]),
        (["xid", "61", "--generation", "hopper"], ["hopper: the vendor does not list it there"]),
        (["xid", "61", "--generation", "V100"], ["V100: it applies there"]),
        (["xid", "48", "--driver", "550.54.15"], ["prints no XID 154"]),
        (["xid", "48", "--driver", "R570"], ["an XID 154 follows"]),
        (["xid", "154", "--driver", "535.1"], ["before R565 do not report it"]),
    ],
)
def test_it_tells_what_is_known(words: list[str], told: list[str]) -> None:
    done = explain(*words)
    assert done.returncode == 0, done.stderr
    assert [part for part in told if part not in done.stdout] == [], done.stdout


@pytest.mark.parametrize("words", [["xid", "999"], ["sxid", "99999"]])
def test_a_code_that_nobody_knows_is_answered_so(words: list[str]) -> None:
    done = explain(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "not in the catalog" in done.stdout
    assert "Investigate" in done.stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "say what to explain"),
        (["xid"], "say what to explain"),
        (["xid", "seventy"], "seventy"),
        (["xid", "-1"], "-1"),
        (["signal", "row_remap_pendig"], "row_remap_pending"),
        (["signal", "xid"], "explain xid CODE"),
        (["disk", "1"], "disk"),
        (["xid", "79", "--list"], "--list"),
        (["xid", "79", "--generation", "banana"], "--generation banana"),
        (["xid", "79", "--driver", "newest"], "--driver newest"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(words: list[str], named: str) -> None:
    done = explain(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr


def test_json_is_one_object_with_the_rules_it_came_from() -> None:
    told = json.loads(explain("xid", "63", "--json", "--driver", "550.1").stdout)
    assert (told["known"], told["code"], told["severity"]) == (True, 63, "info")
    assert len(told["rules"]["digest"]) == 64
    assert len(told["conditions"]) == 1
    assert json.loads(explain("xid", "999", "--json").stdout)["known"] is False


def test_a_list_has_one_line_for_each_entry() -> None:
    everything, xids = explain("--list").stdout.splitlines(), explain("xid", "--list").stdout.splitlines()
    assert len(xids) == 174
    assert all(line.startswith("XID ") for line in xids)
    assert set(xids) < set(everything)
    entries = json.loads(explain("--list", "--json").stdout)["entries"]
    assert len(entries) == len(everything)


def test_lines_fit_a_narrow_terminal_and_a_pipe_gets_no_colour() -> None:
    text = explain("xid", "119", columns=60).stdout
    assert all(len(line) <= 60 for line in text.splitlines() if "http" not in line)
    assert "https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html" in text
    assert "\x1b" not in text


def test_a_site_overlay_is_shown_as_such(tmp_path: Path) -> None:
    overlay = tmp_path / "site.toml"
    overlay.write_text('[xid.79]\nmeaning = "Call the cage."\n')
    done = explain("xid", "79", overlay=overlay)
    assert "Call the cage." in done.stdout
    assert "site overlay" in done.stdout
    assert "version 1+overlay" in done.stdout


@pytest.mark.parametrize("text", ["[xid.79]\nweight = 'heavy'\n", None])
def test_an_overlay_that_cannot_be_used_exits_2_and_names_the_variable(tmp_path: Path, text: str | None) -> None:
    overlay = tmp_path / "site.toml"
    if text is not None:
        overlay.write_text(text)
    done = explain("xid", "79", overlay=overlay)
    assert done.returncode == 2
    assert "GCM_SENTINEL_RULES_OVERLAY" in done.stderr
    assert str(overlay) in done.stderr


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, aggregator.commands.explain; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) & HEAVY == set()
