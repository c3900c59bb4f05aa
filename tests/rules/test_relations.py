"""Which cause on one device explains which effect on another, and which does not."""

from __future__ import annotations

import pytest

from aggregator import rules
from tests.rules.bursts import A, B, signals_of, typed, xid

LOST = xid(79, "GPU has fallen off the bus.")
SWITCH = "nvidia-nvswitch1: SXid (PCI:0000:87:00.0): 24007, Fatal, Link 30 sourcetrack timeout error (First)"


@pytest.mark.parametrize(
    ("cause", "effect", "explained"),
    [
        pytest.param(LOST, xid(74, "NVLink: fatal error detected on link 6(0x10000, 0x0)", B), True, id="neighbours see a dead GPU's links fail"),
        pytest.param(LOST, SWITCH, True, id="so do the switches"),
        pytest.param(SWITCH, xid(74, "NVLink: fatal error detected on link 6(0x10000, 0x0)", B), True, id="a switch takes links down"),
        pytest.param(xid(119, "Timeout after 45s"), typed("nvml_hung", None), True, id="a silent GPU hangs the driver"),
        pytest.param(xid(48, "DBE"), xid(45, "Ch 1", B), True, id="a job's other ranks are cleaned up"),
        pytest.param(xid(31, "MMU Fault"), LOST, False, id="an application fault kills no other GPU"),
        pytest.param(xid(45, "Ch 1"), xid(48, "DBE", B), False, id="cleanup causes nothing"),
        pytest.param(typed("hw_thermal_slowdown", A), xid(48, "DBE", B), False, id="heat on one GPU is no memory error on another"),
    ],
)  # fmt: skip
def test_explains(cause: object, effect: object, explained: bool) -> None:
    """The relation between two signals of one node."""
    (first,), (second,) = signals_of(cause), signals_of(effect)  # type: ignore[arg-type]
    assert rules.explains(first, second) is explained
