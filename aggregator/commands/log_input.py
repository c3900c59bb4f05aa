"""Opens what an operator names and hands it on as blocks of whole lines of text: files, stdin, packed or not, UTF-16, damaged.

Whatever can be read is read; what cannot is a notice, one line for a person that names the file.
"""

from __future__ import annotations

import codecs
import itertools
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import cast

from aggregator.commands.packed import Damaged, Unpack, other_tool, packing_of

BLOCK_BYTES = 1 << 20
_MAX_LINE = 8 << 20  # characters without a line end: the rest of such a line is passed over
_HEAD_BYTES = 512  # enough to tell what an input is
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Characters of one byte among zeros, in either byte order: UTF-16 as far as logs are written in it, wherever it begins.
_WIDE = re.compile(rb"(?:\xff\xfe|\xfe\xff)?\x00?((?:[\x01-\xff]\x00){4,})")

Notice = Callable[[str], None]


class Unreadable(Exception):
    """An input of which nothing can be read. The message names it and says why."""


class LogInput:
    """One input. `bytes_read` counts what came from the disk; `size` is None for what is no plain file."""

    def __init__(self, path: str, notice: Notice) -> None:
        self.name = "stdin" if path == "-" else path
        self.bytes_read = 0
        self.size: int | None = None
        self._notice = notice
        self._cut = False
        self._stream = self._open(path)

    def blocks(self) -> Iterator[str]:
        """Text in blocks of whole lines; the last may lack its line end. Raises Unreadable before the first."""
        tail, skipping = "", False
        for piece in self._text():
            if skipping:
                _, found, piece = piece.partition("\n")
                skipping = not found
            whole, found, rest = piece.rpartition("\n")
            if found:
                yield f"{tail}{whole}\n"
                tail = rest
            else:
                tail += piece
            if len(tail) > _MAX_LINE:
                self._notice(f"{self.name}: a line goes on beyond {_MAX_LINE:,} characters; its rest was passed over")
                yield f"{tail}\n"
                tail, skipping = "", True
        if tail and not self._cut:  # half a line could say anything: XID 79 as 7
            yield tail

    def close(self) -> None:
        """Let go of the file."""
        if self._stream is not sys.stdin.buffer:
            self._stream.close()

    def _open(self, path: str) -> BufferedReader:
        if path == "-":
            if sys.stdin.isatty():
                self._notice("reading from the terminal; end with Ctrl-D")
            return cast("BufferedReader", sys.stdin.buffer)
        try:
            stream = Path(path).open("rb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise Unreadable(f"{path}: {_why(error)}") from error
        about = os.fstat(stream.fileno())
        self.size = about.st_size or None
        if stat.S_ISCHR(about.st_mode) and not stream.isatty():  # /dev/kmsg: what it holds now
            os.set_blocking(stream.fileno(), False)
        return stream

    def _raw(self) -> Iterator[bytes]:
        try:
            while block := self._stream.read1(BLOCK_BYTES):
                self.bytes_read += len(block)
                yield block
        except OSError as error:
            if not self.bytes_read:
                raise Unreadable(f"{self.name}: {_why(error)}") from error
            self._notice(f"{self.name}: {_why(error)}; read {self.bytes_read} bytes of it")

    def _bytes(self) -> Iterator[bytes]:
        blocks, first = self._raw(), b""
        for block in blocks:
            first += block
            if len(first) >= _HEAD_BYTES:
                break
        if not first:
            self._notice(f"{self.name}: is empty")
        tool = other_tool(first)
        if tool is not None:
            name, command = tool
            source = "…" if self.name == "stdin" else self.name
            raise Unreadable(
                f"{self.name}: is packed with {name}; pipe it: {command} {source} | gcm-sentinel diagnose -"
            )
        packing = packing_of(first)
        whole = itertools.chain((first,), blocks)
        return whole if packing is None else self._unpacked(*packing, whole)

    def _unpacked(self, packing: str, unpack: Unpack, blocks: Iterator[bytes]) -> Iterator[bytes]:
        some = False
        try:
            for piece in unpack(blocks):
                some = some or bool(piece)
                yield piece
        except ImportError as error:
            raise Unreadable(f"{self.name}: this Python reads no {packing}; pipe it through {packing} -dc") from error
        except Damaged as damage:
            if not some:
                raise Unreadable(f"{self.name}: the {packing} data {damage}; nothing of it could be read") from damage
            self._cut = not damage.whole
            what = "the lines before were" if self._cut else "it was"
            self._notice(f"{self.name}: the {packing} data {damage}; {what} read")
        else:
            if not some:
                self._notice(f"{self.name}: is empty")

    def _text(self) -> Iterator[str]:
        blocks = self._bytes()
        first = _narrowed(next(blocks, b""))
        for mark in _MARKS:
            first = first.removeprefix(mark)
        if b"\0" in first[:4096]:
            self._notice(f"{self.name}: looks like binary data; only what is text in it is read")
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for block in itertools.chain((first,), map(_narrowed, blocks)):
            yield decoder.decode(block.replace(b"\0", b""))
        yield decoder.decode(b"", final=True)


def _narrowed(block: bytes) -> bytes:
    """A block with the UTF-16 in it as UTF-8; a pair that two blocks share leaves a zero, which nobody misses."""
    if b"\0" not in block:
        return block
    return _WIDE.sub(lambda found: found[1][::2].decode("latin-1").encode(), block)


def _why(error: OSError) -> str:
    if isinstance(error, IsADirectoryError):
        return "is a directory; name a file in it"
    return error.strerror or str(error)
