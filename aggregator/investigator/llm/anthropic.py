"""Anthropic's Messages API through its own SDK, streamed.

Caching is by construction: tools and system are the same on every turn and end in a breakpoint, and so do our last two messages.
The older of those is where the turn before wrote the cache: it is found however many results stand in between, where a breakpoint
alone looks back twenty blocks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anthropic
from anthropic import AsyncAnthropic

from aggregator.investigator.llm import (
    Capabilities,
    Entry,
    FailureKind,
    Json,
    ModelEntry,
    Request,
    ResultsEntry,
    Stop,
    ToolCall,
    Turn,
    Usage,
    UserEntry,
)
from aggregator.investigator.llm.answer_schema import in_words, without_bounds
from aggregator.investigator.llm.arguments import read_arguments, text_of
from aggregator.investigator.llm.attempts import Attempts, Patience, as_json, incomplete, read_turn
from aggregator.investigator.llm.failures import Failure, TurnLost
from aggregator.investigator.llm.models import ModelFacts
from aggregator.investigator.llm.transport import PLACEHOLDER, Endpoint, http_client

BREAKPOINT = {"type": "ephemeral"}
STOPS: Mapping[str, Stop] = {
    "end_turn": Stop.END,
    "stop_sequence": Stop.END,
    "tool_use": Stop.TOOLS,
    "max_tokens": Stop.MAX_TOKENS,
    "refusal": Stop.REFUSAL,
    "pause_turn": Stop.PAUSE,
    "model_context_window_exceeded": Stop.CONTEXT_OVERFLOW,
}
PROBE_SECONDS = 30.0


class AnthropicBackend:
    """One model at one endpoint."""

    name = "anthropic"

    def __init__(self, model: str, endpoint: Endpoint, facts: ModelFacts, patience: Patience) -> None:
        self.model = model
        self._facts = replace(facts, thinking=facts.thinking or "adaptive")
        self._attempts = Attempts(anthropic, endpoint, patience)
        http = http_client(endpoint, connect_seconds=patience.connect_seconds, idle_seconds=patience.idle_seconds)
        self._client = AsyncAnthropic(
            api_key=PLACEHOLDER,
            base_url=endpoint.base_url,
            max_retries=0,
            timeout=http.timeout,
            http_client=http,
            open_telemetry=False,
        )

    async def probe(self) -> Capabilities:
        """Ask the endpoint about the model; what it says goes before the table. Raises BackendFailed."""
        self._facts = _told(self._facts, await self._attempts.of(self._retrieve, PROBE_SECONDS))
        return self._facts.capabilities(self.model)

    async def _retrieve(self) -> Json:
        told = as_json(await self._client.models.retrieve(self.model))
        if told.get("lifecycle") == "retired":
            raise TurnLost(Failure(FailureKind.MODEL_UNKNOWN, f"model {self.model} is retired"))
        return told

    async def turn(self, request: Request, on_text: Callable[[str], None] = lambda _: None) -> Turn:
        """One turn. Raises BackendFailed."""
        body = self._body(request)

        async def once() -> Turn:
            return await read_turn(await self._client.messages.create(**body, stream=True), _Reader(), on_text)

        return await self._attempts.of(once, request.deadline_seconds)

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.close()

    def _body(self, request: Request) -> dict[str, Any]:
        system = request.system
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": min(request.max_tokens, self._facts.max_output_tokens),
            "tools": [
                {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
                for tool in request.tools
            ],
            "messages": _messages(request.entries),
        }
        if self._facts.structured_output:
            body["output_config"] = {"format": {"type": "json_schema", "schema": without_bounds(request.answer_schema)}}
        else:
            system = f"{system}\n\n{in_words(request.answer_schema)}"
        if self._facts.thinking == "adaptive":
            body["thinking"] = {"type": "adaptive", "display": "summarized"}
        return body | {"system": [{"type": "text", "text": system, "cache_control": BREAKPOINT}]}


def _told(facts: ModelFacts, told: Json) -> ModelFacts:
    """The table's row with what the endpoint says over it; what it does not say, or says oddly, changes nothing."""
    given: dict[str, Any] = {}
    for name, field in (("max_input_tokens", "max_input_tokens"), ("max_tokens", "max_output_tokens")):
        if isinstance(told.get(name), int) and told[name] > 0:
            given[field] = told[name]
    structured = _supported(told, "capabilities", "structured_outputs")
    if structured is not None:
        given["structured_output"] = structured
    if _supported(told, "capabilities", "thinking", "types", "adaptive") is False:
        given["thinking"] = "none"
    return replace(facts, **given)


def _supported(value: object, *path: str) -> bool | None:
    for name in (*path, "supported"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, bool) else None


def _messages(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for entry in entries:
        content = [dict(block) for block in _content(entry)]
        if content:
            messages.append({"role": "assistant" if isinstance(entry, ModelEntry) else "user", "content": content})
    ours = [message for message in messages if message["role"] == "user"]
    for message in ours[-2:]:
        message["content"][-1]["cache_control"] = BREAKPOINT
    return messages


def _content(entry: Entry) -> Sequence[Json]:
    if isinstance(entry, ModelEntry):
        return entry.raw
    text = [{"type": "text", "text": entry.text}] if entry.text.strip() else []
    if isinstance(entry, UserEntry):
        return text
    return [*_results(entry), *text]


def _results(entry: ResultsEntry) -> list[Json]:
    return [
        {
            "type": "tool_result",
            "tool_use_id": result.call_id,
            "content": result.text,
            **({"is_error": True} if result.is_error else {}),
        }
        for result in entry.results
    ]


class _Reader:
    """Gathers the events of one stream. Blocks are kept as they came, with their deltas joined."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[str, Any]] = {}
        self._parts: dict[tuple[int, str], list[str]] = {}
        self._usage: dict[str, int] = {}
        self._model = ""
        self._stop = ""

    def add(self, event: dict[str, Any]) -> str:
        """Take one event in; returns text of the model that it adds."""
        kind = event["type"]
        if kind == "message_start":
            self._model = str(event["message"]["model"])
            self._count(event["message"]["usage"])
        elif kind == "content_block_start":
            self._blocks[event["index"]] = event["content_block"]
        elif kind == "content_block_delta":
            return self._delta(event["index"], event["delta"])
        elif kind == "message_delta":
            self._stop = event["delta"]["stop_reason"] or ""
            self._count(event["usage"])
        return ""

    def _delta(self, index: int, delta: dict[str, Any]) -> str:
        kind = delta["type"]
        if kind == "signature_delta":
            self._blocks[index]["signature"] = delta["signature"]
        elif kind in ("text_delta", "thinking_delta", "input_json_delta"):
            field = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}[kind]
            self._parts.setdefault((index, field), []).append(delta[field])
        return delta["text"] if kind == "text_delta" else ""

    def _count(self, usage: Mapping[str, Any]) -> None:
        self._usage |= {name: value for name, value in usage.items() if isinstance(value, int)}

    def turn(self) -> Turn:
        """The whole turn. Raises TurnLost where the stream ended before it did."""
        if not self._stop:
            raise incomplete()
        calls = []
        for (index, field), parts in self._parts.items():
            if field != "partial_json":
                self._blocks[index][field] += "".join(parts)
        for index, block in self._blocks.items():
            if block["type"] == "tool_use":
                calls.append(self._call(block, "".join(self._parts.get((index, "partial_json"), ()))))
        blocks = [block for _, block in sorted(self._blocks.items()) if _may_return(block)]
        return Turn(
            stop=STOPS.get(self._stop, Stop.TOOLS if calls else Stop.END),
            text="".join(text_of(block["text"]) for block in blocks if block["type"] == "text"),
            calls=tuple(calls),
            entry=ModelEntry(tuple(blocks)),
            usage=self._used(),
            model=self._model,
        )

    def _call(self, block: dict[str, Any], written: str) -> ToolCall:
        """A call, its arguments in the block as the API wants them back: an object, empty where it was none."""
        arguments = read_arguments(written or json.dumps(block["input"]))
        block["input"] = arguments or {}
        return ToolCall(text_of(block["id"]), text_of(block["name"]), arguments, written if arguments is None else "")

    def _used(self) -> Usage:
        cached, written = (self._usage.get(f"cache_{what}_input_tokens", 0) for what in ("read", "creation"))
        return Usage(
            input_tokens=self._usage.get("input_tokens", 0) + cached + written,
            cached_tokens=cached,
            cache_written_tokens=written,
            output_tokens=self._usage.get("output_tokens", 0),
        )


def _may_return(block: Json) -> bool:
    """False for what the API sends but takes from nobody: blank text, and thinking that was cut before its signature."""
    if block["type"] == "text":
        return bool(block["text"].strip())
    return block["type"] != "thinking" or bool(block.get("signature"))
