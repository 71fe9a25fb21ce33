"""Blosc2 `.b2nd` frames: written as a stream, read chunk by chunk.

A frame is a header, chunks, the offsets of the chunks, and a trailer (sources: the C-Blosc2
documents README_CFRAME_FORMAT, README_CHUNK_FORMAT and README_B2ND_METALAYER). Blosc2 compresses
and decompresses each chunk; the few bytes between the chunks are made and checked here, because
that way a frame goes straight into any sink and comes out of any source, no array is held twice,
reading some rows fetches only their chunks, and all that a damaged frame says of sizes and filters
is checked before C code acts on it. Any Blosc2 reads these frames.

Each chunk is a contiguous run of the array in C order (see `grid`); the last one along an axis is
padded with zeros.
"""

from __future__ import annotations

import io
import itertools
import math
import multiprocessing
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import blosc2
import numpy as np

from blobstore import limits
from blobstore.errors import DecodeError, from_os_error
from blobstore.handlers.dtypes import parse_dtype
from blobstore.handlers.grid import BLOCK, Array, Bytes, Grid, copy_tiled, pieces, raw_bytes
from blobstore.streams import Buffer, Sink

# Otherwise one thread that compresses would stop all others. It is a switch of the whole process,
# and it changes nothing but that.
blosc2.set_releasegil(True)

MAX_DIMENSIONS = 8
MAX_ITEM = 1 << 23
"""Blosc2 limits the one; the other bounds a chunk, which holds whole items."""

_CHUNK_HEADER = 32
_TRAILER = bytes.fromhex("940193cd0006de0000dc0000ce00000023d800") + bytes(16)

CODEC_IDS = {
    "blosclz": blosc2.Codec.BLOSCLZ,
    "lz4": blosc2.Codec.LZ4,
    "lz4hc": blosc2.Codec.LZ4HC,
    "gzip": blosc2.Codec.ZLIB,
    "zstd": blosc2.Codec.ZSTD,
}
_SPECIAL, _SPECIAL_ZERO = 0x70, 0x10
"""In the last byte of a chunk's header: what chunks without content stand for."""

_ZEROS = (0x81 << 56) - (1 << 64)
"""In place of an offset: this chunk is all zeros, and is not there."""

_NO_FILTER, _SHUFFLE, _BITSHUFFLE = 0, 1, 2


# --- chunks --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Coding:
    """How chunks are compressed.

    Attributes
    ----------
    codec : str
        One of `CODEC_IDS`.
    level : int
        Blosc2's, 0 to 9; at 0 chunks are stored as they are.
    filter : {0, 1, 2}
        What is done before: nothing, bytes shuffled, bits shuffled.
    width : int
        Of what is shuffled, if it is not the item; else 0.
    """

    codec: str
    level: int
    filter: int = _NO_FILTER
    width: int = 0

    @property
    def pipeline(self) -> bytes:
        """Filters, codec and their settings, as headers have them."""
        return struct.pack(
            "6B2B6B2x",
            self.filter,
            *(0,) * 5,
            CODEC_IDS[self.codec].value,
            0,
            self.width,
            *(0,) * 5,
        )

    def compress(self, raw: Bytes, grid: Grid) -> bytes:
        """Make a chunk, padded with zeros if it is the last along its axis; b"" is all zeros."""
        if len(raw) < grid.chunk_bytes:
            raw, short = np.zeros(grid.chunk_bytes, np.uint8), raw
            raw[: len(short)] = short
        chunk = self._compress(raw, self.level, grid.itemsize, grid.block_bytes)
        return b"" if chunk[31] & _SPECIAL == _SPECIAL_ZERO else chunk

    def sample(self, raw: Bytes, itemsize: int) -> int:
        """Roughly how small some items become; never slow, whatever the level is."""
        block = min(len(raw), max(1, BLOCK // itemsize) * itemsize)
        return len(self._compress(raw, min(self.level, 3), itemsize, block))

    def _compress(self, raw: Bytes, level: int, itemsize: int, block: int) -> bytes:
        chunk: bytes = blosc2.compress2(
            raw,
            codec=CODEC_IDS[self.codec],
            clevel=level,
            typesize=_typesize(itemsize),
            filters=[self.filter],
            filters_meta=[self.width],
            blocksize=block,
            nthreads=_threads(len(raw)),
        )
        return chunk


PLAIN = Coding("lz4", 0)


def candidates(dtype: np.dtype[Any], codec: str, level: int) -> list[Coding]:
    """The codings to try for a dtype: which one is best is a matter of the values."""
    if codec == "lz4" and level >= 7:
        codec = "lz4hc"
    elif codec == "zstd":
        level = (level + 1) // 2  # Blosc2's level n is Zstandard's 2n - 1, and its 9 is 22
    plain = Coding(codec, level)
    if dtype.kind == "U":
        return [Coding(codec, level, _SHUFFLE, 4), plain]
    if dtype.itemsize > 255:
        return [plain]
    if dtype.kind in "SV":
        return [Coding(codec, level, _SHUFFLE), plain]
    if dtype.itemsize == 1:
        return [plain, Coding(codec, level, _BITSHUFFLE)]
    return [Coding(codec, level, _SHUFFLE), Coding(codec, level, _BITSHUFFLE)]


def _typesize(itemsize: int) -> int:
    return itemsize if itemsize <= 255 else 1


class _Threads:
    """How many threads Blosc2 may use in this process.

    It keeps them for ever. A forked child has none of its parent's, but Blosc2 would wait for
    them: there it may use none but the caller's.
    """

    most = 8 if multiprocessing.parent_process() is None else 1

    @classmethod
    def after_fork(cls) -> None:
        cls.most = 1


os.register_at_fork(after_in_child=_Threads.after_fork)


def _threads(nbytes: int) -> int:
    return int(max(1, min(blosc2.nthreads, _Threads.most, nbytes >> 18)))


def plain_header(grid: Grid) -> bytes:
    """What comes before the bytes of a whole chunk that is stored as it is."""
    return _plain_header(_typesize(grid.itemsize), grid.chunk_bytes, grid.block_bytes)


def _plain_header(typesize: int, nbytes: int, block: int) -> bytes:
    return (
        struct.pack("<4B3i", 5, 1, 0x07, typesize, nbytes, block, nbytes + _CHUNK_HEADER)
        + PLAIN.pipeline
    )


# --- frames --------------------------------------------------------------------------------------

_HEAD = struct.Struct(">B9sBiBQB4sBqBqBiBiBiBhBhBBB16s")
_META = struct.Struct(">BBHBHB4sBiBHBI")
_SIZE_AT = slice(11, 15)
"""Where a header says how long it is."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What the header of a frame says.

    Attributes
    ----------
    grid : Grid
    dtype : str
        See `dtype_text`.
    coding : Coding
    cbytes : int
        Stored bytes of all chunks.
    """

    grid: Grid
    dtype: str
    coding: Coding
    cbytes: int

    @property
    def header(self) -> bytes:
        """The bytes before the first chunk."""
        grid = self.grid
        meta = self._b2nd()
        size = _HEAD.size + _META.size + len(meta)
        codec = CODEC_IDS[self.coding.codec].value | self.coding.level << 4
        flags = bytes([0x53 if grid.empty else 0x12, 0, codec, 2])
        return b"".join(
            (
                _HEAD.pack(
                    *(0x9E, b"\xa8b2frame\0", 0xD2, size),
                    *(0xCF, size + self.cbytes + self.tail_size),
                    *(0xA4, flags, 0xD3, grid.count * grid.chunk_bytes, 0xD3, self.cbytes),
                    *(0xD2, grid.itemsize, 0xD2, grid.block_bytes, 0xD2, grid.chunk_bytes),
                    *(0xD1, 1, 0xD1, 1, 0xC2, 0xD8, 6, self.coding.pipeline),
                ),
                _META.pack(
                    *(0x93, 0xCD, 17, 0xDE, 1, 0xA4, b"b2nd", 0xD2, 107),
                    *(0xDC, 1, 0xC6, len(meta)),
                ),
                meta,
            )
        )

    def _b2nd(self) -> bytes:
        grid = self.grid
        ndim, text = len(grid.shape), self.dtype.encode()
        small = [
            struct.pack(">B" + "Bi" * ndim, 0x90 | ndim, *(x for n in shape for x in (0xD2, n)))
            for shape in (grid.chunk_shape, grid.block_shape)
        ]
        return b"".join(
            (
                struct.pack(">3B", 0x97, 0, ndim),
                struct.pack(
                    ">B" + "Bq" * ndim, 0x90 | ndim, *(x for n in grid.shape for x in (0xD3, n))
                ),
                *small,
                struct.pack(">BBI", 0, 0xDB, len(text)),
                text,
            )
        )

    @property
    def tail_size(self) -> int:
        """Bytes after the last chunk."""
        count = self.grid.count
        return len(_TRAILER) + (_CHUNK_HEADER + 8 * count if count else 0)

    def tail(self, offsets: list[int]) -> bytes:
        """The bytes after the last chunk: where chunks start, as a chunk itself, and a trailer."""
        if not offsets:
            return _TRAILER
        size = 8 * len(offsets)
        return b"".join(
            (_plain_header(8, size, size), struct.pack(f"<{len(offsets)}q", *offsets), _TRAILER)
        )

    @classmethod
    def parse(cls, data: bytes) -> Frame:
        """Undo `header`; bytes behind it are ignored.

        Raises
        ------
        DecodeError
            It is no header as this module makes it, or cut off.
        """
        try:
            frame = cls._parse(data)
            exact = data.startswith(frame.header)
        except (struct.error, ValueError, KeyError, IndexError) as exc:
            raise DecodeError("this is no Blosc2 frame, or it is damaged") from exc
        if not exact:
            raise DecodeError("this Blosc2 frame is damaged, or was not written by blobstore")
        return frame

    @classmethod
    def _parse(cls, data: bytes) -> Frame:
        head = _HEAD.unpack_from(data)
        flags, cbytes, itemsize, pipeline = head[7], head[11], head[13], head[-1]
        at = _HEAD.size + _META.size
        ndim = data[at + 2]
        lengths = struct.unpack_from(">" + "xq" * ndim, data, at + 4)
        at += 4 + 9 * ndim
        chunks = struct.unpack_from(">" + "xi" * ndim, data, at + 1)
        blocks = struct.unpack_from(">" + "xi" * ndim, data, at + 2 + 5 * ndim)
        at += 4 + 10 * ndim
        (length,) = struct.unpack_from(">I", data, at)
        text = data[at + 4 : at + 4 + length].decode()
        axis = max((i for i in range(1, ndim) if blocks[i] != lengths[i]), default=0)
        step, block = (chunks[axis], blocks[axis]) if ndim and 0 not in lengths else (1, 1)
        names = {codec.value: name for name, codec in CODEC_IDS.items()}
        coding = Coding(names[flags[2] & 15], flags[2] >> 4, pipeline[0], pipeline[8])
        if coding.filter > _BITSHUFFLE or min(step, block, itemsize) < 1 or min((0, *lengths)) < 0:
            raise ValueError("impossible numbers")
        return cls(Grid(lengths, itemsize, axis, step, block), text, coding, cbytes)


_IN_MEMORY = 1 << 25
"""Up to so many bytes of an array, its chunks are held until their sizes are known."""

_AT_ONCE = 1 << 18


def write(array: Array, text: str, coding: Coding, sink: Sink) -> None:
    """Write an array as a frame.

    Parameters
    ----------
    array : ndarray
        Of any memory layout; it is copied a chunk at a time, if it has to be.
    text : str
        The array's `dtype_text`.
    coding : Coding
    sink : Sink
    """
    if coding.level == 0:
        _write_plain(array, text, sink)
        return
    grid = Grid.packed(array.shape, array.itemsize)
    if array.nbytes > _IN_MEMORY:
        _write_file(array, text, coding, grid, sink.path())
        return
    chunks = [coding.compress(raw, grid) for raw in pieces(array, grid)]
    frame = Frame(grid, text, coding, sum(map(len, chunks)))
    _write_all(sink, (frame.header, *chunks, frame.tail(_offsets(chunks))))


def _write_plain(array: Array, text: str, sink: Sink) -> None:
    """All sizes are known before: the memory of the array goes to the sink as it is."""
    grid = Grid.plain(array.shape, array.itemsize)
    size = grid.chunk_bytes + _CHUNK_HEADER
    frame = Frame(grid, text, PLAIN, grid.count * size)
    header = plain_header(grid)

    def content() -> Iterator[Buffer]:
        yield frame.header
        for raw in pieces(array, grid):
            yield header
            yield raw.data
            if len(raw) < grid.chunk_bytes:
                yield bytes(grid.chunk_bytes - len(raw))
        yield frame.tail([size * number for number in range(grid.count)])

    _write_all(sink, content(), small=frame.cbytes <= _AT_ONCE)


def _write_all(sink: Sink, content: Iterable[Buffer], *, small: bool | None = None) -> None:
    if small is None:
        content = tuple(content)
        small = sum(map(len, content)) <= _AT_ONCE
    if small:
        sink.write(b"".join(content))
        return
    for buffer in content:
        sink.write(buffer)


def _write_file(array: Array, text: str, coding: Coding, grid: Grid, path: Path) -> None:
    """The header has sizes that are known last: it is written last, into a file."""
    offsets, total = [], 0
    blank = len(Frame(grid, text, coding, 0).header)
    try:
        with path.open("wb", buffering=0) as file:
            file.seek(blank)
            for raw in pieces(array, grid):
                chunk = coding.compress(raw, grid)
                offsets.append(total if chunk else _ZEROS)
                total += len(chunk)
                file.write(chunk)
            frame = Frame(grid, text, coding, total)
            file.write(frame.tail(offsets))
            file.seek(0)
            file.write(frame.header)
    except OSError as exc:
        raise from_os_error(exc, f"writing the temporary file {path}") from exc


def _offsets(chunks: list[bytes]) -> list[int]:
    ends = itertools.accumulate(map(len, chunks))
    return [end - len(chunk) if chunk else _ZEROS for chunk, end in zip(chunks, ends, strict=True)]


class _Reader(ABC):
    """What both ways to read a frame have in common.

    Attributes
    ----------
    shape, dtype
        Of the array.
    """

    def __init__(self, file: BinaryIO, frame: Frame, start: int, size: int) -> None:
        self._file = file
        self._frame = frame
        self._grid = frame.grid
        self._start = start
        self.shape = frame.grid.shape
        self.dtype = parse_dtype(frame.dtype)
        whole = start + frame.cbytes + frame.tail_size
        if self.dtype.itemsize != frame.grid.itemsize or size != whole:
            raise DecodeError(f"a Blosc2 frame is damaged or cut off: it has {size} bytes")

    def _read_rows(self, order: Literal["C", "F"], rows: slice | None, limit: int) -> Array:
        if rows is None or not self.shape:
            wanted = range(self.shape[0] if self.shape else 1)
        else:
            wanted = range(*rows.indices(self.shape[0]))
        shape = (len(wanted), *self.shape[1:]) if self.shape else ()
        size = math.prod(shape) * self.dtype.itemsize
        if size > limit:
            raise limits.bomb(f"an array of shape {shape}", limit)
        limits.check_allocation(size, f"an array of shape {shape}")
        result = np.empty(shape, self.dtype, order)
        if not result.size:
            return result
        if wanted.step == 1 and result.flags.c_contiguous:
            self._fill_flat(raw_bytes(result), wanted.start)
        else:
            self._fill(result, wanted)
        return result

    def _fill_flat(self, flat: Bytes, first: int) -> None:
        """Fill contiguous memory: most chunks are decompressed where they belong."""
        row = math.prod(self.shape[1:]) * self._grid.itemsize
        start, stop = first * row, first * row + len(flat)
        for number in self._grid.chunks_of_rows(first, stop // row):
            run = self._grid.run(number)
            low, high = max(start, run.start), min(stop, run.start + run.nbytes)
            self._read_chunk(number, low - run.start, flat[low - start : high - start])

    def _fill(self, result: Array, wanted: range) -> None:
        """Fill memory of another layout, or with steps between rows, by way of a buffer."""
        grid = self._grid
        ascending = wanted if wanted.step > 0 else wanted[::-1]
        if wanted.step < 0:
            result = result[::-1]
        for number in grid.chunks_of_rows(ascending[0], ascending[-1] + 1):
            run = grid.run(number)
            first = run.index[0]
            low, high = (
                (first.start, first.stop) if isinstance(first, slice) else (first, first + 1)
            )
            begin = -(-max(0, low - ascending.start) // ascending.step)
            end = min(len(ascending), -(-(high - ascending.start) // ascending.step))
            if begin >= end:
                continue
            buffer = np.empty(run.nbytes, np.uint8)
            self._read_chunk(number, 0, buffer)
            piece = buffer.view(self.dtype)
            if isinstance(first, slice):
                piece = piece.reshape(high - low, *self.shape[1:])
                piece = piece[ascending[begin] - low :: ascending.step][: end - begin]
                copy_tiled(result[begin:end], piece)
            else:
                target = result[(begin, *run.index[1:])]
                target[...] = piece.reshape(target.shape)

    @abstractmethod
    def _read_chunk(self, number: int, start: int, into: Bytes) -> None:
        """Read bytes of a chunk, from `start`, as many as there is room for."""

    def _check_chunk(self, number: int, header: bytes, size: int) -> None:
        """Compare all in a chunk's header that tells Blosc2 how much to write, and how."""
        version, _, flags, typesize, nbytes, block, cbytes = struct.unpack_from("<4B3i", header)
        grid = self._grid
        if not (
            version == 5
            and flags & 5 == 5
            and typesize == _typesize(grid.itemsize)
            and nbytes == grid.chunk_bytes
            and 0 < block <= nbytes
            and cbytes == size
            and (not _is_stored(header) or size == nbytes + _CHUNK_HEADER)
            and max(header[16:22]) <= _BITSHUFFLE
            and header[31] & 0x8F == 0
        ):
            raise DecodeError(f"chunk {number} of a Blosc2 frame is damaged")


class FrameReader(_Reader):
    """Reads arrays, or rows of them, out of a frame whose bytes were checked.

    Parameters
    ----------
    file : BinaryIO
        Seekable; not closed.
    size : int
        Of the file.

    Raises
    ------
    DecodeError
        It is no frame of ours, or it is cut off.
    """

    _FIRST = 4096

    def __init__(self, file: BinaryIO, size: int) -> None:
        file.seek(0)
        data = file.read(min(size, self._FIRST))
        header = int.from_bytes(data[_SIZE_AT], "big")
        if self._FIRST < header <= size:
            data += _read(file, header - len(data))
        super().__init__(file, Frame.parse(data), header, size)
        self._spans = self._read_index(self._frame.tail_size)

    def read(
        self,
        order: Literal["C", "F"],
        rows: slice | None = None,
        limit: int = limits.UNLIMITED,
    ) -> Array:
        """Read the array, or some rows of it, into fresh memory.

        Parameters
        ----------
        order : {"C", "F"}
            Of the result in memory.
        rows : slice, optional
            Along the first axis.
        limit : int
            Bytes that the result may take.
        """
        return self._read_rows(order, rows, limit)

    def _read_index(self, size: int) -> list[tuple[int, int]]:
        """Where each chunk starts and ends; twice the same where it is all zeros."""
        count, cbytes = self._grid.count, self._frame.cbytes
        self._file.seek(self._start + cbytes)
        data = _read(self._file, size)
        offsets = list(struct.unpack_from(f"<{count}q", data, _CHUNK_HEADER if count else 0))
        if data != self._frame.tail(offsets):
            raise DecodeError("the index of a Blosc2 frame is damaged")
        stored = [offset for offset in offsets if offset != _ZEROS]
        bounds = [*stored, cbytes]
        if bounds[0] != 0 or any(b - a < _CHUNK_HEADER for a, b in itertools.pairwise(bounds)):
            raise DecodeError("the index of a Blosc2 frame is damaged")
        ends = iter(bounds[1:])
        return [(0, 0) if offset == _ZEROS else (offset, next(ends)) for offset in offsets]

    def _read_chunk(self, number: int, start: int, into: Bytes) -> None:
        """Read bytes of a chunk, from `start`, as many as there is room for."""
        begin, end = self._spans[number]
        if begin == end:
            into[:] = 0
            return
        self._file.seek(self._start + begin)
        header = _read(self._file, _CHUNK_HEADER)
        self._check_chunk(number, header, end - begin)
        if _is_stored(header):
            self._file.seek(start, io.SEEK_CUR)
            _read_into(self._file, into)
            return
        chunk = header + _read(self._file, end - begin - _CHUNK_HEADER)
        size = self._grid.chunk_bytes
        whole = into if len(into) == size else np.empty(size, np.uint8)
        try:
            blosc2.decompress2(chunk, dst=whole, nthreads=_threads(size))
        except (ValueError, RuntimeError) as exc:
            raise DecodeError(f"chunk {number} of a Blosc2 frame is damaged") from exc
        if whole is not into:
            into[:] = whole[start : start + len(into)]


class PlainReader(_Reader):
    """Reads the whole array out of a frame that is not compressed, in one pass over the file.

    The bytes need not have been checked before: none of them reaches Blosc2, and the room that
    they ask for is bounded by the size of the file and by what `shape` and `dtype` tell first.

    Parameters
    ----------
    file : BinaryIO
        Never moved but by reading; not closed.
    size : int
        Of the file.
    start : bytes
        Its first bytes, fewer than 11, which were read already.

    Raises
    ------
    DecodeError
        It is no frame of ours, or it is cut off.

    Attributes
    ----------
    is_plain : bool
        Whether it is not compressed, and can be read here.
    """

    _MOST = 1 << 20
    """Bytes of a header: a dtype has to have thousands of fields to need more."""

    def __init__(self, file: BinaryIO, size: int, start: bytes = b"") -> None:
        data = start + _read(file, _SIZE_AT.stop - len(start))
        header = int.from_bytes(data[_SIZE_AT], "big")
        if not _SIZE_AT.stop <= header <= min(size, self._MOST):
            raise DecodeError("this is no Blosc2 frame, or it is damaged")
        data += _read(file, header - len(data))
        super().__init__(file, Frame.parse(data), header, size)
        self._stored = self._grid.chunk_bytes + _CHUNK_HEADER
        self.is_plain = self._frame.cbytes == self._grid.count * self._stored

    def read(self, order: Literal["C", "F"]) -> Array:
        """Read the array, all of it, into fresh memory; then what follows it in the file.

        Parameters
        ----------
        order : {"C", "F"}
            Of the result in memory.
        """
        array = self._read_rows(order, None, limits.UNLIMITED)
        offsets = [self._stored * number for number in range(self._grid.count)]
        if _read(self._file, self._frame.tail_size) != self._frame.tail(offsets):
            raise DecodeError("the index of a Blosc2 frame is damaged")
        return array

    def _read_chunk(self, number: int, start: int, into: Bytes) -> None:
        """Read the next chunk, and pass over its padding."""
        header = _read(self._file, _CHUNK_HEADER)
        self._check_chunk(number, header, self._stored)
        if not _is_stored(header):
            raise DecodeError(f"chunk {number} of a Blosc2 frame is damaged")
        _read_into(self._file, into)
        _read(self._file, self._grid.chunk_bytes - len(into))


def _is_stored(header: bytes) -> bool:
    """Whether the bytes of a chunk follow its header as they are."""
    return bool(header[2] & 2 and not header[31])


def _read(file: BinaryIO, size: int) -> bytes:
    """Read exactly so many bytes."""
    data = file.read(size)
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            raise DecodeError(f"a Blosc2 frame is cut off: {size - len(data)} bytes are missing")
        data += more
    return data


def _read_into(file: BinaryIO, buffer: Bytes) -> None:
    """Fill a buffer."""
    view = buffer.data
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise DecodeError(f"a Blosc2 frame is cut off: {len(view)} bytes are missing")
        view = view[count:]
