"""Reading the members of a zip file: all of one, a part, or piece by piece."""

from __future__ import annotations

import io
import os
import zlib
from typing import BinaryIO, NamedTuple

from blobstore.backends.blob.zip_fields import DEFLATED, ENCRYPTED, STORED
from blobstore.backends.blob.zip_format import Member
from blobstore.backends.blob.zip_io import Handle
from blobstore.backends.blob.zip_unpackers import RAW_DEFLATE, unpacker, unpacking_errors
from blobstore.errors import IntegrityError, NotSupportedError, from_os_error
from blobstore.streams import CHUNK, PositionedReader, Source

_BUFFER = 1 << 17
_PIECE = 1 << 16


class Place(NamedTuple):
    """One member in an open file.

    Attributes
    ----------
    handle : Handle
    key : str
    start : int
        Of its bytes.
    member : Member
    """

    handle: Handle
    key: str
    start: int
    member: Member


def read_whole(place: Place) -> bytes:
    """Read all bytes of a member, and check them."""
    member = place.member
    if member.method not in (STORED, DEFLATED) or member.flags & ENCRYPTED:
        return open_raw(place).read()
    data = read_packed(place, 0, member.stored)
    if member.method == DEFLATED:
        data = _inflate(data, place)
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise _damaged(place)
    return data


def read_packed(place: Place, start: int, stop: int) -> bytes:
    """Read bytes as they are in the file."""
    stop = min(stop, place.member.stored)
    try:
        data = place.handle.read(place.start + start, place.start + stop)
    except OSError as exc:
        raise from_os_error(exc, f"reading {place.key!r}", location=place.key) from exc
    if len(data) != max(0, stop - start):
        raise _damaged(place)
    return data


def open_raw(place: Place) -> StoredReader | PackedReader:
    """Open a member without a buffer.

    Raises
    ------
    NotSupportedError
        It is encrypted, or compressed in a way that we do not know.
    """
    if place.member.flags & ENCRYPTED:
        raise NotSupportedError(
            f"{place.key!r} is encrypted, which ZipStore cannot read: extract it by another program",
            location=place.key,
        )
    if place.member.method == STORED:
        return StoredReader(place)
    return PackedReader(place)


def open_member(place: Place) -> BinaryIO:
    """Open a member as an ordinary binary file."""
    return io.BufferedReader(open_raw(place), _BUFFER)


def _inflate(data: bytes, place: Place) -> bytes:
    inflater = zlib.decompressobj(RAW_DEFLATE)
    try:
        # One byte more than there should be: a bomb is found out before it goes off.
        return inflater.decompress(data, place.member.size + 1)
    except zlib.error as exc:
        raise _damaged(place) from exc


class _MemberReader(PositionedReader):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self._size = place.member.size
        self._crc = 0
        self._checked = 0
        self.name = place.key
        if self._size == 0 and place.member.crc:
            raise _damaged(place)

    def end(self) -> int:
        return self._size

    def readall(self) -> bytes:
        chunks = []
        while chunk := self.read(CHUNK):
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _check(self, data: bytes | memoryview, at: int) -> None:
        """Take in what was read; whoever read all of it in order has had it checked."""
        if at != self._checked:
            return
        self._crc = zlib.crc32(data, self._crc)
        self._checked += len(data)
        if self._checked == self._size and self._crc != self._place.member.crc:
            raise _damaged(self._place)


class StoredReader(_MemberReader):
    """Reads a member that is stored as it is, by position."""

    def read_at(self, position: int, buffer: memoryview) -> int:
        """Read some bytes."""
        view = buffer[: max(0, self._size - position)]
        if not view:
            return 0
        try:
            count = os.preadv(self._place.handle.fd, [view], self._place.start + position)
        except OSError as exc:
            raise from_os_error(exc, f"reading {self.name!r}", location=self.name) from exc
        if not count:
            raise _damaged(self._place)
        self._check(view[:count], position)
        return count


class PackedReader(_MemberReader):
    """Reads a compressed member; going back means to start again."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._begin()

    def _begin(self) -> None:
        self._unpacker = unpacker(self._place.member.method, self.name)
        self._taken = self._unpacked = self._crc = self._checked = 0

    def read_at(self, position: int, buffer: memoryview) -> int:
        """Unpack some bytes."""
        wanted = min(len(buffer), self._size - position)
        if wanted <= 0:
            return 0
        if position < self._unpacked:
            self._begin()
        while self._unpacked < position:
            self._next(min(CHUNK, position - self._unpacked))
        data = self._next(wanted)
        buffer[: len(data)] = data
        return len(data)

    def _next(self, limit: int) -> bytes:
        """Unpack some more bytes, at least one."""
        data = b""
        while not data:
            packed, ended = b"", False
            if self._unpacker.hungry:
                packed = read_packed(self._place, self._taken, self._taken + _PIECE)
                self._taken += len(packed)
                ended = not packed
            try:
                data = self._unpacker.unpack(packed, limit)
            except unpacking_errors() as exc:
                raise _damaged(self._place) from exc
            if ended and not data:
                raise _damaged(self._place)
        at, self._unpacked = self._unpacked, self._unpacked + len(data)
        self._check(data, at)
        return data


class ZipSource(Source):
    """A source over a member, readable whatever happens to the store."""

    def __init__(self, place: Place) -> None:
        open_raw(place).close()  # refuses what cannot be read
        self._place: Place | None = place
        self.size = place.member.size

    def open(self) -> BinaryIO:
        """Open it from the start."""
        return open_member(self._held())

    def read(self) -> bytes:
        """Read and check all of it."""
        return read_whole(self._held())

    def read_range(self, start: int, stop: int) -> bytes:
        """Read part of it."""
        return read_part(self._held(), start, stop)

    def close(self) -> None:
        """Let go of the file."""
        self._place = None

    def _held(self) -> Place:
        if self._place is None:
            raise ValueError("this source was closed")
        return self._place


def read_part(place: Place, start: int, stop: int) -> bytes:
    """Read bytes ``[start, stop)`` of a member; of a compressed one, all that is before them."""
    stop = min(stop, place.member.size)
    if start >= stop:
        return b""
    if place.member.method == STORED and not place.member.flags & ENCRYPTED:
        return read_packed(place, start, stop)
    with open_member(place) as file:
        file.seek(start)
        return file.read(stop - start)


def _damaged(place: Place) -> IntegrityError:
    return IntegrityError(
        f"the bytes of {place.key!r} in the zip file are not those that were stored: "
        "restore the file from a copy, or delete the object",
        location=place.key,
    )
