"""The table of models as data: limits, what they take, prices. `models.toml`, and a site's own file over it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from aggregator.investigator.llm import Capabilities

APIS = ("anthropic", "openai")
THINKING = ("none", "adaptive", "encrypted")


class ModelsError(Exception):
    """A table that cannot be used; one line that names the file and the field."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One row. The defaults are for a model that nobody described: careful limits, no price."""

    max_input_tokens: int = 128_000
    max_output_tokens: int = 16_384
    structured_output: bool = True
    thinking: str = ""  # none, adaptive (Messages), encrypted (Responses); empty: what its API's newer models do
    input_usd: float = 0.0
    cached_usd: float = 0.0
    cache_written_usd: float = 0.0
    output_usd: float = 0.0

    def capabilities(self, model: str) -> Capabilities:
        """The row as the loop sees it."""
        return Capabilities(
            model=model,
            max_input_tokens=self.max_input_tokens,
            max_output_tokens=self.max_output_tokens,
            structured_output=self.structured_output,
            input_usd=self.input_usd,
            cached_usd=self.cached_usd,
            cache_written_usd=self.cache_written_usd,
            output_usd=self.output_usd,
        )


@dataclass(frozen=True, slots=True)
class ModelTable:
    """What is known of models before any endpoint was asked."""

    defaults: Mapping[str, str]
    models: Mapping[str, ModelFacts]

    def facts(self, model: str) -> ModelFacts:
        """The row of a model, or the careful one."""
        return self.models.get(model, ModelFacts())


def read_models(override: Path | None = None) -> ModelTable:
    """The built-in table with a site's file over it. Raises ModelsError naming the field."""
    table = _over(ModelTable({}, {}), files(__package__).joinpath("models.toml").read_text(), "models.toml")
    if override is None:
        return table
    try:
        return _over(table, override.read_text(), str(override))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelsError(f"{override}: cannot be read: {error}") from error


def _over(base: ModelTable, text: str, name: str) -> ModelTable:
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelsError(f"{name}: not TOML: {error}") from error
    _only(given, ("defaults", "models"), name)
    defaults, models = (_table(given.get(part, {}), f"{name}: {part}") for part in ("defaults", "models"))
    _only(defaults, APIS, f"{name}: defaults")
    for api, model in defaults.items():
        if not isinstance(model, str) or not model:
            raise ModelsError(f"{name}: defaults.{api}: expected the id of a model, not {model!r}")
    rows = {
        model: _row(base.facts(model), _table(row, f"{name}: models.{model}"), f"{name}: models.{model}")
        for model, row in models.items()
    }
    return ModelTable({**base.defaults, **defaults}, {**base.models, **rows})


def _row(base: ModelFacts, row: Mapping[str, Any], where: str) -> ModelFacts:
    _only(row, [field.name for field in fields(ModelFacts)], where)
    for name, value in row.items():
        problem = _problem(name, value)
        if problem:
            raise ModelsError(f"{where}.{name}: {problem}, not {value!r}")
    return replace(base, **row)


def _problem(name: str, value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name.endswith("_usd"):
        return "" if number and 0 <= value < 100_000 else "expected dollars per million tokens"  # type: ignore[operator]
    if name.endswith("_tokens"):
        return "" if isinstance(value, int) and number and value >= 1024 else "expected a number of tokens from 1024"
    if name == "thinking":
        return "" if value in THINKING else f"expected one of {', '.join(THINKING)}"
    return "" if isinstance(value, bool) else "expected true or false"


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ModelsError(f"{where}: expected a table, not {value!r}")
    return value


def _only(given: Mapping[str, Any], known: Any, where: str) -> None:
    for name in given:
        if name not in known:
            raise ModelsError(f"{where}: unknown field {name}: expected {', '.join(known)}")
