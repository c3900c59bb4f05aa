"""What a webhook is sent: the reference's keys, PagerDuty's events, and nothing in either that a hostile text could act with."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.model import Severity
from aggregator.outputs.pagerduty import pagerduty_body
from aggregator.outputs.slack import json_body, slack_body
from aggregator.outputs.wording import Notice, Site, notice, plain
from aggregator.store.deliveries import Waiting
from tests.outputs.conftest import fault, judged, resolved

SITE = Site("prod", "https://sentinel.example/")
REFERENCE = (
    "node_name",
    "condition",
    "severity",
    "summary",
    "root_cause",
    "recommended_action",
    "confidence",
    "timestamp",
)


def told(change: str = "opened", **verdict: object) -> Notice:
    incident = resolved(fault()) if change == "resolved" else fault()
    return notice(Waiting(1, change, 1, 0, "id-1", incident, judged(incident, **verdict)), SITE)  # type: ignore[arg-type]


def with_text(text: str) -> Notice:
    """Hostile words wherever words come from outside."""
    fact = replace(fault().signals[0], raw=text, attributes={"condition": text})
    incident = fault(signals=(fact,), resolved_because=text)
    verdict = judged(
        incident, root_cause=text, summary=text, next_steps=(text,), disputed=(text,), degraded_reason=text
    )
    return notice(Waiting(1, "opened", 1, 0, "id-1", incident, verdict), SITE)


def test_slack_gets_the_reference_s_keys_and_more() -> None:
    body = slack_body(told())
    result = body["sentinel_result"]
    assert [result[name] for name in REFERENCE] == [
        "n1", "xid 79", "critical", "It answers nothing.", "The GPU fell off the bus.", "drain", 0.9, "2023-11-14T22:13:20.000+00:00",
    ]  # fmt: skip
    assert (result["incident_id"], result["status"], result["cluster"]) == ("inc-1", "opened", "prod")
    assert result["evidence"][0]["id"] == "n1/kmsg/b/1"
    assert body["text"].splitlines()[-1] == "<https://sentinel.example/incidents/inc-1|Open inc-1>"
    assert body["text"].startswith(
        "*[CRITICAL] n1, GPU 0000:3a:00.0* (cluster prod)\n*Root cause:* The GPU fell off the bus."
    )


def test_an_update_and_an_end_say_so() -> None:
    assert "updated: n1" in slack_body(told("revised"))["text"]
    assert "RESOLVED: n1" in slack_body(told("resolved"))["text"]


def test_without_an_address_of_the_pages_there_is_no_link() -> None:
    said = notice(Waiting(1, "opened", 1, 0, "id-1", fault(), judged(fault())), Site("prod"))
    assert "http" not in json.dumps(slack_body(said))
    assert "links" not in pagerduty_body(said, "key")


@pytest.mark.parametrize(
    ("change", "severity", "action"),
    [("opened", "critical", "trigger"), ("revised", "warning", "trigger"), ("resolved", "critical", "resolve")],
)
def test_pagerduty_gets_one_alert_an_incident(change: str, severity: str, action: str) -> None:
    body = pagerduty_body(told(change, severity=Severity(severity)), "routing")
    assert (body["event_action"], body["dedup_key"], body["routing_key"]) == (action, "inc-1", "routing")
    if action == "trigger":
        payload = body["payload"]
        assert (payload["severity"], payload["source"], payload["group"]) == (severity, "n1", "prod")
        assert payload["custom_details"]["evidence"][0]["text"] == "Xid 79"


def test_pagerduty_knows_no_severity_ok() -> None:
    assert pagerduty_body(told(severity=Severity.OK), "k")["payload"]["severity"] == "info"


def test_a_simulated_fault_says_so() -> None:
    fact = replace(fault().signals[0], simulated=True)
    said = notice(Waiting(1, "opened", 1, 0, "id-1", fault(signals=(fact,)), judged(fault())), SITE)
    assert "Simulated" in slack_body(said)["text"]
    assert pagerduty_body(said, "k")["payload"]["summary"].startswith("(simulated)")


@pytest.mark.parametrize(
    "text",
    [
        "<!here> look",
        "<!channel>",
        "@here @channel @everyone",
        "<@U123> <#C123> <!subteam^S1>",
        "<http://evil.example|click me>",
        "https://evil.example/x and www.evil.example",
        "ＨＴＴＰ://evil.example javascript:alert(1) mailto:a@b",
        "&lt;!here&gt;",
        "line\nbreak \x1b[31mred\x1b[0m \u202eright\u202c",
    ],
)
def test_hostile_text_mentions_nobody_and_links_nowhere(text: str) -> None:
    for body in (slack_body(with_text(text)), json_body(with_text(text)), pagerduty_body(with_text(text), "k")):
        said = json.dumps(body, ensure_ascii=False).replace("https://sentinel.example/", "")
        assert not re.search(r"://|www\.|javascript:a|mailto:a|@(here|channel|everyone)", said, re.IGNORECASE)
        assert "\x1b" not in said
        assert "\\u001b" not in said
        assert "\u202e" not in said
    shown = slack_body(with_text(text))["text"]
    assert re.findall(r"<[^>]*>", shown) == ["<https://sentinel.example/incidents/inc-1|Open inc-1>"]


@given(st.text(max_size=400))
def test_no_text_becomes_markup(text: str) -> None:
    shown = slack_body(with_text(text))["text"]
    assert shown.count("<") == shown.count(">") == 1
    assert not re.search(r"&(?!amp;|lt;|gt;)", shown)


@pytest.mark.parametrize("text", ["A" * 1_000_000, "<" * 100_000, "\u202e" * 100_000, "🔥" * 100_000])
def test_a_body_is_bounded(text: str) -> None:
    for body in (slack_body(with_text(text)), json_body(with_text(text)), pagerduty_body(with_text(text), "k")):
        assert len(json.dumps(body)) < 100_000
    assert len(slack_body(with_text(text))["text"]) <= 3900


def test_plain_text_stays_as_it_is() -> None:
    text = "NVRM: Xid (PCI:0000:3a:00): 79, pid=1, name=a@b, GPU has fallen off the bus."
    assert plain(text) == text
