"""Kernel log records: their prefix, which of them are kept, and how a storm of them is counted. Pure; what a line means is judged
by the aggregator alone.

Source: kernel ABI/testing/dev-kmsg.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from node_agent.evidence import KernelRecord, Storm

CURSOR = "kmsg"  # how the spool calls the place that reading has come to
LINES_PER_MINUTE = 200  # exact-distinct lines of one minute of kernel time that are sent; the rest is counted
OPENINGS_PER_MINUTE = 50  # lines that are sent beyond these because none before began like them
USEC_PER_MINUTE = 60_000_000

# Broad on purpose: a line too many costs some bytes, a line too few is never seen. Lower case; a token covers whatever contains it.
_TOKENS = (
    *("nvrm", "nvidia", "xid", "nvswitch", "nvlink", "gpu", "cuda", "nccl", "peermem", "gdrdrv", "dcgm", "nouveau"),
    *("fabric manager", "fabricmanager", "fabric-manager", "imex", "amdkfd", "radeon", "habanalabs", "[drm", "drm:"),
    *("pcie", "aer:", "aer_", "dpc:", "d3cold", "power state", "link down", "completion timeout", "vfio-pci"),
    *("hardware error", "ghes", "cper", "apei", "smmu", "dmar:", "amd-vi", "io_page_fault", "sdei"),
    *("edac", "mce:", "machine check", "memory failure", "hwpoison", "poison", "correct", "ecc", "bad page"),
    *("mlx4", "mlx5", "infiniband", "ib_core", "ipoib", "bnxt", "irdma", "rdma", "efa 0"),
    *(
        "i/o error",
        "io error",
        "medium error",
        "lost async",
        "nvme",
        "ext4-fs error",
        "xfs (",
        "remount",
        "not responding",
    ),
    *("lustre", "out of memory", "oom", "killed process", "allocation failure", "blocked for more than", "hung"),
    *("lockup", "stall", "watchdog", "state:d", "segfault", "general protection", "traps:", "thermal", "temperature"),
    *("throttl", "slowdown", "overcurrent", "over-current", "power supply", "panic", "oops", "bug:", "bug at"),
    *("call trace", "unable to handle", "nmi:", "nmi received", "tainted", "warning: cpu", "sysrq"),
)

_PREFIX = re.compile(rb"(\d{1,5}),(\d{1,18}),(\d{1,18})(?:,([^,;]{0,16})[^;]*)?;")
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")
_PID = re.compile(r"\bpid=(\d{1,7})\b")


def parse(raw: bytes) -> KernelRecord:
    """One record as /dev/kmsg gives it, without the dictionary that may follow its message. One whose prefix cannot be read comes
    back as `malformed`, whole. Bytes that are not UTF-8 become lone surrogates."""
    prefix = _PREFIX.match(raw)
    if prefix is None:
        return KernelRecord(line="", seq=0, facility=0, level=0, monotonic_usec=0, malformed=raw)
    priority, seq, usec, flags = prefix.groups(b"")
    end = raw.find(b"\n", prefix.end())
    message = raw[prefix.end() : end] if end >= 0 else raw[prefix.end() :]
    if b"\\x" in message:
        message = _ESCAPE.sub(_unescaped, message)
    return KernelRecord(
        line=message.decode("utf-8", "surrogateescape"),
        seq=int(seq),
        facility=int(priority) >> 3,
        level=int(priority) & 7,
        monotonic_usec=int(usec),
        flags=flags.decode("ascii", "replace"),
    )


def keep(line_lower: str) -> bool:
    """Whether a line, in lower case, may have to do with the health of the node's hardware or with the work on it."""
    for token in _TOKENS:  # noqa: SIM110  # any() over a generator costs twice as much, for every line of the kernel
        if token in line_lower:
            return True
    return False


def pid_of(line: str) -> int | None:
    """The process that the driver names in a line: `pid=1234`."""
    match = _PID.search(line)
    return int(match[1]) if match else None


def _unescaped(escape: re.Match[bytes]) -> bytes:
    return bytes((int(escape[1], 16),))


class StormMeter:
    """Decides what is sent of one minute of kernel time: up to 200 lines that differ; the rest is counted.

    One chatty fault must not hide another: beyond the 200, up to 50 lines are sent that are the first of their minute to begin as
    they do, up to their first comma, where an XID's line has named its GPU and code.

    The same records in the same order give the same decisions, and `state` carries them over a restart: so ids stay, and no count
    starts again in the middle of a minute.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """Raises KeyError, TypeError or ValueError for a state that is none."""
        self._minute = 0
        self._sent: dict[bytes, None] = {}
        self._openings: dict[bytes, None] = {}
        self._beyond = 0
        self._storm: Storm | None = None
        if state is not None:
            self._minute = int(state["minute"])
            self._sent = _digests(state["sent"])
            self._openings = _digests(state["openings"])
            self._beyond = int(state["beyond"])
            self._storm = None if state["storm"] is None else Storm(self._minute, *state["storm"])

    @property
    def state(self) -> dict[str, Any]:
        """What another meter needs to go on. For JSON."""
        storm = self._storm
        counts = storm and [storm.suppressed_count, storm.first_seq, storm.last_seq, storm.last_line]
        return {
            "minute": self._minute,
            "sent": b"".join(self._sent).hex(),
            "openings": b"".join(self._openings).hex(),
            "beyond": self._beyond,
            "storm": counts,
        }

    @property
    def counting(self) -> bool:
        """Whether the present minute has records that were counted instead of sent."""
        return self._storm is not None

    def begin(self, monotonic_usec: int) -> Storm | None:
        """A record of this kernel time comes; what was counted in the minute that it ends, if it ends one."""
        minute = monotonic_usec // USEC_PER_MINUTE
        if (
            self._minute - 1 <= minute <= self._minute
        ):  # a record may be stamped a little before the one that precedes it
            return None
        return self._end(minute)

    def end(self) -> Storm | None:
        """The minute is over by other clocks; what was counted in it. A record of it that still comes counts for the next."""
        return self._end(self._minute + 1)

    def admit(self, line: str | bytes, seq: int) -> bool:
        """Whether a record of the present minute is sent; else it is counted."""
        text = line if isinstance(line, bytes) else line.encode("utf-8", "surrogateescape")
        if self._has_room_for(text):
            return True
        storm = self._storm
        first_seq, count = (storm.first_seq, storm.suppressed_count) if storm else (seq, 0)
        self._storm = Storm(self._minute, count + 1, first_seq, seq, text.decode("utf-8", "surrogateescape"))
        return False

    def _has_room_for(self, text: bytes) -> bool:
        """Whether it is sent; if so, it has taken its room."""
        digest = _digest(text)
        if digest in self._sent:
            return False
        opening, comma, _ = text.partition(b",")
        begins_anew = bool(comma) and (opened := _digest(opening)) not in self._openings
        if len(self._sent) >= LINES_PER_MINUTE + self._beyond:
            if not begins_anew or self._beyond >= OPENINGS_PER_MINUTE:
                return False
            self._beyond += 1
        self._sent[digest] = None
        if begins_anew:
            self._openings[opened] = None
        return True

    def _end(self, minute: int) -> Storm | None:
        storm, self._storm = self._storm, None
        self._sent.clear()
        self._openings.clear()
        self._beyond = 0
        self._minute = minute
        return storm


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=8).digest()


def _digests(state: str) -> dict[bytes, None]:
    joined = bytes.fromhex(state)
    return dict.fromkeys(joined[at : at + 8] for at in range(0, len(joined), 8))


@dataclass(slots=True)
class KernelCursor:
    """How far a boot's kernel log was read. `malformed` counts records without a readable number since the last one that had it;
    storms are kept apart for what the kernel wrote and for what userspace wrote, so that neither drowns the other."""

    boot_id: str
    next_seq: int | None = None
    monotonic_usec: int = 0
    malformed: int = 0
    kernel_storm: StormMeter = field(default_factory=StormMeter)
    userspace_storm: StormMeter = field(default_factory=StormMeter)

    def encode(self) -> bytes:
        """The cursor as the spool keeps it."""
        return json.dumps(
            [
                self.boot_id,
                self.next_seq,
                self.monotonic_usec,
                self.malformed,
                self.kernel_storm.state,
                self.userspace_storm.state,
            ]
        ).encode()

    @classmethod
    def decode(cls, value: bytes | None) -> KernelCursor | None:
        """None when there is none, or when another version wrote it: then the log is read again, which repeats no evidence."""
        try:
            boot_id, next_seq, usec, malformed, kernel, userspace = json.loads(value or b"")
            return cls(boot_id, next_seq, usec, malformed, StormMeter(kernel), StormMeter(userspace))
        except (KeyError, TypeError, ValueError):
            return None
