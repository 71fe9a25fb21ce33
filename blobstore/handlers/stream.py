"""Parts that are one compressed stream of bytes: what pickle, text, bytes and files share."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import BinaryIO

from blobstore import codecs, limits
from blobstore.errors import DecodeError
from blobstore.protocols import Encoding, PlannedPart, StoredPart, WriteOptions
from blobstore.streams import CHUNK, Buffer, Hasher, Sink, WrappedReader

_SMALL = 1 << 17
"""Below this the data is compressed once, whole, and the result is judged instead of a sample."""


class StreamPart(PlannedPart):
    """Bytes in memory, given as pieces in order, compressed if that pays.

    Parameters
    ----------
    handler, name : str
    pieces : sequence of bytes-like
        C-contiguous; not changed until the part is written.
    options : WriteOptions
    extension : str
        Of the uncompressed format; the codec's is added.
    digest : callable
        Feeds the logical content to a hasher.
    executable : bool
    """

    def __init__(
        self,
        handler: str,
        name: str,
        pieces: Sequence[Buffer],
        options: WriteOptions,
        *,
        extension: str,
        digest: Callable[[Hasher], None],
        executable: bool = False,
    ) -> None:
        self.handler = handler
        self.name = name
        self.executable = executable
        self.size_hint = sum(memoryview(piece).nbytes for piece in pieces)
        self._pieces = pieces
        self._options = options
        self._extension = extension
        self._digest = digest
        self._packed: bytes | None = None
        self._encoding: Encoding | None = None

    def digest(self, hasher: Hasher) -> None:
        """Feed the logical content."""
        self._digest(hasher)

    def encoding(self) -> Encoding:
        """Decide by compressing small data whole, and samples of large data."""
        if self._encoding is None:
            codec = self._choose()
            self._encoding = Encoding(codec, self._extension + codecs.get(codec).extension)
        return self._encoding

    def _choose(self) -> str:
        codec, level = self._options.codec, self._options.level
        if self.size_hint > _SMALL:
            return codecs.choose(codec, level, self._pieces)
        plain = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        packed = codecs.get(codec).compress(plain, level)
        pays = len(packed) <= self.size_hint * (1 - codecs.MIN_SAVING)
        self._packed = packed if pays else bytes(plain)
        return codec if pays else "none"

    def write(self, sink: Sink) -> None:
        """Write the stream, a chunk at a time if it is large."""
        codec = codecs.get(self.encoding().codec)
        if self._packed is not None:
            sink.write(self._packed)
            return
        compressor = codec.compressor(self._options.level)
        for piece in self._pieces:
            view = memoryview(piece).cast("B")
            if codec.name == "none":
                sink.write(view)
                continue
            for start in range(0, len(view), CHUNK):
                sink.write(compressor.compress(view[start : start + CHUNK]))
        sink.write(compressor.flush())


def read_stream(part: StoredPart) -> bytes:
    """The whole stream, decompressed.

    Raises
    ------
    DecodeError
        The part is not of the codec it was recorded with.
    """
    codec = codecs.get(part.codec)
    size = part.source.size
    # In a stream, large data takes one copy less in memory, and a bomb is noticed as it grows.
    if part.codec != "none" and (size > CHUNK or size * codec.max_ratio > _limit(part)):
        with codecs.decoding(part.codec, f"part {part.name!r}"), open_stream(part) as stream:
            return stream.read()
    with codecs.decoding(part.codec, f"part {part.name!r}"):
        return codec.decompress(part.source.read())


def _limit(part: StoredPart) -> int:
    """How many bytes the part may be decompressed to."""
    return part.trust.growth_limit(part.source.size)


def open_stream(part: StoredPart) -> BinaryIO:
    """Open the stream for reading, decompressed on the way; to be closed by the caller."""
    raw = part.source.open()
    if part.codec == "none":
        return raw
    return io.BufferedReader(_Owning(part, raw), CHUNK)


class _Owning(WrappedReader):
    """A decompressing reader that closes the file beneath it, and reports in our words."""

    def __init__(self, part: StoredPart, raw: BinaryIO) -> None:
        self._stream = codecs.get(part.codec).reader(raw)
        super().__init__(raw)
        self._part = part
        self._limit = _limit(part)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            with codecs.decoding(self._part.codec, f"part {self._part.name!r}"):
                data = self._stream.read(len(buffer))
        except DecodeError:
            while self._raw.read(CHUNK):  # at the end the checksum tells whether it is damage
                pass
            raise
        buffer[: len(data)] = data
        self._check_growth()
        return len(data)

    def _check_growth(self) -> None:
        if self._stream.tell() > self._limit:
            raise limits.bomb(f"part {self._part.name!r}", self._limit)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with codecs.decoding(self._part.codec, f"part {self._part.name!r}"):
            if whence == io.SEEK_END:
                while self._stream.read(CHUNK):
                    self._check_growth()
                offset, whence = offset + self._stream.tell(), io.SEEK_SET
            return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
