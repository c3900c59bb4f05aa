"""Sources that others write: found by entry point or by name, checked before they are used, left out with one line when they fail.

A plug-in is code that an operator installed: it runs with our rights. What it returns passes the same gate as everything else.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module, metadata
from typing import Any

from jsonschema import Draft202012Validator, SchemaError

from aggregator.investigator.sources import Source, Tool

GROUP = "gcm_sentinel.sources"
LOAD_SECONDS = 10.0
MAX_TIMEOUT_SECONDS = 120.0
MAX_DESCRIPTION = 4000

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class PluginUnusable(Exception):
    """A plug-in is left out; the text says which and why, in one line."""


def load(named: Sequence[str], taken: set[str]) -> tuple[list[Source], list[str]]:
    """Every plug-in that can be used, and a line for each that cannot. `taken`: names of tools that exist."""
    sources, problems = [], []
    for name, made in (*_installed(), *_named(named)):
        try:
            source = _loaded(name, made)
            check(name, source, taken)
        except PluginUnusable as unusable:
            problems.append(str(unusable))
            continue
        taken |= {tool.name for tool in source.tools}
        sources.append(source)
    return sources, problems


def check(name: str, source: Source, taken: set[str]) -> None:
    """Raises PluginUnusable for a source that does not keep to the seam, or whose tools' names exist already."""
    seen = set(taken)
    try:
        tools = list(source.tools)
        usable = bool(_NAME.fullmatch(source.name)) and callable(source.unavailable)
    except Exception as error:
        raise PluginUnusable(f"plug-in {name}: {_line(error)}") from error
    if not usable or not tools:
        raise PluginUnusable(f"plug-in {name}: a source has a name, tools and unavailable()")
    for tool in tools:
        if problem := _problem(tool, seen):
            raise PluginUnusable(f"plug-in {name}: {problem}")
        seen.add(tool.name)


def _problem(tool: Any, taken: set[str]) -> str:
    """What is wrong with a tool, in one line; empty where nothing is."""
    if not isinstance(tool, Tool):
        return f"{type(tool).__name__} is no Tool"
    if not isinstance(tool.name, str) or not _NAME.fullmatch(tool.name):
        return f"a tool's name has letters, digits and underscores, at most 64: {str(tool.name)[:80]!r}"
    if tool.name in taken:
        return f"a tool named {tool.name!r} exists already"
    if not isinstance(tool.description, str) or not 0 < len(tool.description) <= MAX_DESCRIPTION:
        return f"tool {tool.name}: its description has 1 to {MAX_DESCRIPTION} characters"
    if not callable(tool.ask) or not 0 < tool.timeout_seconds <= MAX_TIMEOUT_SECONDS:
        return f"tool {tool.name}: ask is a coroutine function, timeout_seconds at most {MAX_TIMEOUT_SECONDS:g}"
    return _schema_problem(tool)


def _schema_problem(tool: Tool) -> str:
    try:
        Draft202012Validator.check_schema(tool.parameters)
        closed = tool.parameters["type"] == "object" and tool.parameters["additionalProperties"] is False
    except (SchemaError, KeyError, TypeError) as error:
        return f"tool {tool.name}: parameters is no JSON schema of an object: {_line(error)}"
    return "" if closed else f"tool {tool.name}: parameters needs type object and additionalProperties false"


def _installed() -> Iterator[tuple[str, Callable[[], Any]]]:
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        yield entry.name, entry.load


def _named(names: Sequence[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in names:
        yield name, lambda name=name: _attribute(name)  # type: ignore[misc]


def _attribute(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _loaded(name: str, find: Callable[[], Any]) -> Source:
    """What the plug-in's callable gives, within a time: an import that hangs must not keep the aggregator from starting."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(find()())
        except BaseException as error:  # noqa: BLE001 - others' code: a SystemExit of theirs is not ours
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True, name=f"plug-in {name}")
    thread.start()
    thread.join(LOAD_SECONDS)
    if not outcome:
        raise PluginUnusable(f"plug-in {name}: did not load within {LOAD_SECONDS:g} s")
    if isinstance(outcome[0], BaseException):
        raise PluginUnusable(f"plug-in {name}: {_line(outcome[0])}") from outcome[0]
    source: Source = outcome[0]
    return source


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
