"""Whether an action may be taken now. Pure: every input is in `Case`, every wall is one line of `WALLS`, and all of them must hold.

A wall that stands for a while (a budget, a switch, another drain) makes the decision temporary: it is made again. One about the
verdict or the node's nature stands until those change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from aggregator.model import Action

ACTIONS = (Action.CORDON, Action.TAINT, Action.DRAIN)  # what an executor knows; reboot and reset stay advice


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows."""

    allowlist: tuple[str, ...] = ()  # names or globs; none: no node
    max_actions_per_hour: int = 3
    max_unavailable_percent: int = 10  # of the nodes with GPUs; one may always be
    min_confidence: float = 0.8
    fleet_nodes: int = 5  # as many nodes with a new critical fault stop everything


@dataclass(frozen=True, slots=True)
class Case:
    """All that a decision looks at."""

    action: Action
    node: str
    # the incident
    open: bool
    subject_kind: str
    fleet_id: str
    quiet: bool
    held_because: str  # a planned state
    simulated: bool
    # the assessment
    origin: str
    degraded_reason: str
    partial: bool
    disputed: int  # differences between rules and model, besides which step comes first
    confidence: float
    hardware_support: bool  # it stands on a fact of the agent or the kernel
    # the node now
    unconfirmed_because: str  # why the fault is not confirmed now; empty where it is
    node_uid: str  # empty where the cluster has no such node
    opted_out: bool
    handled_by: str  # another actor; empty where there is none
    resumed: bool  # this action was begun before
    # the cluster now
    nodes_total: int  # 0 where they are not known
    nodes_unavailable: int  # without this one; whoever made them so
    actions_last_hour: int
    draining: str  # another node that is being drained
    newly_critical_nodes: int
    stopped_because: str  # the kill switch, or why it cannot be read
    # ourselves
    store_persistent: bool
    store_refusal: str
    wall_absent_because: str
    leads: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome, with every reason against it."""

    reasons: tuple[str, ...]
    temporary: bool  # none of the reasons is about the verdict or the node's nature

    @property
    def allowed(self) -> bool:
        """No wall stands against it."""
        return not self.reasons


Against = Callable[[Case, Limits], str]  # why not; empty where this wall is no obstacle


@dataclass(frozen=True, slots=True)
class Wall:
    """One condition."""

    against: Against
    temporary: bool = False


def _when(failed: bool, why: str) -> str:
    return why if failed else ""


def _budget(case: Case, limits: Limits) -> str:
    spent = not case.resumed and case.actions_last_hour >= limits.max_actions_per_hour
    return _when(
        spent, f"{case.actions_last_hour} actions were begun within an hour, {limits.max_actions_per_hour} are allowed"
    )


def _unavailable(case: Case, limits: Limits) -> str:
    if case.nodes_total <= 0:
        return "how many nodes are available is not known"
    most = max(1, case.nodes_total * limits.max_unavailable_percent // 100)
    after = case.nodes_unavailable + 1
    return _when(after > most, f"{after} of {case.nodes_total} nodes would be unavailable, {most} are allowed")


def _allowlisted(case: Case, limits: Limits) -> str:
    named = any(fnmatchcase(case.node, pattern) for pattern in limits.allowlist)
    return _when(not named, "the node is in no allowlist" if limits.allowlist else "the allowlist is empty")


WALLS = (
    # the verdict
    Wall(lambda case, _: _when(case.action not in ACTIONS, f"{case.action.value} is advice and never done")),
    Wall(lambda case, _: _when(not case.open, "the incident is over")),
    Wall(lambda case, _: _when(case.subject_kind == "fleet" or bool(case.fleet_id), "it is part of a group's verdict")),
    Wall(lambda case, _: _when(case.quiet, "it was rebuilt from replayed facts")),
    Wall(lambda case, _: _when(case.simulated, "its facts come from a simulated driver")),
    Wall(lambda case, _: _when(case.origin != "llm", "no investigation stands behind it")),
    Wall(lambda case, _: _when(bool(case.degraded_reason), f"the assessment is degraded: {case.degraded_reason}")),
    Wall(lambda case, _: _when(case.partial, "the investigation was not accepted as a whole")),
    Wall(lambda case, _: _when(case.disputed > 0, "rules and model do not agree")),
    Wall(
        lambda case, limits: _when(
            not case.confidence >= limits.min_confidence,  # NaN is not enough
            f"confidence {case.confidence:.2f} is under {limits.min_confidence:.2f}",
        )
    ),
    Wall(lambda case, _: _when(not case.hardware_support, "no fact of the agent or the kernel supports it")),
    # the node
    Wall(_allowlisted),
    Wall(lambda case, _: _when(not case.node_uid, "the cluster has no such node")),
    Wall(lambda case, _: _when(case.opted_out, "the node is labelled to be left alone")),
    Wall(lambda case, _: _when(bool(case.handled_by), f"the node is handled by {case.handled_by}"), temporary=True),
    Wall(lambda case, _: _when(bool(case.held_because), f"a planned state: {case.held_because}"), temporary=True),
    Wall(lambda case, _: _when(bool(case.unconfirmed_because), case.unconfirmed_because), temporary=True),
    # the cluster
    Wall(_budget, temporary=True),
    Wall(_unavailable, temporary=True),
    Wall(lambda case, _: _when(bool(case.draining), f"{case.draining} is being drained"), temporary=True),
    Wall(
        lambda case, limits: _when(
            case.newly_critical_nodes >= limits.fleet_nodes,
            f"{case.newly_critical_nodes} nodes became critical at about the same time: a person must look",
        ),
        temporary=True,
    ),
    Wall(lambda case, _: _when(bool(case.stopped_because), case.stopped_because), temporary=True),
    # ourselves
    Wall(lambda case, _: _when(not case.store_persistent, "the store does not outlive this process")),
    Wall(lambda case, _: _when(bool(case.store_refusal), f"the store takes nothing: {case.store_refusal}"), temporary=True),
    Wall(lambda case, _: _when(bool(case.wall_absent_because), case.wall_absent_because), temporary=True),
    Wall(lambda case, _: _when(not case.leads, "another process leads"), temporary=True),
)  # fmt: skip


def decide(case: Case, limits: Limits) -> Decision:
    """Allowed, or denied for every reason that there is."""
    against = [(why, wall.temporary) for wall in WALLS if (why := wall.against(case, limits))]
    return Decision(tuple(why for why, _ in against), all(temporary for _, temporary in against))
