"""The double's structs are the ones nvidia-ml-py declares: sizes and version words, against pynvml and against NVIDIA's numbers."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pynvml
import pytest

from tests.doubles.nvml.double import FUNCTIONS, NvmlDouble

NVIDIA = {  # size and version word from nvml.h
    "nvmlPciInfo_t": (68, 0),
    "nvmlFieldValue_t": (40, 0),
    "nvmlEccSramErrorStatus_v1_t": (0x68, 0x1000068),
    "nvmlRowRemapperHistogramValues_t": (20, 0),
    "nvmlGpuFabricInfo_v2_t": (0x24, 0x2000024),
    "nvmlGpuFabricInfo_v3_t": (0x28, 0x3000028),
    "nvmlEventData_t": (32, 0),
    "nvmlTemperature_v1_t": (12, 0x100000C),
    "nvmlMarginTemperature_v1_t": (8, 0x1000008),
    "nvmlUtilization_t": (8, 0),
}
PYNVML = {"nvmlPciInfo_t": "nvmlPciInfo_t", "nvmlRowRemapperHistogramValues_t": "c_nvmlRowRemapperHistogramValues"}


class _Entry(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("size", ctypes.c_uint32), ("version", ctypes.c_uint32)]


def _of_the_double(library: Path) -> dict[str, tuple[int, int]]:
    table = (_Entry * (len(NVIDIA) + 1)).in_dll(ctypes.CDLL(str(library)), "nvml_double_abi")
    return {entry.name.decode(): (entry.size, entry.version) for entry in table if entry.name}


def test_structs_have_nvidias_sizes_and_versions(nvml_library: Path) -> None:
    assert _of_the_double(nvml_library) == NVIDIA


@pytest.mark.parametrize("name", NVIDIA)
def test_structs_are_as_large_as_pynvmls(name: str) -> None:
    assert ctypes.sizeof(getattr(pynvml, PYNVML.get(name, f"c_{name}"))) == NVIDIA[name][0]


def test_the_library_is_found_by_the_name_nvidia_ml_py_asks_for(nvml_library: Path) -> None:
    dynamic = subprocess.run(["readelf", "-d", nvml_library], capture_output=True, text=True, check=True).stdout
    assert re.search(r"SONAME.*\[libnvidia-ml\.so\.1\]", dynamic)


def test_every_function_of_the_double_exists_in_pynvml(double: NvmlDouble) -> None:
    wrapped = Path(pynvml.__file__).read_text()
    assert [name for name in FUNCTIONS if f'"{name}"' not in wrapped] == []
