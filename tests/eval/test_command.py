"""`gcm-sentinel eval` as a person runs it: what it prints, what it keeps, how it ends."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator.eval.world import load_pairs
from tests.doubles.llm import KEY, Asked, ScriptedLlm, Status, Step
from tests.eval.conftest import MAIN, command, environment
from tests.eval.models import guesser, oracle, playing

NAMES = ("gsp-rollout", "killed-by")
ONCE = ("--n", "1", "--worlds", *NAMES)


def to(llm: ScriptedLlm, **variables: str) -> dict[str, str]:
    return {"LLM_API": "anthropic", "API_KEY": KEY, "LLM_BASE_URL": llm.url, **variables}


def test_it_prints_a_report_keeps_it_and_does_nothing_twice(tmp_path: Path) -> None:
    with ScriptedLlm(playing(load_pairs(NAMES), oracle)) as llm:
        first = command(tmp_path, *ONCE, **to(llm))
        asked = len(llm.turns)
        second = command(tmp_path, *ONCE, "--format", "json", **to(llm))
        assert len(llm.turns) == asked
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "| pairs solved: both twins right, deciding item cited | 100% | 0% | 100% | 0% |" in first.stdout
    assert first.stderr == ""
    told = json.loads(second.stdout)
    assert told == json.loads((tmp_path / "report.json").read_text())
    assert first.stdout == (tmp_path / "report.md").read_text()
    assert (told["runs_done"], told["runs_planned"], told["worlds"]) == (18, 18, 2)
    assert told["pairs"] == {name: {"solved": 1, "times": 1} for name in NAMES}
    tools = told["modes"]["tools"]
    assert tools["tokens"] > 1000
    assert tools["cost_usd"] > 0
    assert tools["seconds_p95"] >= tools["seconds_p50"] > 0
    assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_guesser_is_told_to_solve_nothing_and_to_harm(tmp_path: Path) -> None:
    with ScriptedLlm(playing(load_pairs(NAMES), guesser("a"))) as llm:
        told = json.loads(command(tmp_path, *ONCE, "--format", "json", **to(llm)).stdout)["modes"]["tools"]
    assert (told["pair_accuracy"], told["harm"]) == (0.0, 1.0)


def test_an_endpoint_that_fails_midway_ends_with_3_and_the_same_command_goes_on(tmp_path: Path) -> None:
    plays = playing(load_pairs(NAMES), oracle)

    def dies(asked: Asked) -> Step:
        return plays(asked) if asked.number < 6 else Status(401)

    with ScriptedLlm(dies) as llm:
        port = int(llm.url.rpartition(":")[2])
        first = command(tmp_path, *ONCE, **to(llm))
    with ScriptedLlm(plays, port=port) as llm:
        second = command(tmp_path, *ONCE, **to(llm))
    assert first.returncode == 3
    assert "runs are not done, the endpoint failed (authentication" in first.stderr
    assert "the same command goes on" in first.stderr
    assert second.returncode == 0
    assert "18 of 18 runs are done" in second.stdout


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "says"),
    [
        ((), {}, 2, "GCM_SENTINEL_LLM_API: names no model's API"),
        ((), {"LLM_API": "anthropic"}, 2, "GCM_SENTINEL_API_KEY: is needed"),
        ((), {"LLM_API": "anthropic", "LLM_BASE_URL": "http://127.0.0.1:1"}, 3, "endpoint cannot be asked: "),
        (
            ("--worlds", "atlantis"),
            {"LLM_API": "openai", "API_KEY": "k"},
            2,
            "--worlds: atlantis: neither a folder nor",
        ),
        (("--n", "0"), {}, 2, "--n: '0': expected a number from 1 to 100"),
        ((), {"LLM_API": "anthropic", "API_KEY": "k", "MODELS_FILE": "/dev/null/x"}, 2, "GCM_SENTINEL_MODELS_FILE"),
    ],
)
def test_what_is_wrong_is_one_clear_line(
    tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, str], code: int, says: str
) -> None:
    done = command(tmp_path, *arguments, **variables)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "says"),
    [({"API_KEY": "wrong"}, "GCM_SENTINEL_API_KEY: "), ({"MODEL": "claude-none"}, "GCM_SENTINEL_MODEL: ")],
)
def test_a_key_or_model_that_the_endpoint_refuses_is_named(
    tmp_path: Path, variables: dict[str, str], says: str
) -> None:
    with ScriptedLlm(playing(load_pairs(NAMES), oracle)) as llm:
        done = command(tmp_path, *ONCE, **to(llm, **variables))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_on_a_terminal_a_bar_follows_the_runs(tmp_path: Path) -> None:
    with ScriptedLlm(playing(load_pairs(NAMES), oracle)) as llm:
        master, slave = pty.openpty()
        arguments = [sys.executable, "-c", MAIN, "eval", "--out", str(tmp_path), *ONCE]
        done = subprocess.run(
            arguments, env=environment(to(llm)), stdout=subprocess.PIPE, stderr=slave, timeout=60, check=False
        )
        os.close(slave)
        shown = os.read(master, 1_000_000).decode()
        os.close(master)
    assert done.returncode == 0
    assert "] 0 of 18 runs" in shown
    assert "[##############################] 18 of 18 runs" in shown
