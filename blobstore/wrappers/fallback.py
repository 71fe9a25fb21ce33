"""Readers and sources that go on to another store as long as they have given nothing.

Some stores find out only while they are read that they cannot give an object: it is corrupt, or
the connection breaks. What has given bytes never changes over, because the other store may hold
another version: then the error is raised.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from blobstore.errors import BlobStoreError
from blobstore.streams import Source, WrappedReader

T = TypeVar("T")

_ERRORS = (BlobStoreError, OSError)


class _Given:
    """Whether anything was given of an object; shared by a source and its readers.

    Until then the lock lets one thread at a time try, so that all get the same object.
    """

    def __init__(self) -> None:
        self.any = False
        self._lock = threading.RLock()

    def attempt(self, act: Callable[[], T], go_on: Callable[[], bool]) -> T:
        """Do something, and again after `go_on` as long as that fails and nothing was given."""
        with contextlib.nullcontext() if self.any else self._lock:
            while True:
                try:
                    return act()
                except _ERRORS:
                    if self.any or not go_on():
                        raise


def fallback_reader(files: Iterator[BinaryIO], given: _Given | None = None) -> BinaryIO:
    """Read from the first of `files` that can give the beginning of what is asked for.

    Parameters
    ----------
    files : iterator of BinaryIO
        Asked for the next one only when it is needed; what the first raises is raised here.
    """
    return io.BufferedReader(_FallbackReader(next(files), files, given or _Given()), 1 << 16)


class _FallbackReader(WrappedReader):
    def __init__(self, first: BinaryIO, others: Iterator[BinaryIO], given: _Given) -> None:
        super().__init__(first)
        self._others = others
        self._given = given
        self._position = 0
        self._size: int | None = None  # once it was told

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._attempt(lambda file: self._gave(file.read(len(buffer))))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def readall(self) -> bytes:
        return self._attempt(lambda file: self._gave(file.read()))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = self._attempt(lambda file: file.seek(offset, whence))
        if whence == io.SEEK_END:
            self._size = self._position - offset
        return self._position

    def tell(self) -> int:
        return self._position

    def _gave(self, chunk: bytes) -> bytes:
        self._given.any |= bool(chunk)
        self._position += len(chunk)
        return chunk

    def _attempt(self, act: Callable[[BinaryIO], T]) -> T:
        return self._given.attempt(lambda: act(self._raw), self._go_on)

    def _go_on(self) -> bool:
        """Change over to the next file that could be the same object; False if there is none."""
        with contextlib.suppress(*_ERRORS):  # the others end by saying why there are no more
            return any(self._change_over(following) for following in self._others)
        return False

    def _change_over(self, following: BinaryIO) -> bool:
        try:
            with contextlib.suppress(*_ERRORS):
                if self._size in (None, following.seek(0, io.SEEK_END)):
                    following.seek(self._position)
                    self._raw, following = following, self._raw
                    return True
            return False
        finally:
            with contextlib.suppress(*_ERRORS):
                following.close()


class FallbackSource(Source):
    """A source over the first of several that can give anything.

    Parameters
    ----------
    sources : iterator of Source
        Asked for the next one only when it is needed; taken over. What the first raises is raised
        here.
    """

    def __init__(self, sources: Iterator[Source]) -> None:
        self._sources = sources
        self._given = _Given()
        self._source = next(sources)
        self.size = self._source.size

    def open(self) -> BinaryIO:
        """Open for reading from the start."""
        return fallback_reader(self._readers(), self._given)

    def read(self) -> bytes:
        """Read all bytes."""
        return self._attempt(lambda source: self._gave(source.read()))

    def read_range(self, start: int, stop: int) -> bytes:
        """Read bytes ``[start, stop)``."""
        return self._attempt(lambda source: self._gave(source.read_range(start, stop)))

    @contextlib.contextmanager
    def path(self) -> Iterator[Path]:
        """Lend a local file with these bytes."""
        with contextlib.ExitStack() as stack:
            yield self._attempt(lambda source: self._lent(stack.enter_context(source.path())))

    def close(self) -> None:
        """Close the source that is in use."""
        self._source.close()

    def _readers(self) -> Iterator[BinaryIO]:
        used: Source | None = None
        while self._source is not used or self._go_on():
            file = self._attempt(lambda source: source.open())
            used = self._source
            yield file

    def _gave(self, data: bytes) -> bytes:
        self._given.any |= bool(data)
        return data

    def _lent(self, path: Path) -> Path:
        self._given.any = True
        return path

    def _attempt(self, act: Callable[[Source], T]) -> T:
        return self._given.attempt(lambda: act(self._source), self._go_on)

    def _go_on(self) -> bool:
        with contextlib.suppress(StopIteration, *_ERRORS):
            following = next(self._sources)
            failed, self._source, self.size = self._source, following, following.size
            with contextlib.suppress(*_ERRORS):
                failed.close()
            return True
        return False
