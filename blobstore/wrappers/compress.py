"""Stores that compress: gzip, Zstandard and LZ4, as other tools write and read them."""

from __future__ import annotations

import io
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, BinaryIO, ClassVar, cast

import lz4.frame
import zstandard

from blobstore import codecs
from blobstore.errors import BlobStoreError, IntegrityError
from blobstore.protocols import ObjectStore
from blobstore.streams import Buffer, WrappedReader
from blobstore.wrappers.blocks import read_exactly
from blobstore.wrappers.stream import (
    Encoder,
    StreamTransformer,
    StreamTransformingStore,
    gather,
)

_READ = 1 << 16
"""Stored bytes that are read at a time."""

_PIECE = 1 << 18
"""Bytes of an object that are made at a time at the most, however much they were compressed."""


_SKIPPABLE = b"\x2a\x4d\x18"
"""How frames go on that hold no data, after a byte from 0x50 to 0x5f; of Zstandard, and of LZ4."""


class _Compression(StreamTransformer):
    """What the three have in common.

    Parameters
    ----------
    level : int
        From 1 (fastest) to 9 (smallest).
    """

    codec: ClassVar[str]

    def __init__(self, level: int) -> None:
        codecs.validate(self.codec, level, name="level")
        self.level = level

    @abstractmethod
    def compressor(self) -> codecs.Compressor:
        """Start a stream."""

    @abstractmethod
    def pieces(self, raw: BinaryIO) -> Iterator[bytes]:
        """Decompress a file from where it stands to its end; raises what the library raises."""

    def encoder(self, key: str) -> Encoder:
        """Start an object."""
        return _EvenEncoder(self.compressor())

    def reader(self, raw: BinaryIO, key: str) -> BinaryIO:
        """Read an object; going back starts it anew."""
        return io.BufferedReader(_PiecesReader(raw, self, key))

    def damaged(self, exc: Exception, key: str) -> IntegrityError:
        """Say what a library said of an object."""
        return IntegrityError(
            f"the object {key!r} is no whole {self.codec} stream: {exc}. It was cut off or "
            "altered, or not written through this kind of store",
            location=key,
        )


class GzipTransformer(_Compression):
    """gzip (RFC 1952): checksums of its own, no time stamp, so equal data gives equal bytes.

    Any number of members is read as one stream, and zeros behind them are ignored, as gzip does.
    """

    codec: ClassVar[str] = "gzip"

    def __init__(self, level: int = 6) -> None:
        super().__init__(level)

    def compressor(self) -> codecs.Compressor:
        """Start a member."""
        return codecs.get("gzip").compressor(self.level)

    def pieces(self, raw: BinaryIO) -> Iterator[bytes]:
        """Read all members."""
        data = raw.read(_READ)
        if not data:
            raise EOFError("it is empty")
        while data:
            stream = zlib.decompressobj(31)
            while True:
                piece = stream.decompress(data, _PIECE)
                if piece:
                    yield piece
                if stream.eof:
                    break
                if not (data or piece):
                    raise EOFError("it is cut off")
                data = stream.unconsumed_tail or raw.read(_READ)
            data = stream.unused_data.lstrip(b"\0")
            while not data and (more := raw.read(_READ)):
                data = more.lstrip(b"\0")


class ZstdTransformer(_Compression):
    """Zstandard frames (RFC 8878) with a checksum; any number is read as one stream."""

    codec: ClassVar[str] = "zstd"

    def __init__(self, level: int = 3) -> None:
        super().__init__(level)

    def compressor(self) -> codecs.Compressor:
        """Start a frame."""
        return zstandard.ZstdCompressor(level=self.level, write_checksum=True).compressobj()

    def pieces(self, raw: BinaryIO) -> Iterator[bytes]:
        """Read all frames."""
        magic = _take(raw, 4)
        while magic:
            if magic == zstandard.FRAME_HEADER:
                yield from _zstd_frame(raw)
            elif magic[1:] == _SKIPPABLE and magic[0] >> 4 == 5:
                _skip(raw, int.from_bytes(_take(raw, 4), "little"))
            else:
                raise ValueError("there is something that is no frame")
            first = raw.read(1)
            magic = first and first + _take(raw, 3)


class Lz4Transformer(_Compression):
    """LZ4 frames (LZ4 Frame Format 1.6) with a checksum; any number is read as one stream."""

    codec: ClassVar[str] = "lz4"

    def __init__(self, level: int = 1) -> None:
        super().__init__(level)

    def compressor(self) -> codecs.Compressor:
        """Start a frame."""
        return _Lz4Frame(0 if self.level <= 3 else self.level)  # as in `blobstore.codecs`

    def pieces(self, raw: BinaryIO) -> Iterator[bytes]:
        """Read all frames."""
        data = raw.read(_READ)
        if not data:
            raise EOFError("it is empty")
        while data:
            stream = lz4.frame.LZ4FrameDecompressor()
            while True:
                piece = stream.decompress(data, max_length=_PIECE)
                if piece:
                    yield piece
                if stream.eof:
                    break
                data = b""  # what is needed to go on may be inside the library still
                if stream.needs_input:
                    data = raw.read(_READ)
                    if not data:
                        raise EOFError("it is cut off")
            data = stream.unused_data or raw.read(_READ)


class _Lz4Frame:
    """A `Compressor` that makes one frame."""

    def __init__(self, level: int) -> None:
        self._context = lz4.frame.LZ4FrameCompressor(compression_level=level, content_checksum=True)
        self._header: bytes = self._context.begin()

    def compress(self, data: Buffer, /) -> bytes:
        header, self._header = self._header, b""
        return header + cast("bytes", self._context.compress(data))

    def flush(self) -> bytes:
        return self._header + cast("bytes", self._context.flush())


def _zstd_frame(raw: BinaryIO) -> Iterator[bytes]:
    """Decompress a frame whose first four bytes were read, block by block.

    That way no more than a block (128 KiB) is made at a time, and a cut is noticed; the library's
    own stream takes a cut frame for a whole one. Source: RFC 8878, sections 3.1.1.1 and 3.1.1.2.
    """
    stream = zstandard.ZstdDecompressor().decompressobj()
    flags = _take(raw, 1)
    single, checksum, dictionary = flags[0] >> 5 & 1, flags[0] >> 2 & 1, flags[0] & 3
    size = (single, 2, 4, 8)[flags[0] >> 6]
    rest = _take(raw, (1 - single) + (0, 1, 2, 4)[dictionary] + size)
    stream.decompress(zstandard.FRAME_HEADER + flags + rest)
    last = 0
    while not last:
        header = _take(raw, 3)
        number = int.from_bytes(header, "little")
        last, kind, size = number & 1, number >> 1 & 3, number >> 3
        if piece := stream.decompress(header + _take(raw, 1 if kind == 1 else size)):
            yield piece
    if checksum and (piece := stream.decompress(_take(raw, 4))):
        yield piece
    if not stream.eof:
        raise EOFError("its end is missing")


def _take(raw: BinaryIO, size: int) -> bytes:
    data = read_exactly(raw, size)
    if len(data) < size:
        raise EOFError("it is cut off" if data else "it is empty, or cut off")
    return data


def _skip(raw: BinaryIO, size: int) -> None:
    while size:
        size -= len(_take(raw, min(size, _READ)))


class _EvenEncoder:
    """Gives a compressor pieces of one size, so that the same bytes come out of any pieces."""

    def __init__(self, compressor: codecs.Compressor) -> None:
        self._compressor = compressor
        self._pending = bytearray()

    def update(self, data: Buffer, /) -> bytes:
        view = memoryview(data)
        ready = []
        while len(self._pending) + len(view) >= _PIECE:
            missing = _PIECE - len(self._pending)
            if self._pending:
                self._pending += view[:missing]
                ready.append(self._compressor.compress(self._pending))
                self._pending = bytearray()
            else:
                ready.append(self._compressor.compress(view[:missing]))
            view = view[missing:]
        self._pending += view
        return b"".join(ready)

    def finish(self) -> bytes:
        return self._compressor.compress(self._pending) + self._compressor.flush()


class _PiecesReader(WrappedReader):
    """Reads what a transformer decompresses; going back starts anew."""

    def __init__(self, raw: BinaryIO, transformer: _Compression, key: str) -> None:
        super().__init__(raw)
        self._transformer = transformer
        self._failures = codecs.get(transformer.codec).failures()
        self._key = key
        self._restart()

    def _restart(self) -> None:
        self._raw.seek(0)
        self._pieces = self._transformer.pieces(self._raw)
        self._piece = memoryview(b"")
        self._position = 0
        self._behind = 0  # a position that was asked for, and that may lie behind the end
        self._failure: Exception | None = None

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._next(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def readall(self) -> bytes:
        return gather(iter(lambda: self._next(_PIECE), b""))

    def tell(self) -> int:
        return max(self._position, self._behind)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read on to a position; nobody knows how far the end is before it was read."""
        if whence == io.SEEK_END:
            while self._next(_PIECE):
                pass
            self._behind = 0
        target = offset + (0 if whence == io.SEEK_SET else self.tell())
        if target < 0:
            raise ValueError(f"cannot seek to {target}: a position is not negative")
        if target < self._position:
            self._restart()
        while self._position < target and self._next(min(_PIECE, target - self._position)):
            pass
        self._behind = target
        return target

    def close(self) -> None:
        self._pieces = iter(())
        super().close()

    def _next(self, count: int) -> memoryview:
        """Give what comes next, at most so many bytes, and none at the end."""
        if not self._piece:
            self._piece = memoryview(self._decompress())
        piece = self._piece[:count]
        self._piece = self._piece[count:]
        self._position += len(piece)
        return piece

    def _decompress(self) -> bytes:
        try:
            if self._failure is not None:  # who asks again is not to be told of an end
                raise self._failure
            return next(self._pieces, b"")
        except BlobStoreError:
            raise
        except self._failures as exc:
            self._failure = exc
            raise self._transformer.damaged(exc, self._key) from exc


class _CompressingStore(StreamTransformingStore):
    """What the three stores have in common."""

    def __init__(self, store: ObjectStore, transformer: _Compression) -> None:
        super().__init__(store, transformer)
        self.level = transformer.level

    def _shown(self) -> dict[str, Any]:
        return {"level": self.level}


class GzipStore(_CompressingStore):
    """Keeps objects as gzip files.

    Equal objects are stored as equal bytes: there is no time stamp in them. Files by other tools
    are read, too. What was cut off or altered is `IntegrityError`, at the latest at its end.

    Parameters
    ----------
    store : ObjectStore
        Keeps bytes; taken over: it is closed with this one.
    level : int
        From 1 (fastest) to 9 (smallest).

    Raises
    ------
    ConfigError
        There is no such level, or the store keeps other values than bytes.

    Examples
    --------
    >>> import gzip
    >>> from blobstore.backends import DictStore
    >>> store = GzipStore(DictStore())
    >>> store.put("key", b"text " * 1000)
    >>> len(store.store.get("key")) < 100, gzip.decompress(store.store.get("key"))[:5]
    (True, b'text ')
    """

    def __init__(self, store: ObjectStore, level: int = 6) -> None:
        super().__init__(store, GzipTransformer(level))


class ZstdStore(_CompressingStore):
    """Keeps objects as Zstandard frames with a checksum: smaller than LZ4, faster than gzip.

    Files by other tools are read, too, if their window is no larger than 128 MiB. What was cut off
    or altered is `IntegrityError`, at the latest at its end, if there is a checksum in it.

    Parameters
    ----------
    store : ObjectStore
        Keeps bytes; taken over: it is closed with this one.
    level : int
        From 1 (fastest) to 9 (smallest).

    Raises
    ------
    ConfigError
        There is no such level, or the store keeps other values than bytes.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = ZstdStore(DictStore())
    >>> store.put("key", b"text " * 1000)
    >>> len(store.store.get("key")) < 100, len(store.get("key"))
    (True, 5000)
    """

    def __init__(self, store: ObjectStore, level: int = 3) -> None:
        super().__init__(store, ZstdTransformer(level))


class Lz4Store(_CompressingStore):
    """Keeps objects as LZ4 frames with a checksum: the fastest of all.

    Files by other tools are read, too. What was cut off or altered is `IntegrityError`, at the
    latest at its end, if there is a checksum in it.

    Parameters
    ----------
    store : ObjectStore
        Keeps bytes; taken over: it is closed with this one.
    level : int
        From 1 (fastest) to 9 (smallest); 1 to 3 are the same.

    Raises
    ------
    ConfigError
        There is no such level, or the store keeps other values than bytes.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = Lz4Store(DictStore())
    >>> store.put("key", b"text " * 1000)
    >>> len(store.store.get("key")) < 100, len(store.get("key"))
    (True, 5000)
    """

    def __init__(self, store: ObjectStore, level: int = 1) -> None:
        super().__init__(store, Lz4Transformer(level))
