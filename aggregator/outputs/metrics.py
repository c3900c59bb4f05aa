"""Every metric of the aggregator: their names, labels and help texts are a contract (DESIGN §5).

Labels are bounded: a kind that is not known counts as `other`, and series of what is over go away. Every series carries the
cluster's name, so that several clusters can share one Prometheus.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from aggregator.model import Assessment, Incident, IncidentState, Investigation, Severity
from aggregator.rules.kinds import KINDS

OTHER = "other"
SOURCES = frozenset(
    (
        "agent", "aggregator", "dcgm", "gap", "kmsg", "kmsg_previous_boot", "kmsg_storm", "kubernetes", "nvml", "operator", "proc",
        "pstore", "sysfs", "workloads",
    )
)  # fmt: skip
EVIDENCE_KINDS = frozenset((*KINDS, "kernel_line"))
FAST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
DELAY_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 3600.0)
LONG_SECONDS = (1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

Active = tuple[str, str, str, str, str]  # node, gpu, kind, severity, action


class Metrics:
    """The metrics, by what happened. Also an output: assessments are counted, and open incidents shown, as they are published."""

    name = "metrics"

    def __init__(self, registry: CollectorRegistry, cluster: str) -> None:
        self._registry = registry
        self._cluster = cluster
        self._shown: dict[str, tuple[Active, bool]] = {}  # open incident → its series, and whether it pages
        self._incidents: Tally[Active] = Tally()  # open ones of a series
        self._paging: Tally[Active] = Tally()  # those of them that page
        self._counted: dict[str, str] = {}  # incident → its assessment that was counted last
        self._reasons: dict[str, str] = {}  # node → its reason in node_observed
        self._make_assessment_metrics()
        self._make_investigation_metrics()
        self._make_evidence_metrics()
        self._make_delivery_metrics()
        self._make_process_metrics()

    # --- assessments

    def publish(self, incident: Incident, assessment: Assessment | None, change: str) -> None:
        """Count a new revision and show the incident as it stands."""
        self.show(incident, assessment)
        if assessment is None or incident.quiet or self._counted.get(incident.id) == assessment.id:
            return
        verdict = assessment.verdict
        self._assessments.labels(self._cluster, verdict.severity.value, verdict.action.value, assessment.origin).inc()
        self._confidence.labels(self._cluster).observe(verdict.confidence)
        if assessment.degraded_reason:
            self._degraded.labels(self._cluster, assessment.degraded_reason.partition(":")[0]).inc()
        if incident.state is IncidentState.OPEN:
            self._counted[incident.id] = assessment.id
        else:
            self._counted.pop(incident.id, None)

    def show(self, incident: Incident, assessment: Assessment | None) -> None:
        """Show an incident while it is open; also at the start, for each that is. One that is held, or that a fleet incident pages
        for, is shown with the value 0."""
        before = self._shown.pop(incident.id, None)
        if before is not None:
            self._tally(*before, -1)
        after = None
        if incident.state is IncidentState.OPEN and assessment is not None:
            after = (_series(incident, assessment), incident.held_until_us is None and not incident.fleet_id)
            self._shown[incident.id] = after
            self._tally(*after, 1)
        for series in {shown[0] for shown in (before, after) if shown is not None}:
            self._refresh(series)

    def assessed(self, seconds: float) -> None:
        """How long judging one incident took."""
        self._duration.labels(self._cluster).observe(seconds)

    def queue_depth(self, evidence: int) -> None:
        """Stored evidence that waits to be correlated."""
        self._queue_depth.labels(self._cluster).set(evidence)

    # --- investigations

    def investigations_waiting(self, count: int) -> None:
        """Investigations that wait for their time, a free worker or the next hour's budget."""
        self._waiting.labels(self._cluster).set(count)

    def investigated(self, found: Investigation) -> None:
        """One has ended."""
        spent, model = found.spent, found.model or "none"
        self._investigations.labels(self._cluster, found.stop.value, found.reason.partition(":")[0]).inc()
        self._investigation_seconds.labels(self._cluster).observe((found.ended_us - found.started_us) / 1e6)
        for kind, count in (
            ("input", spent.input_tokens - spent.cached_tokens),
            ("cached", spent.cached_tokens),
            ("output", spent.output_tokens),
        ):
            self._tokens.labels(self._cluster, model, kind).inc(max(0, count))
        self._cost.labels(self._cluster, model).inc(spent.cost_usd)

    def tool_called(self, tool: str, outcome: str) -> None:
        """A source was asked. Both words are of a fixed set: registered tools, and ok, error, timeout, refused, repeated."""
        self._tool_calls.labels(self._cluster, tool, outcome).inc()

    def correlator_lag(self, seconds: float) -> None:
        """How far the correlator is behind the newest stored evidence."""
        self._lag.labels(self._cluster).set(seconds)

    def _tally(self, series: Active, pages: bool, step: int) -> None:
        self._incidents[series] += step
        self._paging[series] += pages * step
        self._open.labels(self._cluster, series[3]).inc(step)

    def _refresh(self, series: Active) -> None:
        """A series lives as long as an open incident has its labels."""
        if self._incidents[series]:
            self._active.labels(self._cluster, *series).set(self._paging[series])
        else:
            del self._incidents[series], self._paging[series]
            self._active.remove(self._cluster, *series)

    # --- evidence

    def evidence_stored(self, kind: str, source: str, latency_seconds: float | None, lost: int = 0) -> None:
        """One new fact is durable; latency from when the node collected it, None where that says nothing (a replay). `lost` records
        are reported lost by it."""
        kind = kind if kind in EVIDENCE_KINDS else OTHER
        self._evidence.labels(self._cluster, kind, source if source in SOURCES else OTHER).inc()
        if latency_seconds is not None:
            self._latency.labels(self._cluster).observe(max(0.0, latency_seconds))
        if lost > 0:
            self._lost.labels(self._cluster).inc(lost)

    def quarantined(self, reason: str) -> None:
        """A record could not be stored as what it claims to be. `reason` is one of a few fixed words."""
        self._quarantined.labels(self._cluster, reason).inc()

    def undecodable(self, method: str) -> None:
        """A request was refused because its bytes are no message of the method, which is one that is served."""
        self._undecodable.labels(self._cluster, method).inc()

    def agents_connected(self, count: int) -> None:
        """Agents whose stream is open."""
        self._agents.labels(self._cluster).set(count)

    def node_observed(self, node: str, reason: str | None) -> None:
        """How a node is observed: "observed", or why not; None forgets the node."""
        before = self._reasons.pop(node, None)
        if before is not None:
            self._observed.remove(self._cluster, node, before)
        if reason is not None:
            self._reasons[node] = reason
            self._observed.labels(self._cluster, node, reason).set(reason == "observed")

    # --- the store

    def store_committed(self, seconds: float) -> None:
        """How long one transaction took, sync to disk included."""
        self._commit.labels(self._cluster).observe(seconds)

    def store_unwritable(self, unwritable: bool) -> None:
        """Whether the disk refuses: then nothing is acknowledged."""
        self._unwritable.labels(self._cluster).set(unwritable)

    # --- the cluster

    def watch_up(self, up: bool) -> None:
        """Whether the API server tells us of its nodes."""
        self._watch_up.labels(self._cluster, "nodes").set(up)

    def cluster_rejected(self, what: str) -> None:
        """Something of the API server's could not be taken up; `what` is one of a few fixed words."""
        self._rejected.labels(self._cluster, what).inc()

    # --- deliveries

    def delivered(self, target: str, outcome: str, count: int) -> None:
        """Attempts that ended: sent, failed (and tried again), postponed or dead. Targets are those of the configuration."""
        self._delivered.labels(self._cluster, target, outcome).inc(count)

    def deliveries(self, target: str, waiting: int, dead: int) -> None:
        """What a target has not been told."""
        self._deliveries_waiting.labels(self._cluster, target).set(waiting)
        self._deliveries_dead.labels(self._cluster, target).set(dead)

    # --- actions

    def decided(self, action: str, outcome: str) -> None:
        """A decision about an action, or what came of one; both words are from fixed sets."""
        self._remediation.labels(self._cluster, action, outcome).inc()

    # --- making them

    def _make_assessment_metrics(self) -> None:
        self._assessments = self._counter(
            "sentinel_assessment_total", "Assessments published, revisions included.", "severity", "action", "origin"
        )
        self._active = self._gauge(
            "sentinel_assessment_active",
            "Open incidents by their present assessment; 0 while a planned state or a fleet incident holds their pages.",
            *("node", "gpu", "kind", "severity", "action"),
        )
        self._confidence = self._histogram(
            "sentinel_assessment_confidence", "Confidence of published assessments, 0 to 1.", CONFIDENCES
        )
        self._duration = self._histogram(
            "sentinel_assessment_duration_seconds", "Time to judge one incident.", FAST_SECONDS
        )
        self._degraded = self._counter(
            "sentinel_assessment_degraded_total", "Assessments that say less than they could, by reason.", "reason"
        )
        self._queue_depth = self._gauge(
            "sentinel_assessment_queue_depth", "Stored evidence that waits to be correlated and judged."
        )
        self._lag = self._gauge(
            "sentinel_correlator_lag_seconds", "Age of the oldest stored evidence that is not correlated."
        )
        self._open = self._gauge("sentinel_incidents_open", "Open incidents by severity.", "severity")

    def _make_investigation_metrics(self) -> None:
        self._waiting = self._gauge("sentinel_investigations_waiting", "Investigations that wait.")
        self._investigations = self._counter(
            "sentinel_investigations_total", "Investigations that ended, by how and why.", "stop", "reason"
        )
        self._investigation_seconds = self._histogram(
            "sentinel_investigation_duration_seconds", "Time of one investigation.", LONG_SECONDS
        )
        self._tokens = self._counter(
            "sentinel_assessment_tokens_total",
            "Tokens by the endpoint's own count; input excludes cached.",
            "model",
            "kind",
        )
        self._cost = self._counter("sentinel_assessment_cost_usd_total", "US dollars by the price table.", "model")
        self._tool_calls = self._counter(
            "sentinel_assessment_tool_calls_total", "Questions to sources by outcome.", "tool", "outcome"
        )

    def _make_evidence_metrics(self) -> None:
        self._evidence = self._counter("sentinel_evidence_total", "Facts stored for the first time.", "kind", "source")
        self._lost = self._counter(
            "sentinel_evidence_lost_total", "Records reported lost on their way; may overstate, never understates."
        )
        self._latency = self._histogram(
            "sentinel_evidence_latency_seconds", "Time from collection on the node to durable storage.", DELAY_SECONDS
        )
        self._quarantined = self._counter(
            "sentinel_quarantined_total", "Records set aside because they could not be stored as evidence.", "reason"
        )
        self._undecodable = self._counter(
            "sentinel_undecodable_requests_total", "Requests that are no protobuf message of their method.", "method"
        )
        self._agents = self._gauge("sentinel_agents_connected", "Agents whose stream is open.")
        self._observed = self._gauge(
            "sentinel_node_observed",
            "1 where a node is observed, 0 where it is not, with the reason.",
            "node",
            "reason",
        )

    def _make_delivery_metrics(self) -> None:
        self._delivered = self._counter(
            "sentinel_deliveries_total",
            "Attempts to tell a target: sent, failed, postponed, dead.",
            "target",
            "outcome",
        )
        self._remediation = self._counter(
            "sentinel_remediation_total",
            "Decisions about actions, and what came of those allowed.",
            "action",
            "outcome",
        )
        self._deliveries_waiting = self._gauge(
            "sentinel_deliveries_waiting", "Messages that a target is still to be told.", "target"
        )
        self._deliveries_dead = self._gauge(
            "sentinel_deliveries_dead", "Messages that were given up and are kept to be looked at.", "target"
        )

    def _make_process_metrics(self) -> None:
        self._commit = self._histogram(
            "sentinel_store_commit_seconds", "Time of one transaction, sync to disk included.", FAST_SECONDS
        )
        self._unwritable = self._gauge(
            "sentinel_store_unwritable", "1 while the disk refuses, so that nothing is stored and nothing acknowledged."
        )
        self._watch_up = self._gauge(
            "sentinel_kubernetes_watch_up",
            "1 while the API server tells us of changes; absent where there is no cluster.",
            "resource",
        )
        self._rejected = self._counter(
            "sentinel_kubernetes_rejected_total", "What the API server told and nobody could take up.", "what"
        )
        for metric in (self._waiting, self._lost, self._queue_depth, self._lag, self._agents, self._unwritable):
            metric.labels(self._cluster)  # present from the start: absent and zero are different answers
        for severity in Severity:
            self._open.labels(self._cluster, severity.value)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ("cluster", *labels), registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, ("cluster", *labels), registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(name, text, ("cluster",), registry=self._registry, buckets=tuple(buckets))


def _series(incident: Incident, assessment: Assessment) -> Active:
    subject, verdict = incident.subject, assessment.verdict
    cited = frozenset(verdict.citations)
    kind = next((signal.kind for signal in incident.signals if signal.id in cited), OTHER)
    return (
        subject.node if subject.kind != "fleet" else "",
        subject.gpu_uuid or subject.pci or "",
        kind if kind in KINDS else OTHER,
        verdict.severity.value,
        verdict.action.value,
    )
