"""What a node's agent says of its GPUs when it is asked now, through its own stream."""

from __future__ import annotations

from aggregator.model import normalise_pci
from aggregator.remediation.confirm import Answer
from aggregator.server.sessions import CollectFailed, Sessions

SECONDS = 10.0


async def ask(sessions: Sessions, node: str) -> Answer:
    """An agent that answers that it cannot read is an agent that answers."""
    session = sessions.current(node)
    if session is None:
        return Answer(answered=False)
    try:
        snapshot = await session.collect(SECONDS)
    except TimeoutError:
        return Answer(answered=False)
    except CollectFailed:
        return Answer(answered=True)
    working = [one.gpu for one in snapshot.gpus if not one.lost]
    names = {name for gpu in working for name in (gpu.uuid, normalise_pci(gpu.pci) or "") if name}
    return Answer(answered=True, working_gpus=frozenset(names))
