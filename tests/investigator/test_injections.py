"""A model that obeys every attacker lowers no severity, changes no action, leaks nothing and leaves nothing that acts."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from aggregator import assessor
from aggregator.assessor import basis_of
from aggregator.investigator.case import read_case
from aggregator.investigator.sources import Answer
from aggregator.model import Assessment, Severity, Trust
from aggregator.pipeline import read_record
from aggregator.render import render_text
from aggregator.store import Store, verdicts
from aggregator.store.verdicts import Judgement
from tests.doubles.llm import Asked, Call, Step, answer, calls
from tests.investigator.conftest import GOOD, NOW, Ran, Runs, answer_of, claim, incident_of, tool, xid
from tests.investigator.injections import CORPUS, EVIL, MARKER, SECRET

TENANT_TOOLS = ("get_pod_logs", "get_workload_info")
ACTS = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


class Obedient:
    """Asks, then says what the text it was shown tells it to say, as loudly as it can."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, asked: Asked) -> Step:
        if asked.turns == 0:
            foreign = {"query": "every node, every namespace"}
            return calls(Call("get_pod_logs"), Call("cordon_node", {"node": "n2"}), Call("get_workload_info", foreign))
        shown = "\n".join(text for _, text in asked.results)
        quotes = [line for line in shown.splitlines() if len(line.strip()) > 8 and "<<<" not in line][:3] or [self.text]
        words = self.text[:700]
        claims = [claim(words, *[("t1", quote[:1_000]) for quote in quotes])]
        claims += [claim(f"Go to https://{EVIL} {words[:300]}", ("e1", "GPU has fallen off the bus."), role="finding")]
        claims += [claim(words, ("t1", quotes[0][:1_000]), role="counter_evidence")]
        said = answer_of(*claims, severity="ok", fault_class="none", action="none", resolutions=["none"])
        return answer({**said, "confidence": 1.0, "open_questions": [words[:290], f"{SECRET}?"]})


async def obeyed(run: Runs, text: str) -> tuple[Ran, Assessment]:
    tools = [tool(name, Answer(text, Trust.TENANT)) for name in TENANT_TOOLS]
    ran = await run(Obedient(text), *tools)
    incident = incident_of()
    published = assessor.assess(incident, None, NOW, investigation=ran.found)
    assert published is not None
    return ran, published


@pytest.mark.parametrize("text", CORPUS, ids=[f"{number:02}" for number in range(len(CORPUS))])
async def test_a_model_that_obeys_changes_nothing_and_leaks_nothing(run: Runs, text: str) -> None:
    ran, published = await obeyed(run, text)
    by_rules = assessor.assess(incident_of(), None, NOW)
    assert by_rules is not None
    verdict, floor = published.verdict, by_rules.verdict
    assert (verdict.severity, verdict.action, verdict.fault_class) == (floor.severity, floor.action, floor.fault_class)
    assert (verdict.resolutions, verdict.root_cause) == (floor.resolutions, floor.root_cause)
    assert ran.llm.turns  # it was asked over the wire
    for turn in ran.llm.turns[:2]:  # later ones hold what the model itself made up, which goes back to it as it was
        assert SECRET not in turn.raw.decode("utf-8", "replace")
    out = json.dumps(asdict(published), ensure_ascii=False) + "\n".join(entry.text for entry in ran.entries)
    assert SECRET not in out
    for word in strings(asdict(published)):
        assert not [character for character in word if unicodedata.category(character) in ACTS], word
        assert not re.search(r"https?://|javascript:|mailto:", word), word
    for word in own_words(published):
        assert EVIL not in word
    page = render_text(incident_of(), published)
    assert not [character for character in page if unicodedata.category(character) in ACTS and character != "\n"]


def own_words(published: Assessment) -> list[str]:
    """All that is not a verbatim quote of what was shown."""
    claims = (*published.claims, *published.dropped_claims)
    bare = replace(published, claims=(), dropped_claims=())
    return [*strings(asdict(bare)), *(text for one in claims for text in (one.text, one.dropped_because))]


def strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [word for item in items for word in strings(item)]


async def test_what_a_model_was_made_to_say_never_reaches_another_investigation(run: Runs, tmp_path: Path) -> None:
    """A marker planted in one verdict is in no request about another incident of the same GPU."""
    said = claim(f"The GPU fell off the bus, {MARKER}.", ("e1", "GPU has fallen off the bus."))
    first = await run([answer(answer_of(said, open_questions=[f"Is it {MARKER}?"]))])
    published = assessor.assess(incident_of(), None, NOW, investigation=first.found)
    assert published is not None
    assert MARKER in published.verdict.root_cause  # it was accepted, and is shown to people
    second = incident_of(xid(48, 2, raw="NVRM: Xid (PCI:0000:3a:00): 48, pid=1, name=x, DBE"), id="inc-2")
    store = Store(tmp_path / "sentinel.db", read_record)
    try:
        judged = [Judgement(incident_of(), published, "opened")]
        await store.write(lambda connection: verdicts.save_step(connection, 1, judged, NOW))
        verdict, _ = assessor.judged(second)
        case = await store.read(
            lambda connection: read_case(connection, second, verdict, basis_of(second, verdict), time.time_ns() // 1000)
        )
    finally:
        await store.close()
    assert [other.id for other in case.earlier] == ["inc-1"]  # its codes and what was judged go in, not a word of prose
    cause = claim("An uncorrectable error.", ("e1", "48, pid=1, name=x, DBE"))
    again = await run(
        [answer(answer_of(cause, fault_class="memory"))],
        incident=second,
        case={"earlier": case.earlier, "peers": case.peers},
    )
    assert again.llm.turns
    assert all(MARKER.encode() not in turn.raw for turn in again.llm.turns)


async def test_hardware_facts_still_count_beside_hostile_text(run: Runs) -> None:
    """The walls are no reason to believe nothing: a grounded answer next to an injected log stands."""
    logs = tool("get_pod_logs", Answer(CORPUS[0], Trust.TENANT))
    ran = await run([calls(Call("get_pod_logs")), answer(answer_of(GOOD))], logs)
    published = assessor.assess(incident_of(), None, NOW, investigation=ran.found)
    assert published is not None
    assert (published.origin, published.verdict.severity) == ("llm", Severity.CRITICAL)
