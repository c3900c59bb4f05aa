"""States of one GPU: when each holds, and for how long it must hold, or not hold, before that is told. Pure.

A check that cannot tell (the value is unsupported, unreadable or never read) answers UNKNOWN: what was told then stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from node_agent.evidence import Value
from node_agent.nvml.codes import GPU_IS_LOST, RESET_REQUIRED

LOADED_UTILIZATION_PERCENT: Final = 50  # from here on a PCIe link must run at its full generation


class Tell(Enum):
    """A check's answer when it cannot tell."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Tell.UNKNOWN


@dataclass(frozen=True, slots=True)
class Problem:
    """A state that holds: the value that shows it. A problem with another `variant` is told anew."""

    field: str
    value: Value
    text: str
    limit: Value = None
    variant: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """What a check sees: all present values, what was told of this state, and the NVLinks that were ever active."""

    values: Mapping[str, Value]
    told: Problem | None
    links: frozenset[int]

    def number(self, name: str) -> float | None:
        """The value when it is a number."""
        value = self.values.get(name)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def text(self, name: str) -> str | None:
        """The value when it is a text."""
        value = self.values.get(name)
        return value if isinstance(value, str) else None


Check = Callable[[View], Problem | Tell | None]


@dataclass(frozen=True, slots=True)
class State:
    """One kind of state. `reads` names every value that its check looks at."""

    kind: str
    reads: frozenset[str]
    check: Check
    begin_after_seconds: float = 0.0
    end_after_seconds: float = 0.0


def _state(
    kind: str, reads: str, check: Check, begin_after_seconds: float = 0.0, end_after_seconds: float = 0.0
) -> State:
    return State(kind, frozenset(reads.split()), check, begin_after_seconds, end_after_seconds)


def _flag(name: str, text: str) -> State:
    def check(view: View) -> Problem | Tell | None:
        value = view.values.get(name)
        if not isinstance(value, bool):
            return UNKNOWN
        return Problem(name, True, text) if value else None

    return _state(name, name, check)


def _slowdown(kind: str, bit: int, text: str, begin_after: float, end_after: float, *, unless: int = 0) -> State:
    def check(view: View) -> Problem | Tell | None:
        reasons = view.number("clocks_event_reasons")
        if reasons is None:
            return UNKNOWN
        holds = int(reasons) & bit and not int(reasons) & unless
        return Problem("clocks_event_reasons", reasons, text, limit=bit) if holds else None

    return _state(kind, "clocks_event_reasons", check, begin_after, end_after)


def _lost(view: View) -> Problem | Tell | None:
    code = view.number("nvml_return")
    if code is None:
        return UNKNOWN
    if code in (0, RESET_REQUIRED):
        return None
    words = "GPU is lost" if code == GPU_IS_LOST else "the GPU cannot be read"
    return Problem("nvml_return", code, f"NVML returns {code:.0f}: {words}")


def _reset_required(view: View) -> Problem | Tell | None:
    code = view.number("nvml_return")
    if code == 0:
        return None
    if code != RESET_REQUIRED:
        return UNKNOWN
    return Problem("nvml_return", code, f"NVML returns {code:.0f}: GPU requires reset")


def _recovery_action(view: View) -> Problem | Tell | None:
    action = view.text("recovery_action")
    if action is None:
        return UNKNOWN
    if action == "none":
        return None
    return Problem("recovery_action", action, f"the driver asks for {action}", variant=action)


def _links_down(view: View) -> Problem | Tell | None:
    states = view.text("nvlink_states")
    if states is None:
        return UNKNOWN
    down = [link for link, state in enumerate(states.split()) if state == "inactive" and link in view.links]
    if not down:
        return None
    links = ",".join(map(str, down))
    return Problem("nvlink_links_down", links, f"NVLink {links} inactive", variant=links)


def active_links(values: Mapping[str, Value]) -> frozenset[int]:
    """The NVLinks that are up."""
    states = values.get("nvlink_states")
    if not isinstance(states, str):
        return frozenset()
    return frozenset(link for link, state in enumerate(states.split()) if state not in ("inactive", "unknown"))


# NVML_GPU_FABRIC_HEALTH_MASK_*: shift, width, values that are bad. 0 is "not supported", and no sub-field's bad value.
_FABRIC_HEALTH: Final = {
    "degraded_bandwidth": (0, 0x3, {1}),
    "route_recovery": (2, 0x3, {1}),
    "route_unhealthy": (4, 0x3, {1}),
    "access_timeout_recovery": (6, 0x3, {1}),
    "incorrect_configuration": (8, 0xF, set(range(2, 16))),
    "fabric_manager_disconnected": (14, 0x3, {2}),
}


def _fabric(view: View) -> Problem | Tell | None:
    state = view.text("fabric_state")
    if state is None:
        return UNKNOWN
    if state != "completed":
        return Problem(
            "fabric_state", state, f"NVLink fabric registration is {state}", limit="completed", variant=state
        )
    status, mask, health = view.number("fabric_status"), view.number("fabric_health_mask"), view.text("fabric_health")
    if status:
        return Problem("fabric_status", status, f"NVLink fabric registration failed with {status:.0f}", limit=0)
    bad = [
        name for name, (shift, width, values) in _FABRIC_HEALTH.items() if (int(mask or 0) >> shift) & width in values
    ]
    if bad or health in ("unhealthy", "limited_capacity"):
        text = ", ".join(bad) or str(health)
        return Problem("fabric_health_mask", mask, f"NVLink fabric health: {text}", variant=text)
    return None


def _pcie(view: View) -> Problem | Tell | None:
    width, width_max = view.number("pcie_width_lanes"), view.number("pcie_width_max_lanes")
    if width is None or not width_max:
        return UNKNOWN
    if 0 < width < width_max:
        text = f"PCIe link has {width:.0f} of {width_max:.0f} lanes"
        return Problem("pcie_width_lanes", width, text, limit=width_max, variant=f"width {width:.0f}")
    generation, generation_max = view.number("pcie_generation"), view.number("pcie_generation_max")
    if (
        (view.number("utilization_percent") or 0) < LOADED_UTILIZATION_PERCENT
        or generation is None
        or not generation_max
    ):
        # An idle link lowers its generation: nothing can be said of that, save that a missing width is back.
        return UNKNOWN if view.told is not None and view.told.field == "pcie_generation" else None
    if generation < generation_max:
        text = f"PCIe link runs at generation {generation:.0f} of {generation_max:.0f} under load"
        return Problem(
            "pcie_generation", generation, text, limit=generation_max, variant=f"generation {generation:.0f}"
        )
    return None


def _temperature(view: View) -> Problem | Tell | None:
    margin, floor = view.number("temperature_margin_celsius"), view.number("temperature_gpu_max_tlimit_celsius") or 0
    if margin is not None and margin < floor:
        text = f"{margin:.0f} °C of margin to the thermal limit, below {floor:.0f}"
        return Problem("temperature_margin_celsius", margin, text, limit=floor)
    known = margin is not None
    for name, limit_name in (
        ("temperature_celsius", "temperature_slowdown_celsius"),
        ("memory_temperature_celsius", "temperature_memory_max_celsius"),
    ):
        value, limit = view.number(name), view.number(limit_name)
        if value is not None and limit:
            known = True
            if value >= limit:
                return Problem(
                    name, value, f"{name.removesuffix('_celsius')} {value:.0f} °C, limit {limit:.0f}", limit=limit
                )
    return None if known else UNKNOWN


def _unreadable(view: View) -> Problem | Tell | None:
    names = view.text("unreadable_values")
    return Problem("unreadable_values", names, f"calls fail for {names}", variant=names) if names else None


_HW_THERMAL, _HW_BRAKE = 0x40, 0x80
# Durations keep a healthy node silent: what a busy, well cooled GPU does for a moment is no state. Ends wait longer than begins.
STATES: Final = (
    _state("nvml_gpu_lost", "nvml_return", _lost),
    _state("gpu_reset_required", "nvml_return", _reset_required),
    _state("nvml_value_unreadable", "unreadable_values", _unreadable, 20, 0),
    _state("recovery_action", "recovery_action", _recovery_action),
    _flag("row_remap_pending", "rows wait for a GPU reset to be remapped"),
    _flag("row_remap_failure", "a row could not be remapped"),
    _flag("retired_page_pending", "pages wait for a driver reload to be retired"),
    _flag("sram_threshold_exceeded", "SRAM errors exceed the threshold"),
    _state("nvlink_link_down", "nvlink_states", _links_down),
    _state("fabric_state", "fabric_state fabric_status fabric_health_mask fabric_health", _fabric, 30, 0),
    _state(
        "pcie_gpu_degraded",
        "pcie_width_lanes pcie_width_max_lanes pcie_generation pcie_generation_max utilization_percent",
        _pcie,
        10,
        10,
    ),
    _slowdown("hw_slowdown", 0x8, "hardware lowers clocks without saying why", 2, 10, unless=_HW_THERMAL | _HW_BRAKE),
    _slowdown("hw_thermal_slowdown", _HW_THERMAL, "hardware lowers clocks for heat", 2, 10),
    _slowdown("hw_power_brake", _HW_BRAKE, "the power brake lowers clocks", 2, 10),
    _slowdown("sw_thermal_slowdown", 0x20, "the driver lowers clocks for heat", 10, 30),
    _state(
        "thermal_margin_violation",
        "temperature_margin_celsius temperature_gpu_max_tlimit_celsius temperature_celsius temperature_slowdown_celsius "
        "memory_temperature_celsius temperature_memory_max_celsius",
        _temperature,
        2,
        30,
    ),
)
