"""Runs benchmarks and prints one line per figure: `python -m tests.bench [NAME ...]`; without names all of them."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from aggregator.demo.processes import AgentProcess, AggregatorProcess, SimulatedNode
from protos.v1 import sentinel_pb2, sentinel_pb2_grpc
from tests.bench import cluster, load, measure

XID = "NVRM: Xid (PCI:0000:{bus:02x}:00): 31, pid=4242, name=train, Ch 00000010, intr 00000000. MMU Fault: number {n}"


def say(target: str, figure: str) -> None:
    """Print a figure beside what it is held against."""
    print(f"  {figure:<96} target: {target}", flush=True)


class Pair:
    """One aggregator and one agent that reads a kernel log through a FIFO."""

    def __init__(self, directory: Path) -> None:
        self.fifo = directory / "kmsg"
        os.mkfifo(self.fifo)
        self.aggregator = AggregatorProcess(directory / "aggregator")
        (directory / "sys").mkdir()
        self.agent = AgentProcess(
            directory / "agent",
            self.aggregator.address,
            node="bench",
            KMSG_PATH=str(self.fifo),
            NVML="off",
            SYSFS_ROOT=str(directory / "sys"),
        )
        self.seq = 0

    def __enter__(self) -> Pair:
        self.aggregator.start()
        self.aggregator.wait_ready()
        self.agent.start()
        self.log = self.fifo.open("w", buffering=1)
        time.sleep(2)
        return self

    def __exit__(self, *exception: object) -> None:
        self.agent.stop()
        self.aggregator.stop()
        self.log.close()

    def write(self, line: str) -> int:
        """Write one kernel record; return its number."""
        self.seq += 1
        self.log.write(f"4,{self.seq},{time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000},-;{line}\n")
        return self.seq


def stored_latency(directory: Path) -> None:
    """Kernel line written → durably stored at the aggregator, idle system."""
    with Pair(directory) as pair, grpc.insecure_channel(pair.aggregator.address) as channel:
        written: dict[int, float] = {}
        latencies: list[float] = []
        stub = sentinel_pb2_grpc.SentinelServiceStub(channel)
        watch = stub.WatchEvidence(sentinel_pb2.WatchEvidenceRequest(node="bench"))

        def follow() -> None:
            try:
                for message in watch:
                    if message.evidence.evidence.source == "kmsg":
                        stored = message.evidence.stored_at.ToMicroseconds() / 1e6
                        latencies.append((stored - written[message.evidence.evidence.seq]) * 1000)
            except grpc.RpcError:
                return

        follower = threading.Thread(target=follow)
        follower.start()
        time.sleep(1)
        for number in range(190):  # 200 lines a minute of kernel time are sent one by one
            now = time.time()
            written[pair.write(f"nvidia-nvlink: bench line {number}")] = now
            time.sleep(0.05)
        time.sleep(1)
        watch.cancel()
        follower.join()
    figures = ", ".join(f"p{p} {measure.percentile(latencies, p):.1f} ms" for p in (50, 99))
    say("p99 <= 50 ms", f"kernel line -> durably stored: {figures} ({len(latencies)} lines)")


def verdict_latency(directory: Path) -> None:
    """Fault sent by an agent's stream → its assessment on /metrics; each fault on a node of its own."""

    async def drive(aggregator: AggregatorProcess) -> list[float]:
        latencies = []
        address = aggregator.metrics_address
        async with load.fleet(aggregator.address, 60) as nodes:
            for number, node in enumerate(nodes):
                before = await asyncio.to_thread(measure.metric_sum, address, "sentinel_assessment_total")
                started = time.perf_counter()
                node.send([XID.format(bus=0x18, n=number)])
                while await asyncio.to_thread(measure.metric_sum, address, "sentinel_assessment_total") == before:
                    await asyncio.sleep(0.005)
                latencies.append((time.perf_counter() - started) * 1000)
                await asyncio.sleep(0.3)
        return latencies

    with _aggregator(directory) as aggregator:
        latencies = asyncio.run(drive(aggregator))
    figures = ", ".join(f"p{p} {measure.percentile(latencies, p):.0f} ms" for p in (50, 99))
    say("p99 <= 1 s", f"fault -> rule assessment on /metrics: {figures} ({len(latencies)} faults)")


def footprint(directory: Path) -> None:
    """The agent's memory and CPU with eight simulated GPUs."""
    aggregator = AggregatorProcess(directory / "aggregator")
    node = SimulatedNode("bench", directory / "node", aggregator.address)
    if os.access("/dev/kmsg", os.R_OK):  # as on a real node: a plain file has to be polled, the kernel's ring has not
        node.agent.environment["GCM_SENTINEL_KMSG_PATH"] = "/dev/kmsg"
    aggregator.start()
    aggregator.wait_ready()
    node.agent.start()
    try:
        assert node.agent.process is not None
        pid = node.agent.process.popen.pid
        time.sleep(15)
        before, began = measure.cpu_seconds(pid), time.monotonic()
        time.sleep(60)
        share = (measure.cpu_seconds(pid) - before) / (time.monotonic() - began) * 100
        rss, pss = measure.memory_mib(pid)
        say("<= 60 MiB", f"agent memory, 8 GPUs, all processes: RSS {rss:.1f} MiB, PSS {pss:.1f} MiB")
        say("<= 0.3 %", f"agent CPU, 8 GPUs, steady over 60 s: {share:.2f} % of a core")
    finally:
        node.agent.stop()
        aggregator.stop()


def throughput(directory: Path) -> None:
    """Durable evidence per second over 1,000 streams."""

    async def drive(aggregator: AggregatorProcess) -> None:
        async with load.fleet(aggregator.address, 1000) as nodes:
            seconds = await load.steady(
                nodes, per_second=5000, seconds=20, line=lambda n: f"nvidia-nvlink: load line {n}", batch=5
            )
            latencies = [latency * 1000 for node in nodes for latency in node.latencies]
            rate = len(latencies) / seconds
            say(
                "5,000/s",
                f"durable over 1,000 streams: {rate:.0f}/s offered 5,000/s, ack p50 {measure.percentile(latencies, 50):.0f} ms, "
                f"p99 {measure.percentile(latencies, 99):.0f} ms",
            )

    with _aggregator(directory) as aggregator:
        asyncio.run(drive(aggregator))
        assert aggregator.process is not None
        say("-", f"aggregator after it: RSS {measure.memory_mib(aggregator.process.popen.pid)[0]:.0f} MiB")
        size = sum(file.stat().st_size for file in aggregator.directory.glob("*.db*"))
        say("-", f"store: {size / 100_000 * 1_000_000 / 2**20:.0f} MiB per million facts")


def idle_streams(directory: Path) -> None:
    """10,000 mostly idle streams: memory, and how fast all are back after a restart."""

    async def drive(aggregator: AggregatorProcess) -> None:
        async with load.fleet(aggregator.address, 10_000, dial_per_second=1000) as nodes:
            await asyncio.sleep(5)
            assert aggregator.process is not None
            say("<= 700 MB", f"10,000 idle streams: RSS {measure.memory_mib(aggregator.process.popen.pid)[0]:.0f} MiB")
            await asyncio.to_thread(aggregator.stop)
            for node in nodes:
                node.connected.clear()
            started = time.monotonic()
            aggregator.start()
            for node in nodes:
                await node.connected.wait()
            say("<= 30 s", f"all 10,000 back after a restart: {time.monotonic() - started:.1f} s")

    with _aggregator(directory) as aggregator:
        asyncio.run(drive(aggregator))


def mass_failure(directory: Path) -> None:
    """10,000 nodes failing in one minute, judged by rules."""

    async def drive(aggregator: AggregatorProcess) -> None:
        async with load.fleet(aggregator.address, 10_000, dial_per_second=1000) as nodes:
            started = time.monotonic()
            await load.steady(nodes, per_second=167, seconds=60, line=lambda n: XID.format(bus=0x18, n=n))
            stored = time.monotonic() - started
            assessed = 0.0
            while assessed < len(nodes) and time.monotonic() - started < 180:
                assessed = await asyncio.to_thread(
                    measure.metric_sum, aggregator.metrics_address, "sentinel_assessment_total"
                )
                await asyncio.sleep(5)  # the page has a series for each node: reading it is work for both
            say(
                "every node assessed",
                f"10,000 nodes failing in 60 s: {sum(node.acked for node in nodes)} faults stored after {stored:.0f} s, "
                f"{assessed:.0f} assessments after {time.monotonic() - started:.0f} s",
            )

    with _aggregator(directory) as aggregator:
        asyncio.run(drive(aggregator))


def kernel_lines(directory: Path) -> None:
    """Kernel lines per second through the agent, uninteresting ones."""
    with Pair(directory) as pair:
        assert pair.agent.process is not None
        pid = pair.agent.process.popen.pid
        before = measure.cpu_seconds(pid)
        count = 200_000
        started = time.perf_counter()
        for number in range(count):
            pair.seq += 1
            pair.log.write(f"6,{pair.seq},{pair.seq},-;audit: type=1400 audit({number}): apparmor=ALLOWED\n")
        wall = time.perf_counter() - started
        cpu = measure.cpu_seconds(pid) - before
    say("-", f"kernel lines through the agent: {count / wall:.0f}/s, {cpu / count * 1e6:.1f} us of CPU each")


class _aggregator:  # noqa: N801 - reads as a verb in `with`
    """An aggregator for the length of a benchmark."""

    def __init__(self, directory: Path) -> None:
        self._aggregator = AggregatorProcess(directory / "aggregator")

    def __enter__(self) -> AggregatorProcess:
        self._aggregator.start()
        self._aggregator.wait_ready()
        return self._aggregator

    def __exit__(self, *exception: object) -> None:
        self._aggregator.stop()


def condition_latency(directory: Path) -> None:
    """node condition set on a real API server → assessment on /metrics"""
    with cluster.api_server(directory) as server, cluster.watching(directory, server) as process:
        taken = cluster.condition_seconds(server, process, 200)
    p50, p99 = (measure.percentile(taken, percent) * 1000 for percent in (50, 99))
    say("-", f"condition set → assessment on /metrics: p50 {p50:.0f} ms, p99 {p99:.0f} ms ({len(taken)} nodes)")


def ten_thousand_nodes(directory: Path) -> None:
    """what a cluster of 10,000 GPU nodes costs: memory, a list of all, changes"""
    with cluster.api_server(directory) as server:
        asyncio.run(cluster.fill(server, 10_000))
        with cluster.watching(directory, server) as process:
            time.sleep(5)
            rss, _ = measure.memory_mib(pid_of(process))
            say("300 MiB", f"10,000 nodes watched: RSS {rss:.0f} MiB")
        kubeconfig = server.kubeconfig(directory / "kubeconfig")
        taken, nodes = asyncio.run(cluster.relist_seconds(server, kubeconfig))
        say("-", f"a list of {nodes} nodes: {taken:.1f} s")
        lags, rate = asyncio.run(cluster.watch_lags(server, kubeconfig, 10_000, 1000, 10))
    p50, p99 = (measure.percentile(lags, percent) * 1000 for percent in (50, 99))
    say("-", f"1,000 node updates/s offered, {rate:.0f}/s taken: asked → seen p50 {p50:.0f} ms, p99 {p99:.0f} ms")


def pid_of(process: AggregatorProcess) -> int:
    """Of a running aggregator."""
    assert process.process is not None
    return process.process.popen.pid


BENCHMARKS: tuple[Callable[[Path], None], ...] = (
    stored_latency,
    verdict_latency,
    footprint,
    kernel_lines,
    throughput,
    idle_streams,
    mass_failure,
    condition_latency,
    ten_thousand_nodes,
)


def main() -> int:
    """Run the named benchmarks, or all."""
    names = [benchmark.__name__ for benchmark in BENCHMARKS]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    chosen = parser.parse_args().names or names
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(names)}")
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most_files, most_files)
    )  # 10,000 connections have an end in this process
    with tempfile.TemporaryDirectory() as scratch:
        print(
            f"{os.cpu_count()} cores, fdatasync {measure.fdatasync_ms(Path(scratch)):.2f} ms, Python {sys.version.split()[0]}"
        )
    for benchmark in BENCHMARKS:
        if benchmark.__name__ in chosen:
            print(f"{benchmark.__name__}: {benchmark.__doc__}", flush=True)
            with tempfile.TemporaryDirectory() as scratch:
                benchmark(Path(scratch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
