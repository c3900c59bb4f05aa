"""Makes the investigator from settings: backend, prompts, sources, budgets, queue. What is wrong in a file stops the start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from aggregator import rules
from aggregator.investigator import prompts
from aggregator.investigator.budget import Budget
from aggregator.investigator.llm import Backend
from aggregator.investigator.llm.backends import backend_of
from aggregator.investigator.llm.models import ModelsError, read_models
from aggregator.investigator.policy import HourlyBudget
from aggregator.investigator.queue import Counts, Queue, Rules
from aggregator.investigator.redaction import Redactor
from aggregator.investigator.sources.cluster import Reader
from aggregator.investigator.sources.configuration import SourcesUnusable, read_configuration
from aggregator.investigator.sources.evidence import Collect
from aggregator.investigator.sources.registry import Given, build
from aggregator.investigator.work import ModelProbe, Work
from aggregator.settings import Settings
from aggregator.store import Store

log = structlog.get_logger(__name__)


class InvestigatorUnusable(Exception):
    """A setting or a file of the investigator cannot be used; the text begins with the variable, without its prefix."""


@dataclass(frozen=True, slots=True)
class Investigator:
    """What was made, ready to run."""

    queue: Queue
    probe: ModelProbe
    backend: Backend

    async def run(self) -> None:
        """Say whether the model answers, then work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.probe.say())
                group.create_task(self.queue.work())
        finally:
            await self.backend.close()


def assemble(
    settings: Settings,
    store: Store,
    counts: Counts,
    context: rules.Context,
    *,
    reader: Reader | None,
    collect: Collect,
    ended: Callable[[], None],
) -> Investigator:
    """`reader` is of the API server, where there is one; `collect` asks a node's agent; `ended` is told that an outcome waits to be
    joined. Raises InvestigatorUnusable."""
    with _naming("MODELS_FILE", ModelsError):
        models = read_models(settings.models_file)
    with _naming("SYSTEM_PROMPT_PATH", prompts.PromptError):
        system = prompts.system_text(settings.system_prompt_path)
    with _naming("SOURCES_FILE", SourcesUnusable):
        configuration = read_configuration(settings.sources_file)
    given = Given(
        configuration,
        store,
        context.catalog,
        prometheus_url=settings.prometheus_url,
        alertmanager_url=settings.alertmanager_url,
        reader=reader,
        collect=collect,
    )
    sources = build(given)
    for problem in sources.problems:
        log.warning("source_left_out", reason=problem)
    backend = backend_of(
        settings.llm_api,
        model=settings.model,
        key=settings.api_key,
        base_url=settings.llm_base_url,
        models=models,
    )
    probe = ModelProbe(backend)
    work = Work(
        store,
        backend,
        probe,
        sources.registry,
        system,
        budget_of(settings),
        context,
        sources.scope_of,
        counts.tool_called,
        Redactor((settings.api_key.get_secret_value(),)),
    )
    budget = HourlyBudget(tokens=settings.hourly_tokens, cost_usd=settings.hourly_usd)
    how = Rules(settings.investigate, settings.investigations_at_once, settings.cooldown_seconds, budget)
    return Investigator(Queue(store, work, how, counts, ended), probe, backend)


@contextmanager
def _naming(variable: str, kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        raise InvestigatorUnusable(f"{variable}: {error}") from error


def budget_of(settings: Settings) -> Budget:
    """The bounds of one investigation."""
    return Budget(
        rounds=settings.max_tool_rounds,
        tokens=settings.investigation_tokens,
        cost_usd=settings.investigation_usd,
        wall_seconds=settings.investigation_seconds,
        shown_characters=settings.max_tool_output,
    )
