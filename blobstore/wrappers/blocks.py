"""A header and sealed blocks of 64 KiB: what stores that verify or encrypt make of an object.

An object is cut into blocks of fixed size. Each is sealed together with its number and with whether
it is the last, so blocks that are altered, cut off, appended, repeated or in another order do not
open; and any block is found by arithmetic, so a range reads no more than the blocks it touches. An
empty object has one empty block. What a seal is, is up to a `Sealer`.

Source: the STREAM construction; V. T. Hoang, R. Reyhanitabar, P. Rogaway, D. Vizár, "Online
Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Iterator
from typing import BinaryIO, ClassVar, NamedTuple, Protocol

from blobstore.errors import IntegrityError
from blobstore.streams import Buffer, PositionedReader
from blobstore.wrappers.stream import Encoder, StreamTransformer, gather

BLOCK = 1 << 16
"""Bytes of an object in each block but the last."""


class Sealer(Protocol):
    """Seals the blocks of one object; each seal makes its block longer by the same."""

    def seal(self, index: int, last: bool, data: Buffer, /) -> bytes:
        """Seal a block; `index` counts from 0, and no block is sealed twice."""

    def open(self, index: int, last: bool, data: bytes, /) -> bytes | None:
        """Give what was sealed under this number as (not) the last; None if this was not."""


class Layout(NamedTuple):
    """Where the blocks lie.

    Attributes
    ----------
    header : int
        Bytes before the first block.
    overhead : int
        Bytes that a seal adds.
    """

    header: int
    overhead: int

    def plain_size(self, stored: int) -> int | None:
        """How many bytes an object has of which so many are stored; None if none has.

        Examples
        --------
        >>> layout = Layout(header=24, overhead=16)
        >>> layout.plain_size(24 + 16), layout.plain_size(24 + 16 + BLOCK + 16 + 1)
        (0, 65537)
        >>> layout.plain_size(24 + 16 + BLOCK + 16) is None
        True
        """
        body = stored - self.header
        blocks, rest = divmod(body, BLOCK + self.overhead)
        if rest:
            blocks += 1
            if rest < self.overhead + (blocks > 1):  # only a first block may be empty
                return None
        return body - blocks * self.overhead if blocks > 0 else None

    def stored_at(self, index: int) -> int:
        """Where a block begins."""
        return self.header + index * (BLOCK + self.overhead)


class BlockTransformer(StreamTransformer):
    """Stores objects as a header and sealed blocks.

    Attributes
    ----------
    layout : Layout
    """

    ranges: ClassVar[bool] = True
    layout: ClassVar[Layout]

    @abstractmethod
    def start(self, key: str) -> tuple[bytes, Sealer]:
        """Make a header, and what seals the blocks that come after it."""

    @abstractmethod
    def resume(self, header: bytes, key: str) -> Sealer:
        """Make what opens the blocks after a header.

        Raises
        ------
        IntegrityError
            It is no header of ours; it may be shorter than one, too.
        """

    def encoder(self, key: str) -> Encoder:
        """Start an object."""
        return BlockEncoder(*self.start(key))

    def reader(self, raw: BinaryIO, key: str) -> BinaryIO:
        """Read an object; only blocks that are touched are read, and those are verified."""
        stored = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        sealer = self.resume(read_exactly(raw, self.layout.header), key)
        size = self.layout.plain_size(stored)
        if size is None:
            raise IntegrityError(
                f"the object {key!r} was cut off or added to, as its {stored} bytes end inside of "
                "a block: restore it from a copy, or delete it",
                location=key,
            )
        return io.BufferedReader(_BlockReader(raw, self.layout, sealer, size, key))

    def plain_size(self, stored: int) -> int | None:
        """How many bytes an object has of which so many are stored."""
        return self.layout.plain_size(stored)


class BlockEncoder:
    """Cuts a stream into blocks, and seals them; at most one is held back.

    Parameters
    ----------
    header : bytes
    sealer : Sealer
    """

    def __init__(self, header: bytes, sealer: Sealer) -> None:
        self._header = header
        self._sealer = sealer
        self._pending = bytearray()
        self._index = 0

    def update(self, data: Buffer, /) -> bytes:
        """Take in more; gives the blocks of which it is known that others follow."""
        view = memoryview(data)
        ready = [self._take_header()]
        while len(self._pending) + len(view) > BLOCK:
            missing = BLOCK - len(self._pending)
            if self._pending:
                self._pending += view[:missing]
                ready.append(self._seal(self._pending, last=False))
                self._pending = bytearray()
            else:
                ready.append(self._seal(view[:missing], last=False))
            view = view[missing:]
        self._pending += view
        return b"".join(ready)

    def finish(self) -> bytes:
        """Give the last block."""
        return self._take_header() + self._seal(self._pending, last=True)

    def _take_header(self) -> bytes:
        header, self._header = self._header, b""
        return header

    def _seal(self, data: Buffer, *, last: bool) -> bytes:
        sealed = self._sealer.seal(self._index, last, data)
        self._index += 1
        return sealed


class PagedReader(PositionedReader):
    """A raw reader over pages of fixed size, each of which is made of a part of another file.

    The last page that was read is kept. Before it says that the end is reached, the last page was
    read: whoever is told the end can rely on it.

    Parameters
    ----------
    raw : BinaryIO
        Closed with this reader.
    size : int
        Bytes of all pages.
    page_size : int
        Bytes of each page but the last, which has at least one, unless it is the only one.
    """

    def __init__(self, raw: BinaryIO, size: int, page_size: int) -> None:
        super().__init__()
        self._raw = raw
        self._size = size
        self._page_size = page_size
        self._last = max(0, size - 1) // page_size
        self._number = -1
        self._page = b""
        self._end_was_seen = False

    @abstractmethod
    def load(self, number: int) -> bytes:
        """Make a page; `IntegrityError` if that cannot be."""

    def end(self) -> int:
        """Tell the size."""
        return self._size

    def read_at(self, position: int, buffer: memoryview) -> int:
        """Read what is left of the page at the position."""
        piece = self._piece(position, len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def readall(self) -> bytes:
        """Read all that is left, page by page."""
        self._check_open()
        return gather(self._rest())

    def close(self) -> None:
        """Close both."""
        if not self.closed:
            self._raw.close()
        super().close()

    def _rest(self) -> Iterator[memoryview]:
        while piece := self._piece(self._position, self._page_size):
            yield piece
            self._position += len(piece)

    def _piece(self, position: int, count: int) -> memoryview:
        if position >= self._size:
            if not self._end_was_seen:
                self._turn_to(self._last)
            return memoryview(b"")
        number, start = divmod(position, self._page_size)
        return memoryview(self._turn_to(number))[start : start + count]

    def _turn_to(self, number: int) -> bytes:
        if number != self._number:
            self._page = self.load(number)
            self._number = number
            self._end_was_seen |= number == self._last
        return self._page


class _BlockReader(PagedReader):
    """Opens the blocks of an object."""

    def __init__(self, raw: BinaryIO, layout: Layout, sealer: Sealer, size: int, key: str) -> None:
        super().__init__(raw, size, BLOCK)
        self._layout = layout
        self._sealer = sealer
        self._key = key

    def load(self, number: int) -> bytes:
        self._raw.seek(self._layout.stored_at(number))
        stored = read_exactly(self._raw, BLOCK + self._layout.overhead)
        data = self._sealer.open(number, number == self._last, stored)
        if data is None:
            raise IntegrityError(
                f"block {number} (of {self._last + 1}) of the object {self._key!r} is damaged, or "
                "not in its place: restore the object from a copy, or delete it",
                location=self._key,
            )
        return data


def read_exactly(raw: BinaryIO, size: int) -> bytes:
    """Read so many bytes, fewer only at the end of the file."""
    first = raw.read(size)
    if len(first) == size or not first:
        return first
    pieces = [first]
    missing = size - len(first)
    while missing and (piece := raw.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
