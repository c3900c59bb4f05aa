"""Two nodes' metrics over six hours, as the usual exporters' series look in a Prometheus; gpu-10 is the one never to be seen.

Every value of gpu-10 is at least FOREIGN, and of gpu-1 less: what leaks through any arithmetic can be told.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.sources.servers import free_port, program, running

NODE, OTHER, PEER = "gpu-1", "gpu-10", "gpu-2"
ADDRESSES = {NODE: "10.0.0.1", OTHER: "10.0.0.10", PEER: "10.0.0.2"}
FOREIGN = 1e9
STEP_SECONDS = 60
BACK_SECONDS = 6 * 3600
AHEAD_SECONDS = 600  # samples go on while the tests run

Labels = Mapping[str, str]


def _uuid(node: str, gpu: int) -> str:
    return f"GPU-{node.removeprefix('gpu-').zfill(8)}-0000-0000-0000-00000000000{gpu}"


def series(node: str) -> Iterator[tuple[str, Labels, float]]:
    """(metric, labels, value) of one node."""
    high = FOREIGN if node == OTHER else 0.0
    address = ADDRESSES[node]
    for gpu in range(2):
        labels = {
            "job": "dcgm-exporter",
            "namespace": "gpu-operator",
            "instance": f"{address}:9400",
            "Hostname": node,
            "gpu": str(gpu),
            "UUID": _uuid(node, gpu),
            "exported_pod": f"train-of-{node}",
            "exported_namespace": "team-a",
        }
        yield "DCGM_FI_DEV_GPU_TEMP", labels, high + 60 + gpu
        yield "DCGM_FI_DEV_XID_ERRORS", labels, high + 79 * gpu
    host = {"job": "node-exporter", "namespace": "monitoring", "instance": f"{address}:9100"}
    yield "node_load1", host, high + 3
    yield "node_secrets_total", {**host, "instance": f"{node}:9100"}, high + 4
    yield "up", host, high + 1
    yield "problem_gauge", {"job": "npd", "namespace": "kube-system", "instance": f"{address}:20257",
                            "type": "GcmXidErrorsProblem", "reason": "GcmXidErrorsCheckFailed"}, high + 1  # fmt: skip
    yield "problem_gauge", {"job": "npd", "namespace": "kube-system", "instance": f"{address}:20257",
                            "type": "GcmSmiEccProblem", "reason": "GcmSmiEccCheckFailed"}, high + 0  # fmt: skip
    yield "problem_counter", {"job": "npd", "namespace": "kube-system", "instance": f"{address}:20257",
                              "reason": "GcmXidErrorsCheckFailed"}, high + 5  # fmt: skip
    # kube-state-metrics runs on gpu-1: its own target labels say so, what it tells of stands in exported_node.
    own = {"job": "kube-state-metrics", "namespace": "monitoring", "instance": "10.0.0.1:8080", "node": NODE}
    yield "kube_node_status_condition", {**own, "exported_node": node, "condition": "Ready"}, high + 1
    # An exporter of the whole cluster on gpu-1's own address.
    yield "ipmi_inlet_celsius", {"job": "ipmi", "instance": "10.0.0.1:9290", "node": node}, high + 38
    yield "gpu_forged_celsius", {"job": "web", "namespace": "team-a", "instance": "10.9.9.9:80", "node": node}, high + 1
    yield "gpu_pushed_celsius", {"job": "batch", "instance": "", "node": node}, high + 1
    yield "app_payload", {"job": "web", "node": node}, high + 1


def pushed() -> tuple[str, Labels, float]:
    """What a Pushgateway adds to a group that was pushed to it."""
    return "push_time_seconds", {"job": "batch", "instance": ""}, 1.0


def backfill(directory: Path, now: int, nodes: Sequence[str] = (NODE, OTHER, PEER)) -> None:
    """Write the history as blocks of a Prometheus database."""
    everything = [*(item for node in nodes for item in series(node)), pushed()]
    everything.sort(key=lambda item: item[0])
    text = directory / "history.om"
    with text.open("w") as out:
        for name in sorted({name for name, _, _ in everything}):
            out.write(f"# TYPE {name} gauge\n")
            for labels, value in ((labels, value) for other, labels, value in everything if other == name):
                shown = ",".join(f'{key}="{word}"' for key, word in labels.items() if word)
                for at in range(now - BACK_SECONDS, now + AHEAD_SECONDS + 1, STEP_SECONDS):
                    out.write(f"{name}{{{shown}}} {value} {at}\n")
        out.write("# EOF\n")
    command = [program("promtool"), "tsdb", "create-blocks-from", "openmetrics", str(text), str(directory / "data")]
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def prometheus(directory: Path) -> Iterator[str]:
    """A Prometheus that holds the history; gives its URL."""
    backfill(directory, int(time.time()))
    (directory / "prometheus.yml").write_text("global: {}\n")
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        program("prometheus"),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
    ]
    with running(command, f"{url}/-/ready", directory / "prometheus.log"):
        yield url
