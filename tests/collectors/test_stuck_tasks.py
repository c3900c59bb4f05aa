"""Tasks that sleep uninterruptibly in the NVIDIA driver."""

from __future__ import annotations

from typing import Any

import pytest

from node_agent.evidence import Observation, Phase, Workload
from node_agent.proc import scan_tasks
from node_agent.stuck_tasks import StuckTasks
from tests.collectors.conftest import WatchNode
from tests.collectors.node_tree import NodeTree, block, release
from tests.collectors.watching import never_blocked

STACK = "[<0>] rwsem_down_write_slowpath+0x2f1/0x6a0\n[<0>] os_acquire_rwlock_write+0x35/0x40 [nvidia]\n"


@pytest.mark.parametrize(
    ("task", "shown"),
    [
        ({"name": "python3", "stack": STACK}, "[nvidia]"),
        ({"name": "python3", "stack": STACK, "tid": 4250}, "[nvidia]"),
        ({"name": "python3", "wchan": "nvidia_close_callback"}, "nvidia_close_callback"),
        ({"name": "python3", "wchan": "uvm_release"}, "uvm_release"),
        ({"name": "nvidia-smi"}, "named nvidia-smi"),
        ({"name": "nv_queue) D ("}, "named nv_queue) D ("),
    ],
)
async def test_a_task_asleep_in_the_driver_is_told_with_its_workload_until_it_is_gone(
    task: dict[str, Any], shown: str, node: NodeTree, watch: WatchNode
) -> None:
    async with watch() as facts:
        await facts.stay(0)
        node.add_task(4242, state="D", **task)
        began = await facts.first("driver_task_stuck", Phase.BEGAN)
        await facts.stay(1)
        node.end_process(4242)
        ended = await facts.first("driver_task_stuck", Phase.ENDED)
        await facts.stay(2)
    assert shown in began.detail
    assert began.workloads == (Workload(pod="trainer", pid=4242),)
    assert began.body == Observation("task_4242_state", after="D")
    assert isinstance(ended.body, Observation)
    assert ended.body.field == "task_4242_state"


@pytest.mark.parametrize(
    "task",
    [
        {"name": "python3", "wchan": "nfs_wait_bit_killable", "stack": "[<0>] nfs_wait_bit_killable+0x1/0x2 [nfs]\n"},
        {"name": "jbd2/nvme0n1-8", "wchan": "jbd2_journal_commit_transaction"},
    ],
)
async def test_a_task_asleep_elsewhere_is_not_the_drivers(
    task: dict[str, Any], node: NodeTree, watch: WatchNode
) -> None:
    node.add_task(4242, state="D", **task)
    async with watch() as facts:
        await facts.stay(0)


def test_only_a_task_that_slept_all_the_while_between_two_looks_lasts(node: NodeTree) -> None:
    node.add_task(4242, "nvidia-smi", state="D", cpu=7)
    looks = StuckTasks()
    assert not looks.lasting(scan_tasks(node.proc).tasks)
    assert [task.pid for task in looks.lasting(scan_tasks(node.proc).tasks)] == [4242]
    node.add_task(4242, "nvidia-smi", state="D", cpu=8)  # it ran in between: another sleep
    assert not looks.lasting(scan_tasks(node.proc).tasks)


async def test_while_stacks_cannot_be_read_names_decide(node: NodeTree, watch: WatchNode) -> None:
    node.add_task(4242, "nvidia-smi", state="D")
    blocked = node.proc / "4242/task/4242/stack"
    block(blocked)
    async with watch(deadline_seconds=0.2) as facts, never_blocked():
        assert "task stacks" in (await facts.first("sysfs_read_stuck", Phase.BEGAN)).detail
        await facts.first("driver_task_stuck", Phase.BEGAN)
        await facts.stay(2)
        release(blocked, STACK)
        await facts.first("sysfs_read_stuck", Phase.ENDED)
