"""OpenAI's Responses API, as the scripted server speaks it: what it refuses, how it streams."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.doubles.llm import openai_errors
from tests.doubles.llm.memory import Block, Memory, Refusal, check_schema, chunks
from tests.doubles.llm.openai_errors import check_parameters, check_tools
from tests.doubles.llm.script import Asked, Reply

error, model_info = openai_errors.error, openai_errors.model_info
KNOWN = {
    *(
        "model",
        "input",
        "instructions",
        "tools",
        "tool_choice",
        "text",
        "store",
        "include",
        "stream",
        "max_output_tokens",
    ),
    *("prompt_cache_key", "reasoning", "parallel_tool_calls", "metadata", "truncation"),
}
ENCRYPTED = "reasoning.encrypted_content"
MINIMUM_CACHED_TOKENS = 1024

Json = Mapping[str, Any]


def error_event(kind: str) -> bytes:
    """An error in the middle of a stream."""
    code = kind or "server_error"
    return openai_errors.data(
        {"type": "error", "code": code, "message": "Overloaded", "param": None, "sequence_number": 99}, "error"
    )


def read(number: int, headers: Mapping[str, str], body: Json) -> Asked:
    """The request without regard to its format."""
    items = _items(body)
    outputs = [item for item in items if item.get("type") == "function_call_output"]
    return Asked(
        wire="responses",
        number=number,
        model=body["model"],
        system=body.get("instructions") or "",
        tools=tuple(tool["name"] for tool in body.get("tools", ())),
        user_texts=tuple(text for item in items if item.get("role") == "user" for text in _texts(item["content"])),
        results=tuple((item["call_id"], item["output"]) for item in outputs),
        turns=sum(_is_models(item) and (at == 0 or not _is_models(items[at - 1])) for at, item in enumerate(items)),
        schema=body.get("text", {}).get("format", {}).get("schema"),
        headers=headers,
        body=body,
    )


def check(body: Json, memory: Memory) -> None:
    """Raises Refusal for what the real endpoint refuses, and for what it would keep."""
    check_parameters(body, KNOWN)
    check_tools(body.get("tools", ()))
    if body.get("store") is not False:
        raise Refusal(
            "This organization retains no data: 'store' must be false.", kind="unsupported_value", param="store"
        )
    if ENCRYPTED not in body.get("include", ()):
        raise Refusal(
            f"'include' must contain '{ENCRYPTED}' where nothing is stored.", kind="missing_value", param="include"
        )
    format_ = body.get("text", {}).get("format", {})
    if format_.get("strict"):
        check_schema(format_.get("schema"), "text.format.schema")
    _check_items(_items(body), memory)


def _check_items(items: list[Json], memory: Memory) -> None:
    called = [item["call_id"] for item in items if item.get("type") == "function_call"]
    answered = [item["call_id"] for item in items if item.get("type") == "function_call_output"]
    present = {item.get("id") for item in items if item.get("type") == "reasoning"}
    for at, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "function_call_output" and item["call_id"] not in called:
            raise Refusal(f"No tool call found for function call output with call_id {item['call_id']}.", param="input")
        if kind == "function_call" and item["call_id"] not in answered:
            raise Refusal(f"No tool output found for function call {item['call_id']}.", param="input")
        if kind == "reasoning" and memory.sealed.get(item["id"]) != item:
            message = f"The encrypted content for item {item['id']} could not be verified."
            raise Refusal(message, kind="invalid_encrypted_content", param=f"input[{at}]")
        for seal in memory.required.get(item.get("call_id", ""), ()) if kind == "function_call" else ():
            if seal not in present:
                raise Refusal(
                    f"Item '{item['id']}' of type 'function_call' was provided without its required 'reasoning' item: '{seal}'.",
                    param="input",
                )
    if items and items[-1].get("role") == "assistant":
        raise Refusal("The input must not end with a message of the assistant.", kind="invalid_value", param="input")


def prompt(body: Json) -> list[Block]:
    """The request in the order in which it is cached; every block may end a cached prefix."""
    settings = {name: body.get(name) for name in ("model", "text", "reasoning", "prompt_cache_key")}
    parts = [settings, *body.get("tools", ()), body.get("instructions"), *_items(body)]
    return [Block(part, breakpoint=True) for part in parts]


def stream(reply: Reply, asked: Asked, memory: Memory) -> Iterator[bytes]:
    """The events of a turn."""
    counted = memory.count(prompt(asked.body), MINIMUM_CACHED_TOKENS)
    output = _output(reply, memory)
    frame = {
        "id": memory.next_id("resp"),
        "object": "response",
        "created_at": 1790000000,
        "model": asked.model,
        "store": False,
    }
    frame |= {
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "error": None,
        "incomplete_details": None,
    }
    numbers = itertools.count()

    def event(name: str, **rest: Any) -> bytes:
        return openai_errors.data({"type": name, "sequence_number": next(numbers), **rest}, name)

    yield event("response.created", response={**frame, "status": "in_progress", "output": [], "usage": None})
    for index, item in enumerate(output):
        yield event("response.output_item.added", output_index=index, item={**item, "status": "in_progress"})
        place = {"item_id": item["id"], "output_index": index}
        for part in item.get("content", ()):
            word = "refusal" if part["type"] == "refusal" else "output_text"
            for delta in chunks(part.get("text") or part.get("refusal", ""), reply.chunk_chars):
                logprobs = {"logprobs": []} if word == "output_text" else {}
                yield event(f"response.{word}.delta", **place, content_index=0, delta=delta, **logprobs)
        for delta in chunks(item.get("arguments", ""), reply.chunk_chars):
            yield event("response.function_call_arguments.delta", **place, delta=delta)
        yield event("response.output_item.done", output_index=index, item=item)
    status, details = _outcome(reply)
    if status == "failed":
        details = {"error": {"code": reply.stop.removeprefix("failed:"), "message": "The model failed."}}
    final = {**frame, "status": status, "output": output, "usage": _usage(reply, output, counted), **details}
    yield event(f"response.{status}", response=final)


def _outcome(reply: Reply) -> tuple[str, dict[str, Any]]:
    if reply.stop in ("", "completed"):
        return "completed", {}
    if reply.stop.startswith("failed:"):
        return "failed", {}
    return "incomplete", {"incomplete_details": {"reason": reply.stop}}


def _usage(reply: Reply, output: list[Json], counted: Any) -> Json:
    total, cached, written, spent = counted.total, counted.cached, 0, len(json.dumps(output)) // 4
    if reply.usage is not None:
        total, cached, written, spent = (
            reply.usage.input,
            reply.usage.cached,
            reply.usage.cache_written,
            reply.usage.output,
        )
    return {
        "input_tokens": total,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "output_tokens": spent,
        "output_tokens_details": {"reasoning_tokens": spent // 2 if reply.thinking is not None else 0},
        "total_tokens": total + spent,
    }


def _output(reply: Reply, memory: Memory) -> list[Json]:
    """The items of a turn, as they must come back."""
    items: list[dict[str, Any]] = []
    if reply.thinking is not None:
        sealed = memory.next_id("gAAAAAB") + "=="
        summary = [{"type": "summary_text", "text": reply.thinking}] if reply.thinking else []
        items.append(
            {
                "id": memory.next_id("rs"),
                "type": "reasoning",
                "summary": summary,
                "encrypted_content": sealed,
                **reply.extra,
            }
        )
        memory.sealed[items[0]["id"]] = items[0]
    seals = tuple(item["id"] for item in items)
    content = [{"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}] if reply.text else []
    content += [{"type": "refusal", "refusal": reply.refusal}] if reply.refusal else []
    if content:
        message = {
            "id": memory.next_id("msg"),
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }
        items.append({**message, **reply.extra})
    for wanted in reply.calls:
        call_id = wanted.id or memory.next_id("call")
        memory.required[call_id] = seals
        item = {"id": memory.next_id("fc"), "type": "function_call", "status": "completed", "call_id": call_id}
        items.append({**item, "name": wanted.name, "arguments": wanted.wire, **reply.extra})
    return items


def _items(body: Json) -> list[Json]:
    given = body["input"]
    return [{"role": "user", "content": given}] if isinstance(given, str) else list(given)


def _is_models(item: Json) -> bool:
    return item.get("type") in ("reasoning", "function_call") or item.get("role") == "assistant"


def _texts(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content]
