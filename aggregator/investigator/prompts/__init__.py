"""What the model is told: reviewed files, the same bytes in every request. Time, node and incident belong to the user's turn.

`system.txt` is how to work, and a site may replace it; `contract.txt` is what the code holds the model to, and always follows.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from string import Template

MAX_PROMPT = 64 * 1024  # bytes


class PromptError(ValueError):
    """A prompt file that cannot be used; says why."""


def system_text(path: Path | None = None) -> str:
    """The system text; `path` replaces its first part. Raises PromptError."""
    return "\n".join((_text("system") if path is None else _own(path), _text("contract")))


def opening() -> str:
    """Ends the first message."""
    return _text("opening")


def final(reason: str) -> str:
    """Asks for the answer now."""
    return Template(_text("final")).substitute(reason=reason)


def repair(reason: str) -> str:
    """Says why an answer cannot be used."""
    return Template(_text("repair")).substitute(reason=reason)


def nudge(reason: str) -> str:
    """Says that it goes round in circles."""
    return Template(_text("nudge")).substitute(reason=reason)


@cache
def _text(name: str) -> str:
    return (resources.files(__name__) / f"{name}.txt").read_text(encoding="utf-8")


def _own(path: Path) -> str:
    try:
        data = path.read_bytes()
        text = data.decode()
    except OSError as error:
        raise PromptError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: not UTF-8") from error
    if not text.strip() or len(data) > MAX_PROMPT:
        raise PromptError(f"{path}: expected from 1 to {MAX_PROMPT} bytes of text, it has {len(data)}")
    return text.rstrip() + "\n"
