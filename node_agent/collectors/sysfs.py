"""sysfs and /proc: what the bus, the memory controllers, the adapters and the task list say of the node, each from outside NVML.

Nothing here may wake a sleeping device, write to the kernel log or block the agent. Each device is a source of its own
(`deadline.Sources`): one that does not return is reported as `sysfs_read_stuck` and left alone until it does, and its neighbours
are read on. On other subjects than a GPU, a state is told apart by its observation's field.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from node_agent.attributes import Attributes
from node_agent.collectors import CollectorAbsent
from node_agent.deadline import Sources, SourceStuck
from node_agent.edac import MemoryErrors, read_controllers
from node_agent.evidence import Fact, Gpu, Observation, Phase, Report, Unreadable, Value, Workload
from node_agent.infiniband import Ports, adapter_names, read_adapter
from node_agent.pci import Bus, Device, DeviceReading, read_device
from node_agent.pcie import AerCounters, GpuLinks, NicLinks, Presence, link_values
from node_agent.proc import TaskScan, driver_version, scan_tasks
from node_agent.states import States
from node_agent.stuck_tasks import StuckTasks, places

T = TypeVar("T")

CONFIRM_UNREADABLE = 2
MAX_TASK_SCAN_SHARE = (
    0.001  # of one core: on nodes with tens of thousands of threads scans grow rarer instead of dearer
)


class SysfsCollector:
    """Watches the node's buses, memory, adapters and tasks.

    `nvml_gpus` gives the PCI addresses that NVML offers now, None while that is unknown, simulated or yielded. `workloads_of_pid`
    names who a stuck process belongs to. Intervals and the deadline of one read are in seconds.

    `values`, `gpu_values` (by PCI address), `pci_gpus` and `driver_version` are the present state, for snapshots.
    """

    name = "sysfs"

    def __init__(
        self,
        sysfs_root: Path,
        proc_root: Path,
        nvml_gpus: Callable[[], frozenset[str] | None],
        *,
        workloads_of_pid: Callable[[int], tuple[Workload, ...]] = lambda _pid: (),
        interval_seconds: float = 10.0,
        task_interval_seconds: float = 30.0,
        deadline_seconds: float = 2.0,
    ) -> None:
        self._sysfs_root, self._proc_root = sysfs_root, proc_root
        self._nvml_gpus, self._workloads_of_pid = nvml_gpus, workloads_of_pid
        self._interval_seconds, self._task_interval_seconds = interval_seconds, task_interval_seconds
        self._attributes = Attributes()
        self._bus = Bus(sysfs_root, self._attributes)
        self._sources = Sources(deadline_seconds)
        self._stuck: States[str] = States()
        self._unreadable: States[str] = States()
        self._gpu_links, self._nic_links, self._aer, self._presence = GpuLinks(), NicLinks(), AerCounters(), Presence()
        self._memory, self._ports, self._tasks = MemoryErrors(), Ports(), StuckTasks()
        self._known: dict[str, str] = {}
        self.values: dict[str, Value] = {}
        self.gpu_values: dict[str, dict[str, Value]] = {}
        self.pci_gpus: tuple[str, ...] = ()
        self.driver_version = ""

    async def collect(self, report: Report) -> None:
        """Look at devices and at tasks, each at its own pace. Raises CollectorAbsent where neither tree is mounted."""
        if not (self._sysfs_root / "bus").is_dir() and not (self._proc_root / "sys").is_dir():
            raise CollectorAbsent(f"neither sysfs at {self._sysfs_root} nor procfs at {self._proc_root}")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_devices(report))
            group.create_task(self._watch_tasks(report))

    async def _watch_devices(self, report: Report) -> None:
        while True:
            await self._look_at_node(report)
            await asyncio.sleep(self._interval_seconds)

    async def _watch_tasks(self, report: Report) -> None:
        while True:
            scan = await self._read_one(report, "tasks", partial(scan_tasks, self._proc_root))
            if scan is not None:
                await self._judge_tasks(report, scan)
            cost = scan.cpu_seconds if scan is not None else 0.0
            await asyncio.sleep(max(self._task_interval_seconds, cost / MAX_TASK_SCAN_SHARE))

    async def _judge_tasks(self, report: Report, scan: TaskScan) -> None:
        lasting = self._tasks.lasting(scan.tasks)
        found = (
            await self._read_one(report, "task stacks", partial(places, self._proc_root, lasting)) if lasting else {}
        )
        _tell(report, self._tasks.judge(lasting, found, self._workloads_of_pid))

    async def _look_at_node(self, report: Report) -> None:
        calls: dict[str, Callable[[], Any]] = {
            "pci bus": self._bus.gpus,
            "infiniband": partial(adapter_names, self._sysfs_root),
            "edac": partial(read_controllers, self._sysfs_root, self._attributes),
            "driver version": partial(driver_version, self._sysfs_root, self._proc_root),
        }
        found = await self._read(report, calls)
        if found.get("pci bus") is not None:
            await self._look_at_gpus(report, found["pci bus"])
        await self._look_at_adapters(report, found.get("infiniband", ()))
        for controller in found.get("edac", ()):
            self._tell_unreadable(report, f"edac {controller.name}", controller.errors)
            _tell(report, self._memory.judge(controller))
        if "driver version" in found:
            self.driver_version = found["driver version"]
            self._tell_change(report, "driver_version", self.driver_version)

    async def _look_at_gpus(self, report: Report, devices: Collection[Device]) -> None:
        _tell(report, self._presence.judge(devices, self._nvml_gpus()))
        self.pci_gpus = tuple(device.address for device in devices)
        self._tell_change(report, "pci_gpus", " ".join(self.pci_gpus))
        readings = await self._read_devices(report, devices)
        for device in devices:
            if reading := readings.get(device.address):
                port = readings.get(device.ports[0]) if device.ports else None
                _tell(report, self._gpu_links.judge(device, reading, port))
        self.gpu_values = {address: link_values(readings[address]) for address in self.pci_gpus if address in readings}

    async def _read_devices(self, report: Report, devices: Collection[Device]) -> dict[str, DeviceReading]:
        """GPUs and the ports above them by address, each once, with their error counters judged."""
        below: dict[str, list[str]] = {}
        calls: dict[str, Callable[[], DeviceReading]] = {}
        for device in devices:
            for address in (device.address, *device.ports):
                below.setdefault(address, []).append(device.address)
                calls[f"pci {address}"] = partial(read_device, device.path_of(address), self._attributes)
        readings = {}
        for name, reading in (await self._read(report, calls)).items():
            address = name.removeprefix("pci ")
            readings[address] = reading
            self._tell_unreadable(report, name, reading.errors)
            _tell(report, self._aer.judge(address, reading, below[address]))
        return readings

    async def _look_at_adapters(self, report: Report, names: Collection[str]) -> None:
        looks = {
            f"infiniband {name}": partial(read_adapter, self._sysfs_root, name, self._attributes) for name in names
        }
        adapters = await self._read(report, looks)
        for name, adapter in adapters.items():
            self._tell_unreadable(report, name, adapter.errors)
            _tell(report, self._nic_links.judge(adapter.name, adapter.device, adapter.pci))
            _tell(report, self._ports.judge(adapter))
        self.values = {name: value for adapter in adapters.values() for name, value in adapter.values().items()}

    async def _read(self, report: Report, calls: Mapping[str, Callable[[], T]]) -> dict[str, T]:
        """Call each; what hung or failed is reported and left out."""
        results: dict[str, T] = {}
        for name, outcome in (await self._sources.call_each(calls)).items():
            stuck = isinstance(outcome, SourceStuck)
            if phase := self._stuck.update(name, stuck):
                words = str(outcome) if stuck else f"reading {name} returns again"
                report(self._unobserved("sysfs_read_stuck", name, words, phase))
            if isinstance(outcome, OSError):
                self._tell_unreadable(report, f"{name} itself", (str(outcome),))
            elif isinstance(outcome, Exception):
                if not stuck:
                    raise outcome
            else:
                self._tell_unreadable(report, f"{name} itself", ())
                results[name] = outcome
        return results

    async def _read_one(self, report: Report, name: str, function: Callable[[], T]) -> T | None:
        return (await self._read(report, {name: function})).get(name)

    def _tell_unreadable(self, report: Report, name: str, errors: Collection[str]) -> None:
        if phase := self._unreadable.update(name, bool(errors), confirm=CONFIRM_UNREADABLE):
            words = f"cannot read {name}: {'; '.join(errors)}" if errors else f"{name} can be read again"
            report(self._unobserved("sysfs_unreadable", name, words, phase))

    def _unobserved(self, kind: str, name: str, detail: str, phase: Phase) -> Fact:
        """A fact about the watching, with the GPU where the source is one."""
        address = name.removesuffix(" itself").removeprefix("pci ")
        gpu = Gpu(pci=address) if address in self.pci_gpus else None
        body = Observation(
            f"read_{name.replace(' ', '_')}", after=Unreadable(detail) if phase is Phase.BEGAN else "readable"
        )
        return Fact("sysfs", kind, detail, phase, gpu, body=body)

    def _tell_change(self, report: Report, name: str, value: str) -> None:
        before = self._known.get(name)
        self._known[name] = value
        if before is not None and before != value:
            words = f"{name} changed from {before or 'none'} to {value or 'none'}"
            report(Fact("sysfs", "inventory_changed", words, body=Observation(name, before, value)))


def _tell(report: Report, facts: Iterable[Fact]) -> None:
    for fact in facts:
        report(fact)
