"""A tool's answer: the same text for the same value, whatever its size; shown in part, read in pages."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.investigator.framing import Gate
from aggregator.investigator.items import Item
from aggregator.investigator.rendering import MAX_KEPT
from aggregator.investigator.results import BUILT_IN_OUTPUT, MAX_LINE, MAX_TOGETHER, BadQuestion, Results, admitted
from aggregator.model import Trust

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('abc \n"\\', max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text("abcxyz", max_size=9), inner, max_size=5),
    max_leaves=30,
)


def text_of(value: Any) -> str:
    return admitted(Gate(), value)[0]


@given(st.lists(JSON, max_size=4) | st.dictionaries(st.text("abcxyz", max_size=9), JSON, max_size=6))
def test_json_stays_json_and_the_order_of_keys_does_not_matter(value: Any) -> None:
    """Canonical: equal values give equal texts, and the text parses to the value."""

    def turned(inner: Any) -> Any:
        if isinstance(inner, dict):
            return {key: turned(inner[key]) for key in reversed(inner)}
        return [turned(item) for item in inner] if isinstance(inner, list) else inner

    assert text_of(value) == text_of(turned(value))
    assert json.loads(text_of(value)) == value


def test_long_lists_stand_one_element_a_line() -> None:
    """So that a filter finds an element."""
    text = text_of({"pods": [{"name": f"pod-{number}", "phase": "Running"} for number in range(9)]})
    assert '  {"name": "pod-3", "phase": "Running"},' in text.split("\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, '"nan"'),
        ([math.inf, -math.inf], '["inf", "-inf"]'),
        (b"\x00\x01" * 500, "1000 bytes of binary data, not shown"),
        ({"x": b"\x00"}, '{"x": "1 bytes of binary data, not shown"}'),
        (10**5000, '"a number of 16610 bits"'),
        ({1: {2, 1}}, '{"1": [1, 2]}'),
        (Decimal("1.5"), '"1.5"'),
        ("", ""),
        (None, "null"),
    ],
    ids=["nan", "inf", "bytes", "bytes within", "long number", "set", "decimal", "empty", "none"],
)
def test_what_json_cannot_say_is_said_in_words(value: Any, text: str) -> None:
    """Never NaN, never bytes."""
    assert text_of(value) == text


def test_nesting_without_end_ends() -> None:
    """Also of a value that holds itself."""
    loop: list[Any] = []
    loop.append(loop)
    assert "nested deeper" in text_of(loop)


class Endless(Mapping[str, str]):
    """A gigabyte and more that is never all there."""

    def __getitem__(self, key: str) -> str:
        return "x" * 1000

    def __iter__(self) -> Iterator[str]:
        return (f"key-{number:09}" for number in range(10**9))

    def __len__(self) -> int:
        return 10**9


@pytest.mark.parametrize(
    "value", [Endless(), {"rows": ["y" * 1000] * 10**6}, "z" * 10**9], ids=["mapping", "list", "str"]
)
def test_a_gigabyte_is_kept_in_part_and_counted(value: Any) -> None:
    """Only what is kept is worked on."""
    text, total = admitted(Gate(), value)
    assert 1_000_000 < len(text) <= MAX_KEPT
    assert total >= len(text)


def test_a_secret_that_the_cut_halves_does_not_stay() -> None:
    """Neither of a text nor of a string within."""
    secret = "sk-ant-api03-" + "abcdefghijklmnop" * 8
    for start in (20, 90):
        long = "x " * ((MAX_KEPT + 65536 - start) // 2) + secret
        assert "sk-ant" not in text_of(long)
        assert "sk-ant" not in text_of({"log": long})


# --- in part, and in pages


def results_of(text: str, bound: int = 1_000) -> tuple[Results, Item]:
    results = Results(bound)
    return results, results.keep(Item("t1", "log", text, Trust.TENANT), len(text))


LOG = "\n".join(f"line {number:04} of the log" for number in range(1, 501))


def test_what_fits_is_shown_whole() -> None:
    """Without a word of ours in it."""
    assert results_of("a\nb")[1].text == "a\nb"


def test_what_does_not_fit_shows_its_head_and_tail_and_says_how_to_read_on() -> None:
    """Between whole lines."""
    shown = results_of(LOG)[1].text
    lines = shown.split("\n")
    note = next(line for line in lines if line.startswith("["))
    assert (lines[0], lines[-1]) == ("line 0001 of the log", "line 0500 of the log")
    assert "read_result with id t1" in note
    assert all(line in LOG.split("\n") for line in lines if line != note)
    assert len(shown) < 1_300


def test_pages_together_give_the_whole() -> None:
    """Following what each page says."""
    results, _ = results_of(LOG)
    lines: list[str] = []
    span = ""
    while True:
        head, *page = results.page("t1", "", span)[1].split("\n")
        lines += page
        if "go on with range" not in head:
            break
        span = head.partition("range ")[2].partition(";")[0]
    assert "\n".join(lines) == LOG


def test_a_filter_takes_the_lines_that_match() -> None:
    """Within the range."""
    results, _ = results_of(LOG)
    assert (
        results.page("t1", r"00\d5 ", "1-20")[1]
        == "[2 lines; the result has 500 lines]\nline 0005 of the log\nline 0015 of the log"
    )
    assert results.page("t1", "no such thing", "")[1] == "[0 lines; the result has 500 lines]"


@pytest.mark.parametrize(
    ("item", "pattern", "span", "says"),
    [
        ("t9", "", "", "results: t1"),
        ("t1", "(", "", "regular expression"),
        ("t1", "x" * 501, "", "at most 500"),
        ("t1", r"(a)\1", "", "regular expression"),
        ("t1", "\ud800", "", "regular expression"),
        ("t1", "", "5", "FIRST-LAST"),
        ("t1", "", "9-5", "FIRST-LAST"),
        ("t1", "", "0-5", "FIRST-LAST"),
        ("t1", "", "1-99999999999999999999", "FIRST-LAST"),
        ("t1", "", "501-502", "has 500 lines"),
    ],
)
def test_a_question_that_makes_no_sense_is_told_what_would(item: str, pattern: str, span: str, says: str) -> None:
    """In words that the model can act on."""
    with pytest.raises(BadQuestion, match=says):
        results_of(LOG)[0].page(item, pattern, span)


def test_a_hostile_expression_takes_linear_time() -> None:
    """What makes a backtracking engine take years."""
    results, _ = results_of("a" * 200_000)
    results.page("t1", "(a+)+$|(a|aa)+b", "")


def test_a_line_without_end_goes_on_as_others() -> None:
    """So that it can be paged."""
    results, _ = results_of("x" * 10 * MAX_LINE)
    assert results.get("t1").lines == ("x" * MAX_LINE,) * 10


def test_all_answers_together_are_bounded() -> None:
    """Later ones are kept in part."""
    results = Results(100)
    for number in range(6):
        results.keep(Item(f"t{number}", "log", "x" * MAX_KEPT, Trust.TENANT), MAX_KEPT)
    assert sum(len("".join(results.get(f"t{number}").lines)) for number in range(6)) <= MAX_TOGETHER


def test_no_bound_is_the_built_in_one() -> None:
    """MAX_TOOL_OUTPUT=0."""
    assert Results(0).bound == BUILT_IN_OUTPUT
