"""Waits for NVML's events in a thread of the child.

A lost GPU makes the wait fail at once, naming no device: a loop that waits again spins hundreds of thousands of times a second.
Here any failure frees the set, backs off, and registers anew the devices that still answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import Any, Final

import pynvml

from node_agent.nvml.codes import EVENT_POWER_SOURCE, EVENT_PSTATE, TIMEOUT
from node_agent.nvml.device import Device

WAIT_MILLISECONDS: Final = 250  # how long a shutdown may wait for this thread
FIRST_BACKOFF_SECONDS: Final = 0.05
MAX_BACKOFF_SECONDS: Final = 30.0
_UNWANTED: Final = EVENT_PSTATE | EVENT_POWER_SOURCE


def watch(devices: list[Device], stop: threading.Event) -> Iterator[dict[str, Any]]:
    """Events of the devices as they come, as JSON-able messages, until `stop` is set.

    A failed wait yields {"event_gap": text}: what happened until the set was made anew is not known.
    """
    backoff = FIRST_BACKOFF_SECONDS
    while not stop.is_set():
        event_set, pointers = _register(devices)
        if not pointers:
            _free(event_set)
            stop.wait(MAX_BACKOFF_SECONDS)
            continue
        try:
            while not stop.is_set():
                event = _wait(event_set)
                backoff = FIRST_BACKOFF_SECONDS
                if event is not None:
                    yield {"event": _message(event, pointers)}
        except pynvml.NVMLError as error:
            if backoff == FIRST_BACKOFF_SECONDS:
                yield {"event_gap": str(error)}
        finally:
            _free(event_set)
        stop.wait(backoff)
        backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)


def _register(devices: list[Device]) -> tuple[Any, dict[int, str]]:
    """A set with every device that takes part, and their UUIDs by handle: getters fail on a lost GPU, pointers do not."""
    try:
        event_set = pynvml.nvmlEventSetCreate()
    except pynvml.NVMLError:
        return None, {}
    pointers = {}
    for device in devices:
        device.events_registered = _register_device(device, event_set)
        if device.events_registered:
            pointers[_address(device.handle)] = device.uuid
    return event_set, pointers


def _register_device(device: Device, event_set: Any) -> bool:
    try:
        wanted = pynvml.nvmlDeviceGetSupportedEventTypes(device.handle) & ~_UNWANTED
        if wanted:
            pynvml.nvmlDeviceRegisterEvents(device.handle, wanted, event_set)
    except pynvml.NVMLError:  # not supported, or lost: the others are watched all the same
        return False
    return bool(wanted)


def _wait(event_set: Any) -> Any:
    try:
        return pynvml.nvmlEventSetWait(event_set, WAIT_MILLISECONDS)
    except pynvml.NVMLError as error:
        if error.value != TIMEOUT:
            raise
        return None


def _free(event_set: Any) -> None:
    if event_set is not None:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlEventSetFree(event_set)


def _message(event: Any, pointers: dict[int, str]) -> dict[str, Any]:
    return {
        "uuid": pointers.get(_address(event.device), ""),
        "type": event.eventType,
        "data": event.eventData,
        "gpu_instance": event.gpuInstanceId,
        "compute_instance": event.computeInstanceId,
    }


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
