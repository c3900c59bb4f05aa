"""An Event on the Node for each change of a verdict: what `kubectl describe node` shows.

Events of objects without a namespace live in `default`, and are found by the object's uid. Their names follow from what they say,
so saying the same again counts up and makes no second one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from aggregator.kube.client import FIELD_MANAGER, KubeClient
from aggregator.kube.errors import Conflict
from aggregator.model import Severity
from aggregator.outputs.cluster import LANES, PER_MINUTE, node_uid, translated
from aggregator.outputs.wording import plain
from aggregator.store.deliveries import RESOLVED, Audience, Route, Waiting

EVENTS = "/api/v1/namespaces/default/events"
REASON = "GCMSentinel"
MAX_MESSAGE = 1024  # bytes that the API server takes
DELIVERY = "gcm-sentinel/delivery"  # annotation of an Event: what it was counted for last
STATES = {"opened": "", "revised": "updated: ", "resolved": "resolved: "}


class NodeEvents:
    """A target that writes Events."""

    per_minute = PER_MINUTE
    lanes = LANES

    def __init__(self, client: KubeClient, instance: str) -> None:
        self.route = Route("node_events", Audience.NOTED)
        self._client = client
        self._instance = instance

    async def send(self, message: Waiting) -> None:
        """Write the Event, or count it up where it is there."""
        node = message.incident.subject.node
        with translated():
            uid = await node_uid(self._client, node)
            if uid is None:
                return
            event = _event(message, node, uid, self._instance)
            try:
                await self._client.post(EVENTS, event)
            except Conflict:
                await self._count(event["metadata"]["name"], message.idempotency_id)

    async def _count(self, name: str, delivery: str) -> None:
        present = await self._client.get(f"{EVENTS}/{name}")
        if (present["metadata"].get("annotations") or {}).get(DELIVERY) == delivery:
            return  # an attempt whose answer was lost
        count = int(present.get("count") or 1) + 1
        change = {
            "metadata": {
                "annotations": {DELIVERY: delivery},
                "resourceVersion": present["metadata"]["resourceVersion"],
            },
            "count": count,
            "lastTimestamp": _now("seconds"),
            "series": {"count": count, "lastObservedTime": _now("microseconds")},
        }
        await self._client.patch(f"{EVENTS}/{name}", change)


def _event(message: Waiting, node: str, uid: str, instance: str) -> dict[str, Any]:
    said, now = _message(message), _now("seconds")
    digest = blake2b(f"{uid} {message.incident.id} {said}".encode(), digest_size=10).hexdigest()
    alarming = message.assessment.verdict.severity in (Severity.CRITICAL, Severity.WARNING)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"gcm-sentinel-{digest}",
            "namespace": "default",
            "annotations": {DELIVERY: message.idempotency_id},
        },
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid},
        "reason": REASON,
        "message": said,
        "type": "Warning" if alarming and message.change != RESOLVED else "Normal",
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": instance,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _message(message: Waiting) -> str:
    """One line; what comes first matters most, the incident's id is always there."""
    verdict = message.assessment.verdict
    simulated = "(simulated) " if message.incident.simulated else ""
    head = f"[{verdict.severity.value.upper()}] {STATES[message.change]}{simulated}"
    tail = f" | Action: {verdict.action.value} | Confidence: {verdict.confidence:.0%} | {message.incident.id}"
    said = plain(verdict.root_cause).encode()[: MAX_MESSAGE - len(head.encode()) - len(tail.encode())]
    return head + said.decode(errors="ignore") + tail


def _now(precision: str) -> str:
    return datetime.now(UTC).isoformat(timespec=precision).replace("+00:00", "Z")
