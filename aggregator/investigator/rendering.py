"""A tool's answer as text: canonical JSON, one element a line, whatever size or type the value has.

The same value always gives the same text. What is too much is counted and left out; what JSON cannot say (NaN, bytes) is said in
words. Strings are cleaned one by one before they are escaped: inside JSON, a line break before a secret would read as a letter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_KEPT = 4 * 2**20  # characters of one answer
MARGIN = 64 * 2**10  # looked at beyond that
CUT_BACK = 4_096  # dropped before a cut, once redacted: what the cut halved was not recognised
MAX_NODES = 200_000
MAX_DEPTH = 20
MAX_KEY = 200
WIDTH = 120  # a value that fits stands on one line


@dataclass(frozen=True, slots=True)
class Rendered:
    """A value as text."""

    text: str  # at most MAX_KEPT + MARGIN characters, more or less
    total: int  # characters of the whole; where elements were left out, at least so many


def render(value: Any, clean: Callable[[str], str], hide: Callable[[Any], Any]) -> Rendered:
    """A str stands as it is, anything else becomes JSON. `clean` is asked about strings that JSON would escape, `hide` about the
    whole before it is rendered."""
    if isinstance(value, str):
        kept = value[: MAX_KEPT + MARGIN]
        return Rendered(kept if len(kept) == len(value) else clean(kept)[:-CUT_BACK], len(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return Rendered(_binary(value), len(value))
    walk = _Walk(clean)
    plain = hide(walk.plain(value, 0))
    text = "\n".join(_lines(plain, ""))
    return Rendered(text, max(walk.total, len(text)))


class _Walk:
    """Copies a value as far as it is plain and there is room."""

    def __init__(self, clean: Callable[[str], str]) -> None:
        self.total = 0
        self._left = MAX_KEPT + MARGIN
        self._nodes = MAX_NODES
        self._clean = clean

    def plain(self, value: Any, depth: int) -> Any:
        """The value in types that JSON has."""
        self._nodes -= 1
        match value:
            case None | bool():
                return value
            case int():
                return value if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"
            case float():
                return value if math.isfinite(value) else str(value)
            case str():
                return self._words(str(value))
            case bytes() | bytearray() | memoryview():
                self.total += len(value)
                return _binary(value)
            case Mapping() | list() | tuple() | set() | frozenset() if depth >= MAX_DEPTH:
                return f"… nested deeper than {MAX_DEPTH}"
            case Mapping():
                return self._mapping(value, depth)
            case list() | tuple():
                return self._list(value, depth)
            case set() | frozenset():
                return self._list(sorted(value, key=repr), depth)
            case _:
                return self._words(str(value))

    def _words(self, text: str) -> str:
        self.total += len(text)
        whole = len(text) <= self._left
        kept = text if whole else self._clean(text[: max(self._left, 0)])[:-CUT_BACK]
        self._left -= len(text)
        if not kept.isprintable() or '"' in kept or "\\" in kept:
            kept = self._clean(kept)
        return kept if len(kept) or not text else f"… {len(text)} characters left out"

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        copied: dict[str, Any] = {}
        for number, (key, item) in enumerate(value.items()):
            if self._left <= 0 or self._nodes <= 0:
                copied["…"] = f"{len(value) - number} more left out"
                break
            copied[self._words(str(key)[:MAX_KEY])] = self.plain(item, depth + 1)
        return copied

    def _list(self, value: Sequence[Any], depth: int) -> list[Any]:
        copied: list[Any] = []
        for number, item in enumerate(value):
            if self._left <= 0 or self._nodes <= 0:
                copied.append(f"… {len(value) - number} more left out")
                break
            copied.append(self.plain(item, depth + 1))
        return copied


def _binary(value: bytes | bytearray | memoryview) -> str:
    return f"{len(value)} bytes of binary data, not shown"


def dumps(value: Any) -> str:
    """Canonical JSON on one line."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _lines(value: Any, indent: str) -> Iterable[str]:
    """JSON with a line for each element that does not fit on one with its siblings."""
    compact = dumps(value)
    if not isinstance(value, dict | list) or not value or len(compact) + len(indent) <= WIDTH:
        yield indent + compact
        return
    opening, closing = ("{", "}") if isinstance(value, dict) else ("[", "]")
    yield indent + opening
    yield from _elements(value, indent + " ")
    yield indent + closing


def _elements(value: dict[str, Any] | list[Any], indent: str) -> Iterable[str]:
    pairs = (
        [(f"{dumps(key)}: ", value[key]) for key in sorted(value)]
        if isinstance(value, dict)
        else [("", v) for v in value]
    )
    for position, (name, item) in enumerate(pairs, start=1):
        first, *rest = _lines(item, indent)
        lines = [indent + name + first.removeprefix(indent), *rest]
        if position < len(pairs):
            lines[-1] += ","
        yield from lines
