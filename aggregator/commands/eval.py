"""`gcm-sentinel eval`: does a model beat the rules? Plays recorded worlds to an endpoint; needs no server and no cluster.

Takes the aggregator's own variables for the model and its budgets. What was measured stays in a folder, run by run: the same call
goes on where it was cut off. Exit codes: 0 every run is done; 2 a setting, a world or the model's name or key is wrong; 3 the
endpoint could not be reached, or failed too often.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from pathlib import Path

import structlog

from aggregator.client import UNREACHABLE, USAGE, CommandFailed
from aggregator.eval.report import Report, as_markdown, report_of
from aggregator.eval.results import Results
from aggregator.eval.run import Outcome, Setup, evaluate, rules_alone
from aggregator.eval.world import WorldError, load_pairs
from aggregator.investigator import prompts
from aggregator.investigator.assembly import budget_of
from aggregator.investigator.llm import Backend, BackendFailed, FailureKind
from aggregator.investigator.llm.backends import backend_of
from aggregator.investigator.llm.models import ModelsError, read_models
from aggregator.render import visible
from aggregator.settings import PREFIX, Settings, SettingsError, without_credentials

OUT = Path("eval-results")
MOST = 100
ERASE = "\r\x1b[2K"
BAR = 30
WRONG = {FailureKind.AUTHENTICATION: "API_KEY", FailureKind.MODEL_UNKNOWN: "MODEL"}  # what a person must correct


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How often, over which worlds, and where to keep it."""
    parser.description = "Plays pairs of recorded worlds to a model and tells how often it finds the fact that decides."
    parser.epilog = (
        f"The model is the aggregator's: {PREFIX}LLM_API, {PREFIX}API_KEY, {PREFIX}MODEL, {PREFIX}LLM_BASE_URL. "
        f"{PREFIX}INVESTIGATIONS_AT_ONCE runs go side by side."
    )
    parser.add_argument("--n", type=_times, default=5, metavar="N", help="how often each world is played (5)")
    parser.add_argument(
        "--worlds", nargs="+", default=[], metavar="DIR|NAME", help="folders or packaged pairs (all packaged)"
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"where results are kept ({OUT})")
    parser.add_argument("--format", choices=("json", "md"), default="md", help="what to print (md)")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print, and return the exit code."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr), cache_logger_on_first_use=False)
    try:
        report, outcome = asyncio.run(_evaluate(arguments))
    except CommandFailed as error:
        sys.stderr.write(f"gcm-sentinel eval: {error}\n")
        return error.code
    pages = {"json": json.dumps(report.as_json, indent=2, ensure_ascii=False) + "\n", "md": as_markdown(report)}
    for form, page in pages.items():
        (arguments.out / f"report.{form}").write_text(page, encoding="utf-8")
    sys.stdout.write(pages[arguments.format])
    if not outcome.undone:
        return 0
    last = f" ({outcome.failures[-1]})" if outcome.failures else ""
    sys.stderr.write(
        f"gcm-sentinel eval: {outcome.undone} of {outcome.planned} runs are not done, the endpoint failed{visible(last)}; "
        "the same command goes on with them\n"
    )
    return UNREACHABLE


def _times(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1 to {MOST}")
    return int(text)


async def _evaluate(arguments: argparse.Namespace) -> tuple[Report, Outcome]:
    """Raises CommandFailed."""
    settings = _settings()
    try:
        pairs = load_pairs(arguments.worlds)
        alone = rules_alone(pairs)
    except WorldError as error:
        raise CommandFailed(USAGE, f"--worlds: {error}") from error
    backend = _backend(settings)
    try:
        setup = await _setup(settings, backend)
        results = _results(arguments.out, setup)
        bar = Bar()
        try:
            outcome = await evaluate(
                pairs,
                setup,
                results,
                repetitions=arguments.n,
                at_once=settings.investigations_at_once,
                progress=bar.show,
            )
        finally:
            bar.clear()
    finally:
        await backend.close()
    scores = results.scores((pair.digest for pair in pairs), arguments.n)
    return report_of(pairs, setup, outcome, alone, scores), outcome


def _settings() -> Settings:
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        raise CommandFailed(USAGE, str(error)) from error
    if settings.llm_api == "none":
        raise CommandFailed(USAGE, f"{PREFIX}LLM_API: names no model's API to evaluate: set anthropic or openai")
    return settings


def _backend(settings: Settings) -> Backend:
    try:
        models = read_models(settings.models_file)
    except ModelsError as error:
        raise CommandFailed(USAGE, f"{PREFIX}MODELS_FILE: {error}") from error
    return backend_of(
        settings.llm_api,
        model=settings.model,
        key=settings.api_key,
        base_url=settings.llm_base_url,
        models=models,
    )


async def _setup(settings: Settings, backend: Backend) -> Setup:
    try:
        capabilities = await backend.probe()
        system = prompts.system_text(settings.system_prompt_path)
    except prompts.PromptError as error:
        raise CommandFailed(USAGE, f"{PREFIX}SYSTEM_PROMPT_PATH: {error}") from error
    except BackendFailed as failed:
        if failed.kind in WRONG:
            raise CommandFailed(USAGE, f"{PREFIX}{WRONG[failed.kind]}: {failed}") from failed
        raise CommandFailed(UNREACHABLE, f"the model's endpoint cannot be asked: {failed}") from failed
    return Setup(
        backend=backend,
        capabilities=capabilities,
        system=system,
        budget=budget_of(settings),
        endpoint=without_credentials(settings.llm_base_url) or settings.llm_api,
        secrets=(settings.api_key.get_secret_value(),),
    )


def _results(directory: Path, setup: Setup) -> Results:
    try:
        return Results(directory, setup.digest)
    except OSError as error:
        raise CommandFailed(USAGE, f"--out: {directory}: {error.strerror}") from error


class Bar:
    """A progress bar on stderr, where that is a terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()

    def show(self, outcome: Outcome) -> None:
        """Draw it anew."""
        if not self._on:
            return
        share = outcome.done / max(outcome.planned, 1)
        failed = f"  {len(outcome.failures)} failed" if outcome.failures else ""
        line = f"[{'#' * round(BAR * share):<{BAR}}] {outcome.done} of {outcome.planned} runs{failed}"
        sys.stderr.write(ERASE + line[: shutil.get_terminal_size((100, 24)).columns - 1])
        sys.stderr.flush()

    def clear(self) -> None:
        """Take it away."""
        if self._on:
            sys.stderr.write(ERASE)
