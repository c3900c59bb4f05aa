"""Unpacks compressed logs as they stream by: gzip, xz and bzip2, damaged or cut off; names what must be unpacked by other means.

Output comes in pieces of bounded size: a small file that unpacks to very much costs time, not memory. What was unpacked before the
damage is kept. The checksum of gzip is verified here, because zlib throws away what it unpacked when the sum is wrong.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

_PIECE = 1 << 20  # bytes unpacked at a time
_SMALL_PIECE = 1 << 12  # the same of xz and bzip2, which lose a piece where the data is bad
_XZ_MEMORY = 128 << 20  # bytes; what `xz -9` wrote needs 65 MiB
_HEADER_MAX = 1 << 16  # bytes of a name or comment
_RAW_DEFLATE = -15
_GZIP, _XZ, _BZIP2, _BZIP2_BLOCK = b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"BZh", b"1AY&SY"
_GZIP_TRAILER = 8
_EXTRA, _NAME, _COMMENT, _HEADER_SUM, _RESERVED = 4, 8, 16, 2, 0xE0  # flags of a gzip header

_ELSEWHERE = {  # by first bytes: what it is, and what unpacks it to a pipe
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -dc"),
    b"PK\x03\x04": ("zip", "unzip -p"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x -so"),
}

Unpack = Callable[[Iterator[bytes]], Iterator[bytes]]


class Damaged(Exception):
    """The data cannot be unpacked any further, or not be trusted; the message goes on after "the gzip data …".

    `whole` tells that nothing is missing all the same.
    """

    def __init__(self, reason: str, *, whole: bool = False) -> None:
        super().__init__(reason)
        self.whole = whole


def packing_of(first: bytes) -> tuple[str, Unpack] | None:
    """Name of the compression of an input that begins like this, and what unpacks it; None for what is not read here."""
    if first.startswith(_GZIP):
        return "gzip", _gunzip
    if first.startswith(_XZ):
        return "xz", _unxz
    return ("bzip2", _bunzip2) if first.startswith(_BZIP2) and first[4:10] == _BZIP2_BLOCK else None


def other_tool(first: bytes) -> tuple[str, str] | None:
    """Name and command of a compression that is not read here, by an input's first bytes."""
    return next((tool for magic, tool in _ELSEWHERE.items() if first.startswith(magic)), None)


class _Bytes:
    """Blocks as bytes that can be looked at before they are taken."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.held = b""
        self._blocks = blocks

    def have(self, size: int) -> bool:
        """Hold at least so many bytes; False when the input ends before."""
        while len(self.held) < size:
            block = next(self._blocks, b"")
            if not block:
                return False
            self.held += block
        return True

    def need(self, size: int) -> None:
        """As `have`. Raises Damaged."""
        if not self.have(size):
            raise Damaged("ends early")

    def another(self) -> bool:
        """Whether one more stream follows; zeros are padding."""
        while self.have(1):
            self.held = self.held.lstrip(b"\0")
            if self.held:
                return True
        return False


def _gunzip(blocks: Iterator[bytes]) -> Iterator[bytes]:
    source = _Bytes(blocks)
    sound = True
    while source.another():
        _pass_header(source)
        sound = (yield from _member(source)) and sound
    if not sound:
        raise Damaged("has a wrong checksum", whole=True)


def _pass_header(source: _Bytes) -> None:
    if not source.have(10) and _GZIP.startswith(source.held[:3]):
        raise Damaged("ends early", whole=True)
    if not source.held.startswith(_GZIP):
        raise Damaged("is followed by something else", whole=True)
    flags, end = source.held[3], 10
    if flags & _RESERVED:
        raise Damaged("is damaged (unknown header)")
    if flags & _EXTRA:
        source.need(12)
        end += 2 + int.from_bytes(source.held[10:12], "little")
    for text in (_NAME, _COMMENT):
        end = _after_text(source, end) if flags & text else end
    end += 2 if flags & _HEADER_SUM else 0
    source.need(end)
    source.held = source.held[end:]


def _after_text(source: _Bytes, start: int) -> int:
    while (end := source.held.find(b"\0", start)) < 0:
        if len(source.held) > start + _HEADER_MAX:
            raise Damaged("is damaged (a header without an end)")
        source.need(len(source.held) + 1)
    return end + 1


def _member(source: _Bytes) -> Generator[bytes, None, bool]:
    """One member's text; returns whether its checksum is right. Where the data is bad, ever smaller pieces reach up to it."""
    member, size, checksum, length = zlib.decompressobj(wbits=_RAW_DEFLATE), _PIECE, 0, 0
    while not member.eof:
        at_end = not source.have(1)
        before = member.copy()
        try:
            piece = member.decompress(source.held, size)
        except zlib.error as error:
            if size == 1:
                raise Damaged(f"is damaged ({error})") from error
            member, size = before, size >> 8 or 1
            continue
        if at_end and not piece and not member.eof:
            raise Damaged("ends early")
        checksum, length = zlib.crc32(piece, checksum), length + len(piece)
        source.held = member.unused_data if member.eof else member.unconsumed_tail
        yield piece
    if not source.have(_GZIP_TRAILER):
        raise Damaged("ends early", whole=True)
    sums, source.held = struct.unpack_from("<II", source.held), source.held[_GZIP_TRAILER:]
    return sums == (checksum, length & 0xFFFFFFFF)


class _Stream(Protocol):
    """What the decompressors of lzma and bz2 have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _unxz(blocks: Iterator[bytes]) -> Iterator[bytes]:
    import lzma  # imported where it is needed: most inputs are not compressed, and Python may be built without it

    return _streams(blocks, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), lzma.LZMAError)


def _bunzip2(blocks: Iterator[bytes]) -> Iterator[bytes]:
    import bz2

    return _streams(blocks, bz2.BZ2Decompressor, OSError)


def _streams(blocks: Iterator[bytes], begin: Callable[[], _Stream], failure: type[Exception]) -> Iterator[bytes]:
    source = _Bytes(blocks)
    while source.another():
        stream = begin()
        while not stream.eof:
            if stream.needs_input:
                source.need(1)
            packed, source.held = source.held, b""
            try:
                piece = stream.decompress(packed, _SMALL_PIECE)
            except failure as error:
                raise Damaged(f"is damaged ({error})") from error
            yield piece
        source.held = stream.unused_data
