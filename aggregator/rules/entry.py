"""One entry of the catalog: its fields, and what a TOML value must be to become one. Errors say what was expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from aggregator.model import Action, FaultClass, Resolution, Severity


@dataclass(frozen=True, slots=True)
class Entry:
    """What one code or kind means when it is read alone. How signals combine is the engine's business."""

    kind: str  # xid, sxid, or another signal kind
    code: int | None
    name: str  # mnemonic or short name
    meaning: str  # one sentence
    severity: Severity
    fault_class: FaultClass
    action: Action  # node level
    resolutions: tuple[Resolution, ...]  # the immediate advice, best first
    weight: int  # 0..100: how strongly it is the cause within a burst; the highest wins
    confidence: float  # prior that this reading alone is right
    sources: tuple[str, ...]
    do_not: tuple[Resolution, ...] = ()  # advice that would harm here
    recurrence: tuple[Resolution, ...] = ()  # what to do if it comes back after the immediate advice
    recurrence_advice: str = ""  # the same as one sentence
    yields: bool = False  # the trace of another fault: no cause while any other is in the burst
    applies_to: str = ""  # GPU generations, space separated; "" is all
    min_driver: str = ""  # first driver branch that reports it, as "R565"; "" is any
    xid154_since: str = ""  # from this branch on, XID 154 follows with the driver's own decision; "" is not known
    note: str = ""  # what depends on generation, driver or text; where sources disagree
    site: tuple[str, ...] = ()  # fields that the site's overlay wrote


_E = TypeVar("_E", bound=StrEnum)


def text(value: object) -> str:
    """Words; never empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be text, not {value!r}")
    return value


def _text_or_empty(value: object) -> str:
    return "" if value == "" else text(value)


def texts(value: object) -> tuple[str, ...]:
    """A list of words."""
    if isinstance(value, list):
        return tuple(text(item) for item in value)
    raise ValueError(f"must be a list, not {value!r}")


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"must be true or false, not {value!r}")


def _weight(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 100:
        raise ValueError(f"must be a whole number from 0 to 100, not {value!r}")
    return value


def _confidence(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise ValueError(f"must be between 0 and 1, not {value!r}")
    return float(value)


def _one_of(choices: type[_E]) -> Callable[[object], _E]:
    def read(value: object) -> _E:
        try:
            return choices(text(value))
        except ValueError:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}") from None

    return read


def _advice(value: object) -> tuple[Resolution, ...]:
    return tuple(_one_of(Resolution)(item) for item in texts(value))


def _some_advice(value: object) -> tuple[Resolution, ...]:
    advice = _advice(value)
    if not advice:
        raise ValueError("must hold at least one resolution")
    return advice


READERS: Mapping[str, Callable[[object], object]] = {
    "name": text,
    "meaning": text,
    "severity": _one_of(Severity),
    "fault_class": _one_of(FaultClass),
    "action": _one_of(Action),
    "resolutions": _some_advice,
    "do_not": _advice,
    "recurrence": _advice,
    "recurrence_advice": _text_or_empty,
    "yields": _flag,
    "weight": _weight,
    "confidence": _confidence,
    "applies_to": _text_or_empty,
    "min_driver": _text_or_empty,
    "xid154_since": _text_or_empty,
    "note": _text_or_empty,
    "sources": texts,
}
