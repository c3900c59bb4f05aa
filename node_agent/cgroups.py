"""Who a process belongs to, from the path of its control group: Kubernetes pod and container, or Slurm job.

The kubelet, container runtimes and slurmstepd name groups after pod UID, container id and job id; tenants cannot choose them. All
forms are read: cgroup v1 and v2, the systemd and cgroupfs drivers, containerd, CRI-O and Docker, nested and relative paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# `…-pod0f1e2d3c_4b5a_….slice` (systemd), `/pod0f1e2d3c-4b5a-…` (cgroupfs), `/pod0123…` (static pods: a bare hash)
_POD = re.compile(r"(?:^|[-/])pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[./:]|$)")
# `cri-containerd-ID.scope`, `crio-ID.scope`, `docker-ID.scope`, `/ID`, `:ID`
_CONTAINER = re.compile(r"(?:^|[-/:])([0-9a-f]{64})(?=[./]|$)")
# `/slurm/uid_1000/job_42/step_0` (v1), `/system.slice/slurmstepd.scope/job_42/step_0/user` (v2)
_SLURM_JOB = re.compile(r"/[^/]*slurm[^/]*/(?:[^/]+/)*?job_(\d+)(?=/|$)")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a process belongs to; empty where the path names none."""

    pod_uid: str = ""
    container_id: str = ""
    slurm_job: str = ""

    def __bool__(self) -> bool:
        return bool(self.pod_uid or self.container_id or self.slurm_job)


def owner(cgroup: str) -> Owner:
    """The owner that /proc/PID/cgroup names. Hierarchies may differ under v1: the first that names one counts, for each name."""
    pod_uid = container_id = slurm_job = ""
    for line in cgroup.splitlines():
        path = line.partition(":")[2].partition(":")[2]
        pod = _POD.search(path)
        pod_uid = pod_uid or (pod[1].replace("_", "-") if pod else "")
        container = _CONTAINER.search(path, pod.end() if pod else 0)
        container_id = container_id or (container[1] if container else "")
        job = _SLURM_JOB.search(path)
        slurm_job = slurm_job or (job[1] if job else "")
    return Owner(pod_uid, container_id, slurm_job)
