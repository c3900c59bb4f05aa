"""Tools for models whose endpoint has none: described in the system text, called by one JSON object, answered by a user message."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from aggregator.investigator.llm import Json, ResultsEntry, ToolCall, ToolSpec
from aggregator.investigator.llm.arguments import read_arguments

FENCED = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
CALLS = "tool_calls"


def describe(tools: Sequence[ToolSpec]) -> str:
    """What to add to the system text."""
    listed = [{"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in tools]
    return (
        "You may call tools. To call them, reply with one JSON object and nothing else, no Markdown fence: "
        f'{{"{CALLS}": [{{"name": "…", "arguments": {{…}}}}]}}. You then get their results, and may call again. The tools:\n'
        + json.dumps(listed, ensure_ascii=False, separators=(",", ":"))
    )


def read_calls(text: str, turn: int) -> tuple[ToolCall, ...]:
    """The calls that a reply consists of; none where it is anything else. `turn` makes their ids unlike those of other turns."""
    value = read_arguments(unfenced(text))
    wanted = value.get(CALLS) if value else None
    if not isinstance(wanted, list):
        return ()
    return tuple(_call(item, f"call_{turn}_{number}") for number, item in enumerate(wanted, 1))


def _call(item: object, call_id: str) -> ToolCall:
    name = item.get("name") if isinstance(item, dict) else None
    arguments = item.get("arguments", {}) if isinstance(item, dict) else None
    if isinstance(name, str) and isinstance(arguments, dict):
        return ToolCall(call_id, name, arguments)
    return ToolCall(call_id, name if isinstance(name, str) else "", None, json.dumps(item))


def results_text(entry: ResultsEntry) -> str:
    """The answers to such calls, in their order."""
    shown = [
        f"{'Error' if result.is_error else 'Result'} of {result.call_id}:\n{result.text}" for result in entry.results
    ]
    return "\n\n".join([*shown, *([entry.text] if entry.text.strip() else [])])


def unfenced(text: str) -> str:
    """A reply without the Markdown fence that small models put around JSON."""
    found = FENCED.match(text)
    return found[1] if found else text


def assistant(text: str) -> Json:
    """A turn as it goes back."""
    return {"role": "assistant", "content": text}
