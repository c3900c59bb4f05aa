"""The spool: keeps what the node saw until a server has stored it, over crashes of agent and node, and tells of every loss.

Two logs in one directory, `events` and `samples`. Appending never blocks and never raises; one thread writes behind it. A cursor is
written behind the events that were reported before it, so a source resumes exactly where its last kept event is. Every loss becomes
an evidence_gap whose identity follows from what was lost: it may overstate, never understate.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from node_agent.evidence import Fact, Gap
from node_agent.spool.files import SegmentFiles, SpoolRecord
from node_agent.spool.log import Loss, SpoolLog
from node_agent.spool.segments import Kind, gap_payload
from node_agent.spool.writer import Budget, Writer

__all__ = ["Spool", "SpoolInUse", "SpoolLog", "SpoolRecord"]

MIB = 1024 * 1024
CLOSE_SECONDS = 3.0


class SpoolInUse(Exception):
    """Another process has the spool open."""


class Spool:
    """Both logs, the cursors and the installation's id. Open it with `Spool.open`, end it with `close`."""

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        events_max_bytes: int = 64 * MIB,
        samples_max_bytes: int = 16 * MIB,
        memory_max_bytes: int = 4 * MIB,
        keep_acked_seconds: float = 7 * 86400.0,
    ) -> Spool:
        """Open the spool in the directory, which is made if it is missing.

        `memory_max_bytes` bounds what the events keep in memory while the disk refuses; half as much again is for samples. Raises
        SpoolInUse, and OSError when the directory can be neither made nor read; one that cannot be written is a `problem` alone.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _lock(directory)
        try:
            budget = Budget(events_max_bytes, samples_max_bytes, keep_acked_seconds)
            return cls(directory, lock, budget, memory_max_bytes)
        except OSError:
            os.close(lock)
            raise

    def __init__(self, directory: Path, lock: int, budget: Budget, memory_max_bytes: int) -> None:
        self._directory = directory
        self._lock = lock
        self._changed = threading.Condition()
        self._encode: Callable[[Fact], bytes] | None = None
        self._untold: list[Loss] = []
        self._installation_id_path = directory / "installation_id"
        self.installation_id, self._installation_id_kept = _read_installation_id(self._installation_id_path)
        self._cursors: dict[str, bytes] = {}
        self.closed_before = True  # whether the run before, if there was one, came to its end
        self.events = self._open_log("events", memory_max_bytes)
        self.samples = self._open_log("samples", memory_max_bytes // 2)
        self._writer = Writer(
            self.events,
            self.samples,
            self._cursors,
            budget,
            changed=self._changed,
            lose=self._lose,
            can_tell=lambda: self._encode is not None,
            keep_installation_id=self._keep_installation_id,
        )
        self._writer.start()

    @property
    def problem(self) -> str:
        """Why nothing reaches the disk, in one line; empty while it does. Records are then kept in memory, and still sent."""
        return self._writer.problem

    def append_event(self, payload: bytes) -> None:
        """Take a serialized Evidence, at most 1 MiB. Neither blocks nor raises."""
        self.events.append(payload)

    def append_sample(self, payload: bytes) -> None:
        """Take a serialized NodeSnapshot, at most 1 MiB. Neither blocks nor raises."""
        self.samples.append(payload)

    def put_cursor(self, name: str, value: bytes) -> None:
        """Remember how far a source was read. It becomes durable with or after the events that were appended before it."""
        with self._changed:
            self._cursors[name] = value
            self._changed.notify()

    def get_cursor(self, name: str) -> bytes | None:
        """What was last put; None when nothing was."""
        return self._cursors.get(name)

    def tell_losses_through(self, encode: Callable[[Fact], bytes]) -> None:
        """Give the encoder that turns losses into evidence; those found so far are told at once. Without it no record is
        deleted for room unless it is acknowledged."""
        with self._changed:
            self._encode = encode
            losses, self._untold = self._untold, []
            for loss in losses:
                self._lose(loss)

    def close(self) -> None:
        """Write what is left and let go of the directory. Takes at most three seconds, whatever the disk does."""
        self._writer.close(CLOSE_SECONDS)
        os.close(self._lock)

    def _open_log(self, name: str, memory_max_bytes: int) -> SpoolLog:
        files = SegmentFiles(self._directory, name)
        recovered = files.recover()
        self._cursors.update(recovered.cursors)
        if not recovered.closed:
            self.closed_before = False
        if not recovered.closed and name == "events":  # a sample is outdated by the next one
            reason = "the agent ended without closing its spool: what was not yet written is lost"
            self._lose(Loss(name, "unclosed", recovered.spool_id, recovered.end, None, "spool", reason, None))
        return SpoolLog(
            name, files, recovered, memory_max_bytes=memory_max_bytes, changed=self._changed, lose=self._lose
        )

    def _lose(self, loss: Loss) -> None:
        with self._changed:
            if self._encode is None:
                self._untold.append(loss)
            else:
                self.events.append(gap_payload(loss.count, self._encode(_fact(loss))), Kind.GAP)

    def _keep_installation_id(self) -> None:
        if self._installation_id_kept:
            return
        fresh = self._installation_id_path.with_suffix(".new")
        with fresh.open("w") as file:
            file.write(self.installation_id + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._installation_id_path)
        self._installation_id_kept = True


def _fact(loss: Loss) -> Fact:
    """The evidence of a loss. Its identity is given by where the loss ends, so that finding it again is the same evidence."""
    count = "an unknown number of" if loss.count is None else loss.count
    return Fact(
        source="gap",
        kind="evidence_gap",
        detail=f"{count} {loss.log} records lost: {loss.reason}",
        identity=(f"{loss.spool_id}/{loss.why}", (loss.last or loss.first).offset),
        body=Gap(
            where=loss.where,
            reason=loss.reason,
            lost_epoch=loss.spool_id,
            first=loss.first.offset,
            last=None if loss.last is None else loss.last.offset,
            lost_count=loss.count,
        ),
    )


def _lock(directory: Path) -> int:
    """Hold the directory: a lock on itself works on a read-only disk too, and ends with the process."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise SpoolInUse(
            f"{directory} is in use by another agent: give this one its own GCM_SENTINEL_STATE_DIR"
        ) from error
    return descriptor


def _read_installation_id(path: Path) -> tuple[str, bool]:
    """The id, and whether it is on disk."""
    with contextlib.suppress(OSError, ValueError):
        return str(uuid.UUID(path.read_text().strip())), True
    return str(uuid.uuid4()), False
