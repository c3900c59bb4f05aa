"""The PCI bus as sysfs shows it: GPUs, the ports above them, their links and error counters.

Reading a link's state reads the device's configuration space, which wakes a sleeping device or finds it dead. So a device that
is not awake is not read at all: its `power` attributes, which the kernel keeps in memory, are asked first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from node_agent.attributes import Attributes, Reading, names
from node_agent.evidence import Unreadable

_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")
_NVIDIA_VENDOR = "0x10de"
_DISPLAY_CLASS = "0x03"  # VGA and 3D controllers; NVSwitches, audio and USB functions have other classes
_AWAKE = {"runtime_status": ("active", "unsupported"), "power_state": ("D0", "unknown")}
_MOST_LANES = 32  # the largest width PCIe defines; 63 is what a dead device's all-ones read as, 255 "unknown"
_ALL_ONES_LANES = 63

AER_SEVERITIES = {"corrected": "aer_dev_correctable", "nonfatal": "aer_dev_nonfatal", "fatal": "aer_dev_fatal"}


@dataclass(frozen=True, slots=True)
class Device:
    """A PCI function. `ports` are the addresses of the bridges above it, nearest first; `driver` is empty when none is bound."""

    address: str
    path: Path
    ports: tuple[str, ...] = ()
    driver: str = ""
    virtual_function: bool = False

    def path_of(self, address: str) -> Path:
        """Where sysfs keeps this device, or one of the bridges above it."""
        return next(path for path in (self.path, *self.path.parents) if path.name == address)


@dataclass(frozen=True, slots=True)
class Link:
    """A PCIe link in lanes and GT/s; None where the device says nothing usable."""

    width: int | None = None
    width_max: int | None = None
    speed_gts: float | None = None
    speed_max_gts: float | None = None


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """What one look at a device gave. `aer` maps a severity of AER_SEVERITIES to counters by error name, totals included.
    `silent`: the device answered with all ones, as one does that is no longer there."""

    asleep: bool = False
    silent: bool = False
    link: Link | None = None
    aer: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    errors: tuple[str, ...] = ()


class Bus:
    """Finds the NVIDIA GPUs on the bus. What a device is, and where, is read once: that cannot change without its leaving."""

    def __init__(self, sysfs_root: Path, attributes: Attributes) -> None:
        self._entries = sysfs_root / "bus" / "pci" / "devices"
        self._attributes = attributes
        self._known: dict[str, Device | None] = {}  # None: no GPU

    def gpus(self) -> tuple[Device, ...] | None:
        """GPUs in order of address; None when the bus cannot be seen. Raises OSError."""
        try:
            present = sorted(names(self._entries))
        except FileNotFoundError:
            return None
        self._known = {name: self._known[name] if name in self._known else self._look(name) for name in present}
        return tuple(replace(gpu, driver=bound_driver(gpu.path)) for gpu in self._known.values() if gpu is not None)

    def _look(self, name: str) -> Device | None:
        vendor = self._attributes.read(f"{self._entries}/{name}/vendor")
        kind = self._attributes.read(f"{self._entries}/{name}/class")
        is_gpu = vendor == _NVIDIA_VENDOR and isinstance(kind, str) and kind.startswith(_DISPLAY_CLASS)
        return locate(self._entries / name) if is_gpu else None


def bound_driver(path: Path) -> str:
    """Name of the kernel driver that holds a device; empty when none does."""
    try:
        return Path(os.readlink(f"{path}/driver")).name  # noqa: PTH115  Path.readlink costs three times as much
    except OSError:
        return ""


def locate(entry: Path) -> Device:
    """The device behind a link such as `bus/pci/devices/ADDRESS` or `class/infiniband/NAME/device`."""
    path = Path(os.path.realpath(entry))
    ports = tuple(parent.name for parent in path.parents if _ADDRESS.fullmatch(parent.name))
    return Device(path.name, path, ports, bound_driver(path), os.path.lexists(f"{path}/physfn"))


def read_device(path: Path, attributes: Attributes) -> DeviceReading:
    """Look at a device, unless it sleeps."""
    if not _awake(path, attributes):
        return DeviceReading(asleep=True)
    width = attributes.number(f"{path}/current_link_width")
    width_max = attributes.number(f"{path}/max_link_width")
    speed = attributes.quantity(f"{path}/current_link_speed")
    speed_max = attributes.quantity(f"{path}/max_link_speed")
    counters = {severity: attributes.read(f"{path}/{name}") for severity, name in AER_SEVERITIES.items()}
    named = zip(
        ("current_link_width", "max_link_width", "current_link_speed", "max_link_speed", *AER_SEVERITIES.values()),
        (width, width_max, speed, speed_max, *counters.values()),
        strict=True,
    )
    return DeviceReading(
        silent=width == _ALL_ONES_LANES,
        link=None if width is None else Link(_lanes(width), _lanes(width_max), _speed(speed), _speed(speed_max)),
        aer={severity: _counters(text) for severity, text in counters.items() if isinstance(text, str)},
        errors=tuple(f"{name}: {reading.error}" for name, reading in named if isinstance(reading, Unreadable)),
    )


def normalise_address(text: str) -> str:
    """Any PCI address with a domain as `dddd:bb:dd.f` in lower case, for example from NVML's `00000000:3B:00.0`; what is none
    comes back in lower case."""
    domain, colon, rest = text.strip().lower().partition(":")
    return f"{domain.lstrip('0'):0>4}:{rest}" if colon else domain


def _awake(path: Path, attributes: Attributes) -> bool:
    runtime_status = attributes.read(f"{path}/power/runtime_status")
    power_state = attributes.read(f"{path}/power_state")
    return _says(runtime_status, _AWAKE["runtime_status"]) and _says(power_state, _AWAKE["power_state"])


def _says(reading: Reading, words: tuple[str, ...]) -> bool:
    return reading is None or reading in words


def _lanes(width: int | Unreadable | None) -> int | None:
    return width if isinstance(width, int) and 1 <= width <= _MOST_LANES else None


def _speed(speed: float | Unreadable | None) -> float | None:
    return None if isinstance(speed, Unreadable) else speed


def _counters(text: str) -> dict[str, int]:
    pairs = (line.rsplit(None, 1) for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
