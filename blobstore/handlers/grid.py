"""How an array is divided into contiguous runs, and how those are read from memory.

A run has one index along the first axes, several along one axis, everything along the rest. The
last run along that axis is shorter than the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from blobstore.handlers.dtypes import padding

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

CHUNK_PACKED = 1 << 22
CHUNK_PLAIN = 1 << 20
"""Bytes in a chunk. Larger ones keep more threads busy; plain ones of 1 MiB are what other readers
are quickest with."""

BLOCK = 1 << 17
_INNER = 1 << 19
"""What is compressed at a time, and up to which size a step along an axis is not split further."""

_TILE = 32


@dataclass(frozen=True, slots=True)
class Run:
    """A contiguous run of an array in C order, the content of one chunk.

    Attributes
    ----------
    start, nbytes : int
        In bytes of the array in C order; padding is not counted.
    index : tuple
        Selects it from the array.
    """

    start: int
    nbytes: int
    index: tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """How an array is divided into chunks, and chunks into blocks.

    Attributes
    ----------
    shape : tuple of int
    itemsize : int
    axis : int
        Chunks have one index along the axes before it, and all along those after it.
    step, block : int
        Indices along `axis` in a chunk and in a block.
    """

    shape: tuple[int, ...]
    itemsize: int
    axis: int
    step: int
    block: int

    @classmethod
    def packed(cls, shape: tuple[int, ...], itemsize: int, chunk: int = 0) -> Grid:
        """For chunks that are compressed, in which padding costs nothing."""
        chunk = chunk or CHUNK_PACKED
        axis, inner, length = _split(shape, itemsize, min(_INNER, chunk))
        block = max(1, min(min(BLOCK, chunk) // inner, length))
        step = block * max(1, chunk // (block * inner))
        return cls(shape, itemsize, axis, min(step, length), block)

    @classmethod
    def plain(cls, shape: tuple[int, ...], itemsize: int) -> Grid:
        """For chunks that are stored as they are: one block each, with little padding."""
        axis, inner, length = _split(shape, itemsize, _INNER)
        fewest = -(-length * inner // CHUNK_PLAIN)
        best = min(length, max(1, CHUNK_PLAIN // inner))
        least = length * inner
        for count in range(fewest, fewest + 32):
            if count * 4096 >= least:
                break  # more chunks only cost more
            step = max(1, -(-length // max(1, count)))
            cost = (step * -(-length // step) - length) * inner + count * 4096
            if step * inner <= max(inner, CHUNK_PLAIN) and cost < least:
                best, least = step, cost
        return cls(shape, itemsize, axis, max(1, best), max(1, best))

    @property
    def inner(self) -> int:
        """Bytes in a step of one along the axis."""
        return math.prod(self.shape[self.axis + 1 :]) * self.itemsize

    @property
    def length(self) -> int:
        """Of the axis."""
        return self.shape[self.axis] if self.shape else 1

    @property
    def per_row(self) -> int:
        """Chunks along the axis."""
        return -(-self.length // self.step)

    @property
    def empty(self) -> bool:
        """Whether the array has no items."""
        return 0 in self.shape

    @property
    def count(self) -> int:
        """How many chunks there are."""
        return 0 if self.empty else math.prod(self.shape[: self.axis]) * self.per_row

    @property
    def block_bytes(self) -> int:
        """Of a block."""
        return 0 if self.empty else self.block * self.inner

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk, padding included."""
        return -(-self.step // self.block) * self.block_bytes

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """As other readers want it."""
        return self._shape_of(self.step)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """As other readers want it."""
        return self._shape_of(self.block)

    def _shape_of(self, step: int) -> tuple[int, ...]:
        if self.empty:
            return tuple(min(length, 1) for length in self.shape)
        if not self.shape:
            return ()
        return (*(1,) * self.axis, step, *self.shape[self.axis + 1 :])

    def run(self, number: int) -> Run:
        """Where chunk `number` lies."""
        outer, position = divmod(number, self.per_row)
        first = position * self.step
        last = min(first + self.step, self.length)
        before = np.unravel_index(outer, self.shape[: self.axis]) if self.axis else ()
        along = (slice(first, last),) if self.shape else ()
        index: tuple[int | slice, ...] = (*(int(i) for i in before), *along)
        start = (outer * self.length + first) * self.inner
        return Run(start, (last - first) * self.inner, index)

    def chunks_of_rows(self, start: int, stop: int) -> range:
        """The chunks that hold rows ``[start, stop)`` of the first axis."""
        if start >= stop or self.empty:
            return range(0)
        if self.axis == 0:
            return range(start // self.step, -(-stop // self.step))
        per_row = math.prod(self.shape[1 : self.axis]) * self.per_row
        return range(start * per_row, stop * per_row)


def _split(shape: tuple[int, ...], itemsize: int, most: int) -> tuple[int, int, int]:
    """The first axis along which one step is at most `most` bytes; that step, and its length."""
    if not shape or 0 in shape:
        return 0, itemsize, 1
    axis, inner = len(shape) - 1, itemsize
    while axis and inner * shape[axis] <= most:
        inner *= shape[axis]
        axis -= 1
    return axis, inner, shape[axis]


def raw_bytes(array: Array) -> Bytes:
    """The memory of a C-contiguous array, as it is."""
    return array.reshape(-1).view(np.uint8)


def pieces(array: Array, grid: Grid, numbers: Iterable[int] | None = None) -> Iterator[Bytes]:
    """The bytes of an array in C order, one chunk at a time, without the padding at its end.

    Views of the array where its memory allows it; else each a copy, bytes that belong to no value
    set to zero.
    """
    flat = raw_bytes(array) if array.flags.c_contiguous else None
    unused = padding(array.dtype)
    for number in range(grid.count) if numbers is None else numbers:
        run = grid.run(number)
        if flat is not None:
            raw = flat[run.start : run.start + run.nbytes]
        else:
            part = array[run.index]
            raw = raw_bytes(copy_tiled(np.empty(part.shape, part.dtype), part))
        if unused is not None:
            raw = raw.copy()
            raw.reshape(-1, grid.itemsize)[:, unused] = 0
        yield raw


def copy_tiled(target: Array, source: Array) -> Array:
    """Copy between arrays of one shape; several times quicker if one is transposed to the other.

    In tiles, because rows a power of two apart would throw one another out of the cache.
    """
    width = target.shape[-1] if target.ndim > 1 else 0
    if width <= _TILE or (_rows_apart(target) and _rows_apart(source)):
        target[...] = source
        return target
    for start in range(0, width, _TILE):
        target[..., start : start + _TILE] = source[..., start : start + _TILE]
    return target


def _rows_apart(array: Array) -> bool:
    """Whether neighbours along the last axis are the nearest ones in memory."""
    return abs(array.strides[-1]) <= min(map(abs, array.strides))
