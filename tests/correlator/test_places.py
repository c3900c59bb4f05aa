"""A fault that peers of one rack, switch or NVLink domain show is one alert, at fewer nodes than anywhere else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from aggregator import rules
from aggregator.correlator import State, Windows, restore, rules_of, step
from aggregator.model import Incident, Signal
from tests.correlator.conftest import signal

PLACES = {
    "a": ("rack r1", "pool p"),
    "b": ("rack r1", "pool p"),
    "c": ("rack r1", "switch s", "pool p"),
    "d": ("rack r2", "pool p"),
    "e": ("rack r2", "pool q"),
    "f": ("rack r3", "pool p"),
}


@dataclass
class Hall:
    """Nodes at their places."""

    state: State = field(default_factory=State)
    incidents: dict[str, Incident] = field(default_factory=dict)

    def take(self, *signals: Signal) -> None:
        book = rules_of(places=lambda node: PLACES.get(node, ()))
        for one in signals:
            assert one.at_us is not None
            done = step(self.state, [one], one.at_us, Windows(), book)
            self.state = done.state
            self.incidents |= {change.incident.id: change.incident for change in done.changes}

    @property
    def fleets(self) -> list[tuple[str, ...]]:
        return [one.nodes for one in self.incidents.values() if one.subject.kind == "fleet"]


def lost(*nodes: str, at: float = 0) -> list[Signal]:
    return [signal(79, 0, at + number, node=node) for number, node in enumerate(nodes)]


@pytest.mark.parametrize(
    ("nodes", "fleets"),
    [
        ("abc", [("a", "b", "c")]),
        ("abd", []),
        ("adf", []),  # one pool is no narrow place
        ("adbec", [("a", "d", "b", "e", "c")]),  # five anywhere
        ("adbc", [("a", "b", "c")]),
        ("xyz", []),  # nobody knows where they stand
    ],
)
def test_peers_make_a_fleet_incident(nodes: str, fleets: list[tuple[str, ...]]) -> None:
    hall = Hall()
    hall.take(*lost(*nodes))
    assert hall.fleets == fleets


def test_the_verdict_says_what_they_share() -> None:
    hall = Hall()
    hall.take(*lost("a", "b", "c"))
    (fleet,) = [one for one in hall.incidents.values() if one.subject.kind == "fleet"]
    summary = rules.judge(fleet.signals).summary
    assert "All of its nodes share rack r1 and pool p." in summary
    alone = next(one for one in hall.incidents.values() if one.subject.kind != "fleet")
    assert "share" not in rules.judge(alone.signals).summary


@pytest.mark.parametrize("restarted", [False, True])
def test_only_nodes_of_that_place_join_it(restarted: bool) -> None:
    hall = Hall()
    hall.take(*lost("a", "b", "c"))
    if restarted:
        hall.state = restore(hall.incidents.values(), (), rules_of(places=lambda node: PLACES.get(node, ())))
    hall.take(*lost("d", "g", at=10))
    assert hall.fleets == [("a", "b", "c")]
    another = replace(signal(79, 0, 20, node="a"), pci="0000:99:00.0")
    hall.take(another)
    assert hall.fleets == [("a", "b", "c")]
