"""What is read from one GPU, in which group, by which NVML call. Names and units are listed in facts.py.

Groups follow DESIGN §6: critical each second, counters each ten seconds, everything with a snapshot.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Final

import pynvml

from node_agent.nvml.codes import RECOVERY_ACTIONS
from node_agent.nvml.device import Device, Reader, Values, named, reads
from node_agent.nvml.interconnect import fabric, nvlink, pcie, pcie_max, pcie_replay

_RECOVERY_ACTION: Final = 230
_MEMORY_TEMPERATURE: Final = 82
# Fields that a function of the counters group reads too: where the device does not offer the field, that function speaks.
_SHARED: Final = {
    "ecc_volatile_uncorrected_total": 4,
    "retired_page_pending": 31,
    "row_remap_pending": 144,
    "row_remap_failure": 145,
}
_LIMITS: Final = ("shutdown", "slowdown", "memory_max", "gpu_max")  # nvmlTemperatureThresholds_t 0 to 3
_TLIMITS: Final = {"shutdown": 193, "slowdown": 194, "memory_max": 195, "gpu_max": 196}
_BANKS: Final = ("max", "high", "partial", "low", "none")
_CLOCK_SM: Final = 1
_CLOCK_MEMORY: Final = 2


@reads("recovery_action memory_temperature_celsius")
def critical_fields(device: Device) -> Values:
    """Recovery action and memory temperature, and what is shared with functions of the counters group."""
    ids = (_RECOVERY_ACTION, _MEMORY_TEMPERATURE, *_SHARED.values())
    action, memory_temperature, *shared = device.fields("critical", [(number, 0) for number in ids])
    values: Values = {
        "recovery_action": named(action, RECOVERY_ACTIONS),
        "memory_temperature_celsius": memory_temperature,
    }
    for name, value in zip(_SHARED, shared, strict=True):
        if value is not None:
            is_flag = not name.endswith("_total") and isinstance(value, int)
            values[name] = bool(value) if is_flag else value
    device.by_field = values.keys() & _SHARED.keys()
    return values


@reads("clocks_event_reasons")
def clocks_event_reasons(device: Device) -> Values:
    """The bits that say why clocks are lowered."""
    newer, older = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
    return {"clocks_event_reasons": device.call_either(newer, older)}


@reads("temperature_celsius")
def temperature(device: Device) -> Values:
    """Core temperature."""
    core = pynvml.NVML_TEMPERATURE_GPU
    return {"temperature_celsius": device.call_either("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature", core)}


@reads("temperature_margin_celsius")
def temperature_margin(device: Device) -> Values:
    """Degrees left to T.Limit."""
    return {"temperature_margin_celsius": device.call("nvmlDeviceGetMarginTemperature")}


@reads(
    "ecc_volatile_corrected_total ecc_volatile_uncorrected_total",
    "ecc_aggregate_corrected_total ecc_aggregate_uncorrected_total",
)
def ecc_totals(device: Device) -> Values:
    """ECC errors since driver load (volatile) and in the board's life (aggregate)."""
    return {
        f"ecc_{scope}_{severity}_total": device.call("nvmlDeviceGetTotalEccErrors", severity_id, scope_id)
        for scope_id, scope in enumerate(("volatile", "aggregate"))
        for severity_id, severity in enumerate(("corrected", "uncorrected"))
    }


@reads(
    "sram_threshold_exceeded sram_volatile_corrected_total sram_volatile_uncorrected_total",
    "sram_aggregate_corrected_total sram_aggregate_uncorrected_total",
)
def sram(device: Device) -> Values:
    """SRAM errors and the threshold flag (Ampere and later)."""
    status = pynvml.c_nvmlEccSramErrorStatus_v1_t()
    device.call("nvmlDeviceGetSramEccErrorStatus", ctypes.byref(status))
    return {
        "sram_threshold_exceeded": bool(status.bThresholdExceeded),
        "sram_volatile_corrected_total": status.volatileCor,
        "sram_volatile_uncorrected_total": status.volatileUncParity + status.volatileUncSecDed,
        "sram_aggregate_corrected_total": status.aggregateCor,
        "sram_aggregate_uncorrected_total": status.aggregateUncParity + status.aggregateUncSecDed,
    }


@reads("row_remap_corrected_total row_remap_uncorrected_total row_remap_pending row_remap_failure")
def row_remap(device: Device) -> Values:
    """Remapped rows (Ampere and later)."""
    corrected, uncorrected, pending, failure = device.call("nvmlDeviceGetRemappedRows")
    return {
        "row_remap_corrected_total": corrected,
        "row_remap_uncorrected_total": uncorrected,
        "row_remap_pending": bool(pending),
        "row_remap_failure": bool(failure),
    }


@reads(*(f"row_remap_banks_{name}" for name in _BANKS))
def row_remap_histogram(device: Device) -> Values:
    """Memory banks by how many spare rows they have left."""
    histogram = device.call("nvmlDeviceGetRowRemapperHistogram")
    return {f"row_remap_banks_{name}": getattr(histogram, name) for name in _BANKS}


@reads("retired_pages_single_bit_total retired_pages_double_bit_total retired_page_pending")
def retired_pages(device: Device) -> Values:
    """Retired pages (before Ampere), by cause."""
    values: Values = {
        f"retired_pages_{cause}_total": len(device.call("nvmlDeviceGetRetiredPages", cause_id))
        for cause_id, cause in enumerate(("single_bit", "double_bit"))
    }
    values["retired_page_pending"] = bool(device.call("nvmlDeviceGetRetiredPagesPendingStatus"))
    return values


@reads("power_watts power_limit_watts")
def power(device: Device) -> Values:
    """Power drawn and the limit in force."""
    return {
        "power_watts": device.call("nvmlDeviceGetPowerUsage") / 1000,
        "power_limit_watts": device.call("nvmlDeviceGetEnforcedPowerLimit") / 1000,
    }


@reads("clock_sm_mhz clock_memory_mhz")
def clocks(device: Device) -> Values:
    """Clocks as they are."""
    return {
        "clock_sm_mhz": device.call("nvmlDeviceGetClockInfo", _CLOCK_SM),
        "clock_memory_mhz": device.call("nvmlDeviceGetClockInfo", _CLOCK_MEMORY),
    }


@reads("clock_sm_max_mhz clock_memory_max_mhz")
def clocks_max(device: Device) -> Values:
    """Clocks at best."""
    return {
        "clock_sm_max_mhz": device.call("nvmlDeviceGetMaxClockInfo", _CLOCK_SM),
        "clock_memory_max_mhz": device.call("nvmlDeviceGetMaxClockInfo", _CLOCK_MEMORY),
    }


@reads("utilization_percent")
def utilization(device: Device) -> Values:
    """Share of time with a kernel running."""
    return {"utilization_percent": device.call("nvmlDeviceGetUtilizationRates").gpu}


@reads("mig_enabled mig_pending_enabled mig_layout")
def mig(device: Device) -> Values:
    """MIG mode, and the instances as `GPU instance/compute instance`, in order."""
    current, pending = device.call("nvmlDeviceGetMigMode")
    return {
        "mig_enabled": bool(current),
        "mig_pending_enabled": bool(pending),
        "mig_layout": " ".join(f"{gi}/{ci}" for gi, ci in sorted(_mig_instances(device))) if current else "",
    }


def _mig_instances(device: Device) -> list[tuple[int, int]]:
    instances = []
    for index in range(device.call("nvmlDeviceGetMaxMigDeviceCount")):
        try:
            instance = device.call("nvmlDeviceGetMigDeviceHandleByIndex", index)
        except pynvml.NVMLError_NotFound:
            continue
        ids = pynvml.nvmlDeviceGetGpuInstanceId(instance), pynvml.nvmlDeviceGetComputeInstanceId(instance)
        instances.append(ids)
    return instances


@reads(*(f"temperature_{name}_celsius" for name in _LIMITS))
def temperature_limits(device: Device) -> Values:
    """Limits in °C, where the device gives them so."""
    values: Values = {}
    for which, name in enumerate(_LIMITS):
        try:
            values[f"temperature_{name}_celsius"] = device.call("nvmlDeviceGetTemperatureThreshold", which)
        except pynvml.NVMLError_NotSupported:
            values[f"temperature_{name}_celsius"] = None
    return values


@reads(*(f"temperature_{name}_tlimit_celsius" for name in _TLIMITS))
def temperature_tlimits(device: Device) -> Values:
    """Limits as degrees of margin, where the device gives them so (Hopper and later)."""
    read = device.fields("tlimits", [(number, 0) for number in _TLIMITS.values()])
    return {f"temperature_{name}_tlimit_celsius": value for name, value in zip(_TLIMITS, read, strict=True)}


@reads("board_part_number")
def board(device: Device) -> Values:
    """The board's part number; GeForce boards have none."""
    return {"board_part_number": device.call("nvmlDeviceGetBoardPartNumber")}


@reads("vbios_version")
def vbios(device: Device) -> Values:
    """Firmware version."""
    return {"vbios_version": device.call("nvmlDeviceGetVbiosVersion")}


@reads("ecc_enabled ecc_pending_enabled")
def ecc_mode(device: Device) -> Values:
    """Whether ECC is on, now and after the next reset."""
    current, pending = device.call("nvmlDeviceGetEccMode")
    return {"ecc_enabled": bool(current), "ecc_pending_enabled": bool(pending)}


_CRITICAL: Final = (clocks_event_reasons, temperature, temperature_margin, critical_fields)
_COUNTERS: Final = (
    *(ecc_totals, sram, row_remap, retired_pages),
    *(nvlink, fabric, pcie, pcie_replay),
    *(power, clocks, utilization, mig),
)
_STATIC: Final = (
    *(row_remap_histogram, pcie_max, clocks_max),
    *(temperature_limits, temperature_tlimits, board, vbios, ecc_mode),
)
GROUPS: Final[Mapping[str, tuple[Reader, ...]]] = {
    "critical": _CRITICAL,
    "counters": _COUNTERS,
    "snapshot": (*_CRITICAL, *_COUNTERS, *_STATIC),
}
