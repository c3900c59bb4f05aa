"""A claim stands where every quote of it stands in its item, character by character. Nothing else makes it stand."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aggregator.investigator.answer import Answer, Statement
from aggregator.investigator.grounding import MIN_QUOTE, Checked, check, codes_in
from aggregator.investigator.items import Item, Shown
from aggregator.model import Action, Claim, ClaimRole, FaultClass, Resolution, Severity, Trust
from tests.investigator.conftest import LINE, gate_of

LOG = "step 7 done\nNCCL WARN timeout after 600 s\nhttps[:]//example.org"
ITEMS = (
    Item("e1", "fact", LINE, Trust.HARDWARE, "n1/kmsg/b/1"),
    Item(
        "e2", "fact", "NVRM: Xid (PCI:0000:79:00): 13, pid=79, name=xid 48, Graphics SM", Trust.HARDWARE, "n1/kmsg/b/2"
    ),
    Item("t1", "query_prometheus", '"value": "93", "query": "max(temp)"', Trust.CLUSTER, asked=("max(temp) by (gpu)",)),
    Item("t2", "get_pod_logs", LOG, Trust.TENANT),
    Item(
        "t3", "explain_code", '{"code": 48, "kind": "xid", "meaning": "double bit error"}', Trust.CLUSTER, explains=True
    ),
    Item("t4", "collect_node_evidence", "row remap: none pending", Trust.HARDWARE, live=True),
    Item("r1", "verdict of the rules", "severity critical, class pcie", Trust.CLUSTER, conclusion=True),
)


def checked(*statements: Statement, questions: tuple[str, ...] = ()) -> Checked:
    answer = Answer(Severity.CRITICAL, FaultClass.PCIE, Action.DRAIN, (Resolution.DRAIN,), 0.8, statements, questions)
    return check(answer, Shown(ITEMS), gate_of())


def said(text: str, *support: tuple[str, str], role: ClaimRole = ClaimRole.ROOT_CAUSE) -> Statement:
    return Statement(role, text, support)


def one(text: str, *support: tuple[str, str]) -> Claim:
    found = checked(said(text, *support))
    (claim,) = (*found.opinion.claims, *found.dropped)
    return claim


@pytest.mark.parametrize(
    ("text", "support"),
    [
        ("The GPU fell off.", [("e1", "GPU has fallen off the bus.")]),
        ("XID 79 was reported.", [("e1", "Xid (PCI:0000:3a:00): 79, pid")]),
        ("XIDs 79 and 48 differ.", [("e1", LINE), ("t3", '"meaning": "double')]),
        ("It was hot.", [("t1", '"value": "93"')]),
        ("It timed out.", [("t2", "done\nNCCL WARN")]),
        ("XID 13 is the program's.", [("e2", "Xid (PCI:0000:79:00): 13, pid")]),
    ],
)
def test_what_is_quoted_stands(text: str, support: list[tuple[str, str]]) -> None:
    """Across lines too; a code may stand in a quote or in the catalog's entry."""
    assert one(text, *support).dropped_because == ""


@pytest.mark.parametrize(
    ("text", "support", "because"),
    [
        ("It fell off.", [], "it cites nothing"),
        ("   ", [("e1", "GPU has fallen")], "it says nothing"),
        ("It fell off.", [("e9", "GPU has fallen")], "it cites 'e9', which was never shown"),
        ("It fell off.", [("", "GPU has fallen")], "it cites '', which was never shown"),
        ("It fell off.", [("e1", "")], "its quote of e1 is too short to prove anything"),
        ("It fell off.", [("e1", " \n\t          ")], "its quote of e1 is too short to prove anything"),
        ("It fell off.", [("e1", " G P U  ")], "its quote of e1 is too short to prove anything"),
        ("It fell off.", [("e1", "gpu has fallen off")], "its quote does not stand in e1"),
        ("It fell off.", [("e1", "GPU has  fallen")], "its quote does not stand in e1"),
        ("It fell off.", [("e1", "GPU has fallen … bus.")], "its quote does not stand in e1"),
        ("It fell off.", [("t2", "GPU has fallen")], "its quote does not stand in t2"),
        ("It fell off.", [("e1", "GPU has fallen"), ("e1", "made up words")], "its quote does not stand in e1"),
        ("It was hot.", [("t1", "max(temp)")], "its quote of t1 repeats the words it asked with"),
        ("XID 48 was seen.", [("e1", "GPU has fallen off")], "it names xid 48, which none of its quotes shows"),
        ("XID 79, then XID 48.", [("e1", LINE)], "it names xid 48, which none of its quotes shows"),
        ("XID 3 it is.", [("e1", "PCI:0000:3a:00): 79")], "it names xid 3, which none of its quotes shows"),
        ("XID 79 on it.", [("e2", "PCI:0000:79:00): 13, pid=79")], "it names xid 79, which none of its quotes shows"),
        (
            "XID 48 by name.",
            [("e2", "13, pid=79, name=xid 48, Graphics")],
            "it names xid 48, which none of its quotes shows",
        ),
        ("SXid 79 it is.", [("e1", LINE)], "it names sxid 79, which none of its quotes shows"),
    ],
)
def test_what_does_not_check_is_dropped_and_says_why(text: str, support: list[tuple[str, str]], because: str) -> None:
    """One bad quote drops the claim."""
    assert one(text, *support).dropped_because == because


@given(st.sampled_from(ITEMS), st.data())
def test_every_substring_that_is_long_enough_is_a_quote(item: Item, data: st.DataObject) -> None:
    """And its support says whose words they are."""
    first = data.draw(st.integers(0, len(item.text) - MIN_QUOTE))
    quote = item.text[first : data.draw(st.integers(first + MIN_QUOTE, len(item.text)))]
    assume(len("".join(quote.split())) >= MIN_QUOTE)
    assume(not any(quote.strip() in words for words in item.asked))
    claim = one("So it is.", (item.id, quote))
    assert claim.dropped_because == ""
    assert claim.support[0].quote == quote
    assert claim.support[0].trust in (item.trust, Trust.TENANT)


@given(st.sampled_from(ITEMS), st.text(min_size=1, max_size=40))
def test_nothing_that_is_no_substring_is_a_quote(item: Item, quote: str) -> None:
    """However near it comes."""
    assume(quote not in item.text)
    assert one("So it is.", (item.id, quote)).dropped_because != ""


@given(st.sampled_from(ITEMS), st.integers(0, 60), st.characters(codec="utf-8"))
def test_one_character_makes_the_difference(item: Item, position: int, other: str) -> None:
    """A quote that differs in one is none."""
    position %= len(item.text)
    quote = item.text[:position] + other + item.text[position + 1 :]
    assume(quote not in item.text)
    assert one("So it is.", (item.id, quote)).dropped_because != ""


@pytest.mark.parametrize(
    ("item", "quote", "trust"),
    [
        ("e1", "fallen off the bus", Trust.HARDWARE),
        ("e2", "name=xid 48", Trust.TENANT),
        ("e1", "pid=4242, name=python3", Trust.HARDWARE),
        ("t1", '"value": "93"', Trust.CLUSTER),
        ("t2", "NCCL WARN", Trust.TENANT),
        ("r1", "severity critical", Trust.TENANT),
    ],
)
def test_support_says_who_could_have_written_it(item: str, quote: str, trust: Trust) -> None:
    """A program's name in a kernel line is a tenant's word; our own verdict repeated proves nothing."""
    assert one("So it is.", (item, quote)).support[0].trust is trust


def test_support_names_the_evidence_and_whether_it_was_read_now() -> None:
    """What the join with the rules goes by."""
    found = one("So it is.", ("e1", "fallen off the bus"), ("t4", "none pending"))
    assert [(support.evidence_id, support.live) for support in found.support] == [("n1/kmsg/b/1", False), ("", True)]


def test_there_is_one_root_cause_and_no_claim_twice() -> None:
    """The first that holds."""
    found = checked(
        said("Wrong.", ("e1", "no such words")),
        said("It fell off.", ("e1", "fallen off the bus")),
        said("It was hot.", ("t1", '"value": "93"')),
        said("It was hot.", ("t1", '"value": "93"'), role=ClaimRole.FINDING),
        said("It was hot.", ("t1", '"value": "93"'), role=ClaimRole.FINDING),
    )
    assert [claim.text for claim in found.opinion.claims] == ["It fell off.", "It was hot."]
    assert [claim.dropped_because for claim in found.dropped] == [
        "its quote does not stand in e1", "it is a second root cause", "it repeats another claim",
    ]  # fmt: skip
    assert found.has_cause


def test_a_models_words_leave_clean() -> None:
    """Also those of claims that were dropped, their quotes and ids, and its questions."""
    hostile = "See https://evil.example/?q=1 \x1b]52;c;x\x07 password=hunter2"
    found = checked(
        said(f"It fell off. {hostile}", ("e1", "fallen off the bus")),
        said(hostile, (hostile, hostile)),
        questions=(hostile,),
    )
    words = [
        *(claim.text for claim in (*found.opinion.claims, *found.dropped)),
        *(word for claim in found.dropped for support in claim.support for word in (support.item_id, support.quote)),
        *(claim.dropped_because for claim in found.dropped),
        *found.opinion.open_questions,
    ]
    for word in words:
        assert "evil" not in word
        assert "\x1b" not in word
        assert "hunter2" not in word


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("XID 79 fell", [79]),
        ("XIDs 48, 63 and 94", [48, 63, 94]),
        ("Xid: 79; xid79/XID 80", [79, 79, 80]),
        ("XID error code 119, XID (120)", [119, 120]),
        ("XIDs 144-150", [144, 150]),
        ("XID 79, 3 times, on 8 GPUs", [79]),
        ("XID 13 and 8 GPUs", [13]),
        ("XID 79 - 2027-01-01", [79]),
        ("no XID within 60 s", []),
        ("XID 1234567", [123456]),
        ("code 79", []),
    ],
)
def test_the_codes_that_a_text_names(text: str, codes: list[int]) -> None:
    """Lists and ranges too; a count beside a code is none."""
    assert [code for _, code in codes_in(text)] == codes
