"""OpenAI's Responses API through its own SDK, streamed; nothing is stored there.

Without storage the model's reasoning travels encrypted in the conversation and goes back unmodified. The endpoint caches prefixes
of requests by itself; `prompt_cache_key` sends requests with the same instructions and tools to where they lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import openai
from openai import AsyncOpenAI

from aggregator.investigator.llm import (
    Capabilities,
    Entry,
    Json,
    ModelEntry,
    Request,
    ResultsEntry,
    Stop,
    ToolCall,
    Turn,
    Usage,
)
from aggregator.investigator.llm.answer_schema import in_words, without_bounds
from aggregator.investigator.llm.arguments import read_arguments, text_of
from aggregator.investigator.llm.attempts import Attempts, Patience, as_json, incomplete, read_turn
from aggregator.investigator.llm.failures import TurnLost, said_failure
from aggregator.investigator.llm.models import ModelFacts
from aggregator.investigator.llm.transport import PLACEHOLDER, Endpoint, http_client

ENCRYPTED = "reasoning.encrypted_content"
PROBE_SECONDS = 30.0


def openai_client(endpoint: Endpoint, patience: Patience) -> AsyncOpenAI:
    """The SDK's client over the guarded transport, for either of OpenAI's APIs."""
    http = http_client(endpoint, connect_seconds=patience.connect_seconds, idle_seconds=patience.idle_seconds)
    return AsyncOpenAI(
        api_key=PLACEHOLDER, base_url=endpoint.base_url, max_retries=0, timeout=http.timeout, http_client=http
    )


class ResponsesBackend:
    """One model at one endpoint."""

    name = "openai"

    def __init__(self, model: str, endpoint: Endpoint, facts: ModelFacts, patience: Patience) -> None:
        self.model = model
        self._endpoint = endpoint
        self._facts = replace(facts, thinking=facts.thinking or "encrypted")
        self._attempts = Attempts(openai, endpoint, patience)
        self._client = openai_client(endpoint, patience)

    async def probe(self) -> Capabilities:
        """Ask whether the endpoint has the model: it says no more than that. Raises BackendFailed."""

        async def retrieve() -> Json:
            return as_json(await self._client.models.retrieve(self.model))

        await self._attempts.of(retrieve, PROBE_SECONDS)
        return self._facts.capabilities(self.model)

    async def turn(self, request: Request, on_text: Callable[[str], None] = lambda _: None) -> Turn:
        """One turn. Raises BackendFailed."""
        body = self._body(request)

        async def once() -> Turn:
            stream = await self._client.responses.create(**body, stream=True)
            return await read_turn(stream, _Reader(self._endpoint), on_text)

        return await self._attempts.of(once, request.deadline_seconds)

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.close()

    def _body(self, request: Request) -> dict[str, Any]:
        system, encrypted = request.system, self._facts.thinking == "encrypted"
        tools = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": False,
            }
            for tool in request.tools
        ]
        body: dict[str, Any] = {"model": self.model, "store": False, "tools": tools}
        body["include"] = [ENCRYPTED] if encrypted else []
        body["max_output_tokens"] = min(request.max_tokens, self._facts.max_output_tokens)
        body["input"] = [item for entry in request.entries for item in _items(entry)]
        if self._facts.structured_output:
            schema = without_bounds(request.answer_schema)
            body["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}}
        else:
            system = f"{system}\n\n{in_words(request.answer_schema)}"
        return body | {"instructions": system, "prompt_cache_key": cache_key(self.model, system, tools)}


def cache_key(model: str, system: str, tools: Sequence[Json]) -> str:
    """The same for all requests that begin alike, whatever they are about; tells nothing of what it stands for."""
    return hashlib.sha256(json.dumps([model, system, tools], sort_keys=True).encode()).hexdigest()[:32]


def _items(entry: Entry) -> Sequence[Json]:
    if isinstance(entry, ModelEntry):
        return entry.raw
    text = [{"role": "user", "content": [{"type": "input_text", "text": entry.text}]}] if entry.text.strip() else []
    if not isinstance(entry, ResultsEntry):
        return text
    results = [
        {"type": "function_call_output", "call_id": result.call_id, "output": result.text} for result in entry.results
    ]
    return [*results, *text]


class _Reader:
    """Waits for the response as a whole, which comes with its last event; deltas are for who watches."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._response: dict[str, Any] | None = None

    def add(self, event: dict[str, Any]) -> str:
        """Take one event in; returns text of the model that it adds."""
        kind = event["type"]
        if kind == "response.output_text.delta":
            return text_of(event["delta"])
        if kind == "error":
            raise TurnLost(said_failure(event, self._endpoint))
        if kind == "response.failed":
            raise TurnLost(said_failure(event["response"]["error"], self._endpoint))
        if kind in ("response.completed", "response.incomplete"):
            self._response = event["response"]
        return ""

    def turn(self) -> Turn:
        """The whole turn. Raises TurnLost where the stream ended before it did."""
        if self._response is None:
            raise incomplete()
        output = self._response["output"]
        parts = [part for item in output if item["type"] == "message" for part in item["content"]]
        calls = tuple(_call(item) for item in output if item["type"] == "function_call")
        refused = any(part["type"] == "refusal" for part in parts)
        return Turn(
            stop=Stop.REFUSAL if refused else _stop(self._response, calls),
            text="".join(text_of(part["text"]) for part in parts if part["type"] == "output_text"),
            calls=calls,
            entry=ModelEntry(tuple(item for item in output if _may_return(item))),
            usage=_used(self._response.get("usage") or {}),
            model=text_of(self._response["model"]),
        )


def _may_return(item: Json) -> bool:
    """False for reasoning that was cut before it was sealed: nobody but us has it, and unsealed it is taken from nobody."""
    return item["type"] != "reasoning" or bool(item.get("encrypted_content"))


def _call(item: Json) -> ToolCall:
    written = text_of(item["arguments"])
    arguments = read_arguments(written)
    return ToolCall(text_of(item["call_id"]), text_of(item["name"]), arguments, written if arguments is None else "")


def _stop(response: Mapping[str, Any], calls: Sequence[ToolCall]) -> Stop:
    if response["status"] != "incomplete":
        return Stop.TOOLS if calls else Stop.END
    reason = (response.get("incomplete_details") or {}).get("reason")
    return Stop.REFUSAL if reason == "content_filter" else Stop.MAX_TOKENS


def _used(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("input_tokens_details") or {}
    return Usage(
        input_tokens=usage.get("input_tokens") or 0,
        cached_tokens=details.get("cached_tokens") or 0,
        cache_written_tokens=details.get("cache_write_tokens") or 0,
        output_tokens=usage.get("output_tokens") or 0,
    )
