"""Opens what an operator names and hands it on as blocks of whole lines of text: files, stdin, gzip, UTF-16, damaged or not.

Whatever can be read is read; what cannot is a notice, one line for a person that names the file.
"""

from __future__ import annotations

import codecs
import itertools
import sys
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import cast

BLOCK_BYTES = 1 << 20
_MAX_LINE = 1 << 20  # characters without a line end: the rest of such a line is passed over
_GZIP_WINDOW = 31  # zlib's way of asking for the gzip format
_GZIP_MAGIC = b"\x1f\x8b"

Notice = Callable[[str], None]


class Unreadable(Exception):
    """An input that could not be opened. The message names it and says why."""


class LogInput:
    """One input. `bytes_read` counts what came from the disk; `size` is None for what is no plain file."""

    def __init__(self, path: str, notice: Notice) -> None:
        self.name = "stdin" if path == "-" else path
        self.bytes_read = 0
        self.size: int | None = None
        self._notice = notice
        self._stream = self._open(path)

    def blocks(self) -> Iterator[str]:
        """Text in blocks of whole lines; the last may lack its line end."""
        text = self._text()
        tail, skipping = "", False
        for piece in text:
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
                yield f"{tail}\n"
                tail, skipping = "", True
        if tail:
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
            self.size = Path(path).stat().st_size or None
        except IsADirectoryError as error:
            raise Unreadable(f"{path}: is a directory; name a file in it") from error
        except OSError as error:
            raise Unreadable(f"{path}: {error.strerror or error}") from error
        return stream

    def _raw(self) -> Iterator[bytes]:
        try:
            while block := self._stream.read1(BLOCK_BYTES):
                self.bytes_read += len(block)
                yield block
        except OSError as error:
            self._notice(f"{self.name}: {error.strerror or error}; read {self.bytes_read} bytes of it")

    def _bytes(self) -> Iterator[bytes]:
        blocks = self._raw()
        first = next(blocks, b"")
        if first.startswith(_GZIP_MAGIC):
            yield from self._unzipped(first, blocks)
            return
        if not first:
            self._notice(f"{self.name}: is empty")
        yield first
        yield from blocks

    def _unzipped(self, first: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """The members of a gzip file, one after another."""
        member, started = zlib.decompressobj(wbits=_GZIP_WINDOW), False
        try:
            for block in itertools.chain((first,), blocks):
                rest = block
                while rest:
                    started = True
                    yield member.decompress(rest, BLOCK_BYTES)
                    rest = member.unconsumed_tail
                    if member.eof:
                        rest = member.unused_data.lstrip(b"\0")
                        member, started = zlib.decompressobj(wbits=_GZIP_WINDOW), False
        except zlib.error as error:
            self._notice(f"{self.name}: the gzip data is damaged ({error}); what came before it was read")
            return
        if started:
            self._notice(f"{self.name}: the gzip data ends early; what came before was read")

    def _text(self) -> Iterator[str]:
        blocks = self._bytes()
        first = next(blocks, b"")
        encoding = _encoding(first)
        if encoding == "utf-8" and b"\0" in first[:4096]:
            self._notice(f"{self.name}: looks like binary data; only what is text in it is read")
        decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        yield decoder.decode(first)
        for block in blocks:
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)


def _encoding(first: bytes) -> str:
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    sample = first[:400]
    if len(sample) >= 8 and sample[1::2].count(0) > 0.9 * len(sample[1::2]) and 0 not in sample[::2]:
        return "utf-16-le"  # what PowerShell writes, its mark cut off
    return "utf-8"
