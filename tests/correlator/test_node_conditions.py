"""What the cluster says of a node, beside what was seen first hand: by the packaged rules."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from aggregator import rules
from aggregator.correlator import State, Windows, step
from aggregator.model import Action, Evidence, EvidenceKey, Gpu, Incident, IncidentState, Phase, Severity, Trust
from aggregator.rules.node_conditions import family_of, hinted_codes
from tests.correlator.conftest import START_US, gpu_pci, gpu_uuid

BEGAN, ENDED = Phase.BEGAN, Phase.ENDED
FALLEN = f"NVRM: Xid (PCI:{gpu_pci(5)[:-2]}): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


@dataclass
class Story:
    """Facts of one node in the order in which they are stored."""

    facts: list[Evidence] = field(default_factory=list)

    def line(self, text: str, at: float = 0.0) -> Story:
        return self._add("kmsg", "kernel_line", at, text=text)

    def nvml(self, kind: str, at: float, phase: Phase = BEGAN) -> Story:
        return self._add("nvml", kind, at, phase=phase, gpu=Gpu(gpu_uuid(5), gpu_pci(5)), detail=kind)

    def condition(self, name: str, at: float, phase: Phase = BEGAN, status: str = "True", message: str = "") -> Story:
        values = {"condition": name, "status": status, "reason": "Because", "message": message}
        return self._add("kubernetes", "node_condition", at, phase=phase, values=values, detail=f"{name} is {status}")

    def plan(self, kind: str, at: float, phase: Phase = BEGAN) -> Story:
        return self._add("kubernetes", kind, at, phase=phase, values={"condition": kind, "status": "x"}, detail=kind)

    def _add(self, source: str, kind: str, at: float, **fields: object) -> Story:
        key = EvidenceKey("n1", source, "e", len(self.facts) + 1)
        made = Evidence(key, kind, START_US + round(at * 1e6), boot_id="boot-1" if source != "kubernetes" else "")
        self.facts.append(replace(made, **fields))  # type: ignore[arg-type]
        return self

    def told(self, until: float | None = None) -> list[Incident]:
        """The incidents, once every fact has come one by one, and time has passed."""
        state, known = State(), {}
        for fact in self.facts:
            done = step(state, rules.read(fact), fact.occurred_us, Windows())
            state, known = done.state, known | {change.incident.id: change.incident for change in done.changes}
        if until is not None:
            done = step(state, (), START_US + round(until * 1e6), Windows())
            known |= {change.incident.id: change.incident for change in done.changes}
        return [one for one in known.values() if not one.resolved_because.startswith("merged")]


def kinds(incident: Incident) -> list[str]:
    return [signal.name for signal in incident.signals]


@pytest.mark.parametrize("lag", [1, 290, 800])
def test_a_condition_that_follows_is_one_more_witness(lag: float) -> None:
    """NPD's checks run each five minutes: the agent's evidence comes first, and stays the verdict's cause."""
    (incident,) = Story().line(FALLEN).condition("GcmSmiDisconnectedProblem", lag).told()
    assert kinds(incident) == ["xid 79", "node_condition_gpu_lost"]
    verdict = rules.judge(incident.signals)
    assert "XID 79" in verdict.root_cause
    assert len(verdict.citations) == 2


def test_the_agents_evidence_may_come_after_the_condition_it_explains() -> None:
    """A node that was cut off sends late what it saw early."""
    story = Story().condition("GcmSmiDisconnectedProblem", 300).line(FALLEN, 0)
    (incident,) = story.told()
    assert kinds(incident) == ["xid 79", "node_condition_gpu_lost"]


def test_a_condition_without_other_evidence_opens_an_incident_of_its_own() -> None:
    (incident,) = Story().condition("GcmSmiEccProblem", 0).told()
    verdict = rules.judge(incident.signals)
    assert (verdict.severity, verdict.action) == (Severity.CRITICAL, Action.DRAIN)
    assert verdict.confidence < 0.6
    assert incident.signals[0].trust is Trust.CLUSTER


def test_what_has_nothing_to_do_with_the_condition_stays_apart() -> None:
    """An application's fault explains no memory check."""
    line = f"NVRM: Xid (PCI:{gpu_pci(5)[:-2]}): 13, pid=7, name=train, Graphics Exception: ESR 0x50_4730"
    assert len(Story().line(line).condition("GcmSmiEccProblem", 60).told()) == 2


def test_two_conditions_of_one_node_are_one_incident() -> None:
    story = Story().condition("GcmXidErrorsProblem", 0).condition("GcmSmiDisconnectedProblem", 280)
    (incident,) = story.told()
    assert rules.judge(incident.signals).severity is Severity.CRITICAL


def test_an_incident_lasts_until_every_condition_has_cleared() -> None:
    """The end of one condition is not the end of another of the same kind."""
    twins = Story().condition("GcmXidErrorsProblem", 0).condition("NPDGcmXidErrorsProblem", 10)
    twins.condition("GcmXidErrorsProblem", 700, ENDED, "False")
    (incident,) = twins.told(until=5000)
    assert incident.state is IncidentState.OPEN
    twins.condition("NPDGcmXidErrorsProblem", 5100, ENDED, "False")
    (incident,) = twins.told()
    assert (incident.state, incident.resolved_because) == (IncidentState.RESOLVED, "recovered")


def test_an_agents_restart_clears_no_condition() -> None:
    story = Story().condition("GcmSmiEccProblem", 0)._add("agent", "agent_started", 60)
    (incident,) = story.told(until=4000)
    assert incident.state is IncidentState.OPEN


@pytest.mark.parametrize("phase", [BEGAN, ENDED])
def test_a_driver_upgrade_holds_what_it_makes_look_like_a_fault(phase: Phase) -> None:
    """Evidence is kept; pages wait until the deadline passes."""
    story = (
        Story()
        .plan("node_driver_upgrade", 0)
        .nvml("nvml_unavailable", 2000)
        .condition("GcmSmiDisconnectedProblem", 2200)
    )
    if phase is ENDED:  # it ended long before
        story = Story().plan("node_driver_upgrade", 0).plan("node_driver_upgrade", 100, ENDED)
        story.nvml("nvml_unavailable", 2000).condition("GcmSmiDisconnectedProblem", 2200)
    (incident,) = story.told()
    if phase is ENDED:
        assert incident.held_until_us is None
        return
    assert incident.held_because == "driver upgrade"
    assert incident.held_until_us == START_US + 3_100_000_000
    (late,) = story.told(until=3_200)
    assert late.held_until_us is None


@pytest.mark.parametrize("kind", ["node_cordoned", "node_maintenance", "node_mig_change", "node_driver_upgrade"])
def test_a_hardware_fault_is_never_excused(kind: str) -> None:
    (incident,) = Story().plan(kind, 0).line(FALLEN, 100).told()
    assert incident.held_until_us is None


def test_a_cordoned_node_may_be_away_for_a_while() -> None:
    (incident,) = Story().plan("node_cordoned", 0).condition("Ready", 7200, status="Unknown").told()
    assert (kinds(incident), incident.held_because) == (["node_cordoned", "node_unreachable"], "cordon")


def test_text_in_a_message_is_a_hint_and_no_fact() -> None:
    """Whoever may write a node's status must not be able to write kernel lines."""
    (fact,) = Story().condition("GcmXidErrorsProblem", 0, message=f"{FALLEN}\nXIDs 48 and ErrorCode:63").facts
    (signal,) = rules.read(fact)
    assert (signal.kind, signal.code, signal.pci) == ("node_condition_xid", None, None)
    assert signal.attributes["hint_codes"] == "48,63,79"


@pytest.mark.parametrize(
    ("name", "kind", "bad", "blind"),
    [
        ("GcmXidErrorsProblem", "node_condition_xid", "True", "Unknown"),
        ("NPDGcmSmiEccProblem", "node_condition_ecc", "True", "Unknown"),
        ("GcmPciProblem", "node_condition_pcie", "True", "Unknown"),
        ("GcmSomethingNewProblem", "node_condition", "True", "Unknown"),
        ("NPDDcgmRunningProblem", "node_condition_dcgm", "True", "Unknown"),
        ("GpuMemWatch", "node_condition_ecc", "True", "Unknown"),
        ("GpuNvswitchFatalWatch", "node_condition_nvlink", "True", "Unknown"),
        ("SysLogsXIDError", "node_condition_xid", "True", "Unknown"),
        ("AcceleratedHardwareReady", "node_condition", "False", "Unknown"),
        ("StorageReady", "node_condition", "False", "Unknown"),
        ("Ready", "node_unreachable", "Unknown", ""),
        ("SiteSpecific", "node_condition", "True", "Unknown"),
    ],
)
def test_each_family_has_its_polarity(name: str, kind: str, bad: str, blind: str) -> None:
    family = family_of(name)
    assert (family.kind, family.bad, family.blind) == (kind, bad, blind)


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("ErrorCode:79 GPU:0", (79,)),
        ("NvidiaXID79Error", (79,)),
        ("NVRM: Xid (PCI:0000:3b:00): 119, pid=1", (119,)),
        ("Xid 48 then XID: 63 then xid#94", (48, 63, 94)),
        ("exid 5555555, XID 12 and 79 alone", (12,)),
        ("Xid " * 100_000, ()),
        (" ".join(f"XID {n}" for n in range(100)), tuple(range(16))),
    ],
)
def test_codes_are_hinted_at(text: str, codes: tuple[int, ...]) -> None:
    assert hinted_codes(text) == codes
