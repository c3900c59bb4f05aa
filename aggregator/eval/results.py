"""What was measured so far: a line a run, appended as it ends, so that an evaluation that was cut off goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from aggregator.eval.judge import Score

FILE = "results.jsonl"

Key = tuple[str, str, str, str, int]  # setup, mode, digest of the world, variant, repetition


class Results:
    """The runs of one setup in a folder; those of others stay there and are not looked at. Raises OSError."""

    def __init__(self, directory: Path, setup: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path, self._setup = directory / FILE, setup
        self._scores: dict[Key, Score] = {}
        for line in self._lines():
            self._scores[_key_of(line)] = _score(line["score"])
        _end_the_last_line(self.path)

    def has(self, mode: str, digest: str, variant: str, repetition: int) -> bool:
        """Whether that run ended before."""
        return (self._setup, mode, digest, variant, repetition) in self._scores

    def add(self, score: Score, digest: str) -> None:
        """Keep a run that ended; it is on the disk when this returns."""
        line = {"setup": self._setup, "digest": digest, "score": asdict(score)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._scores[_key_of(line)] = score

    def scores(self, digests: Iterable[str], repetitions: int) -> list[Score]:
        """Of these worlds, so often."""
        wanted = frozenset(digests)
        return [score for key, score in self._scores.items() if key[2] in wanted and key[4] < repetitions]

    def _lines(self) -> Iterable[dict[str, Any]]:
        """Those of this setup; one that a crash cut off is no result."""
        if not self.path.exists():
            return
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                if line["setup"] == self._setup and set(line["score"]) == _FIELDS:
                    yield line
            except (ValueError, KeyError, TypeError):
                continue


_FIELDS = {field.name for field in fields(Score)}
_LISTS = ("forbidden", "verdict")


def _key_of(line: dict[str, Any]) -> Key:
    score = line["score"]
    return (line["setup"], score["mode"], line["digest"], score["variant"], score["repetition"])


def _score(values: dict[str, Any]) -> Score:
    lists: dict[str, Any] = {name: tuple(values[name]) for name in _LISTS}
    return Score(**{**values, **lists})


def _end_the_last_line(path: Path) -> None:
    if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
