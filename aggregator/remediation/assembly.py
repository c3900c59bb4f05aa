"""The parts of execute mode, put together from what the operator set."""

from __future__ import annotations

from pathlib import Path

from aggregator.kube.client import KubeClient
from aggregator.kube.walls import Walls
from aggregator.outputs.metrics import Metrics
from aggregator.remediation.executor import Executor
from aggregator.remediation.pods import Rules
from aggregator.remediation.policy import Limits
from aggregator.remediation.remediator import Options, Pace, Remediator
from aggregator.remediation.situation import Surroundings
from aggregator.settings import Settings
from aggregator.store import Store

FLEETING = ("tmpfs", "ramfs", "overlay")  # gone with the machine's memory, or with the container
MOUNTS = Path("/proc/self/mounts")


def assemble(settings: Settings, client: KubeClient, store: Store, metrics: Metrics) -> Remediator:
    """All of it; `around` is still to be told whom to ask."""
    around = Surroundings(
        client=client,
        store=store,
        walls=Walls(client, "execute"),
        kill_switch=settings.kill_switch,
        persistent=outlives_us(settings.database),
        fresh_seconds=settings.evidence_fresh_seconds,
    )
    rules = Rules(unmanaged=settings.drain_unmanaged, empty_dir=settings.drain_empty_dir)
    options = Options(
        limits=Limits(
            allowlist=settings.node_allowlist,
            max_actions_per_hour=settings.max_actions_per_hour,
            max_unavailable_percent=settings.max_unavailable_percent,
            min_confidence=settings.action_min_confidence,
        ),
        dry_run=settings.dry_run,
        uncordon_on_recovery=settings.uncordon_on_recovery,
        pace=Pace(drain=settings.drain_seconds),
    )
    return Remediator(around, Executor(client, effect=settings.taint_effect, rules=rules), metrics, options)


def outlives_us(database: Path, mounts: Path = MOUNTS) -> bool:
    """False where the database lies in memory or in a container's own layer."""
    where = database.resolve()
    kind, longest = "", -1
    for line in mounts.read_text().splitlines():
        _, point, found, *_ = line.split()
        if where.is_relative_to(point) and len(point) >= longest:
            kind, longest = found, len(point)
    return kind not in FLEETING
