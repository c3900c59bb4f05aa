"""What is concluded can be counted, graphed and read in the log; what is over no longer shows."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import structlog.testing
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aggregator.model import (
    Action,
    Assessment,
    FaultClass,
    Incident,
    IncidentState,
    Resolution,
    Severity,
    Signal,
    Subject,
    Verdict,
)  # fmt: skip
from aggregator.outputs.log import AssessmentLog
from aggregator.outputs.metrics import Metrics

FACT = Signal("n1/kmsg/b/1", "xid", 79, node="n1", pci="0000:3a:00.0", at_us=1)
OPEN = Incident("inc-1", Subject("gpu", "n1", "0000:3a:00.0"), ("n1",), (FACT,), IncidentState.OPEN, 1, 1)
RESOLVED = replace(OPEN, state=IncidentState.RESOLVED, resolved_because="recovered", resolved_us=2)


def assessment(revision: int = 1, severity: Severity = Severity.CRITICAL, **fields: object) -> Assessment:
    verdict = Verdict(
        severity,
        FaultClass.PCIE,
        Action.DRAIN,
        (Resolution.REBOOT,),
        "It fell off.",
        "It is gone.",
        0.9,
        (FACT.id,),
        ("xid-79",),
    )
    return Assessment(f"inc-1/{revision}", "inc-1", "n1", revision, 1, verdict, **fields)  # type: ignore[arg-type]


class Board:
    """Metrics as Prometheus would read them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, "c1")

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def series(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        samples = [sample for family in text_string_to_metric_families(self.text()) for sample in family.samples]
        return {tuple(sorted(one.labels.items())): one.value for one in samples if one.name == name}

    def value(self, name: str, **labels: str) -> float | None:
        return self.series(name).get(tuple(sorted({"cluster": "c1", **labels}.items())))


@pytest.fixture
def board() -> Board:
    return Board()


ACTIVE = {"node": "n1", "gpu": "0000:3a:00.0", "kind": "xid", "severity": "critical", "action": "drain"}


def test_an_open_incident_is_active_and_its_series_goes_with_it(board: Board) -> None:
    board.metrics.publish(OPEN, assessment(), "opened")
    assert board.value("sentinel_assessment_active", **ACTIVE) == 1
    assert board.value("sentinel_incidents_open", severity="critical") == 1
    board.metrics.publish(RESOLVED, assessment(2), "resolved")
    assert board.series("sentinel_assessment_active") == {}
    assert board.value("sentinel_incidents_open", severity="critical") == 0


def test_a_revision_moves_the_series(board: Board) -> None:
    board.metrics.publish(OPEN, assessment(1, Severity.WARNING), "opened")
    board.metrics.publish(OPEN, assessment(2), "revised")
    assert [dict(labels)["severity"] for labels in board.series("sentinel_assessment_active")] == ["critical"]


def test_two_incidents_of_one_series_are_two(board: Board) -> None:
    other = replace(OPEN, id="inc-2")
    board.metrics.publish(OPEN, assessment(), "opened")
    board.metrics.publish(other, assessment(), "opened")
    assert board.value("sentinel_assessment_active", **ACTIVE) == 2
    board.metrics.publish(RESOLVED, assessment(2), "resolved")
    assert board.value("sentinel_assessment_active", **ACTIVE) == 1


@pytest.mark.parametrize("held", [{"held_until_us": 9, "held_because": "driver upgrade"}, {"fleet_id": "inc-9"}])
def test_a_held_incident_is_shown_and_pages_nobody(board: Board, held: dict[str, object]) -> None:
    board.metrics.publish(replace(OPEN, **held), assessment(), "opened")  # type: ignore[arg-type]
    assert board.value("sentinel_assessment_active", **ACTIVE) == 0


def test_each_revision_is_counted_once(board: Board) -> None:
    for _ in range(2):
        board.metrics.publish(OPEN, assessment(1), "revised")
    board.metrics.publish(OPEN, assessment(2, degraded_reason="rules_failed: KeyError"), "revised")
    labels = {"severity": "critical", "action": "drain", "origin": "rules"}
    assert board.value("sentinel_assessment_total", **labels) == 2
    assert board.value("sentinel_assessment_degraded_total", reason="rules_failed") == 1


def test_what_was_rebuilt_quietly_is_shown_and_not_counted(board: Board) -> None:
    board.metrics.publish(replace(OPEN, quiet=True), assessment(), "opened")
    assert board.value("sentinel_assessment_active", **ACTIVE) == 1
    assert board.series("sentinel_assessment_total") == {}


def test_labels_are_bounded(board: Board) -> None:
    for number in range(50):
        board.metrics.evidence_stored(f"kind-{number}", f"source-{number}", 0.01)
    board.metrics.evidence_stored("nvml_hung", "nvml", None, lost=7)
    kinds = {(dict(labels)["kind"], dict(labels)["source"]) for labels in board.series("sentinel_evidence_total")}
    assert kinds == {("other", "other"), ("nvml_hung", "nvml")}
    assert board.value("sentinel_evidence_lost_total") == 7
    assert board.value("sentinel_evidence_latency_seconds_count") == 50


def test_a_node_has_one_reason_at_a_time(board: Board) -> None:
    board.metrics.node_observed("n1", "observed")
    board.metrics.node_observed("n1", "silent")
    assert board.series("sentinel_node_observed") == {(("cluster", "c1"), ("node", "n1"), ("reason", "silent")): 0}
    board.metrics.node_observed("n1", None)
    assert board.series("sentinel_node_observed") == {}


def test_names_units_and_help_follow_the_conventions(board: Board) -> None:
    """What `promtool check metrics` checks."""
    families = list(text_string_to_metric_families(board.text()))
    assert len(families) > 15
    for family in families:
        assert re.fullmatch(r"sentinel_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert not re.search(r"_(?:milliseconds|ms|count|sum|bucket|info)$", family.name)
        assert (family.type == "counter") == (f"# TYPE {family.name}_total counter" in board.text())
    absent_is_not_zero = ("sentinel_agents_connected", "sentinel_evidence_lost_total", "sentinel_store_unwritable")
    assert [board.value(name) for name in absent_is_not_zero] == [0, 0, 0]


def test_every_gauge_and_timer_says_what_it_was_told(board: Board) -> None:
    metrics = board.metrics
    metrics.queue_depth(4)
    metrics.correlator_lag(1.5)
    metrics.agents_connected(3)
    metrics.store_unwritable(True)
    metrics.store_committed(0.004)
    metrics.assessed(0.002)
    metrics.quarantined("malformed")
    assert board.value("sentinel_assessment_queue_depth") == 4
    assert board.value("sentinel_correlator_lag_seconds") == 1.5
    assert board.value("sentinel_agents_connected") == 3
    assert board.value("sentinel_store_unwritable") == 1
    assert board.value("sentinel_store_commit_seconds_count") == 1
    assert board.value("sentinel_assessment_duration_seconds_sum") == 0.002
    assert board.value("sentinel_quarantined_total", reason="malformed") == 1


def test_an_assessment_is_one_line_of_the_log() -> None:
    output = AssessmentLog()
    with structlog.testing.capture_logs() as lines:
        output.publish(OPEN, assessment(), "opened")
        output.publish(OPEN, None, "revised")
        output.publish(replace(OPEN, id="inc-2", quiet=True), assessment(), "opened")
    (line,) = lines
    assert line["event"] == "assessment"
    assert (line["node"], line["gpu"], line["severity"], line["action"]) == ("n1", "0000:3a:00.0", "critical", "drain")
    assert line["citations"] == [FACT.id]


def concluded(incident: Incident = OPEN, revision: int = 1, **changes: object) -> tuple[Incident, Assessment]:
    first = assessment(revision)
    return incident, replace(first, verdict=replace(first.verdict, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (concluded(revision=2, summary="It is still gone.", citations=(FACT.id, "n1/kmsg/b/2")), False),
        (concluded(revision=2, root_cause="It fell off."), False),
        (concluded(revision=2, severity=Severity.WARNING), True),
        (concluded(revision=2, fault_class=FaultClass.MEMORY), True),
        (concluded(revision=2, action=Action.REBOOT), True),
        (concluded(revision=2, root_cause="The board has no power."), True),
        (concluded(revision=2, rule_ids=("xid-119", "xid-79")), True),
        (concluded(replace(OPEN, held_because="driver upgrade")), True),
        (concluded(replace(OPEN, fleet_id="inc-9")), True),
        (concluded(RESOLVED, revision=2), True),
    ],
)
def test_a_revision_is_logged_where_it_concludes_something_else(later: tuple[Incident, Assessment], said: bool) -> None:
    output = AssessmentLog()
    with structlog.testing.capture_logs() as lines:
        output.publish(*concluded(), "opened")
        output.publish(*later, "revised")
        output.publish(*later, "revised")
    assert len(lines) == 1 + said


def test_a_storm_that_only_counts_is_one_line_of_bounded_length() -> None:
    output = AssessmentLog()
    with structlog.testing.capture_logs() as lines:
        for count in range(1, 1000):
            cited = tuple(f"n1/kmsg/b/{number}" for number in range(count))
            root_cause = f"{count} errors, {'the last of them ' * 1000}"
            output.publish(*concluded(revision=count, root_cause=root_cause, citations=cited), "revised")
        output.publish(*concluded(RESOLVED, 1000, root_cause=root_cause, citations=cited), "resolved")
    assert [line["cited"] for line in lines] == [1, 999]
    assert all(len(json.dumps(line)) < 2000 for line in lines)
