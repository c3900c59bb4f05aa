"""One GPU as the child holds it, and the form every reader of its values has.

No dataclasses in the child: they import `inspect`, which costs as much memory as everything else here together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pynvml

from node_agent.nvml.codes import ARGUMENT_VERSION_MISMATCH, FUNCTION_NOT_FOUND, NOT_OFFERED
from node_agent.nvml.fields import FieldArray

Values = dict[str, Any]  # number, text, bool; None: not supported; {"error": text}: reading failed


class Device:
    """A handle, and what is kept for it between calls."""

    __slots__ = ("_arrays", "_call", "by_field", "events_registered", "handle", "link_count", "not_offered", "uuid")

    def __init__(self, handle: Any, uuid: str, call: Callable[..., Any]) -> None:
        """`call` makes one NVML call: (function as nvidia-ml-py names it, or a callable, *arguments)."""
        self.handle = handle
        self.uuid = uuid
        self.link_count = 0
        self.events_registered = False
        self.by_field: set[str] = set()  # values of functions that the device offers as fields too
        self.not_offered: set[str] = set()  # readers that are skipped until the next snapshot, by their first name
        self._call = call
        self._arrays: dict[str, FieldArray] = {}

    def call(self, function: str, *arguments: Any) -> Any:
        """One NVML call about this device. Raises NVMLError."""
        return self._call(function, self.handle, *arguments)

    def call_either(self, function: str, older: str, *arguments: Any) -> Any:
        """The result of one function, or of the one that older drivers have in its place."""
        try:
            return self.call(function, *arguments)
        except pynvml.NVMLError as error:
            if error.value not in (FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH):
                raise
            return self.call(older, *arguments)

    def fields(self, name: str, fields: Sequence[tuple[int, int]]) -> list[Any]:
        """Values of (field id, scope id) pairs, from the array kept under `name`."""
        array = self._arrays.get(name)
        if array is None:
            array = self._arrays[name] = FieldArray(fields)
        values: list[Any] = self._call(array.read, self.handle)
        return values


class Reader(NamedTuple):
    """Reads some values of a device in one go; its names are what is unsupported, or unreadable, when it fails."""

    names: tuple[str, ...]
    read: Callable[[Device], Values]


def reads(*names: str) -> Callable[[Callable[[Device], Values]], Reader]:
    """Make a function the reader of the values it names (several to a string, apart by spaces)."""
    return lambda function: Reader(tuple(" ".join(names).split()), function)


def named(number: Any, names: Sequence[str]) -> Any:
    """The number's name; a number that has none yet stays visible as itself."""
    if not isinstance(number, int):
        return number
    return names[number] if 0 <= number < len(names) else str(number)


def if_offered(function: Callable[[], Any]) -> Any:
    """The function's result; None when the device does not offer it."""
    try:
        return function()
    except pynvml.NVMLError as error:
        if error.value not in NOT_OFFERED:
            raise
        return None
