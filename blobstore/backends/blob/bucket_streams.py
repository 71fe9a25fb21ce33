"""Reading an object of a bucket by ranges, several at once; and writing one in parts."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from blobstore.backends.blob.bucket_client import WRITER, BucketClient, Version
from blobstore.backends.blob.bucket_errors import ConditionRefusedError
from blobstore.errors import (
    BlobStoreError,
    InvalidInputError,
    KeyNotFoundError,
    StorageError,
    from_os_error,
)
from blobstore.keys import random_id
from blobstore.lending import LentFile, SinkTurn
from blobstore.streams import CHUNK, Buffer, PositionedReader, Sink, Source, as_contiguous

logger = logging.getLogger(__name__)

T = TypeVar("T")

_AHEAD = 8 << 20
_MAX_PARTS = 10_000


class Ranges:
    """How one store reads large objects.

    Parameters
    ----------
    client : BucketClient
    part_size : int
        Bytes of one request.
    workers : int
        Requests at once.
    """

    def __init__(self, client: BucketClient, part_size: int, workers: int) -> None:
        self.client = client
        self.part_size = part_size
        self.workers = workers

    def read(self, version: Version, start: int, stop: int) -> bytes:
        """Read bytes ``[start, stop)`` of a version, all of which it has.

        Raises
        ------
        KeyNotFoundError
            That version is gone.
        """
        if stop - start < 2 * self.part_size:
            return bytes(self._part(version, start, stop, stop - start)) if start < stop else b""
        return b"".join(self.map(version, start, stop, lambda _, part: part))

    def map(
        self, version: Version, start: int, stop: int, work: Callable[[int, memoryview], T]
    ) -> Iterator[T]:
        """Give the position and the bytes of each part to `work`; its results in order."""
        load = min(stop - start, self.part_size * self.workers)

        def one(at: int) -> T:
            return work(at, self._part(version, at, min(at + self.part_size, stop), load))

        return in_parallel(one, range(start, stop, self.part_size), self.workers)

    def _part(self, version: Version, start: int, stop: int, load: int) -> memoryview:
        wanted = version.of(start, stop)
        try:
            found, data = self.client.get_part(version.key, version.name, wanted, load)
        except ConditionRefusedError as exc:
            raise _gone(version) from exc
        if len(data) != stop - start or found.etag != version.etag:
            raise _gone(version)
        return data


def in_parallel(work: Callable[[int], T], items: range, workers: int) -> Iterator[T]:
    """Call `work` with each item in a few threads, which end with the call; results in order."""
    pool = ThreadPoolExecutor(min(workers, len(items)) or 1, thread_name_prefix="blobstore-bucket")
    with pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class VersionReader(PositionedReader):
    """Reads one version of an object; further ahead the longer it is read in order.

    Parameters
    ----------
    ranges : Ranges
    version : Version
    head : memoryview
        Its first bytes, as far as they were read already.
    """

    def __init__(self, ranges: Ranges, version: Version, head: memoryview) -> None:
        super().__init__()
        self._ranges = ranges
        self._version = version
        self._block = head
        self._block_start = 0
        self._ahead = CHUNK
        self.name = version.key

    def end(self) -> int:
        """Tell the size of that version."""
        return self._version.size

    def read_at(self, position: int, buffer: memoryview) -> int:
        """Read from the block at hand, or make a request."""
        size = self._version.size
        if position >= size or not buffer:
            return 0
        offset = position - self._block_start
        if not 0 <= offset < len(self._block):
            if len(buffer) >= _AHEAD:
                data = self._ranges.read(self._version, position, min(position + len(buffer), size))
                buffer[: len(data)] = data
                return len(data)
            self._fetch(position, len(buffer))
            offset = 0
        piece = self._block[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def readall(self) -> bytes:
        """Read the rest, several ranges at once."""
        self._check_open()
        data = self._ranges.read(self._version, min(self._position, self.end()), self.end())
        self._position += len(data)
        return data

    def close(self) -> None:
        """Let go of the block."""
        self._block = memoryview(b"")
        super().close()

    def _fetch(self, position: int, wanted: int) -> None:
        in_order = position == self._block_start + len(self._block)
        self._ahead = min(2 * self._ahead, _AHEAD) if in_order else CHUNK // 4
        stop = min(position + max(wanted, self._ahead), self._version.size)
        self._block = memoryview(self._ranges.read(self._version, position, stop))
        self._block_start = position


class BucketSource(Source):
    """One version of a large object; what was put in its place is never mixed into it.

    Parameters
    ----------
    ranges : Ranges
    version : Version
    head : memoryview
        Its first bytes.
    """

    def __init__(self, ranges: Ranges, version: Version, head: memoryview) -> None:
        self._ranges = ranges
        self._version = version
        self._head = head
        self.size = version.size

    def open(self) -> BinaryIO:
        """Open a reader."""
        return open_version(self._ranges, self._version, self._head)

    def read(self) -> bytes:
        """Read all of it, several ranges at once."""
        return self._ranges.read(self._version, 0, self.size)

    def read_range(self, start: int, stop: int) -> bytes:
        """Read part of it."""
        stop = min(stop, self.size)
        if stop <= len(self._head):
            return bytes(self._head[start : max(start, stop)])
        return self._ranges.read(self._version, start, stop)

    def close(self) -> None:
        """Let go of the first bytes."""
        self._head = memoryview(b"")

    def _spool(self, spool: Path) -> None:
        try:
            with spool.open("wb", buffering=0) as out:

                def write(at: int, data: memoryview) -> None:
                    while data:
                        done = os.pwrite(out.fileno(), data, at)
                        at, data = at + done, data[done:]

                for _ in self._ranges.map(self._version, 0, self.size, write):
                    pass
        except OSError as exc:
            raise from_os_error(exc, f"reading through the temporary file {spool}") from exc


def open_version(ranges: Ranges, version: Version, head: memoryview) -> BinaryIO:
    """Open a reader of one version of an object."""
    return io.BufferedReader(VersionReader(ranges, version, head))


class BucketSink(Sink):
    """Sends an object in parts, which become one at commit; a small one in one request.

    Parameters
    ----------
    client : BucketClient
    key, name : str
    part_size : int
    workers : int
        Parts on their way at once; so many are in memory.
    size_hint : int
        0 if nothing is known.
    check_open : callable
        Raises once the store is closed.
    """

    def __init__(
        self,
        client: BucketClient,
        key: str,
        name: str,
        *,
        part_size: int,
        workers: int,
        size_hint: int,
        check_open: Callable[[], None],
    ) -> None:
        self._client = client
        self._name = name
        self._part_size = part_size
        self._workers = workers
        self._size = size_hint
        self._check_open = check_open
        self._turn = SinkTurn(key)
        self._buffer = bytearray()
        self._sent = 0
        self._upload: Any = None
        self._lent: LentFile | None = None
        self._writer = random_id()
        self._pid = os.getpid()
        self.location = key

    def write(self, data: Buffer, /) -> int:
        """Append bytes; waits while as many parts as are allowed are on their way."""
        content = as_contiguous(data)
        self._turn.write()
        self._check_process()
        if len(self._buffer) + len(content) < CHUNK:
            self._buffer += content
        else:
            self._send(bytes(self._buffer))
            self._buffer = bytearray()
            # obstore keeps a reference until a part is sent, and callers use their buffers again.
            self._send(bytes(content))
        return len(content)

    def write_lasting(self, content: bytes | memoryview) -> None:
        """Send bytes that do not change before the commit, without a copy of them."""
        self._turn.write()
        for start in range(0, len(content), 8 * CHUNK):
            self._send(memoryview(content)[start : start + 8 * CHUNK])

    def path(self) -> Path:
        """Lend a temporary file, which is sent at commit."""
        self._turn.lend()
        self._lent = LentFile(self.location, Path(self.location).suffix[:16])
        return self._lent.path

    def commit(self) -> None:
        """Send what is left, and make the parts one object."""
        self._turn.commit()
        self._check_process()
        self._check_open()
        if self._lent is not None:
            with self._lent.open() as file:
                self._size = os.fstat(file.fileno()).st_size
                while piece := file.read(CHUNK):
                    self._send(piece)
            self._remove_lent()
        if self._upload is None:
            self._client.put(self.location, self._name, bytes(self._buffer))
        else:
            self._send(bytes(self._buffer))
            self._finish()
        self._buffer = bytearray()

    def abort(self) -> None:
        """Remove the parts that were sent, as far as the server can be reached."""
        self._turn.abort()
        self._buffer = bytearray()
        self._remove_lent()
        upload, self._upload = self._upload, None
        if upload is None or self._pid != os.getpid() or upload.closed():
            return  # a failed end has removed its parts by itself
        try:
            with self._client.uploading(self.location):
                upload.__exit__(InvalidInputError, InvalidInputError("aborted"), None)
        except StorageError as exc:
            # What went wrong before is what the caller wants to know.
            logger.warning(
                "the parts of %r that were sent are left to the lifecycle rule of the bucket: %s",
                self.location,
                exc,
            )

    def _send(self, content: bytes | memoryview) -> None:
        if not content:
            return
        if self._upload is None:
            parts = -(-self._size // (_MAX_PARTS - 1))
            self._part_size = max(self._part_size, -(-parts // CHUNK) * CHUNK)
            attributes = {WRITER: self._writer}
            with self._client.uploading(self.location):
                self._upload = self._client.upload(
                    self._name, self._part_size, self._workers, attributes
                )
        self._sent += len(content)
        if self._sent > self._part_size * _MAX_PARTS:
            raise InvalidInputError(
                f"the object {self.location!r} is larger than {_MAX_PARTS} parts of {self._part_size} "
                "bytes: give its size as size_hint, or a larger multipart_chunksize",
                location=self.location,
            )
        with self._client.uploading(self.location):
            self._upload.write(content)

    def _finish(self) -> None:
        try:
            with self._client.uploading(self.location):
                self._upload.close()
        except BlobStoreError:
            if not self._has_landed():
                raise
        finally:
            self._upload = None

    def _has_landed(self) -> bool:
        """Whether the object is there although its end was reported to have failed."""
        try:
            _, attributes = self._client.head(self.location, self._name)
        except BlobStoreError:
            return False
        return attributes.get(WRITER) == self._writer

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise InvalidInputError(
                f"the writer of {self.location!r} was made before this process was forked: make one here",
                location=self.location,
            )

    def _remove_lent(self) -> None:
        if self._lent is not None:
            self._lent.remove()
            self._lent = None


def _gone(version: Version) -> KeyNotFoundError:
    return KeyNotFoundError(
        f"the object {version.key!r} was replaced or removed while it was read: read it again",
        location=version.key,
    )
