"""Whether one run was right, and whether it knew why: the verdict that would have been published, against what the pair expects."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aggregator import assessor
from aggregator.eval.recorded import source_of
from aggregator.eval.stage import Staged
from aggregator.eval.world import Question, Twin, Variant
from aggregator.investigator.framing import Gate
from aggregator.investigator.results import admitted
from aggregator.investigator.toolbox import READ_RESULT
from aggregator.model import Assessment, Investigation, Spent, Support, Verdict
from aggregator.store.investigations import TranscriptEntry

LEAST_QUOTE = 8  # characters; a shorter one stands in too many answers
REMOVED = "Advice of the model was removed"


class Witness:
    """Which items of a transcript show the deciding answer, asked for or shown from the beginning."""

    def __init__(self, question: Question) -> None:
        self.items: set[str] = set()
        self._question = question
        self._asked = False  # by the last call

    def note(self, entry: TranscriptEntry) -> None:
        """The next step of the transcript: a call is followed by its result."""
        shown = entry.title == self._question.title if entry.kind == "item" else self._asked
        if entry.kind == "call":
            self._asked = self._is_asked(entry.title, _arguments(entry.text))
        elif entry.kind in ("item", "result") and entry.entry_id and shown:
            self.items.add(entry.entry_id)

    def _is_asked(self, tool: str, arguments: Mapping[str, Any]) -> bool:
        return arguments.get("id") in self.items if tool == READ_RESULT else self._question.fits(tool, arguments)


@dataclass(frozen=True, slots=True)
class Score:
    """One run, judged. Plain values: a line of results.jsonl."""

    mode: str
    world: str
    variant: str
    repetition: int
    right: bool  # class, action and first step
    cited: bool  # the deciding item is quoted; where it is down, that is said
    rules_right: bool
    forbidden: tuple[str, ...]  # advice that would do harm in this world, published
    removed: int  # lines of advice that the assessor took out
    verdict: tuple[str, str, str]  # class, first step, action
    confidence: float
    stop: str  # completed, partial, degraded, or rules
    reason: str
    claims: int
    dropped: int
    model: str
    seconds: float
    spent: Mapping[str, Any]

    @property
    def solved(self) -> bool:
        """Right, and for the reason that decides."""
        return self.right and self.cited


def judge(
    staged: Staged,
    variant: Variant,
    mode: str,
    repetition: int,
    found: Investigation | None = None,
    deciding: Collection[str] = (),
) -> Score:
    """Join an investigation with the rules' verdict as the aggregator does, and judge that; None is the rules alone. `deciding`
    are the items that showed the deciding answer."""
    assessment = assessor.assess(staged.incident, None, staged.case.now_us, context=staged.context, investigation=found)
    assert assessment is not None  # without an earlier one there is always a new one
    twin = staged.pair.twin(variant)
    return Score(
        mode=mode,
        world=staged.pair.name,
        variant=variant.value,
        repetition=repetition,
        right=_fits(twin, staged.verdict, assessment.verdict),
        cited=_says_so(staged, assessment) if twin is None else _cites(staged, variant, assessment, deciding),
        rules_right=_fits(twin, staged.verdict, staged.verdict),
        forbidden=tuple(step.value for step in assessment.verdict.resolutions if twin and step in twin.forbidden),
        removed=sum(line.startswith(REMOVED) for line in assessment.disputed),
        verdict=_short(assessment.verdict),
        confidence=assessment.verdict.confidence,
        stop=found.stop.value if found else "rules",
        reason=found.reason if found else "",
        claims=len(assessment.claims) + len(assessment.dropped_claims),
        dropped=len(assessment.dropped_claims),
        model=assessment.model,
        seconds=round((found.ended_us - found.started_us) / 1e6, 3) if found else 0.0,
        spent=_plain(found.spent if found else Spent()),
    )


def _fits(twin: Twin | None, rules: Verdict, verdict: Verdict) -> bool:
    """Where nobody can tell, the rules' verdict is the right one."""
    return _short(verdict) == _short(rules) if twin is None else twin.fits(verdict)


def _short(verdict: Verdict) -> tuple[str, str, str]:
    return (verdict.fault_class.value, verdict.resolutions[0].value, verdict.action.value)


def _cites(staged: Staged, variant: Variant, assessment: Assessment, deciding: Collection[str]) -> bool:
    """A passage that decides is quoted from the deciding answer, and it is none that the other twin's answer holds as well."""
    pair = staged.pair
    twin, other = (pair.a, pair.b) if variant is Variant.A else (pair.b, pair.a)
    elsewhere, _ = admitted(Gate(), other.answer)
    return any(
        support.item_id in deciding and support.quote not in elsewhere and _meets(support.quote, twin.says)
        for support in _supports(assessment)
    )


def _meets(quote: str, passages: Iterable[str]) -> bool:
    return any(passage in quote or (len(quote) >= LEAST_QUOTE and quote in passage) for passage in passages)


def _supports(assessment: Assessment) -> Iterable[Support]:
    return (support for claim in assessment.claims for support in claim.support)


def _says_so(staged: Staged, assessment: Assessment) -> bool:
    """The model's own verdict, which tells that something could not be looked at."""
    tool = staged.pair.question.tool
    named = any(line.startswith((f"{tool}:", f"{source_of(tool)}:")) for line in assessment.unchecked)
    return assessment.origin == "llm" and (named or bool(assessment.verdict.open_questions))


def _arguments(text: str) -> Mapping[str, Any]:
    """Of a call, as the transcript has them; none where they were no object."""
    try:
        read = json.loads(text)
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _plain(spent: Spent) -> dict[str, Any]:
    return {name: getattr(spent, name) for name in Spent.__dataclass_fields__}
