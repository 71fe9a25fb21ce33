"""NumPy arrays, as Blosc2 `.b2nd` frames that any Blosc2 opens.

Parts small enough to live in the index, where no other tool reads them, are NPY instead, which
is thirty times quicker to make. Reading tells the two apart by their first bytes; neither can hold
Python objects, and nothing is ever unpickled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, BinaryIO, Literal

import numpy as np

from blobstore import codecs
from blobstore.errors import DecodeError, InvalidInputError, UnsupportedTypeError
from blobstore.handlers import b2nd
from blobstore.handlers.dtypes import dtype_text, padding, parse_dtype
from blobstore.handlers.grid import CHUNK_PLAIN, Array, Grid, pieces, raw_bytes
from blobstore.handlers.leaves import LeafHandler
from blobstore.handlers.options import refuse_options
from blobstore.protocols import (
    Encoding,
    Plan,
    PlannedPart,
    StoredPart,
    WriteOptions,
)
from blobstore.streams import Hasher, Sink

_NPY_MAGIC = b"\x93NUMPY"
_QUICK = {(codec, level) for codec in ("lz4", "blosclz") for level in (1, 2, 3)}
_QUICK_SAVING = 0.25
"""What the fastest methods have to save of an array. They find an eighth in weights of 32 bits, whose
exponents are alike, and nearly a quarter in bfloat16. That makes up for the time that they take on
slow disks only: as they are, such arrays are stored and loaded several times as quickly."""

_LONG = 1 << 16
"""From so many characters on, what a dtype is called is no reason to be quick."""

_SAMPLES = 8
_SAMPLE = 1 << 12, 1 << 14
"""How much is compressed to find out whether compression pays, in so many places all over an array:
an eighth of it, but 32 KiB at least and 128 KiB at most."""


class NumpyHandler(LeafHandler):
    """`numpy.ndarray` of every dtype without Python objects.

    Values come back bit for bit, with dtype, shape and memory order, in writable memory of their
    own. `read` takes ``rows=slice(...)`` to load a part along the first axis.

    Examples
    --------
    >>> plan = NumpyHandler().plan(np.zeros((20, 30), "<f4"), WriteOptions())
    >>> plan.info
    {'dtype': '<f4', 'shape': [20, 30], 'order': 'C', 'nbytes': 2400}
    >>> plan.parts[0].encoding()
    Encoding(codec='lz4', extension='.b2nd')
    """

    name = "numpy"
    type_names = ("numpy.ndarray",)

    def can_handle(self, obj: Any) -> bool:
        """Exactly this type: subclasses (masked arrays, matrices, records) hold more than it."""
        return type(obj) is np.ndarray

    def plan(self, obj: Array, options: WriteOptions) -> Plan:
        """Decide how to store an array; its values are not looked at yet.

        Raises
        ------
        UnsupportedTypeError
            Its dtype holds Python objects or text of any length, or Blosc2 cannot give it back
            exactly: more than 8 dimensions, items of no bytes or over 8 MiB, metadata.
        """
        part = ArrayPart(obj, options)
        fortran = obj.flags.f_contiguous and not obj.flags.c_contiguous
        info = {
            "dtype": part.text,
            "shape": list(obj.shape),
            "order": "F" if fortran else "C",
            "nbytes": obj.nbytes,
        }
        return Plan("array", info, (part,))

    def read(
        self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any
    ) -> Array:
        """Read an array, or some of its rows.

        Parameters
        ----------
        parts, info : mapping
        rows : slice, optional
            Along the first axis; only what is needed for them is read.

        Raises
        ------
        DecodeError
            The part is no array, or another one than `info` says.
        InvalidInputError
            An unknown option, or `rows` is no slice, or the array has no axis.
        """
        refuse_options(self, options, "rows")
        try:
            part, text, shape = parts["data"], info["dtype"], tuple(info["shape"])
            order: Literal["C", "F"] = "F" if info["order"] == "F" else "C"
        except (KeyError, TypeError) as exc:
            raise DecodeError(f"an array was stored without its {exc}") from exc
        if not isinstance(text, str) or any(type(n) is not int or n < 0 for n in shape):
            raise DecodeError(f"no array has the dtype {text!r} and the shape {shape}")
        rows = _check_rows(options.get("rows"), shape)
        if part.codec == "none" and rows is None and len(text) < _LONG:
            with part.source.one_pass() as file:
                array = _read_plain(file, part.source.size, text, shape, order)
            if array is not None:
                return array
        with part.source.open() as file:
            if file.read(len(_NPY_MAGIC)) == _NPY_MAGIC:
                file.seek(0)
                return _read_npy(file.read(), text, shape, order, rows)
            frame = b2nd.FrameReader(file, part.source.size)
            _check_kind(frame.dtype, frame.shape, text, shape)
            return frame.read(order, rows, part.trust.growth_limit(part.source.size))


class ArrayPart(PlannedPart):
    """An array about to be written.

    Parameters
    ----------
    array : ndarray
        Not changed until the part is written.
    options : WriteOptions

    Raises
    ------
    UnsupportedTypeError
        See `NumpyHandler.plan`.

    Attributes
    ----------
    text : str
        The dtype.
    """

    handler = NumpyHandler.name

    def __init__(self, array: Array, options: WriteOptions) -> None:
        self.text = exact_text(array)
        self.size_hint = array.nbytes
        self._array = array
        self._options = options
        self._coding: b2nd.Coding | None = None
        self._npy: bytes | None = None
        if array.nbytes <= options.inline_max_bytes and array.dtype.kind != "V":
            header = _npy_header(self.text, array.shape)
            if len(header) + array.nbytes <= options.inline_max_bytes:
                self._npy = header

    def digest(self, hasher: Hasher) -> None:
        """Feed dtype, shape and the values in C order, whatever the memory order is."""
        _feed(hasher, self._array, self.text)

    def encoding(self) -> Encoding:
        """Compress samples, if there is a codec; the better of two filters is kept."""
        if self._npy is not None:
            return Encoding("none", ".npy")
        codec = "none" if self._choose().level == 0 else self._options.codec
        return Encoding(codec, ".b2nd")

    def _choose(self) -> b2nd.Coding:
        if self._coding is None:
            codec, level = self._options.codec, self._options.level
            self._coding = b2nd.PLAIN if codec == "none" else _choose(self._array, codec, level)
        return self._coding

    def write(self, sink: Sink) -> None:
        """Write the array; no more than some chunks of it are held at a time."""
        if self._npy is not None:
            sink.write(self._npy + self._array.tobytes("C"))
        else:
            b2nd.write(self._array, self.text, self._choose(), sink)


def exact_text(array: Array) -> str:
    """The dtype of an array as text, if the array can be stored exactly.

    Raises
    ------
    UnsupportedTypeError
        It cannot.
    """
    if array.ndim > b2nd.MAX_DIMENSIONS or array.itemsize > b2nd.MAX_ITEM:
        raise UnsupportedTypeError(
            f"no Blosc2 frame holds an array of {array.ndim} dimensions and items of "
            f"{array.itemsize} bytes"
        )
    return dtype_text(array.dtype)


def update_digest(hasher: Hasher, array: Any) -> bool:
    """Feed an array to a digest, as it is fed when it is stored by itself.

    Parameters
    ----------
    hasher : Hasher
    array : object

    Returns
    -------
    bool
        False, and nothing was fed, if it is no array or its dtype has no canonical form (Python
        objects in it).

    Examples
    --------
    >>> from blobstore.digest import new_digest
    >>> c, f = new_digest(), new_digest()
    >>> square = np.arange(9).reshape(3, 3)
    >>> update_digest(c, square), update_digest(f, np.asfortranarray(square))
    (True, True)
    >>> c.hexdigest() == f.hexdigest(), update_digest(c, np.array([None]))
    (True, False)
    """
    if type(array) is not np.ndarray:
        return False
    try:
        text = exact_text(array)
    except UnsupportedTypeError:
        return False
    _feed(hasher, array, text)
    return True


def _feed(hasher: Hasher, array: Array, text: str) -> None:
    """The canonical stream of an array, version 1: it tells its own length, so it can be a part."""
    kind = text.encode()
    numbers = (len(kind), array.ndim, *array.shape)
    head = b"".join(number.to_bytes(8, "little") for number in numbers)
    hasher.update(b"blobstore:ndarray:1\0" + head + kind)
    if array.flags.c_contiguous and padding(array.dtype) is None:
        hasher.update(raw_bytes(array).data)
        return
    grid = Grid.packed(array.shape, array.itemsize, CHUNK_PLAIN)
    for raw in pieces(array, grid):
        hasher.update(raw.data)


def _choose(array: Array, codec: str, level: int) -> b2nd.Coding:
    """The coding that makes a sample smallest, or none if that saves too little."""
    least, most = _SAMPLE
    size = min(max(least, array.nbytes // (8 * _SAMPLES)), most)
    grid = Grid.packed(array.shape, array.itemsize, size)
    last = grid.count - 1
    if last < 0:
        return b2nd.PLAIN
    numbers = sorted({last * i // (_SAMPLES - 1) for i in range(_SAMPLES)})
    sample = np.concatenate(list(pieces(array, grid, numbers)))
    sizes = {
        coding: coding.sample(sample, array.itemsize)
        for coding in b2nd.candidates(array.dtype, codec, level)
    }
    best = min(sizes, key=sizes.__getitem__)
    return best if sizes[best] <= len(sample) * (1 - _least_saving(codec, level)) else b2nd.PLAIN


def _least_saving(codec: str, level: int) -> float:
    """The share that compression has to save of an array."""
    return _QUICK_SAVING if (codec, level) in _QUICK else codecs.MIN_SAVING


@functools.lru_cache(maxsize=256)
def _npy_header(text: str, shape: tuple[int, ...]) -> bytes:
    """The header of NPY 1.0 (NEP 1), always of the same bytes, whatever NumPy's own looks like."""
    content = f"{{'descr': {text!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    size = -(-(10 + len(content) + 1) // 64) * 64
    content = content.ljust(size - 11) + "\n"
    return _NPY_MAGIC + b"\x01\x00" + len(content).to_bytes(2, "little") + content.encode("latin-1")


def _read_npy(
    data: bytes, text: str, shape: tuple[int, ...], order: Literal["C", "F"], rows: slice | None
) -> Array:
    dtype = parse_dtype(text)
    header = _npy_header(text, shape)
    if not data.startswith(header) or len(data) != len(header) + math.prod(shape) * dtype.itemsize:
        raise DecodeError(f"a small array is damaged, or is not {text} of shape {shape}")
    array = np.frombuffer(data, dtype, offset=len(header)).reshape(shape)
    return (array if rows is None else array[rows]).copy(order)


def _read_plain(
    file: BinaryIO, size: int, text: str, shape: tuple[int, ...], order: Literal["C", "F"]
) -> Array | None:
    """Read in order what is not compressed; None if it is."""
    start = file.read(len(_NPY_MAGIC))
    if start == _NPY_MAGIC:
        return _read_npy(start + file.read(), text, shape, order, None)
    frame = b2nd.PlainReader(file, size, start)
    _check_kind(frame.dtype, frame.shape, text, shape)
    return frame.read(order) if frame.is_plain else None


def _check_kind(
    dtype: np.dtype[Any], shape: tuple[int, ...], text: str, expected: tuple[int, ...]
) -> None:
    if dtype_text(dtype) != text or shape != expected:
        raise DecodeError(
            f"an array of dtype {dtype} and shape {shape} is stored where the index says {text} "
            f"and {expected}"
        )


def _check_rows(rows: Any, shape: tuple[int, ...]) -> slice | None:
    if rows is None:
        return None
    if not isinstance(rows, slice):
        raise InvalidInputError(f"rows must be a slice, not {rows!r}: use slice(start, stop)")
    if not shape:
        raise InvalidInputError("this array is a single number and has no rows: leave rows out")
    try:
        rows.indices(shape[0])
    except (TypeError, ValueError) as exc:
        raise InvalidInputError(f"rows={rows!r} is no slice of whole numbers: {exc}") from exc
    return rows
