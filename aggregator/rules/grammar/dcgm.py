"""dcgm-exporter's exposition: gauges and counters as one scrape shows them.

Blanks are "cannot observe", never zero; the XID gauge holds the last XID for ever, so it is hearsay until it changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from aggregator.model import Scalar
from aggregator.rules.grammar.reading import (
    PROGRAM_LINES,
    Grammar,
    Line,
    Reading,
    normalise_pci,
    normalise_uuid,
    present,
)

_SAMPLE = re.compile(r"(?P<metric>DCGM_FI_\w{1,80})\{(?P<labels>[^{}]{0,4000})\} (?P<value>\S{1,32})(?: \d{1,20})?$")
_LABEL = re.compile(r'(\w{1,64})="((?:[^"\\]|\\.){0,512})"')
_BLANK_FROM = 0x7FFFFFF0  # DCGM_INT32_BLANK and, far above, the 64-bit and floating blanks
_BLANK_64 = 9.22e18

_COUNTERS: dict[str, tuple[str, dict[str, Scalar]]] = {
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": ("ecc_uncorrectable", {"scope": "volatile"}),
    "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL": ("ecc_uncorrectable", {"scope": "aggregate"}),
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": ("ecc_corrected", {"scope": "volatile"}),
    "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL": ("ecc_corrected", {"scope": "aggregate"}),
    "DCGM_FI_DEV_ROW_REMAP_PENDING": ("row_remap_pending", {}),
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": ("row_remap_failure", {}),
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": ("row_remapped", {"cause": "uncorrectable"}),
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": ("row_remapped", {"cause": "correctable"}),
    "DCGM_FI_DEV_RETIRED_SBE": ("retired_page", {"cause": "single_bit"}),
    "DCGM_FI_DEV_RETIRED_DBE": ("retired_page", {"cause": "double_bit"}),
    "DCGM_FI_DEV_RETIRED_PENDING": ("retired_page_pending", {}),
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": ("pcie_replay", {}),
    "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": ("nvlink_errors", {"counter": "crc flit"}),
    "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL": ("nvlink_errors", {"counter": "crc data"}),
    "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": ("nvlink_errors", {"counter": "replay"}),
    "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": ("nvlink_errors", {"counter": "recovery"}),
    "DCGM_FI_DEV_THRESHOLD_SRM": ("sram_threshold_exceeded", {}),
    "DCGM_FI_DEV_XID_ERRORS": ("last_xid_gauge", {}),
}
_THROTTLE_METRICS = ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "DCGM_FI_DEV_CLOCKS_EVENT_REASONS")
_THROTTLE_BITS = (
    (0x08, "hw_slowdown"),
    (0x20, "sw_thermal_slowdown"),
    (0x40, "hw_thermal_slowdown"),
    (0x80, "hw_power_brake"),
    (0x04, "sw_power_cap"),
)
_HOT = {"DCGM_FI_DEV_GPU_TEMP": (85, False), "DCGM_FI_DEV_MEMORY_TEMP": (95, True)}


def read_sample(line: Line) -> Iterator[Reading]:
    """One sample: the GPU's names, and what its value says where it is out of order."""
    found = _SAMPLE.match(line.text)
    if found is None:
        return
    labels = dict(_LABEL.findall(found["labels"]))
    pci, uuid, names = _names(labels)
    if pci and uuid:
        yield Reading("gpu_identity", names, pci=pci, gpu_uuid=uuid)
    value = _value(found["value"])
    if value is None:
        yield Reading("dcgm_unobservable", {"field": found["metric"]}, pci=pci, gpu_uuid=uuid)
        return
    for kind, attributes in _states(found["metric"], value):
        yield Reading(kind, attributes, pci=pci, gpu_uuid=uuid)


def _names(labels: dict[str, str]) -> tuple[str | None, str | None, dict[str, Scalar]]:
    uuid = labels.get("UUID", "")
    device = re.fullmatch(r"nvidia(\d{1,3})", labels.get("device", ""))
    gpu = labels.get("gpu", "")
    names = present(
        minor=int(device[1]) if device else None,
        index=int(gpu) if gpu.isdigit() else None,
        model=labels.get("modelName"),
        driver_version=labels.get("DCGM_FI_DRIVER_VERSION"),
    )
    pci = normalise_pci(labels.get("pci_bus_id", "") or "-")
    return pci, normalise_uuid(uuid) if uuid.startswith("GPU-") else None, names


def _value(printed: str) -> float | None:
    try:
        value = float(printed)
    except ValueError:
        return None
    blank = value != value or value >= _BLANK_64 or _BLANK_FROM <= value <= 0x7FFFFFFF
    return None if blank else value


def _states(metric: str, value: float) -> Iterator[tuple[str, dict[str, Scalar]]]:
    if metric in _THROTTLE_METRICS:
        for bit, kind in _THROTTLE_BITS:
            if int(value) & bit:
                yield kind, {"bit": bit}
    elif metric in _HOT and value >= _HOT[metric][0]:
        yield "temperature_high", {"temperature_celsius": value, "memory": _HOT[metric][1]}
    elif metric in _COUNTERS and value > 0:
        kind, attributes = _COUNTERS[metric]
        if kind == "last_xid_gauge":
            yield kind, {"reported_code": int(value), "reporter": "dcgm-exporter"}
        else:
            yield kind, {**attributes, "after": value, "field": metric}


GRAMMAR = Grammar("dcgm", ("dcgm_fi_",), read_sample, PROGRAM_LINES)
