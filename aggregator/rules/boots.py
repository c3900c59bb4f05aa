"""Which boot of a host a line is from, where its log does not say, and kernel time that goes on across boots.

Kernel time begins at zero with every boot. A log that holds more than one of them would otherwise be read in the wrong order, and
what a reboot has mended would pass for what came after it. That stamps fall back is no proof of a boot (two excerpts may stand in
one paste), but the order of the lines holds all the same; a boot is what the kernel calls one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from aggregator.rules.grammar.reading import Line

_JITTER_US = 1_000_000  # processors stamp lines a little out of order
_MAX_HOSTS = 10_000  # a log of a whole fleet has fewer; a hostile one no more


@dataclass(slots=True)
class _Host:
    number: int = 1
    before_us: int = 0  # kernel time of its earlier boots together
    last_us: int | None = None
    lines: bool = False
    shut_down: bool = False


class Boots:
    """Follows the lines of a log in their order."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}

    def place(self, line: Line, kinds: Collection[str]) -> tuple[str, int | None]:
        """Boot id and kernel time of a line that gave signals of these kinds.

        The id is the log's own, else empty for the first boot; the time is in microseconds since the first boot that the log holds.
        """
        if line.host not in self._hosts and len(self._hosts) >= _MAX_HOSTS:
            return line.boot_id, line.uptime_us
        host = self._hosts.setdefault(line.host, _Host())
        fell = line.uptime_us is not None and host.last_us is not None and line.uptime_us < host.last_us - _JITTER_US
        if fell:
            host.before_us += host.last_us or 0
        booted = "kernel_boot" in kinds and (fell or (line.uptime_us is None and host.lines))
        if booted or (fell and host.shut_down):
            host.number, host.shut_down = host.number + 1, False
        host.shut_down = host.shut_down or "host_shutdown" in kinds
        host.lines = True
        if line.uptime_us is not None:
            host.last_us = line.uptime_us
        boot_id = line.boot_id or ("" if host.number == 1 else f"boot-{host.number}")
        return boot_id, None if line.uptime_us is None else host.before_us + line.uptime_us
