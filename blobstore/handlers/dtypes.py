"""NumPy dtypes as text, exactly; and which bytes of their items belong to no value."""

from __future__ import annotations

import ast
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from blobstore.ast_race import parsing_again
from blobstore.errors import DecodeError, UnsupportedTypeError


def dtype_text(dtype: np.dtype[Any]) -> str:
    """The text from which NumPy makes exactly this dtype again.

    Raises
    ------
    UnsupportedTypeError
        There is none: it holds Python objects or text of any length, has metadata, comes from
        another library, or its items have no bytes.

    Examples
    --------
    >>> dtype_text(np.dtype("f4")), dtype_text(np.dtype([("x", ">i2"), ("y", "M8[s]")]))
    ('<f4', "[('x', '>i2'), ('y', '<M8[s]')]")
    """
    text = dtype.str if dtype.names is None else str(dtype)
    try:
        exact = not dtype.hasobject and dtype.itemsize > 0 and _identical(dtype, _parse(text))
    except (ValueError, TypeError, SyntaxError):
        exact = False
    if not exact:
        raise UnsupportedTypeError(f"no Blosc2 frame holds arrays of dtype {dtype!r} exactly")
    return text


def parse_dtype(text: str) -> np.dtype[Any]:
    """Undo `dtype_text`.

    Raises
    ------
    DecodeError
        It is no such text; in particular none of a dtype that holds Python objects.
    """
    try:
        dtype = _parse(text)
        known = dtype_text(dtype) == text
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as exc:
        raise DecodeError(
            f"an array is stored with the dtype {text[:200]!r}, unknown here"
        ) from exc
    if not known:
        raise DecodeError(
            f"an array is stored with the dtype {text[:200]!r}, which is none of ours"
        )
    return dtype


def _parse(text: str) -> np.dtype[Any]:
    if text[:1] not in ("[", "{"):
        return np.dtype(text)
    found: np.dtype[Any] = np.dtype(parsing_again(lambda: ast.literal_eval(text)))
    return found


def _identical(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """Whether two dtypes are the same in all that NumPy shows: `==` ignores some of it."""
    if one != other or one.metadata or one.isalignedstruct != other.isalignedstruct:
        return False
    if one.kind == "V" and one.type is not other.type:
        return False  # a record, for instance
    if one.subdtype is not None and other.subdtype is not None:
        return _identical(one.subdtype[0], other.subdtype[0])
    if one.fields is None or other.fields is None:
        return one.fields is other.fields
    return one.fields.keys() == other.fields.keys() and all(
        field[1:] == other.fields[name][1:] and _identical(field[0], other.fields[name][0])
        for name, field in one.fields.items()
    )


def padding(dtype: np.dtype[Any]) -> npt.NDArray[np.intp] | None:
    """Positions of bytes inside an item that belong to no value; None if there are none.

    What is in them is left over from earlier use of the memory: it must neither decide whether
    two arrays are equal, nor be stored.
    """
    if dtype.names is None and dtype.char not in "gG":
        return None
    unused = np.flatnonzero(~_used(dtype))
    return unused if len(unused) else None


def _used(dtype: np.dtype[Any]) -> npt.NDArray[np.bool_]:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return np.tile(_used(base), math.prod(shape))
    used = np.ones(dtype.itemsize, np.bool_)
    if dtype.fields is not None:
        used[:] = False
        for field, offset, *_ in dtype.fields.values():
            used[offset : offset + field.itemsize] |= _used(field)
    elif dtype.char in "gG" and np.finfo(np.longdouble).nmant == 63:
        # Extended precision of x87: 10 bytes of value in 12 or 16 bytes of memory.
        numbers = used.reshape(-1, np.dtype(np.longdouble).itemsize)
        numbers[:, 10:] = False
        if not dtype.isnative:
            numbers[:] = numbers[:, ::-1]
    return used
