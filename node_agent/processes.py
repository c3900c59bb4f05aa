"""Which workload each process of the node belongs to, remembered for a while after it died.

A fault often kills the process that the driver then names. So control groups are read while processes live: of new processes only,
which makes a look cost little however many there are.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from node_agent.attributes import children, names, read_text
from node_agent.cgroups import Owner, owner

REMEMBER_SECONDS = 3600.0  # long after any report of a death, and before process ids come round again
MAX_REMEMBERED = 4096


class ContainerName(NamedTuple):
    """A container by the names that people know."""

    namespace: str
    pod: str
    container: str


@dataclass(frozen=True, slots=True)
class Look:
    """Process ids that exist, and the owners of those that were not known."""

    present: frozenset[int]
    owners: Mapping[int, Owner]


def look(proc_root: Path, known: Collection[int]) -> Look:
    """List processes and read the new ones' control groups. May block. Raises OSError when there is no list."""
    present = frozenset(int(name) for name in names(proc_root) if name.isdecimal())
    owners = {pid: found for pid in present - frozenset(known) if (found := read_owner(proc_root, pid)) is not None}
    return Look(present, owners)


def read_owner(proc_root: Path, pid: int) -> Owner | None:
    """The owner of a living process; None when it cannot be read, in general because the process is gone. May block."""
    try:
        return owner(read_text(f"{proc_root}/{pid}/cgroup"))
    except OSError:
        return None


def container_names(directory: Path) -> dict[str, ContainerName]:
    """Container ids with their names, from the links `POD_NAMESPACE_CONTAINER-ID.log` that the kubelet keeps. May block."""
    found = {}
    for entry in children(directory):
        words = entry.removesuffix(".log").split("_")
        container, dash, container_id = words[-1].rpartition("-")
        if len(words) == 3 and dash:
            found[container_id] = ContainerName(namespace=words[1], pod=words[0], container=container)
    return found


@dataclass(slots=True)
class Processes:
    """Owners of processes that live, and of those that died lately."""

    alive: dict[int, Owner] = field(default_factory=dict)
    _dead: dict[int, tuple[Owner, float]] = field(default_factory=dict)  # in order of death, with its monotonic time

    def update(self, seen: Look) -> None:
        """Take a look in: new processes are added, vanished ones move to the dead."""
        now = time.monotonic()
        for pid in self.alive.keys() - seen.present:
            who = self.alive.pop(pid)
            self._dead.pop(pid, None)
            if who:
                self._dead[pid] = who, now
        self.alive.update(seen.owners)
        oldest_first = list(self._dead.items())
        surplus = len(oldest_first) - MAX_REMEMBERED
        for number, (pid, (_, died_at)) in enumerate(oldest_first):
            if number >= surplus and now - died_at <= REMEMBER_SECONDS:
                break
            del self._dead[pid]

    def learn(self, pid: int, who: Owner) -> None:
        """Take in a process that was asked for between two looks."""
        self.alive[pid] = who

    def recall(self, pid: int) -> Owner | None:
        """The owner as last seen, alive or dead."""
        if pid in self.alive:
            return self.alive[pid]
        dead = self._dead.get(pid)
        return dead[0] if dead else None

    def container_ids(self) -> set[str]:
        """Ids of containers whose processes live or are remembered."""
        owners = (*self.alive.values(), *(who for who, _ in self._dead.values()))
        return {who.container_id for who in owners if who.container_id}
