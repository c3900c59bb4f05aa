"""nvmlDeviceGetFieldValues with the array kept between calls: a tenth of the cost of nvidia-ml-py's own wrapper."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any, Final

import pynvml

from node_agent.nvml.codes import FUNCTION_NOT_FOUND, GPU_IS_LOST, NOT_OFFERED, RESET_REQUIRED

# nvmlFieldValue_t, 40 bytes: fieldId, scopeId, timestamp, latencyUsec, valueType, nvmlReturn, value
_ENTRY: Final = struct.Struct("@IIqqII8s")
# By nvmlValueType_t. Only the type's own part of the union is defined: the rest may hold anything.
_VALUES: Final = tuple(struct.Struct(f"@{form}") for form in ("d", "I4x", "L", "Q", "q", "i4x", "H6x"))


class FieldArray:
    """Some fields of one device, read in one call. Pairs are (field id, scope id); the scope is the link for NVLink fields."""

    def __init__(self, fields: Sequence[tuple[int, int]]) -> None:
        self._array = (pynvml.c_nvmlFieldValue_t * len(fields))()
        for entry, (field_id, scope_id) in zip(self._array, fields, strict=True):
            entry.fieldId, entry.scopeId = field_id, scope_id
        self._count = ctypes.c_int(len(fields))

    def read(self, handle: Any) -> list[Any]:
        """One value per field, in order: a number, None when not offered, {"error": text} when reading failed.

        The call's own success says nothing about its entries. Raises NVMLError when the call as a whole fails, and when an entry
        says that the GPU is lost or must be reset.
        """
        function = getattr(pynvml.nvmlLib, "nvmlDeviceGetFieldValues", None)
        status = FUNCTION_NOT_FOUND if function is None else function(handle, self._count, self._array)
        if status:
            raise pynvml.NVMLError(status)
        return [_value(kind, status, raw) for _, _, _, _, kind, status, raw in _ENTRY.iter_unpack(self._array)]


def _value(kind: int, status: int, raw: bytes) -> Any:
    if status == 0:
        return _VALUES[kind].unpack(raw)[0] if kind < len(_VALUES) else {"error": f"value type {kind} is unknown"}
    if status in NOT_OFFERED:
        return None
    if status in (GPU_IS_LOST, RESET_REQUIRED):
        raise pynvml.NVMLError(status)
    return {"error": str(pynvml.NVMLError(status))}
