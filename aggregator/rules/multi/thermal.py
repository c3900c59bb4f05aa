"""Heat and power: one warm GPU told from a node that cannot be cooled, heat told from a limit that was set."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.burst import Burst
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others

HARDWARE_HEAT = ("hw_thermal_slowdown",)
HEAT = ("hw_thermal_slowdown", "sw_thermal_slowdown", "hw_slowdown", "thermal_violation", "temperature_high")
GPUS_ON_A_NODE = 8


def node_overheats(burst: Burst, context: Context) -> Finding | None:
    """Half of a node's GPUs or more in hardware thermal slowdown: what they share, the cooling, has failed."""
    cause = burst.kinds(*HARDWARE_HEAT)
    hot = {reading.subject for reading in cause}
    if len(hot) * 2 < (context.gpus_on_node or GPUS_ON_A_NODE):
        return None
    return Finding(
        rule_id="thermal/node_overheats",
        priority=78,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.THERMAL,
        action=Action.DRAIN,
        resolutions=(Resolution.DRAIN, Resolution.CHECK_MECHANICALS, Resolution.INVESTIGATE),
        confidence=0.88,
        cause=cause,
        consequences=others(burst, cause),
        explanation=f"{len(hot)} GPUs are slowed for heat at once: look at the node's inlet air, fans and coolant, not at a GPU.",
        recurrence_advice="If only some GPUs stay hot once the inlet is cool, check their heat sinks.",
        open_questions=("Are neighbouring nodes of the rack hot as well?",),
        do_not=(Resolution.RMA, Resolution.RESET_GPU),
    )


def limit_was_set(burst: Burst, _: Context) -> Finding | None:
    """A temperature limit below the hardware's own makes slowdowns that are no heat."""
    cause = burst.kinds("thermal_limit_low")
    if not cause or others(burst, (*cause, *burst.kinds(*HEAT))):
        return None
    return Finding(
        rule_id="thermal/limit_was_set",
        priority=70,
        severity=Severity.WARNING,
        fault_class=FaultClass.THERMAL,
        action=Action.NONE,
        resolutions=(Resolution.CONFIG_CHANGE, Resolution.INVESTIGATE),
        confidence=0.8,
        cause=cause,
        consequences=others(burst, cause),
        explanation="The GPU is slowed by a limit that somebody set, not by heat.",
        do_not=(Resolution.RMA, Resolution.RESET_GPU),
    )


RULES: tuple[Rule, ...] = (node_overheats, limit_was_set)
