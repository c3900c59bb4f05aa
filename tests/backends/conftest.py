"""One conversation, three wire formats."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from aggregator.investigator.llm import (
    Backend,
    Entry,
    Request,
    ResultsEntry,
    ToolCall,
    ToolResult,
    ToolSpec,
    Turn,
    UserEntry,
)
from aggregator.investigator.llm.attempts import Patience
from aggregator.investigator.llm.backends import backend_of
from tests.doubles.llm import KEY, Reply, Script, ScriptedLlm, Step, call, say

MODELS = {"anthropic": "claude-sonnet-5-5", "openai-responses": "gpt-5.5", "openai-chat": "local-model"}
APIS = tuple(MODELS)
CONVERSATION = {"anthropic": "messages", "openai-responses": "input", "openai-chat": "messages"}
QUICK = Patience(idle_seconds=1.0, first_backoff_seconds=0.01, longest_backoff_seconds=0.02)
SCHEMA = {
    "type": "object",
    "properties": {
        "severity": {"type": "string", "enum": ["warning", "critical"]},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["severity", "confidence"],
    "additionalProperties": False,
}
TOOLS = (
    ToolSpec(
        "get_node_info",
        "What a node is.",
        {"type": "object", "properties": {"node": {"type": "string"}}, "required": ["node"]},
    ),
    ToolSpec("query_prometheus", "Ask Prometheus.", {"type": "object", "properties": {"query": {"type": "string"}}}),
)
SYSTEM = "You look into faults of GPU nodes. " * 160
INCIDENT = UserEntry("GPU 0000:3a:00.0 on gpu-7 reported XID 79. " * 20)


@dataclass
class Session:
    """A backend, its endpoint, and a conversation that only grows."""

    llm: ScriptedLlm
    backend: Backend
    entries: list[Entry]

    async def turn(self, on_text: Callable[[str], None] = lambda _: None, **changes: Any) -> Turn:
        """One turn; what the model said is appended."""
        given = {
            "system": SYSTEM,
            "tools": TOOLS,
            "answer_schema": SCHEMA,
            "max_tokens": 16_384,
            "deadline_seconds": 20.0,
        }
        turn = await self.backend.turn(Request(entries=tuple(self.entries), **{**given, **changes}), on_text)
        self.entries.append(turn.entry)
        return turn

    def answer(self, calls: Sequence[ToolCall], text: str = "all is well " * 30) -> None:
        """Append a result for every call."""
        self.entries.append(ResultsEntry(tuple(ToolResult(call.id, text) for call in calls)))

    async def until_answered(self) -> list[Turn]:
        """Turns until one calls no tool."""
        turns = [await self.turn()]
        while turns[-1].calls:
            self.answer(turns[-1].calls)
            turns.append(await self.turn())
        return turns


@asynccontextmanager
async def open_session(
    api: str,
    script: Script | Sequence[Step] | Step,
    *,
    patience: Patience = QUICK,
    key: str = KEY,
    accepts: str | None = KEY,
    model: str = "",
    **options: Any,
) -> AsyncIterator[Session]:
    """A session with a scripted endpoint; compatible endpoints are tried before, so that requests are turns alone."""
    async with AsyncExitStack() as stack:
        llm = stack.enter_context(ScriptedLlm(script, key=accepts, **options))
        backend = backend_of(api, model=model or MODELS[api], key=SecretStr(key), base_url=llm.url, patience=patience)
        stack.push_async_callback(backend.close)
        yield Session(llm, backend, [INCIDENT])


@pytest.fixture(params=APIS)
def api(request: pytest.FixtureRequest) -> str:
    """Each wire format."""
    return str(request.param)


def two_rounds() -> list[Reply]:
    """Calls with thinking before them, then an answer."""
    return [
        Reply(
            thinking="The bus may be at fault.", text="Let me look.", calls=call("get_node_info", node="gpu-7").calls
        ),
        Reply(
            thinking="", calls=(*call("query_prometheus", query="up").calls, *call("get_node_info", node="gpu-8").calls)
        ),
        say('{"severity": "critical", "confidence": 0.9}', thinking="So it is."),
    ]
