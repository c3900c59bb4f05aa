"""The form of a model's final answer, and the only way from its text to values.

The schema uses what every provider's structured output takes; ranges and lengths are checked here, whoever checked before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from aggregator.model import Action, ClaimRole, FaultClass, Resolution, Severity

MAX_CLAIMS = 30
MAX_SUPPORT = 8
MAX_CLAIM = 800  # characters
MAX_QUOTE = 2_000
MAX_QUESTIONS = 10
MAX_QUESTION = 300
MAX_TEXT = 400_000  # characters of a turn that an answer is looked for in
MAX_BRACES = 200  # places where an answer could begin, tried from the first

_E = TypeVar("_E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Statement:
    """A claim as the model made it, unchecked."""

    role: ClaimRole
    text: str
    support: tuple[tuple[str, str], ...]  # item id, quote


@dataclass(frozen=True, slots=True)
class Answer:
    """A final answer of the right form; whether it is true is not known yet."""

    severity: Severity
    fault_class: FaultClass
    action: Action
    resolutions: tuple[Resolution, ...]
    confidence: float
    statements: tuple[Statement, ...]
    open_questions: tuple[str, ...]


class NoAnswer(ValueError):
    """A text that is no answer; says why, to the model."""


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _one_of(choices: Iterable[StrEnum], description: str) -> dict[str, Any]:
    return {"type": "string", "enum": [choice.value for choice in choices], "description": description}


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _list(items: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {"type": "array", "items": dict(items), "description": description}


SCHEMA: Mapping[str, Any] = _object(
    severity=_one_of(
        Severity,
        "critical: GPU or node unusable, or data at risk, until reset, reboot or repair; warning: work lost"
        " or degraded; info: worth a record; ok: no fault",
    ),
    fault_class=_one_of(FaultClass, "where the fault lies"),
    action=_one_of(Action, "what to do with the node"),
    resolutions=_list(_one_of(Resolution, "a step"), "what to actually do, best first; at least one"),
    confidence={"type": "number", "description": "from 0 to 1: how likely the root cause is right"},
    claims=_list(
        _object(
            role=_one_of(
                ClaimRole,
                "root_cause: exactly one; finding: a step from cause to effect, or a cause ruled out; impact: what"
                " is lost; counter_evidence: speaks against the root cause",
            ),
            text=_text("one sentence"),
            support=_list(
                _object(
                    id=_text("id of an item, for example e1 or t3"),
                    quote=_text("words copied from that item exactly as shown"),
                ),
                "what proves it; at least one",
            ),
        ),
        "what you conclude, each with its proof",
    ),
    open_questions=_list(_text("one question"), "which facts elsewhere would settle what is open"),
)

_validator = Draft202012Validator(SCHEMA)
_FENCE = re.compile(r"\s*(?:```[a-z]*)?\s*\Z")


def read_answer(text: str, shown: Iterable[str]) -> Answer:
    """The answer a turn ends with; words may stand before it where the endpoint does not hold the model to the schema.

    What stands in anything that was shown is a quotation and no answer, however well-formed. Raises NoAnswer.
    """
    end = _FENCE.sub("", text[-MAX_TEXT:])
    problem = NoAnswer("it does not end with a JSON object")
    for start in _beginnings(end) if end.endswith("}") else ():
        try:
            value = _parsed(end[start:])
        except NoAnswer as error:
            problem = problem if start else error
            continue
        try:
            answer = _answer(value)
        except NoAnswer as error:
            problem = error
            break
        if _is_quoted(end[start:], shown):
            raise NoAnswer("the JSON object at its end is a quotation of what a tool said")
        return answer
    raise problem


def _beginnings(text: str) -> list[int]:
    return [match.start() for match in re.finditer(r"\{", text)][:MAX_BRACES]


def _is_quoted(candidate: str, shown: Iterable[str]) -> bool:
    squeezed = "".join(candidate.split())
    return any(squeezed in "".join(text.replace("\\n", "").replace("\\", "").split()) for text in shown)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise NoAnswer("it is nested too deeply") from None
    except ValueError as error:
        raise NoAnswer(f"it is not one JSON object: {error}"[:200]) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice in one object")
    return dict(pairs)


def _answer(value: Any) -> Answer:
    error = best_match(_validator.iter_errors(value))
    if error is not None:
        raise NoAnswer(f"{error.json_path}: {error.message}"[:300])
    if not 0 <= value["confidence"] <= 1:
        raise NoAnswer("$.confidence: must be from 0 to 1")
    for name, found, most in (
        ("claims", value["claims"], MAX_CLAIMS),
        ("open_questions", value["open_questions"], MAX_QUESTIONS),
    ):
        if len(found) > most:
            raise NoAnswer(f"$.{name}: at most {most}")
    return Answer(
        severity=Severity(value["severity"]),
        fault_class=FaultClass(value["fault_class"]),
        action=Action(value["action"]),
        resolutions=_distinct(Resolution, value["resolutions"]) or (Resolution.INVESTIGATE,),
        confidence=float(value["confidence"]),
        statements=tuple(_statement(number, claim) for number, claim in enumerate(value["claims"])),
        open_questions=tuple(question[:MAX_QUESTION] for question in value["open_questions"] if question.strip()),
    )


def _distinct(kind: type[_E], words: Iterable[str]) -> tuple[_E, ...]:
    return tuple(kind(word) for word in dict.fromkeys(words))


def _statement(number: int, claim: Mapping[str, Any]) -> Statement:
    support = tuple((item["id"], item["quote"]) for item in claim["support"])
    if len(support) > MAX_SUPPORT or len(claim["text"]) > MAX_CLAIM:
        raise NoAnswer(f"$.claims[{number}]: at most {MAX_SUPPORT} quotes and {MAX_CLAIM} characters of text")
    if any(len(quote) > MAX_QUOTE for _, quote in support):
        raise NoAnswer(f"$.claims[{number}]: a quote has at most {MAX_QUOTE} characters")
    return Statement(ClaimRole(claim["role"]), claim["text"], support)
