"""Whose error a PCIe port reports: it prints its own address, and that of the device it heard the error from.

Only another line tells what that device is. Where one names it as a NIC, a disk or anything else that is no GPU, the port's
report is about that device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aggregator.model import Signal

_ABOUT_OTHERS = ("pcie_error_other_device", "nic_event", "nic_pcie_degraded")


def attributed(signals: Sequence[Signal]) -> Sequence[Signal]:
    """The signals, with those of ports that report another device's error as `pcie_error_other_device`."""
    others = {
        (signal.node, signal.attributes.get("bdf"))
        for signal in signals
        if signal.kind in _ABOUT_OTHERS and signal.attributes.get("device") != "port"
    }
    if not others:
        return signals
    return [
        replace(signal, kind="pcie_error_other_device", attributes={**signal.attributes, "would_be": signal.kind})
        if signal.attributes.get("device") == "port" and (signal.node, signal.attributes.get("source")) in others
        else signal
        for signal in signals
    ]
