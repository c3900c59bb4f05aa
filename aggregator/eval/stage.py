"""A pair of worlds on the stage: its trigger goes through the rules and the correlator, as it would in the aggregator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from aggregator import assessor, correlator, rules
from aggregator.eval.recorded import source_of
from aggregator.eval.world import Fact, Pair, Recording, Variant, WorldError, baseline
from aggregator.investigator.bundle import Bundle, build
from aggregator.investigator.case import Case, NodeFacts
from aggregator.investigator.framing import Gate
from aggregator.investigator.items import Item
from aggregator.investigator.results import admitted
from aggregator.investigator.sources import Scope
from aggregator.model import Evidence, EvidenceKey, Gpu, Incident, Signal, Verdict

BEGAN_US = int(datetime(2026, 9, 21, 14, 0, tzinfo=UTC).timestamp()) * 1_000_000  # of every trigger's first fact
LOOKED_AT_US = BEGAN_US + 600_000_000
BEFORE_US = 3_600_000_000
BOOT_ID = "6f0c3c1e-9d6b-4f62-8a54-1b7a3b0f2a11"
ADDRESSES = ("1b", "43", "52", "61", "9d", "c3", "d1", "df")  # buses of an HGX board's GPUs


@dataclass(frozen=True, slots=True)
class Staged:
    """What is the same in every variant."""

    pair: Pair
    incident: Incident
    context: rules.Context
    verdict: Verdict  # the rules' own
    case: Case


def stage(pair: Pair) -> Staged:
    """Raises WorldError where the trigger is not one incident."""
    board = pair.board
    context = rules.Context(driver_version=board.driver, gpu_model=board.model, gpus_on_node=board.count)
    incident = _incident(pair)
    verdict, _ = assessor.judged(incident, context)
    basis = assessor.basis_of(incident, verdict)
    return Staged(pair, incident, context, verdict, Case(incident, verdict, basis, LOOKED_AT_US, _node(pair)))


def scope_of(staged: Staged) -> Scope:
    """Whom the model may ask about."""
    return Scope(
        incident=staged.incident,
        node=staged.pair.node,
        since_us=BEGAN_US - BEFORE_US,
        until_us=LOOKED_AT_US,
        peers=staged.pair.peers,
    )


def bundle_of(staged: Staged, gate: Gate) -> Bundle:
    """What a model sees before it asks: the same bytes in every variant."""
    return build(staged.case, gate)


def full_bundle(staged: Staged, variant: Variant, gate: Gate) -> Bundle:
    """The same with every answer in it that tools could give: for the ablation that fetches everything and asks nothing."""
    bundle, pair = bundle_of(staged, gate), staged.pair
    items = tuple(_item(number, answer, gate) for number, answer in enumerate(_all_answers(pair, variant), start=1))
    down = (f"{source_of(pair.question.tool)}: {pair.question.down}",) if variant is Variant.DOWN else ()
    return replace(bundle, items=(*bundle.items, *items), unchecked=(*bundle.unchecked, *down))


def _all_answers(pair: Pair, variant: Variant) -> list[Recording]:
    """By tool, so that the deciding one does not stand out; of a source that is down, none."""
    own = pair.recordings(variant)
    always = {recording.tool for recording in own if not recording.where}
    dead = source_of(pair.question.tool) if variant is Variant.DOWN else ""
    answers = [*own, *(answer for answer in baseline(pair.node) if answer.tool not in always)]
    return sorted((answer for answer in answers if source_of(answer.tool) != dead), key=lambda answer: answer.title)


def _item(number: int, recording: Recording, gate: Gate) -> Item:
    text, _ = admitted(gate, recording.answer)
    return Item(f"x{number}", recording.title, text, recording.trust)


def _incident(pair: Pair) -> Incident:
    signals = [signal for number, fact in enumerate(pair.trigger, 1) for signal in _signals(pair, number, fact)]
    step = correlator.step(correlator.State(), signals, LOOKED_AT_US, correlator.Windows())
    found = {change.incident.id: change.incident for change in step.changes}
    incidents = [one for one in found.values() if not one.resolved_because.startswith("merged into ")]
    if len(incidents) != 1:
        raise WorldError(f"{pair.name}: trigger: is {len(incidents)} incidents, expected one")
    return incidents[0]


def _signals(pair: Pair, number: int, fact: Fact) -> tuple[Signal, ...]:
    source = "kmsg" if fact.line else "nvml"
    evidence = Evidence(
        key=EvidenceKey(pair.node, source, BOOT_ID, number),
        kind=fact.kind or "kernel_line",
        occurred_us=BEGAN_US + int(fact.seconds * 1e6),
        phase=fact.phase,
        gpu=None if fact.gpu is None else gpus_of(pair)[fact.gpu],
        boot_id=BOOT_ID,
        detail=fact.detail,
        text=fact.line or None,
        values=fact.values,
        stored_us=BEGAN_US + int(fact.seconds * 1e6),
    )
    return rules.read(evidence)


def gpus_of(pair: Pair) -> tuple[Gpu, ...]:
    """The node's GPUs."""
    return tuple(
        Gpu(
            uuid=f"GPU-5e0a91c4-77d2-4b1f-9a3e-00000000{number:04x}",
            pci=f"0000:{ADDRESSES[number]}:00.0",
            serial=f"165132303{number:04d}",
            minor=number,
            model=pair.board.model,
        )
        for number in range(pair.board.count)
    )


def _node(pair: Pair) -> NodeFacts:
    return NodeFacts(
        agent_version="0.1.0",
        boot_id=BOOT_ID,
        last_heard_us=LOOKED_AT_US - 4_000_000,
        snapshot_us=BEGAN_US - 120_000_000,
        driver_version=pair.board.driver,
        gpu_count=pair.board.count,
        gpus=gpus_of(pair),
    )
