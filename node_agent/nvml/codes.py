"""NVML's numbers that both sides of the pipe use. Written out, because an older nvidia-ml-py may lack a name."""

from __future__ import annotations

from typing import Final

NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
DRIVER_NOT_LOADED: Final = 9
TIMEOUT: Final = 10
LIBRARY_NOT_FOUND: Final = 12
FUNCTION_NOT_FOUND: Final = 13
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16
LIB_RM_VERSION_MISMATCH: Final = 18
ARGUMENT_VERSION_MISMATCH: Final = 25
UNKNOWN: Final = 999

# What a device answers when it does not offer a value: an unknown field id is an invalid argument to an older driver.
NOT_OFFERED: Final = frozenset({2, NOT_SUPPORTED, FUNCTION_NOT_FOUND, 22, ARGUMENT_VERSION_MISMATCH, 26})

EVENT_SINGLE_BIT_ECC: Final = 0x1
EVENT_PSTATE: Final = 0x4
EVENT_XID: Final = 0x8
EVENT_CLOCK: Final = 0x10
EVENT_POWER_SOURCE: Final = 0x80
NOT_MIG: Final = 0xFFFFFFFF

RECOVERY_ACTIONS: Final = (
    "none",
    "gpu_reset",
    "node_reboot",
    "drain_p2p",
    "drain_and_reset",
    "recover_imex",
    "bus_reset",
    "system_reboot",
)


class DriverError(Exception):
    """NVML as a whole refuses: no driver, no library, wrong version, no permission, or a call that concerns no single GPU."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
