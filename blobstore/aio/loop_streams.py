"""Files, sources and sinks without ``await``, over readers and sinks that are awaited."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import BinaryIO

from blobstore.aio.loop_hop import LoopHop
from blobstore.aio.store import AsyncReader, AsyncSink
from blobstore.lending import LentFile, SinkTurn
from blobstore.streams import CHUNK, Buffer, RangeReader, Sink, Source, as_contiguous

_READ_AHEAD = 128 << 10


class _LoopReader(io.RawIOBase):
    """A file over an `AsyncReader`."""

    def __init__(self, hop: LoopHop, reader: AsyncReader) -> None:
        self._hop = hop
        self._reader = reader

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._hop.wait(lambda: self._reader.read(len(buffer)), reads=True)
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._hop.wait(self._reader.read, reads=True)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._hop.wait(lambda: self._reader.seek(offset, whence), reads=True)

    def tell(self) -> int:
        return self._reader.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._hop.dismiss(self._reader.close)
        super().close()


class _LoopSource(Source):
    """A source over one `AsyncReader`, which is held until the source and its files are closed."""

    def __init__(self, hop: LoopHop, reader: AsyncReader) -> None:
        self._hop = hop
        self._reader = reader
        self._lock = threading.Lock()
        self._users: set[int] = {id(self)}
        self.size = hop.wait(lambda: reader.seek(0, io.SEEK_END), reads=True)

    def open(self) -> BinaryIO:
        return io.BufferedReader(_SourceReader(self), _READ_AHEAD)

    def read(self) -> bytes:
        return self.read_range(0, self.size)

    def read_range(self, start: int, stop: int) -> bytes:
        async def read() -> bytes:
            await self._reader.seek(start)
            chunks = []
            left = min(stop, self.size) - start
            while left > 0 and (chunk := await self._reader.read(left)):
                chunks.append(chunk)
                left -= len(chunk)
            return b"".join(chunks)

        with self._lock:
            return self._hop.wait(read, reads=True)

    def close(self) -> None:
        self.release(id(self))

    def acquire(self, user: int) -> None:
        self._users.add(user)

    def release(self, user: int) -> None:
        # No lock: this may run in a collection of garbage, in the middle of a read.
        self._users.discard(user)
        if not self._users:
            self._hop.dismiss(self._reader.close)


class _SourceReader(RangeReader):
    """A file over a source that is shared, with a position of its own."""

    def __init__(self, source: _LoopSource) -> None:
        super().__init__()
        self._source = source
        source.acquire(id(self))

    def end(self) -> int:
        return self._source.size

    def read_range(self, start: int, stop: int) -> bytes:
        return self._source.read_range(start, stop)

    def close(self) -> None:
        if not self.closed:
            self._source.release(id(self))
        super().close()


class _LoopSink(Sink):
    """A sink over an `AsyncSink`; a lent path is read at the end."""

    def __init__(self, hop: LoopHop, sink: AsyncSink, key: str) -> None:
        self._hop = hop
        self._sink = sink
        self._key = key
        self._turn = SinkTurn(key)
        self._lent: LentFile | None = None

    def write(self, data: Buffer, /) -> int:
        view = as_contiguous(data)
        self._turn.write()
        return self._write(view)

    def path(self) -> Path:
        self._turn.lend()
        self._lent = LentFile(self._key)
        return self._lent.path

    def commit(self) -> None:
        self._turn.commit()
        if self._lent is not None:
            with self._lent.open() as file:
                while chunk := file.read(CHUNK):
                    self._write(chunk)
        self._hop.wait(self._sink.commit)
        self.location = self._sink.location
        self._forget()

    def abort(self) -> None:
        self._turn.abort()
        self._forget()
        self._hop.wait(self._sink.abort)

    def _write(self, data: Buffer) -> int:
        return self._hop.wait(lambda: self._sink.write(data))

    def _forget(self) -> None:
        if self._lent is not None:
            self._lent.remove()
            self._lent = None


def open_file(hop: LoopHop, reader: AsyncReader) -> BinaryIO:
    """Make a file of a reader, which it takes over."""
    return io.BufferedReader(_LoopReader(hop, reader), _READ_AHEAD)


def hold(hop: LoopHop, reader: AsyncReader) -> Source:
    """Make a source of a reader, which it takes over."""
    return _LoopSource(hop, reader)


def sink_over(hop: LoopHop, sink: AsyncSink, key: str) -> Sink:
    """Make a sink over another one, which it takes over."""
    return _LoopSink(hop, sink, key)
