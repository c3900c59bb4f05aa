"""Kernel lines and NVML facts of known faults, read by the packaged rules: one incident each, and the right one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from aggregator import rules
from aggregator.assessor import assess
from aggregator.correlator import State, Windows, step
from aggregator.model import Evidence, EvidenceKey, Gpu, Incident, IncidentState, Phase, Scalar
from tests.correlator.conftest import START_US, gpu_pci, gpu_uuid


@dataclass
class Node:
    """A node's facts, in their order."""

    name: str = "n1"
    facts: list[Evidence] = field(default_factory=list)

    def line(self, text: str, at: float = 0.0) -> Node:
        return self._add("kmsg", "kernel_line", at, text=text)

    def nvml(
        self, kind: str, gpu: int | None = None, at: float = 0.0, phase: Phase = Phase.POINT, **values: Scalar
    ) -> Node:
        names = None if gpu is None else Gpu(uuid=gpu_uuid(gpu), pci=gpu_pci(gpu))
        return self._add("nvml", kind, at, gpu=names, phase=phase, values=values, detail=f"{kind} of GPU {gpu}")

    def _add(self, source: str, kind: str, at: float, **fields: object) -> Node:
        key = EvidenceKey(self.name, source, "e", len(self.facts) + 1)
        made = Evidence(key, kind, START_US + round(at * 1e6), boot_id="boot-1")
        self.facts.append(replace(made, **fields))  # type: ignore[arg-type]
        return self


def xid(gpu: int, code: int, text: str) -> str:
    return f"NVRM: Xid (PCI:{gpu_pci(gpu)[:-2]}): {code}, pid='<unknown>', name=<unknown>, {text}"


BEGAN, ENDED = Phase.BEGAN, Phase.ENDED
OFF_THE_BUS = (
    Node()
    .line("pcieport 0000:a8:01.0: AER: Uncorrectable (Fatal) error message received from 0000:a8:01.0")
    .line(xid(5, 79, "GPU has fallen off the bus."), 0.3)
    .nvml("xid", 5, 0.4, data=79)
    .nvml("nvml_gpu_lost", 5, 1, BEGAN)
    .nvml("gpu_count_low", None, 1, BEGAN, after=7, limit=8)
)
SWITCH = Node().line(
    "nvidia-nvswitch1: SXid (PCI:0000:87:00.0): 24007, Fatal, Link 30 sourcetrack timeout error (First)"
)
for number in range(8):
    words = "NVLink: fatal error detected on link 6(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"
    SWITCH.line(xid(number, 74, words), 0.3).nvml("xid", number, 0.4, data=74)
HUNG = (
    Node()
    .nvml("nvml_hung", None, 0, BEGAN)
    .line(xid(6, 119, "Timeout after 45s of waiting for RPC response from GPU6 GSP! Expected function 76 (GSP_RM_CONTROL) (0x20801702 0x4)."), 0.5)
)  # fmt: skip
APPLICATION = (
    Node()
    .line(xid(0, 31, "Ch 00000010, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_4 faulted @ 0x7f3c_5a000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"))
    .nvml("xid", 0, 0.1, data=31)
    .line(xid(0, 43, "Ch 00000010"), 0.2)
)  # fmt: skip
REMAP = (
    Node()
    .line(xid(7, 63, "Row Remapper: New row (0x0000000002d9b3c0) marked for remapping, reset gpu to activate."))
    .nvml("xid", 7, 0.1, data=63)
    .nvml("row_remap_pending", 7, 0.2, BEGAN, field="row_remap_pending", after=True)
    .nvml("ecc_uncorrectable", 7, 0.2, field="ecc_volatile_uncorrected_total", before=0, after=1)
)
HEAT = Node()
for number in range(4):
    HEAT.nvml("hw_thermal_slowdown", number, 0, BEGAN, field="clocks_event_reasons", after=72)


def incidents_of(*nodes: Node, now: float = 10.0) -> list[Incident]:
    found: dict[str, Incident] = {}
    state = State()
    for evidence in sorted((fact for node in nodes for fact in node.facts), key=lambda fact: fact.occurred_us):
        done = step(state, rules.read(evidence), evidence.occurred_us, Windows())
        state = done.state
        found |= {change.incident.id: change.incident for change in done.changes}
    last = step(state, [], START_US + round(now * 1e6), Windows())
    found |= {change.incident.id: change.incident for change in last.changes}
    return [one for one in found.values() if not one.resolved_because.startswith("merged")]


@pytest.mark.parametrize(
    ("node", "subject", "severity", "cited"),
    [
        pytest.param(OFF_THE_BUS, ("gpu", gpu_pci(5)), "critical", "xid 79", id="fallen off the bus"),
        pytest.param(SWITCH, ("nvlink_peers", None), "critical", "sxid 24007", id="one switch, eight GPUs"),
        pytest.param(HUNG, ("gpu", gpu_pci(6)), "critical", "xid 119", id="a hung driver and its cause"),
        pytest.param(APPLICATION, ("gpu", gpu_pci(0)), "warning", "xid 31", id="an application"),
        pytest.param(REMAP, ("gpu", gpu_pci(7)), "warning", "row_remap_pending", id="a pending remap"),
        pytest.param(HEAT, ("node", None), "critical", "hw_thermal_slowdown", id="half a node in heat"),
    ],
)
def test_a_known_fault_is_one_incident_with_the_right_verdict(
    node: Node, subject: tuple[str, str | None], severity: str, cited: str
) -> None:
    (incident,) = incidents_of(node)
    assert (incident.subject.kind, incident.subject.pci) == subject
    assessment = assess(incident, None, START_US)
    assert assessment is not None
    assert assessment.verdict.severity == severity
    names = {one.name for one in incident.signals if one.id in assessment.verdict.citations}
    assert cited in names


def test_the_end_of_the_pending_remap_resolves_its_incident() -> None:
    after = replace(REMAP, facts=list(REMAP.facts)).nvml("row_remap_pending", 7, 3, ENDED, after=False)
    (incident,) = incidents_of(after)
    assert (incident.state, incident.resolved_because) == (IncidentState.RESOLVED, "recovered")


@pytest.mark.parametrize("back", [True, False])
def test_a_driver_upgrade_on_ten_nodes_pages_nobody(back: bool) -> None:
    nodes = []
    for number in range(10):
        node = (
            Node(f"n{number}")
            .nvml("nvml_unavailable", None, number * 0.1, BEGAN)
            .line("nvidia-modeset: Unloading", number * 0.1)
        )
        if back:
            node.line("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", 3)
            node.nvml("nvml_unavailable", None, 4, ENDED)
        nodes.append(node)
    paging = [one for one in incidents_of(*nodes) if one.state is IncidentState.OPEN and one.held_until_us is None]
    assert paging == []
    assert bool([one for one in incidents_of(*nodes, now=2_000) if one.state is IncidentState.OPEN]) is not back


def test_the_second_witness_of_an_xid_adds_no_second_event() -> None:
    node = Node().line(xid(4, 94, "Contained: SM (0x1). RST: No, D-RST: No")).nvml("xid", 4, 0.2, data=94)
    (incident,) = incidents_of(node)
    assert [one.attributes["witnesses"] for one in incident.signals] == ["kmsg,nvml", "kmsg,nvml"]
    assessment = assess(incident, None, START_US)
    assert assessment is not None
    assert len(assessment.verdict.citations) == 2
