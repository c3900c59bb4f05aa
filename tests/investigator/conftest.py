"""An incident, some tools, and a scripted model behind the real SDK: one investigation at a time."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from pydantic import SecretStr

from aggregator import assessor
from aggregator.investigator import prompts
from aggregator.investigator.budget import Budget
from aggregator.investigator.bundle import build
from aggregator.investigator.case import Case, NodeFacts
from aggregator.investigator.framing import Gate
from aggregator.investigator.llm.attempts import Patience
from aggregator.investigator.llm.backends import backend_of
from aggregator.investigator.loop import Task, investigate
from aggregator.investigator.redaction import Redactor
from aggregator.investigator.sources import Answer, Registry, Scope, Tool
from aggregator.model import Gpu, Incident, IncidentState, Investigation, Signal, Spent, Subject, Trust
from aggregator.store.investigations import TranscriptEntry
from tests.doubles.llm import KEY, ScriptedLlm

NOW = 1_800_000_000_000_000
LINE = "NVRM: Xid (PCI:0000:3a:00): 79, pid=4242, name=python3, GPU has fallen off the bus."
MODELS = {"anthropic": "claude-sonnet-5-5", "openai-responses": "gpt-5.5", "openai-chat": "local-model"}
QUICK = Patience(idle_seconds=2.0, first_backoff_seconds=0.01, longest_backoff_seconds=0.02)

Ask = Callable[[Scope, Mapping[str, Any]], Awaitable[Answer]]


def xid(code: int = 79, number: int = 1, **fields: Any) -> Signal:
    given: dict[str, Any] = {
        "id": f"n1/kmsg/b/{number}",
        "kind": "xid",
        "code": code,
        "node": "n1",
        "pci": "0000:3a:00.0",
        "at_us": NOW + number,
        "source": "kmsg",
        "raw": LINE.replace(" 79,", f" {code},"),
    }
    return Signal(**{**given, **fields})


def incident_of(*signals: Signal, **fields: Any) -> Incident:
    facts = signals or (xid(),)
    made = Incident("inc-1", Subject("gpu", "n1", "0000:3a:00.0"), ("n1",), facts, IncidentState.OPEN, NOW, NOW)
    return replace(made, **fields)


def case_of(incident: Incident, **fields: Any) -> Case:
    verdict, _ = assessor.judged(incident)
    node = NodeFacts(
        "0.1.0", "b", NOW, False, NOW, "550.54.15", True, 8, (Gpu("GPU-1", "0000:3a:00.0", "S1", 0, "H100"),)
    )
    case = Case(incident, verdict, assessor.basis_of(incident, verdict), NOW, node)
    return replace(case, **fields)


def claim(text: str, *support: tuple[str, str], role: str = "root_cause") -> dict[str, Any]:
    return {"role": role, "text": text, "support": [{"id": item, "quote": quote} for item, quote in support]}


def answer_of(*claims: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A final answer that agrees with the rules on XID 79."""
    given = {
        "severity": "critical",
        "fault_class": "pcie",
        "action": "drain",
        "resolutions": ["drain", "power_cycle"],
        "confidence": 0.8,
        "claims": list(claims) or [GOOD],
        "open_questions": [],
    }
    return {**given, **fields}


GOOD = claim("The GPU fell off the bus.", ("e1", "GPU has fallen off the bus."))


@dataclass
class Source:
    """Tools of a test."""

    tools: Sequence[Tool]
    name: str = "bench"
    why_not: str = ""

    async def unavailable(self) -> str:
        return self.why_not


def tool(name: str, ask: Ask | Any, **fields: Any) -> Tool:
    """A tool with one optional parameter; what is no function is its answer."""

    async def fixed(scope: Scope, arguments: Mapping[str, Any]) -> Answer:
        return ask if isinstance(ask, Answer) else Answer(ask, Trust.CLUSTER)

    parameters = {"type": "object", "properties": {"query": {"type": "string"}}, "additionalProperties": False}
    return Tool(name, f"Looks at {name}.", parameters, ask if callable(ask) else fixed, **fields)


def registry_of(*tools: Tool, **fields: Any) -> Registry:
    return Registry.of(Source(tools, **fields))


def scope_of(incident: Incident) -> Scope:
    return Scope(incident, "n1", NOW - 3_600_000_000, NOW)


def gate_of(*known: str) -> Gate:
    """A gate whose nonces count, so that requests are the same each time."""
    numbers = itertools.count(1)
    return Gate(Redactor(known), lambda: f"{next(numbers):08x}")


@dataclass
class Ran:
    """One investigation and all it left."""

    found: Investigation
    llm: ScriptedLlm
    entries: list[TranscriptEntry] = field(default_factory=list)
    reports: list[tuple[str, str, Spent]] = field(default_factory=list)
    counts: list[tuple[str, str]] = field(default_factory=list)

    @property
    def word(self) -> str:
        return self.found.reason.partition(":")[0]

    def notes(self) -> str:
        return "\n".join(entry.text for entry in self.entries if entry.kind == "note")


Runs = Callable[..., Awaitable[Ran]]


@pytest.fixture
def run() -> Runs:
    """Run one investigation with a scripted model over the wire."""

    async def go(
        given: Any,
        *tools: Tool,
        api: str = "anthropic",
        incident: Incident | None = None,
        budget: Budget | None = None,
        llm: Mapping[str, Any] | None = None,
        known: Sequence[str] = (),
        why_not: str = "",
        case: Mapping[str, Any] | None = None,
    ) -> Ran:
        about = incident or incident_of()
        looked = case_of(about, **(case or {}))
        gate = gate_of(*known)
        task = Task(
            "inv-1",
            looked.basis,
            build(looked, gate),
            scope_of(about),
            registry_of(*tools, why_not=why_not),
            prompts.system_text(),
            budget or Budget(),
            gate,
        )
        with ScriptedLlm(given, **(llm or {})) as endpoint:
            backend = backend_of(api, model=MODELS[api], key=SecretStr(KEY), base_url=endpoint.url, patience=QUICK)
            ran = Ran(None, endpoint)  # type: ignore[arg-type]  # filled below
            try:
                ran.found = await investigate(
                    task,
                    backend,
                    await backend.probe(),
                    record=ran.entries.append,
                    report=lambda *step: ran.reports.append(step),
                    count=lambda *step: ran.counts.append(step),
                )
            finally:
                await backend.close()
        return ran

    return go
