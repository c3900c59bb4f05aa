"""Evaluations with scripted models over the real SDK."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from aggregator.eval.figures import Figures, figures
from aggregator.eval.judge import Score
from aggregator.eval.results import Results
from aggregator.eval.run import Outcome, Setup, evaluate
from aggregator.eval.world import Pair, load_pairs
from aggregator.investigator import prompts
from aggregator.investigator.budget import Budget
from aggregator.investigator.llm.attempts import Patience
from aggregator.investigator.llm.backends import backend_of
from tests.doubles.llm import KEY, Script, ScriptedLlm

QUICK = Patience(idle_seconds=2.0, first_backoff_seconds=0.01, longest_backoff_seconds=0.02)
PAIRS = load_pairs()
MAIN = "import sys; from aggregator.cli import main; sys.exit(main())"
FEW = ("gsp-rollout", "power-supply", "stuck-storage")

Evaluates = Callable[..., Awaitable[tuple[Outcome, list[Score]]]]


def of_mode(scores: Sequence[Score], mode: str) -> Figures:
    return figures(mode, [score for score in scores if score.mode == mode])


@pytest.fixture
def evaluates(tmp_path: Path) -> Evaluates:
    """Evaluate a scripted model over pairs; results are kept in the test's folder."""

    async def go(
        script: Script, pairs: Sequence[Pair] = PAIRS, *, repetitions: int = 1, out: Path = tmp_path, **llm: Any
    ) -> tuple[Outcome, list[Score]]:
        with ScriptedLlm(script, **llm) as endpoint:
            backend = backend_of("anthropic", key=SecretStr(KEY), base_url=endpoint.url, patience=QUICK)
            try:
                setup = Setup(backend, await backend.probe(), prompts.system_text(), Budget(), secrets=(KEY,))
                results = Results(out, setup.digest)
                outcome = await evaluate(pairs, setup, results, repetitions=repetitions, at_once=4)
            finally:
                await backend.close()
        return outcome, results.scores((pair.digest for pair in pairs), repetitions)

    return go


def command(out: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`gcm-sentinel eval` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, "eval", "--out", str(out), *arguments],
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Ours, with these variables and none other of the aggregator's."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("GCM_SENTINEL_")}
    return {**others, **{f"GCM_SENTINEL_{name}": value for name, value in variables.items()}}
