"""JSON as a model writes it: arguments of a call, read without believing them."""

from __future__ import annotations

import json
from typing import Any

from aggregator.investigator.llm import Json


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def read_arguments(text: str) -> Json | None:
    """The object in a text; None where it holds none. No text is the empty object: some models write nothing for no arguments."""
    if not text.strip():
        return {}
    try:
        value: Any = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def text_of(value: object) -> str:
    """The same text. Raises TypeError for anything else: an id or a name that is none."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, not {type(value).__name__}")
    return value
