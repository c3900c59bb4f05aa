"""A healthy node, and the collector that watches it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from node_agent.collectors.sysfs import SysfsCollector
from node_agent.evidence import Workload
from tests.collectors.node_tree import GPUS, NodeTree
from tests.collectors.watching import Facts, watching


class WatchNode:
    """Watches a node with short intervals; NVML sees both GPUs unless told otherwise, and is asked once a look."""

    collector: SysfsCollector

    def __init__(self, node: NodeTree) -> None:
        self._node = node

    @asynccontextmanager
    async def __call__(
        self, nvml: Callable[[], frozenset[str] | None] = lambda: frozenset(GPUS), deadline_seconds: float = 5.0
    ) -> AsyncIterator[Facts]:
        looks = 0

        def counted() -> frozenset[str] | None:
            nonlocal looks
            looks += 1
            return nvml()

        self.collector = SysfsCollector(
            self._node.sys,
            self._node.proc,
            counted,
            workloads_of_pid=lambda pid: (Workload(pod="trainer", pid=pid),),
            interval_seconds=0.01,
            task_interval_seconds=0.01,
            deadline_seconds=deadline_seconds,
        )
        async with watching(self.collector, lambda: looks) as facts:
            yield facts


@pytest.fixture
def node(tmp_path: Path) -> NodeTree:
    return NodeTree(tmp_path)


@pytest.fixture
def watch(node: NodeTree) -> WatchNode:
    return WatchNode(node)
