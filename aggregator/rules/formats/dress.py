"""A line while its log's dress is taken off: what is left of its text, and what the layers taken off said about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aggregator.rules.grammar.reading import Line, Origin

LEVELS = {"emerg": 0, "alert": 1, "crit": 2, "err": 3, "warn": 4, "notice": 5, "info": 6, "debug": 7}
FACILITIES = {"kern": 0, "user": 1, "mail": 2, "daemon": 3, "auth": 4, "syslog": 5}
OTHER_FACILITY = 16

_LATEST_US = 4_102_444_800_000_000  # the year 2100: a later time is a mistake, not a time
_LONGEST_UPTIME_US = 100 * 365 * 86_400 * 1_000_000


@dataclass(slots=True)
class Dress:
    """What has been peeled off so far."""

    text: str
    origin: Origin = Origin.UNKNOWN
    at_us: int | None = None
    uptime_us: int | None = None
    host: str = ""
    program: str = ""
    facility: int = 0
    level: int | None = None
    boot_id: str = ""
    peeled: list[Callable[..., object]] = field(default_factory=list)

    def cut(self, end: int) -> None:
        """Take off the first characters."""
        self.text = self.text[end:]

    def from_kernel_log(self, facility: int, level: int | None) -> None:
        """It stood in the kernel's log, where facility 0 is the kernel's own and any other a process's."""
        self.facility, self.level = facility, level
        self.origin = Origin.KERNEL if facility == 0 else Origin.USERSPACE

    def kernel_unless_known(self) -> None:
        """Its prefix is one that the kernel's lines have, where nothing better told who wrote it."""
        if self.origin is Origin.UNKNOWN:
            self.origin = Origin.KERNEL

    def tagged(self, tag: str, pid: str | None) -> None:
        """A syslog tag: the kernel's has no pid and, where a facility is known, facility 0."""
        if tag == "kernel" and pid is None:
            if self.origin is not Origin.USERSPACE:
                self.origin = Origin.KERNEL
            return
        self.origin, self.program = Origin.PROGRAM, tag

    def line(self, indent: int) -> Line:
        """The message as grammars get it; impossible times are left out."""
        at_us, uptime_us = self.at_us, self.uptime_us
        if at_us is not None and not 0 <= at_us < _LATEST_US:
            at_us = None
        if uptime_us is not None and not 0 <= uptime_us < _LONGEST_UPTIME_US:
            uptime_us = None
        return Line(
            text=self.text.rstrip(),
            origin=self.origin,
            at_us=at_us,
            uptime_us=uptime_us,
            host=self.host,
            program=self.program,
            facility=self.facility,
            level=self.level,
            indent=indent,
            boot_id=self.boot_id,
        )
