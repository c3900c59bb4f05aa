"""The drill of the delivery contract: agent and aggregator die again and again, the database is deleted or put back.

The kernel log is a file, as the kernel's ring is: it outlives the agent. 20,000 distinct records are written over the drill; in the
end the store holds each of them once, in the kernel's order.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from aggregator.demo.processes import AgentProcess, AggregatorProcess
from protos.v1 import sentinel_pb2, sentinel_pb2_grpc

FACTS = int(os.environ.get("GCM_SENTINEL_DRILL_FACTS", "20000"))
KERNEL_USEC_BETWEEN = 310_000  # under 200 lines a minute of kernel time: no storm, every record is sent


class Drill:
    """One node, one aggregator, and a kernel log that grows while they die."""

    def __init__(self, directory: Path) -> None:
        self.random = random.Random(20261123)
        self.kernel_log = directory / "kmsg"
        self.kernel_log.touch()
        boot_id = directory / "proc/sys/kernel/random/boot_id"
        boot_id.parent.mkdir(parents=True)
        boot_id.write_text(f"{uuid.uuid4()}\n")
        (directory / "sys").mkdir()
        self.aggregator = AggregatorProcess(directory / "aggregator")
        self.agent = AgentProcess(
            directory / "agent",
            self.aggregator.address,
            node="drill",
            KMSG_PATH=str(self.kernel_log),
            PROC_ROOT=str(directory / "proc"),
            SYSFS_ROOT=str(directory / "sys"),
            NVML="off",
            POD_RESOURCES_SOCKET=str(directory / "none.sock"),
        )
        self._writer = threading.Thread(target=self._write_kernel_log)

    def __enter__(self) -> Drill:
        self.aggregator.start()
        self.agent.start()
        self.aggregator.wait_ready()
        self._writer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.join()
        self.agent.stop()
        self.aggregator.stop()

    @property
    def writing(self) -> bool:
        """True while the kernel log still grows."""
        return self._writer.is_alive()

    def _write_kernel_log(self) -> None:
        """Bursts of records with pauses between them, for about 20 seconds."""
        written = 0
        with self.kernel_log.open("a", buffering=1) as log:
            while written < FACTS:
                for seq in range(written, min(FACTS, written + 200)):
                    log.write(f"4,{seq},{seq * KERNEL_USEC_BETWEEN},-;nvidia-nvlink: drill record {seq}\n")
                written = min(FACTS, written + 200)
                time.sleep(20 * 200 / FACTS)

    def kill(self, victim: AgentProcess | AggregatorProcess) -> None:
        """SIGKILL one process and start it again."""
        assert victim.process is not None
        victim.process.kill()
        if isinstance(victim, AggregatorProcess):
            self._between_lives()
        victim.start()

    def _between_lives(self) -> None:
        """What happens to the database while the aggregator is dead."""

    def pause(self) -> None:
        """A random moment."""
        time.sleep(self.random.uniform(0.2, 2.0))

    def stored_seqs(self) -> list[int]:
        """The kernel's record numbers in the store, in the order they were stored."""
        with grpc.insecure_channel(self.aggregator.address) as channel:
            stub = sentinel_pb2_grpc.SentinelServiceStub(channel)
            return [entry.evidence.seq for entry in every_page(stub) if entry.evidence.source == "kmsg"]

    def await_stored(self, timeout_seconds: float = 60.0) -> list[int]:
        """The stored record numbers once all have arrived, or what is there when the time is up."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                seqs = self.stored_seqs()
            except grpc.RpcError:
                seqs = []
            if len(seqs) >= FACTS or time.monotonic() > deadline:
                return seqs
            time.sleep(0.5)


def every_page(stub: sentinel_pb2_grpc.SentinelServiceStub) -> Iterator[sentinel_pb2.StoredEvidence]:
    """All kernel lines of the store."""
    token = ""
    while True:
        page = stub.ListEvidence(
            sentinel_pb2.ListEvidenceRequest(node="drill", page_size=1000, page_token=token), timeout=10
        )
        yield from page.evidence
        token = page.next_page_token
        if not token:
            return


class DatabaseDeleted(Drill):
    """The database is gone the first time the aggregator comes back."""

    deleted = False

    def _between_lives(self) -> None:
        if not self.deleted:
            self.deleted = True
            for file in self.aggregator.directory.glob("*.db*"):
                file.unlink()


class BackupRestored(Drill):
    """At the second death an older backup takes the database's place."""

    deaths = 0

    def _between_lives(self) -> None:
        self.deaths += 1
        (database,) = self.aggregator.directory.glob("*.db")
        backup = self.aggregator.directory / "older-backup"
        if self.deaths == 1:
            with sqlite3.connect(database) as source, sqlite3.connect(backup) as target:
                source.backup(target)
        elif self.deaths == 2:
            for file in self.aggregator.directory.glob("*.db*"):
                file.unlink()
            shutil.copy(backup, database)


def agent_dies(drill: Drill) -> None:
    drill.kill(drill.agent)


def aggregator_dies(drill: Drill) -> None:
    drill.kill(drill.aggregator)


def either_or_both_die(drill: Drill) -> None:
    for victim in drill.random.choice(((drill.agent,), (drill.aggregator,), (drill.agent, drill.aggregator))):
        drill.kill(victim)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("kind", "strike"),
    [
        (Drill, agent_dies),
        (Drill, aggregator_dies),
        (Drill, either_or_both_die),
        (DatabaseDeleted, aggregator_dies),
        (BackupRestored, either_or_both_die),
    ],
    ids=["agent", "aggregator", "both", "database deleted", "older backup restored"],
)
def test_nothing_is_lost_nothing_stands_twice_and_order_is_kept(
    kind: type[Drill], strike: Callable[[Drill], None], tmp_path: Path
) -> None:
    """However the processes die, each record is stored exactly once and in the kernel's order."""
    with kind(tmp_path) as drill:
        strikes = 0
        while drill.writing or strikes < 3:
            drill.pause()
            strike(drill)
            strikes += 1
        drill.aggregator.wait_ready()
        seqs = drill.await_stored()
    missing = sorted(set(range(FACTS)) - set(seqs))
    assert not missing, f"{len(missing)} of {FACTS} records are missing after {strikes} strikes, first {missing[:5]}"
    assert len(seqs) == FACTS, f"{len(seqs) - FACTS} records stand twice"
    assert seqs == sorted(seqs), "the kernel's order was not kept"
