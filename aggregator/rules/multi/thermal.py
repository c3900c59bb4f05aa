"""Heat and power: one warm GPU told from a node that cannot be cooled, heat told from a limit that was set."""

from __future__ import annotations

from aggregator.model import Action, FaultClass, Resolution, Severity
from aggregator.rules.burst import Burst, Reading
from aggregator.rules.context import Context
from aggregator.rules.finding import Finding, Rule, others

LOWERED_BY_A_LIMIT = ("sw_thermal_slowdown",)  # hardware slows a GPU for heat alone, whatever limit was set
GPUS_ON_A_NODE = 8


def node_overheats(burst: Burst, context: Context) -> Finding | None:
    """Half of a node's GPUs or more in hardware thermal slowdown: what they share, the cooling, has failed."""
    cause = burst.kinds("hw_thermal_slowdown")
    if not _half_of_the_node(cause, context):
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
        explanation=f"{_gpus(cause)} GPUs are slowed for heat: "
        "look at the node's inlet air, fans and coolant, not at a GPU.",
        recurrence_advice="If only some GPUs stay hot once the inlet is cool, check their heat sinks.",
        open_questions=("Are neighbouring nodes of the rack hot as well?",),
        do_not=(Resolution.RMA, Resolution.RESET_GPU),
    )


def node_lacks_power(burst: Burst, context: Context) -> Finding | None:
    """The power brake on half of a node's GPUs or more: what they share, the power supply, is at its limit or has failed."""
    cause = burst.kinds("hw_power_brake")
    if not _half_of_the_node(cause, context):
        return None
    return Finding(
        rule_id="thermal/node_lacks_power",
        priority=77,
        severity=Severity.CRITICAL,
        fault_class=FaultClass.HARDWARE,
        action=Action.DRAIN,
        resolutions=(Resolution.CHECK_MECHANICALS, Resolution.INVESTIGATE, Resolution.DRAIN),
        confidence=0.85,
        cause=cause,
        explanation=f"{_gpus(cause)} GPUs are slowed by the power brake: look at the node's power supplies and feeds, "
        "not at a GPU.",
        recurrence_advice="If it comes back with all supplies healthy, check the rack's power limit.",
        open_questions=(
            "Does the BMC report a lost supply or a power cap, and do neighbours of the rack brake as well?",
        ),
        do_not=(Resolution.RMA, Resolution.RESET_GPU),
    )


def _half_of_the_node(cause: tuple[Reading, ...], context: Context) -> bool:
    return _gpus(cause) * 2 >= (context.gpus_on_node or GPUS_ON_A_NODE)


def _gpus(cause: tuple[Reading, ...]) -> int:
    return len({reading.subject for reading in cause})


def limit_was_set(burst: Burst, _: Context) -> Finding | None:
    """A temperature limit below the hardware's own makes slowdowns that are no heat."""
    cause = burst.kinds("thermal_limit_low")
    if not cause or others(burst, (*cause, *burst.kinds(*LOWERED_BY_A_LIMIT))):
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
        explanation="The GPU is slowed by a limit that somebody set, not by heat.",
        do_not=(Resolution.RMA, Resolution.RESET_GPU),
    )


RULES: tuple[Rule, ...] = (node_overheats, node_lacks_power, limit_was_set)
