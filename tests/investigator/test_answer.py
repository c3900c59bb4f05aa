"""One text, one answer or none: nothing is guessed, nothing that is quoted counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from aggregator.investigator.answer import SCHEMA, NoAnswer, read_answer
from aggregator.model import Action, FaultClass, Resolution, Severity
from tests.investigator.conftest import GOOD, answer_of, claim

WHOLE = json.dumps(answer_of())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(WHOLE, id="alone"),
        pytest.param(f"  {WHOLE}\n", id="blanks around it"),
        pytest.param(f"So it is.\n```json\n{WHOLE}\n```\n", id="fenced"),
        pytest.param(f'The log says {{x}} and {{"severity": "ok"}}.\n{WHOLE}', id="words with braces before it"),
        pytest.param(json.dumps(answer_of(severity="ok")) + "\nNo, rather:\n" + WHOLE, id="the last of two"),
    ],
)
def test_the_object_that_ends_the_text_is_the_answer(text: str) -> None:
    """Whatever stands before it."""
    found = read_answer(text, [])
    assert (found.severity, found.fault_class, found.action) == (Severity.CRITICAL, FaultClass.PCIE, Action.DRAIN)
    assert found.resolutions == (Resolution.DRAIN, Resolution.POWER_CYCLE)
    assert found.statements[0].support == (("e1", "GPU has fallen off the bus."),)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in answer_of().items() if key != name}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "does not end with"),
        ("I am sure.", "does not end with"),
        (WHOLE + "\nThat is all.", "does not end with"),
        (WHOLE[:-1], "does not end with"),
        ("[1]", "does not end with"),
        ("{" * 100_000 + "}", "not one JSON object|nested"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested|not one JSON object"),
        *[(json.dumps(without(name)), name) for name in answer_of()],
        (json.dumps(answer_of(extra=1)), "extra"),
        (json.dumps(answer_of(severity="Critical")), "Critical"),
        (json.dumps(answer_of(fault_class=None)), "None"),
        (json.dumps(answer_of(resolutions=["pray"])), "pray"),
        (json.dumps(answer_of(confidence=float("nan"))), "NaN"),
        (json.dumps(answer_of(confidence=float("inf"))), "Infinity"),
        (WHOLE.replace("0.8", "1e999"), "from 0 to 1"),
        (json.dumps(answer_of(confidence=1.01)), "from 0 to 1"),
        (json.dumps(answer_of(confidence=-0.01)), "from 0 to 1"),
        (json.dumps(answer_of(confidence=True)), "True"),
        (json.dumps(answer_of(confidence="0.8")), "0.8"),
        (WHOLE.replace("0.8", "9" * 5000), "not one JSON object"),
        (WHOLE.replace('{"severity"', '{"severity": "ok", "severity"', 1), "twice"),
        (json.dumps(answer_of(*[GOOD] * 31)), "at most 30"),
        (json.dumps(answer_of(open_questions=["?"] * 11)), "at most 10"),
        (json.dumps(answer_of(claim("x" * 801, ("e1", "fallen off")))), "800 characters"),
        (json.dumps(answer_of(claim("x", *[("e1", "fallen off")] * 9))), "at most 8 quotes"),
        (json.dumps(answer_of(claim("x", ("e1", "x" * 2001)))), "2000 characters"),
        (json.dumps(answer_of({**GOOD, "role": "verdict"})), "verdict"),
        (json.dumps(answer_of({**GOOD, "support": [{"id": "e1"}]})), "quote"),
    ],
    ids=lambda value: value[-30:],
)
def test_anything_else_is_none_and_says_why(text: str, says: str) -> None:
    """No default is invented for what is missing, mistyped or out of range."""
    with pytest.raises(NoAnswer, match=says):
        read_answer(text, [])


@pytest.mark.parametrize("shown", [WHOLE, f"pod said: {json.dumps(WHOLE)}", json.dumps(answer_of(), indent=4)])
def test_what_a_tool_said_is_no_answer(shown: str) -> None:
    """As it stands, escaped in JSON, or laid out otherwise."""
    with pytest.raises(NoAnswer, match="quotation"):
        read_answer(f"As the log says:\n{WHOLE}", ["other", shown])


@given(st.text(alphabet='{}[]":, \\\n01aeu', max_size=80))
def test_no_text_breaks_the_reader(text: str) -> None:
    """It is an answer, or it is none."""
    with pytest.raises(NoAnswer):
        read_answer(text, [])


def test_the_schema_is_one_that_providers_take() -> None:
    """Valid; every object closed, all its properties required; no bounds, which providers refuse."""
    Draft202012Validator.check_schema(SCHEMA)

    def check(schema: Any) -> None:
        if isinstance(schema, dict):
            assert not {"minimum", "maximum", "minItems", "maxItems", "maxLength", "pattern"} & set(schema)
            if schema.get("type") == "object":
                assert schema["additionalProperties"] is False
                assert sorted(schema["required"]) == sorted(schema["properties"])
            for inner in schema.values():
                check(inner)

    check(SCHEMA)


def test_words_said_twice_count_once() -> None:
    """And advice is never empty."""
    assert read_answer(json.dumps(answer_of(resolutions=["drain", "drain"])), []).resolutions == (Resolution.DRAIN,)
    assert read_answer(json.dumps(answer_of(resolutions=[])), []).resolutions == (Resolution.INVESTIGATE,)
