"""Descriptors that live as long as somebody reads them, and reading and writing by position."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from blobstore.backends.blob.descriptors import read_at
from blobstore.errors import IncompatibleStoreError
from blobstore.streams import CHUNK

Identity = tuple[int, int]

_OPEN = os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe would wait for its other end
_CANNOT_COPY_INSIDE = {
    errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF,
}  # fmt: skip


class Handle:
    """A descriptor that is closed once nobody refers to it any more.

    A store that is closed, or goes on to another file, just forgets its handle: threads that are
    reading, open files and sources keep it, and cannot meet a number that was given out anew.

    Attributes
    ----------
    fd : int
    identity : tuple of int
        Device and inode.
    """

    __slots__ = ("fd", "identity")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        found = os.fstat(fd)
        self.identity: Identity = (found.st_dev, found.st_ino)

    def __del__(self) -> None:
        os.close(self.fd)

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes ``[start, stop)``, fewer at the end of the file."""
        return read_at(self.fd, start, stop)

    def size(self) -> int:
        """Of the file, now."""
        return os.fstat(self.fd).st_size


class Extent(NamedTuple):
    """A run of bytes in an open file."""

    fd: int
    start: int
    size: int


Payload = bytes | memoryview | Extent


def open_handle(path: str, flags: int) -> Handle:
    """Open a plain file.

    Raises
    ------
    IncompatibleStoreError
        Something else is there.
    OSError
    """
    try:
        handle = Handle(os.open(path, flags | _OPEN, 0o666))
    except OSError as exc:
        if exc.errno in (errno.EISDIR, errno.ENXIO):
            raise no_file(path) from exc
        raise
    if not stat.S_ISREG(os.fstat(handle.fd).st_mode):
        raise no_file(path)
    return handle


def no_file(path: str) -> IncompatibleStoreError:
    """The error of a path where no zip file can be."""
    return IncompatibleStoreError(
        f"{path} is no plain file, so it cannot be a zip file: choose another path"
    )


def payload_size(payload: Payload) -> int:
    """How many bytes are to be written."""
    return payload.size if isinstance(payload, Extent) else len(payload)


def write_at(fd: int, at: int, header: bytes | bytearray, payload: Payload) -> None:
    """Write a header and what follows it, in order, so that what is there is always a beginning."""
    if isinstance(payload, Extent):
        _write_all(fd, at, [header])
        copy_extent(payload, fd, at + len(header))
    else:
        _write_all(fd, at, [header, payload])


def _write_all(fd: int, at: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
    """The kernel takes at most 2 GiB at a time, and less at a limit."""
    left = [memoryview(buffer) for buffer in buffers if len(buffer)]
    while left:
        done = os.pwritev(fd, left, at)
        at += done
        while left and done >= len(left[0]):
            done -= len(left.pop(0))
        if left:
            left[0] = left[0][done:]


def copy_extent(extent: Extent, fd: int, at: int) -> None:
    """Copy bytes between files, inside the kernel if it can.

    Raises
    ------
    EOFError
        The source ends too early.
    """
    source, start, left = extent
    inside = getattr(os, "copy_file_range", None)
    while left:
        count = 0
        if inside is not None:
            try:
                count = inside(source, fd, left, start, at)
            except OSError as exc:
                if exc.errno not in _CANNOT_COPY_INSIDE:
                    raise
                inside = None
        if not count:
            chunk = os.pread(source, min(left, CHUNK), start)
            if not chunk:
                raise EOFError("the source is shorter than it was")
            _write_all(fd, at, [chunk])
            count = len(chunk)
        start, at, left = start + count, at + count, left - count
