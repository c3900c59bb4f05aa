"""What stands on nodes, declared: once when it begins, again when it changes, once when it is over, and never because of a flap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.kube.conditions import Conditions, Declaration
from aggregator.kube.findings import watches
from aggregator.kube.nodes import Condition, Node
from aggregator.model import Phase
from aggregator.settings import WATCHED_CONDITIONS

BEGAN, ENDED = Phase.BEGAN, Phase.ENDED
START_US = 1_800_000_000_000_000
XID, ECC = "GcmXidErrorsProblem", "GcmSmiEccProblem"
NODE = Node("n1", "uid-1", {}, {}, {}, (), False, "", 0, 8, "boot", START_US)


def us(seconds: float) -> int:
    return START_US + round(seconds * 1e6)


def with_condition(name: str, status: str, at: float, reason: str = "r", message: str = "", node: Node = NODE) -> Node:
    condition = Condition(name, status, reason, message, us(at))
    return replace(node, conditions={**node.conditions, name: condition})


@dataclass
class Desk:
    """The conditions of one node, looked at as time passes, and the store's memory of what was declared."""

    cooldown: float = 3600.0
    stored: dict[str, Declaration] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    node: Node | None = NODE
    conditions: Conditions = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A new process: it knows what the store knows."""
        self.conditions = Conditions(watches(WATCHED_CONDITIONS), self.cooldown)
        for state, epoch in self.kept.items():
            self.conditions.restore("n1", state, epoch)

    def look(self, at: float, node: Node | None = None) -> list[tuple[str, str]]:
        """What is new to the store: (state's name, phase)."""
        self.node = node or self.node
        new = []
        for one in self.conditions.look("n1", self.node, us(at)):
            if str(one.key) not in self.stored:
                self.stored[str(one.key)] = one
                new.append((one.finding.name, one.phase.value))
            if one.phase is ENDED:
                self.kept.pop(one.state, None)
            else:
                self.kept.setdefault(one.state, one.key.epoch)
        return new

    def wait(self, until: float) -> list[tuple[str, str]]:
        """Let time alone change what it changes."""
        new = []
        while (due := self.conditions.next_us()) is not None and due <= us(until):
            new += self.look((due - START_US) / 1e6)
        return new


def test_a_condition_that_is_true_is_declared_once() -> None:
    desk = Desk()
    bad = with_condition(XID, "True", 0, "GcmXidErrorsCheckFailed", "NVRM: Xid\x1b[2J 79")
    assert desk.look(1, bad) == [(XID, "began")]
    assert desk.look(2) == desk.look(3) == []
    (declared,) = desk.stored.values()
    assert (declared.kind, declared.occurred_us, declared.key.source) == ("node_condition", us(0), "kubernetes")
    assert declared.key.epoch == f"uid-1:{XID}:{us(0)}"
    assert declared.detail == "GcmXidErrorsProblem is True (GcmXidErrorsCheckFailed): NVRM: Xid [2J 79"


def test_its_end_is_believed_once_it_has_lasted() -> None:
    desk = Desk()
    desk.look(1, with_condition(XID, "True", 0))
    assert desk.look(100, with_condition(XID, "False", 100)) == []
    assert desk.wait(699) == []
    assert desk.wait(701) == [(XID, "ended")]
    assert desk.kept == {}


def test_a_restart_of_the_node_problem_detector_sends_nothing() -> None:
    """It says that all is well, until each check has run again."""
    desk = Desk()
    desk.look(1, with_condition(XID, "True", 0))
    assert desk.look(100, with_condition(XID, "False", 100)) == []
    assert desk.look(400, with_condition(XID, "True", 400)) == []
    assert desk.wait(3000) == []


@given(
    st.lists(
        st.tuples(st.floats(1, 500), st.sampled_from(("True", "False", "Unknown")), st.sampled_from("ab")), max_size=30
    )
)
def test_however_it_flaps_begins_and_ends_alternate(steps: list[tuple[float, str, str]]) -> None:
    """Each end has its begin; what began differs in what it says; once all is well for long enough, nothing stands."""
    desk, at, seen = Desk(cooldown=0), 0.0, []
    for pause, status, reason in steps:
        seen += desk.wait(at + pause)
        at += pause
        seen += desk.look(at, with_condition(XID, status, at, reason))
    seen += desk.look(at + 1, with_condition(XID, "False", at + 1)) + desk.wait(at + 2000)
    assert desk.kept == {}
    by_state: dict[tuple[str, str], list[Phase]] = {}
    for one in desk.stored.values():
        by_state.setdefault((one.state, one.key.epoch), []).append(one.phase)
    assert all(phases.count(ENDED) == 1 and phases[-1] is ENDED and phases[0] is BEGAN for phases in by_state.values())


@pytest.mark.parametrize(
    ("second", "declared"),
    [
        pytest.param(("True", "other", ""), [(XID, "began")], id="another reason"),
        pytest.param(("True", "r", "XID 79"), [(XID, "began")], id="a new code in its message"),
        pytest.param(("True", "r", "other words"), [], id="other words"),
        pytest.param(("Unknown", "r", ""), [(XID, "began")], id="the check cannot tell"),
    ],
)
def test_what_changes_under_a_bad_condition_is_declared(second: tuple[str, str, str], declared: list[object]) -> None:
    desk = Desk()
    desk.look(1, with_condition(XID, "True", 0))
    status, reason, message = second
    assert desk.look(60, with_condition(XID, status, 0, reason, message)) == declared
    assert desk.look(61) == []
    assert desk.look(62, with_condition(XID, "True", 0)) == []  # back to what was said before


def test_unknown_is_no_recovery_and_a_state_of_its_own() -> None:
    desk = Desk()
    desk.look(1, with_condition(XID, "True", 0))
    desk.look(60, with_condition(XID, "Unknown", 60))
    assert {one.kind for one in desk.stored.values()} == {"node_condition", "node_condition_unknown"}
    assert ("node_condition:" + XID) in desk.kept


def test_what_stays_bad_is_looked_at_again_after_the_cooldown() -> None:
    desk = Desk(cooldown=3600)
    desk.look(1, with_condition(XID, "True", 0))
    assert desk.wait(3600) == []
    assert desk.wait(3602) == [(XID, "began")]
    assert desk.wait(3 * 3600 + 10) == [(XID, "began")] * 2


def test_without_a_cooldown_it_is_declared_once_and_for_all() -> None:
    desk = Desk(cooldown=0)
    desk.look(1, with_condition(XID, "True", 0))
    assert desk.conditions.next_us() == 1 << 62


@pytest.mark.parametrize("at", [30.0, 10_000.0])
def test_a_restart_repeats_nothing_and_misses_nothing(at: float) -> None:
    desk = Desk()
    node = with_condition(ECC, "False", 5, node=with_condition(XID, "True", 0))
    desk.look(1, node)
    desk.wait(at)
    desk.restart()
    assert desk.look(at + 1) == []
    desk.restart()
    now = with_condition(XID, "False", at + 10, node=with_condition(ECC, "True", at + 20))
    assert desk.look(at + 5000, now) == [(XID, "ended"), (ECC, "began")]


def test_what_ended_while_nobody_looked_is_over_at_once_where_it_has_lasted() -> None:
    desk = Desk()
    desk.look(1, with_condition(XID, "True", 0))
    desk.restart()
    assert desk.look(700, with_condition(XID, "False", 50)) == [(XID, "ended")]


def test_a_node_that_is_gone_takes_its_states_along() -> None:
    desk = Desk()
    desk.look(1, with_condition(XID, "True", 0))
    declared = desk.conditions.look("n1", None, us(2))
    assert [(one.phase, one.detail) for one in declared] == [(ENDED, f"{XID} is no longer there, with its node")]
    assert desk.conditions.nodes == set()


def test_a_recreated_node_begins_anew() -> None:
    """Its uid differs: it inherits nothing."""
    desk = Desk()
    desk.look(1, with_condition(XID, "True", 0))
    assert desk.look(5, with_condition(XID, "True", 4, node=replace(NODE, uid="uid-2"))) == [
        (XID, "ended"),
        (XID, "began"),
    ]
    assert desk.kept == {f"node_condition:{XID}": f"uid-2:{XID}:{us(4)}"}


def test_a_second_episode_is_another_fact() -> None:
    desk = Desk()
    desk.look(1, with_condition(XID, "True", 0))
    desk.look(100, with_condition(XID, "False", 100))
    desk.wait(800)
    assert desk.look(900, with_condition(XID, "True", 900)) == [(XID, "began")]


def test_a_clock_that_is_ahead_begins_nothing_in_the_future() -> None:
    desk = Desk()
    desk.look(1, with_condition(XID, "True", 9000))
    (declared,) = desk.stored.values()
    assert declared.occurred_us == us(1)


@pytest.mark.parametrize(
    ("name", "status", "stands"),
    [
        ("AcceleratedHardwareReady", "True", None),
        ("AcceleratedHardwareReady", "False", "node_condition"),
        ("AcceleratedHardwareReady", "Unknown", "node_condition_unknown"),
        ("Ready", "True", None),
        ("Ready", "False", None),
        ("Ready", "Unknown", "node_condition"),
        ("SysLogsXIDError", "True", "node_condition"),
        ("GcmPciProblem", "True", "node_condition"),
        ("NPDSomething", "True", "node_condition"),
        ("MemoryPressure", "True", None),
        (XID, "true", None),
        (XID, "", None),
    ],
)
def test_each_family_has_its_polarity(name: str, status: str, stands: str | None) -> None:
    """What no glob names is not watched; a status that is none of three says nothing."""
    desk = Desk()
    desk.look(1, with_condition(name, status, 0))
    assert [one.kind for one in desk.stored.values()] == ([stands] if stands else [])


@pytest.mark.parametrize(
    ("change", "kind", "status"),
    [
        (lambda n: replace(n, unschedulable=True, cordoned_by="kubectl", cordoned_us=us(-50)), "node_cordoned", "True"),
        (lambda n: replace(n, unschedulable=True, cordoned_by="gcm-sentinel"), None, ""),
        (lambda n: replace(n, labels={"nvidia.com/gpu-driver-upgrade-state": "drain-required"}), "node_driver_upgrade", "drain-required"),
        (lambda n: replace(n, labels={"nvidia.com/gpu-driver-upgrade-state": "upgrade-done"}), None, ""),
        (lambda n: replace(n, labels={"nvidia.com/gpu-driver-upgrade-state": "upgrade-failed"}), "node_condition", "upgrade-failed"),
        (lambda n: replace(n, labels={"nvidia.com/mig.config.state": "rebooting"}), "node_mig_change", "rebooting"),
        (lambda n: replace(n, labels={"nvidia.com/mig.config.state": "success"}), None, ""),
        (lambda n: replace(n, annotations={"gcm-sentinel/maintenance": "until noon"}), "node_maintenance", "True"),
    ],
)  # fmt: skip
def test_planned_states_are_evidence(change: Callable[[Node], Node], kind: str | None, status: str) -> None:
    desk = Desk()
    desk.look(1, change(NODE))
    assert [(one.kind, one.finding.status) for one in desk.stored.values()] == ([(kind, status)] if kind else [])
    assert [phase for _, phase in desk.look(9, NODE)] == (["ended"] if kind and kind != "node_condition" else [])


@pytest.mark.parametrize(
    "check", ["XidErrors", "SmiEcc", "SmiDisconnected", "ProcZombie", "DcgmiNvlinkStatus", "DcgmiDiag"]
)
@pytest.mark.parametrize("prefix", ["Gcm", "NPDGcm"])
def test_every_check_of_the_reference_is_watched(check: str, prefix: str) -> None:
    watched = watches(WATCHED_CONDITIONS)
    assert watched(f"{prefix}{check}Problem")
    assert watched("NPDDcgmRunningProblem")
    assert not watches(())("Ready")
