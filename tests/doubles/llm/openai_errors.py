"""What OpenAI's two APIs share on the wire: the shape of errors, of models, of JSON in a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tests.doubles.llm.memory import Refusal

Json = Mapping[str, Any]
CODES = {401: "invalid_api_key", 404: "model_not_found", 413: "request_too_large", 429: "rate_limit_exceeded"}
TYPES = {
    401: "authentication_error",
    413: "invalid_request_error",
    429: "requests",
    500: "server_error",
    503: "server_error",
}
STRICT_TOOLS = 12


def error(status: int, message: str, kind: str = "", param: str | None = None) -> bytes:
    """The body of an error answer."""
    return json.dumps({"error": error_value(status, message, kind, param)}).encode()


def error_value(status: int, message: str, kind: str = "", param: str | None = None) -> Json:
    code = kind or CODES.get(status)
    return {"message": message, "type": TYPES.get(status, "invalid_request_error"), "param": param, "code": code}


def model_info(model: str, context_tokens: int, output_tokens: int) -> Json:
    """The answer to `GET /v1/models/ID`; the context is what vLLM adds."""
    return {
        "id": model,
        "object": "model",
        "created": 1790000000,
        "owned_by": "scripted",
        "max_model_len": context_tokens,
    }


def check_parameters(body: Json, known: set[str]) -> None:
    """Raises Refusal for sampling and unknown parameters."""
    for name in ("temperature", "top_p"):
        if name in body:
            message = f"Unsupported parameter: '{name}' is not supported with this model."
            raise Refusal(message, kind="unsupported_parameter", param=name)
    for name in sorted(body.keys() - known):
        raise Refusal(f"Unknown parameter: '{name}'.", kind="unknown_parameter", param=name)
    if body.get("tool_choice", "auto") not in ("auto", "none"):
        raise Refusal(
            "Forced tool choice is not supported with this model.", kind="unsupported_value", param="tool_choice"
        )


def check_tools(tools: Iterable[Json]) -> None:
    """Raises Refusal for tools with one name, or too many strict ones."""
    names = [tool["name"] for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise Refusal(f"Duplicate function name: '{name}'.", kind="invalid_value", param="tools")
    if sum(bool(tool.get("strict")) for tool in tools) > STRICT_TOOLS:
        raise Refusal(
            "The compiled grammar is too large. Reduce the number of strict tools.", kind="invalid_value", param="tools"
        )


def data(value: Any, event: str = "") -> bytes:
    """One server-sent event."""
    named = f"event: {event}\n" if event else ""
    return f"{named}data: {json.dumps(value)}\n\n".encode()
