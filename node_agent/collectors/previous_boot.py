"""After a boot that nobody asked for: what pstore and the journal still hold of the kernel's last words, once per boot.

pstore's dumps are crashes by themselves and are always read. The journal of the boot before is read when the agent did not close
its spool then, and only from where the kernel log was last read; its lines pass the same filter.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node_agent.collectors import CollectorAbsent
from node_agent.evidence import Fact, Gap, Report, TextCapture, TimeBasis
from node_agent.kernel_log import CURSOR as KMSG_CURSOR
from node_agent.kernel_log import KernelCursor, keep
from node_agent.spool import Spool

CURSOR = "previous_boot"
JOURNAL = ("journalctl", "-k", "-b", "-1", "-o", "json", "--no-pager", "-q")
JOURNAL_SECONDS = 20.0
MAX_LINES = 1000  # the last ones of a source; a machine that crashed said the most important thing last
MAX_FILE_BYTES = 1024 * 1024
MAX_FILES = 256
MAX_ENTRY_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class _Line:
    """A line that passed the filter, and where it was found."""

    source: str
    epoch: str
    capture: TextCapture
    written_at: float | None  # seconds since the epoch, as recorded beside it


class _Tail:
    """The last lines of one origin, and how many came before them."""

    def __init__(self) -> None:
        self.lines: deque[_Line] = deque(maxlen=MAX_LINES)
        self.passed_over = 0

    def add(self, line: _Line) -> None:
        """Take a line; the oldest goes when there are too many."""
        self.passed_over += len(self.lines) == MAX_LINES
        self.lines.append(line)

    def facts(self) -> Iterator[Fact]:
        """The lines as evidence, and a gap for those that are not among them."""
        if self.passed_over:
            first = self.lines[0]
            reason = (
                f"{self.passed_over} lines of {first.capture.origin} from before the last {MAX_LINES} were passed over"
            )
            yield _gap(first.source, first.epoch, first.capture.line_number, self.passed_over, reason)
        for line in self.lines:
            yield Fact(
                source=line.source,
                kind="previous_boot_line",
                detail=f"{line.capture.origin}: {line.capture.line}",
                body=line.capture,
                occurred_at=line.written_at,
                time_basis=TimeBasis.OBSERVED if line.written_at is None else TimeBasis.RECORDED,
                identity=(line.epoch, line.capture.line_number),
            )


class PreviousBootCollector:
    """Reports previous_boot_line, then ends. Make it before the kernel log's collector runs, whose cursor it needs as it was."""

    name = "previous_boot"

    def __init__(
        self,
        sysfs_root: Path,
        *,
        boot_id: str,
        spool: Spool,
        journal_command: tuple[str, ...] = JOURNAL,
        journal_seconds: float = JOURNAL_SECONDS,
    ) -> None:
        self._pstore = sysfs_root / "fs/pstore"
        self._boot_id = boot_id
        self._spool = spool
        self._journal_command = journal_command
        self._journal_seconds = journal_seconds
        self._last_read = KernelCursor.decode(spool.get_cursor(KMSG_CURSOR))

    async def collect(self, report: Report) -> None:
        """Read once in each boot. Raises CollectorAbsent where nothing that a boot leaves behind can be read."""
        unclean, done = self._begin()
        if done:
            return
        pstore = await asyncio.to_thread(_read_pstore, self._pstore)
        journal = await self._read_journal(report) if unclean else None
        for tail in [*(pstore or ()), *([journal] if journal else ())]:
            for fact in tail.facts():
                report(fact)
        self._note(unclean, done=True)
        if pstore is None and journal is None:
            raise CollectorAbsent(
                "nothing is kept of the boot before: no pstore, and no unclean end that a journal could explain"
            )

    def _begin(self) -> tuple[bool, bool]:
        """Whether this boot followed an unclean end, as its first run of the agent found it, and whether that was looked into."""
        noted = self._spool.get_cursor(CURSOR)
        boot_id, unclean, done = json.loads(noted) if noted else ("", False, False)
        if boot_id != self._boot_id:
            unclean, done = not self._spool.closed_before, False
            self._note(unclean, done=False)
        return unclean, done

    def _note(self, unclean: bool, *, done: bool) -> None:
        self._spool.put_cursor(CURSOR, json.dumps([self._boot_id, unclean, done]).encode())

    async def _read_journal(self, report: Report) -> _Tail | None:
        """None without a journal. One that does not end in time gives what it gave, and a gap."""
        tail = _Tail()
        try:
            async with asyncio.timeout(self._journal_seconds), aclosing(_journal(self._journal_command)) as entries:
                number = 0
                async for entry in entries:
                    number += 1
                    line = _journal_line(number, entry)
                    if keep(line.capture.line.lower()) and not self._was_read(line.capture.boot_id, entry):
                        tail.add(line)
        except TimeoutError:
            reason = f"the journal was not read to its end within {self._journal_seconds:g} s"
            report(_gap("kmsg_previous_boot", self._boot_id, 0, None, reason))
        except OSError:
            return None
        return tail

    def _was_read(self, boot_id: str, entry: dict[str, Any]) -> bool:
        last = self._last_read
        usec = _number(entry, "_SOURCE_MONOTONIC_TIMESTAMP")
        return last is not None and last.boot_id == boot_id and usec <= last.monotonic_usec


async def _journal(command: tuple[str, ...]) -> AsyncGenerator[dict[str, Any], None]:
    """The entries that the command prints, one JSON object a line. Raises OSError when it cannot be run."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, limit=MAX_ENTRY_BYTES
    )
    assert process.stdout is not None
    try:
        while raw := await _next_line(process.stdout):
            try:
                entry = json.loads(raw)
            except ValueError:
                entry = {"MESSAGE": raw.decode("utf-8", "replace").rstrip("\n")}
            yield entry if isinstance(entry, dict) else {"MESSAGE": str(entry)}
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def _next_line(stream: asyncio.StreamReader) -> bytes:
    """Empty at the end. A line beyond the limit comes in pieces, which no one can read, but which are counted."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    except asyncio.LimitOverrunError as overrun:
        return await stream.readexactly(overrun.consumed)


def _journal_line(number: int, entry: dict[str, Any]) -> _Line:
    """The entry as `dmesg --raw` would show it: with its facility, so that nobody takes userspace's word for the kernel's."""
    message = entry.get("MESSAGE") or ""
    if isinstance(message, list):  # how the journal shows bytes that are not UTF-8
        message = bytes(byte for byte in message if isinstance(byte, int)).decode("utf-8", "surrogateescape")
    priority = _number(entry, "SYSLOG_FACILITY") * 8 + _number(entry, "PRIORITY")
    seconds, usec = divmod(_number(entry, "_SOURCE_MONOTONIC_TIMESTAMP"), 1_000_000)
    realtime_usec = _number(entry, "__REALTIME_TIMESTAMP")
    boot_id = _dashed(str(entry.get("_BOOT_ID", "")))
    return _Line(
        source="kmsg_previous_boot",
        epoch=boot_id or "unknown",
        capture=TextCapture("journal", number, f"<{priority}>[{seconds:5}.{usec:06}] {message}", boot_id),
        written_at=realtime_usec / 1e6 if realtime_usec else None,
    )


def _number(entry: dict[str, Any], name: str) -> int:
    value = str(entry.get(name, ""))
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 18 else 0


def _dashed(boot_id: str) -> str:
    try:
        return str(uuid.UUID(boot_id))
    except ValueError:
        return boot_id


def _read_pstore(directory: Path) -> list[_Tail] | None:
    """What each file of pstore holds; None where there is no pstore that can be read. Blocks."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.is_file())[:MAX_FILES]
    except OSError:
        return None
    tails = []
    for path in paths:
        with suppress(OSError), path.open("rb") as file:
            tails.append(_pstore_tail(path.name, file.read(MAX_FILE_BYTES), os.fstat(file.fileno()).st_mtime))
    return tails


def _pstore_tail(name: str, content: bytes, written_at: float) -> _Tail:
    """The dump's lines that pass the filter. Names come again with the next crash, so the content is part of the identity."""
    epoch = f"{name}/{hashlib.sha256(content).hexdigest()[:16]}"
    tail = _Tail()
    for number, raw in enumerate(content.split(b"\n"), start=1):
        line = raw.decode("utf-8", "surrogateescape").replace("\0", "").rstrip("\r")
        if keep(line.lower()):
            tail.add(_Line("pstore", epoch, TextCapture(name, number, line), written_at))
    return tail


def _gap(source: str, epoch: str, last: int, lost_count: int | None, reason: str) -> Fact:
    return Fact(
        source="gap",
        kind="evidence_gap",
        detail=reason,
        body=Gap(where="previous_boot", reason=reason, lost_source=source, lost_epoch=epoch, lost_count=lost_count),
        identity=(f"{epoch}/previous_boot", last),
    )
