"""Which signals are a GPU's past: of the same board, before the incident, not from long ago."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aggregator.assessor.history import MOST, earlier_signals
from aggregator.model import Incident, IncidentState, Signal, Subject

HOUR_US = 3_600_000_000
NOW_US = 1_000 * HOUR_US
HERE = Subject("gpu", "n1", "0000:18:00.0", "GPU-a")


def incident(hours_ago: int, subject: Subject = HERE, **fields: str) -> Incident:
    at = NOW_US - hours_ago * HOUR_US
    fault = Signal(f"{subject.node}/{hours_ago}", "xid", 79, subject.node, subject.pci, subject.gpu_uuid, at_us=at)
    made = Incident(fault.id, subject, (subject.node,), (fault,), IncidentState.OPEN, at, at)
    return replace(made, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        pytest.param(incident(5), True, id="the same GPU"),
        pytest.param(incident(5, replace(HERE, gpu_uuid=None)), True, id="by its address"),
        pytest.param(incident(5, replace(HERE, pci=None)), True, id="by its UUID"),
        pytest.param(incident(5, replace(HERE, pci="0000:2a:00.0")), True, id="the board in another slot"),
        pytest.param(incident(5, replace(HERE, gpu_uuid="GPU-b")), False, id="another board in the slot"),
        pytest.param(incident(5, replace(HERE, gpu_uuid=None, node="n2")), False, id="the slot of another node"),
        pytest.param(incident(5, Subject("node", "n1")), False, id="the node's"),
        pytest.param(incident(900), False, id="long ago"),
        pytest.param(incident(-1), False, id="later"),
        pytest.param(incident(5, resolved_because="merged into inc-1"), False, id="what is told elsewhere"),
    ],
)
def test_the_past_of_a_gpu(other: Incident, counts: bool) -> None:
    found = earlier_signals(incident(0), [incident(0), other], 720 * HOUR_US)
    assert bool(found) is counts


def test_a_node_s_incident_has_no_gpu_s_past() -> None:
    assert earlier_signals(incident(0, Subject("node", "n1")), [incident(5)], 720 * HOUR_US) == ()


def test_the_latest_are_looked_at_oldest_first() -> None:
    found = earlier_signals(incident(0), [incident(hours) for hours in range(1, MOST + 9)], 720 * HOUR_US)
    assert [signal.id for signal in found] == [f"n1/{hours}" for hours in range(MOST, 0, -1)]
