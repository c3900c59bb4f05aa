"""PCI Express: AER reports, links that go down or train low, devices that stop answering, IOMMU faults.

The device that a line names decides what it means: a GPU's error is the GPU's, a port's may be the GPU's behind it, a NIC's or
NVMe's never is. The kernel prints the driver's name in front of the address, which tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from aggregator.rules.grammar.forms import Attributes, first, form
from aggregator.rules.grammar.reading import FULL_PCI, Grammar, Line, Reading, normalise_pci, present

_DEVICE = re.compile(rf"(?P<driver>[A-Za-z][\w-]{{0,31}}) (?P<bdf>{FULL_PCI})(?:: | )(?P<text>.{{1,600}})", re.S)
_NIC_DRIVERS = (
    "mlx5_core",
    "mlx4_core",
    "bnxt_en",
    "ice",
    "i40e",
    "ixgbe",
    "igb",
    "efa",
    "ena",
    "irdma",
    "tg3",
    "qede",
    "gve",
    "mana",
)

_BUS_ERROR = re.compile(
    r"PCIe Bus Error: severity=(?P<severity>Correct\w+|Uncorrect\w+ ?\(Non-?Fatal\)|Uncorrect\w+ ?\(Fatal\)|Uncorrect\w+)"
    r"(?:, type=(?P<layer>[\w ]{1,40}))?",
    re.I,
)
_RECEIVED = re.compile(
    rf"AER: (?:Multiple )?(?P<severity>Correct\w+|Uncorrect\w+ \(Non-?Fatal\)|Uncorrect\w+ \(Fatal\)) error (?:message )?received"
    rf"(?:(?: from|:) (?P<source>{FULL_PCI}))?",
    re.I,
)
_BIT = re.compile(r"(?:AER: )?\s{0,12}\[ ?(?P<bit>\d{1,2})\]\s{1,4}(?P<error>[A-Z][\w/ ]{1,30}?)\s*(?:\(First\))?$")
_BANDWIDTH = re.compile(
    r"(?P<now>\d+\.\d+) Gb/s available PCIe bandwidth(?:, limited by (?P<speed>\d+(?:\.\d+)?) GT/s PCIe x(?P<width>\d+) link"
    rf"(?: at (?P<limited_by>{FULL_PCI}))?)?"
    r"(?: \(capable of \d+\.\d+ Gb/s with (?P<speed_max>\d+(?:\.\d+)?) GT/s PCIe x(?P<width_max>\d+) link\))?"
)
_FOUND = re.compile(rf"pci (?P<bdf>{FULL_PCI}): \[10de:[0-9a-f]{{4}}\] type \d\d class 0x03")
_BY_NAME = {"cmpltto": "pcie_completion_timeout", "completion timeout": "pcie_completion_timeout"}
_SURPRISE = ("sdes", "surprise down", "surpdn", "surprisedown")

_OTHER_FORMS = (
    form(
        "pci_power_state_failure",
        "power state|d3cold",
        r"(?:Unable to|can't|refused to) change power state|not ready \d+ms after|device inaccessible",
    ),
    form(
        "pcie_recovery_failed",
        "recover|reset failed",
        r"can't recover|device recovery failed|subordinate device reset failed|AER: recovery failed",
    ),
    form("pcie_link_down", "dpc:", r"DPC: (?:containment event|unmasked uncorrectable|ERR_(?:NON)?FATAL)"),
    form(
        "pcie_link_down",
        "link down|card not present|surprise",
        r"pciehp.{0,60}(?:Link Down|Card not present)|Surprise (?:Removal|Link Down)",
    ),
    form(
        "pcie_link_down",
        "retraining|link training",
        r"retraining (?:non-functional|failed)|broken device, retraining|link training failed",
    ),
)
_SLOT = re.compile(r"Slot\((?P<slot>[\w-]{1,20})\)")
_IOMMU = re.compile(
    r"(?:DMAR: .{0,80}(?:fault|Request device)|DMAR: DRHD: handling fault|"
    r"AMD-Vi: .{0,60}(?:IO_PAGE_FAULT|INVALID_DEVICE_REQUEST|"
    r"ILLEGAL_DEV_TABLE|Completion-Wait)|"
    r"arm-smmu\S{0,40} .{0,60}(?:event 0x|fault|TBU|C_BAD|F_TRANSLATION)|iommu ivhd\d: .{0,60}logged)",
    re.I | re.S,
)
_REQUESTER = re.compile(
    r"(?:Request device|device=|sid=?)\s*\[?(?P<bdf>(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])", re.I
)


def read_pcie(line: Line) -> Iterator[Reading]:
    """A PCI device's own error, in the name of whatever driver holds it."""
    found = _DEVICE.match(line.text)
    if found is None:
        return
    device, pci = device_of(found["driver"]), normalise_pci(found["bdf"])
    text = found["text"]
    for reader in (_bus_error, _received, _bit, _bandwidth, _other):
        reading = reader(text, device, pci)
        if reading is not None:
            yield reading
            return


def device_of(driver: str) -> str:
    """What kind of device a kernel driver's name stands for: gpu, port, nic, nvme, other, or unknown for plain `pci`."""
    name = driver.lower()
    if name.startswith("nvidia"):
        return "gpu"
    if name in ("pcieport", "shpchp", "pciehp"):
        return "port"
    if name in _NIC_DRIVERS or name.startswith("mlx"):
        return "nic"
    if name == "nvme":
        return "nvme"
    return "unknown" if name in ("pci", "vfio-pci", "pci_bus") else "other"


def _severity(printed: str) -> str:
    lowered = printed.lower()
    if lowered.startswith("correct"):
        return "pcie_aer_corrected"
    return "pcie_aer_fatal" if "(fatal)" in lowered else "pcie_aer_nonfatal"


def _of(kind: str, device: str, pci: str | None, attributes: Attributes) -> Reading:
    """An error of a GPU, of a port, or of a device that cannot be a GPU."""
    attributes = {"device": device, **attributes}
    if device in ("gpu", "unknown"):
        return Reading(kind, attributes, pci=pci)
    if device == "port":
        return Reading(kind, attributes | present(bdf=pci))
    return Reading("pcie_error_other_device", attributes | present(bdf=pci, would_be=kind))


def _bus_error(text: str, device: str, pci: str | None) -> Reading | None:
    found = _BUS_ERROR.search(text)
    if found is None:
        return None
    layer = (found["layer"] or "").strip()
    return _of(_severity(found["severity"]), device, pci, present(layer=layer, text=text))


def _received(text: str, device: str, pci: str | None) -> Reading | None:
    found = _RECEIVED.search(text)
    if found is None:
        return None
    source = normalise_pci(found["source"] or "")
    return _of(_severity(found["severity"]), device, pci, present(source=source, text=text))


def _bit(text: str, device: str, pci: str | None) -> Reading | None:
    """The line that names the error; only the errors that change a verdict are signals of their own."""
    found = _BIT.match(text)
    if found is None:
        return None
    error = found["error"].strip()
    lowered = error.lower()
    kind = "pcie_surprise_down" if lowered in _SURPRISE else _BY_NAME.get(lowered)
    return None if kind is None else _of(kind, device, pci, {"error": error})


def _bandwidth(text: str, device: str, pci: str | None) -> Reading | None:
    found = _BANDWIDTH.search(text)
    if found is None or found["width"] is None:
        return None
    width, width_max = int(found["width"]), int(found["width_max"]) if found["width_max"] else None
    attributes = present(
        width=width,
        width_max=width_max,
        speed=float(found["speed"]),
        speed_max=float(found["speed_max"]) if found["speed_max"] else None,
        width_degraded=None if width_max is None else width < width_max,
        limited_by=normalise_pci(found["limited_by"] or ""),
    )
    if device == "nic":
        return Reading("nic_pcie_degraded", attributes | present(bdf=pci))
    return (
        Reading("pcie_gpu_degraded", {"device": device} | attributes, pci=pci) if device in ("gpu", "unknown") else None
    )


def read_enumeration(line: Line) -> Iterator[Reading]:
    """The kernel names what it finds on the bus: an NVIDIA display device is a GPU, whatever driver it will get."""
    found = _FOUND.match(line.text)
    if found:
        yield Reading("gpu_identity", pci=normalise_pci(found["bdf"]))


def _other(text: str, device: str, pci: str | None) -> Reading | None:
    reading = first(_OTHER_FORMS, text)
    if reading is None or (device == "gpu" and reading.kind == "pci_power_state_failure"):
        return None  # the driver's own grammar reads it
    slot = _SLOT.search(text)
    return _of(reading.kind, device, pci, present(slot=slot["slot"] if slot else None, text=text))


def read_iommu(line: Line) -> Iterator[Reading]:
    """What the IOMMU or SMMU blocked."""
    if not _IOMMU.search(line.text):
        return
    requester = _REQUESTER.search(line.text)
    bdf = normalise_pci(requester["bdf"]) if requester else None
    yield Reading("iommu_fault", present(bdf=bdf, text=line.text))


GRAMMARS = (
    Grammar(
        "pcie",
        (
            "aer:",
            "pcie bus error",
            "pciehp",
            "dpc:",
            "available pcie bandwidth",
            "cmpltto",
            "sdes",
            "power state",
            "after flr",
            "after bus reset",
            "downstream link",
        ),
        read_pcie,
    ),
    Grammar("enumeration", ("[10de:",), read_enumeration),
    Grammar("iommu", ("dmar:", "amd-vi", "arm-smmu"), read_iommu),
)
