"""What the model is told: reviewed files, the same bytes each time; a site may replace how it works, not what it is held to."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator.investigator import prompts
from aggregator.investigator.answer import SCHEMA
from aggregator.model import Action, ClaimRole, FaultClass, Resolution, Severity


def test_the_system_text_holds_nothing_that_changes() -> None:
    """No time, node or incident: it is cached across investigations."""
    text = prompts.system_text()
    assert text == prompts.system_text()
    assert "20" not in text.replace("2000", "")
    assert "$" not in text


def test_a_site_may_replace_how_it_works_and_not_what_it_is_held_to(tmp_path: Path) -> None:
    """The rules of frames, quotes and claims always follow."""
    own = tmp_path / "own.txt"
    own.write_text("Work as our runbook says.\n")
    text = prompts.system_text(own)
    assert text.startswith("Work as our runbook says.\n")
    assert "reliability engineer" not in text
    assert "character by character" in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "expected from 1"),
        (b" \n", "expected from 1"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x" * 70_000, "it has 70000"),
        (None, "No such file"),
    ],
    ids=["empty", "blank", "binary", "long", "missing"],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, says: str) -> None:
    """In one line."""
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(prompts.PromptError, match=says) as raised:
        prompts.system_text(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("text", [prompts.final, prompts.repair, prompts.nudge])
def test_what_is_said_on_the_way_holds_its_reason(text: object) -> None:
    """Also one with characters that templates know."""
    assert callable(text)
    assert "costs $5 ${reason}" in text("costs $5 ${reason}")


@pytest.mark.parametrize("words", [Severity, FaultClass, Action, Resolution, ClaimRole])
def test_the_answers_form_knows_every_word(words: type[Severity]) -> None:
    """A word that the model of the domain gains, the schema gains."""
    told = repr(SCHEMA)
    assert all(repr(word.value) in told for word in words)
