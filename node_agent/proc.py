"""What /proc says of the driver and of tasks that sleep in the kernel and cannot be woken.

The driver's own files and those of its tasks can block while the driver hangs: callers read through a `deadline.Sources`.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from node_agent.attributes import names, read_text

_MODULE_VERSION = re.compile(r"Kernel Module\D*?(?:for \S+)?\s+(\d+(?:\.\d+)+)")
_DRIVERS_NAME = re.compile(r"nvidia|\bnv_|\buvm_")  # in a task's name, or in what it sleeps in


def driver_version(sysfs_root: Path, proc_root: Path) -> str:
    """Version of the loaded NVIDIA kernel module; empty when none is loaded. May block. Raises OSError.

    sysfs keeps it in memory; the driver's own file answers where the module exports no version.
    """
    try:
        return read_text(f"{sysfs_root}/module/nvidia/version")
    except FileNotFoundError:
        pass
    try:
        found = _MODULE_VERSION.search(read_text(f"{proc_root}/driver/nvidia/version"))
    except FileNotFoundError:
        return ""
    return found[1] if found else "unknown"


@dataclass(frozen=True, slots=True)
class Task:
    """A thread in uninterruptible sleep. Its consumed CPU time is part of it: one that ran since is another sleep."""

    pid: int
    tid: int
    name: str
    started_ticks: int
    cpu_ticks: int


@dataclass(frozen=True, slots=True)
class TaskScan:
    """All threads in uninterruptible sleep, and what looking for them cost in CPU seconds."""

    tasks: frozenset[Task]
    cpu_seconds: float


def scan_tasks(proc_root: Path) -> TaskScan:
    """Look at the state of every thread on the node."""
    began = time.thread_time()
    tasks = frozenset(
        task for name in names(proc_root) if name.isdecimal() for task in _sleeping_threads(f"{proc_root}/{name}", name)
    )
    return TaskScan(tasks, time.thread_time() - began)


def place_in_driver(proc_root: Path, task: Task) -> str | None:
    """What shows that a task sleeps in the NVIDIA driver: its name, the function it waits in, or a frame of its kernel stack; None
    when nothing does. May block."""
    directory = f"{proc_root}/{task.pid}/task/{task.tid}"
    for name in ("wchan", "stack"):
        for line in _text(f"{directory}/{name}").splitlines():
            if _DRIVERS_NAME.search(line):
                return f"in {line.strip()}"
    return f"named {task.name}" if named_by_driver(task) else None


def named_by_driver(task: Task) -> bool:
    """Whether a task's name says that it is the driver's or one of its tools'."""
    return _DRIVERS_NAME.search(task.name) is not None


def _sleeping_threads(process: str, pid: str) -> list[Task]:
    leader = _stat(process)
    if leader is None:
        return []
    _, fields = leader
    if int(fields[17]) == 1:  # num_threads
        threads = [pid]
    else:
        try:
            threads = names(f"{process}/task")
        except OSError:
            return []
    found = []
    for name in threads:
        stat = _stat(f"{process}/task/{name}") if len(threads) > 1 else leader
        if stat is not None and stat[1][0] == "D":
            found.append(_task(int(pid), int(name), *stat))
    return found


def _stat(directory: str) -> tuple[str, list[str]] | None:
    """A thread's name and the fields after it, from its state on; None when it is gone."""
    text = _text(f"{directory}/stat")
    name, paren, rest = text.partition(" (")[2].rpartition(") ")
    return (name, rest.split(None, 20)) if paren else None


def _task(pid: int, tid: int, name: str, fields: list[str]) -> Task:
    return Task(pid, tid, name, started_ticks=int(fields[19]), cpu_ticks=int(fields[11]) + int(fields[12]))


def _text(path: str) -> str:
    try:
        return read_text(path)
    except OSError:  # gone, or not ours to see
        return ""
