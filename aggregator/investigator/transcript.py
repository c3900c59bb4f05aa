"""What an investigation did, step by step, for people: redacted, bounded, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aggregator.investigator.framing import Gate
from aggregator.investigator.grounding import Checked
from aggregator.investigator.items import Item
from aggregator.investigator.rendering import dumps
from aggregator.investigator.toolbox import Answered
from aggregator.model import Claim
from aggregator.store.investigations import TranscriptEntry

MAX_ENTRIES = 600
MAX_CHARACTERS = 2 * 2**20
MAX_WORDS = 40_000  # of the model in one turn

Record = Callable[[TranscriptEntry], None]


@dataclass
class Transcript:
    """Writes entries to `record`; what goes beyond the bounds is left out, and that is said once."""

    record: Record
    gate: Gate
    now_us: Callable[[], int]
    _entries: int = field(default=0, init=False)
    _characters: int = field(default=0, init=False)

    def item(self, item: Item) -> None:
        """Shown from the beginning."""
        self._add(0, "item", item.text, item.id, item.title, item.trust.value)

    def note(self, round_: int, text: str) -> None:
        """What we told the model, or decided."""
        self._add(round_, "note", self.gate.admit(text))

    def said(self, round_: int, text: str) -> None:
        """The model's words."""
        if text.strip():
            self._add(round_, "model", self.gate.admit(text[:MAX_WORDS]))

    def asked(self, round_: int, answered: Answered) -> None:
        """A call and what became of it."""
        call, item = answered.call, answered.item
        arguments = dumps(call.arguments) if call.arguments is not None else call.raw[:MAX_WORDS]
        self._add(
            round_, "call", self.gate.admit(arguments), self.gate.admit(call.id)[:80], self.gate.admit(call.name)[:80]
        )
        if item is not None:
            self._add(round_, "result", item.text, item.id, item.title, item.trust.value, answered.total)
        else:
            self._add(round_, "result", answered.text, title=answered.error or "answered before")

    def answered(self, round_: int, checked: Checked) -> None:
        """The claims, apart."""
        lines = [_line(claim) for claim in (*checked.opinion.claims, *checked.dropped)]
        self._add(round_, "answer", "\n".join(lines) or "no claims")

    def _add(
        self, round_: int, kind: str, text: str, entry_id: str = "", title: str = "", trust: str = "", total: int = 0
    ) -> None:
        self._entries += 1
        self._characters += len(text)
        if self._entries > MAX_ENTRIES or self._characters > MAX_CHARACTERS:
            if self._entries > MAX_ENTRIES + 1:
                return
            self._entries = MAX_ENTRIES + 1
            kind, text, entry_id, title, trust, total = (
                "note",
                "The transcript is full: the rest is left out.",
                "",
                "",
                "",
                0,
            )
        self.record(TranscriptEntry(self.now_us(), round_, kind, text, entry_id, title, trust, total))


def _line(claim: Claim) -> str:
    support = "; ".join(f"{support.item_id} “{support.quote}”" for support in claim.support)
    verdict = f"dropped, {claim.dropped_because}" if claim.dropped_because else "accepted"
    return f"{claim.role.value} ({verdict}): {claim.text} [{support}]"
