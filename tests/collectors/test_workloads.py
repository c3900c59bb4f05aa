"""workloads: who holds a GPU, and who a process was, from a kubelet-shaped server and real cgroup files."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from node_agent.cgroups import Owner, owner
from node_agent.collectors import CollectorAbsent
from node_agent.collectors.workloads import WorkloadsCollector
from node_agent.evidence import Gpu, Observation, Phase, Workload
from tests.collectors.kubelet_double import Kubelet
from tests.collectors.node_tree import block, release, write
from tests.collectors.watching import Facts, never_blocked, until, watching

POD = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
STATIC_POD = "0123456789abcdef0123456789abcdef"
CONTAINER = "c0ffee" + "0" * 58
POD_OWNER = Owner(POD, CONTAINER)
GPU = "GPU-aaaaaaaa-0000-0000-0000-000000000000"
TRAINER = Workload("ml", "trainer-0", POD, "main", 4242)


class Machine:
    """A kubelet, its container links, and processes."""

    def __init__(self, root: Path) -> None:
        self.proc, self.logs = root / "proc", root / "containers"
        self.proc.mkdir()
        self.logs.mkdir()
        self.kubelet = Kubelet(root / "kubelet.sock", root)
        self.run(1, "0::/init.scope")

    def collector(self, deadline_seconds: float = 5.0) -> WorkloadsCollector:
        return WorkloadsCollector(
            self.kubelet.socket,
            self.proc,
            container_logs=self.logs,
            interval_seconds=0.01,
            deadline_seconds=deadline_seconds,
        )

    def run(self, pid: int, cgroup: str) -> None:
        write(self.proc / str(pid) / "cgroup", cgroup)

    def run_trainer(self) -> None:
        (self.logs / f"trainer-0_ml_main-{CONTAINER}.log").symlink_to("nowhere")
        self.run(4242, f"0::/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{CONTAINER}.scope")

    def end(self, pid: int) -> None:
        (self.proc / str(pid)).rename(self.proc / f"dead-{pid}")

    async def cycles(self, number: int) -> None:
        goal = self.kubelet.calls + number + 1
        await until(lambda: self.kubelet.calls >= goal, "cycles")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<U_D>.slice/cri-containerd-<ID>.scope",
            POD_OWNER,
        ),
        ("0::/kubepods.slice/kubepods-pod<U_D>.slice/crio-<ID>.scope/container", POD_OWNER),
        ("0::/../../kubepods-besteffort-pod<U_D>.slice/docker-<ID>.scope", POD_OWNER),
        (
            "12:pids:/\n11:memory:/kubepods/burstable/pod<U-D>/<ID>\n1:name=systemd:/kubepods/burstable/pod<U-D>/<ID>",
            POD_OWNER,
        ),
        (
            "4:cpu,cpuacct:/system.slice/containerd.service/kubepods-burstable-pod<U_D>.slice:cri-containerd:<ID>",
            POD_OWNER,
        ),
        (
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod<U_D>.slice/cri-containerd-<ID>.scope",
            POD_OWNER,
        ),
        (f"0::/kubepods/pod{STATIC_POD}/<ID>", Owner(STATIC_POD, CONTAINER)),
        (f"0::/kubepods/pod<U-D>/<ID>/{'d' * 64}", POD_OWNER),
        ("0::/kubepods/pod<U-D>", Owner(POD)),
        ("0::/system.slice/docker-<ID>.scope", Owner("", CONTAINER)),
        ("5:devices:/docker/<ID>", Owner("", CONTAINER)),
        ("0::/system.slice/slurmstepd.scope/job_1234/step_0/user/task_0", Owner(slurm_job="1234")),
        ("0::/system.slice/node7_slurmstepd.scope/job_9/step_batch/slurm", Owner(slurm_job="9")),
        (
            "9:memory:/slurm/uid_1000/job_77/step_0/task_0\n1:name=systemd:/system.slice/slurmd.service",
            Owner(slurm_job="77"),
        ),
        ("9:memory:/slurm_node7/uid_1000/job_77/step_0", Owner(slurm_job="77")),
        ("0::/user.slice/user-1000.slice/session-3.scope", Owner()),
        ("0::/user.slice/job_12/podcast", Owner()),
        ("nonsense", Owner()),
        ("", Owner()),
    ],
)
def test_the_control_group_names_pod_container_and_job(path: str, expected: Owner) -> None:
    assert (
        owner(path.replace("<U_D>", POD.replace("-", "_")).replace("<U-D>", POD).replace("<ID>", CONTAINER)) == expected
    )


async def test_a_container_that_is_given_gpus_is_told_until_it_gives_them_back(machine: Machine) -> None:
    collector = machine.collector()
    async with machine.kubelet.serving(), watching(collector) as facts:
        await machine.cycles(3)
        assert facts.all == []
        machine.run_trainer()
        await machine.cycles(2)
        machine.kubelet.devices[("ml", "trainer-0", "main")] = {
            "nvidia.com/gpu": [GPU, "GPU-b"],
            "rdma/hca": ["mlx5_0"],
        }
        began = await facts.first("gpu_assigned", Phase.BEGAN, count=2)
        await machine.cycles(3)
        assert collector.workloads_of_gpu(GPU) == (Workload("ml", "trainer-0", POD, "main"),)
        machine.kubelet.devices.clear()
        await facts.first("gpu_assigned", Phase.ENDED, count=2)
        await machine.cycles(3)
        assert len(facts.all) == 4
    assert facts.all[0].gpu == Gpu(uuid=GPU)
    assert facts.all[0].body == Observation(f"holder_of_{GPU}", after="ml/trainer-0/main")
    assert began.workloads == (Workload("ml", "trainer-0", POD, "main"),)
    assert collector.workloads_of_gpu(GPU) == ()


@pytest.mark.parametrize(
    ("device_id", "gpu", "mig"),
    [
        (f"{GPU}::3", Gpu(uuid=GPU), None),
        (f"MIG-{GPU}/1/0", Gpu(uuid=GPU), (1, 0)),
        ("MIG-22222222-0000-0000-0000-000000000000", None, None),
    ],
)
async def test_shared_gpus_and_mig_devices_keep_their_names(
    device_id: str, gpu: Gpu | None, mig: tuple[int, int] | None, machine: Machine
) -> None:
    machine.kubelet.devices[("ml", "a", "main")] = {"nvidia.com/mig-1g.10gb": [device_id]}
    async with machine.kubelet.serving(), watching(machine.collector()) as facts:
        fact = await facts.first("gpu_assigned")
    assert (fact.gpu, fact.mig) == (gpu, mig)
    assert device_id in fact.detail


async def test_a_kubelet_that_fails_is_told_and_nobody_is_said_to_have_given_anything_back(machine: Machine) -> None:
    machine.kubelet.devices[("ml", "a", "main")] = {"nvidia.com/gpu": [GPU]}
    collector = machine.collector()
    async with machine.kubelet.serving(), watching(collector) as facts:
        await facts.first("gpu_assigned", Phase.BEGAN)
        machine.kubelet.failure = grpc.StatusCode.UNAVAILABLE
        began = await facts.first("workloads_unobservable", Phase.BEGAN)
        assert collector.workloads_of_gpu(GPU) == (Workload("ml", "a", "", "main"),)
        machine.kubelet.failure = None
        await facts.first("workloads_unobservable", Phase.ENDED)
        await machine.cycles(3)
        assert len(facts.all) == 3
    assert "UNAVAILABLE: not now" in began.detail


async def test_a_kubelet_that_restarts_on_its_socket_is_found_again(machine: Machine) -> None:
    async with AsyncExitStack() as watch:
        async with machine.kubelet.serving():
            facts = await watch.enter_async_context(watching(machine.collector()))
            await machine.cycles(2)
        await facts.first("workloads_unobservable", Phase.BEGAN)
        machine.kubelet.devices[("ml", "a", "main")] = {"nvidia.com/gpu": [GPU]}
        async with machine.kubelet.serving():
            await facts.first("workloads_unobservable", Phase.ENDED)
            await facts.first("gpu_assigned")


async def test_without_a_kubelet_the_collector_is_absent_and_jobs_are_still_known(machine: Machine) -> None:
    collector = machine.collector()
    machine.run(77, "0::/system.slice/slurmstepd.scope/job_1234/step_0/user/task_0")
    with pytest.raises(CollectorAbsent, match=r"kubelet\.sock"):
        await collector.collect(Facts().report)
    machine.end(77)
    assert collector.workloads_of_pid(77) == (Workload(pid=77, slurm_job="1234"),)


async def test_a_process_is_named_while_it_lives_and_after_it_and_its_pod_are_gone(machine: Machine) -> None:
    collector = machine.collector()
    machine.run_trainer()
    async with machine.kubelet.serving(), watching(collector) as facts:
        await machine.cycles(2)
        assert collector.workloads_of_pid(4242) == (TRAINER,)
        machine.end(4242)
        (machine.logs / f"trainer-0_ml_main-{CONTAINER}.log").unlink()
        await machine.cycles(3)
        assert collector.workloads_of_pid(4242) == (TRAINER,)
        assert facts.all == []


async def test_a_new_process_is_known_at_once_and_a_reused_id_is_the_new_process(machine: Machine) -> None:
    collector = machine.collector()
    machine.run_trainer()
    assert collector.workloads_of_pid(4242) == (
        Workload("", "", POD, CONTAINER[:12], 4242),
    )  # names come with the next look
    machine.run(4242, "0::/system.slice/slurmstepd.scope/job_5/step_0")
    assert collector.workloads_of_pid(4242) == (Workload(pid=4242, slurm_job="5"),)
    machine.end(4242)
    assert collector.workloads_of_pid(4242) == (Workload(pid=4242, slurm_job="5"),)


@pytest.mark.parametrize("pid", [1, 0, -1, 99999, 2**40])
def test_a_process_of_nobody_has_no_workload(pid: int, machine: Machine) -> None:
    assert machine.collector().workloads_of_pid(pid) == ()


async def test_a_process_whose_cgroup_cannot_be_read_in_time_costs_a_moment_once(machine: Machine) -> None:
    collector = machine.collector()
    machine.run_trainer()
    async with machine.kubelet.serving(), watching(collector):
        await machine.cycles(2)
        blocked = machine.proc / "4242/cgroup"
        text = blocked.read_text()
        block(blocked)
        began = time.monotonic()
        for _ in range(50):
            assert collector.workloads_of_pid(4242) == (TRAINER,)  # as remembered
        assert time.monotonic() - began < 2
        release(blocked, text)
        assert collector.workloads_of_pid(4242) == (TRAINER,)


async def test_a_look_at_processes_that_hangs_is_told_and_the_kubelet_is_asked_on(machine: Machine) -> None:
    collector = machine.collector(deadline_seconds=0.2)
    async with machine.kubelet.serving(), watching(collector) as facts, never_blocked():
        await machine.cycles(2)
        machine.run_trainer()
        blocked = machine.proc / "5000/cgroup"
        blocked.parent.mkdir()
        block(blocked)
        assert "process cgroups" in (await facts.first("workloads_unobservable", Phase.BEGAN)).detail
        machine.kubelet.devices[("ml", "trainer-0", "main")] = {"nvidia.com/gpu": [GPU]}
        await facts.first("gpu_assigned")
        release(blocked, "0::/")
        await facts.first("workloads_unobservable", Phase.ENDED)


async def test_a_kubelet_that_hangs_is_told(machine: Machine) -> None:
    collector = machine.collector(deadline_seconds=0.2)
    async with machine.kubelet.serving(), watching(collector) as facts, never_blocked():
        await machine.cycles(2)
        machine.kubelet.ready.clear()
        began = await facts.first("workloads_unobservable", Phase.BEGAN)
        machine.kubelet.ready.set()
        await facts.first("workloads_unobservable", Phase.ENDED)
    assert "DEADLINE_EXCEEDED" in began.detail
