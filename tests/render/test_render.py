"""An incident in words: complete, narrow where asked, and harmless whatever its lines hold."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.model import (
    Action,
    Assessment,
    FaultClass,
    Incident,
    IncidentState,
    Phase,
    Resolution,
    Severity,
    Signal,
    Subject,
    Verdict,
)  # fmt: skip
from aggregator.render import describe, render_text, visible

NOW = 1_800_000_000_000_000
FACTS = (
    Signal("n1/kmsg/b/1", "xid", 79, node="n1", pci="0000:3a:00.0", at_us=NOW, source="kmsg",
           raw="NVRM: Xid (PCI:0000:3a:00): 79, GPU has fallen off the bus.", attributes={"witnesses": "kmsg"}),
    Signal("n1/nvml/e/1", "nvml_gpu_lost", node="n1", pci="0000:3a:00.0", at_us=NOW + 250_000, source="nvml",
           raw="NVML says that GPU 5 is lost", phase=Phase.BEGAN, count=3),
)  # fmt: skip
INCIDENT = Incident(
    "inc-1", Subject("gpu", "n1", "0000:3a:00.0", "GPU-5"), ("n1",), FACTS, IncidentState.OPEN, NOW, NOW + 250_000
)
VERDICT = Verdict(
    severity=Severity.CRITICAL,
    fault_class=FaultClass.PCIE,
    action=Action.DRAIN,
    resolutions=(Resolution.DRAIN, Resolution.REBOOT),
    root_cause="GPU 0000:3a:00.0 fell off the bus.",
    summary="The GPU stopped answering; everything else follows from that.",
    confidence=0.87,
    citations=("n1/kmsg/b/1",),
    rule_ids=("xid-79",),
    recurrence_advice="Reseat it, then open a case.",
    open_questions=("Did the node lose power?",),
    do_not=("Do not reset the GPU: it is not there.",),
    next_steps=("Drain the node.", "Reboot it."),
    rules_version="2026.1@abc",
)
ASSESSMENT = Assessment("inc-1/1", "inc-1", "n1", 1, NOW, VERDICT)


def test_it_reads_from_what_happened_to_what_to_do() -> None:
    expected = """\
CRITICAL  n1, GPU 0000:3a:00.0 GPU-5  [inc-1]
Open since 2027-01-15 08:00:00 UTC.

GPU 0000:3a:00.0 fell off the bus.
The GPU stopped answering; everything else follows from that.

class: pcie · node: drain · confidence: 87%

Order of events (* = what the verdict rests on)
  * 08:00:00.000  xid 79  (seen by the kernel log only)
      NVRM: Xid (PCI:0000:3a:00): 79, GPU has fallen off the bus.
    08:00:00.250  nvml_gpu_lost  (began, stands for 3 reports)
      NVML says that GPU 5 is lost

Do now
  - Drain the node.

Then
  - Reboot it.

If it comes back
  - Reseat it, then open a case.

Do not
  - Do not reset the GPU: it is not there.

What would settle it
  - Did the node lose power?

Judged by rules (xid-79; version 2026.1@abc), revision 1.
"""
    assert render_text(INCIDENT, ASSESSMENT, width=100) == expected


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"state": IncidentState.RESOLVED, "resolved_us": NOW, "resolved_because": "quiet"}, "Resolved at 2027-01-15 08:00:00 UTC: quiet."),
        ({"held_until_us": NOW, "held_because": "driver upgrade"}, "wait until 2027-01-15 08:00:00 UTC: driver upgrade."),
        ({"fleet_id": "inc-9"}, "Part of inc-9, which pages for it."),
        ({"signals": (replace(FACTS[0], simulated=True),)}, "SIMULATED"),
        ({"subject": Subject("fleet", "n1"), "nodes": ("n1", "n2", "n3")}, "n1 and 2 other nodes"),
    ],
)  # fmt: skip
def test_how_it_stands_is_said(fields: dict[str, object], sentence: str) -> None:
    assert sentence in render_text(replace(INCIDENT, **fields), ASSESSMENT)  # type: ignore[arg-type]


def test_without_a_verdict_the_facts_are_shown() -> None:
    text = render_text(INCIDENT, None)
    assert text.startswith("NOT JUDGED YET")
    assert "GPU has fallen off the bus." in text


def test_a_pasted_log_is_told_by_line_numbers() -> None:
    pasted = replace(INCIDENT, signals=(replace(FACTS[0], line=17),), subject=Subject("gpu", "", "0000:3a:00.0"))
    text = render_text(pasted, ASSESSMENT)
    assert "line 17  xid 79" in text
    assert "Open since" not in text


def test_a_long_timeline_keeps_its_ends_and_what_is_cited() -> None:
    many = tuple(replace(FACTS[1], id=f"n1/nvml/e/{number}", raw=f"fact {number}.") for number in range(200))
    verdict = replace(VERDICT, citations=("n1/nvml/e/100",))
    text = render_text(replace(INCIDENT, signals=many), replace(ASSESSMENT, verdict=verdict))
    assert "fact 0." in text
    assert "fact 100." in text
    assert "fact 199." in text
    assert "… 159 more facts …" in text


def test_colour_is_used_only_when_asked_for() -> None:
    plain, coloured = render_text(INCIDENT, ASSESSMENT), render_text(INCIDENT, ASSESSMENT, colour=True)
    assert "\x1b" not in plain
    assert coloured.startswith("\x1b[1;31mCRITICAL")
    assert coloured.count("\x1b[0m") == coloured.count("\x1b[") / 2


@pytest.mark.parametrize("width", [40, 72, 200])
def test_no_line_is_wider_than_asked_for(width: int) -> None:
    wide = replace(FACTS[0], raw="x" * 500 + " and words " * 30)
    text = render_text(replace(INCIDENT, signals=(wide,)), ASSESSMENT, width=width)
    assert max(len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\nCRITICAL  forged\r\n", "a CRITICAL forged"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x9b31m", "\\x9b31m"),
        ("tab\there", "tab here"),
        ("\udcff", "\\udcff"),
        ("Gerät 温度 ok", "Gerät 温度 ok"),
    ],
)
def test_what_a_terminal_would_act_on_becomes_visible(hostile: str, shown: str) -> None:
    assert visible(hostile) == shown


@given(st.text(max_size=60), st.booleans())
def test_nothing_that_others_wrote_reaches_the_terminal_raw(hostile: str, colour: bool) -> None:
    fact = Signal(
        hostile, hostile, node=hostile, pci=hostile, at_us=NOW, raw=hostile, attributes={"witnesses": hostile}
    )
    verdict = replace(
        VERDICT, root_cause=hostile, summary=hostile, rule_ids=(hostile,), recurrence_advice=hostile,
        open_questions=(hostile,), do_not=(hostile,), next_steps=(hostile, hostile), rules_version=hostile, citations=(hostile,),
    )  # fmt: skip
    incident = replace(
        INCIDENT, id=hostile, subject=Subject("gpu", hostile, hostile, hostile), signals=(fact,), held_until_us=NOW,
        held_because=hostile, fleet_id=hostile,
    )  # fmt: skip
    text = render_text(incident, replace(ASSESSMENT, verdict=verdict, degraded_reason=hostile), colour=colour)
    for style in ("1;31", "1", "2", "0"):
        text = text.replace(f"\x1b[{style}m", "")
    assert {unicodedata.category(character) for character in text} & {"Cc", "Cf", "Cs"} <= (
        {"Cc"} if "\n" in text else set()
    )
    assert not any(unicodedata.category(character) == "Cc" for character in text if character != "\n")
    text.encode()


@given(st.integers(-(10**20), 10**20))
def test_any_time_can_be_shown(at_us: int) -> None:
    odd = replace(INCIDENT, opened_us=at_us, signals=(replace(FACTS[0], at_us=at_us),))
    assert describe(odd, ASSESSMENT).timeline[0].time
