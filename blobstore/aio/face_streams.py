"""Readers and sinks whose calls are awaited, over those of a store without ``await``."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Iterator
from typing import BinaryIO

from blobstore.aio.store import AsyncReader, AsyncSink, finished
from blobstore.aio.threads import Threads, stop_if_cancelled
from blobstore.errors import InvalidInputError
from blobstore.protocols import ObjectStore
from blobstore.streams import CHUNK, Buffer, Sink, as_contiguous


class ThreadReader(AsyncReader):
    """An open file that is read in worker threads; taken over.

    Parameters
    ----------
    threads : Threads
    file : BinaryIO
        At its start.
    """

    def __init__(self, threads: Threads, file: BinaryIO) -> None:
        self._threads = threads
        self._file = file
        self._position = 0
        self._turn = _Turn("reader")

    async def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, fewer only at the end; all that is left if it is negative."""

        def work() -> bytes:
            data = self._file.read(size)
            self._position += len(data)
            return data

        with self._turn.taken():
            return await self._threads.run(work, reads=True)

    async def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a position, and return it."""

        def work() -> int:
            self._position = self._file.seek(offset, whence)
            return self._position

        with self._turn.taken():
            return await self._threads.run(work, reads=True)

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    async def close(self) -> None:
        """Close the file; its store may be closed already."""
        with self._turn.taken():
            await self._threads.run(self._file.close, last=True)


class ThreadSink(AsyncSink):
    """A sink that is written in worker threads; taken over.

    A write or commit that is cancelled comes to its end first. Then the sink is aborted, unless
    what it holds was published.
    """

    def __init__(self, threads: Threads, sink: Sink) -> None:
        self._threads = threads
        self._sink = sink
        self._open = True
        self._turn = _Turn("writer")

    async def write(self, data: Buffer, /) -> int:
        """Append bytes; many of them piece by piece, so that a cancellation is heard soon."""
        try:
            with self._turn.taken():
                self._check_open()
                return await self._threads.run(lambda: write_in_pieces(self._sink, data))
        except asyncio.CancelledError as exc:
            await self._abort_after(exc)
            raise

    async def commit(self) -> None:
        """Publish what was written."""

        def publish() -> None:
            self._sink.commit()
            self.location = self._sink.location
            self._open = False

        try:
            with self._turn.taken():
                self._check_open()
                await self._threads.run(publish)
        except asyncio.CancelledError as exc:
            await self._abort_after(exc)
            raise

    async def abort(self) -> None:
        """Leave nothing behind; its store may be closed already."""
        with self._turn.taken():
            if self._open:
                self._open = False
                await self._threads.run(self._sink.abort, last=True)

    def _check_open(self) -> None:
        if not self._open:
            raise finished()


class _Turn:
    """Sees that the calls of one reader or sink come one after the other."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_taken = False

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        if self._is_taken:
            raise InvalidInputError(
                f"this {self._what} is in use: await its calls one after the other, "
                f"or give each task a {self._what} of its own"
            )
        self._is_taken = True
        try:
            yield
        finally:
            self._is_taken = False


def put_in_pieces(store: ObjectStore, key: str, data: Buffer) -> None:
    """Write an object with an ear for a cancellation: until it is published, nothing is left."""
    with store.writer(key, size_of(data)) as sink:
        write_in_pieces(sink, data)
        stop_if_cancelled()


def write_in_pieces(sink: Sink, data: Buffer) -> int:
    """Write to a sink with an ear for a cancellation."""
    view = memoryview(as_contiguous(data))
    if len(view) <= CHUNK:
        return sink.write(data)
    for start in range(0, len(view), CHUNK):
        stop_if_cancelled()
        sink.write(view[start : start + CHUNK])
    return len(view)


def size_of(data: object) -> int:
    """How many bytes a buffer has; 0 if it is none."""
    try:
        with memoryview(data) as view:  # type: ignore[arg-type]
            return view.nbytes
    except TypeError:
        return 0
