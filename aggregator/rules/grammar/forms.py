"""Messages of one family as a table of forms: the first form that fits gives the reading.

A form names lower-case words one of which its messages hold, checked before its pattern, so that a long table stays cheap.
Patterns bound every repetition inside them: searching costs no more than the line's length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aggregator.model import Scalar
from aggregator.rules.grammar.reading import Reading, pci_in, present, uuid_in

Attributes = dict[str, Scalar]
Take = Callable[[re.Match[str]], Attributes]


@dataclass(frozen=True, slots=True)
class Form:
    """One form of message: words, pattern, the kind it means, and what else to take from it."""

    kind: str
    words: tuple[str, ...]
    pattern: re.Pattern[str]
    take: Take


def form(kind: str, words: str, pattern: str = "", take: Take = lambda _: {}) -> Form:
    """A form; `words` are separated by `|`, and enough by themselves where there is no pattern."""
    return Form(kind, tuple(words.split("|")), re.compile(pattern, re.I | re.S), take)


def named(*integers: str) -> Take:
    """Takes every named group, those listed as whole numbers."""

    def take(found: re.Match[str]) -> Attributes:
        groups = found.groupdict()
        return present(
            **{name: int(value) if value and name in integers else value for name, value in groups.items() if value}
        )

    return take


def constant(**attributes: Scalar) -> Take:
    """Sets attributes that the form itself implies."""
    return lambda _: dict(attributes)


def first(forms: Iterable[Form], text: str) -> Reading | None:
    """The reading of the first form that fits; GPU names that stand in the text are taken along."""
    lowered = text.lower()
    for candidate in forms:
        for word in candidate.words:
            if word in lowered:
                found = candidate.pattern.search(text)
                if found:
                    attributes = {"text": text} | candidate.take(found)
                    return Reading(candidate.kind, attributes, pci=pci_in(text), gpu_uuid=uuid_in(text))
                break
    return None
