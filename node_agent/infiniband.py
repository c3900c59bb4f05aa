"""InfiniBand and RoCE adapters as sysfs shows them: port state, error counters, and where the adapter sits on the PCI bus.

Virtual functions' counters are not read: their firmware refuses, and the driver logs each refusal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from node_agent.attributes import Attributes, children
from node_agent.evidence import Fact, Observation, Phase, Unreadable, Value
from node_agent.pci import Device, DeviceReading, locate, read_device
from node_agent.states import Rises, States

WINDOW_SECONDS = 3600.0
CONFIRM_READINGS = 2  # a port that retrains between two readings is counted by link_downed or link_error_recovery

EACH_RISE = ("link_downed",)
TENFOLD_STEPS = (
    "symbol_error",
    "link_error_recovery",
    "local_link_integrity_errors",
    "excessive_buffer_overrun_errors",
    "port_rcv_errors",
    "port_rcv_remote_physical_errors",
)


@dataclass(frozen=True, slots=True)
class Port:
    """One port; a state such as ACTIVE or LinkUp is empty when it cannot be read."""

    number: str
    state: str
    physical_state: str
    rate: str = ""
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter with its ports; no ports while it sleeps."""

    name: str
    device: Device
    pci: DeviceReading
    ports: tuple[Port, ...] = ()
    errors: tuple[str, ...] = ()

    def values(self) -> dict[str, Value]:
        """The ports as state, by name with unit."""
        named = ((f"infiniband_{self.name}_{port.number}", port) for port in self.ports)
        pairs = (
            (f"{name}_{what}", getattr(port, what))
            for name, port in named
            for what in ("state", "physical_state", "rate")
        )
        return {name: text for name, text in pairs if text}


def adapter_names(sysfs_root: Path) -> tuple[str, ...]:
    """Adapters that the kernel knows."""
    return children(sysfs_root / "class" / "infiniband")


def read_adapter(sysfs_root: Path, name: str, attributes: Attributes) -> Adapter:
    """Look at one adapter, unless it sleeps. Each state read asks the adapter's firmware and may hang with it."""
    path = sysfs_root / "class" / "infiniband" / name
    device = locate(path / "device")
    pci = read_device(device.path, attributes)
    if pci.asleep:
        return Adapter(name, device, pci)
    errors: list[str] = list(pci.errors)
    ports = tuple(
        _port(path / "ports" / number, attributes, errors, counted=not device.virtual_function)
        for number in children(path / "ports")
    )
    return Adapter(name, device, pci, ports, tuple(errors))


class Ports:
    """Turns readings of ports into facts. A port that was never active may have no cable: only one that was can go down."""

    def __init__(self) -> None:
        self._were_active: set[str] = set()
        self._down: States[str] = States()
        self._each: Rises[str] = Rises()
        self._steps: Rises[str] = Rises(WINDOW_SECONDS)

    def judge(self, adapter: Adapter) -> Iterator[Fact]:
        """Facts for ports that went down or came back, and for error counters that rose."""
        for port in adapter.ports:
            name = f"{adapter.name}/{port.number}"
            yield from self._judge_state(name, port)
            yield from self._judge_counters(name, port)

    def _judge_state(self, name: str, port: Port) -> Iterator[Fact]:
        if port.state == "ACTIVE":
            self._were_active.add(name)
        down = port.state != "ACTIVE" and name in self._were_active if port.state else None
        if phase := self._down.update(name, down, confirm=CONFIRM_READINGS):
            words = f"{port.state}, {port.physical_state}"
            before = "ACTIVE" if phase is Phase.BEGAN else "not ACTIVE"
            yield _fact(name, f"port {name} is {words}", Observation(_field(name, "state"), before, words), phase)

    def _judge_counters(self, name: str, port: Port) -> Iterator[Fact]:
        for counter, value in port.counters.items():
            rises = self._each if counter in EACH_RISE else self._steps
            if rise := rises.update(f"{name}/{counter}", value, time.monotonic()):
                observation = Observation(
                    _field(name, f"{counter}_total"), rise.before, rise.after, counter_reset=rise.reset
                )
                yield _fact(
                    name, f"port {name}: {counter} rose by {rise.after - rise.before}", observation, Phase.POINT
                )


def _fact(name: str, detail: str, observation: Observation, phase: Phase) -> Fact:
    return Fact(source="sysfs", kind="nic_event", detail=detail, body=observation, phase=phase)


def _field(port: str, what: str) -> str:
    return f"infiniband_{port.replace('/', '_')}_{what}"


def _port(path: Path, attributes: Attributes, errors: list[str], *, counted: bool) -> Port:
    readings = {name: attributes.read(f"{path}/{name}") for name in ("state", "phys_state", "rate")}
    counters = {name: attributes.number(f"{path}/counters/{name}") for name in (*EACH_RISE, *TENFOLD_STEPS) if counted}
    errors.extend(
        f"port {path.name} {name}: {reading.error}"
        for name, reading in (*readings.items(), *counters.items())
        if isinstance(reading, Unreadable)
    )
    state, physical_state, rate = (text if isinstance(text, str) else "" for text in readings.values())
    return Port(
        number=path.name,
        state=state.partition(": ")[2],  # as in `4: ACTIVE`
        physical_state=physical_state.partition(": ")[2],
        rate=rate,
        counters={name: value for name, value in counters.items() if isinstance(value, int)},
    )
