"""Tasks that sleep in the NVIDIA driver and cannot be woken, not even by SIGKILL: the driver or the GPU behind it hangs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from node_agent.evidence import Fact, Observation, Phase, Workload
from node_agent.proc import Task, named_by_driver, place_in_driver
from node_agent.states import States

MAX_INSPECTED = 256  # a hung file system can leave thousands of tasks asleep that are none of ours


def places(proc_root: Path, tasks: frozenset[Task]) -> dict[Task, str]:
    """Where in the driver tasks sleep; those that sleep elsewhere are left out. May block."""
    inspected = sorted(tasks, key=lambda task: (task.pid, task.tid))[:MAX_INSPECTED]
    return {task: place for task in inspected if (place := place_in_driver(proc_root, task))}


class StuckTasks:
    """Compares scans: a task counts when it slept in two of them in a row without a tick of CPU time between."""

    def __init__(self) -> None:
        self._previous: frozenset[Task] = frozenset()
        self._states: States[int] = States()
        self._told: dict[int, Task] = {}

    def lasting(self, tasks: frozenset[Task]) -> frozenset[Task]:
        """Those that slept at the last scan too."""
        lasting = tasks & self._previous
        self._previous = tasks
        return lasting

    def judge(
        self,
        lasting: frozenset[Task],
        found: Mapping[Task, str] | None,
        workloads_of_pid: Callable[[int], tuple[Workload, ...]],
    ) -> Iterator[Fact]:
        """Facts for processes that began or ceased to be stuck; one per process. Without `found`, names alone decide."""
        where = (
            found if found is not None else {task: f"named {task.name}" for task in lasting if named_by_driver(task)}
        )
        stuck = {task.pid: task for task in sorted(where, key=lambda task: (task.pid, -task.tid))}
        for pid, phase in self._states.sweep(sorted(stuck)):
            if phase is Phase.BEGAN:
                self._told[pid] = stuck[pid]
                words = f"sleeps uninterruptibly, {where[stuck[pid]]}"
            else:
                words = "is gone or runs again"
            task = self._told[pid]
            yield Fact(
                source="sysfs",
                kind="driver_task_stuck",
                detail=f"{task.name} (pid {pid}) {words}",
                phase=phase,
                body=Observation(f"task_{pid}_state", after="D" if phase is Phase.BEGAN else "not stuck"),
                workloads=workloads_of_pid(pid),
            )
            if phase is Phase.ENDED:
                del self._told[pid]
