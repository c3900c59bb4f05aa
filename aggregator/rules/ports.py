"""Whose error a PCIe port reports: it prints its own address, and that of the device it heard the error from.

Only another line tells what that device is. Where one names it as a NIC, a disk or anything else that is no GPU, the port's
report is about that device. Where a GPU's link is said to be limited by the port, the port's own errors are on that link.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from aggregator.model import Scalar, Signal

_ABOUT_OTHERS = ("pcie_error_other_device", "nic_event", "nic_pcie_degraded")


def attributed(signals: Sequence[Signal]) -> Sequence[Signal]:
    """The signals, with those of ports that report another device's error as `pcie_error_other_device`, and those of the port above
    a GPU as that GPU's."""
    others = {
        (signal.node, signal.attributes.get("bdf"))
        for signal in signals
        if signal.kind in _ABOUT_OTHERS and signal.attributes.get("device") != "port"
    }
    above = {
        (signal.node, signal.attributes.get("limited_by")): signal
        for signal in signals
        if signal.kind == "pcie_gpu_degraded" and signal.pci is not None
    }
    if not others and not above:
        return signals
    return [_attributed(signal, others, above) for signal in signals]


def _attributed(signal: Signal, others: Set[tuple[str, Scalar]], above: Mapping[tuple[str, Scalar], Signal]) -> Signal:
    if signal.attributes.get("device") != "port" or signal.pci is not None:
        return signal
    source = signal.attributes.get("source")
    if (signal.node, source) in others:
        attributes = {**signal.attributes, "would_be": signal.kind}
        return replace(signal, kind="pcie_error_other_device", attributes=attributes)
    own = signal.attributes.get("bdf")
    gpu = above.get((signal.node, own)) if source in (None, own) else None
    return (
        replace(signal, pci=gpu.pci, gpu_uuid=gpu.gpu_uuid, attributes={**signal.attributes, "device": "gpu"})
        if gpu
        else signal
    )
