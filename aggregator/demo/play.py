"""Plays a scenario through real processes and compares what the aggregator concludes with what it must conclude."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from aggregator.demo.interrupt import Sleep
from aggregator.demo.processes import AggregatorProcess, DidNotStart, SimulatedNode
from aggregator.demo.scenario import Expectation, Scenario, Step
from protos.v1 import sentinel_pb2, sentinel_pb2_grpc

TIMEOUT_SECONDS = 30.0
ANSWER_SECONDS = 5.0  # of an aggregator on this machine
SETTLE_SECONDS = 2.0  # how long the verdict must stay as expected: a later fact must not spoil it
ALERTING = frozenset(("critical", "warning"))


@dataclass(slots=True)
class Outcome:
    """How a scenario ended."""

    scenario: Scenario
    problems: list[str]  # empty: as expected
    incidents: list[sentinel_pb2.Incident] = field(default_factory=list)
    seconds: float = 0.0  # from the first signal to the expected verdict


def play(scenario: Scenario, directory: Path, sleep: Sleep) -> Outcome:
    """Run one scenario in its own aggregator and agents, all ended before it returns or raises what `sleep` raises."""
    with contextlib.ExitStack() as stack:
        aggregator = AggregatorProcess(directory / "aggregator")
        stack.callback(aggregator.stop)
        aggregator.start()
        aggregator.wait_ready(sleep=sleep)
        nodes = {name: SimulatedNode(name, directory / name, aggregator.address) for name in scenario.nodes}
        for node in nodes.values():
            stack.callback(node.agent.stop)
            node.agent.start()
        stub = sentinel_pb2_grpc.SentinelServiceStub(stack.enter_context(grpc.insecure_channel(aggregator.address)))
        wait_for_inventory(stub, nodes.values(), sleep)
        started = time.monotonic()
        for step in scenario.steps:
            sleep(step.after_seconds)
            perform(step, nodes[step.node])
        return _await_verdict(scenario, nodes, stub, started, sleep)


def perform(step: Step, node: SimulatedNode) -> None:
    """Let one step happen on its node."""
    if step.driver or step.gpus:
        node.change(driver=step.driver, gpus=step.gpus, values=step.values, lost=step.lost, xid=step.xid)
    for line in step.kernel:
        node.kernel(line)


def wait_for_inventory(
    stub: sentinel_pb2_grpc.SentinelServiceStub, nodes: Iterable[SimulatedNode], sleep: Sleep
) -> None:
    """Return once the aggregator has seen every node's GPUs: what follows is then a change. Raises DidNotStart."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    missing = {node.name: node.agent for node in nodes}
    while missing:
        if time.monotonic() > deadline:
            raise DidNotStart(f"no snapshot arrived from {', '.join(sorted(missing))}")
        for name, agent in list(missing.items()):
            agent.check_runs()
            with contextlib.suppress(grpc.RpcError):
                if stub.GetNode(sentinel_pb2.GetNodeRequest(node=name), timeout=ANSWER_SECONDS).snapshot.gpus:
                    del missing[name]
        sleep(0.1)


def _await_verdict(
    scenario: Scenario,
    nodes: dict[str, SimulatedNode],
    stub: sentinel_pb2_grpc.SentinelServiceStub,
    started: float,
    sleep: Sleep,
) -> Outcome:
    """Poll until the expected verdict stands and has settled, or the time is up."""
    deadline = started + TIMEOUT_SECONDS
    met_at: float | None = None
    while True:
        incidents = list_incidents(stub)
        problems = compare(scenario, incidents, nodes)
        now = time.monotonic()
        met_at = None if problems else (met_at or now)
        if met_at is not None and now - met_at >= SETTLE_SECONDS:
            return Outcome(scenario, [], incidents, met_at - started)
        if now > deadline:
            return Outcome(scenario, problems, incidents, now - started)
        sleep(0.1)


def list_incidents(stub: sentinel_pb2_grpc.SentinelServiceStub) -> list[sentinel_pb2.Incident]:
    """Every incident, resolved ones included, with timelines."""
    listed = stub.ListIncidents(sentinel_pb2.ListIncidentsRequest(include_resolved=True, page_size=1000)).incidents
    return [stub.GetIncident(sentinel_pb2.GetIncidentRequest(id=incident.id)).incident for incident in listed]


def compare(scenario: Scenario, incidents: list[sentinel_pb2.Incident], nodes: dict[str, SimulatedNode]) -> list[str]:
    """What differs from the expectation, one line each; empty when nothing does."""
    problems: list[str] = []
    for expected in scenario.expect:
        candidates = [incident for incident in incidents if incident.node == expected.node]
        differences = [list(_differences(expected, incident, nodes)) for incident in candidates]
        if not candidates:
            problems.append(f"no incident on {expected.node}")
        elif all(differences):
            closest = min(differences, key=len)
            problems.append(f"{expected.node}: " + "; ".join(closest))
    alerting = [incident for incident in incidents if _alerts(incident)]
    if len(alerting) != scenario.alerts:
        names = ", ".join(f"{incident.node} {incident.assessment.severity}" for incident in alerting) or "none"
        problems.append(f"{len(alerting)} alerts instead of {scenario.alerts}: {names}")
    return problems


def _alerts(incident: sentinel_pb2.Incident) -> bool:
    held = incident.HasField("held_until")
    return incident.state == "open" and not held and incident.assessment.severity in ALERTING


def _differences(
    expected: Expectation, incident: sentinel_pb2.Incident, nodes: dict[str, SimulatedNode]
) -> Iterator[str]:
    verdict = incident.assessment
    for name, want, got in (
        ("severity", expected.severity, verdict.severity),
        ("class", expected.fault_class, verdict.fault_class),
        ("action", expected.action, verdict.action),
        ("state", expected.state, incident.state),
    ):
        if want != got:
            yield f"{name} is {got or 'missing'} instead of {want}"
    if expected.gpu is not None and incident.gpu.pci != nodes[expected.node].gpu_pci(expected.gpu):
        yield f"it is about {incident.gpu.pci or 'no GPU'} instead of GPU {expected.gpu}"
    cited = Counter(entry.signal for entry in incident.timeline if entry.evidence_id in verdict.citations)
    for signal, count in (Counter(expected.cites) - cited).items():
        yield f"{signal} is cited {cited[signal]} times instead of {cited[signal] + count}"
