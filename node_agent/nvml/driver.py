"""The real driver through nvidia-ml-py, for the child process alone.

Identity is UUID and PCI address, never the index. One GPU's failure is that GPU's result; only what concerns no single GPU raises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import pynvml

from node_agent.nvml.codes import GPU_IS_LOST, NOT_OFFERED, RESET_REQUIRED, UNKNOWN, DriverError
from node_agent.nvml.device import Device, Reader, Values, if_offered
from node_agent.nvml.events import watch
from node_agent.nvml.interconnect import count_links
from node_agent.nvml.readers import GROUPS

_OF_THE_GPU: Final = frozenset({GPU_IS_LOST, RESET_REQUIRED})


class NvmlDriver:
    """NVML from init to shutdown. `calling` says what is being called and for which GPU, since when (monotonic seconds)."""

    def __init__(self) -> None:
        self.calling: tuple[str, str, float] | None = None
        self.devices: list[Device] = []
        self._about = ""

    def open(self) -> dict[str, Any]:
        """Initialise and enumerate. Raises DriverError."""
        try:
            self.call("nvmlInit")
            versions = {
                "driver_version": self.call("nvmlSystemGetDriverVersion"),
                "nvml_version": self.call("nvmlSystemGetNVMLVersion"),
            }
            count = self.call("nvmlDeviceGetCount")
        except pynvml.NVMLError as error:
            raise DriverError(error.value, str(error)) from error
        gpus = [self._open_device(index) for index in range(count)]
        return {**versions, "gpus": gpus}

    def close(self) -> None:
        """Let go of every device file."""
        self.devices.clear()
        if pynvml.nvmlLib is not None:
            self.call("nvmlShutdown")

    def read(self, group: str) -> dict[str, Any]:
        """One group's values of every GPU, and how many GPUs NVML counts. Raises DriverError."""
        try:
            count = self.call("nvmlDeviceGetCount")
        except pynvml.NVMLError as error:
            raise DriverError(error.value, str(error)) from error
        readings = {device.uuid: self._read_device(device, group) for device in self.devices}
        self.calling = None
        return {"count": count, "gpus": readings}

    def watch(self, stop: threading.Event) -> Iterator[dict[str, Any]]:
        """Events as they come, until `stop` is set."""
        return watch(self.devices, stop)

    def call(self, function: str | Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of nvidia-ml-py by name, or a reader of fields, and note it while it lasts."""
        if isinstance(function, str):
            self.calling = (function, self._about, time.monotonic())
            return getattr(pynvml, function)(*arguments)
        self.calling = ("nvmlDeviceGetFieldValues", self._about, time.monotonic())
        return function(*arguments)

    def _open_device(self, index: int) -> dict[str, Any]:
        self._about = f"index {index}"
        identity: dict[str, Any] = {"index": index}
        try:
            handle = self.call("nvmlDeviceGetHandleByIndex", index)
            self._about = identity["uuid"] = self.call("nvmlDeviceGetUUID", handle)
            device = Device(handle, self._about, self.call)
            identity["pci"] = device.call("nvmlDeviceGetPciInfo").busId
            identity |= _identity(device)
            device.link_count = count_links(device)
        except pynvml.NVMLError as error:
            return {**identity, "gone": [error.value, str(error)]}
        self.devices.append(device)
        return identity

    def _read_device(self, device: Device, group: str) -> dict[str, Any]:
        self._about = device.uuid
        if group == "snapshot":
            device.not_offered.clear()
        values: Values = {}
        failures: list[int] = []
        readers = [reader for reader in GROUPS[group] if reader.names[0] not in device.not_offered]
        for reader in readers:
            try:
                values |= self._read_values(device, reader)
            except pynvml.NVMLError as error:
                if error.value in _OF_THE_GPU:
                    return {"values": values, "gone": [error.value, str(error)]}
                failures.append(error.value)
                values |= {name: {"error": str(error)} for name in reader.names}
        if readers and failures == [UNKNOWN] * len(readers):
            return {"values": {}, "gone": [UNKNOWN, "every call fails with Unknown Error"]}
        if group == "snapshot":
            values["xid_events_registered"] = device.events_registered
        return {"values": values}

    def _read_values(self, device: Device, reader: Reader) -> Values:
        try:
            values = reader.read(device)
        except pynvml.NVMLError as error:
            if error.value not in NOT_OFFERED:
                raise
            values = dict.fromkeys(reader.names)
        if all(values.get(name) is None for name in reader.names):
            device.not_offered.add(reader.names[0])
        return {name: value for name, value in values.items() if value is not None or name not in device.by_field}


def _identity(device: Device) -> dict[str, Any]:
    functions = {
        "serial": "nvmlDeviceGetSerial",
        "minor": "nvmlDeviceGetMinorNumber",
        "module_id": "nvmlDeviceGetModuleId",
        "model": "nvmlDeviceGetName",
    }
    return {name: if_offered(partial(device.call, function)) for name, function in functions.items()}
