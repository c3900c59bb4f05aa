"""All collectors of one agent, and what they give each other: who held a GPU goes into facts about it, the links' and DCGM's values
go into snapshots. Collectors know nothing of each other; they meet here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from node_agent.collectors import Collector, CollectorAbsent
from node_agent.collectors.dcgm import DcgmCollector
from node_agent.collectors.sysfs import SysfsCollector
from node_agent.collectors.workloads import WorkloadsCollector
from node_agent.evidence import Fact, GpuState, Inventory, Snapshot
from node_agent.query_socket import Driver


class GpuReader(Driver, Collector, Protocol):
    """The collector that reads the GPUs through the driver, and can let go of it."""

    @property
    def deadline_misses(self) -> int:
        """Driver calls that overran their deadline since the agent started."""
        ...

    async def snapshot(self, timeout_seconds: float) -> Snapshot:
        """A fresh reading; raises when there is none in time."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """The collectors. `gpus` is None when the agent was told to leave the driver alone."""

    gpus: GpuReader | None
    sysfs: SysfsCollector
    dcgm: DcgmCollector
    workloads: WorkloadsCollector
    kernel: Sequence[Collector]

    @property
    def collectors(self) -> tuple[Collector, ...]:
        """Every collector, for the supervisor."""
        gpus = () if self.gpus is None else (self.gpus,)
        return (*self.kernel, *gpus, self.sysfs, self.dcgm, self.workloads)

    async def read_gpus(self, timeout_seconds: float) -> Snapshot:
        """A fresh reading. Raises what the GPU collector raises, and CollectorAbsent when there is none."""
        if self.gpus is None:
            raise CollectorAbsent("this agent reads no GPUs (GCM_SENTINEL_NVML=off)")
        return await self.gpus.snapshot(timeout_seconds)

    def name_holders(self, fact: Fact) -> Fact:
        """The fact with who holds its GPU, where its collector did not know."""
        if fact.gpu is None or not fact.gpu.uuid or fact.workloads:
            return fact
        return replace(fact, workloads=self.workloads.workloads_of_gpu(fact.gpu.uuid))

    def complete(self, snapshot: Snapshot, states: Mapping[str, str]) -> Snapshot:
        """The driver's reading with what the other collectors know, and with how all of them stand."""
        return replace(
            snapshot,
            inventory=self._complete_inventory(snapshot.inventory),
            gpus=tuple(self._complete_gpu(state) for state in snapshot.gpus),
            values={**self.sysfs.values, **snapshot.values},
            collectors=dict(states),
        )

    def _complete_inventory(self, inventory: Inventory) -> Inventory:
        return replace(
            inventory,
            pci_gpus=inventory.pci_gpus or self.sysfs.pci_gpus,
            driver_version=inventory.driver_version or self.sysfs.driver_version,
        )

    def _complete_gpu(self, state: GpuState) -> GpuState:
        dcgm = {f"dcgm_{name}": value for name, value in self.dcgm.gpu_values.get(state.gpu.uuid, {}).items()}
        return replace(state, values={**self.sysfs.gpu_values.get(state.gpu.pci, {}), **dcgm, **state.values})
