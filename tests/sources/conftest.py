"""Real servers and a scope that the tests of sources share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator.investigator.sources import Scope
from aggregator.model import Incident, IncidentState, Phase, Signal, Subject
from tests.sources import history
from tests.sources.history import ADDRESSES, NODE, PEER

OPENED_US = 1_795_478_400_000_000


def incident(node: str = NODE, *, signals: tuple[Signal, ...] = ()) -> Incident:
    signals = signals or (
        Signal(
            "gpu-1/kmsg/boot/1", "xid", 79, node, pci="0000:3b:00.0", at_us=OPENED_US, source="kmsg", phase=Phase.POINT
        ),
    )
    subject = Subject("gpu", node, pci="0000:3b:00.0", gpu_uuid="GPU-00000001-0000-0000-0000-000000000000")
    return Incident("inc-1", subject, (node,), signals, IncidentState.OPEN, OPENED_US, OPENED_US)


@pytest.fixture
def scope() -> Scope:
    """gpu-1, with gpu-2 for a peer: gpu-10 is outside."""
    return Scope(
        incident(),
        NODE,
        since_us=OPENED_US - 3_600_000_000,
        until_us=OPENED_US,
        node_addresses=(ADDRESSES[NODE],),
        peers=(PEER,),
    )


@pytest.fixture(scope="session")
def prometheus_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory: Path = tmp_path_factory.mktemp("prometheus")
    with history.prometheus(directory) as url:
        yield url
