"""What the store keeps about nodes themselves: who their agent is, when it was heard, and what was declared about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, update

from aggregator.store.schema import insert, nodes, snapshots, standing


@dataclass(frozen=True, slots=True)
class Agent:
    """What an agent's hello says of itself."""

    node: str
    installation_id: str
    agent_version: str
    boot_id: str
    simulated: bool


def save_agent(connection: Connection, agent: Agent, now_us: int) -> None:
    """Note who speaks for a node, and that it was heard."""
    values = {
        "installation_id": agent.installation_id,
        "agent_version": agent.agent_version,
        "boot_id": agent.boot_id,
        "simulated": agent.simulated,
        "last_seen_us": now_us,
    }
    new = insert(nodes).values(name=agent.node, first_seen_us=now_us, **values)
    connection.execute(new.on_conflict_do_update(index_elements=["name"], set_=values))


def save_heard(connection: Connection, heard_us: Mapping[str, int]) -> None:
    """Note when each node was last heard."""
    if not heard_us:
        return
    new = insert(nodes)
    rows = [
        {
            "name": name,
            "installation_id": "",
            "agent_version": "",
            "boot_id": "",
            "simulated": False,
            "first_seen_us": time_us,
            "last_seen_us": time_us,
        }
        for name, time_us in heard_us.items()
    ]
    connection.execute(
        new.on_conflict_do_update(index_elements=["name"], set_={"last_seen_us": new.excluded.last_seen_us}), rows
    )


def forget_node(connection: Connection, node: str, before_us: int) -> bool:
    """Delete what is kept about a node itself, unless it was heard since a time; True when that is done. Its evidence stays."""
    gone = connection.execute(delete(nodes).where(nodes.c.name == node, nodes.c.last_seen_us < before_us)).rowcount
    if gone:
        connection.execute(delete(snapshots).where(snapshots.c.node == node))
        connection.execute(delete(standing).where(standing.c.node == node))
    return bool(gone)


def save_clock(connection: Connection, node: str, offset_us: int, error_us: int) -> None:
    """Note how far a node's clock is from ours."""
    connection.execute(
        update(nodes).where(nodes.c.name == node).values(clock_offset_us=offset_us, clock_error_us=error_us)
    )


def standing_states(connection: Connection) -> dict[tuple[str, str], str]:
    """(node, kind) → epoch of every state that was declared begun and has not ended."""
    rows = connection.execute(select(standing.c.node, standing.c.kind, standing.c.epoch))
    return {(node, kind): epoch for node, kind, epoch in rows}


def begin_state(connection: Connection, node: str, kind: str, epoch: str) -> None:
    """Note that a declared state stands."""
    connection.execute(insert(standing).values(node=node, kind=kind, epoch=epoch).on_conflict_do_nothing())


def end_state(connection: Connection, node: str, kind: str) -> None:
    """Note that a declared state has ended."""
    connection.execute(delete(standing).where(standing.c.node == node, standing.c.kind == kind))
