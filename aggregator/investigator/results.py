"""What tools answered, kept whole for the length of one investigation, shown in part, read in pages.

All of it is admitted before it is kept (`framing.Gate`), so a page or a filter sees redacted text alone. A filter runs in linear
time, whatever the model writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import re2

from aggregator.investigator.framing import Gate, printable
from aggregator.investigator.items import Item
from aggregator.investigator.rendering import MAX_KEPT, render

BUILT_IN_OUTPUT = 24_000  # characters shown of one answer, where MAX_TOOL_OUTPUT is 0
MAX_TOGETHER = 16 * 2**20  # characters kept of all answers of an investigation
MAX_LINE = 2_000  # a longer line goes on as another
MAX_FILTER = 500

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.max_mem = 8 << 20


class BadQuestion(ValueError):
    """Something to do differently; the text says what, to the model."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A tool's answer, whole."""

    item: Item
    lines: tuple[str, ...]
    total: int  # characters of the answer, those that were not kept included


def admitted(gate: Gate, value: Any) -> tuple[str, int]:
    """A tool's value as text that may be kept, and its whole length. Runs long for long values: not in the event loop."""
    rendered = render(value, lambda text: gate.redactor.text(printable(text)), gate.redactor.value)
    return gate.admit(rendered.text)[:MAX_KEPT], rendered.total


class Results:
    """The answers of one investigation by item id."""

    def __init__(self, shown_characters: int) -> None:
        self.bound = shown_characters or BUILT_IN_OUTPUT
        self._kept: dict[str, Kept] = {}
        self._room = MAX_TOGETHER

    def keep(self, item: Item, total: int) -> Item:
        """Keep an item whose text is whole; return it as it is shown."""
        text = item.text[: self._room]
        self._room -= len(text)
        lines = tuple(_wrapped(text))
        self._kept[item.id] = Kept(item, lines, total)
        return replace(item, text=self._preview(item.id, "\n".join(lines), total))

    def get(self, item_id: str) -> Kept:
        """Raises BadQuestion."""
        kept = self._kept.get(item_id)
        if kept is None:
            known = ", ".join(self._kept) or "none yet"
            raise BadQuestion(f"there is no result of that id; results: {known}")
        return kept

    def page(self, item_id: str, pattern: str, span: str) -> tuple[Kept, str]:
        """Lines of a kept answer: those that match, within a range "FIRST-LAST" of line numbers from 1. Raises BadQuestion."""
        kept = self.get(item_id)
        first, last = _span(span, len(kept.lines))
        matches = _matcher(pattern)
        numbered = enumerate(kept.lines[first - 1 : last], start=first)
        return kept, self._page(kept, [(number, line) for number, line in numbered if matches(line)], last)

    def _page(self, kept: Kept, found: list[tuple[int, str]], last: int) -> str:
        taken: list[str] = []
        room = self.bound
        for number, line in found:
            room -= len(line) + 1
            if room < 0 and taken:
                shown = f"{len(taken)} of {len(found)} lines; go on with range {number}-{last}"
                return "\n".join((f"[{shown}; the result has {len(kept.lines)} lines]", *taken))
            taken.append(line)
        return "\n".join((f"[{len(taken)} lines; the result has {len(kept.lines)} lines]", *taken))

    def _preview(self, item_id: str, text: str, total: int) -> str:
        """Head and tail of a text that is too long, cut between lines where there are lines."""
        if len(text) <= self.bound and total <= max(len(text), MAX_KEPT):
            return text
        head, tail = text[: self.bound * 2 // 3], text[-(self.bound // 3) :] if len(text) > self.bound else ""
        head = head[: head.rfind("\n") + 1 or None] if tail else head
        tail = tail[tail.find("\n") + 1 :] if tail.find("\n") < len(tail) // 2 else tail
        left_out = len(text) - len(head) - len(tail)
        lost = f"; {total - len(text)} more were too many to keep" if total > MAX_KEPT else ""
        note = (
            f"[… {left_out} of {len(text)} characters left out here: read_result with id {item_id} shows them{lost} …]"
        )
        return "\n".join(part for part in (head.rstrip("\n"), note, tail) if part)


def _wrapped(text: str) -> Iterable[str]:
    for line in text.split("\n"):
        for start in range(0, max(len(line), 1), MAX_LINE):
            yield line[start : start + MAX_LINE]


def _span(span: str, count: int) -> tuple[int, int]:
    if not span:
        return 1, count
    first, dash, last = span.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and len(span) < 20 and 1 <= int(first) <= int(last)):
        raise BadQuestion('range: expected "FIRST-LAST" in line numbers from 1, for example "1-200"')
    if int(first) > count:
        raise BadQuestion(f"range: the result has {count} lines")
    return int(first), min(int(last), count)


def _matcher(pattern: str) -> Any:
    if not pattern:
        return lambda _: True
    if len(pattern) > MAX_FILTER:
        raise BadQuestion(f"filter: at most {MAX_FILTER} characters")
    try:
        return re2.compile(pattern, _OPTIONS).search
    except (re2.error, UnicodeEncodeError) as error:
        raise BadQuestion(f"filter: not a regular expression that RE2 takes: {error}") from None
