"""What a grammar is given and what it gives back: a message freed of its log's dress, and the readings found in it.

A grammar is a function from one `Line` to readings, with the lower-case words one of which every line it could read contains:
the cheap check that runs before any regular expression. Grammars keep no state; what needs several lines (a record cut in
pieces, a table) is put together by the reader first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

from aggregator import model
from aggregator.model import Phase, Scalar

CONTAINER = "container"  # the program of a line whose log says that a container wrote it, and nothing else

# A GPU address as any part of the stack prints it: 4 or 8 digit domain, function optional.
PCI = r"(?:[0-9A-Fa-f]{4,8}:)?[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}(?:\.[0-9A-Fa-f])?"
# An address that cannot be taken for a time of day: with its domain.
FULL_PCI = r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}(?:\.[0-9A-Fa-f])?"
UUID = r"GPU-[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"

_ANY_PCI = re.compile(FULL_PCI)
_ANY_UUID = re.compile(UUID)
_ERROR_WORDS = (
    *("fatal", "fail", "error", "panic", "lost", "timeout", "timed out", "uncorrect", "unable", "cannot", "invalid"),
    *("halt", "exception", "corrupt", "fallen off"),
)
_WARNING_WORDS = ("warn", "retry", "retri", "degraded", "exceed", "unexpected", "pending", "correct", "limit", "disabl")


class Origin(Enum):
    """Who wrote a line, as far as its log says."""

    KERNEL = "kernel"
    USERSPACE = "userspace"  # written into the kernel log by a process: proves nothing
    PROGRAM = "program"  # a program's own log
    UNKNOWN = "unknown"  # pasted without a prefix


@dataclass(slots=True)  # not frozen, which would cost as much as a grammar; nobody changes one
class Line:
    """One message without its log's prefix."""

    text: str
    origin: Origin = Origin.UNKNOWN
    at_us: int | None = None  # wall time
    uptime_us: int | None = None  # kernel time
    host: str = ""
    program: str = ""  # whose log, for Origin.PROGRAM
    facility: int = 0
    level: int | None = None
    repeated: int = 1
    indent: int = 0  # blanks before text: tables need them
    boot_id: str = ""

    @property
    def stamped(self) -> bool:
        """True when its log marked it as a line of its own: never a continuation of the one before."""
        return self.origin is not Origin.UNKNOWN or self.at_us is not None or self.uptime_us is not None


@dataclass(slots=True)  # not frozen, which would cost as much as a grammar; nobody changes one
class Reading:
    """A signal before it has an identity: what one line says."""

    kind: str
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    code: int | None = None
    pci: str | None = None
    gpu_uuid: str | None = None
    mig: str | None = None
    phase: Phase = Phase.POINT
    count: int = 1


KERNEL_LINES = (Origin.KERNEL, Origin.UNKNOWN)
PROGRAM_LINES = (Origin.PROGRAM, Origin.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Grammar:
    """One family of messages, and whose lines it may be asked about."""

    name: str
    words: tuple[str, ...]
    read: Callable[[Line], Iterable[Reading]]
    origins: tuple[Origin, ...] = KERNEL_LINES


@lru_cache(maxsize=4096)
def normalise_pci(text: str) -> str | None:
    """As `model.normalise_pci`; a log names few addresses often."""
    return model.normalise_pci(text)


def pci_in(text: str) -> str | None:
    """The first PCI address with a domain in a text, normalised."""
    found = _ANY_PCI.search(text)
    return normalise_pci(found[0]) if found else None


def uuid_in(text: str) -> str | None:
    """The first GPU UUID in a text; lower case after the prefix."""
    found = _ANY_UUID.search(text)
    return normalise_uuid(found[0]) if found else None


def normalise_uuid(text: str) -> str:
    """`GPU-` and the UUID in lower case, as NVML prints it."""
    return "GPU-" + text[4:].lower()


def present(**attributes: Scalar) -> dict[str, Scalar]:
    """Attributes without those that are None or empty: absent is not zero."""
    return {name: value for name, value in attributes.items() if value is not None and value != ""}


def worst_word(text: str) -> str:
    """What a line whose meaning is unknown says about itself: error, warning or info."""
    lowered = text.lower()
    for name, words in (("error", _ERROR_WORDS), ("warning", _WARNING_WORDS)):
        for word in words:  # plain loops: every line of the driver comes through here
            if word in lowered:
                return name
    return "info"
