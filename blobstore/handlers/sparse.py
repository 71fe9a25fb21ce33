"""Sparse arrays and matrices of SciPy, each of their arrays a part of its own.

They come back in the layout, type and index type they were; explicit zeros, duplicates and the order
of entries are kept, except in DOK, which has no duplicates and comes back sorted. Indices are checked
when they are read, since SciPy takes them on faith.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from blobstore.errors import DecodeError, InvalidInputError, UnsupportedTypeError
from blobstore.handlers.dtypes import dtype_text, parse_dtype
from blobstore.handlers.leaves import NamedPart
from blobstore.handlers.numpy import NumpyHandler
from blobstore.handlers.options import refuse_options
from blobstore.limits import bomb
from blobstore.protocols import Handler, Plan, StoredPart, WriteOptions

_COMPRESSED = ("csr", "csc", "bsr")
_LAYOUTS = (*_COMPRESSED, "coo", "dia", "dok", "lil")
_CLASSES: dict[str, Any] = {
    f"{layout}_{kind}": getattr(sparse, f"{layout}_{kind}")
    for layout in _LAYOUTS
    for kind in ("array", "matrix")
}
_OF_LISTS = (sparse.lil_array, sparse.lil_matrix)
BYTES_OF_LISTS = 2 * (8 + 56)
"""What a row of LIL takes in memory without any entries."""

_ARRAYS = NumpyHandler()
_MALFORMED = (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError)
"""What SciPy raises for arrays that are no sparse array."""


class SparseHandler(Handler):
    """Every layout of `scipy.sparse`, arrays and matrices.

    `read` takes ``rows=slice(...)`` for CSR, and reads only the entries of those rows.

    Examples
    --------
    >>> plan = SparseHandler().plan(sparse.eye_array(1000, format="csr"), WriteOptions())
    >>> [part.name for part in plan.parts], plan.info["class"], plan.info["shape"]
    (['data', 'indices', 'indptr'], 'csr_array', [1000, 1000])
    """

    name: ClassVar[str] = "sparse"
    type_names: ClassVar[tuple[str, ...]] = tuple(
        f"{cls.__module__}.{cls.__qualname__}" for cls in _CLASSES.values()
    )

    def can_handle(self, obj: Any) -> bool:
        """Whether it is SciPy's, and of no subclass."""
        return type(obj) in _CLASSES.values()

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Take it apart; the arrays themselves are not copied, but of DOK and LIL.

        Raises
        ------
        UnsupportedTypeError
            Its values are Python objects.
        """
        if not self.can_handle(obj):
            raise UnsupportedTypeError(f"{type(obj)!r} is no sparse array")
        name = type(obj).__name__
        dtype = dtype_text(obj.dtype)
        parts, arrays = [], {}
        said: Any = ("blobstore.sparse", 1, name, dtype, list(map(int, obj.shape)))
        for key, array in _take_apart(obj).items():
            plan = _ARRAYS.plan(np.asarray(array), options)
            parts.append(NamedPart(key, plan.parts[0], said))
            arrays[key] = plan.info
            said = None  # once is enough, and the other arrays can be shared
        info = {
            "class": name,
            "shape": list(map(int, obj.shape)),
            "dtype": dtype,
            "stored": int(obj.nnz),
            "arrays": arrays,
        }
        return Plan("sparse", info, tuple(parts))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Read a sparse array, or some of its rows.

        Parameters
        ----------
        parts, info : mapping
        rows : slice, optional
            Only for CSR: only the entries of those rows are read.

        Raises
        ------
        DecodeError
            The parts are no sparse array, or another one than `info` says.
        InvalidInputError
            An unknown option, or rows of another layout.
        """
        refuse_options(self, options, "rows")
        reader = _PartReader(parts, info)
        rows = options.get("rows")
        if rows is not None:
            return _read_rows(reader, rows)
        if reader.cls in _OF_LISTS and "lengths" in parts:
            _check_lists(reader.shape[0], parts["lengths"])
        arrays = {name: reader.array(name) for name in reader.arrays}
        return _put_together(reader.cls, reader.shape, reader.dtype, arrays)


def _check_lists(rows: int, part: StoredPart) -> None:
    """Refuse more lists than a part may grow to: there are two for each row, empty or not."""
    limit = part.trust.growth_limit(part.source.size)
    if rows * BYTES_OF_LISTS > limit:
        raise bomb("a sparse array", limit)


class _PartReader:
    """Reads arrays, whole or stretches of them."""

    def __init__(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any]) -> None:
        self._parts = parts
        try:
            self.cls, self.arrays = _CLASSES[info["class"]], info["arrays"]
            self.shape = tuple(map(int, info["shape"]))
            self.dtype = parse_dtype(info["dtype"])
            known = set(parts) == set(self.arrays)
        except (KeyError, TypeError, ValueError) as exc:
            raise DecodeError(f"a sparse array was stored with a wrong description: {exc}") from exc
        if not known:
            raise DecodeError(f"a sparse array was stored with the parts {sorted(parts)}")

    def array(self, name: str, rows: slice | None = None) -> Any:
        if name not in self.arrays:
            raise DecodeError(f"a sparse array was stored without its {name}")
        wanted = {} if rows is None else {"rows": rows}
        return _ARRAYS.read({"data": self._parts[name]}, self.arrays[name], **wanted)


def _read_rows(reader: _PartReader, rows: Any) -> Any:
    if reader.cls not in (sparse.csr_array, sparse.csr_matrix) or len(reader.shape) != 2:
        raise InvalidInputError(
            f"rows= is for CSR of two dimensions, not for {reader.cls.__name__}: leave it out"
        )
    if not isinstance(rows, slice):
        raise InvalidInputError(f"rows must be a slice, not {rows!r}: use slice(start, stop)")
    try:
        wanted = range(*rows.indices(reader.shape[0]))
    except (TypeError, ValueError) as exc:
        raise InvalidInputError(f"rows={rows!r} is no slice of whole numbers: {exc}") from exc
    low, high = (min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1]) + 1) if wanted else (0, 0)
    indptr = reader.array("indptr", slice(low, high + 1))
    if len(indptr) != high - low + 1:
        raise DecodeError("a sparse array was stored with too few row pointers")
    stretch = slice(int(indptr[0]), int(indptr[-1]))
    arrays = {name: reader.array(name, stretch) for name in ("data", "indices")}
    arrays["indptr"] = indptr - indptr[0]
    found = _put_together(reader.cls, (high - low, reader.shape[1]), reader.dtype, arrays)
    if wanted.step == 1:
        return found
    return found[[row - low for row in wanted]]


def _take_apart(matrix: Any) -> dict[str, Any]:
    layout = matrix.format
    if layout in _COMPRESSED:
        return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}
    if layout == "dia":
        return {"data": matrix.data, "offsets": matrix.offsets}
    if layout == "lil":
        lengths = np.array([len(row) for row in matrix.rows], np.int64)
        return {
            "data": np.array([x for row in matrix.data for x in row], matrix.dtype),
            "columns": np.array([x for row in matrix.rows for x in row], np.int64),
            "lengths": lengths,
        }
    coo = matrix.tocoo(copy=False)
    data, coords = coo.data, coo.coords
    if layout == "dok":
        order = np.lexsort(coords[::-1])
        data, coords = data[order], tuple(coord[order] for coord in coords)
    return {"data": data, **{f"coords{i}": coord for i, coord in enumerate(coords)}}


def _put_together(cls: Any, shape: tuple[int, ...], dtype: Any, arrays: dict[str, Any]) -> Any:
    try:
        return _BUILDERS.get(cls.__name__.partition("_")[0], _compressed)(cls, shape, dtype, arrays)
    except _MALFORMED as exc:
        raise DecodeError(f"what is stored is no {cls.__name__}: {exc}") from exc


def _compressed(cls: Any, shape: tuple[int, ...], dtype: Any, arrays: dict[str, Any]) -> Any:
    blocks: tuple[int, ...] = (1,) * len(shape)
    options: dict[str, Any] = {}
    if cls.__name__.startswith("bsr"):
        blocks = options["blocksize"] = arrays["data"].shape[1:]
    axis = 1 if cls.__name__.startswith("csc") else 0
    rows = shape[axis] // blocks[axis] if len(shape) == 2 else 1
    if len(arrays["indptr"]) != rows + 1:  # before room is made for as many as the shape says
        raise ValueError(f"{len(arrays['indptr'])} pointers to {rows} rows")
    found = cls(shape, dtype=dtype, **options)
    # Not by the constructor, which may choose another type for the indices.
    found.data, found.indices, found.indptr = arrays["data"], arrays["indices"], arrays["indptr"]
    found.check_format(full_check=True)
    return found


def _coo(cls: Any, shape: tuple[int, ...], dtype: Any, arrays: dict[str, Any]) -> Any:
    found = cls(shape, dtype=dtype)
    coords = tuple(arrays[f"coords{i}"] for i in range(len(shape)))
    _check_coords(coords, shape, arrays["data"])
    found.data, found.coords = arrays["data"], coords
    return found


def _check_coords(coords: tuple[Any, ...], shape: tuple[int, ...], data: Any) -> None:
    for coord, length in zip(coords, shape, strict=True):
        if coord.dtype.kind != "i" or coord.ndim != 1 or len(coord) != len(data):
            raise ValueError("coordinates that are no lists of whole numbers")
        if len(coord) and (coord.min() < 0 or coord.max() >= length):
            raise ValueError("coordinates that are outside of it")


def _dok(cls: Any, shape: tuple[int, ...], dtype: Any, arrays: dict[str, Any]) -> Any:
    kind = sparse.coo_matrix if cls is sparse.dok_matrix else sparse.coo_array
    return cls(_coo(kind, shape, dtype, arrays))


def _dia(cls: Any, shape: tuple[int, ...], dtype: Any, arrays: dict[str, Any]) -> Any:
    found = cls(shape, dtype=dtype)
    data, offsets = arrays["data"], arrays["offsets"]
    if data.ndim != 2 or offsets.shape != data.shape[:1] or offsets.dtype.kind != "i":
        raise ValueError("diagonals without offsets")
    if len(np.unique(offsets)) != len(offsets):
        raise ValueError("a diagonal that comes twice")
    found.data, found.offsets = data, offsets
    return found


def _lil(cls: Any, shape: tuple[int, ...], dtype: Any, arrays: dict[str, Any]) -> Any:
    data, columns, lengths = arrays["data"], arrays["columns"], arrays["lengths"]
    _check_coords((columns,), shape[1:], data)
    if len(lengths) != shape[0] or lengths.min(initial=0) < 0 or lengths.sum() != len(data):
        raise ValueError("rows of impossible lengths")
    found = cls(shape, dtype=dtype)
    stop = 0
    for row, length in enumerate(lengths.tolist()):
        start, stop = stop, stop + length
        found.rows[row] = columns[start:stop].tolist()
        found.data[row] = data[start:stop].tolist()
    return found


_BUILDERS = {"coo": _coo, "dok": _dok, "dia": _dia, "lil": _lil}
