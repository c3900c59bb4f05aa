"""Chat Completions as compatible endpoints (vLLM, Ollama) speak it: what they refuse, how they stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.doubles.llm import openai_errors
from tests.doubles.llm.memory import Block, Memory, Refusal, check_schema, chunks
from tests.doubles.llm.openai_errors import check_parameters, check_tools, data
from tests.doubles.llm.script import Asked, Reply

error, model_info = openai_errors.error, openai_errors.model_info
KNOWN = {
    *("model", "messages", "tools", "tool_choice", "response_format", "stream", "stream_options", "max_tokens"),
    *("max_completion_tokens", "prompt_cache_key", "parallel_tool_calls", "store"),
}
MINIMUM_CACHED_TOKENS = 16

Json = Mapping[str, Any]


def error_event(kind: str) -> bytes:
    """An error in the middle of a stream."""
    return data({"error": openai_errors.error_value(500, "Overloaded", kind or "server_error")})


def read(number: int, headers: Mapping[str, str], body: Json) -> Asked:
    """The request without regard to its format."""
    messages = body["messages"]
    by_role = {role: [m for m in messages if m["role"] == role] for role in ("system", "user", "assistant", "tool")}
    return Asked(
        wire="chat",
        number=number,
        model=body["model"],
        system="\n".join(message["content"] for message in by_role["system"]),
        tools=tuple(tool["function"]["name"] for tool in body.get("tools", ())),
        user_texts=tuple(message["content"] for message in by_role["user"]),
        results=tuple((message["tool_call_id"], message["content"]) for message in by_role["tool"]),
        turns=len(by_role["assistant"]),
        schema=body.get("response_format", {}).get("json_schema", {}).get("schema"),
        headers=headers,
        body=body,
    )


def check(body: Json, memory: Memory) -> None:
    """Raises Refusal for what such endpoints refuse."""
    check_parameters(body, KNOWN)
    check_tools([tool["function"] for tool in body.get("tools", ())])
    wanted = body.get("response_format", {}).get("json_schema", {})
    if wanted.get("strict"):
        check_schema(wanted.get("schema"), "response_format.json_schema.schema")
    _check_results(body["messages"])
    if body["messages"][-1]["role"] == "assistant":
        raise Refusal("The conversation must end with a message of the user or a tool.", param="messages")


def _check_results(messages: list[Json]) -> None:
    waiting: list[str] = []
    for message in [*messages, {"role": "end"}]:
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                orphan = "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."
                raise Refusal(orphan, param="messages")
            waiting.remove(message["tool_call_id"])
            continue
        if waiting:
            raise Refusal(
                "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
                f"The following tool_call_ids did not have response messages: {', '.join(waiting)}",
                param="messages",
            )
        waiting = [call["id"] for call in message.get("tool_calls", ())]
        for call in message.get("tool_calls", ()):
            _check_arguments(call["function"]["arguments"])


def _check_arguments(text: str) -> None:
    """Chat templates parse earlier arguments: what is no JSON object breaks them."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise Refusal(f"Tool call arguments are no JSON: {error}", param="messages") from error
    if not isinstance(value, dict):
        raise Refusal("Tool call arguments are no JSON object.", param="messages")


def prompt(body: Json) -> list[Block]:
    """The request in the order in which it is cached; every block may end a cached prefix."""
    settings = {name: body.get(name) for name in ("model", "response_format")}
    return [Block(part, breakpoint=True) for part in (settings, *body.get("tools", ()), *body["messages"])]


def stream(reply: Reply, asked: Asked, memory: Memory) -> Iterator[bytes]:
    """The chunks of a turn; thinking goes out as `reasoning`, as vLLM has it."""
    counted = memory.count(prompt(asked.body), MINIMUM_CACHED_TOKENS)
    frame = {
        "id": memory.next_id("chatcmpl"),
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": asked.model,
    }

    def chunk(delta: Json, finish: str | None = None) -> bytes:
        return data({**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    yield chunk({"role": "assistant", "content": ""})
    size = reply.chunk_chars
    parts = [{"reasoning": part} for part in chunks(reply.thinking or "", size)]
    parts += [{"content": part} for part in chunks(reply.text, size)]
    parts += [{"refusal": part} for part in chunks(reply.refusal, size)]
    for index, wanted in enumerate(reply.calls):
        call = {"id": memory.next_id("call") if wanted.id == "" else wanted.id, "type": "function"}
        parts.append({"tool_calls": [{"index": index, **call, "function": {"name": wanted.name, "arguments": ""}}]})
        parts += [
            {"tool_calls": [{"index": index, "function": {"arguments": part}}]} for part in chunks(wanted.wire, size)
        ]
    for part in parts:
        yield chunk(part)
    yield chunk({}, reply.stop or ("tool_calls" if reply.calls else "stop"))
    if asked.body.get("stream_options", {}).get("include_usage"):
        total, cached, spent = counted.total, counted.cached, len(json.dumps(parts)) // 4
        if reply.usage is not None:
            total, cached, spent = reply.usage.input, reply.usage.cached, reply.usage.output
        usage = {"prompt_tokens": total, "completion_tokens": spent, "total_tokens": total + spent}
        yield data({**frame, "choices": [], "usage": {**usage, "prompt_tokens_details": {"cached_tokens": cached}}})
    yield b"data: [DONE]\n\n"
