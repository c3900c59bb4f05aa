"""One streamed answer of Chat Completions, gathered into a turn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aggregator.investigator.llm import Json, ModelEntry, Stop, ToolCall, Turn, Usage
from aggregator.investigator.llm.arguments import read_arguments, text_of
from aggregator.investigator.llm.attempts import incomplete
from aggregator.investigator.llm.text_calls import assistant, read_calls, unfenced

STOPS: Mapping[str, Stop] = {"length": Stop.MAX_TOKENS, "content_filter": Stop.REFUSAL}


class ChatReader:
    """Gathers the chunks of one stream. Reasoning that an endpoint shows is dropped: none wants it back."""

    def __init__(self, number: int, *, in_text: bool) -> None:
        """`number` makes ids of calls unlike those of other turns; `in_text`: the endpoint has no tools, calls are text."""
        self._number = number
        self._in_text = in_text
        self._text: list[str] = []
        self._calls: dict[int, dict[str, list[str]]] = {}
        self._usage: Mapping[str, Any] = {}
        self._model = ""
        self._stop = ""
        self._refused = False

    def add(self, event: dict[str, Any]) -> str:
        """Take one chunk in; returns text of the model that it adds."""
        self._model = str(event.get("model") or self._model)
        self._usage = event.get("usage") or self._usage
        text = ""
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            self._stop = choice.get("finish_reason") or self._stop
            self._refused = self._refused or bool(delta.get("refusal"))
            text += text_of(delta.get("content") or "")
            for position, part in enumerate(delta.get("tool_calls") or ()):
                self._add_call(part, position)
        self._text.append(text)
        return text

    def _add_call(self, part: Mapping[str, Any], position: int) -> None:
        """A piece of a call. Some endpoints number none of them: then its place in the chunk is its number."""
        index = part.get("index")
        fields = self._calls.setdefault(position if index is None else index, {"id": [], "name": [], "arguments": []})
        function = part.get("function") or {}
        for name, value in (
            ("id", part.get("id")),
            ("name", function.get("name")),
            ("arguments", function.get("arguments")),
        ):
            if value:
                fields[name].append(text_of(value))

    def turn(self) -> Turn:
        """The whole turn. Raises TurnLost where the stream ended before it did."""
        if not self._stop:
            raise incomplete()
        text = "".join(self._text)
        calls, raw = self._written(text) if self._in_text else self._native(text)
        if self._in_text:
            text = "" if calls else unfenced(text)
        stop = STOPS.get(self._stop, Stop.TOOLS if calls else Stop.END)
        entry = ModelEntry(tuple(raw))
        return Turn(Stop.REFUSAL if self._refused else stop, text, calls, entry, self._used(), self._model)

    def _written(self, text: str) -> tuple[tuple[ToolCall, ...], list[Json]]:
        return read_calls(text, self._number), [assistant(text)] if text.strip() else []

    def _native(self, text: str) -> tuple[tuple[ToolCall, ...], list[Json]]:
        calls, wires = [], []
        for index, fields in sorted(self._calls.items()):
            written = "".join(fields["arguments"])
            arguments = read_arguments(written)
            name, call_id = "".join(fields["name"][:1]), "".join(fields["id"][:1]) or f"call_{self._number}_{index}"
            calls.append(ToolCall(call_id, name, arguments, written if arguments is None else ""))
            function = {"name": name, "arguments": json.dumps(arguments or {}) if arguments in (None, {}) else written}
            wires.append({"id": call_id, "type": "function", "function": function})
        if not text.strip() and not wires:
            return (), []
        return tuple(calls), [{**assistant(text), **({"tool_calls": wires} if wires else {})}]

    def _used(self) -> Usage:
        details = self._usage.get("prompt_tokens_details") or {}
        return Usage(
            input_tokens=self._usage.get("prompt_tokens") or 0,
            cached_tokens=details.get("cached_tokens") or 0,
            output_tokens=self._usage.get("completion_tokens") or 0,
        )
