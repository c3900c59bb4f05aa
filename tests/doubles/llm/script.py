"""What a scripted model says, and how its endpoint misbehaves: plain values, the same for every wire format."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Call:
    """A tool call. Arguments given as text go out as they are: that is how malformed JSON is scripted."""

    name: str
    arguments: Mapping[str, Any] | str = field(default_factory=dict)
    id: str | None = ""  # empty: the server takes the next one; None: none is sent (Chat Completions)

    @property
    def wire(self) -> str:
        """The arguments as the model would write them."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


@dataclass(frozen=True)
class Tokens:
    """Counts that the endpoint reports in place of its own estimate."""

    input: int  # cached ones included
    output: int
    cached: int = 0
    cache_written: int = 0


@dataclass(frozen=True)
class Reply:
    """One turn of the model. `stop` is a reason in the wire's own word; empty takes the one that fits."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    thinking: str | None = None  # None: none; "" is thinking whose text is withheld, signature alone
    redacted: str = ""  # a redacted thinking block (Messages only)
    refusal: str = ""  # what the model says in refusing; the stop reason follows
    stop: str = ""
    usage: Tokens | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields of a newer API on every block or item
    delay_seconds: float = 0.0  # before the first byte
    chunk_seconds: float = 0.0  # before each event
    chunk_chars: int = 24  # of text and arguments in one delta


@dataclass(frozen=True)
class Status:
    """An answer with an error status. Without `body` it has the shape and words of the real endpoint."""

    code: int
    retry_after: str = ""
    kind: str = ""  # error type (Messages) or code (OpenAI) where not the usual one for the status
    message: str = ""
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Broken:
    """A reply whose stream goes wrong after some events."""

    reply: Reply
    how: str  # cut: connection dropped · end: clean end of stream · error: error event · silence · garbage: no JSON
    after_events: int = 4
    kind: str = ""  # of the error event; empty: overloaded
    seconds: float = 3600.0  # of silence


@dataclass(frozen=True)
class Redirect:
    """307 to another place."""

    to: str


@dataclass(frozen=True)
class Huge:
    """An answer that does not end: so many bytes of it. As an error, or as a stream without an event in it."""

    count: int
    status: int = 200


Step = Reply | Status | Broken | Redirect | Huge


@dataclass(frozen=True)
class Asked:
    """A request, read without regard to its wire format."""

    wire: str  # messages, responses, chat
    number: int  # of this request at this server, from 0
    model: str
    system: str
    tools: tuple[str, ...]
    user_texts: tuple[str, ...]  # what we said, first to last
    results: tuple[tuple[str, str], ...]  # (call id, text) of every tool result, first to last
    turns: int  # of the model, so far
    schema: Mapping[str, Any] | None  # of the answer
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    def result_of(self, call_id: str) -> str | None:
        """The answer to a call."""
        return dict(self.results).get(call_id)


Script = Callable[[Asked], Step]


class ScriptExhausted(Exception):
    """More was asked than the script answers."""


def say(text: str, **rest: Any) -> Reply:
    """The model talks and ends its turn."""
    return Reply(text=text, **rest)


def answer(value: Any, **rest: Any) -> Reply:
    """The model ends with structured output."""
    return Reply(text=json.dumps(value), **rest)


def call(name: str, /, **arguments: Any) -> Reply:
    """The model calls one tool. For more than one, or text or thinking with it, use `calls`."""
    return Reply(calls=(Call(name, arguments),))


def calls(*wanted: Call, **rest: Any) -> Reply:
    """The model calls several tools in one turn."""
    return Reply(calls=wanted, **rest)


def thinking(reply: Reply, text: str = "Let me look at this.") -> Reply:
    """The same turn with thinking before it."""
    return replace(reply, thinking=text)


def in_order(*steps: Step) -> Script:
    """Each request takes the next step, whoever asks."""
    left = iter(steps)
    lock = threading.Lock()

    def script(asked: Asked) -> Step:
        with lock:
            step = next(left, None)
        if step is None:
            raise ScriptExhausted(f"request {asked.number}: the script has {len(steps)} steps")
        return step

    return script


def for_each_conversation(*steps: Step) -> Script:
    """As `in_order`, apart for each conversation: those differ in their first user text."""
    scripts: dict[str, Script] = {}

    def script(asked: Asked) -> Step:
        return scripts.setdefault(asked.user_texts[0], in_order(*steps))(asked)

    return script


def forever(*steps: Step) -> Script:
    """As `in_order`, from the start again at the end."""
    left = itertools.cycle(steps)
    return lambda _: next(left)


def script_of(given: Script | Sequence[Step] | Step) -> Script:
    """Whatever a test wrote, as a function."""
    if callable(given):
        return given
    return in_order(*given) if isinstance(given, Sequence) else in_order(given)
