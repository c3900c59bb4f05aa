"""Asks tools on the model's behalf: checks what it asks, bounds what it costs, numbers what comes back.

Whatever a tool does (hang, raise, answer with a gigabyte), the model gets an answer to every call, in the order of the calls, and
the investigation goes on. An answer becomes an item that claims may cite; an error does not, since it may hold the model's own
words.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from aggregator.investigator.framing import Gate
from aggregator.investigator.items import Item, Shown
from aggregator.investigator.llm import ToolCall, ToolSpec
from aggregator.investigator.rendering import dumps
from aggregator.investigator.results import BadQuestion, Results, admitted
from aggregator.investigator.sources import Registry, Scope, Source, Tool, Unavailable

READ_RESULT = "read_result"
EXPLAIN_CODE = "explain_code"
MAX_CALLS = 12  # of one turn; more are refused
MAX_ARGUMENTS = 20_000  # characters
MAX_ERROR = 1_000
GRACE_SECONDS = 1.0  # for a tool that is told to stop
PAGE_SECONDS = 10.0
NOT_CHECKED = frozenset(("unavailable", "timeout", "failed"))  # what then stands on the assessment
ECHO = 4  # characters of an argument that a quote may not merely repeat

_T = TypeVar("_T")

_READ_RESULT = ToolSpec(
    name=READ_RESULT,
    description=(
        "Reads more of an earlier tool result that was too long to show: the lines of it that match an RE2 regular expression "
        "(empty: all), within a range of line numbers. Quotes from the page cite the page's own id."
    ),
    parameters={
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "id of the result, for example t3"},
            "filter": {
                "type": "string",
                "description": "RE2 regular expression that lines must match; (?i) ignores case",
            },
            "range": {"type": "string", "description": 'line numbers from 1, for example "1-200"'},
        },
        "required": ["id"],
        "additionalProperties": False,
    },
)


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of one call."""

    call: ToolCall
    text: str  # framed, as the model sees it
    item: Item | None = None  # None where there was an error, or the answer was given before
    error: str = ""  # one word for metrics; empty where it was answered
    total: int = 0  # characters of the whole answer
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class _Found:
    """An answer before it has an id."""

    item: Item
    total: int
    keep: bool = True  # False for a page: what it is a page of is kept


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why there is none."""

    word: str
    text: str


class Toolbox:
    """The tools of one investigation. Raises ValueError where a source took the name of a tool of ours."""

    def __init__(self, registry: Registry, scope: Scope, gate: Gate, shown: Shown, shown_characters: int) -> None:
        if READ_RESULT in registry.tools:
            raise ValueError(f"a source has a tool named {READ_RESULT!r}, which is the investigator's own")
        self.specs = specs(registry)
        self.unchecked: dict[str, str] = {}  # tool or source → why it could not be asked
        self._registry, self._scope, self._gate, self._shown = registry, scope, gate, shown
        self._results = Results(shown_characters)
        self._validators = {spec.name: Draft202012Validator(spec.parameters) for spec in self.specs}
        self._answered: dict[str, str] = {}  # signature of a call → item id
        self._count = 0

    async def look_around(self, timeout_seconds: float = 5.0) -> Mapping[str, str]:
        """Which sources cannot be asked, and why: known before the first question."""
        sources = self._registry.sources
        reasons = await asyncio.gather(*(_bounded(_unavailable(source), timeout_seconds) for source in sources))
        for source, reason in zip(sources, reasons, strict=True):
            if reason:
                self.unchecked[source.name] = self._one_line(reason.text if isinstance(reason, _Failed) else reason)
        return self.unchecked

    async def answer(self, calls: Sequence[ToolCall], limit_seconds: float = math.inf) -> list[Answered]:
        """Ask all of one turn side by side, each for at most its own time and `limit_seconds`; the answers stand in the order of
        the calls."""
        firsts: dict[str, int] = {}
        for position, call in enumerate(calls):
            firsts.setdefault(signature(call), position)
        asked = sorted(at for key, at in firsts.items() if key not in self._answered and at < MAX_CALLS)
        found = dict(zip(asked, await self._ask_all([calls[at] for at in asked], limit_seconds), strict=True))
        answers = [self._answer(call, found.get(position), position) for position, call in enumerate(calls)]
        for answer in answers:
            if answer.item is not None and answer.item.live:
                del self._answered[signature(answer.call)]  # asked again in another turn, it may say something else
        return answers

    async def _ask_all(self, calls: Sequence[ToolCall], limit_seconds: float) -> Sequence[_Found | _Failed]:
        return await asyncio.gather(*(self._ask(call, limit_seconds) for call in calls))

    def _answer(self, call: ToolCall, found: _Found | _Failed | None, position: int) -> Answered:
        """Give a finding its id. Without one the same call was answered before, or there were too many."""
        key = signature(call)
        if found is None and key in self._answered:
            text = f"This call was answered before: its result is {self._answered[key]}, above. It was not asked again."
            return Answered(call, self._gate.frame_error(_name(call), text), repeated=True)
        if found is None:
            limit = position >= MAX_CALLS
            text = f"At most {MAX_CALLS} calls a turn: ask again." if limit else "The same call, in this turn, failed."
            found = _Failed("too_many" if limit else "repeated", text)
        if isinstance(found, _Failed):
            return Answered(call, self._gate.frame_error(_name(call), found.text), error=found.word)
        self._count += 1
        item = replace(found.item, id=f"t{self._count}")
        item = self._results.keep(item, found.total) if found.keep else item
        self._shown.add(item)
        self._answered[key] = item.id
        return Answered(call, self._gate.frame(item), item, total=found.total)

    async def _ask(self, call: ToolCall, limit_seconds: float) -> _Found | _Failed:
        if call.name not in self._validators:
            return _Failed("unknown_tool", f"There is no such tool. Tools: {', '.join(sorted(self._validators))}.")
        if call.arguments is None:
            return _Failed("bad_arguments", f"The arguments were not one JSON object: {call.raw[:200]}")
        tool = self._registry.tools.get(call.name)
        if tool is None:
            return await _bounded(self._page(call.arguments), min(PAGE_SECONDS, limit_seconds))
        found = await _bounded(self._asked(tool, call.arguments), min(tool.timeout_seconds, limit_seconds))
        if isinstance(found, _Found):
            self.unchecked.pop(tool.name, None)
        elif found.word in NOT_CHECKED:
            self.unchecked[tool.name] = self._one_line(found.text)
        return found

    async def _asked(self, tool: Tool, arguments: Mapping[str, Any]) -> _Found | _Failed:
        self._check(tool.name, arguments)
        answer = await tool.ask(self._scope, arguments)
        text, total = await asyncio.to_thread(admitted, self._gate, answer.value)
        if answer.is_error:
            return _Failed("error", text[:MAX_ERROR])
        title = f"{tool.name} {dumps(arguments)}"
        item = Item(
            id="",
            title=self._gate.admit(title)[:200],
            text=text,
            trust=answer.trust,
            live=tool.live,
            explains=tool.name == EXPLAIN_CODE,
            asked=tuple(_words(arguments)),
        )
        return _Found(item, total)

    async def _page(self, arguments: Mapping[str, Any]) -> _Found | _Failed:
        self._check(READ_RESULT, arguments)
        wanted = arguments["id"], arguments.get("filter", ""), arguments.get("range", "")
        kept, text = await asyncio.to_thread(self._results.page, *wanted)
        item = replace(kept.item, title=f"page of {kept.item.id}, {kept.item.title}", text=text, evidence_id="")
        return _Found(item, kept.total, keep=False)

    def _check(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Raises BadQuestion, in words that say what to do."""
        validator = self._validators[name]
        error = best_match(validator.iter_errors(arguments))
        if error is None and len(dumps(arguments)) <= MAX_ARGUMENTS:
            return
        wrong = f"{error.json_path}: {error.message}"[:300] if error is not None else "they are too long"
        expected = dumps(validator.schema.get("properties", {}))[:600]
        raise BadQuestion(f"The arguments do not fit: {wrong}. Parameters: {expected}")

    def _one_line(self, text: str) -> str:
        return self._gate.leaving(text)[:300]


def specs(registry: Registry) -> tuple[ToolSpec, ...]:
    """Every tool, in an order that never changes: what the model is told of them is the same in each request."""
    tools = (ToolSpec(tool.name, tool.description, tool.parameters) for tool in registry.tools.values())
    return tuple(sorted((*tools, _READ_RESULT), key=lambda spec: spec.name))


def signature(call: ToolCall) -> str:
    """What makes two calls the same."""
    try:
        return f"{call.name} {dumps(call.arguments)}" if call.arguments is not None else f"{call.name} {call.raw}"
    except (ValueError, TypeError, RecursionError):
        return f"{call.name} {call.raw}"


def _name(call: ToolCall) -> str:
    return call.name or "call without a name"


def _words(value: Any) -> Iterable[str]:
    """Every text in a call's arguments."""
    if isinstance(value, str):
        if len(value) >= ECHO:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _words(item)
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)


async def _unavailable(source: Source) -> str:
    return str(await source.unavailable())


async def _bounded(question: Coroutine[Any, Any, _T], timeout_seconds: float) -> _T | _Failed:
    """What a coroutine of a source gives. A tool is others' code: nothing it does ends the investigation."""
    task = asyncio.create_task(question)
    try:
        await asyncio.wait({task}, timeout=timeout_seconds)
        return task.result() if task.done() else _Failed("timeout", f"It did not answer within {timeout_seconds:g} s.")
    except BadQuestion as error:
        return _Failed("bad_arguments", str(error))
    except Unavailable as error:
        return _Failed("unavailable", f"It cannot be asked now: {error}")
    except asyncio.CancelledError:
        if not task.cancelled():
            raise
        return _Failed("failed", "It gave up by itself.")
    except Exception as error:  # noqa: BLE001 - the wall around sources
        return _Failed("failed", f"It failed: {type(error).__name__}: {str(error)[:MAX_ERROR]}")
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=GRACE_SECONDS)
