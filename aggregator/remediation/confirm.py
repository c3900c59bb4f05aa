"""Whether a fault is still there: asked of the node now, not remembered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aggregator.model import Assessment, Incident, Phase, Signal, Trust
from aggregator.remediation.nodes import Node
from aggregator.rules import node_conditions

LOST = frozenset(("nvml_gpu_lost", "gpu_fallen_off_bus"))
XID_LOST = 79


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node's agent says when it is asked now."""

    answered: bool  # also where it answers that the driver does not
    working_gpus: frozenset[str] = frozenset()  # PCI addresses and UUIDs of GPUs that it reads


Ask = Callable[[str], Awaitable[Answer]]


def hardware_facts(incident: Incident, assessment: Assessment) -> tuple[Signal, ...]:
    """Cited facts of the agent or the kernel."""
    cited = frozenset(assessment.verdict.citations)
    return tuple(
        signal
        for signal in incident.signals
        if signal.id in cited and signal.trust is Trust.HARDWARE and not signal.simulated
    )


async def unconfirmed_because(
    incident: Incident, assessment: Assessment, node: Node, ask: Ask, now_us: int, fresh_seconds: float
) -> str:
    """Empty where the fault is confirmed: a cited condition still stands, or the agent answers, does not contradict, and the facts
    are fresh or of a state that has not ended."""
    if _condition_stands(incident, assessment, node):
        return ""
    facts = hardware_facts(incident, assessment)
    if not any(_stands(fact, incident, now_us, fresh_seconds) for fact in facts):
        return f"no cited fact is younger than {fresh_seconds:.0f} seconds, or of a state that lasts"
    answer = await ask(incident.subject.node)
    if not answer.answered:
        return "the node's agent does not answer"
    said_lost = {name for fact in facts if _says_lost(fact) for name in (fact.pci, fact.gpu_uuid) if name}
    if said_lost & answer.working_gpus:
        return "the GPU that was lost answers again"
    return ""


def _says_lost(fact: Signal) -> bool:
    return fact.kind in LOST or (fact.kind == "xid" and fact.code == XID_LOST)


def _stands(fact: Signal, incident: Incident, now_us: int, fresh_seconds: float) -> bool:
    if fact.phase is Phase.BEGAN:
        about = (fact.kind, fact.pci, fact.gpu_uuid)
        ends = (one for one in incident.signals if one.phase is Phase.ENDED and one.order >= fact.order)
        return not any((end.kind, end.pci, end.gpu_uuid) == about for end in ends)
    return fact.phase is Phase.POINT and fact.at_us is not None and now_us - fact.at_us <= fresh_seconds * 1e6


def _condition_stands(incident: Incident, assessment: Assessment, node: Node) -> bool:
    cited = frozenset(assessment.verdict.citations)
    names = {signal.attributes.get("condition") for signal in incident.signals if signal.id in cited}
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(
        one.get("type") in names and one.get("status") == node_conditions.family_of(one["type"]).bad
        for one in conditions
    )
