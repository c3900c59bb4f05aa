"""Scripted models that play the worlds: one that reads the deciding answer, and some that do not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aggregator.eval.stage import Staged, stage
from aggregator.eval.world import Pair, Twin
from aggregator.model import Verdict
from tests.doubles.llm import Asked, Script, Step, answer, call, say

Plays = Callable[[Staged, Asked], Step]

FRAME = re.compile(r"<<<(\w+) [0-9a-f]{8} \| \w+ \| ([^\n]*)>>>\n(.*?)\n<<<end \1 ", re.DOTALL)


def playing(pairs: Sequence[Pair], plays: Plays) -> Script:
    """A model that knows which pair it is in from the node's name, and nothing of the variant."""
    staged = {pair.node: stage(pair) for pair in pairs}

    def script(asked: Asked) -> Step:
        node = next(name for name in staged if f"| {name} " in asked.user_texts[0])
        return plays(staged[node], asked)

    return script


def frames(asked: Asked) -> Mapping[str, str]:
    """Every item that was shown, by id."""
    shown = (*asked.user_texts[:1], *(text for _, text in asked.results))
    return {found[1]: found[3] for text in shown for found in FRAME.finditer(text)}


def deciding(staged: Staged, asked: Asked) -> Mapping[str, str]:
    """Those that hold the deciding answer: what it asked for, or what was fetched for it."""
    shown = (*asked.user_texts[:1], *(text for _, text in asked.results))
    question = staged.pair.question
    titles = (question.title, f"{question.tool} {json.dumps(dict(question.ask), sort_keys=True, ensure_ascii=False)}")
    return {found[1]: found[3] for text in shown for found in FRAME.finditer(text) if found[2] in titles}


def oracle(staged: Staged, asked: Asked) -> Step:
    """Asks the deciding question where it can, reads the answer, and says which twin it is; else keeps to the rules."""
    question = staged.pair.question
    if question.tool in asked.tools and not asked.results:
        return call(question.tool, **question.ask)
    for twin in (staged.pair.a, staged.pair.b):
        for item, text in deciding(staged, asked).items():
            passage = next((passage for passage in twin.says if passage in text), "")
            if passage:
                return verdict_of(staged, twin, item, passage)
    return rules_again(staged)


def guesser(name: str) -> Plays:
    """Always the same twin, proved from the trigger."""

    def plays(staged: Staged, asked: Asked) -> Step:
        twin = staged.pair.a if name == "a" else staged.pair.b
        return verdict_of(staged, twin, "e1", fact(asked))

    return plays


def liar(name: str) -> Plays:
    """Asks as it should, and then always claims to have read the same twin's answer."""

    def plays(staged: Staged, asked: Asked) -> Step:
        question, twin = staged.pair.question, staged.pair.a if name == "a" else staged.pair.b
        if question.tool in asked.tools and not asked.results:
            return call(question.tool, **question.ask)
        return verdict_of(staged, twin, "t1", twin.says[0])

    return plays


def rambler(staged: Staged, asked: Asked) -> Step:
    """Talks, and never answers in the form that is asked."""
    return say("It may be the board, or the rack, or the driver; who can tell?")


def keeps_to_the_rules(staged: Staged, asked: Asked) -> Step:
    """The prior, whatever tools would say."""
    return rules_again(staged)


def fact(asked: Asked) -> str:
    """Words of the first fact."""
    return frames(asked)["e1"].rpartition(" | ")[2][:80]


def rules_again(staged: Staged) -> Step:
    signal = staged.incident.signals[0]
    claims = [{"role": "root_cause", "text": "As the rules say.", "support": [{"id": "e1", "quote": signal.raw[:60]}]}]
    return answer(fields(staged.verdict, claims, open_questions=["What could not be asked?"]))


def verdict_of(staged: Staged, twin: Twin, item: str, quote: str) -> Step:
    action = staged.verdict.action if staged.verdict.action in twin.action else twin.action[0]
    claims = [{"role": "root_cause", "text": twin.cause, "support": [{"id": item, "quote": quote}]}]
    chosen = {"fault_class": twin.fault_class[0].value, "action": action.value, "resolutions": [twin.first[0].value]}
    return answer(fields(staged.verdict, claims, **chosen))


def fields(rules: Verdict, claims: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "severity": rules.severity.value,
        "fault_class": rules.fault_class.value,
        "action": rules.action.value,
        "resolutions": [step.value for step in rules.resolutions],
        "confidence": 0.9,
        "claims": claims,
        "open_questions": [],
    }
    return {**given, **changes}
