"""Opens the kernel log and reads whole raw records from it without blocking: from /dev/kmsg, a FIFO, or a file of such records."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path
from typing import Protocol

READ_BYTES = 8192  # no record of the kernel is longer; with a smaller buffer reading one fails with EINVAL
LONGEST_RECORD_BYTES = 64 * 1024  # of a FIFO or file, which nothing bounds
FILE_POLL_SECONDS = 0.05
FAILURES_IN_A_ROW = (
    1000  # EPIPE in a flood clears up; what does not is left to the supervisor, who waits longer each time
)
_WAY_OUT = "mount the host's /dev/kmsg, or set GCM_SENTINEL_KMSG_PATH"


class KernelStream(Protocol):
    """An open kernel log."""

    is_device: bool
    replays: bool  # whether opening it again gives records that were read before

    def read(self, limit: int) -> list[bytes]:
        """Records that can be read now, oldest first, about so many at most; none when there is nothing more for now."""
        ...

    async def wait(self) -> None:
        """Return when there may be more to read."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def open_stream(path: Path) -> KernelStream:
    """Raises OSError when there is no kernel log there or it may not be read: a node whose log cannot be seen is not healthy."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISCHR(mode):
            return _Device(path)
        if stat.S_ISFIFO(mode):
            return _Fifo(path)
        if stat.S_ISREG(mode):
            return _File(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, f"no kernel log: {path} does not exist: {_WAY_OUT}") from error
    except PermissionError as error:
        raise PermissionError(
            error.errno, f"the kernel log {path} may not be read: run the agent as root or with CAP_SYSLOG"
        ) from error
    raise OSError(errno.EINVAL, f"no kernel log: {path} is neither a device, a FIFO nor a file: {_WAY_OUT}")


class _Device:
    """/dev/kmsg: each read gives one record."""

    is_device = True
    replays = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def read(self, limit: int) -> list[bytes]:
        records: list[bytes] = []
        failures = 0
        while len(records) < limit:
            try:
                record = os.read(self._descriptor, READ_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                failures += 1
                # overwritten before it was read, or too long: the next read goes on behind it, and the numbers tell what is missing
                if error.errno not in (errno.EPIPE, errno.EINVAL) or failures > FAILURES_IN_A_ROW:
                    raise
                continue
            if not record:
                raise OSError(errno.ENODATA, f"no kernel log: {self._path} is a device without records: {_WAY_OUT}")
            records.append(record)
        return records

    async def wait(self) -> None:
        await _readable(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class _Lines:
    """Puts records together that arrive in pieces. A record ends with its line; lines that begin with a space belong to the record
    before them and say nothing that its message does not."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[bytes]:
        """The records that the data completes."""
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > LONGEST_RECORD_BYTES:
            lines, rest = [*lines, rest], b""
        self._rest = rest
        return [line for line in lines if line and not line.startswith(b" ")]


class _Fifo:
    """Held open for writing too, so that it does not end when its writer does."""

    is_device = False
    replays = False

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._lines = _Lines()

    def read(self, limit: int) -> list[bytes]:
        records: list[bytes] = []
        while len(records) < limit:
            try:
                records += self._lines.add(os.read(self._descriptor, READ_BYTES))
            except BlockingIOError:
                break
        return records

    async def wait(self) -> None:
        await _readable(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class _File:
    """A file that may grow; one that became shorter, or took the place of the one before, is read anew."""

    is_device = False
    replays = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = _open_file(path)
        self._position = 0
        self._lines = _Lines()

    def read(self, limit: int) -> list[bytes]:
        if os.fstat(self._descriptor).st_size < self._position:
            self._position, self._lines = 0, _Lines()
        return self._read_on(limit) or self._read_successor(limit)

    def _read_successor(self, limit: int) -> list[bytes]:
        """Read on in the file that has the path now. Raises FileNotFoundError when none has."""
        try:
            successor, present = self._path.stat(), os.fstat(self._descriptor)
        except FileNotFoundError as error:
            raise FileNotFoundError(error.errno, f"no kernel log: {self._path} does not exist: {_WAY_OUT}") from error
        if (successor.st_dev, successor.st_ino) == (present.st_dev, present.st_ino):
            return []
        descriptor = _open_file(self._path)
        os.close(self._descriptor)
        self._descriptor, self._position, self._lines = descriptor, 0, _Lines()
        return self._read_on(limit)

    def _read_on(self, limit: int) -> list[bytes]:
        records: list[bytes] = []
        while len(records) < limit:
            data = os.pread(self._descriptor, READ_BYTES, self._position)
            if not data:
                break
            self._position += len(data)
            records += self._lines.add(data)
        return records

    async def wait(self) -> None:
        await asyncio.sleep(FILE_POLL_SECONDS)

    def close(self) -> None:
        os.close(self._descriptor)


def _open_file(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO that took its place must not block


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _set_once, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _set_once(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
