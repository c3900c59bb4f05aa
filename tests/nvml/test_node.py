"""The node's own rules, without a driver: how many events of one GPU are told, and which losses are known."""

from __future__ import annotations

from node_agent.evidence import Gap, Gpu
from node_agent.nvml.node import EVENTS_PER_MINUTE, Node
from node_agent.nvml.protocol import DriverEvent, EnumeratedGpu, Opened, Reading


def _node() -> Node:
    node = Node(None, expected_gpus=None, kernel_version="6.8.0")
    gpus = tuple(EnumeratedGpu(index, Gpu(f"GPU-{index}", f"0000:{index}b:00.0"), None) for index in range(2))
    node.opened(Opened("570", "12", gpus), 0.0, confirmed=False)
    return node


def _xid(uuid: str) -> DriverEvent:
    return DriverEvent(uuid, 8, 13, None, 0.0)


def test_a_storm_of_one_gpu_is_bounded_counted_and_hides_no_other() -> None:
    node = _node()
    told = [fact for _ in range(EVENTS_PER_MINUTE + 300) for fact in node.event(_xid("GPU-0"), 10.0)]
    assert len(told) == EVENTS_PER_MINUTE
    assert len(node.event(_xid("GPU-1"), 11.0)) == 1
    assert node.read(Reading(2, ()), 69.0) == []
    (gap,) = node.read(Reading(2, ()), 70.0)
    assert isinstance(gap.body, Gap)
    assert (gap.kind, gap.body.lost_source, gap.body.lost_count) == ("evidence_gap", "nvml", 300)
    assert len(node.event(_xid("GPU-0"), 71.0)) == 1, "a new minute tells again"


def test_an_event_of_a_gpu_that_nvml_does_not_name_is_kept() -> None:
    (fact,) = _node().event(_xid(""), 1.0)
    assert (fact.kind, fact.gpu) == ("xid", None)
