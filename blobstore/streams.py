"""Sinks to write into and sources to read from: how bytes move without being held twice.

A sink takes `write(buffer)`, or lends `path()`: a temporary file that the writer fills by itself
and that the sink publishes afterwards. A source gives `open()`, `read_range()`, `read()` and
`path()`. Handlers see nothing else, so every format works over every store.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self

from blobstore.errors import (
    InvalidInputError,
    KeyNotFoundError,
    LostDraftError,
    from_os_error,
)
from blobstore.lending import LentFile, SinkTurn

if TYPE_CHECKING:
    from collections.abc import Callable

Buffer = bytes | bytearray | memoryview

CHUNK = 1 << 20
"""Bytes moved at a time where a stream is copied."""


def as_contiguous(data: Buffer) -> bytes | memoryview:
    """Show `data` as one run of bytes, without a copy where that can be.

    Parameters
    ----------
    data : bytes-like
        `bytes`, `bytearray`, `memoryview` of any shape, or what else has the buffer protocol.

    Raises
    ------
    InvalidInputError
        It is no buffer: a `str` has no bytes before it is encoded, an `int` would be a length.

    Examples
    --------
    >>> bytes(as_contiguous(memoryview(b"abcdef")[::2]))
    b'ace'
    """
    if type(data) is bytes:
        return data
    try:
        view = memoryview(data)
    except TypeError as exc:
        raise InvalidInputError(
            f"an object store keeps bytes, not {type(data).__name__}: encode it first, "
            "for instance text.encode()"
        ) from exc
    if view.ndim == 1 and view.format == "B" and view.contiguous:
        return view
    try:
        return view.cast("B")
    except (TypeError, ValueError):  # gaps, structured items, or no items at all
        return view.tobytes()


class Hasher(Protocol):
    """What `hashlib`, `blake3` and `xxhash` objects have in common."""

    def update(self, data: Buffer, /) -> object:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Return the value so far, in hexadecimal."""


class Sink(ABC):
    """One object being written: published as a whole on clean exit, or not at all.

    Use it as a context manager. Either call `write` as often as needed, or `path` once and fill
    that file; not both.

    Attributes
    ----------
    location : str
        Where the bytes are; valid after a clean exit.
    """

    location: str = ""

    @abstractmethod
    def write(self, data: Buffer, /) -> int:
        """Append bytes; they may be reused by the caller afterwards. Returns how many."""

    @abstractmethod
    def path(self) -> Path:
        """Lend a path in an existing folder at which no file exists yet; the caller makes it."""

    @abstractmethod
    def commit(self) -> None:
        """Publish what was written."""

    @abstractmethod
    def abort(self) -> None:
        """Leave nothing behind. Calling it again does nothing, nor does it after `commit`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.commit()
        except BaseException:
            self.abort()
            raise


class MemorySink(Sink):
    """A sink that ends in bytes, which are given to `publish`; for values that fit in memory.

    Parameters
    ----------
    publish : callable, optional
        Called with the whole content at commit; its result, if a string, becomes `location`.
    what : str
        Which object is written, for errors.
    """

    def __init__(
        self, publish: Callable[[bytes], str | None] | None = None, what: str = "memory"
    ) -> None:
        self._turn = SinkTurn(what)
        self._what = what
        self._chunks: list[bytes] = []
        self._lent: LentFile | None = None
        self._publish = publish
        self.content = b""

    def write(self, data: Buffer, /) -> int:
        """Append a copy of the bytes."""
        chunk = bytes(as_contiguous(data))
        self._turn.write()
        self._chunks.append(chunk)
        return len(chunk)

    def path(self) -> Path:
        """Lend a temporary file, read back at commit."""
        self._turn.lend()
        self._lent = LentFile(self._what)
        return self._lent.path

    def commit(self) -> None:
        """Gather the content and publish it."""
        self._turn.commit()
        chunks = self._chunks
        if self._lent is not None:
            with self._lent.open() as file:
                chunks = [file.read()]
        self.content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._forget()
        if self._publish is not None:
            self.location = self._publish(self.content) or self.location

    def abort(self) -> None:
        """Forget the content."""
        self._turn.abort()
        self._forget()

    def _forget(self) -> None:
        self._chunks = []
        if self._lent is not None:
            self._lent.remove()
            self._lent = None


class HashingSink(Sink):
    """Passes everything on to another sink, and counts and hashes it on the way.

    Parameters
    ----------
    inner : Sink
    hasher : Hasher
        Sees the stored bytes in order, also those that were written through `path`.

    Attributes
    ----------
    size : int
        Bytes seen; complete after commit.
    """

    def __init__(self, inner: Sink, hasher: Hasher) -> None:
        self._inner = inner
        self._hasher = hasher
        self._path: Path | None = None
        self.size = 0

    def write(self, data: Buffer, /) -> int:
        """Hash the bytes and hand them on."""
        view = as_contiguous(data)
        self._hasher.update(view)
        self.size += len(view)
        return self._inner.write(view)

    def path(self) -> Path:
        """Lend the inner sink's file, to be hashed at commit."""
        self._path = self._inner.path()
        return self._path

    def commit(self) -> None:
        """Hash a lent file, then publish."""
        if self._path is not None:
            try:
                self.size = hash_file(self._path, self._hasher)
            except FileNotFoundError as exc:
                raise LostDraftError(
                    f"the temporary file {self._path} was never made, or was removed while it was "
                    "written: try again"
                ) from exc
        self._inner.commit()
        self.location = self._inner.location

    def abort(self) -> None:
        """Leave nothing behind."""
        self._inner.abort()


def hash_file(path: Path, hasher: Hasher) -> int:
    """Feed a file to `hasher` in order; returns its size in bytes."""
    total = 0
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(view[:count])
            total += count
    return total


class Closeable:
    """Something to be closed, by hand or at the end of a ``with`` block."""

    def close(self) -> None:
        """Let go of files, connections and threads. Calling it again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class Source(Closeable, ABC):
    """Stored bytes, to be read in any way.

    Attributes
    ----------
    size : int
        In bytes.
    """

    size: int

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open for reading from the start; seekable, and to be closed by the caller."""

    @contextlib.contextmanager
    def one_pass(self) -> Iterator[BinaryIO]:
        """Lend a reader that goes over all bytes once, in order; it need not be able to seek.

        What it gives counts only after the block: a source that checks its bytes does so at the
        end of it. Until then they may be copied, but not decoded or handed out.
        """
        with self.open() as file:
            yield file

    def read(self) -> bytes:
        """Read all bytes."""
        with self.open() as file:
            return file.read()

    def read_range(self, start: int, stop: int) -> bytes:
        """Read bytes ``[start, stop)``, clipped at the end."""
        with self.open() as file:
            file.seek(start)
            return file.read(max(0, stop - start))

    @contextlib.contextmanager
    def path(self) -> Iterator[Path]:
        """Lend a local file with these bytes, to be read only; gone after the block."""
        spool = Path(tempfile.mkdtemp(prefix="blobstore-")) / "part"
        try:
            self._spool(spool)
            yield spool
        finally:
            _remove_spool(spool)

    def _spool(self, spool: Path) -> None:
        try:
            with self.open() as file, spool.open("wb") as out:
                copy_stream(file, out)
        except OSError as exc:
            raise from_os_error(exc, f"reading through the temporary file {spool}") from exc


class BytesSource(Source):
    """A source over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def open(self) -> BinaryIO:
        """Open the bytes as a file."""
        return io.BytesIO(self._data)

    def read(self) -> bytes:
        """Return the bytes themselves."""
        return self._data

    def read_range(self, start: int, stop: int) -> bytes:
        """Slice the bytes."""
        return self._data[start : max(start, stop)]


class FileSource(Source):
    """A source over a local file, held open: it stays readable when the file is unlinked.

    Parameters
    ----------
    path : Path
    file : BinaryIO, optional
        The same file, opened for reading without a buffer; taken over and closed by the source.
    """

    def __init__(self, path: Path, file: io.FileIO | None = None) -> None:
        self._path = path
        self._file = file or io.FileIO(path, "r")
        self.size = os.fstat(self._file.fileno()).st_size

    def open(self) -> BinaryIO:
        """Open a reader of its own over the file that is held."""
        return io.BufferedReader(_DescriptorReader(self._file.fileno(), self.size, self._path))

    def read(self) -> bytes:
        """Read the whole file."""
        return self._pread(self.size, 0)

    def read_range(self, start: int, stop: int) -> bytes:
        """Read part of the file."""
        stop = min(stop, self.size)
        return self._pread(stop - start, start) if stop > start else b""

    def _pread(self, size: int, offset: int) -> bytes:
        try:
            return _pread_all(self._file.fileno(), size, offset)
        except OSError as exc:
            raise from_os_error(exc, f"reading {self._path}") from exc

    @contextlib.contextmanager
    def path(self) -> Iterator[Path]:
        """Lend the file, on Linux by a name that survives its deletion.

        Elsewhere a block that fails because the file was unlinked ends in `KeyNotFoundError`.
        """
        held = Path(f"/proc/self/fd/{self._file.fileno()}")
        try:
            yield held if held.exists() else self._path
        except Exception as exc:
            if held.exists() or self._path.exists():
                raise
            raise KeyNotFoundError(
                f"{self._path} was removed while it was read", location=self._path.name
            ) from exc

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PositionedReader(io.RawIOBase):
    """A raw reader that keeps its position itself; subclasses give `end` and `read_at`.

    What cannot be is refused with `ValueError`, as by other files: to read when it is closed, or to
    move to before the start. Moving beyond the end can be: there is nothing to read there.
    """

    def __init__(self) -> None:
        self._position = 0

    @abstractmethod
    def end(self) -> int:
        """Tell the position behind the last byte."""

    @abstractmethod
    def read_at(self, position: int, buffer: memoryview) -> int:
        """Read into `buffer`; returns how many bytes, 0 only at the end."""

    def readinto(self, buffer: Buffer) -> int:  # type: ignore[override]
        """Read as much as there is room for, or less."""
        self._check_open()
        count = self.read_at(self._position, memoryview(buffer).cast("B"))
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is read."""
        self._check_open()
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            offset += self.end()
        elif whence != io.SEEK_SET:
            raise ValueError(f"whence is 0, 1 or 2, not {whence!r}")
        if offset < 0:
            raise ValueError(f"cannot seek to {offset}: a position is not negative")
        self._position = offset
        return offset

    def tell(self) -> int:
        """Give the position."""
        self._check_open()
        return self._position

    def readable(self) -> bool:
        """Say yes."""
        self._check_open()
        return True

    def seekable(self) -> bool:
        """Say yes."""
        self._check_open()
        return True

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


class RangeReader(PositionedReader):
    """A raw reader that is given its bytes by range; subclasses give `end` and `read_range`."""

    @abstractmethod
    def read_range(self, start: int, stop: int) -> bytes:
        """Read bytes ``[start, stop)``, clipped at the end."""

    def read_at(self, position: int, buffer: memoryview) -> int:
        """Read a range as long as the buffer."""
        data = self.read_range(position, position + len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Read the rest in one piece."""
        self._check_open()
        data = self.read_range(self._position, self.end())
        self._position += len(data)
        return data


class WrappedReader(io.RawIOBase):
    """A raw reader over another one, which it closes with itself; subclasses give `readinto`."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, as in the raw reader."""
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """Give the position in the raw reader."""
        return self._raw.tell()

    def close(self) -> None:
        """Close both."""
        if not self.closed:
            self._raw.close()
        super().close()


class _DescriptorReader(PositionedReader):
    """Reads a descriptor by position, so that many readers share it without a common offset."""

    def __init__(self, descriptor: int, size: int, path: Path) -> None:
        super().__init__()
        # A duplicate: the reader may outlive the source that lent the descriptor.
        self._descriptor = os.dup(descriptor)
        self._size = size
        self.name = str(path)

    def end(self) -> int:
        return self._size

    def read_at(self, position: int, buffer: memoryview) -> int:
        try:
            return os.preadv(self._descriptor, [buffer], position)
        except OSError as exc:
            raise from_os_error(exc, f"reading {self.name}") from exc

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _pread_all(descriptor: int, size: int, offset: int) -> bytes:
    """Read exactly `size` bytes, or fewer at the end of the file."""
    first = os.pread(descriptor, size, offset)
    if len(first) == size or not first:
        return first
    chunks = [first]  # Linux gives at most 2 GiB a call
    done = len(first)
    while done < size and (chunk := os.pread(descriptor, size - done, offset + done)):
        chunks.append(chunk)
        done += len(chunk)
    return b"".join(chunks)


def copy_stream(source: BinaryIO, write_to: BinaryIO | Sink) -> int:
    """Copy what is left of `source`, a chunk at a time; returns the bytes copied."""
    total = 0
    while chunk := source.read(CHUNK):
        write_to.write(chunk)
        total += len(chunk)
    return total


def _remove_spool(spool: Path) -> None:
    spool.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        spool.parent.rmdir()
