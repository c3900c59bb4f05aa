"""A healthy node, and the collector that watches it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from node_agent.collectors.sysfs import SysfsCollector
from node_agent.evidence import Workload
from tests.collectors.node_tree import GPUS, NodeTree

WatchNode = Callable[..., SysfsCollector]


@pytest.fixture
def node(tmp_path: Path) -> NodeTree:
    return NodeTree(tmp_path)


@pytest.fixture
def watch(node: NodeTree) -> WatchNode:
    """Makes the collector with short intervals; NVML sees both GPUs unless told otherwise."""

    def make(
        nvml: Callable[[], frozenset[str] | None] = lambda: frozenset(GPUS), deadline_seconds: float = 5.0
    ) -> SysfsCollector:
        return SysfsCollector(
            node.sys,
            node.proc,
            nvml,
            workloads_of_pid=lambda pid: (Workload(pod="trainer", pid=pid),),
            interval_seconds=0.01,
            task_interval_seconds=0.01,
            deadline_seconds=deadline_seconds,
        )

    return make
