"""What an endpoint remembers between requests: ids given out, thinking that must come back unaltered, cached prefixes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LOOKBACK_BLOCKS = 20  # how far before a breakpoint an endpoint looks for an older one


class Refusal(Exception):
    """What a real endpoint answers to such a request."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.kind, self.param = message, status, kind, param


@dataclass(frozen=True)
class Block:
    """A piece of a prompt, as the cache sees it."""

    content: Any
    breakpoint: bool


@dataclass(frozen=True)
class Counted:
    """Estimated tokens of a prompt: four bytes each."""

    total: int
    cached: int
    written: int


@dataclass
class Memory:
    """State of one scripted server. Requests come from one thread each at a time; counters are locked all the same."""

    sealed: dict[str, Any] = field(default_factory=dict)  # signature or item id → the thinking it seals
    required: dict[str, tuple[str, ...]] = field(default_factory=dict)  # tool call id → seals that belong to its turn
    paused: list[Any] = field(default_factory=list)  # turns that may be continued
    _prefixes: set[str] = field(default_factory=set)
    _last_id: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next_id(self, prefix: str) -> str:
        """An id that no other block, item or call has."""
        with self._lock:
            self._last_id += 1
            return f"{prefix}_{self._last_id:06d}"

    def count(self, blocks: Sequence[Block], minimum_tokens: int) -> Counted:
        """Read the cache for this prompt, then write it at its breakpoints."""
        digests, sizes = list(_digests(blocks)), [0]
        for block in blocks:
            sizes.append(sizes[-1] + len(_canonical(block.content)) // 4 + 1)
        marked = [at for at, block in enumerate(blocks) if block.breakpoint]
        with self._lock:
            cached = max((sizes[at + 1] for at in _near(marked) if digests[at] in self._prefixes), default=0)
            self._prefixes.update(digests[at] for at in marked if sizes[at + 1] >= minimum_tokens)
        reach = sizes[marked[-1] + 1] if marked else 0
        written = reach - cached if reach >= minimum_tokens else 0
        return Counted(sizes[-1] + 1, cached, written)


def _near(marked: Iterable[int]) -> set[int]:
    return {at for mark in marked for at in range(max(0, mark - LOOKBACK_BLOCKS + 1), mark + 1)}


def _digests(blocks: Iterable[Block]) -> Iterable[str]:
    running = hashlib.sha256()
    for block in blocks:
        running.update(_canonical(block.content))
        yield running.hexdigest()


def _canonical(content: Any) -> bytes:
    """As bytes, without marks of the cache itself."""
    return json.dumps(_without_marks(content), sort_keys=True).encode()


def _without_marks(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_marks(item) for key, item in value.items() if key != "cache_control"}
    return [_without_marks(item) for item in value] if isinstance(value, list) else value


def check_schema(schema: Any, where: str) -> None:
    """Raises Refusal for what structured output does not take."""
    if not isinstance(schema, Mapping):
        return
    if schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            raise Refusal(f"{where}: For 'object' type, 'additionalProperties' must be explicitly set to false")
        missing = sorted(set(schema.get("properties", {})) - set(schema.get("required", ())))
        if missing:
            raise Refusal(f"{where}: 'required' must name every property; missing: {', '.join(missing)}")
    for word in ("minimum", "maximum", "minLength", "maxLength", "multipleOf", "pattern", "maxItems", "minItems"):
        if word in schema and not isinstance(schema[word], Mapping):
            raise Refusal(f"{where}: For '{schema.get('type')}' type, property '{word}' is not supported")
    for name, inner in schema.get("properties", {}).items():
        check_schema(inner, f"{where}.{name}")
    for word in ("items", "anyOf"):
        inner = schema.get(word, ())
        for option in inner if isinstance(inner, list) else (inner,):
            check_schema(option, f"{where}.{word}")


def chunks(text: str, size: int) -> list[str]:
    """Text as it is streamed; nothing for nothing."""
    return [text[at : at + size] for at in range(0, len(text), size)]
