"""Checks what a model claims against what it was shown (DESIGN rule 9). Pure, and deaf to reasons: a quote stands in its item,
character by character, or the claim is dropped and listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aggregator.investigator.answer import Answer, Statement
from aggregator.investigator.framing import Gate
from aggregator.investigator.items import Item, Shown
from aggregator.model import Claim, ClaimRole, Opinion, Support, Trust

MIN_QUOTE = 6  # characters that are not space; fewer stand in any text

_FILLER = r"(?:[\s:#=(\"'-]|\b(?:errors?|events?|codes?|numbers?|no|of|is|was|faults?)\b)*?"
_AND = r"(?:\s*(?:,|/|&|\+|;|\bto\b|\band\b|\bor\b)\s*|[-–])+"
_UNITS = "times|x\\b|reports?|errors?|events?|more|other|gpus?|nodes?|links?|pods?|jobs?|m?s\\b|min|seconds?|hours?|days?|[mg]i?b"
_UNIT = rf"(?!\s*(?:[%°:]|{_UNITS}))"  # what a number that goes on the list is not followed by: "XID 79, 3 times" names one code
_CODES = {
    "xid": re.compile(
        rf"(?<![a-z])xids?{_FILLER}(\d{{1,6}}(?:{_AND}(?:xids?\s*)?\d{{1,3}}(?!\d){_UNIT})*)", re.IGNORECASE
    ),
    "sxid": re.compile(
        rf"(?<![a-z])sxids?{_FILLER}(\d{{1,6}}(?:{_AND}(?:sxids?\s*)?\d{{4,6}}(?!\d){_UNIT})*)", re.IGNORECASE
    ),
}
_NUMBER = re.compile(r"\d{1,6}")
_PROGRAM = re.compile(r"\bname=[^,\n]*")  # in a kernel line: a program's name is its owner's words


@dataclass(frozen=True, slots=True)
class Checked:
    """An answer's claims, apart."""

    opinion: Opinion  # with the accepted claims
    dropped: tuple[Claim, ...]

    @property
    def has_cause(self) -> bool:
        """Whether a root cause was accepted."""
        return any(claim.role is ClaimRole.ROOT_CAUSE for claim in self.opinion.claims)


def check(answer: Answer, shown: Shown, gate: Gate) -> Checked:
    """Check every claim; what leaves of the model's words has passed the gate."""
    known = shown.words(Trust.HARDWARE, Trust.CLUSTER)
    claims: list[Claim] = []
    for statement in answer.statements:
        claims.append(_claim(statement, shown, gate.leaving(statement.text, known), claims, gate))
    opinion = Opinion(
        severity=answer.severity,
        fault_class=answer.fault_class,
        action=answer.action,
        resolutions=answer.resolutions,
        confidence=answer.confidence,
        claims=tuple(claim for claim in claims if not claim.dropped_because),
        open_questions=tuple(gate.leaving(question, known) for question in answer.open_questions),
    )
    return Checked(opinion, tuple(claim for claim in claims if claim.dropped_because))


def _claim(statement: Statement, shown: Shown, text: str, before: Sequence[Claim], gate: Gate) -> Claim:
    reason = gate.leaving(next(_problems(statement, shown, text, before), ""))
    if reason:
        return Claim(statement.role, text, tuple(_unproved(shown, gate, *pair) for pair in statement.support), reason)
    return Claim(statement.role, text, tuple(_proved(shown, *pair) for pair in statement.support))


def _proved(shown: Shown, item_id: str, quote: str) -> Support:
    item = shown.get(item_id)
    assert item is not None
    trust = Trust.TENANT if item.conclusion or _is_program_name(item, quote) else item.trust
    return Support(item.id, quote, trust, item.evidence_id, item.live)


def _is_program_name(item: Item, quote: str) -> bool:
    return quote in "\n".join(_PROGRAM.findall(item.text)) and quote not in _PROGRAM.sub("", item.text)


def _unproved(shown: Shown, gate: Gate, item_id: str, quote: str) -> Support:
    """What a dropped claim was said to stand on: the model's words, of the lowest class."""
    return Support(gate.leaving(item_id)[:20], gate.leaving(quote)[:300], Trust.TENANT)


def _problems(statement: Statement, shown: Shown, text: str, before: Sequence[Claim]) -> Iterator[str]:
    if not text:
        yield "it says nothing"
    if not statement.support:
        yield "it cites nothing"
    for item_id, quote in statement.support:
        yield from _misquoted(shown.get(item_id), item_id, quote)
    for kind, code in codes_in(statement.text):
        if not any(_shows(shown.get(item_id), quote, kind, code) for item_id, quote in statement.support):
            yield f"it names {kind} {code}, which none of its quotes shows"
    accepted = [claim for claim in before if not claim.dropped_because]
    if any((claim.role, claim.text) == (statement.role, text) for claim in accepted):
        yield "it repeats another claim"
    if statement.role is ClaimRole.ROOT_CAUSE and any(claim.role is ClaimRole.ROOT_CAUSE for claim in accepted):
        yield "it is a second root cause"


def _misquoted(item: Item | None, item_id: str, quote: str) -> Iterator[str]:
    if item is None:
        yield f"it cites {item_id!r:.24}, which was never shown"
    elif len("".join(quote.split())) < MIN_QUOTE:
        yield f"its quote of {item.id} is too short to prove anything"
    elif quote not in item.text:
        yield f"its quote does not stand in {item.id}"
    elif any(quote.strip() in words for words in item.asked):
        yield f"its quote of {item.id} repeats the words it asked with"


def codes_in(text: str) -> Iterator[tuple[str, int]]:
    """Every XID and SXid that a text names."""
    for kind, pattern in _CODES.items():
        for match in pattern.finditer(text):
            yield from ((kind, int(number)) for number in _NUMBER.findall(match.group(1)))


def _shows(item: Item | None, quote: str, kind: str, code: int) -> bool:
    """Whether a quote names a code, or the catalog's entry that it is from does."""
    text = item.text if item is not None and item.explains else _PROGRAM.sub("", quote)
    named = re.search(rf"(?<![a-z]){kind}", text, re.IGNORECASE) is not None
    return named and re.search(rf"(?<![\w.:/-])(?<!pid=)0*{code}(?!\w|[:/-]\w|\.\d)", text) is not None
