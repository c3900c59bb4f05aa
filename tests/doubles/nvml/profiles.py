"""What GPUs of some models look like through NVML when they are well.

Values and NOT_SUPPORTED sets are assumptions made from NVIDIA's documentation; a recording from real hardware would replace them.
"""

from __future__ import annotations

from typing import Any

NOT_SUPPORTED_FIELDS = (
    3,
    4,
    5,
    6,
    31,
    82,
    91,
    142,
    143,
    144,
    145,
    161,
    162,
    163,
    165,
    193,
    194,
    195,
    196,
    213,
    214,
    215,
    230,
)
_BUSES = ("1b", "43", "52", "61", "9d", "c3", "d1", "df", "e1", "e9", "f1", "f9", "3a", "3b", "3c", "3d")

_DATACENTER: dict[str, Any] = {
    "ecc_enabled": 1,
    "pcie_width": 16,
    "pcie_width_max": 16,
    "temperature": 41,
    "memory_temperature": 48,
    "threshold_shutdown": 92,
    "threshold_slowdown": 89,
    "threshold_memory_max": 95,
    "threshold_gpu_max": 85,
    "clocks_event_reasons": 0x1,
    "banks_max": 640,
    "event_types": 0x8 | 0x2 | 0x1 | 0x10 | 0x400 | 0x8000,
}
_NO_RETIRED_PAGES = {"nvmlDeviceGetRetiredPages", "nvmlDeviceGetRetiredPagesPendingStatus"}
_NO_ECC = {
    "nvmlDeviceGetEccMode",
    "nvmlDeviceGetTotalEccErrors",
    "nvmlDeviceGetSramEccErrorStatus",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetRowRemapperHistogram",
}
_NO_FABRIC = {"nvmlDeviceGetGpuFabricInfoV"}
_NO_MIG = {"nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount"}
_NO_TLIMIT: dict[int, int | None] = dict.fromkeys((193, 194, 195, 196))
_NO_RECOVERY_EVENTS: dict[int, int | None] = {213: None, 214: None, 215: None}
_OLD_DRAM: dict[int, int | None] = {31: None}

PROFILES: dict[str, dict[str, Any]] = {
    "h100": {
        **_DATACENTER,
        "name": "NVIDIA H100 80GB HBM3",
        "board_part": "692-2G520-0200-000",
        "vbios": "96.00.89.00.01",
        "pcie_generation": 5,
        "pcie_generation_max": 5,
        "margin": 46,
        "link_count": 18,
        "link_state": [1] * 18,
        "fabric_version": 3,
        "fabric_state": 3,
        "fabric_health_mask": 0x1AA,
        "fabric_health_summary": 1,
        "fabric_uuid": "00112233445566778899aabbccddeeff",
        "fabric_clique": 1,
        "power_mw": 71_000,
        "power_limit_mw": 700_000,
        "clock_sm": 345,
        "clock_memory": 2619,
        "clock_sm_max": 1980,
        "clock_memory_max": 2619,
        "fields": {193: -8, 194: -2, 195: 0, 196: 0, **_NO_RECOVERY_EVENTS, **_OLD_DRAM},
        "unsupported": _NO_RETIRED_PAGES,
    },
    "a100_mig": {
        **_DATACENTER,
        "name": "NVIDIA A100-SXM4-80GB",
        "board_part": "692-2G506-0212-002",
        "vbios": "92.00.45.00.03",
        "pcie_generation": 4,
        "pcie_generation_max": 4,
        "link_count": 12,
        "link_state": [1] * 12,
        "mig_mode": 1,
        "mig_mode_pending": 1,
        "power_mw": 58_000,
        "power_limit_mw": 400_000,
        "clock_sm": 210,
        "clock_memory": 1593,
        "clock_sm_max": 1410,
        "clock_memory_max": 1593,
        "fields": {142: None, 143: None, 144: None, 145: None, **_NO_TLIMIT, **_NO_RECOVERY_EVENTS, **_OLD_DRAM},
        "unsupported": _NO_RETIRED_PAGES
        | _NO_FABRIC
        | {"nvmlDeviceGetRemappedRows", "nvmlDeviceGetMarginTemperature", "nvmlDeviceGetUtilizationRates"},
    },
    "v100": {
        **_DATACENTER,
        "name": "Tesla V100-SXM2-32GB",
        "board_part": "900-2G503-0010-000",
        "vbios": "88.00.80.00.01",
        "pcie_generation": 3,
        "pcie_generation_max": 3,
        "link_count": 6,
        "link_state": [1] * 6,
        "power_mw": 40_000,
        "power_limit_mw": 300_000,
        "clock_sm": 135,
        "clock_memory": 877,
        "clock_sm_max": 1530,
        "clock_memory_max": 877,
        "event_types": 0x8 | 0x2 | 0x1 | 0x10,
        "fields": {142: None, 143: None, 144: None, 145: None, 230: None, **_NO_TLIMIT, **_NO_RECOVERY_EVENTS},
        "unsupported": {
            "nvmlDeviceGetSramEccErrorStatus",
            "nvmlDeviceGetRemappedRows",
            "nvmlDeviceGetRowRemapperHistogram",
            "nvmlDeviceGetMarginTemperature",
        }
        | _NO_FABRIC
        | _NO_MIG,
    },
    "b200": {
        **_DATACENTER,
        "name": "NVIDIA B200",
        "board_part": "692-2G525-0200-000",
        "vbios": "97.00.2E.00.01",
        "pcie_generation": 6,
        "pcie_generation_max": 6,
        "margin": 50,
        "link_count": 18,
        "link_state": [1] * 18,
        "fabric_version": 3,
        "fabric_state": 3,
        "fabric_health_mask": 0x1AA,
        "fabric_health_summary": 1,
        "fabric_uuid": "0123456789abcdef0123456789abcdef",
        "power_mw": 140_000,
        "power_limit_mw": 1_000_000,
        "clock_sm": 120,
        "clock_memory": 3996,
        "clock_sm_max": 1965,
        "clock_memory_max": 3996,
        "fields": {161: None, 162: None, 163: None, 193: -5, 194: -2, 195: 0, 196: 0, 213: 0, **_OLD_DRAM},
        "unsupported": _NO_RETIRED_PAGES,
    },
    "rtx4090": {
        "name": "NVIDIA GeForce RTX 4090",
        "vbios": "95.02.18.80.5F",
        "pcie_width": 16,
        "pcie_width_max": 16,
        "pcie_generation": 1,
        "pcie_generation_max": 4,
        "temperature": 38,
        "threshold_shutdown": 99,
        "threshold_slowdown": 96,
        "threshold_gpu_max": 83,
        "power_mw": 22_000,
        "power_limit_mw": 450_000,
        "clock_sm": 210,
        "clock_memory": 405,
        "clock_sm_max": 3105,
        "clock_memory_max": 10501,
        "clocks_event_reasons": 0x1,
        "event_types": 0x8,
        "fields": dict.fromkeys(NOT_SUPPORTED_FIELDS),
        "unsupported": _NO_RETIRED_PAGES
        | _NO_ECC
        | _NO_FABRIC
        | _NO_MIG
        | {
            "nvmlDeviceGetSerial",
            "nvmlDeviceGetBoardPartNumber",
            "nvmlDeviceGetModuleId",
            "nvmlDeviceGetNvLinkState",
            "nvmlDeviceGetMarginTemperature",
        },
    },
}


def device(profile: str, slot: int) -> dict[str, Any]:
    """The numbers and texts of the GPU in `slot` of a node full of one model."""
    return {
        **PROFILES[profile],
        "present": 1,
        "minor": slot,
        "module_id": slot + 1,
        "uuid": f"GPU-{slot:08x}-1111-2222-3333-{slot:012x}",
        "pci": f"00000000:{_BUSES[slot].upper()}:00.0",
        "serial": f"16501230{slot:05}",
    }
