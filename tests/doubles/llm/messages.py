"""Anthropic's Messages API, as the scripted server speaks it: what it refuses, how it streams."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.doubles.llm.memory import Block, Memory, Refusal, check_schema, chunks
from tests.doubles.llm.script import Asked, Reply

KNOWN = {
    *("model", "max_tokens", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "stream"),
    *("metadata", "stop_sequences", "cache_control", "service_tier"),
}
SAMPLING = ("temperature", "top_p", "top_k")
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
MINIMUM_CACHED_TOKENS = 512
STRICT_TOOLS = 12  # thirteen were refused by the real one

Json = Mapping[str, Any]


def error(status: int, message: str, kind: str = "", param: str | None = None) -> bytes:
    """The body of an error answer."""
    usual = KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return json.dumps(error_value(kind or usual, message)).encode()


def error_value(kind: str, message: str) -> Json:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_scripted"}


def error_event(kind: str) -> bytes:
    """An error in the middle of a stream."""
    return _event("error", error_value(kind or "overloaded_error", "Overloaded"))


def model_info(model: str, context_tokens: int, output_tokens: int) -> Json:
    """The answer to `GET /v1/models/ID`."""
    yes, no = {"supported": True}, {"supported": False}
    return {
        "id": model,
        "type": "model",
        "display_name": model,
        "created_at": "2026-09-28T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": context_tokens,
        "max_tokens": output_tokens,
        "capabilities": {
            "structured_outputs": yes,
            "thinking": {**yes, "types": {"adaptive": yes, "enabled": no, "disabled": no, "between_tools": yes}},
        },
    }


def read(number: int, headers: Mapping[str, str], body: Json) -> Asked:
    """The request without regard to its format."""
    blocks = [(message["role"], block) for message in body["messages"] for block in _blocks(message["content"])]
    merged = _merged(body["messages"])
    return Asked(
        wire="messages",
        number=number,
        model=body["model"],
        system="\n".join(block["text"] for block in _blocks(body.get("system", ""))),
        tools=tuple(tool["name"] for tool in body.get("tools", ())),
        user_texts=tuple(block["text"] for role, block in blocks if role == "user" and block["type"] == "text"),
        results=tuple(
            (block["tool_use_id"], _text(block.get("content", "")))
            for _, block in blocks
            if block["type"] == "tool_result"
        ),
        turns=sum(role == "assistant" for role, _ in merged),
        schema=body.get("output_config", {}).get("format", {}).get("schema"),
        headers=headers,
        body=body,
    )


def check(body: Json, memory: Memory) -> None:
    """Raises Refusal for what the real endpoint refuses."""
    for name in SAMPLING:
        if name in body:
            raise Refusal(f"`{name}` is deprecated for this model.")
    for name in sorted(body.keys() - KNOWN):
        raise Refusal(f"{name}: Extra inputs are not permitted")
    for name in ("model", "max_tokens", "messages"):
        if name not in body:
            raise Refusal(f"{name}: Field required")
    if body.get("tool_choice", {"type": "auto"})["type"] not in ("auto", "none"):
        raise Refusal("tool_choice: Forced tool use is not supported for this model.")
    if body.get("thinking", {"type": "adaptive"})["type"] not in ("adaptive", "between_tools"):
        raise Refusal('"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive".')
    check_schema(body.get("output_config", {}).get("format", {}).get("schema"), "output_config.format.schema")
    _check_tools(body.get("tools", ()))
    marked = json.dumps(body).count('"cache_control": {')
    if marked > 4:
        raise Refusal(f"A maximum of 4 blocks with cache_control may be provided. Found {marked}.")
    _check_messages(_merged(body["messages"]), memory)


def _check_tools(tools: Iterable[Json]) -> None:
    names = [tool["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise Refusal("tools: Tool names must be unique.")
    for at, name in enumerate(names):
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", name):
            raise Refusal(f"tools.{at}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
    if sum(bool(tool.get("strict")) for tool in tools) > STRICT_TOOLS:
        raise Refusal(
            "The compiled grammar is too large, which would cause performance issues. Reduce the number of strict tools."
        )


def _check_messages(merged: list[tuple[str, list[Json]]], memory: Memory) -> None:
    if not merged or merged[0][0] != "user":
        raise Refusal('messages: first message must use the "user" role')
    waiting: list[str] = []
    for at, (role, blocks) in enumerate(merged):
        if not blocks:
            raise Refusal(f"messages.{at}: all messages must have non-empty content")
        if any(block["type"] == "text" and not block["text"].strip() for block in blocks):
            raise Refusal("messages: text content blocks must contain non-whitespace text")
        if role == "user":
            _check_results(at, blocks, waiting)
            waiting = []
        else:
            _check_thinking(at, blocks, memory)
            waiting = [block["id"] for block in blocks if block["type"] == "tool_use"]
    if merged[-1][0] == "assistant" and merged[-1][1] not in memory.paused:
        raise Refusal(
            "This model does not support assistant message prefill. The conversation must end with a user message."
        )


def _check_results(at: int, blocks: list[Json], waiting: list[str]) -> None:
    given = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    for orphan in (call for call in given if call not in waiting):
        raise Refusal(
            f"messages.{at}.content.0: unexpected `tool_use_id` found in `tool_result` blocks: {orphan}. Each `tool_result` "
            "block must have a corresponding `tool_use` block in the previous message."
        )
    if len(set(given)) < len(given):
        raise Refusal(f"messages.{at}: each tool_use must have a single result. Found multiple `tool_result` blocks.")
    missing = [call for call in waiting if call not in given]
    if missing or [block["type"] for block in blocks[: len(given)]] != ["tool_result"] * len(given):
        raise Refusal(
            f"messages.{at - 1}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(missing or given)}. Each `tool_use` block must have a corresponding `tool_result` block in the next message."
        )


def _check_thinking(at: int, blocks: list[Json], memory: Memory) -> None:
    present = [_seal(block) for block in blocks if block["type"] in ("thinking", "redacted_thinking")]
    for block in blocks:
        if block["type"] in ("thinking", "redacted_thinking") and memory.sealed.get(_seal(block)) != _unmarked(block):
            raise Refusal(f"messages.{at}.content.0: Invalid `signature` in `thinking` block")
    for block in blocks:
        for seal in memory.required.get(block.get("id", ""), ()):
            if seal not in present:
                raise Refusal(
                    f"messages.{at}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `{blocks[0]['type']}`. "
                    "When `thinking` is enabled, a final `assistant` message must start with a thinking block."
                )


def prompt(body: Json) -> list[Block]:
    """The request in the order in which it is cached. What renders the prompt differently stands first."""
    settings = {name: body.get(name) for name in ("model", "thinking", "output_config", "tool_choice")}
    parts = [Block(settings, breakpoint=False)]
    parts += [Block(tool, "cache_control" in tool) for tool in body.get("tools", ())]
    parts += [Block(block, "cache_control" in block) for block in _blocks(body.get("system", ""))]
    for message in body["messages"]:
        parts += [Block([message["role"], block], "cache_control" in block) for block in _blocks(message["content"])]
    return parts


def stream(reply: Reply, asked: Asked, memory: Memory) -> Iterator[bytes]:
    """The events of a turn."""
    counted = memory.count(prompt(asked.body), MINIMUM_CACHED_TOKENS)
    content = _content(reply, memory)
    usage = {
        "input_tokens": counted.total - counted.cached - counted.written,
        "cache_read_input_tokens": counted.cached,
        "cache_creation_input_tokens": counted.written,
        "output_tokens": 1,
    }
    spent = len(json.dumps(content)) // 4
    if reply.usage is not None:
        fresh = reply.usage.input - reply.usage.cached - reply.usage.cache_written
        usage |= {"input_tokens": fresh, "cache_read_input_tokens": reply.usage.cached}
        usage |= {"cache_creation_input_tokens": reply.usage.cache_written}
        spent = reply.usage.output
    message = {"id": memory.next_id("msg"), "type": "message", "role": "assistant", "model": asked.model, "content": []}
    yield _event("message_start", {"message": {**message, "stop_reason": None, "stop_sequence": None, "usage": usage}})
    yield _event("ping", {})
    for index, block in enumerate(content):
        yield from _block_events(index, block, reply)
    stop = reply.stop or ("tool_use" if reply.calls else "refusal" if reply.refusal else "end_turn")
    if stop == "pause_turn":
        memory.paused.append([block for block in content if block.get("text", "x")])
    details = (
        {"stop_details": {"type": "refusal", "category": None, "explanation": reply.refusal}} if reply.refusal else {}
    )
    delta = {"stop_reason": stop, "stop_sequence": None, **details}
    yield _event("message_delta", {"delta": delta, "usage": {"output_tokens": spent}})
    yield _event("message_stop", {})


def _content(reply: Reply, memory: Memory) -> list[dict[str, Any]]:
    """The blocks of a turn, as they must come back."""
    blocks: list[dict[str, Any]] = []
    if reply.thinking is not None:
        blocks.append(
            {"type": "thinking", "thinking": reply.thinking, "signature": memory.next_id("c2lnbmF0dXJl") + "=="}
        )
    if reply.redacted:
        blocks.append({"type": "redacted_thinking", "data": reply.redacted})
    seals = tuple(_seal(block) for block in blocks)
    if reply.text:
        blocks.append({"type": "text", "text": reply.text})
    for wanted in reply.calls:
        call_id = wanted.id or memory.next_id("toolu")
        memory.required[call_id] = seals
        blocks.append({"type": "tool_use", "id": call_id, "name": wanted.name, "input": {}, "_wire": wanted.wire})
    blocks = [{**block, **reply.extra} for block in blocks]
    memory.sealed.update({_seal(block): block for block in blocks[: len(seals)]})
    return blocks


def _block_events(index: int, block: dict[str, Any], reply: Reply) -> Iterator[bytes]:
    wire = block.pop("_wire", "")
    empty = {"text": "", "thinking": "", "signature": ""}
    started = {name: empty.get(name, value) if isinstance(value, str) else value for name, value in block.items()}
    yield _event("content_block_start", {"index": index, "content_block": started})
    size = reply.chunk_chars
    deltas = [{"type": "text_delta", "text": part} for part in chunks(block.get("text", ""), size)]
    deltas += [{"type": "thinking_delta", "thinking": part} for part in chunks(block.get("thinking", ""), size)]
    deltas += [{"type": "signature_delta", "signature": block["signature"]}] if "signature" in block else []
    deltas += [{"type": "input_json_delta", "partial_json": part} for part in chunks(wire, size)]
    for delta in deltas:
        yield _event("content_block_delta", {"index": index, "delta": delta})
    yield _event("content_block_stop", {"index": index})


def _event(name: str, data: Json) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def _seal(block: Json) -> str:
    return str(block.get("signature") or block.get("data"))


def _unmarked(block: Json) -> Json:
    return {name: value for name, value in block.items() if name != "cache_control"}


def _blocks(content: Any) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content)


def _text(content: Any) -> str:
    return "".join(block.get("text", "") for block in _blocks(content))


def _merged(messages: Iterable[Json]) -> list[tuple[str, list[Json]]]:
    """Neighbours of the same role count as one message."""
    merged: list[tuple[str, list[Json]]] = []
    for message in messages:
        if merged and merged[-1][0] == message["role"]:
            merged[-1][1].extend(_blocks(message["content"]))
        else:
            merged.append((message["role"], list(_blocks(message["content"]))))
    return merged
