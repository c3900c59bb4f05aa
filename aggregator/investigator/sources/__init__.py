"""The seam between the loop and what can be asked: a source is one file and one line in `registry`; docs/sources.md shows one.

A source confines every question to the `Scope` in code; the model's words choose within it, never beyond.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aggregator.model import Incident, Trust


@dataclass(frozen=True, slots=True)
class Scope:
    """Whom an investigation may ask about."""

    incident: Incident
    node: str
    since_us: int  # what is looked at by default begins here
    until_us: int
    node_addresses: tuple[str, ...] = ()  # the node's IPs: exporters are known by them
    siblings: tuple[tuple[str, str, str], ...] = ()  # (namespace, pod, node) of this node's jobs, by ownerReference uid
    peers: tuple[str, ...] = ()  # nodes declared to share job, rack, switch or NVLink domain
    denied_namespaces: tuple[str, ...] = ()
    log_namespaces: tuple[str, ...] = ()  # those that opted in to workload logs

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node that may be asked about, the incident's own first."""
        others = (*self.incident.nodes, *self.peers, *(node for _, _, node in self.siblings))
        return tuple(dict.fromkeys((self.node, *others)))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool found, before redaction. `value` is rendered as canonical JSON, a str as it stands."""

    value: Any
    trust: Trust
    is_error: bool = False  # the text tells the model what to do differently


class Unavailable(Exception):
    """The source cannot be asked; the text says why in one line. The assessment then says that this was not checked."""


Ask = Callable[[Scope, Mapping[str, Any]], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Tool:
    """One read-only question. `parameters` is a JSON schema of an object with `additionalProperties: false`."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    ask: Ask
    timeout_seconds: float = 20.0
    live: bool = False  # asked again even where the same call was answered before


class Source(Protocol):
    """A system that can be asked."""

    @property
    def name(self) -> str: ...

    @property
    def tools(self) -> Sequence[Tool]: ...

    async def unavailable(self) -> str:
        """Why it cannot be asked now, in one line; empty while it can."""
        ...


@dataclass(frozen=True, slots=True)
class Registry:
    """Every tool of every source, by name; made once at start and never changed."""

    sources: tuple[Source, ...]
    tools: Mapping[str, Tool] = field(default_factory=dict)

    @classmethod
    def of(cls, *sources: Source) -> Registry:
        """Raises ValueError where two tools share a name or a schema is none."""
        tools: dict[str, Tool] = {}
        for source in sources:
            for tool in source.tools:
                if tool.name in tools:
                    raise ValueError(f"source {source.name}: a tool named {tool.name!r} exists already")
                tools[tool.name] = tool
        return cls(sources, tools)
