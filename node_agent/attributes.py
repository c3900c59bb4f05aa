"""Small text attributes of sysfs and procfs, read with restraint.

Some drivers write a line into the kernel log each time a read fails. So an attribute whose read failed is left alone, twice as
long after each failure: the agent must not be the storm that it reports. Paths are plain
strings: hundreds are read at each look, and joining `Path`s would cost more than the reads.
"""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path

from node_agent.evidence import Unreadable

MAX_BYTES = 16384  # sysfs gives at most a page (64 KiB pages exist, attributes of that size do not)
LONGEST_RETRY_SECONDS = 3600.0

Reading = str | Unreadable | None  # None: there is no such attribute

_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)")


class Attributes:
    """Reads attributes; every call may block, so it belongs into a `deadline.Sources`."""

    def __init__(self, retry_seconds: float = 60.0) -> None:
        self._retry_seconds = retry_seconds
        self._failed: dict[str, tuple[Unreadable, float, float]] = {}  # what was said, when to try again, delay

    def read(self, path: str) -> Reading:
        """The attribute's text without surrounding space. A recent failure is repeated from memory."""
        failed = self._failed.get(path)
        if failed is not None and time.monotonic() < failed[1]:
            return failed[0]
        try:
            text = read_text(path)
        except (FileNotFoundError, NotADirectoryError):
            text = None
        except OSError as error:
            return self._failure(path, error)
        self._failed.pop(path, None)
        return text

    def number(self, path: str) -> int | Unreadable | None:
        """The attribute as a whole number; None when it is absent or holds none."""
        reading = self.read(path)
        return int(reading) if isinstance(reading, str) and reading.isdecimal() else _no_text(reading)

    def quantity(self, path: str) -> float | Unreadable | None:
        """The number that the attribute begins with, as in `16.0 GT/s PCIe`; None when it is absent or begins with none."""
        reading = self.read(path)
        found = _NUMBER.match(reading) if isinstance(reading, str) else None
        return float(found[1]) if found else _no_text(reading)

    def _failure(self, path: str, error: OSError) -> Unreadable:
        earlier = self._failed.get(path)
        delay = min(LONGEST_RETRY_SECONDS, earlier[2] * 2) if earlier else self._retry_seconds
        unreadable = Unreadable(errno.errorcode.get(error.errno or 0, str(error)))
        self._failed[path] = (unreadable, time.monotonic() + delay, delay)
        return unreadable


def read_text(path: str) -> str:
    """A small file's text without surrounding space; bytes that are not UTF-8 become lone surrogates. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, MAX_BYTES).decode("utf-8", "surrogateescape").strip()
    finally:
        os.close(descriptor)


def names(directory: str | Path) -> list[str]:
    """Names in a directory, in no order. Raises OSError."""
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


def children(directory: Path, prefix: str = "") -> tuple[str, ...]:
    """Names in a directory that begin so, sorted; none when it does not exist."""
    try:
        return tuple(sorted(name for name in names(directory) if name.startswith(prefix)))
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _no_text(reading: Reading) -> Unreadable | None:
    return reading if isinstance(reading, Unreadable) else None
