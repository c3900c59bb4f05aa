"""The frozen evidence an investigation begins with: facts, the rules' verdict, inventory, history, peers, and what is not known.

Pure, and byte-stable: the same case always reads the same. Facts come one to an item, so that a claim cites exactly one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from aggregator.investigator.case import Case, NodeFacts, Other
from aggregator.investigator.framing import Gate
from aggregator.investigator.items import Item
from aggregator.model import Gpu, Phase, Signal, Trust
from aggregator.render import subject
from aggregator.rules.burst import event_order

MAX_FACTS = 40
MAX_WORDS = 1_000  # characters of one fact
MAX_NODES = 40
SILENT_US = 120_000_000  # an agent that was not heard for so long may be unable to answer
CHANNELS = {"kmsg": "kernel log", "nvml": "NVML", "dcgm": "DCGM"}


@dataclass(frozen=True, slots=True)
class Bundle:
    """What the model is shown before it asks anything."""

    items: tuple[Item, ...]
    unchecked: tuple[str, ...]  # what cannot be known, and why
    heading: str  # which incident, and when


def build(case: Case, gate: Gate) -> Bundle:
    """Items of a case; every text has passed the gate."""
    unchecked = tuple(gate.leaving(line) for line in _unchecked(case))
    drafts = [*_facts(case), *_context(case)]
    items = (replace(draft, title=gate.admit(draft.title), text=gate.admit(draft.text)) for draft in drafts)
    return Bundle(tuple(items), unchecked, gate.admit(_heading(case)))


def _heading(case: Case) -> str:
    incident = case.incident
    lines = [
        f"Incident {incident.id}: {subject(incident)}; {incident.state.value} since {moment(incident.opened_us)}.",
        f"It is now {moment(case.now_us)}.",
    ]
    if len(incident.nodes) > 1:
        more = f" and {len(incident.nodes) - MAX_NODES} more" if len(incident.nodes) > MAX_NODES else ""
        lines.append(f"Nodes: {', '.join(incident.nodes[:MAX_NODES])}{more}.")
    if incident.held_because:
        lines.append(f"A planned state holds pages and actions: {incident.held_because}.")
    if incident.simulated:
        lines.append("The facts come from a simulated driver.")
    left_out = len(incident.signals) - MAX_FACTS
    if left_out > 0:
        lines.append(f"{left_out} more facts of this incident are not shown; get_node_evidence lists them.")
    return "\n".join(lines)


def _facts(case: Case) -> Iterator[Item]:
    """One item a fact, in the order of events; of many, a choice."""
    ordered = sorted(case.incident.signals, key=event_order)
    for number, signal in enumerate(_chosen(ordered, frozenset(case.verdict.citations)), start=1):
        title = f"fact, {CHANNELS.get(signal.source, signal.source or 'log')}"
        yield Item(f"e{number}", title, _fact(signal), signal.trust, signal.id)


def _chosen(ordered: list[Signal], cited: frozenset[str]) -> list[Signal]:
    """The first of each kind on each device, so that a storm hides nothing; then what is cited; then from both ends."""
    if len(ordered) <= MAX_FACTS:
        return ordered
    firsts = {(signal.name, signal.node, signal.pci): signal for signal in reversed(ordered)}
    kinds = sorted(firsts.values(), key=event_order)[: MAX_FACTS // 2]
    wanted = [signal for signal in ordered if signal.id in cited][: MAX_FACTS // 4]
    ends = [signal for pair in zip(reversed(ordered), ordered, strict=True) for signal in pair]
    chosen = set(list(dict.fromkeys(signal.id for signal in (*kinds, *wanted, *ends)))[:MAX_FACTS])
    return [signal for signal in ordered if signal.id in chosen]


def _fact(signal: Signal) -> str:
    place = " ".join(
        name for name in (signal.node, signal.pci, signal.gpu_uuid, signal.mig and f"MIG {signal.mig}") if name
    )
    notes = [signal.phase.value] if signal.phase is not Phase.POINT else []
    if signal.count > 1:
        notes.append(f"stands for {signal.count} reports")
    if signal.attributes.get("witnesses"):
        notes.append(f"seen by {signal.attributes['witnesses']}")
    when = moment(signal.at_us) if signal.at_us is not None else "time not known"
    head = " | ".join(part for part in (when, signal.name, place, ", ".join(notes)) if part)
    return f"{head} | {signal.raw[:MAX_WORDS]}"


def _context(case: Case) -> Iterator[Item]:
    yield Item(
        "r1",
        f"verdict of the rules, version {case.verdict.rules_version}",
        _verdict(case),
        Trust.CLUSTER,
        conclusion=True,
    )
    if case.node is not None:
        yield Item("n1", "the node, as its agent described it last", "\n".join(_node(case.node)), Trust.HARDWARE)
    yield Item(
        "h1", "earlier incidents of this node, newest first", _listed(case.earlier, "none is stored"), Trust.CLUSTER
    )
    yield Item(
        "p1", "other nodes with the same codes now", _listed(case.peers, "none has an open incident"), Trust.CLUSTER
    )
    if case.condition or case.message:
        yield Item(
            "q1", "what was reported: a hint, no proof", f"{case.condition}: {case.message}"[:MAX_WORDS], Trust.TENANT
        )


def _verdict(case: Case) -> str:
    verdict = case.verdict
    lines = [
        f"severity {verdict.severity}, class {verdict.fault_class}, action {verdict.action}, confidence {verdict.confidence:.2f}",
        f"resolutions: {', '.join(verdict.resolutions)}",
        f"rules: {', '.join(verdict.rule_ids) or 'none'}",
        f"root cause: {verdict.root_cause}",
        f"summary: {verdict.summary}",
        *(f"do not: {item}" for item in verdict.do_not),
        *(f"open question: {item}" for item in verdict.open_questions),
    ]
    return "\n".join(lines)


def _node(node: NodeFacts) -> Iterator[str]:
    yield f"agent {node.agent_version or 'unknown'}, last heard {moment(node.last_heard_us)}, boot {node.boot_id or 'unknown'}"
    if node.snapshot_us is None:
        return
    yield f"snapshot of {moment(node.snapshot_us)}: driver {node.driver_version or 'unknown'}, {node.gpu_count} GPUs answer"
    for gpu in sorted(node.gpus, key=lambda gpu: (gpu.pci or "", gpu.uuid or "")):
        yield _gpu(gpu)


def _gpu(gpu: Gpu) -> str:
    minor = "" if gpu.minor is None else f"minor {gpu.minor}"
    names = (gpu.pci, gpu.uuid, gpu.model, gpu.serial and f"serial {gpu.serial}", minor)
    return "GPU " + " ".join(name for name in names if name)


def _listed(others: Iterable[Other], none: str) -> str:
    return "\n".join(_other(other) for other in others) or none


def _other(other: Other) -> str:
    ended = (
        f"resolved {moment(other.resolved_us)} ({other.resolved_because})" if other.resolved_us is not None else "open"
    )
    same = "same GPU, " if other.same_gpu else ""
    judged = f"; judged {' '.join(other.judged)}" if other.judged else ""
    return f"{moment(other.opened_us)} {other.node}: {same}{', '.join(other.codes[:10])}; {ended}{judged}"


def _unchecked(case: Case) -> Iterator[str]:
    node = case.node
    if node is None:
        yield "node: no agent of this node was ever heard"
    elif node.snapshot_us is None:
        yield "inventory: no snapshot of this node was ever received"
    elif not node.driver_works:
        yield "NVML: the driver does not answer on this node"
    if node is not None and case.now_us - node.last_heard_us > SILENT_US:
        yield f"node: its agent was last heard at {moment(node.last_heard_us)}"


def moment(time_us: int) -> str:
    """ISO 8601 in UTC with milliseconds; times out of range say so."""
    try:
        time = datetime.fromtimestamp(time_us / 1e6, UTC)
    except (OverflowError, ValueError, OSError):
        return "time out of range"
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03d}Z"
