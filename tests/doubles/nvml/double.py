"""Drives the C double of libnvidia-ml.so.1: what the next NVML call in another process sees is what was written here.

`build(directory)` compiles it once per session; `NvmlDouble(library, page)` makes one state page per test. Names of numbers,
texts and functions come from nvml_double.h, so there is no second list to keep in step.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

from tests.doubles.nvml import profiles

HERE = Path(__file__).parent
HEADER = (HERE / "nvml_double.h").read_text()
ANY_DEVICE = -1
NOT_MIG = 0xFFFFFFFF
XID = 0x8


class Action(IntEnum):
    """What a rule does to a call."""

    RETURN = 0
    HANG = 1
    HANG_KILLED = 2  # as HANG; when killed, the process cannot be reaped until release(): D state as seen from outside
    SEGV = 3
    STALL = 4


def _names(macro: str) -> list[str]:
    body = re.search(rf"#define {macro}\(X\)((?:.*\\\n)*.*)", HEADER)
    assert body, macro
    return re.findall(r"X\((\w+)", body[1])


def _constant(name: str) -> int:
    found = re.search(rf"#define {name} (\w+?)(?:ull)?\b", HEADER)
    assert found, name
    return int(found[1], 0)


FUNCTIONS = _names("FUNCTIONS")
LINK_NUMBERS = _names("LINK_NUMBERS")
MAX_DEVICES, MAX_EVENTS, MAX_RULES = _constant("MAX_DEVICES"), _constant("MAX_EVENTS"), _constant("MAX_RULES")
_TEXT = ctypes.c_char * _constant("TEXT")


class _Rule(ctypes.Structure):
    _fields_ = [
        (n, ctypes.c_int32) for n in ("active", "function", "device", "action", "ret", "delay_us", "skip", "count")
    ]


class _Event(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int32) for n in ("device", "gpu_instance", "compute_instance", "reserved")]
    _fields_ += [("type", ctypes.c_uint64), ("data", ctypes.c_uint64)]


class _Mig(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int32) for n in ("present", "gpu_instance", "compute_instance", "reserved")]


class _Device(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _names("NUMBERS")),
        *((name, _TEXT) for name in _names("TEXTS")),
        *((name, ctypes.c_int64 * _constant("MAX_LINKS")) for name in LINK_NUMBERS),
        ("field_value", ctypes.c_int64 * _constant("MAX_FIELDS")),
        ("field_return", ctypes.c_int32 * _constant("MAX_FIELDS")),
        ("unsupported", ctypes.c_uint8 * len(FUNCTIONS)),
        ("mig", _Mig * _constant("MAX_MIG")),
    ]


class _State(ctypes.Structure):
    _fields_ = [
        ("magic", ctypes.c_uint64),
        *((n, ctypes.c_int32) for n in ("init_return", "every_return", "release", "clients", "loads", "last_pid")),
        ("events_written", ctypes.c_uint32),
        ("reserved", ctypes.c_int32),
        ("driver_version", _TEXT),
        ("nvml_version", _TEXT),
        ("calls", ctypes.c_uint64 * len(FUNCTIONS)),
        ("rules", _Rule * MAX_RULES),
        ("events", _Event * MAX_EVENTS),
        ("devices", _Device * MAX_DEVICES),
    ]


def build(directory: Path) -> Path:
    """Compile the double with cc into `directory`; returns the library, whose folder goes into LD_LIBRARY_PATH."""
    library = directory / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run(["cc", *flags, "-o", str(library), str(HERE / "nvml_double.c")], check=True)
    return library


class NvmlDouble:
    """One driver with its GPUs, as NVML shows it to any process started with `environ`."""

    def __init__(self, library: Path, page: Path, *, profile: str = "h100", gpus: int = 8) -> None:
        self._library = ctypes.CDLL(str(library))  # for its layout and the wake call alone: nothing here initialises it
        assert self._library.nvml_double_state_size() == ctypes.sizeof(_State), "double.py and nvml_double.h differ"
        self.page = page
        with page.open("w+b") as file:
            file.truncate(ctypes.sizeof(_State))
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(_State))
        self.state = _State.from_buffer(self._map)
        self.state.driver_version = b"570.158.01"
        self.state.nvml_version = b"12.570.158.01"
        for slot in range(gpus):
            self.gpu(slot).reset(profile)
        self.state.magic = _constant("MAGIC")
        self.environ = {"LD_LIBRARY_PATH": str(library.parent), "NVML_DOUBLE_STATE": str(page)}

    def close(self) -> None:
        """Let every hanging call go and unmap the page."""
        self.release()
        del self.state
        self._map.close()

    def gpu(self, slot: int) -> DoubleGpu:
        """The GPU in a slot of the board: slots never shift, NVML indices do."""
        return DoubleGpu(self, slot)

    # --- the driver
    def refuse(self, code: int) -> None:
        """nvmlInit fails with this code from now on (0: works): 9 not loaded, 18 version mismatch, 4 no permission."""
        self.state.init_return = code

    def fail_everything(self, code: int) -> None:
        """Every call of an initialised client fails with this code (0: works): a driver gone under open handles."""
        self.state.every_return = code

    def rule(
        self,
        function: str,
        action: Action = Action.RETURN,
        *,
        gpu: int = ANY_DEVICE,
        ret: int = 0,
        delay_us: int = 0,
        skip: int = 0,
        count: int = 0,
    ) -> None:
        """Make calls of a function fail, stall, hang or crash, after `skip` calls, `count` times (0: always)."""
        free = next(rule for rule in self.state.rules if not rule.active)
        for name, value in (
            ("function", FUNCTIONS.index(function)),
            ("device", gpu),
            ("action", action.value),
            ("ret", ret),
            ("delay_us", delay_us),
            ("skip", skip),
            ("count", count),
            ("active", 1),
        ):
            setattr(free, name, value)

    def clear_rules(self) -> None:
        """Functions answer again; calls that hang go on hanging until release()."""
        for rule in self.state.rules:
            rule.active = 0

    def release(self) -> None:
        """Calls that hang return, and killed processes that hung in HANG_KILLED can be reaped."""
        self.state.release += 1

    # --- what the double saw
    def calls(self, function: str | None = None) -> int:
        """How often a function was called (all functions when None)."""
        return sum(self.state.calls) if function is None else self.state.calls[FUNCTIONS.index(function)]

    def forget_calls(self) -> None:
        """Count from zero."""
        ctypes.memset(self.state.calls, 0, ctypes.sizeof(self.state.calls))

    @property
    def clients(self) -> int:
        """Processes between nvmlInit and nvmlShutdown (killed ones included)."""
        return int(self.state.clients)

    @property
    def loads(self) -> int:
        """Processes that loaded the library so far."""
        return int(self.state.loads)

    def holders(self) -> list[int]:
        """Processes that hold the stand-in for /dev/nvidiactl open."""
        device = f"{self.page}.nvidiactl"
        return [int(link.parts[2]) for link in Path("/proc").glob("[0-9]*/fd/*") if _target(link) == device]

    # --- events
    def push(self, slot: int, data: int, *, type: int = XID, mig: tuple[int, int] = (NOT_MIG, NOT_MIG)) -> None:  # noqa: A002
        """Deliver an event (an XID by default) to every set that registered for it."""
        event = self.state.events[self.state.events_written % MAX_EVENTS]
        event.device, event.type, event.data = slot, type, data
        event.gpu_instance, event.compute_instance = (ctypes.c_int32(part).value for part in mig)
        self.state.events_written += 1
        self._library.nvml_double_wake(ctypes.byref(self.state, _State.events_written.offset))


class DoubleGpu:
    """One GPU: reading and setting an attribute reads and sets the page (numbers in NVML's units)."""

    _slot: int
    _device: Any

    def __init__(self, double: NvmlDouble, slot: int) -> None:
        object.__setattr__(self, "_slot", slot)
        object.__setattr__(self, "_device", double.state.devices[slot])

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._device, name)
        return value.decode() if isinstance(value, bytes) else value

    def __setattr__(self, name: str, value: Any) -> None:
        if not hasattr(self._device, name):
            raise AttributeError(f"{name} is no number or text of nvml_double.h")
        setattr(self._device, name, value.encode() if isinstance(value, str) else value)

    def reset(self, profile: str) -> None:
        """A healthy GPU of this model, as at the beginning."""
        ctypes.memset(ctypes.byref(self._device), 0, ctypes.sizeof(_Device))
        self.set(**profiles.device(profile, self._slot))

    def set(
        self, *, unsupported: Iterable[str] = (), fields: Mapping[int, int | None] | None = None, **values: Any
    ) -> None:
        """Set numbers and texts by name, functions as NOT_SUPPORTED, fields by id (None: NOT_SUPPORTED), links in whole."""
        for name, value in values.items():
            if name in LINK_NUMBERS:
                for link, number in enumerate(value):
                    getattr(self._device, name)[link] = number
            else:
                setattr(self, name, value)
        for function in unsupported:
            self.support(function, yes=False)
        for field, number in (fields or {}).items():
            self._device.field_return[field] = 3 if number is None else 0
            self._device.field_value[field] = number or 0

    def support(self, function: str, *, yes: bool) -> None:
        """Whether a function answers NOT_SUPPORTED for this GPU."""
        self._device.unsupported[FUNCTIONS.index(function)] = not yes

    def fail_field(self, field: int, code: int) -> None:
        """nvmlDeviceGetFieldValues answers this code in the field's own entry (0: works)."""
        self._device.field_return[field] = code

    def link(self, number: int, **values: int) -> None:
        """Set one link's numbers, for example link_state=0."""
        for name, value in values.items():
            getattr(self._device, name)[number] = value

    def partition(self, *instances: tuple[int, int]) -> None:
        """Lay out MIG devices as (GPU instance, compute instance)."""
        for index, mig in enumerate(self._device.mig):
            mig.present = index < len(instances)
            if mig.present:
                mig.gpu_instance, mig.compute_instance = instances[index]

    def lose(self, code: int = 15, *, by_index: bool = False) -> None:
        """Every call fails with 15 (GPU is lost) or 999; with by_index the handle cannot be had either."""
        self.set(lost=code, lost_by_index=int(by_index))

    def find(self) -> None:
        """The GPU answers again."""
        self.set(lost=0, lost_by_index=0)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # the process or the descriptor is gone
        return ""


def environment(double: NvmlDouble) -> dict[str, str]:
    """This process's environment with the double in NVML's place."""
    return {**os.environ, **double.environ}
