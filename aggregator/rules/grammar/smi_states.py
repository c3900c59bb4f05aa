"""What one value of an nvidia-smi report means: a state that is on, a counter above zero, a measurement beyond its limit.

"Not Active", 0 and "N/A" mean nothing. Some values mean something only beside another one of the same GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from aggregator.model import Scalar
from aggregator.rules.grammar.reading import PROGRAM_LINES, Grammar, Line, Reading, present
from aggregator.rules.grammar.xid_text import recovery_action

_SET_BELOW_CELSIUS = 20
HOT_CELSIUS = 85  # worth showing; whether it is too hot depends on the board's own limits

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


def number_in(value: str) -> float | None:
    """The number that a value begins with, its unit left out; None for what is no number."""
    found = re.match(r"-?\d{1,15}(?:\.\d{1,6})?(?=$| |x|C|W)", value)
    return float(found[0]) if found else None


def leaf_states(key: str, value: str, number: float | None, above: str) -> Iterator[State]:
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
    if name == "GPU Current Temp" and current is not None and current >= HOT_CELSIUS:
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


# What a value says beside the others of its GPU, by the value's name and all values so far.
COMPARED: tuple[Callable[[str, dict[str, float]], State | None], ...] = (_hot, _held_cool, _limited, _narrow)

_LINK_COUNTER = re.compile(
    r"(?:Lane \d{1,2}:? ?)?(?P<counter>[A-Z][\w /-]{2,40}?)(?: Errors?| Count)?: (?P<value>\d{1,20})(?: errors?)?$"
)
# Traffic, links that recovered, and what forward error correction mends all the time on links that are well.
_HEALTHY_COUNTERS = re.compile(r"packets$|bytes$|successful|^Total link recovery|^Effective|^Symbol|^FEC", re.I)


def link_states(link: int, rest: str) -> Iterator[State]:
    """A line of the NVLink listings, after its link's number."""
    if "inactive" in rest.lower():
        yield "nvlink_link_down", {"link": link}
        return
    counter = _LINK_COUNTER.match(rest)
    if counter and int(counter["value"]) > 0 and not _HEALTHY_COUNTERS.search(counter["counter"]):
        name = counter["counter"].strip().lower()
        yield "nvlink_errors", {"link": link, "counter": name, "after": int(counter["value"])}


_LONE_LEAF: Callable[[str], re.Match[str] | None] = re.compile(
    r"(?P<key>HW Slowdown|HW Thermal Slowdown|HW Power Brake Slowdown|SW Thermal Slowdown|Remapping Failure Occurred|"
    r"SRAM Threshold Exceeded)\s{1,60}: (?P<value>Active|Yes)$"
).match


def read_lone_leaf(line: Line) -> Iterator[Reading]:
    """A line that somebody has cut out of a report with grep: the value without its GPU."""
    found = _LONE_LEAF(line.text)
    if found:
        for kind, attributes in leaf_states(found["key"], found["value"], None, ""):
            yield Reading(kind, attributes)


LONE_LEAF = Grammar("nvidia_smi_leaf", ("slowdown", "remapping failure"), read_lone_leaf, PROGRAM_LINES)
