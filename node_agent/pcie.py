"""What readings of the PCI bus mean: links that lost lanes, devices that no longer answer, errors counted, GPUs that only one of
the bus and NVML sees.

Width is judged, speed is not: an idle link runs slower on purpose.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from node_agent.evidence import Fact, Gpu, Observation, Phase, Value
from node_agent.pci import Device, DeviceReading, Link
from node_agent.states import Rises, States

CONFIRM_READINGS = 2  # a link retrains and a GPU is reset between two readings, not across them
WINDOW_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Narrow:
    """A link with fewer lanes than both its ends offer."""

    width: int
    width_possible: int
    words: str


def narrow(link: Link | None, port: Link | None) -> Narrow | bool | None:
    """Whether a link lacks lanes, False when not, None when that cannot be judged.

    What is possible is the lesser of both ends. A port that claims fewer lanes than are in use is virtual and says nothing.
    """
    if link is None or link.width is None or link.width_max is None:
        return None
    possible = link.width_max
    if port is not None and port.width_max is not None and port.width_max >= link.width:
        possible = min(possible, port.width_max)
    if link.width >= possible:
        return False
    return Narrow(link.width, possible, f"runs with {link.width} of {possible} PCIe lanes")


def link_values(reading: DeviceReading) -> dict[str, Value]:
    """A device's link as state, by name with unit."""
    if reading.asleep:
        return {"pci_power": "asleep"}
    link = reading.link or Link()
    values: dict[str, Value] = {
        "pcie_link_width_lanes": link.width,
        "pcie_link_width_max_lanes": link.width_max,
        "pcie_link_speed_gts": link.speed_gts,
        "pcie_link_speed_max_gts": link.speed_max_gts,
    }
    totals = {severity: _total(counters) for severity, counters in reading.aer.items()}
    values.update({f"aer_{severity}_total": total for severity, total in totals.items()})
    return {name: value for name, value in values.items() if value is not None}


class GpuLinks:
    """Judges GPUs' links and whether they answer."""

    def __init__(self) -> None:
        self._narrow: States[str] = States()
        self._silent: States[str] = States()

    def judge(self, device: Device, reading: DeviceReading, port: DeviceReading | None) -> Iterator[Fact]:
        """Facts of one look at a GPU and the port above it. A sleeping GPU's states stay as they were."""
        if reading.asleep:
            return
        gpu = Gpu(pci=device.address)
        if phase := self._silent.update(device.address, reading.silent, confirm=CONFIRM_READINGS):
            words = "answers with all ones: it is no longer there" if phase is Phase.BEGAN else "answers again"
            body = Observation("pci_config_space", after="all ones" if phase is Phase.BEGAN else "answers")
            yield Fact("sysfs", "gpu_fallen_off_bus", f"GPU {device.address} {words}", phase, gpu, body=body)
        found = narrow(reading.link, port.link if port else None)
        lacking = None if found is None else bool(found)
        if phase := self._narrow.update(device.address, lacking, confirm=CONFIRM_READINGS):
            yield _link_fact(
                "pcie_gpu_degraded", f"GPU {device.address}", "pcie_link_width_lanes", found, reading, phase, gpu
            )


class NicLinks:
    """Judges network adapters' links."""

    def __init__(self) -> None:
        self._narrow: States[str] = States()

    def judge(self, name: str, device: Device, reading: DeviceReading) -> Iterator[Fact]:
        """Facts of one look at an adapter. Its port is not asked: adapters sit in slots made for them."""
        found = narrow(reading.link, None)
        lacking = None if found is None else bool(found)
        if phase := self._narrow.update(name, lacking, confirm=CONFIRM_READINGS):
            field = f"infiniband_{name}_pcie_link_width_lanes"
            yield _link_fact("nic_pcie_degraded", f"NIC {name} at {device.address}", field, found, reading, phase, None)


class AerCounters:
    """Turns AER counters into facts: uncorrectable errors at every rise, corrected ones at tenfold steps within an hour."""

    def __init__(self) -> None:
        self._corrected: Rises[str] = Rises(WINDOW_SECONDS)
        self._uncorrectable: Rises[tuple[str, str]] = Rises()

    def judge(self, address: str, reading: DeviceReading, gpus: Collection[str]) -> Iterator[Fact]:
        """Facts for errors counted at one device; `gpus` are the addresses of the GPUs that are it or sit below it."""
        now = time.monotonic()
        for severity, counters in reading.aer.items():
            total = _total(counters)
            if total is None:
                continue
            if severity == "corrected":
                rise = self._corrected.update(address, total, now)
            else:
                rise = self._uncorrectable.update((address, severity), total, now)
            if rise is not None:
                kept = ", ".join(f"{name} {count}" for name, count in counters.items() if count and "TOTAL" not in name)
                yield Fact(
                    source="sysfs",
                    kind=f"pcie_aer_{severity}",
                    detail=f"{address}: {rise.after - rise.before} {severity} PCIe errors more; since boot: {kept or total}",
                    gpu=Gpu(pci=next(iter(gpus))) if len(gpus) == 1 else None,
                    body=Observation(
                        f"pci_{address}_aer_{severity}_total", rise.before, rise.after, counter_reset=rise.reset
                    ),
                )


class Presence:
    """Compares the GPUs on the bus with those that NVML offers."""

    def __init__(self) -> None:
        self._not_in_nvml: States[str] = States()
        self._not_on_bus: States[str] = States()

    def judge(self, devices: Collection[Device], nvml: Collection[str] | None) -> Iterator[Fact]:
        """Facts for GPUs that only one of the two sees. Nothing is judged while NVML does not answer. GPUs that another driver
        holds (vfio-pci for a virtual machine) and virtual functions are not NVML's."""
        if nvml is None:
            return
        ours = {device.address for device in devices if device.driver in ("", "nvidia") and not device.virtual_function}
        unbound = {device.address for device in devices if not device.driver}
        for address, phase in self._not_in_nvml.sweep(sorted(ours - set(nvml)), confirm=CONFIRM_READINGS):
            why = " (no driver is bound to it)" if address in unbound else ""
            words = (
                f"is on the PCI bus but NVML does not see it{why}"
                if phase is Phase.BEGAN
                else "is seen by NVML or gone"
            )
            yield _presence_fact("gpu_not_in_nvml", address, words, phase)
        on_bus = {device.address for device in devices}
        for address, phase in self._not_on_bus.sweep(sorted(set(nvml) - on_bus), confirm=CONFIRM_READINGS):
            words = (
                "is known to NVML but not on the PCI bus"
                if phase is Phase.BEGAN
                else "is on the PCI bus or gone from NVML"
            )
            yield _presence_fact("gpu_not_on_bus", address, words, phase)


def _presence_fact(kind: str, address: str, words: str, phase: Phase) -> Fact:
    body = Observation(kind, after=phase is Phase.BEGAN)
    return Fact("sysfs", kind, f"GPU {address} {words}", phase, Gpu(pci=address), body=body)


def _link_fact(
    kind: str,
    subject: str,
    field: str,
    found: Narrow | bool | None,
    reading: DeviceReading,
    phase: Phase,
    gpu: Gpu | None,
) -> Fact:
    link = reading.link or Link()
    limit = found.width_possible if isinstance(found, Narrow) else link.width_max
    words = found.words if isinstance(found, Narrow) else f"runs with all its PCIe lanes again ({link.width})"
    speed = f", {link.speed_gts:g} of {link.speed_max_gts:g} GT/s" if link.speed_gts and link.speed_max_gts else ""
    return Fact(
        "sysfs", kind, f"{subject} {words}{speed}", phase, gpu, body=Observation(field, None, link.width, limit)
    )


def _total(counters: Mapping[str, int]) -> int | None:
    """The kernel's own total of one severity; the sum where an old kernel prints none; None when there are no counters."""
    totals = [count for name, count in counters.items() if name.startswith("TOTAL_ERR")]
    return totals[0] if totals else sum(counters.values()) if counters else None
