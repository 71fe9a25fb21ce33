"""Compression of byte streams: lz4, zstd, gzip, blosclz and none, at levels 1 to 9.

Each codec writes the standard frame of its kind (LZ4 frame, Zstandard frame, RFC 1952), so other
tools read it; blosclz, which has no frame, is a run of Blosc2 chunks of 1 MiB, each of which says
how long it is. Data that does not shrink is stored as it is; a sample tells.
"""

from __future__ import annotations

import functools
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, ClassVar, Protocol, cast

from blobstore.errors import ConfigError, DecodeError

Buffer = bytes | bytearray | memoryview

NAMES = ("lz4", "zstd", "gzip", "blosclz", "none")
MIN_SAVING = 0.1
"""Compression has to save this share of a sample, or the data is stored as it is."""

_SAMPLE = 1 << 15
_SAMPLES = 4


class Compressor(Protocol):
    """One stream being compressed."""

    def compress(self, data: Buffer, /) -> bytes:
        """Take in more; gives what is ready."""

    def flush(self) -> bytes:
        """Give the rest."""


class Codec(ABC):
    """One way to compress.

    Attributes
    ----------
    name, extension : str
    max_ratio : int
        How many bytes one stored byte can at most grow to.
    """

    name: ClassVar[str]
    extension: ClassVar[str]
    max_ratio: ClassVar[int]

    @abstractmethod
    def compressor(self, level: int) -> Compressor:
        """Start a stream."""

    @abstractmethod
    def compress(self, data: Buffer, level: int) -> bytes:
        """Compress at once what is in memory."""

    @abstractmethod
    def decompress(self, data: bytes) -> bytes:
        """Undo `compress`; raises what the library raises."""

    @abstractmethod
    def reader(self, raw: BinaryIO) -> BinaryIO:
        """Read a compressed stream; holds no more than a few MiB, whatever it grows to."""

    def failures(self) -> tuple[type[Exception], ...]:
        """What the library raises for bytes that are not its own; see `decoding`."""
        return (RuntimeError, ValueError, EOFError)


class _Direct:
    """A `Compressor` that changes nothing."""

    def compress(self, data: Buffer, /) -> bytes:
        return bytes(data)

    def flush(self) -> bytes:
        return b""


class NoneCodec(Codec):
    """Stores bytes as they are."""

    name = "none"
    extension = ""
    max_ratio = 1

    def compressor(self, level: int) -> Compressor:
        """Start a stream that is passed on."""
        return _Direct()

    def compress(self, data: Buffer, level: int) -> bytes:
        """Return the bytes."""
        return bytes(data)

    def decompress(self, data: bytes) -> bytes:
        """Return the bytes."""
        return data

    def reader(self, raw: BinaryIO) -> BinaryIO:
        """Return the stream."""
        return raw


class Lz4Codec(Codec):
    """LZ4 frames. Levels 1 to 3 are the fast method, 4 to 9 LZ4 HC at that level.

    Source: LZ4 Frame Format 1.6.
    """

    name = "lz4"
    extension = ".lz4"
    max_ratio = 256

    @staticmethod
    def _level(level: int) -> int:
        return 0 if level <= 3 else level

    def compressor(self, level: int) -> Compressor:
        """Start a frame."""
        import lz4.frame

        context = lz4.frame.LZ4FrameCompressor(compression_level=self._level(level))
        return _WithHeader(context.begin(), context.compress, context.flush)

    def compress(self, data: Buffer, level: int) -> bytes:
        """Make one frame."""
        return cast("bytes", _lz4_frame().compress(data, compression_level=self._level(level)))

    def decompress(self, data: bytes) -> bytes:
        """Read one frame."""
        content, read = _lz4_frame().decompress(data, return_bytes_read=True)
        if read != len(data):
            raise ValueError(_BEHIND)
        return cast("bytes", content)

    def reader(self, raw: BinaryIO) -> BinaryIO:
        """Read a frame as a stream."""
        import lz4.frame

        return cast("BinaryIO", lz4.frame.LZ4FrameFile(raw, mode="rb"))


@functools.cache
def _lz4_frame() -> Any:
    """The library, imported once; an import statement in a function costs more than the work."""
    import lz4.frame

    return lz4.frame


class _WithHeader:
    """A `Compressor` over a library that hands out the header apart."""

    def __init__(
        self, header: bytes, compress: Callable[[Buffer], bytes], flush: Callable[[], bytes]
    ) -> None:
        self._header = header
        self._compress = compress
        self._flush = flush

    def compress(self, data: Buffer, /) -> bytes:
        header, self._header = self._header, b""
        return header + self._compress(data)

    def flush(self) -> bytes:
        header, self._header = self._header, b""
        return header + self._flush()


class ZstdCodec(Codec):
    """Zstandard frames (RFC 8878), at the library's levels 1 to 9."""

    name = "zstd"
    extension = ".zst"
    max_ratio = 1 << 16

    def compressor(self, level: int) -> Compressor:
        """Start a frame."""
        import zstandard

        return zstandard.ZstdCompressor(level=level).compressobj()

    def failures(self) -> tuple[type[Exception], ...]:
        """ZstdError."""
        import zstandard

        return (zstandard.ZstdError, ValueError, EOFError)

    def compress(self, data: Buffer, level: int) -> bytes:
        """Make one frame."""
        import zstandard

        return zstandard.ZstdCompressor(level=level).compress(data)

    def decompress(self, data: bytes) -> bytes:
        """Read one frame, also one that does not tell its size."""
        import zstandard

        stream = zstandard.ZstdDecompressor().decompressobj()
        return _whole(stream.decompress(data), stream)

    def reader(self, raw: BinaryIO) -> BinaryIO:
        """Read a frame as a stream."""
        return io.BufferedReader(_IteratorReader(lambda: self._restart(raw)))

    @staticmethod
    def _restart(raw: BinaryIO) -> Iterator[bytes]:
        import zstandard

        _check_zstd_frame(raw)  # the library's reader takes a cut one for whole
        raw.seek(0)
        # It cannot seek back, either.
        stream = zstandard.ZstdDecompressor().stream_reader(raw, closefd=False)
        return iter(lambda: stream.read(_SAMPLE), b"")


class GzipCodec(Codec):
    """gzip members (RFC 1952) without a time stamp: equal data gives equal bytes."""

    name = "gzip"
    extension = ".gz"
    max_ratio = 1040

    def compressor(self, level: int) -> Compressor:
        """Start a member."""
        import zlib

        return zlib.compressobj(level, zlib.DEFLATED, 31)

    def failures(self) -> tuple[type[Exception], ...]:
        """zlib.error, and what the gzip module adds."""
        import gzip
        import zlib

        return (zlib.error, gzip.BadGzipFile, ValueError, EOFError)

    def compress(self, data: Buffer, level: int) -> bytes:
        """Make one member."""
        import zlib

        return zlib.compress(data, level, 31)

    def decompress(self, data: bytes) -> bytes:
        """Read one member."""
        import zlib

        stream = zlib.decompressobj(31)
        return _whole(stream.decompress(data), stream)

    def reader(self, raw: BinaryIO) -> BinaryIO:
        """Read a member as a stream."""
        import gzip

        if not raw.read(1):
            raise DecodeError("an empty file is no gzip stream")  # the library takes it for one
        raw.seek(0)
        return cast("BinaryIO", gzip.GzipFile(fileobj=raw, mode="rb"))


_BEHIND = "there are bytes behind the end of the stream"


def _whole(content: bytes, stream: Any) -> bytes:
    """Give what a stream was decompressed to, if it was all of the stream and nothing else."""
    if not stream.eof:
        raise EOFError("the stream is cut off")
    if stream.unused_data:
        raise ValueError(_BEHIND)
    return content


def _check_zstd_frame(raw: BinaryIO) -> None:
    """Go from block to block, and see that the last one is there, and ends the file.

    Source: RFC 8878, sections 3.1.1.1 (frame header) and 3.1.1.2 (blocks).
    """
    import zstandard

    end = raw.seek(0, io.SEEK_END)
    raw.seek(0)
    position = zstandard.frame_header_size(raw.read(18))
    raw.seek(4)
    has_checksum = bool(raw.read(1)[0] & 4)
    last = False
    while not last:
        raw.seek(position)
        header = int.from_bytes(raw.read(3), "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        position += 3 + (1 if kind == 1 else size)
        if position > end:
            raise EOFError("the stream is cut off")
    if position + 4 * has_checksum != end:
        raise EOFError("the stream is cut off, or has bytes behind its end")


class BlosclzCodec(Codec):
    """Runs of Blosc2 chunks with BLOSCLZ inside, the last one empty to mark the end.

    Source: the Blosc2 chunk format, with its header of 16 or 32 bytes.
    """

    name = "blosclz"
    extension = ".blosc"
    max_ratio = 1 << 16
    _chunk = 1 << 20

    def compressor(self, level: int) -> Compressor:
        """Start a run of chunks."""
        return _ChunkCompressor(lambda data: self._one(data, level), self._chunk)

    def compress(self, data: Buffer, level: int) -> bytes:
        """Make a run of chunks."""
        view = memoryview(data).cast("B")
        starts = range(0, len(view), self._chunk)
        pieces = [self._one(view[i : i + self._chunk], level) for i in starts]
        return b"".join([*pieces, self._one(b"", level)])

    def decompress(self, data: bytes) -> bytes:
        """Read a run of chunks."""
        return b"".join(self._chunks(io.BytesIO(data)))

    def reader(self, raw: BinaryIO) -> BinaryIO:
        """Read a run of chunks as a stream."""
        return io.BufferedReader(_IteratorReader(lambda: self._restart(raw)))

    @staticmethod
    def _one(data: Buffer, level: int) -> bytes:
        import blosc2

        chunk = blosc2.compress2(
            bytes(data),
            codec=blosc2.Codec.BLOSCLZ,
            clevel=level,
            typesize=1,
            filters=[blosc2.Filter.NOFILTER],
            nthreads=1,
        )
        return cast("bytes", chunk)

    def _restart(self, raw: BinaryIO) -> Iterator[bytes]:
        raw.seek(0)
        return self._chunks(raw)

    def _chunks(self, raw: BinaryIO) -> Iterator[bytes]:
        import blosc2

        while True:
            header = raw.read(16)
            if len(header) < 16:
                raise DecodeError("a run of Blosc2 chunks is cut off")
            size, expected = (int.from_bytes(header[i : i + 4], "little") for i in (12, 4))
            chunk = header + raw.read(max(0, size - 16))
            if len(chunk) != size or expected > self._chunk:
                raise DecodeError(f"a Blosc2 chunk of {size} bytes is cut off or too large")
            if expected == 0:
                break
            # One thread: the library's pool does not survive a fork.
            yield cast("bytes", blosc2.decompress2(chunk, nthreads=1))
        if raw.read(1):
            raise DecodeError(_BEHIND)


class _ChunkCompressor:
    """A `Compressor` that makes an independent piece of every `size` bytes."""

    def __init__(self, one: Callable[[Buffer], bytes], size: int) -> None:
        self._one = one
        self._size = size
        self._pending = bytearray()

    def compress(self, data: Buffer, /) -> bytes:
        view = memoryview(data).cast("B")
        ready = []
        while len(view) + len(self._pending) >= self._size:
            take = self._size - len(self._pending)
            self._pending += view[:take]
            view = view[take:]
            ready.append(self._one(self._pending))
            self._pending = bytearray()
        self._pending += view
        return b"".join(ready)

    def flush(self) -> bytes:
        rest, self._pending = self._pending, bytearray()
        return (self._one(rest) if rest else b"") + self._one(b"")


class _IteratorReader(io.RawIOBase):
    """A readable stream over pieces; seeking back starts the pieces anew."""

    def __init__(self, restart: Callable[[], Iterator[bytes]]) -> None:
        self._restart = restart
        self._pieces = restart()
        self._piece = memoryview(b"")
        self._position = 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._piece = memoryview(piece)
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        self._position += count
        return count

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            while self.read(_SAMPLE):
                pass
        target = offset + (0 if whence == io.SEEK_SET else self._position)
        if target < self._position:
            self._pieces, self._piece, self._position = self._restart(), memoryview(b""), 0
        while self._position < target and self.read(min(_SAMPLE, target - self._position)):
            pass
        return self._position


_CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (Lz4Codec(), ZstdCodec(), GzipCodec(), BlosclzCodec(), NoneCodec())
}


def get(name: str) -> Codec:
    """The codec of that name.

    Raises
    ------
    ConfigError
        There is none.

    Examples
    --------
    >>> codec = get("zstd")
    >>> codec.decompress(codec.compress(b"a" * 1000, 3)) == b"a" * 1000
    True
    """
    try:
        return _CODECS[name]
    except (KeyError, TypeError) as exc:
        raise ConfigError(f"there is no codec {name!r}: choose one of {', '.join(NAMES)}") from exc


class decoding:  # noqa: N801 - used like a function, in a with statement
    """Translate what a codec's library raises inside the block.

    Parameters
    ----------
    name : str
        Of the codec.
    what : str
        What is being decoded, for the message.

    Raises
    ------
    DecodeError
        The bytes are not of this codec, or cut off.
    """

    __slots__ = ("_name", "_what")

    def __init__(self, name: str, what: str) -> None:
        self._name = name
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: object
    ) -> None:
        if exc is not None and isinstance(exc, get(self._name).failures()):
            raise DecodeError(f"{self._what} is no whole {self._name} stream: {exc}") from exc


def validate(codec: object, level: object, *, name: str = "compression_level") -> tuple[str, int]:
    """Check a codec name and a level as a user gave them.

    Parameters
    ----------
    codec, level : object
    name : str
        What the level is called where it was given.

    Raises
    ------
    ConfigError
        Unknown codec, or a level that is not an integer from 1 to 9.
    """
    if not isinstance(codec, str):
        raise ConfigError(f"compression must be one of {', '.join(NAMES)}, not {codec!r}")
    get(codec)
    if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= 9:
        raise ConfigError(
            f"{name} must be an integer from 1 (fastest) to 9 (smallest), not {level!r}"
        )
    return codec, level


def choose(codec: str, level: int, pieces: Sequence[Buffer]) -> str:
    """The codec that pays for this data: `codec`, or "none".

    Compresses samples from across the data, 128 KiB in all, never the whole of it.

    Parameters
    ----------
    codec, level : str, int
    pieces : sequence of bytes-like
        The data, in order.

    Examples
    --------
    >>> import os
    >>> choose("lz4", 3, [b"a" * 10_000]), choose("lz4", 3, [os.urandom(10_000)])
    ('lz4', 'none')
    """
    if codec == "none":
        return codec
    sample = b"".join(_samples([memoryview(piece).cast("B") for piece in pieces]))
    if not sample:
        return "none"
    packed = get(codec).compress(sample, min(level, 3))
    return codec if len(packed) <= len(sample) * (1 - MIN_SAVING) else "none"


def _samples(pieces: Sequence[memoryview]) -> Iterator[memoryview]:
    """Stretches spread evenly over the pieces; all of them, if they are small."""
    total = sum(map(len, pieces))
    if total <= _SAMPLE * _SAMPLES:
        yield from pieces
        return
    starts = [(total - _SAMPLE) * i // (_SAMPLES - 1) for i in range(_SAMPLES)]
    offset = 0
    for piece in pieces:
        for start in starts:
            first, last = max(start, offset), min(start + _SAMPLE, offset + len(piece))
            if first < last:
                yield piece[first - offset : last - offset]
        offset += len(piece)
