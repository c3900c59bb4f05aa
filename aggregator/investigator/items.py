"""What an investigation was shown: every text under a short id, with who could have written it.

Claims are checked against these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from aggregator.model import Trust


@dataclass(frozen=True, slots=True)
class Item:
    """One text as the model sees it; quotes are substrings of `text`, character by character."""

    id: str  # e1: a fact, t3: a tool's answer
    title: str
    text: str  # admitted: see `framing.Gate`
    trust: Trust
    evidence_id: str = ""  # the fact it shows
    live: bool = False  # read from the node for this investigation
    explains: bool = False  # from the catalog of codes: what it says of a code needs no other proof
    conclusion: bool = False  # what this system concluded itself: repeated back it informs, and proves nothing
    asked: tuple[str, ...] = ()  # the words of the call it answers: repeated back they prove nothing


class Shown:
    """Items by id, in the order in which they were shown."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._items: dict[str, Item] = {}
        for item in items:
            self.add(item)

    def add(self, item: Item) -> None:
        """An id is given once."""
        assert item.id not in self._items
        self._items[item.id] = item

    def get(self, item_id: str) -> Item | None:
        """The item of that id."""
        return self._items.get(item_id)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items.values())

    def words(self, *trusts: Trust) -> str:
        """Everything that was shown of these classes."""
        return "\n".join(item.text for item in self if item.trust in trusts)
