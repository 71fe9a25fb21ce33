"""Compressed files of other programs, unpacked up to a limit."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from blobstore.errors import DecodeError
from blobstore.limits import allowed_growth, bomb, check_allocation
from blobstore.streams import CHUNK

_BLOSC_HEADER = 16


def _lz4(file: BinaryIO) -> Any:
    import lz4.frame

    return lz4.frame.LZ4FrameFile(file, mode="rb")


class _ZlibFile(io.RawIOBase):
    """A zlib or gzip stream, of one member or several."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = zlib.decompressobj(47)  # either header
        self._pending = b""

    def read(self, size: int = -1) -> bytes:
        while True:
            if self._stream.eof:
                self._pending = self._stream.unused_data or self._file.read(CHUNK)
                if not self._pending:
                    return b""
                self._stream = zlib.decompressobj(47)
            elif not self._pending:
                self._pending = self._file.read(CHUNK)
            cut_off = not self._pending
            piece = self._stream.decompress(self._pending, size)
            self._pending = self._stream.unconsumed_tail
            if piece:
                return piece
            if cut_off and not self._stream.eof:
                raise EOFError("the stream is cut off")


_UNPACKERS: tuple[tuple[bytes, Callable[[BinaryIO], Any]], ...] = (
    (b"\x1f\x8b", _ZlibFile),
    (b"BZ", bz2.BZ2File),
    (b"\xfd7zXZ", lzma.LZMAFile),
    (b"\x5d\x00", lzma.LZMAFile),
    (b"\x04\x22\x4d\x18", _lz4),
    (b"\x78", _ZlibFile),
)
"""How a compressed file begins -> what reads it."""


def unpacked(file: BinaryIO, size: int, max_decompressed: int) -> BinaryIO:
    """A file as it is, or what it grows to if its first bytes are those of a compressed one.

    Parameters
    ----------
    file : file
        Open at its start.
    size : int
        Of the file.
    max_decompressed : int

    Raises
    ------
    DecodeError
        It grows beyond the limit.
    """
    start = file.read(6)
    file.seek(0)
    for magic, unpacker in _UNPACKERS:
        if start.startswith(magic):
            limit = allowed_growth(size, max_decompressed)
            out = io.BytesIO()
            stream = unpacker(file)
            while chunk := stream.read(CHUNK):
                if out.tell() + len(chunk) > limit:
                    raise bomb("the file", limit)
                out.write(chunk)
            out.seek(0)
            return out
    return file


def unpacked_bytes(data: bytes, max_decompressed: int) -> bytes:
    """As `unpacked`, in memory.

    Examples
    --------
    >>> unpacked_bytes(zlib.compress(b"spam"), 1000), unpacked_bytes(b"spam", 1000)
    (b'spam', b'spam')
    """
    return unpacked(io.BytesIO(data), len(data), max_decompressed).read()


def blosc_chunks(data: bytes, max_decompressed: int) -> bytes:
    """Decompress a run of Blosc chunks, each of which says how long it is.

    Source: the Blosc and Blosc2 chunk headers: uncompressed size in bytes 4 to 7, compressed size in
    bytes 12 to 15, both little endian.

    Raises
    ------
    DecodeError
        It is none, cut off, or grows beyond the limit.
    """
    import blosc2

    limit = allowed_growth(len(data), max_decompressed)
    chunks, grown, start = [], 0, 0
    while start < len(data):
        header = data[start : start + _BLOSC_HEADER]
        size = int.from_bytes(header[12:16], "little")
        if len(header) < _BLOSC_HEADER or size < _BLOSC_HEADER or start + size > len(data):
            raise DecodeError("it is no run of Blosc chunks, or cut off")
        grown += int.from_bytes(header[4:8], "little")
        if grown > limit:
            raise bomb("the file", limit)
        check_allocation(grown, "the file")
        chunk = data[start : start + size]
        chunks.append(blosc2.decompress2(chunk, nthreads=1))  # its threads do not survive a fork
        start += size
    whole = b"".join(chunks)
    if len(whole) != grown:
        raise DecodeError("it is no run of Blosc chunks")
    return whole
