"""Chat Completions through OpenAI's SDK, streamed: for endpoints that are compatible, such as vLLM and Ollama.

What such an endpoint takes is tried once, with a tool that does nothing. A schema for the answer is sent only where the model still
calls tools beside it: many endpoints constrain every word of the output by the schema, and then no tool is ever called. What is
missing goes into the text: the schema always, the tools where the endpoint has none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import openai

from aggregator.investigator.llm import (
    BackendFailed,
    Capabilities,
    Entry,
    FailureKind,
    Json,
    ModelEntry,
    Request,
    ResultsEntry,
    ToolSpec,
    Turn,
    UserEntry,
)
from aggregator.investigator.llm.answer_schema import in_words, without_bounds
from aggregator.investigator.llm.attempts import Attempts, Patience, as_json, read_turn
from aggregator.investigator.llm.chat_stream import ChatReader
from aggregator.investigator.llm.models import ModelFacts
from aggregator.investigator.llm.openai_responses import PROBE_SECONDS, openai_client
from aggregator.investigator.llm.text_calls import describe, results_text
from aggregator.investigator.llm.transport import Endpoint

READY = ToolSpec("ready", "Report that you are ready.", {"type": "object", "properties": {}})
READY_SCHEMA: Json = {
    "type": "object",
    "properties": {"ready": {"type": "boolean"}},
    "required": ["ready"],
    "additionalProperties": False,
}
READY_TOKENS = 1024  # a model may think first
TRIAL_SECONDS = 120.0  # and may have to be loaded before
REFUSED = (FailureKind.INVALID_REQUEST, FailureKind.SERVER_ERROR)  # Ollama and vLLM say the one, llama.cpp the other


@dataclass(frozen=True, slots=True)
class Takes:
    """What an endpoint does with a model, tried out."""

    tools: bool
    schema: bool  # beside tools


TRIED = (Takes(tools=True, schema=True), Takes(tools=True, schema=False), Takes(tools=False, schema=False))


class ChatBackend:
    """One model at one compatible endpoint."""

    name = "openai"

    def __init__(self, model: str, endpoint: Endpoint, facts: ModelFacts, patience: Patience) -> None:
        self.model = model
        self._facts = facts
        self._attempts = Attempts(openai, endpoint, patience)
        self._client = openai_client(endpoint, patience)
        self._takes: Takes | None = None
        self._trying = asyncio.Lock()

    async def probe(self) -> Capabilities:
        """Look the model up, then try what the endpoint takes. Raises BackendFailed."""
        await self._look_up()
        takes = await self._tried(TRIAL_SECONDS)
        return replace(self._facts.capabilities(self.model), structured_output=takes.schema)

    async def turn(self, request: Request, on_text: Callable[[str], None] = lambda _: None) -> Turn:
        """One turn. Raises BackendFailed."""
        started = time.monotonic()
        takes = await self._tried(request.deadline_seconds)
        return await self._ask(replace(request, deadline_seconds=_left(request, started)), takes, on_text)

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.close()

    async def _look_up(self) -> None:
        """The list of models, since vLLM has no other way; an endpoint without a list is tried all the same."""

        async def listed() -> Json:
            return as_json(await self._client.models.list())

        try:
            known = (await self._attempts.of(listed, PROBE_SECONDS)).get("data")
        except BackendFailed as failed:
            if failed.kind not in (FailureKind.MODEL_UNKNOWN, FailureKind.UNREADABLE, FailureKind.INVALID_REQUEST):
                raise
            return
        rows = {row.get("id"): row for row in known if isinstance(row, Mapping)} if isinstance(known, list) else {}
        if rows and self.model not in rows:
            raise BackendFailed(FailureKind.MODEL_UNKNOWN, f"the endpoint has no model {self.model}")
        window = rows.get(self.model, {}).get("max_model_len")
        if isinstance(window, int) and window > 0:
            self._facts = replace(self._facts, max_input_tokens=window)

    async def _tried(self, deadline_seconds: float) -> Takes:
        async with self._trying:
            if self._takes is None:
                self._takes = await self._try(deadline_seconds)
        return self._takes

    async def _try(self, deadline_seconds: float) -> Takes:
        said = (UserEntry("Call the tool `ready` now."),)
        request = Request("You test a connection.", (READY,), said, READY_SCHEMA, READY_TOKENS, deadline_seconds)
        started = time.monotonic()
        for takes in TRIED:
            try:
                turn = await self._ask(replace(request, deadline_seconds=_left(request, started)), takes)
            except BackendFailed as failed:
                if failed.kind not in REFUSED or takes is TRIED[-1]:
                    raise
            else:
                if turn.calls:
                    return takes
        return TRIED[-1]

    async def _ask(self, request: Request, takes: Takes, on_text: Callable[[str], None] = lambda _: None) -> Turn:
        body = self._body(request, takes)

        async def once() -> Turn:
            stream = await self._client.chat.completions.create(
                **body, stream=True, stream_options={"include_usage": True}
            )
            return await read_turn(stream, ChatReader(len(request.entries), in_text=not takes.tools), on_text)

        return await self._attempts.of(once, request.deadline_seconds)

    def _body(self, request: Request, takes: Takes) -> dict[str, Any]:
        texts = [request.system, in_words(request.answer_schema)]
        body: dict[str, Any] = {"model": self.model}
        if not takes.tools:
            texts.append(describe(request.tools))
        elif request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if takes.schema:
            schema = {"name": "answer", "schema": without_bounds(request.answer_schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        body["max_tokens"] = min(request.max_tokens, self._facts.max_output_tokens)
        system = {"role": "system", "content": "\n\n".join(filter(None, texts))}
        said = [message for entry in request.entries for message in _messages(entry, takes)]
        return body | {"messages": [system, *said]}


def _left(request: Request, started: float) -> float:
    return max(0.0, request.deadline_seconds - (time.monotonic() - started))


def _tool(tool: ToolSpec) -> Json:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _messages(entry: Entry, takes: Takes) -> Sequence[Json]:
    if isinstance(entry, ModelEntry):
        return entry.raw
    if isinstance(entry, ResultsEntry) and not takes.tools:
        return [{"role": "user", "content": results_text(entry)}]
    text = [{"role": "user", "content": entry.text}] if entry.text.strip() else []
    if isinstance(entry, UserEntry):
        return text
    results = [{"role": "tool", "tool_call_id": result.call_id, "content": result.text} for result in entry.results]
    return [*results, *text]
