"""What a node's agent says of its GPUs when it is asked now, through its own stream: by an investigation, and before an action."""

from __future__ import annotations

from aggregator.investigator.sources import Unavailable
from aggregator.model import normalise_pci
from aggregator.remediation.confirm import Answer
from aggregator.server.sessions import COLLECT_SECONDS, CollectFailed, Sessions


async def read_now(sessions: Sessions, node: str) -> bytes:
    """A serialized NodeSnapshot. Raises Unavailable."""
    session = sessions.current(node)
    if session is None:
        raise Unavailable(f"no agent of node {node} is connected")
    try:
        snapshot = await session.collect(COLLECT_SECONDS)
    except TimeoutError as error:
        raise Unavailable(f"the agent of {node} did not answer in {COLLECT_SECONDS:g} seconds") from error
    except CollectFailed as error:
        raise Unavailable(f"the agent of {node} could not read its GPUs: {error}") from error
    return snapshot.SerializeToString()


async def ask(sessions: Sessions, node: str) -> Answer:
    """An agent that answers that it cannot read is an agent that answers."""
    session = sessions.current(node)
    if session is None:
        return Answer(answered=False)
    try:
        snapshot = await session.collect(COLLECT_SECONDS)
    except TimeoutError:
        return Answer(answered=False)
    except CollectFailed:
        return Answer(answered=True)
    working = [one.gpu for one in snapshot.gpus if not one.lost]
    names = {name for gpu in working for name in (gpu.uuid, normalise_pci(gpu.pci) or "") if name}
    return Answer(answered=True, working_gpus=frozenset(names))
