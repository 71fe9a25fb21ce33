"""Stores whose bytes are transformed piece by piece: what they hold in memory does not grow.

A `StreamTransformer` says how, without any I/O of its own: an encoder takes pieces and gives
pieces, a reader is a file over a file. `StreamTransformingStore` drives it on every way in and out.
"""

from __future__ import annotations

import io
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol

from blobstore.entry import ObjectStat
from blobstore.errors import NotSupportedError, from_os_error
from blobstore.lending import LentFile, SinkTurn
from blobstore.protocols import Capabilities, ObjectStore, check_range
from blobstore.streams import (
    CHUNK,
    Buffer,
    BytesSource,
    FileSource,
    Sink,
    Source,
    as_contiguous,
    copy_stream,
)
from blobstore.wrappers.base import WrapperSink, WrapperStore, require_bytes, stored_value

IN_MEMORY = 8 << 20
"""Bytes of an object that are spooled in memory, before they go to a temporary file."""

IN_PIECES = 32 << 20
"""Bytes that are gathered in pieces, which is fast, before they are gathered in place."""

_FAR = 1 << 62
"""Behind the end of anything, and still a position that every file takes."""


class Encoder(Protocol):
    """One object on its way in."""

    def update(self, data: Buffer, /) -> bytes:
        """Take in more; gives what is ready."""

    def finish(self) -> bytes:
        """Give the rest."""


class StreamTransformer(ABC):
    """Turns a stream of bytes into another one, and back. Has no state of any one object.

    Attributes
    ----------
    ranges : bool
        Whether its readers reach a position, and the end, without what is before it.
    keyed : bool
        Whether what is stored depends on the key, so that a copy has to be made anew.
    encrypts : bool
        Whether what is stored cannot be read without a key.
    """

    ranges: ClassVar[bool] = False
    keyed: ClassVar[bool] = False
    encrypts: ClassVar[bool] = False

    @abstractmethod
    def encoder(self, key: str) -> Encoder:
        """Start an object."""

    @abstractmethod
    def reader(self, raw: BinaryIO, key: str) -> BinaryIO:
        """Read what an encoder made.

        Parameters
        ----------
        raw : BinaryIO
            Seekable, at its start; closed with the reader.
        key : str

        Returns
        -------
        BinaryIO
            Seekable. Raises `IntegrityError` if what is read is not what an encoder made, at the
            latest at the end of it; holds no more than a few MiB.
        """

    def plain_size(self, stored: int) -> int | None:
        """How many bytes an object has of which so many are stored; None if that does not tell."""
        return None

    def encode(self, data: Buffer, key: str) -> bytes:
        """Turn a whole object into what is stored."""
        view = memoryview(as_contiguous(data))
        return gather(_encoded(self.encoder(key), view))

    def decode(self, data: bytes, key: str) -> bytes:
        """Turn what is stored into the object."""
        with self.reader(io.BytesIO(data), key) as reader:
            return reader.read()


class StreamTransformingStore(WrapperStore):
    """Puts the bytes of each object through a stream transformer.

    Ranges are passed on if the transformer can. Else reading from the middle begins at the start,
    and `source` spools the object: up to 8 MiB in memory, larger ones into a temporary file.

    Parameters
    ----------
    store : ObjectStore
        Keeps bytes; taken over: it is closed with this one.
    transformer : StreamTransformer

    Raises
    ------
    ConfigError
        The store keeps other values than bytes.
    """

    def __init__(self, store: ObjectStore, transformer: StreamTransformer) -> None:
        super().__init__(require_bytes(store, type(self).__name__))
        self.transformer = transformer

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store beneath, less what the transformation takes away."""
        beneath = self.store.capabilities
        return replace(
            beneath,
            ranges=beneath.ranges and self.transformer.ranges,
            local_files=False,
            encrypted=beneath.encrypted or self.transformer.encrypts,
        )

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        return self.transformer.decode(stored_value(self.store, key), key)

    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object."""
        self.store.put(key, self.transformer.encode(as_contiguous(data), key))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object."""
        check_range(start, stop)
        with self.open(key) as reader:
            return read_slice(reader, start, stop)

    def open(self, key: str) -> BinaryIO:
        """Open an object; it is turned back while it is read."""
        return self._reader(self.store.open(key), key)

    def source(self, key: str) -> Source:
        """Prepare an object for reading in several ways."""
        if self.transformer.ranges:
            return _DecodedSource(self.store.source(key), self.transformer, key)
        with self.open(key) as reader:
            return spooled(reader)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece."""
        inner = self.store.writer(key, size_hint)
        try:
            encoder = self.transformer.encoder(key)
        except BaseException:
            inner.abort()
            raise
        if self.transformer.keyed:
            inner = _KeptPlaceSink(inner, self.store, key)
        return _EncodingSink(inner, encoder, key)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag; where the stored size does not tell, the object is opened."""
        stat = self.store.stat(key)
        size = self.transformer.plain_size(stat.size)
        if size is None:
            with self.open(key) as reader:
                size = reader.seek(0, io.SEEK_END)
        return replace(stat, size=size)

    def local_path(self, key: str) -> Path | None:
        """There is no file that holds the object as it is."""
        self.store.local_path(key)
        return None

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store."""
        if not self.transformer.keyed:
            self.store.copy(source, target)
            return
        with self.open(source) as reader, self.writer(target) as sink:
            copy_stream(reader, sink)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one."""
        return self.store.put_if_absent(key, self.transformer.encode(as_contiguous(data), key))

    def _reader(self, raw: BinaryIO, key: str) -> BinaryIO:
        try:
            return self.transformer.reader(raw, key)
        except BaseException:
            raw.close()
            raise


def read_slice(reader: BinaryIO, start: int, stop: int) -> bytes:
    """Read bytes ``[start, stop)`` of an open file, clipped at its end."""
    reader.seek(min(start, _FAR))
    return gather(_chunks(reader, stop - start))


def _encoded(encoder: Encoder, view: memoryview) -> Iterator[bytes]:
    for at in range(0, len(view), CHUNK):
        yield encoder.update(view[at : at + CHUNK])
    yield encoder.finish()


def _chunks(reader: BinaryIO, left: int) -> Iterator[bytes]:
    while left > 0 and (chunk := reader.read(min(left, CHUNK))):
        yield chunk
        left -= len(chunk)


def gather(pieces: Iterable[bytes | memoryview]) -> bytes:
    """Put pieces together; of a large object no more than 32 MiB are held twice meanwhile."""
    held = []
    size = 0
    rest = iter(pieces)
    for piece in rest:
        held.append(piece)
        size += len(piece)
        if size > IN_PIECES:
            whole = io.BytesIO()
            whole.writelines(held)
            held.clear()
            whole.writelines(rest)
            return whole.getvalue()
    return b"".join(held)


class _EncodingSink(Sink):
    """Encodes on the way into another sink; a lent path is encoded at the end."""

    def __init__(self, inner: Sink, encoder: Encoder, key: str) -> None:
        self._inner = inner
        self._encoder = encoder
        self._key = key
        self._lent: LentFile | None = None
        self._turn = SinkTurn(key)
        self.location = inner.location

    def write(self, data: Buffer, /) -> int:
        view = as_contiguous(data)
        self._turn.write()
        self._encode(view)
        return len(view)

    def path(self) -> Path:
        self._turn.lend()
        self._lent = LentFile(self._key)
        return self._lent.path

    def commit(self) -> None:
        self._turn.commit()
        if self._lent is not None:
            with self._lent.open() as file:
                while chunk := file.read(CHUNK):
                    self._encode(chunk)
        if ready := self._encoder.finish():
            self._inner.write(ready)
        self._inner.commit()
        self.location = self._inner.location
        self._forget()

    def abort(self) -> None:
        self._turn.abort()
        self._forget()
        self._inner.abort()

    def _encode(self, view: bytes | memoryview) -> None:
        for at in range(0, len(view), CHUNK):
            if ready := self._encoder.update(view[at : at + CHUNK]):
                self._inner.write(ready)

    def _forget(self) -> None:
        if self._lent is not None:
            self._lent.remove()
            self._lent = None


class _KeptPlaceSink(WrapperSink):
    """Sees to it that an object that depends on its key is found under that key again."""

    def __init__(self, inner: Sink, store: ObjectStore, key: str) -> None:
        super().__init__(inner)
        self.location = key
        self._store = store
        self._key = key

    def commit(self) -> None:
        self._inner.commit()
        place = self._inner.location
        if place not in ("", self._key):
            self._store.delete_many([place])
            raise NotSupportedError(
                f"the store beneath keeps {self._key!r} at a place of its own ({place}), where "
                "it could not be read again, as what is stored depends on the key",
                location=self._key,
            )


class _DecodedSource(Source):
    """A source over another one, turned back where it is read."""

    def __init__(self, inner: Source, transformer: StreamTransformer, key: str) -> None:
        self._inner = inner
        self._transformer = transformer
        self._key = key
        self.size = self._measure()

    def _measure(self) -> int:
        size = self._transformer.plain_size(self._inner.size)
        if size is not None:
            return size
        try:
            with self.open() as reader:
                return reader.seek(0, io.SEEK_END)
        except BaseException:
            self._inner.close()
            raise

    def open(self) -> BinaryIO:
        raw = self._inner.open()
        try:
            return self._transformer.reader(raw, self._key)
        except BaseException:
            raw.close()
            raise

    def read_range(self, start: int, stop: int) -> bytes:
        with self.open() as reader:
            return read_slice(reader, start, stop)

    def close(self) -> None:
        self._inner.close()


def spooled(stream: BinaryIO) -> Source:
    """Keep what is left of a stream, so that it can be read in any way.

    Up to 8 MiB stay in memory; more goes to a temporary file, which is removed when the source is
    closed.
    """
    head = stream.read(IN_MEMORY + 1)
    if len(head) <= IN_MEMORY:
        return BytesSource(head)
    folder = tempfile.TemporaryDirectory(prefix="blobstore-")
    path = Path(folder.name, "part")
    try:
        with path.open("wb") as file:
            file.write(head)
            copy_stream(stream, file)
        return _TemporarySource(path, folder)
    except OSError as exc:
        folder.cleanup()
        raise from_os_error(exc, f"spooling an object into {path}") from exc
    except BaseException:
        folder.cleanup()
        raise


class _TemporarySource(FileSource):
    """A source over a file that goes with it."""

    def __init__(self, path: Path, folder: tempfile.TemporaryDirectory[str]) -> None:
        super().__init__(path)
        self._folder = folder

    def close(self) -> None:
        super().close()
        self._folder.cleanup()
