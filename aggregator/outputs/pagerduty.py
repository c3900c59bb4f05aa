"""PagerDuty Events v2: an incident is one alert there, found again by its id."""

from __future__ import annotations

from typing import Any

from aggregator.outputs.wording import Notice, only_set

EVENTS_URL = "https://events.pagerduty.com/v2/enqueue"
MAX_SUMMARY = 1024  # characters that PagerDuty takes
SEVERITIES = {"critical": "critical", "warning": "warning", "info": "info", "ok": "info"}
IN_PAYLOAD = ("node_name", "severity", "timestamp", "fault_class", "cluster", "link")


def pagerduty_body(notice: Notice, routing_key: str) -> dict[str, Any]:
    """`trigger` also updates: PagerDuty joins what has the same dedup_key."""
    if notice.status == "resolved":
        return {"routing_key": routing_key, "event_action": "resolve", "dedup_key": notice.incident_id}
    details = {name: value for name, value in notice.as_json().items() if name not in IN_PAYLOAD}
    simulated = "(simulated) " if notice.simulated else ""
    summary = f"{simulated}[{notice.cluster}] {notice.subject}: {notice.root_cause}"
    body: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": "trigger",
        "dedup_key": notice.incident_id,
        "payload": {
            "summary": summary[:MAX_SUMMARY],
            "source": notice.node_name or notice.cluster,
            "severity": SEVERITIES[notice.severity],
            "timestamp": notice.timestamp,
            "component": notice.subject,
            "group": notice.cluster,
            "class": notice.fault_class,
            "custom_details": only_set(details),
        },
        "client": "gcm-sentinel",
    }
    if notice.link:
        body |= {"client_url": notice.link, "links": [{"href": notice.link, "text": "Open the incident"}]}
    return body
