"""nvidia-smi: the full report (-q), the table, the device list (-L) and the NVLink listings.

These are states as read when the command ran, spread over lines: `Tables` keeps the GPU and the section that a line belongs to
and gives a reading where a value is out of order. "Not Active", 0 and "N/A" give none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from aggregator.model import Scalar
from aggregator.rules.grammar.reading import (
    FULL_PCI,
    PROGRAM_LINES,
    UUID,
    Grammar,
    Line,
    Reading,
    normalise_pci,
    normalise_uuid,
    present,
)
from aggregator.rules.grammar.xid_text import recovery_action

_GPU_HEADER = re.compile(rf"GPU ({FULL_PCI})$")
_LISTED = re.compile(rf"GPU (?P<index>\d{{1,3}}): (?P<model>.{{1,80}}?) \(UUID: (?P<uuid>{UUID})\)")
_REPORT = re.compile(r"=+NVSMI LOG=+")
_LEAF = re.compile(r"(?P<key>[A-Za-z][\w .,/()-]{0,60}?)\s{0,60}: (?P<value>.{1,200})$")
_LINK = re.compile(r"Link (?P<link>\d{1,3}): (?P<rest>.{1,120})$")
_LINK_COUNTER = re.compile(r"(?P<counter>[A-Z][\w /-]{2,40}?)(?: Errors?| Count)?: (?P<value>\d{1,20})(?: errors?)?$")
_VERSIONS = re.compile(r"\| NVIDIA-SMI (?P<smi>[\d.]{5,16})\s.{0,40}?Driver Version: (?P<driver>[\d.]{5,16})")
_ROW = re.compile(
    rf"\|\s{{1,4}}(?P<index>\d{{1,3}})\s\s(?P<model>\S.{{1,40}}?)\s{{2,}}.{{0,30}}\|\s{{1,8}}(?P<pci>{FULL_PCI})\s.{{0,12}}\|\s{{0,20}}(?P<ecc>\S{{1,12}})\s\|"
)
_ROW_STATE = re.compile(
    r"\|\s{0,4}(?P<fan>\S{1,4})\s{1,6}(?P<temperature>\S{1,4})\s{1,6}(?P<perf>\S{1,4})\s{1,24}(?P<power>\S{1,8}).{0,40}\|"
)
_SET_BELOW_CELSIUS = 20
_HOT_CELSIUS = 85  # worth showing; whether it is too hot depends on the board's own limits


@dataclass(slots=True)
class _Gpu:
    """What the report has said so far about one GPU."""

    pci: str | None = None
    uuid: str | None = None
    index: int | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    unreadable: bool = False


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
            yield self._unreadable("ERR!")

    def _table_line(self, text: str) -> Iterator[Reading]:
        state, gpu = _ROW_STATE.match(text), self._row
        if state is None or gpu is None:
            return
        self._row = None
        if "ERR!" in text and not gpu.unreadable:
            yield self._unreadable("ERR!")
        degrees = state["temperature"].rstrip("C")
        if degrees.isdigit() and int(degrees) >= _HOT_CELSIUS:
            yield self._about("temperature_high", {"temperature_celsius": int(degrees)})

    def _report_line(self, line: Line) -> list[Reading] | None:
        link = _LINK.match(line.text)
        if link:
            return list(self._link(link))
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
            if not self._gpu.unreadable:
                yield self._unreadable(value)
            return
        identity = _IDENTITY.get(key)
        if identity is not None and value != "N/A":
            yield self._identity(identity, value)
            return
        number = _number(value)
        if number is not None:
            yield from self._measured(key, number, above)
        for kind, attributes in _leaf_states(key, value, number, above):
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
        for compared in (_hot, _held_cool, _limited, _narrow):
            found = compared(name, numbers)
            if found is not None:
                yield self._about(*found)

    def _link(self, found: re.Match[str]) -> Iterator[Reading]:
        link, rest = int(found["link"]), found["rest"].strip()
        if "inactive" in rest.lower():
            yield self._about("nvlink_link_down", {"link": link})
            return
        counter = _LINK_COUNTER.match(rest)
        if counter and int(counter["value"]) > 0:
            attributes = present(link=link, counter=counter["counter"].strip().lower(), after=int(counter["value"]))
            yield self._about("nvlink_errors", attributes)

    def _unreadable(self, words: str) -> Reading:
        self._gpu.unreadable = True
        kind = {"GPU is lost": "nvml_gpu_lost", "GPU requires reset": "gpu_reset_required"}.get(
            words, "gpu_handle_error"
        )
        return self._about(kind, {"text": words})

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
_ACTIVE = {
    "HW Slowdown": "hw_slowdown",
    "HW Thermal Slowdown": "hw_thermal_slowdown",
    "HW Power Brake Slowdown": "hw_power_brake",
    "HW Power Brake": "hw_power_brake",
    "SW Thermal Slowdown": "sw_thermal_slowdown",
    "SW Power Cap": "sw_power_cap",
}
_YES = {
    "SRAM Threshold Exceeded": "sram_threshold_exceeded",
    "Pending Page Blacklist": "retired_page_pending",
    "Pending Page Denylist": "retired_page_pending",
    "Remapping Failure Occurred": "row_remap_failure",
    "Reset Required": "gpu_reset_required",
}
State = tuple[str, dict[str, Scalar]]


def _number(value: str) -> float | None:
    found = re.match(r"-?\d{1,15}(?:\.\d{1,6})?(?=$| |x|C|W)", value)
    return float(found[0]) if found else None


def _leaf_states(key: str, value: str, number: float | None, above: str) -> Iterator[State]:
    """States that one line alone tells."""
    if value == "Active" and key in _ACTIVE:
        yield _ACTIVE[key], {"reason": key}
    elif value == "Yes" and key in _YES:
        yield _YES[key], {"text": f"{key}: Yes"}
    elif value == "Yes" and key == "Pending" and "Remapped" in above:
        yield "row_remap_pending", {"text": "Remapped Rows Pending: Yes"}
    elif value == "Yes" and key == "Drain and Reset Recommended":
        yield "recovery_action", {"recovery_action": "drain_and_reset", "text": key}
    elif key == "GPU Recovery Action" and value not in ("None", "N/A"):
        yield "recovery_action", {"recovery_action": recovery_action(value), "text": value}
    elif "Fabric" in above:
        yield from _fabric(key, value)
    elif number is not None and number > 0:
        yield from _counted(key, int(number), above)


def _fabric(key: str, value: str) -> Iterator[State]:
    if (key == "Status" and value not in ("Success", "N/A")) or (
        key in ("Bandwidth", "Summary") and value in ("Degraded", "Unhealthy")
    ):
        yield "nvlink_fabric_error", {"text": f"Fabric {key}: {value}"}
    elif key == "State" and value in ("In Progress", "Not Started"):
        yield "fabric_state", {"state": value}


def _counted(key: str, number: int, above: str) -> Iterator[State]:
    """Error counters above zero."""
    if "Remapped" in above and key in ("Correctable Error", "Uncorrectable Error"):
        yield "row_remapped", {"after": number, "cause": key.split()[0].lower()}
    elif "Retired" in above and key in ("Single Bit ECC", "Double Bit ECC"):
        yield "retired_page", {"after": number, "cause": key.lower().replace(" bit ecc", "_bit")}
    elif key == "Replays Since Reset":
        yield "pcie_replay", {"after": number, "field": "pcie_replay_total"}
    elif "ECC" in above and ("Volatile" in above or "Aggregate" in above):
        scope = "volatile" if "Volatile" in above else "aggregate"
        memory = "sram" if "SRAM" in key else "dram" if "DRAM" in key or key == "Device Memory" else None
        uncorrectable = "Uncorrectable" in key or "Double Bit" in above
        if uncorrectable or "Correctable" in key or "Single Bit" in above:
            kind = "ecc_uncorrectable" if uncorrectable else "ecc_corrected"
            yield kind, present(after=number, scope=scope, memory=memory, field=key)


def _hot(name: str, numbers: dict[str, float]) -> State | None:
    current = numbers.get("GPU Current Temp")
    if name == "GPU T.Limit Temp" and numbers[name] <= 0:
        return "thermal_violation", present(
            temperature_celsius=current, margin_celsius=numbers[name], text="T.Limit margin used up"
        )
    if name == "GPU Current Temp" and current is not None and current >= _HOT_CELSIUS:
        return "temperature_high", {"temperature_celsius": current}
    if (
        name in ("GPU Slowdown Temp", "GPU Max Operating Temp")
        and current is not None
        and numbers[name] > 0
        and current >= numbers[name]
    ):
        return "thermal_violation", {
            "temperature_celsius": current,
            "limit": numbers[name],
            "text": f"at or above {name}",
        }
    memory = numbers.get("Memory Current Temp")
    if name == "Memory Max Operating Temp" and memory is not None and memory >= numbers[name] > 0:
        return "thermal_violation", {
            "temperature_celsius": memory,
            "limit": numbers[name],
            "text": f"at or above {name}",
        }
    return None


def _held_cool(name: str, numbers: dict[str, float]) -> State | None:
    """A target far below where the board slows itself was set by somebody; boards come with a few degrees between the two."""
    slowdown = numbers.get("GPU Slowdown Temp")
    if name != "GPU Target Temperature" or slowdown is None or numbers[name] > slowdown - _SET_BELOW_CELSIUS:
        return None
    return "thermal_limit_low", {"limit": numbers[name], "default": slowdown}


def _limited(name: str, numbers: dict[str, float]) -> State | None:
    limit = numbers.get("Current Power Limit", numbers.get("Power Limit"))
    if name == "Default Power Limit" and limit is not None and limit < 0.98 * numbers[name]:
        return "power_limit_low", {"limit": limit, "default": numbers[name]}
    return None


def _narrow(name: str, numbers: dict[str, float]) -> State | None:
    """Lanes are judged, not the generation: an idle link runs slow on purpose."""
    width, width_max = numbers.get("Width Current"), numbers.get("Width Max")
    if name != "Width Current" or width is None or width_max is None or width >= width_max:
        return None
    return "pcie_gpu_degraded", {"width": int(width), "width_max": int(width_max), "width_degraded": True}


_LONE_LEAF: Callable[[str], re.Match[str] | None] = re.compile(
    r"(?P<key>HW Slowdown|HW Thermal Slowdown|HW Power Brake Slowdown|SW Thermal Slowdown|Remapping Failure Occurred|"
    r"SRAM Threshold Exceeded)\s{1,60}: (?P<value>Active|Yes)$"
).match


def read_lone_leaf(line: Line) -> Iterator[Reading]:
    """A line that somebody has cut out of a report with grep: the value without its GPU."""
    found = _LONE_LEAF(line.text)
    if found:
        for kind, attributes in _leaf_states(found["key"], found["value"], None, ""):
            yield Reading(kind, attributes)


LONE_LEAF = Grammar("nvidia_smi_leaf", ("slowdown", "remapping failure"), read_lone_leaf, PROGRAM_LINES)
OPENING_WORDS = ("gpu 0000", "(uuid: gpu-", "nvsmi log", "nvidia-smi ", "  nvidia ", "  tesla ")
