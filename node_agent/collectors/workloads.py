"""Who holds which GPU, and who a process was: evidence names the pod and container, or the Slurm job, and keeps it after they die.

Two sources: the kubelet's PodResources socket says which container was given which device (the API server does not know), and a
process's control group says which pod, container or job it runs in. Names come from the kubelet's links in /var/log/containers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from node_agent.cgroups import Owner
from node_agent.collectors import CollectorAbsent
from node_agent.deadline import Sources, SourceStuck
from node_agent.evidence import Fact, Gpu, Observation, Phase, Report, Unreadable, Workload
from node_agent.processes import ContainerName, Processes, container_names, look, read_owner
from node_agent.states import States

if TYPE_CHECKING:  # costs memory: imported where there is a kubelet
    from node_agent.podresources import Assignment

T = TypeVar("T")

CONFIRM_FAILURES = 2  # a kubelet that restarts misses one
ANSWER_SECONDS = 0.1
SHORT_ID_CHARACTERS = 12


class WorkloadsCollector:
    """Keeps the view of workloads. Intervals and deadlines are in seconds."""

    name = "workloads"

    def __init__(
        self,
        socket: Path,
        proc_root: Path,
        *,
        container_logs: Path = Path("/var/log/containers"),
        interval_seconds: float = 10.0,
        deadline_seconds: float = 5.0,
    ) -> None:
        self._socket, self._proc_root, self._container_logs = socket, proc_root, container_logs
        self._interval_seconds, self._deadline_seconds = interval_seconds, deadline_seconds
        self._looks = Sources(deadline_seconds)
        self._questions = Sources(ANSWER_SECONDS)
        self._processes = Processes()
        self._names: dict[str, ContainerName] = {}
        self._assignments: frozenset[Assignment] = frozenset()
        self._kubelet_seen = False
        self._unobservable: States[str] = States()

    async def collect(self, report: Report) -> None:
        """Look at processes and at the kubelet's view until cancelled. Raises CollectorAbsent where there is no kubelet, after a
        look at the processes: Slurm nodes have jobs too."""
        while True:
            await self._look_at_processes(report)
            self._kubelet_seen = self._kubelet_seen or self._socket.is_socket()
            if not self._kubelet_seen:
                raise CollectorAbsent(f"no kubelet socket at {self._socket}")
            await self._look_at_assignments(report)
            await asyncio.sleep(self._interval_seconds)

    def workloads_of_pid(self, pid: int) -> tuple[Workload, ...]:
        """Who a process belongs to, or belonged to when it was last seen; empty when nobody is known. Takes a tenth of a second at
        most, and raises nothing."""
        try:
            who = self._questions.call_waiting("a process's cgroup", partial(read_owner, self._proc_root, pid))
        except (SourceStuck, RuntimeError):  # RuntimeError: no thread can be started
            who = None
        if who is None:
            who = self._processes.recall(pid)
        else:
            self._processes.learn(pid, who)
        return (self._workload(who, pid),) if who else ()

    def workloads_of_gpu(self, gpu_uuid: str) -> tuple[Workload, ...]:
        """Who was given a GPU, or a part of it, at the last look at the kubelet's view."""
        holders = {self._holder(each) for each in self._assignments if _gpu_of(each.device_id) == gpu_uuid}
        return tuple(sorted(holders, key=lambda holder: (holder.namespace, holder.pod, holder.container)))

    async def _look_at_processes(self, report: Report) -> None:
        known = frozenset(self._processes.alive)
        seen = await self._call(report, "process cgroups", partial(look, self._proc_root, known))
        if seen is not None:
            self._processes.update(seen)
        wanted = self._processes.container_ids()
        if wanted - self._names.keys():
            names = await self._call(report, "container names", partial(container_names, self._container_logs))
            known_names = {**self._names, **(names or {})}
            self._names = {container: name for container, name in known_names.items() if container in wanted}

    async def _look_at_assignments(self, report: Report) -> None:
        import grpc

        from node_agent.podresources import list_assignments

        try:
            assignments = await list_assignments(self._socket, self._deadline_seconds)
        except grpc.aio.AioRpcError as error:
            problem = f"the kubelet's PodResources do not answer: {error.code().name}: {error.details()}"
            self._tell_unobservable(report, "pod_resources", problem)
            return
        self._tell_unobservable(report, "pod_resources", "")
        for fact in self._changes(assignments):
            report(fact)
        self._assignments = assignments

    def _changes(self, assignments: frozenset[Assignment]) -> Iterator[Fact]:
        for assignment in sorted(self._assignments - assignments):
            yield self._assigned(assignment, Phase.ENDED)
        for assignment in sorted(assignments - self._assignments):
            yield self._assigned(assignment, Phase.BEGAN)

    def _assigned(self, assignment: Assignment, phase: Phase) -> Fact:
        holder = self._holder(assignment)
        name = f"{holder.namespace}/{holder.pod}/{holder.container}"
        verb = "was given" if phase is Phase.BEGAN else "gave back"
        gpu_uuid = _gpu_of(assignment.device_id)
        return Fact(
            source="workloads",
            kind="gpu_assigned",
            detail=f"{name} {verb} {assignment.device_id} ({assignment.resource})",
            phase=phase,
            gpu=Gpu(uuid=gpu_uuid) if gpu_uuid else None,
            mig=_legacy_mig(assignment.device_id),
            body=Observation(
                field=f"holder_of_{assignment.device_id}",
                before=name if phase is Phase.ENDED else None,
                after=name if phase is Phase.BEGAN else None,
            ),
            workloads=(holder,),
        )

    def _holder(self, assignment: Assignment) -> Workload:
        """The container that holds a device; its pod's UID is known once one of its processes was seen."""
        name = ContainerName(assignment.namespace, assignment.pod, assignment.container)
        uids = (
            who.pod_uid
            for who in self._processes.alive.values()
            if self._names.get(who.container_id, ())[:2] == name[:2]
        )
        return Workload(name.namespace, name.pod, next(uids, ""), name.container)

    def _workload(self, who: Owner, pid: int) -> Workload:
        name = self._names.get(who.container_id) or ContainerName("", "", who.container_id[:SHORT_ID_CHARACTERS])
        return Workload(name.namespace, name.pod, who.pod_uid, name.container, pid, who.slurm_job)

    async def _call(self, report: Report, name: str, function: Callable[[], T]) -> T | None:
        """One call by name; None, reported, when it gives nothing."""
        result, problem = None, ""
        try:
            result = await self._looks.call(name, function)
        except (SourceStuck, OSError) as error:
            problem = str(error)
        self._tell_unobservable(report, name.replace(" ", "_"), problem)
        return result

    def _tell_unobservable(self, report: Report, what: str, problem: str) -> None:
        if phase := self._unobservable.update(what, bool(problem), confirm=CONFIRM_FAILURES):
            detail = problem or f"{what} can be read again"
            body = Observation(what, after=Unreadable(problem) if problem else "readable")
            report(Fact("workloads", "workloads_unobservable", detail, phase, body=body))


def _gpu_of(device_id: str) -> str:
    """The GPU's UUID in a device id: `GPU-…`, `GPU-…::3` when shared in time, `MIG-GPU-…/1/0` of old drivers. A newer MIG device's
    own UUID does not tell its GPU: empty."""
    whole = device_id.partition("::")[0].removeprefix("MIG-").partition("/")[0]
    return whole if whole.startswith("GPU-") else ""


def _legacy_mig(device_id: str) -> tuple[int, int | None] | None:
    parts = device_id.partition("::")[0].split("/")
    if len(parts) != 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        return None
    return int(parts[1]), int(parts[2])
