"""The real tools with recorded answers: the same names, words and schemas as sources/ has, nothing behind them but a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from aggregator import rules
from aggregator.eval.world import Pair, Recording, Variant, baseline
from aggregator.investigator.sources import Answer, Ask, Registry, Scope, Source, Tool, Unavailable
from aggregator.investigator.sources.asking import node_in_scope, refusing
from aggregator.investigator.sources.configuration import Configuration
from aggregator.investigator.sources.registry import Given, build
from aggregator.model import Trust

NOWHERE = "http://127.0.0.1:9"  # never asked
TRUE_ANSWERS = frozenset(("explain_code",))  # stands on the packaged catalog alone
NOTHING = "Nothing was found."


@cache
def real_sources() -> tuple[Source, ...]:
    """Every source that can exist, made with nothing behind it: read for its tools, never asked."""
    nobody: Any = object()  # in place of a store and an API server
    given = Given(Configuration(), nobody, rules.load(), NOWHERE, NOWHERE, nobody)
    return build(given).registry.sources


def source_of(tool: str) -> str:
    """The name of the source that a tool belongs to. Raises KeyError."""
    return {tool.name: source.name for source in real_sources() for tool in source.tools}[tool]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A source whose answers were written down."""

    name: str
    tools: Sequence[Tool]
    down: str = ""

    async def unavailable(self) -> str:
        return self.down


def registry_of(pair: Pair, variant: Variant) -> Registry:
    """The tools of one world."""
    answers = (*pair.recordings(variant), *baseline(pair.node))
    dead = source_of(pair.question.tool) if variant is Variant.DOWN else ""
    return Registry.of(
        *(_recorded(source, answers, pair.question.down if source.name == dead else "") for source in real_sources())
    )


def answer_to(answers: Sequence[Recording], tool: str, arguments: Mapping[str, Any]) -> Answer:
    """The first that fits; else that nothing was found."""
    found = next((answer for answer in answers if answer.fits(tool, arguments)), None)
    return Answer(NOTHING, Trust.CLUSTER) if found is None else Answer(found.answer, found.trust)


def _recorded(source: Source, answers: Sequence[Recording], down: str) -> Recorded:
    tools = [
        tool if tool.name in TRUE_ANSWERS else replace(tool, ask=refusing(_ask(tool.name, answers, down)))
        for tool in source.tools
    ]
    return Recorded(source.name, tools, down)


def _ask(tool: str, answers: Sequence[Recording], down: str) -> Ask:
    async def ask(scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        for node in (arguments.get("node_name", ""), *arguments.get("nodes", ())):
            node_in_scope(scope, node)
        if down:
            raise Unavailable(down)
        return answer_to(answers, tool, arguments)

    return ask
