"""Benchmarks beside a real API server: how fast a condition becomes an assessment, what ten thousand nodes cost, how far a watch lags."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2

from aggregator.demo.processes import AggregatorProcess
from aggregator.kube.access import find_access
from aggregator.kube.client import KubeClient
from aggregator.kube.nodes import Wanted
from aggregator.kube.watch import NodeWatch
from tests.bench import measure
from tests.cluster.api_server import ADMIN, ApiServer

NODES = "/api/v1/nodes"
STAMP = "gcm-sentinel/bench"
WRITERS = 8
LABELS = {
    "kubernetes.io/arch": "amd64",
    "kubernetes.io/os": "linux",
    "nvidia.com/gpu.present": "true",
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    **{f"feature.node.kubernetes.io/cpu-cpuid.F{number}": "true" for number in range(40)},
}
KUBELETS = ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")


@contextlib.contextmanager
def api_server(directory: Path) -> Iterator[ApiServer]:
    """An API server for the length of a benchmark."""
    server = ApiServer(directory / "api-server")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def watching(directory: Path, server: ApiServer) -> Iterator[AggregatorProcess]:
    """An aggregator process that watches the cluster."""
    process = AggregatorProcess(directory / "aggregator", KUBERNETES="on")
    process.environment["KUBECONFIG"] = str(server.kubeconfig(directory / "kubeconfig"))
    process.start()
    process.wait_ready()
    try:
        wait_up(process)
        yield process
    finally:
        process.stop()


def wait_up(process: AggregatorProcess, seconds: float = 120.0) -> None:
    """Return once the watch is up."""
    deadline = time.monotonic() + seconds
    while measure.metric_sum(process.metrics_address, "sentinel_kubernetes_watch_up") != 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def condition_seconds(server: ApiServer, process: AggregatorProcess, count: int) -> list[float]:
    """From setting a condition until its assessment is on the metrics page, for so many nodes one after the other."""
    taken = []
    with httpx2.Client() as client:
        for number in range(count):
            server.node(node := f"latency-{number}")
            began = time.perf_counter()
            server.condition(node, "GcmXidErrorsProblem", "True")
            while f'node="{node}"' not in client.get(f"http://{process.metrics_address}/metrics").text:
                time.sleep(0.005)
            taken.append(time.perf_counter() - began)
    return taken


async def fill(server: ApiServer, count: int) -> None:
    """Make nodes as a GPU cluster has them: labels, conditions, capacity."""
    numbers = iter(range(count))

    async def make(client: httpx2.AsyncClient) -> None:
        for number in numbers:
            metadata = {
                "name": f"gpu-{number:05}",
                "labels": LABELS | {"topology.kubernetes.io/rack": f"r{number // 32}"},
            }
            (await client.post(NODES, json={"metadata": metadata})).raise_for_status()
            conditions = [
                {"type": name, "status": "True" if name == "Ready" else "False", "reason": f"Kubelet{name}", "message": "kubelet says so"}
                for name in KUBELETS
            ]  # fmt: skip
            status = {"capacity": {"nvidia.com/gpu": "8"}, "conditions": conditions}
            await patch(client, f"gpu-{number:05}/status", {"status": status})

    async with connected(server) as client, asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            group.create_task(make(client))


@contextlib.asynccontextmanager
async def connected(server: ApiServer):  # type: ignore[no-untyped-def]
    """Requests as an administrator."""
    tls = ssl.create_default_context(cafile=server.ca_file)
    headers = {"authorization": f"Bearer {ADMIN}"}
    async with httpx2.AsyncClient(base_url=server.url, verify=tls, headers=headers, timeout=60) as client:
        yield client


async def patch(client: httpx2.AsyncClient, path: str, body: object) -> None:
    """A merge patch of a node."""
    headers = {"content-type": "application/merge-patch+json"}
    (await client.patch(f"{NODES}/{path}", json=body, headers=headers)).raise_for_status()


async def relist_seconds(server: ApiServer, kubeconfig: Path) -> tuple[float, int]:
    """How long taking the whole view takes, and how many nodes it has."""
    client = KubeClient(find_access({"KUBECONFIG": str(kubeconfig)}, wanted=True))
    watch = NodeWatch(client, Wanted(lambda name: name == "Ready"))
    began = time.perf_counter()
    task = asyncio.create_task(watch.run())
    await watch.synced.wait()
    taken = time.perf_counter() - began
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.close()
    return taken, len(watch.nodes)


def write_stamps(server: ApiServer, nodes: int, per_second: int, seconds: float) -> None:
    """Runs in a process of its own: change nodes at a pace, each change stamped with its time."""

    async def write() -> None:
        async with connected(server) as client:
            began, sent = time.monotonic(), iter(range(round(per_second * seconds)))

            async def one() -> None:
                for number in sent:
                    await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
                    stamp = {"metadata": {"annotations": {STAMP: str(time.time_ns())}}}
                    await patch(client, f"gpu-{number % nodes:05}", stamp)

            async with asyncio.TaskGroup() as group:
                for _ in range(WRITERS * 4):
                    group.create_task(one())

    asyncio.run(write())


async def watch_lags(
    server: ApiServer, kubeconfig: Path, nodes: int, per_second: int, seconds: float
) -> tuple[list[float], float]:
    """Seconds from each change to our seeing it, the request that made it included; and how many the API server took a second."""
    client = KubeClient(find_access({"KUBECONFIG": str(kubeconfig)}, wanted=True))
    watch = NodeWatch(client, Wanted(lambda name: name == "Ready"))
    task = asyncio.create_task(watch.run())
    await watch.synced.wait()
    await watch.changes()
    writer = multiprocessing.get_context("fork").Process(target=write_stamps, args=(server, nodes, per_second, seconds))
    writer.start()
    lags: list[float] = []
    began = time.monotonic()
    while writer.is_alive():
        for name in await watch.changes(time.monotonic() + 0.2):
            if stamp := watch.nodes[name].annotations.get(STAMP):
                lags.append((time.time_ns() - int(stamp)) / 1e9)
    rate = per_second * seconds / (time.monotonic() - began)
    writer.join()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.close()
    return lags, rate
