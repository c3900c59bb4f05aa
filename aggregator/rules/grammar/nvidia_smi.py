"""nvidia-smi: the full report (-q), the table, the device list (-L) and the NVLink listings.

These are states as read when the command ran, spread over lines: `Tables` keeps the GPU and the section that a line belongs to
and gives a reading where a value is out of order. "Not Active", 0 and "N/A" give none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from aggregator.model import Scalar
from aggregator.rules.grammar.reading import (
    FULL_PCI,
    UUID,
    Line,
    Reading,
    normalise_pci,
    normalise_uuid,
    present,
)
from aggregator.rules.grammar.smi_states import COMPARED, HOT_CELSIUS, leaf_states, link_states, number_in

_GPU_HEADER = re.compile(rf"GPU ({FULL_PCI})$")
_LISTED = re.compile(rf"GPU (?P<index>\d{{1,3}}): (?P<model>.{{1,80}}?) \(UUID: (?P<uuid>{UUID})\)")
_REPORT = re.compile(r"=+NVSMI LOG=+")
_LEAF = re.compile(r"(?P<key>[A-Za-z][\w .,/()-]{0,60}?)\s{0,60}: (?P<value>.{1,200})$")
_LINK = re.compile(r"Link (?P<link>\d{1,3}): (?P<rest>.{1,120})$")
_VERSIONS = re.compile(r"\| NVIDIA-SMI (?P<smi>[\d.]{5,16})\s.{0,40}?Driver Version: (?P<driver>[\d.]{5,16})")
_ROW = re.compile(
    rf"\|\s{{1,4}}(?P<index>\d{{1,3}})\s\s(?P<model>\S.{{1,40}}?)\s{{2,}}.{{0,30}}\|\s{{1,8}}(?P<pci>{FULL_PCI})\s.{{0,12}}\|\s{{0,20}}(?P<ecc>\S{{1,12}})\s\|"
)
_ROW_STATE = re.compile(
    r"\|\s{0,4}(?P<fan>\S{1,4})\s{1,6}(?P<temperature>\S{1,4})\s{1,6}(?P<perf>\S{1,4})\s{1,24}(?P<power>\S{1,8}).{0,40}\|"
)


@dataclass(slots=True)
class _Gpu:
    """What the report has said so far about one GPU."""

    pci: str | None = None
    uuid: str | None = None
    index: int | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)  # kinds told of it


class Tables:
    """Reads reports line by line; `inside` tells that a report has begun and has not ended."""

    def __init__(self) -> None:
        self.inside = False
        self._gpu = _Gpu()
        self._path: list[tuple[int, str]] = []
        self._row: _Gpu | None = None

    def read(self, line: Line) -> list[Reading] | None:
        """Readings of one line of a report; None when the line belongs to none, and the report is over."""
        text = line.text
        if not text:
            return [] if self.inside else None
        opened = self._opened(text)
        if opened is not None:
            return opened
        if not self.inside or line.stamped:
            self.inside = False
            return None
        if text.startswith(("|", "+")):
            return list(self._table_line(text))
        readings = self._report_line(line)
        if readings is None:
            self.inside = False
        return readings

    def _opened(self, text: str) -> list[Reading] | None:
        """A line that begins a report or the next GPU in it."""
        if not text.startswith(("GPU ", "|", "=")):
            return None
        header, listed, row = _GPU_HEADER.match(text), _LISTED.match(text), _ROW.match(text)
        versions = _VERSIONS.match(text)
        if not (header or listed or row or versions or _REPORT.match(text)):
            return None
        self.inside = True
        self._path.clear()
        if versions:
            return [Reading("gpu_identity", {"driver_version": versions["driver"]})]
        if header:
            self._gpu = _Gpu(pci=normalise_pci(header[1]))
        elif listed:
            return self._identified(listed)
        elif row:
            return list(self._table_row(row))
        return []

    def _identified(self, listed: re.Match[str]) -> list[Reading]:
        index, uuid = int(listed["index"]), normalise_uuid(listed["uuid"])
        self._gpu = _Gpu(uuid=uuid, index=index)
        return [Reading("gpu_identity", {"index": index, "model": listed["model"]}, gpu_uuid=uuid)]

    def _table_row(self, row: re.Match[str]) -> Iterator[Reading]:
        pci, index = normalise_pci(row["pci"]), int(row["index"])
        self._gpu = self._row = _Gpu(pci=pci, index=index)
        yield Reading("gpu_identity", {"index": index, "model": row["model"].strip()}, pci=pci)
        if row["ecc"].isdigit() and int(row["ecc"]) > 0:
            attributes = present(after=int(row["ecc"]), scope="volatile", field="ecc_volatile_uncorrected_total")
            yield Reading("ecc_uncorrectable", attributes, pci=pci)
        elif row["ecc"] == "ERR!":
            yield from self._unreadable("ERR!")

    def _table_line(self, text: str) -> Iterator[Reading]:
        state, gpu = _ROW_STATE.match(text), self._row
        if state is None or gpu is None:
            return
        self._row = None
        if "ERR!" in text:
            yield from self._unreadable("ERR!")
        degrees = state["temperature"].rstrip("C")
        if degrees.isdigit() and int(degrees) >= HOT_CELSIUS:
            yield self._about("temperature_high", {"temperature_celsius": int(degrees)})

    def _report_line(self, line: Line) -> list[Reading] | None:
        link = _LINK.match(line.text)
        if link:
            return [self._about(*state) for state in link_states(int(link["link"]), link["rest"].strip())]
        leaf = _LEAF.match(line.text)
        key = leaf["key"] if leaf else line.text
        if line.indent == 0 and leaf is None:
            return None
        while self._path and self._path[-1][0] >= line.indent:
            self._path.pop()
        above = " ".join(name for _, name in self._path)
        self._path.append((line.indent, key))
        if leaf is None:
            return []
        return list(self._leaf(key, leaf["value"].strip(), above))

    def _leaf(self, key: str, value: str, above: str) -> Iterator[Reading]:
        if value in ("Unknown Error", "ERR!", "GPU is lost", "GPU requires reset"):
            yield from self._unreadable(value)
            return
        identity = _IDENTITY.get(key)
        if identity is not None and value != "N/A":
            yield self._identity(identity, value)
            return
        number = number_in(value)
        if number is not None:
            yield from self._measured(key, number, above)
        for kind, attributes in leaf_states(key, value, number, above):
            yield self._about(kind, attributes)

    def _identity(self, name: str, value: str) -> Reading:
        if name == "uuid":
            self._gpu.uuid = normalise_uuid(value)
            return self._about("gpu_identity", {})
        attributes: dict[str, Scalar] = {name: int(value) if name == "minor" and value.isdigit() else value}
        return self._about("gpu_identity", attributes)

    def _measured(self, key: str, number: float, above: str) -> Iterator[Reading]:
        """Values that mean something only beside another one of the same GPU."""
        numbers = self._gpu.numbers
        name = f"{above.rsplit(' ', 1)[-1]} {key}" if key in ("Max", "Current") else key
        numbers[name] = number
        for compared in COMPARED:
            found = compared(name, numbers)
            if found is not None:
                yield self._about(*found)

    def _unreadable(self, words: str) -> Iterator[Reading]:
        """A value that could not be read tells it of the whole GPU, and why if it says so: each once."""
        kind = {"GPU is lost": "nvml_gpu_lost", "GPU requires reset": "gpu_reset_required"}.get(words, _UNREADABLE)
        if kind not in self._gpu.unreadable and (kind != _UNREADABLE or not self._gpu.unreadable):
            self._gpu.unreadable.add(kind)
            yield self._about(kind, {"text": words})

    def _about(self, kind: str, attributes: dict[str, Scalar]) -> Reading:
        if self._gpu.pci is None and self._gpu.index is not None:
            attributes = {"index": self._gpu.index} | attributes
        return Reading(kind, attributes, pci=self._gpu.pci, gpu_uuid=self._gpu.uuid)


_IDENTITY = {
    "Product Name": "model",
    "Serial Number": "serial",
    "GPU UUID": "uuid",
    "Minor Number": "minor",
    "Driver Version": "driver_version",
}
_UNREADABLE = "gpu_handle_error"
OPENING_WORDS = ("gpu 0000", "(uuid: gpu-", "nvsmi log", "nvidia-smi ", "  nvidia ", "  tesla ")
