"""`gcm-sentinel rejudge`: what a rules overlay would change about stored verdicts, without changing anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aggregator import cli
from tests.pipeline.test_pipeline import running

FAULTS = (
    "NVRM: Xid (PCI:0000:3a:00): 31, pid=1, name=a, MMU Fault",
    "NVRM: Xid (PCI:0000:4a:00): 79, GPU has fallen off the bus.",
)


@pytest.fixture
async def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of an aggregator that has judged two faults, and is stopped."""
    async with running(tmp_path / "sentinel.db") as host:
        await host.deliver(1, *FAULTS)
        await host.settled()
    monkeypatch.setenv("GCM_SENTINEL_STATE_DIR", str(tmp_path))
    return tmp_path


def overlay(directory: Path, text: str) -> str:
    path = directory / "overlay.toml"
    path.write_text(text)
    return str(path)


async def test_it_lists_the_verdicts_that_would_change(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one that the overlay is about, with what it was; the database stays as it is."""
    before = (state / "sentinel.db").read_bytes()
    rules = overlay(
        state, "[like.lost]\nconfidence = 0.5\n[kind.driver_message]\nweight = 2\n[xid.31]\nseverity = 'ok'\n"
    )
    assert cli.main(["rejudge", "--rules", rules, "--json"]) == 0
    changes = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(change["pci"], change["before"]["severity"], change["after"]["severity"]) for change in changes] == [
        ("0000:3a:00.0", "warning", "ok")
    ]
    assert (state / "sentinel.db").read_bytes() == before


async def test_it_counts_what_it_judged_again(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An overlay that changes no advice changes no verdict; incidents before the span are left out."""
    rules = overlay(state, "[xid.31]\nmeaning = 'A wild access.'\n")
    assert cli.main(["rejudge", "--rules", rules]) == 0
    assert capsys.readouterr().out.startswith("0 of 2 verdicts would change under ")


@pytest.mark.parametrize(
    ("text", "named"), [("[xid.31]\nseverity = 'bad'\n", "xid.31"), ("version = 'x'\n[", "not TOML")]
)
async def test_an_overlay_that_cannot_be_used_is_refused(
    state: Path, text: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and where it is wrong."""
    assert cli.main(["rejudge", "--rules", overlay(state, text)]) == 2
    assert named in capsys.readouterr().err


def test_without_a_database_it_says_which_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is made where nothing was."""
    monkeypatch.setenv("GCM_SENTINEL_STATE_DIR", str(tmp_path / "elsewhere"))
    assert cli.main(["rejudge", "--rules", overlay(tmp_path, "version = 'x'\n")]) == 2
    assert "GCM_SENTINEL_STATE_DIR" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()
