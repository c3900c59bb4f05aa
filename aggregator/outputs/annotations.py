"""The verdict on a node as its annotations: the worst of its open incidents, or nothing. In annotate and execute modes alone.

They are applied as a whole under a field manager of their own: removing them is applying none, and nobody else's are touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from weakref import WeakValueDictionary

from aggregator.kube.client import KubeClient
from aggregator.kube.walls import Walls
from aggregator.model import SEVERITY_ORDER, Action, Assessment, Incident, Resolution
from aggregator.outputs.cluster import LANES, PER_MINUTE, node_uid, translated
from aggregator.outputs.wording import Site, notice, plain
from aggregator.store import Store, queries
from aggregator.store.deliveries import Audience, Route, Waiting

PREFIX = "gcm-sentinel/"
MANAGER = "gcm-sentinel-annotations"
MAX_TEXT = 250  # characters, as the reference has it
ADVISED = (Resolution.RESET_GPU, Resolution.REBOOT, Resolution.POWER_CYCLE)  # never done by us: somebody else may

Judged = tuple[Incident, Assessment]


class Annotations:
    """A target that annotates nodes."""

    per_minute = PER_MINUTE
    lanes = LANES

    def __init__(self, client: KubeClient, store: Store, walls: Walls) -> None:
        self.route = Route("annotations", Audience.SHOWN)
        self._client = client
        self._store = store
        self._walls = walls
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def send(self, message: Waiting) -> None:
        """Make a node's annotations say how it stands now."""
        node = message.incident.subject.node
        lock = self._locks.setdefault(node, asyncio.Lock())
        async with lock:  # else what was read first could be written last
            found = await self._store.read(partial(queries.list_incidents, node=node))
            with translated():
                await self._walls.check()
                await self._apply(node, values_of(worst(found)))

    async def _apply(self, node: str, values: dict[str, str]) -> None:
        uid = await node_uid(self._client, node)
        if uid is None:
            return
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node, "uid": uid, "annotations": values},  # the uid: never make a node by applying
        }
        params = {"fieldManager": MANAGER, "force": "true"}
        await self._client.patch(f"/api/v1/nodes/{node}", body, "apply", params)


def worst(found: Iterable[tuple[Incident, Assessment | None]]) -> Judged | None:
    """The worst open incident of a node's own, the newest of several."""
    own = [
        (incident, assessment)
        for incident, assessment in found
        if assessment is not None and incident.subject.kind != "fleet"
    ]
    return max(own, key=lambda one: (SEVERITY_ORDER[one[1].verdict.severity], one[0].opened_us), default=None)


def values_of(judged: Judged | None) -> dict[str, str]:
    """The reference's seven, and what somebody else may do about it."""
    if judged is None:
        return {}
    incident, assessment = judged
    verdict = assessment.verdict
    told = notice(Waiting(0, "revised", 0, 0, "", incident, assessment), Site(""))
    values = {
        "severity": verdict.severity.value,
        "action": verdict.action.value,
        "confidence": f"{verdict.confidence:.2f}",
        "summary": plain(told.summary, MAX_TEXT),
        "root-cause": plain(told.root_cause, MAX_TEXT),
        "condition": told.condition,
        "timestamp": datetime.fromtimestamp(assessment.created_us / 1e6, UTC).isoformat(timespec="seconds"),
    }
    advised = [resolution.value for resolution in verdict.resolutions if resolution in ADVISED]
    if verdict.action is Action.REBOOT and "reboot" not in advised:
        advised.append("reboot")
    if advised:
        about = incident.subject.gpu_uuid or incident.subject.pci
        values["recommended"] = ",".join(advised) + (f" {plain(about, MAX_TEXT)}" if about else "")
    return {PREFIX + name: value for name, value in values.items()}
