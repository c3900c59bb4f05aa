"""Makes the investigator from settings: backend, prompts, sources, budgets, queue. What is wrong in a file stops the start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from aggregator import rules
from aggregator.investigator import prompts
from aggregator.investigator.budget import Budget
from aggregator.investigator.llm import Backend
from aggregator.investigator.llm.backends import backend_of
from aggregator.investigator.llm.models import ModelsError, read_models
from aggregator.investigator.policy import HourlyBudget
from aggregator.investigator.queue import Counts, Queue, Rules
from aggregator.investigator.sources import Registry
from aggregator.investigator.work import ModelProbe, ScopeOf, Work
from aggregator.settings import Settings
from aggregator.store import Store


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
    registry: Registry,
    scope_of: ScopeOf,
    ended: Callable[[], None],
) -> Investigator:
    """Raises InvestigatorUnusable."""
    try:
        models = read_models(settings.models_file)
    except ModelsError as error:
        raise InvestigatorUnusable(f"MODELS_FILE: {error}") from error
    try:
        system = prompts.system_text(settings.system_prompt_path)
    except prompts.PromptError as error:
        raise InvestigatorUnusable(f"SYSTEM_PROMPT_PATH: {error}") from error
    backend = backend_of(
        settings.llm_api,
        model=settings.model,
        key=settings.api_key,
        base_url=settings.llm_base_url,
        models=models,
    )
    probe = ModelProbe(backend)
    work = Work(store, backend, probe, registry, system, _budget(settings), context, scope_of)
    budget = HourlyBudget(tokens=settings.hourly_tokens, cost_usd=settings.hourly_usd)
    how = Rules(settings.investigate, settings.investigations_at_once, settings.cooldown_seconds, budget)
    return Investigator(Queue(store, work, how, counts, ended), probe, backend)


def _budget(settings: Settings) -> Budget:
    return Budget(
        rounds=settings.max_tool_rounds,
        tokens=settings.investigation_tokens,
        cost_usd=settings.investigation_usd,
        wall_seconds=settings.investigation_seconds,
        shown_characters=settings.max_tool_output,
    )
