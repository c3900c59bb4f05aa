"""Who this agent is: what it tells the aggregator in its hello, and people on its socket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

AGENT_VERSION = "0.1.0"  # the distribution's; asking importlib.metadata would load mail parsers, 2 MB of them


@dataclass(frozen=True, slots=True)
class Identity:
    """`installation_id` is kept in the state directory: two installations that claim one node differ in it."""

    node: str
    boot_id: str
    installation_id: str
    simulated: bool
    agent_version: str


def read_boot_id(proc_root: Path) -> str:
    """The kernel's name for the present boot. Raises OSError when it cannot be read, ValueError when it is empty."""
    boot_id = (proc_root / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    if not boot_id:
        raise ValueError("boot_id is empty")
    return boot_id


def read_kernel_version(proc_root: Path) -> str:
    """The running kernel's release; empty when it cannot be read."""
    try:
        return (proc_root / "sys/kernel/osrelease").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
