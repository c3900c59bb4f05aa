"""Readers of NVLink, the NVLink fabric and PCIe."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import pynvml

from node_agent.nvml.codes import ARGUMENT_VERSION_MISMATCH, FUNCTION_NOT_FOUND
from node_agent.nvml.device import Device, Values, if_offered, named, reads

_LINK_COUNT: Final = 91
_LINK_STATE: Final = 165
_LINK_STATES: Final = ("inactive", "active", "sleep", "traffic_disabled")
# Blackwell and later offer the last two in place of the first three.
_LINK_COUNTERS: Final = {
    "nvlink_replay_errors": 161,
    "nvlink_recovery_errors": 162,
    "nvlink_crc_flit_errors": 163,
    "nvlink_recovery_failed_events": 214,
    "nvlink_recovery_events": 215,
}
_NVLINK: Final = (
    "nvlink_states",
    "nvlink_active_links",
    *(f"{name}_{part}" for name in _LINK_COUNTERS for part in ("total", "by_link")),
)
_MAX_LINKS: Final = 36
_FABRIC: Final = "fabric_state fabric_status fabric_health_mask fabric_health fabric_cluster_uuid fabric_clique_id"
_FABRIC_STATES: Final = ("not_supported", "not_started", "in_progress", "completed")
_FABRIC_HEALTH: Final = ("unknown", "healthy", "unhealthy", "limited_capacity")
_COMPLETED: Final = 3


def count_links(device: Device) -> int:
    """How many NVLinks the device has; 0 when it has none."""
    (count,) = if_offered(partial(device.fields, "link_count", [(_LINK_COUNT, 0)])) or [None]
    if isinstance(count, int):
        return min(count, _MAX_LINKS)
    links = 0
    while links < _MAX_LINKS and _link_state(device, links) is not None:
        links += 1
    return links


@reads(*_NVLINK)
def nvlink(device: Device) -> Values:
    """States in link order; error counters summed, and by link as `link:count` for the links that have any."""
    count = device.link_count
    if not count:
        return dict.fromkeys(_NVLINK)
    ids = (_LINK_STATE, *_LINK_COUNTERS.values())
    read = device.fields("nvlink", [(number, link) for number in ids for link in range(count)])
    states = [_link_state(device, link) if state is None else state for link, state in enumerate(read[:count])]
    values: Values = {
        "nvlink_states": " ".join(_state_name(state) for state in states),
        "nvlink_active_links": sum(1 for state in states if isinstance(state, int) and state),
    }
    for position, name in enumerate(_LINK_COUNTERS, start=1):
        values |= _counter(name, read[position * count : (position + 1) * count])
    return values


def _link_state(device: Device, link: int) -> int | None:
    state: int | None = if_offered(partial(device.call, "nvmlDeviceGetNvLinkState", link))
    return state


def _state_name(state: Any) -> str:
    return str(named(state, _LINK_STATES)) if isinstance(state, int) else "unknown"


def _counter(name: str, counts: Sequence[Any]) -> Values:
    failed = next((count for count in counts if isinstance(count, dict)), None)
    if failed is not None or all(count is None for count in counts):
        return {f"{name}_total": failed, f"{name}_by_link": failed}
    return {
        f"{name}_total": sum(count or 0 for count in counts),
        f"{name}_by_link": " ".join(f"{link}:{count}" for link, count in enumerate(counts) if count),
    }


@reads(_FABRIC)
def fabric(device: Device) -> Values:
    """The GPU's place in its NVLink domain. The status means something only once registration is completed."""
    info = _fabric_info(device)
    state = info.state & 0xFF  # one byte in NVML's header, four in nvidia-ml-py
    if not state:
        return dict.fromkeys(_FABRIC.split())
    return {
        "fabric_state": named(state, _FABRIC_STATES),
        "fabric_status": info.status if state == _COMPLETED else None,
        "fabric_health_mask": info.healthMask,
        "fabric_health": named(getattr(info, "healthSummary", 0), _FABRIC_HEALTH),
        "fabric_cluster_uuid": _uuid(bytes(info.clusterUuid).hex()),
        "fabric_clique_id": info.cliqueId,
    }


def _fabric_info(device: Device) -> Any:
    info = pynvml.c_nvmlGpuFabricInfo_v3_t()
    try:
        device.call("nvmlDeviceGetGpuFabricInfoV", ctypes.byref(info))
    except pynvml.NVMLError as error:
        if error.value not in (FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH):
            raise
        info = pynvml.c_nvmlGpuFabricInfo_v2_t()
        device.call("nvmlDeviceGetGpuFabricInfoV", ctypes.byref(info))
    return info


def _uuid(digits: str) -> str:
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


@reads("pcie_width_lanes pcie_generation")
def pcie(device: Device) -> Values:
    """The link as it is: idle links lower their generation."""
    return {
        "pcie_width_lanes": device.call("nvmlDeviceGetCurrPcieLinkWidth"),
        "pcie_generation": device.call("nvmlDeviceGetCurrPcieLinkGeneration"),
    }


@reads("pcie_width_max_lanes pcie_generation_max")
def pcie_max(device: Device) -> Values:
    """What GPU and slot could do together."""
    return {
        "pcie_width_max_lanes": device.call("nvmlDeviceGetMaxPcieLinkWidth"),
        "pcie_generation_max": device.call("nvmlDeviceGetMaxPcieLinkGeneration"),
    }


@reads("pcie_replay_total")
def pcie_replay(device: Device) -> Values:
    """PCIe packets sent again."""
    return {"pcie_replay_total": device.call("nvmlDeviceGetPcieReplayCounter")}
