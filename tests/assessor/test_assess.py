"""An incident becomes an assessment once, and again only when a reader would see a difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator import rules
from aggregator.assessor import assess
from aggregator.model import Action, Incident, IncidentState, Phase, Resolution, Severity, Signal, Subject, Verdict

NOW = 1_800_000_000_000_000


def xid(code: int, number: int = 1, **fields: object) -> Signal:
    defaults: dict[str, object] = {
        "node": "n1",
        "pci": "0000:3a:00.0",
        "at_us": NOW + number,
        "source": "kmsg",
        "raw": f"NVRM: Xid (PCI:0000:3a:00): {code}",
    }
    return Signal(id=f"n1/kmsg/b/{number}", kind="xid", code=code, **{**defaults, **fields})  # type: ignore[arg-type]


def incident(*signals: Signal, **fields: object) -> Incident:
    made = Incident("inc-1", Subject("gpu", "n1", "0000:3a:00.0"), ("n1",), signals, IncidentState.OPEN, NOW, NOW)
    return replace(made, **fields)  # type: ignore[arg-type]


def test_the_first_assessment_is_revision_one() -> None:
    first = assess(incident(xid(79)), None, NOW)
    assert first is not None
    assert (first.id, first.revision, first.created_us, first.node) == ("inc-1/1", 1, NOW, "n1")
    assert first.verdict.severity is Severity.CRITICAL
    assert first.verdict.citations == ("n1/kmsg/b/1",)


@pytest.mark.parametrize(
    "later",
    [
        pytest.param(incident(xid(79, count=40)), id="nothing new"),
        pytest.param(incident(xid(79, count=400)), id="a count that grew"),
        pytest.param(incident(xid(79, count=40), updated_us=NOW + 5), id="heard again"),
    ],
)
def test_what_no_reader_would_notice_is_no_revision(later: Incident) -> None:
    first = assess(incident(xid(79, count=40)), None, NOW)
    assert assess(later, first, NOW + 1) is None


@pytest.mark.parametrize(
    "later",
    [
        pytest.param(incident(xid(13), xid(79, 2)), id="a worse fault"),
        pytest.param(incident(xid(13), xid(13, 2, source="nvml", gpu_uuid="GPU-1")), id="a second channel"),
        pytest.param(incident(xid(13), state=IncidentState.RESOLVED, resolved_because="quiet"), id="resolved"),
    ],
)
def test_what_a_reader_would_notice_is_a_revision(later: Incident) -> None:
    first = assess(incident(xid(13)), None, NOW)
    second = assess(later, first, NOW + 1)
    assert second is not None
    assert (second.revision, second.id) == (2, "inc-1/2")


def test_the_closing_record_keeps_the_verdict_and_says_why_it_is_over() -> None:
    first = assess(incident(xid(79)), None, NOW)
    over = incident(xid(79), state=IncidentState.RESOLVED, resolved_because="rebooted", resolved_us=NOW + 9)
    closing = assess(over, first, NOW + 9)
    assert first is not None
    assert closing is not None
    assert (closing.verdict.severity, closing.verdict.action) == (first.verdict.severity, first.verdict.action)
    assert closing.verdict.summary.startswith("Resolved: the node was rebooted")
    assert assess(over, closing, NOW + 10) is None
    again = assess(incident(xid(79)), closing, NOW + 11)
    assert again is not None
    assert again.revision == 3


def test_a_rule_engine_that_fails_leaves_a_degraded_assessment() -> None:
    def broken(signals: Sequence[Signal], context: rules.Context) -> Verdict:
        raise ValueError("odd")

    made = assess(incident(xid(79)), None, NOW, judge=broken)
    assert made is not None
    assert (made.degraded_reason, made.verdict.resolutions) == ("rules_failed: ValueError", (Resolution.INVESTIGATE,))
    assert made.verdict.severity is Severity.WARNING


@pytest.mark.parametrize(("lead", "sentence"), [(None, "cannot be told"), (12.0, "n1 was first, by 12 s")])
def test_a_fleet_verdict_looks_for_the_common_cause_and_acts_on_no_node(lead: float | None, sentence: str) -> None:
    attributes = {} if lead is None else {"first_by_seconds": lead}
    facts = [xid(79, attributes=attributes), xid(79, 2, node="n2", count=9)]
    made = assess(incident(*facts, subject=Subject("fleet", "n1"), nodes=("n1", "n2")), None, NOW)
    assert made is not None
    assert made.verdict.action is Action.NONE
    assert "10 nodes" in made.verdict.root_cause
    assert sentence in made.verdict.summary


signals = st.builds(
    Signal,
    id=st.text(max_size=20),
    kind=st.one_of(st.sampled_from(["xid", "sxid", "nvml_hung", "kernel_boot"]), st.text(max_size=10)),
    code=st.one_of(st.none(), st.integers(-5, 10**6)),
    node=st.text(max_size=5),
    pci=st.one_of(st.none(), st.text(max_size=12)),
    at_us=st.one_of(st.none(), st.integers(-(10**18), 10**19)),
    raw=st.text(max_size=30),
    phase=st.sampled_from(Phase),
    attributes=st.dictionaries(
        st.sampled_from(["text", "link", "recovery_action", "after", "before", "registers", "count"]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
        max_size=4,
    ),
    count=st.integers(0, 10**9),
)


@given(st.lists(signals, max_size=6), st.sampled_from(["gpu", "node", "fleet", "nvlink_peers"]))
def test_whatever_signals_hold_there_is_an_assessment(facts: list[Signal], kind: str) -> None:
    odd = incident(*facts, subject=Subject(kind, "n1"))
    made = assess(odd, None, NOW)
    assert made is not None
    assert made.degraded_reason == ""
    assert assess(odd, made, NOW + 1) is None
