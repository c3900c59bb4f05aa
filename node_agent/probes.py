"""The agent's own metrics and its liveness and readiness, over plain HTTP in a thread: they answer while the event loop hangs.

Metrics are computed from `Vitals` at each scrape; nothing in the agent updates a metric object.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from socketserver import StreamRequestHandler, TCPServer, ThreadingMixIn
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

ALIVE_SECONDS = 10.0
REQUEST_SECONDS = 5.0
CONCURRENT_REQUESTS = 8
MAX_REQUEST_BYTES = 8192  # of one line
MAX_HEADERS = 100
CLASSIC_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CLASSIC = {
    "counter": ("_total", "counter"),
    "info": ("_info", "gauge"),
}  # by type: suffix of the name, type in the text
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(frozen=True, slots=True)
class Vitals:
    """How the agent stands. Read from another thread: what it is made of must be safe to read at any time."""

    node: str
    agent_version: str
    beat_age_seconds: float
    loop_lag_seconds: float
    not_ready: str  # why, in one line; empty when ready
    connected: bool
    dials: int
    sync_lag_seconds: float
    nvml_deadline_misses: int
    clock_offset_seconds: float | None = None
    clock_error_seconds: float | None = None
    evidence_by_kind: Mapping[str, int] = field(default_factory=dict)
    spool_bytes: Mapping[str, int] = field(default_factory=dict)
    unacked_bytes: Mapping[str, int] = field(default_factory=dict)
    spool_in_memory: bool = False
    collector_states: Mapping[str, str] = field(default_factory=dict)  # "state" or "state: reason"


class AgentMetrics(Collector):
    """`sentinel_agent_*`, from the vitals of the moment."""

    def __init__(self, vitals: Callable[[], Vitals]) -> None:
        self._vitals = vitals

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        vitals = self._vitals()
        yield InfoMetricFamily(
            "sentinel_agent", "Which agent this is.", {"node": vitals.node, "version": vitals.agent_version}
        )
        yield _counters("evidence", "Facts reported, by kind.", "kind", vitals.evidence_by_kind)
        yield _gauges("spool_bytes", "Bytes that the spool log holds.", "log", vitals.spool_bytes)
        yield _gauges("unacked_bytes", "Bytes that no store has acknowledged.", "log", vitals.unacked_bytes)
        yield _gauge(
            "spool_in_memory", "1 while the disk takes nothing and memory alone keeps records.", vitals.spool_in_memory
        )
        yield _collector_states(vitals.collector_states)
        yield _gauge("connected", "1 while a stream to the aggregator is open.", vitals.connected)
        yield _gauge(
            "sync_lag_seconds", "Age of the oldest fact that no store has acknowledged.", vitals.sync_lag_seconds
        )
        yield _gauge("loop_lag_seconds", "How late the event loop's last beat was.", vitals.loop_lag_seconds)
        yield _counter("dials", "Streams dialled.", vitals.dials)
        yield _counter("gaps", "Known losses reported.", vitals.evidence_by_kind.get("evidence_gap", 0))
        yield _counter("nvml_deadline_misses", "Driver calls that overran their deadline.", vitals.nvml_deadline_misses)
        if vitals.clock_offset_seconds is not None and vitals.clock_error_seconds is not None:
            yield _gauge("clock_offset_seconds", "Server clock minus node clock.", vitals.clock_offset_seconds)
            yield _gauge(
                "clock_error_seconds", "The offset is known within plus or minus this.", vitals.clock_error_seconds
            )


class Probes:
    """Serves /metrics, /healthz and /readyz until closed. Raises OSError when the address cannot be listened on."""

    def __init__(self, address: tuple[str, int], vitals: Callable[[], Vitals]) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(AgentMetrics(vitals))
        ProcessCollector(registry=registry)

        pages: Pages = {
            "/metrics": lambda: _exposition(registry),
            "/healthz": lambda: _health(vitals()),
            "/readyz": lambda: _readiness(vitals()),
        }
        self._server = _Server(address, partial(_Request, pages))
        self._thread = threading.Thread(target=self._server.serve_forever, name="probes", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port, also when any free one was asked for."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass(frozen=True, slots=True)
class _Page:
    status: str
    body: bytes
    content_type: str = "text/plain; charset=utf-8"

    def response(self) -> bytes:
        """The whole HTTP response."""
        head = f"HTTP/1.1 {self.status}\r\nContent-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n"
        return f"{head}Connection: close\r\n\r\n".encode() + self.body


Pages = Mapping[str, Callable[[], _Page]]
"""By path."""


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], request: Callable[..., StreamRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._slots = threading.BoundedSemaphore(CONCURRENT_REQUESTS)
        super().__init__(address, request)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or took too long, is no event."""


class _Request(StreamRequestHandler):
    """One GET and its answer. http.server could do this too, for 3 MB."""

    timeout = REQUEST_SECONDS

    def __init__(self, pages: Pages, *args: Any) -> None:
        self._pages = pages
        super().__init__(*args)

    def handle(self) -> None:
        words = self.rfile.readline(MAX_REQUEST_BYTES).split()
        for _ in range(MAX_HEADERS):
            if self.rfile.readline(MAX_REQUEST_BYTES) in (b"\r\n", b"\n", b""):
                break
        if len(words) != 3 or words[0] != b"GET":
            page = _Page("405 Method Not Allowed", b"only GET\n")
        else:
            serve = self._pages.get(words[1].partition(b"?")[0].decode("ascii", "replace"))
            page = serve() if serve else _Page("404 Not Found", b"/metrics, /healthz or /readyz\n")
        self.wfile.write(page.response())


def _exposition(registry: CollectorRegistry) -> _Page:
    """All metrics in the classic text format, which every scraper reads (prometheus_client's writer of it costs megabytes)."""
    lines: list[str] = []
    for family in registry.collect():
        suffix, kind = _CLASSIC.get(family.type, ("", family.type))
        name = f"{family.name}{suffix}"
        lines += [f"# HELP {name} {family.documentation}", f"# TYPE {name} {kind}"]
        lines += [f"{sample.name}{_labels(sample.labels)} {floatToGoString(sample.value)}" for sample in family.samples]  # type: ignore[no-untyped-call]
    return _Page("200 OK", "".join(f"{line}\n" for line in lines).encode(), CLASSIC_CONTENT_TYPE)


def _labels(labels: Mapping[str, str]) -> str:
    written = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    return f"{{{written}}}" if written else ""


def _health(vitals: Vitals) -> _Page:
    if vitals.beat_age_seconds > ALIVE_SECONDS:
        return _Page(
            "503 Service Unavailable", f"the event loop has not run for {vitals.beat_age_seconds:.0f} s\n".encode()
        )
    return _Page("200 OK", b"ok\n")


def _readiness(vitals: Vitals) -> _Page:
    return (
        _Page("503 Service Unavailable", f"{vitals.not_ready}\n".encode())
        if vitals.not_ready
        else _Page("200 OK", b"ok\n")
    )


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"sentinel_agent_{name}", help_text, value=float(value))


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(f"sentinel_agent_{name}", help_text, value=float(value))


def _gauges(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"sentinel_agent_{name}", help_text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], float(value))
    return family


def _collector_states(states: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(
        "sentinel_agent_collector_state", "1 for the state a collector is in.", labels=["collector", "state"]
    )
    for collector, state in sorted(states.items()):
        family.add_metric([collector, state.partition(":")[0]], 1.0)
    return family


def _counters(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"sentinel_agent_{name}", help_text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], float(value))
    return family
