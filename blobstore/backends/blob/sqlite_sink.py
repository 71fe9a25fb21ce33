"""Writing an object of SQLite piece by piece: gathered outside, stored in one transaction."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from blobstore.backends.blob.descriptors import make_folders, read_at, write_all
from blobstore.backends.blob.sqlite_file import SqliteFile, remove_lent
from blobstore.errors import InvalidInputError, StorageError, from_os_error
from blobstore.lending import SinkTurn
from blobstore.streams import Buffer, Sink, as_contiguous

_IN_MEMORY = 1 << 20
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,16}\Z")


class Content(Protocol):
    """Bytes to be stored, which can be gone through again."""

    size: int

    def pieces(self, length: int) -> Iterator[Buffer]:
        """Give all bytes in order, `length` at a time; the next piece may reuse the last one."""


class BufferContent:
    """Bytes in memory."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = data
        self.size = len(data)

    def pieces(self, length: int) -> Iterator[Buffer]:
        """Slice without copying."""
        view = memoryview(self._data)
        return (view[start : start + length] for start in range(0, self.size, length))


class FileContent:
    """Bytes in an open file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def pieces(self, length: int) -> Iterator[Buffer]:
        """Read piece after piece, by position: a forked child may share the descriptor."""
        for start in range(0, self.size, length):
            stop = min(start + length, self.size)
            try:
                piece = read_at(self._descriptor, start, stop)
            except OSError as exc:
                raise from_os_error(exc, "reading a temporary file") from exc
            if len(piece) != stop - start:
                raise StorageError("the file to be stored was cut short meanwhile: try again")
            yield piece


class SqliteSink(Sink):
    """Gathers an object in memory, or in a temporary file once it is large, or lends one.

    No lock is held until `commit`. The temporary file has no name, so nothing is left of it when
    this process is killed; one that was lent is among the `leftovers` then.

    Parameters
    ----------
    file : SqliteFile
        Whose folder has the temporary files.
    publish : callable
        Stores the content, all or nothing.
    key : str
    """

    def __init__(self, file: SqliteFile, publish: Callable[[Content], object], key: str) -> None:
        self._file = file
        self._publish = publish
        self._buffer = bytearray()
        self._spool: BinaryIO | None = None
        self._lent: Path | None = None
        self._turn = SinkTurn(key)
        self.location = key

    def write(self, data: Buffer, /) -> int:
        """Append bytes."""
        content = as_contiguous(data)
        self._turn.write()
        if self._spool is None and len(self._buffer) + len(content) <= _IN_MEMORY:
            self._buffer += content
            return len(content)
        with self._translated():
            if self._spool is None:
                make_folders(self._file.folder, fsync=False)
                self._spool = tempfile.TemporaryFile(dir=self._file.folder, buffering=0)  # noqa: SIM115
                write_all(self._spool.fileno(), bytes(self._buffer))
                self._buffer.clear()
            write_all(self._spool.fileno(), content)
        return len(content)

    def path(self) -> Path:
        """Lend a name beside the database, which ends like the key."""
        self._turn.lend()
        extension = _EXTENSION.search(self.location)
        with self._translated():
            make_folders(self._file.folder, fsync=False)
        self._lent = Path(self._file.new_part_name(extension.group() if extension else ""))
        return self._lent

    def commit(self) -> None:
        """Store what was gathered."""
        self._turn.commit()
        if self._lent is not None:
            self._commit_lent(self._lent)
        elif self._spool is not None:
            self._publish(FileContent(self._spool.fileno()))
        else:
            self._publish(BufferContent(bytes(self._buffer)))
        self.abort()

    def abort(self) -> None:
        """Close and remove what was gathered."""
        self._turn.abort()
        self._buffer.clear()
        if self._spool is not None:
            self._spool.close()
        if self._lent is not None:
            with self._translated():
                remove_lent(self._lent)

    def _commit_lent(self, lent: Path) -> None:
        descriptor = -1
        try:
            with self._translated():
                descriptor = os.open(lent, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EISDIR, "what was written is not a file", str(lent))
            self._publish(FileContent(descriptor))
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as exc:
            if self._lent is None:
                raise from_os_error(exc, f"writing {self.location!r}") from exc
            raise InvalidInputError(
                f"nothing was written to the path that was lent for {self.location!r}",
                location=self.location,
            ) from exc
        except OSError as exc:
            what = f"writing {self.location!r} into a temporary file"
            raise from_os_error(exc, what, location=self.location) from exc
