"""The reference's webhook body: `text` in Slack's markdown for people, `sentinel_result` for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aggregator.outputs.wording import Notice

MAX_TEXT = 3900  # characters; Slack cuts at 4,000
MARKS = {"opened": "", "revised": "updated: ", "resolved": "RESOLVED: "}


def slack_body(notice: Notice) -> dict[str, Any]:
    """Slack makes no link and no mention of anything in it but ours."""
    return {
        "text": _text(notice),
        "mrkdwn": True,
        "parse": "none",
        "link_names": False,
        "unfurl_links": False,
        "unfurl_media": False,
        "sentinel_result": notice.as_json(),
    }


def json_body(notice: Notice) -> dict[str, Any]:
    """The same for programs that read no Slack markdown."""
    head = f"[{notice.severity.upper()}] {MARKS[notice.status]}{notice.subject}: {notice.root_cause}"
    return {"text": head, "sentinel_result": notice.as_json()}


def _text(notice: Notice) -> str:
    """Whole lines, as many as fit; the link is the last and always there."""
    link = f"<{escape(notice.link)}|Open {escape(notice.incident_id)}>" if notice.link else escape(notice.incident_id)
    kept, room = [], MAX_TEXT - len(link)
    for line in _lines(notice):
        room -= len(line) + 1
        if room < 0:
            break
        kept.append(line)
    return "\n".join([*kept, link])


def _lines(notice: Notice) -> Iterator[str]:
    mark = MARKS[notice.status]
    yield f"*[{notice.severity.upper()}] {mark}{escape(notice.subject)}* (cluster {escape(notice.cluster)})"
    if notice.simulated:
        yield "_Simulated: these facts come from a simulated driver._"
    yield f"*Root cause:* {escape(notice.root_cause)}"
    yield escape(notice.summary)
    todo = ", ".join(notice.resolutions).replace("_", " ") or "none"
    yield f"*Node:* {notice.recommended_action} | *Do:* {escape(todo)} | *Confidence:* {notice.confidence:.0%}"
    if notice.degraded_reason:
        yield f"*Degraded:* {escape(notice.degraded_reason)}"
    for difference in notice.disputed:
        yield f"*Disputed:* {escape(difference)}"
    for fact in notice.evidence:
        yield f"• {fact.at} {escape(fact.signal)}: {escape(fact.text)}"


def escape(text: str) -> str:
    """The three characters that Slack's markdown reserves: without them there is no `<!here>` and no `<http://…>`."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
