"""The seam between the loop and a provider: plain values in, one turn out. A backend is one file.

The conversation only grows: the loop appends entries and never rewrites one, tools and system text are the same on every turn, so
each request begins with the whole of the one before. What a model returned goes back to it byte-exact (`ModelEntry.raw`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model sees it; `parameters` is a JSON schema of an object, sent non-strict."""

    name: str
    description: str
    parameters: Json


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What the model asks for. `arguments` is None where they were no JSON object; `raw` then holds what came."""

    id: str
    name: str
    arguments: Json | None
    raw: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The answer to a call, as shown."""

    call_id: str
    text: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class UserEntry:
    """What we say."""

    text: str


@dataclass(frozen=True, slots=True)
class ResultsEntry:
    """Answers to every call of the turn before, in the order of the calls; `text` may follow them in the same message."""

    results: tuple[ToolResult, ...]
    text: str = ""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A turn of the model, as the provider sent it: thinking and encrypted reasoning included."""

    raw: tuple[Json, ...]


Entry = UserEntry | ResultsEntry | ModelEntry


@dataclass(frozen=True, slots=True)
class Usage:
    """As the endpoint counted it."""

    input_tokens: int = 0  # all that were read, cached ones included
    cached_tokens: int = 0
    cache_written_tokens: int = 0
    output_tokens: int = 0


class Stop(StrEnum):
    """Why a turn ended."""

    END = "end"
    TOOLS = "tools"
    MAX_TOKENS = "max_tokens"
    REFUSAL = "refusal"
    PAUSE = "pause"
    CONTEXT_OVERFLOW = "context_overflow"


@dataclass(frozen=True, slots=True)
class Turn:
    """One whole turn of the model."""

    stop: Stop
    text: str  # what it said, without thinking
    calls: tuple[ToolCall, ...]
    entry: ModelEntry
    usage: Usage
    model: str  # as the endpoint names it


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent. `answer_schema` goes along on every turn, so that a final answer changes nothing before it."""

    system: str
    tools: Sequence[ToolSpec]
    entries: Sequence[Entry]
    answer_schema: Json
    max_tokens: int
    deadline_seconds: float  # for this turn, retries included


class FailureKind(StrEnum):
    """What an endpoint, or the way to it, did. The words are also metric labels."""

    AUTHENTICATION = "authentication"
    MODEL_UNKNOWN = "model_unknown"
    RATE_LIMITED = "rate_limited"
    QUOTA = "quota"
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    INCOMPLETE = "incomplete"  # the stream ended without a stop reason, twice
    CONTEXT_OVERFLOW = "context_overflow"
    INVALID_REQUEST = "invalid_request"
    UNREADABLE = "unreadable"  # what came is not what this API sends


class BackendFailed(Exception):
    """A turn could not be had; retries are over. `str()` is one line without a secret."""

    def __init__(self, kind: FailureKind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the configured model takes; from the endpoint where it says so, else from `models.toml`."""

    model: str
    max_input_tokens: int
    max_output_tokens: int
    structured_output: bool  # answers in `answer_schema`; otherwise the schema is written into the system text
    input_usd: float = 0.0  # per million tokens; 0 where the price is not known
    cached_usd: float = 0.0
    cache_written_usd: float = 0.0
    output_usd: float = 0.0

    def cost_usd(self, usage: Usage) -> float:
        """What a turn cost by the price table."""
        fresh = usage.input_tokens - usage.cached_tokens - usage.cache_written_tokens
        millionths = (
            fresh * self.input_usd
            + usage.cached_tokens * self.cached_usd
            + usage.cache_written_tokens * self.cache_written_usd
            + usage.output_tokens * self.output_usd
        )
        return millionths / 1e6


class Backend(Protocol):
    """One provider's API. Owns retries, deadlines and idle timeouts of its requests; knows nothing of incidents."""

    name: str  # anthropic, openai
    model: str

    async def probe(self) -> Capabilities:
        """Ask the endpoint about the model. Raises BackendFailed."""
        ...

    async def turn(self, request: Request, on_text: Callable[[str], None] = lambda _: None) -> Turn:
        """One turn. Raises BackendFailed; never returns a turn without a stop reason."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
