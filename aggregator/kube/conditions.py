"""From what stands on nodes to evidence: a state is declared when it begins, again when it changes, and once when it is over.

The begin of a state is believed at once, its end only once it has lasted: when the node problem detector restarts, every check is
good until it has run again. What is declared has an identity that follows from the Node's uid, the condition and when it began, so
that a restart repeats nothing: what was stored before is the same fact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b

from aggregator.kube.findings import Finding, clear_seconds, findings
from aggregator.kube.nodes import Node
from aggregator.model import EvidenceKey, Phase
from aggregator.rules.node_conditions import hinted_codes

SOURCE = "kubernetes"
ENDED_SEQ = 1
NEVER_US = 1 << 62
SHOWN_MESSAGE = 200  # characters of a message in the line for people


@dataclass(frozen=True, slots=True)
class Episode:
    """A state of a node that was declared begun and has not ended."""

    uid: str
    name: str
    since_us: int
    said: int = 0  # what was declared last; 0: by an earlier run, so that nobody here knows
    declared_us: int = 0
    clear_us: int | None = None  # when its end will be believed, while it looks over

    @property
    def epoch(self) -> str:
        """Of its evidence, and as it is kept."""
        return f"{self.uid}:{self.name}:{self.since_us}"

    @classmethod
    def parse(cls, epoch: str) -> Episode:
        """An episode of an earlier run. Raises ValueError."""
        uid, _, rest = epoch.partition(":")
        name, _, since_us = rest.rpartition(":")
        return cls(uid, name, int(since_us))


@dataclass(frozen=True, slots=True)
class Declaration:
    """One fact to be stored."""

    key: EvidenceKey
    state: str  # the finding's key
    kind: str
    phase: Phase
    occurred_us: int
    detail: str
    finding: Finding


class Conditions:
    """What stands on each node, as far as it was declared."""

    def __init__(self, watched: Callable[[str], bool], cooldown_seconds: float, *, settle: float = 1.0) -> None:
        self._watched = watched
        self._cooldown_us = round(cooldown_seconds * 1e6)
        self._settle_us = settle * 1e6  # scales how long a good status must last
        self._episodes: dict[str, dict[str, Episode]] = {}  # node → state → episode

    @property
    def nodes(self) -> set[str]:
        """Nodes on which something stands."""
        return set(self._episodes)

    def restore(self, node: str, state: str, epoch: str) -> None:
        """Take up what an earlier run declared. Raises ValueError."""
        self._episodes.setdefault(node, {})[state] = Episode.parse(epoch)

    def look(self, name: str, node: Node | None, now_us: int) -> list[Declaration]:
        """What is to be declared about a node as it is now; None: it is no longer there. The caller stores it."""
        found = {one.key: one for one in findings(node, self._watched)} if node else {}
        standing = self._episodes.get(name, {})
        declared = [
            *self._ends(name, node, standing, found, now_us),
            *self._begins(name, node, standing, found, now_us),
        ]
        if standing:
            self._episodes[name] = standing
        else:
            self._episodes.pop(name, None)
        return declared

    def due(self, now_us: int) -> set[str]:
        """Nodes that time alone has changed."""
        return {name for name in self._episodes if self._next(name) <= now_us}

    def next_us(self) -> int | None:
        """When time alone changes something."""
        return min((self._next(name) for name in self._episodes), default=None)

    def _next(self, name: str) -> int:
        return min(self._deadline(episode) for episode in self._episodes[name].values())

    def _deadline(self, episode: Episode) -> int:
        if episode.clear_us is not None:
            return episode.clear_us
        return episode.declared_us + self._cooldown_us if self._cooldown_us else NEVER_US

    def _begins(
        self, name: str, node: Node | None, standing: dict[str, Episode], found: dict[str, Finding], now_us: int
    ) -> Iterator[Declaration]:
        for state, finding in found.items():
            assert node is not None
            known = standing.get(state)
            episode = known or Episode(node.uid, finding.name, min(finding.since_us or now_us, now_us))
            rounds = (now_us - episode.since_us) // self._cooldown_us if self._cooldown_us else 0
            due = now_us - episode.declared_us >= self._cooldown_us > 0
            said = _said(finding, rounds if known is None or due else 0)
            if known is not None and not due and known.said == said:
                standing[state] = replace(known, clear_us=None)
                continue
            yield _declaration(
                name, state, finding, episode, Phase.BEGAN, episode.since_us if known is None else now_us, said
            )
            standing[state] = replace(episode, said=_said(finding, 0), declared_us=now_us, clear_us=None)

    def _ends(
        self, name: str, node: Node | None, standing: dict[str, Episode], found: dict[str, Finding], now_us: int
    ) -> Iterator[Declaration]:
        for state, episode in list(standing.items()):
            gone = node is None or node.uid != episode.uid
            if state in found and not gone:
                continue
            clear_us = now_us if gone else self._clear_us(state, episode, node, now_us)
            if clear_us > now_us:
                standing[state] = replace(episode, clear_us=clear_us)
                continue
            del standing[state]
            finding = _last(state, episode, node if not gone else None)
            yield _declaration(name, state, finding, episode, Phase.ENDED, now_us, ENDED_SEQ)

    def _clear_us(self, state: str, episode: Episode, node: Node | None, now_us: int) -> int:
        """When the end is believed: the good status has lasted, by its own time where that lies in the past."""
        if episode.clear_us is not None:
            return episode.clear_us
        condition = node.conditions.get(episode.name) if node else None
        since_us = min(condition.transition_us or now_us, now_us) if condition else now_us
        return since_us + round(clear_seconds(state) * self._settle_us)


def _said(finding: Finding, rounds: int) -> int:
    """A number for what a declaration says: the same words, the same number. Of a message its codes alone count."""
    codes = hinted_codes(finding.message, finding.reason)
    words = "\0".join((finding.status, finding.reason, repr(codes), str(rounds)))
    return (
        (int.from_bytes(blake2b(words.encode("utf-8", "backslashreplace"), digest_size=6).digest()) << 8)
        + ENDED_SEQ
        + 1
    )


def _declaration(
    node: str, state: str, finding: Finding, episode: Episode, phase: Phase, occurred_us: int, seq: int
) -> Declaration:
    key = EvidenceKey(node, SOURCE, episode.epoch, seq)
    return Declaration(key, state, state.partition(":")[0], phase, occurred_us, _line(finding, phase), finding)


def _last(state: str, episode: Episode, node: Node | None) -> Finding:
    """How a state stands that is over; its status is empty where the node is gone, or no longer says anything of it."""
    condition = node.conditions.get(episode.name) if node else None
    kind = state.partition(":")[0]
    if condition is None:
        return Finding(kind, episode.name, "", reason="" if node else "NodeGone")
    return Finding(kind, episode.name, condition.status, condition.reason, condition.message, condition.transition_us)


def _line(finding: Finding, phase: Phase) -> str:
    """For people: one line, without what a terminal might obey."""
    because = f" ({finding.reason})" if finding.reason else ""
    if phase is Phase.ENDED:
        what = (
            "is no longer there, with its node"
            if finding.reason == "NodeGone"
            else f"is {finding.status or 'over'}{because}"
        )
        return _printable(f"{finding.name} {what}")
    said = f": {finding.message[:SHOWN_MESSAGE]}" if finding.message else ""
    return _printable(f"{finding.name} is {finding.status}{because}{said}")


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def by_node(declarations: Iterable[Declaration]) -> dict[str, list[Declaration]]:
    """Declarations of each node, in their order."""
    found: dict[str, list[Declaration]] = {}
    for declaration in declarations:
        found.setdefault(declaration.key.node, []).append(declaration)
    return found
