"""Gathering the bytes of a new member of a zip file, until its size and checksum are known."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from blobstore.backends.blob.zip_drafts import Drafts, discard
from blobstore.backends.blob.zip_fields import DEFLATED, STORED
from blobstore.backends.blob.zip_io import Extent, Payload, write_at
from blobstore.backends.blob.zip_unpackers import RAW_DEFLATE
from blobstore.errors import InvalidInputError, from_os_error
from blobstore.lending import SinkTurn
from blobstore.streams import CHUNK, Buffer, Sink, as_contiguous

IN_MEMORY = 1 << 20
"""Bytes of an object that are gathered in memory, before they go to a temporary file."""

_BUFFER = 1 << 17


class Packed(NamedTuple):
    """An object that is ready to be appended."""

    payload: Payload
    method: int
    crc: int
    stored: int
    size: int


def pack(data: bytes | memoryview, level: int | None) -> Packed:
    """Make a whole object ready; it stays as it is if it does not shrink.

    Parameters
    ----------
    data : bytes or memoryview
    level : int or None
        Of the compression; None for none.
    """
    size, crc = len(data), zlib.crc32(data)
    if level is not None:
        packer = zlib.compressobj(level, zlib.DEFLATED, RAW_DEFLATE)
        packed = packer.compress(data) + packer.flush()
        if len(packed) < size:
            return Packed(packed, DEFLATED, crc, len(packed), size)
    return Packed(data, STORED, crc, size, size)


class ZipSink(Sink):
    """Gathers an object in memory or, beyond a MiB, in a temporary file; then appends it.

    Parameters
    ----------
    key : str
    drafts : Drafts
    level : int or None
        Of the compression; None for none.
    size_hint : int or None
    publish : callable
        Appends the object.
    prepare : callable
        Makes the folder of the temporary files.
    """

    def __init__(
        self,
        key: str,
        drafts: Drafts,
        level: int | None,
        size_hint: int | None,
        publish: Callable[[Packed], None],
        prepare: Callable[[], None],
    ) -> None:
        self.location = key
        self._drafts = drafts
        self._publish = publish
        self._prepare = prepare
        self._packer = (
            None if level is None else zlib.compressobj(level, zlib.DEFLATED, RAW_DEFLATE)
        )
        self._memory = bytearray()
        self._keep = IN_MEMORY if size_hint is None or size_hint <= IN_MEMORY else 0
        self._spool: BinaryIO | None = None
        self._lent: str | None = None
        self._crc = self._size = self._stored = 0
        self._turn = SinkTurn(key)

    def write(self, data: Buffer, /) -> int:
        """Append bytes."""
        view = as_contiguous(data)
        self._turn.write()
        self._take(view)
        return len(view)

    def _take(self, view: bytes | memoryview) -> None:
        self._crc = zlib.crc32(view, self._crc)
        self._size += len(view)
        self._keep_packed(view if self._packer is None else self._packer.compress(view))

    def path(self) -> Path:
        """Lend a path beside the zip file."""
        self._turn.lend()
        self._prepare()
        self._lent = self._drafts.new(self.location)
        return Path(self._lent)

    def commit(self) -> None:
        """Append what was gathered."""
        self._turn.commit()
        if self._lent is not None:
            self._commit_lent(self._lent)
        else:
            self._commit_written()
        self.abort()

    def abort(self) -> None:
        """Forget it."""
        self._turn.abort()
        self._memory = bytearray()
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        if self._lent is not None:
            try:
                discard(self._lent)
            except OSError as exc:
                raise from_os_error(exc, f"removing {self._lent}") from exc

    def _commit_written(self) -> None:
        if self._packer is not None:
            self._keep_packed(self._packer.flush())
        payload: Payload
        if self._spool is None:
            payload = memoryview(self._memory)
        else:
            self._flush()
            payload = Extent(self._spool.fileno(), 0, self._stored)
        method = STORED if self._packer is None else DEFLATED
        self._publish(Packed(payload, method, self._crc, self._stored, self._size))

    def _commit_lent(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise InvalidInputError(
                f"nothing was written to the path that was lent for {self.location!r}",
                location=self.location,
            ) from exc
        except OSError as exc:
            raise from_os_error(exc, f"reading {path}", location=self.location) from exc
        try:
            self._publish_file(fd, path)
        finally:
            os.close(fd)

    def _publish_file(self, fd: int, path: str) -> None:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidInputError(
                f"what was written to the path that was lent for {self.location!r} is no file",
                location=self.location,
            )
        try:
            while chunk := os.pread(fd, CHUNK, self._size):
                if self._packer is not None:
                    self._take(chunk)
                else:  # it lies in a file already
                    self._crc = zlib.crc32(chunk, self._crc)
                    self._size += len(chunk)
        except OSError as exc:
            raise from_os_error(exc, f"reading {path}", location=self.location) from exc
        if self._packer is not None:
            self._commit_written()
        else:
            whole = Extent(fd, 0, self._size)
            self._publish(Packed(whole, STORED, self._crc, self._size, self._size))

    def _keep_packed(self, data: bytes | memoryview) -> None:
        if len(self._memory) + len(data) <= self._keep:
            self._memory += data
            self._stored += len(data)
        else:
            self._flush(data)
            self._keep = _BUFFER

    def _flush(self, data: bytes | memoryview = b"") -> None:
        """Move what is in memory, and `data`, to the temporary file."""
        memory, self._memory = self._memory, bytearray()
        try:
            if self._spool is None:
                self._prepare()
                self._spool = self._drafts.spool()
            at = self._stored - len(memory)
            write_at(self._spool.fileno(), at, memory, data)
            self._stored += len(data)
        except OSError as exc:
            raise from_os_error(
                exc, f"writing a temporary file in {self._drafts.folder}", location=self.location
            ) from exc
