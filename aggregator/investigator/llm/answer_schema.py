"""The schema of the final answer, as providers take it: they refuse bounds, so these become words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aggregator.investigator.llm import Json

BOUNDS = frozenset(
    {
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minLength", "maxLength", "pattern", "minItems", "maxItems", "uniqueItems"),
    }
)


def without_bounds(schema: Json) -> dict[str, Any]:
    """The same schema with its bounds in the descriptions; objects must be closed and require all their properties already."""
    kept: dict[str, Any] = {}
    words = []
    for name, value in schema.items():
        if name in BOUNDS and not isinstance(value, Mapping):
            words.append(f"{name}: {json.dumps(value)}")
        elif name in ("properties", "$defs"):
            kept[name] = {inner: without_bounds(given) for inner, given in value.items()}
        elif name == "items":
            kept[name] = without_bounds(value)
        elif name == "anyOf":
            kept[name] = [without_bounds(given) for given in value]
        else:
            kept[name] = value
    if words:
        kept["description"] = " ".join([*filter(None, [kept.get("description", "")]), f"({', '.join(words)})"])
    return kept


def in_words(schema: Json) -> str:
    """What to add to the system text where an endpoint takes no schema."""
    return (
        "Your final answer is one JSON object and nothing else: no prose around it, no Markdown fence. "
        "It conforms to this JSON schema:\n" + json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    )
