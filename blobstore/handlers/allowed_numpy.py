"""What a pickle of nobody in particular may name of NumPy: arrays, scalars, dtypes, masked arrays.

NumPy takes the state in a pickle on faith. A dtype that says its bytes are Python objects, without
the flag that says so, makes pointers of whatever bytes an attacker wrote. So each state is compared
with that of a dtype that NumPy builds itself from the same description, and set only if it is the
same.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import numpy as np
from numpy._core import multiarray

from blobstore.errors import UntrustedTypeError
from blobstore.handlers.unpickling import Rule

_BASIC = re.compile(r"[?biufcmMOSUVa][0-9]{0,9}|[a-zA-Z?]")
_ALIGNED_STRUCT = 0x80
_PICKLED_FLAGS = 0xFF  # NumPy 2.5 has one more, which it leaves out of pickles
_ARRAYS: tuple[type, ...] = (np.ndarray, np.matrix, np.recarray)


def _odd(what: str) -> UntrustedTypeError:
    return UntrustedTypeError(
        f"it has {what}, which NumPy never writes: an attack on memory, or damage. It was not loaded"
    )


def _dtype(kind: Any = None, align: Any = False, _copy: Any = True) -> Any:
    """A dtype as its pickle starts it: of a simple kind, its state follows."""
    named = isinstance(kind, str) and _BASIC.fullmatch(kind) is not None
    if not named and not (isinstance(kind, type) and issubclass(kind, np.generic)):
        raise _odd(f"a dtype of {kind!r:.50}")
    # A copy: the state of a dtype that others share is not to be set.
    return np.dtype(kind, align=bool(align), copy=True)


def _dtype_state(dtype: np.dtype[Any], state: Any) -> None:
    if type(state) is not tuple or len(state) not in (8, 9) or state[0] not in (3, 4):
        raise _odd("a dtype with a state of an unknown form")
    _, order, sub, names, fields, size, alignment, flags = state[:8]
    metadata = state[8] if len(state) == 9 else None
    if order not in ("<", ">", "|", "=") or type(flags) is not int:
        raise _odd(f"a dtype with the byte order {order!r:.20}")
    if sub is not None:
        expected = _subarray(dtype, sub, names, fields)
    elif names is not None or fields is not None:
        expected = _record(dtype, names, fields, size)
    else:
        expected = dtype
    _check_layout(expected, size, alignment, flags)
    _check_metadata(dtype, metadata)
    dtype.__setstate__(state)  # type: ignore[attr-defined]
    if expected is not dtype and (
        dtype.itemsize != expected.itemsize or dtype.hasobject != expected.hasobject
    ):
        raise _odd("a dtype that is not what it says")


def _subarray(dtype: np.dtype[Any], sub: Any, names: Any, fields: Any) -> np.dtype[Any]:
    if (
        type(sub) is not tuple
        or len(sub) != 2
        or not isinstance(sub[0], np.dtype)
        or type(sub[1]) is not tuple
        or any(type(n) is not int or n < 0 for n in sub[1])
        or names is not None
        or fields is not None
        or dtype.kind != "V"
    ):
        raise _odd("a dtype of arrays that is none")
    return np.dtype((sub[0], sub[1]))


def _record(dtype: np.dtype[Any], names: Any, fields: Any, size: Any) -> Any:
    """Let NumPy build the record, which checks offsets, overlaps and names."""
    if (
        dtype.kind != "V"
        or type(names) is not tuple
        or not isinstance(fields, dict)
        or type(size) is not int
        or any(type(name) is not str for name in names)
    ):
        raise _odd("a dtype of records that is none")
    titles = []
    for name in names:
        field = fields.get(name)
        if type(field) is not tuple or len(field) not in (2, 3):
            raise _odd("a dtype of records without one of its fields")
        if not isinstance(field[0], np.dtype) or type(field[1]) is not int:
            raise _odd("a dtype of records with a field that is none")
        titles.append(field[2] if len(field) == 3 else None)
        if type(titles[-1]) not in (str, type(None)):
            raise _odd("a dtype of records with a title that is no text")
    known = {*names, *(title for title in titles if title is not None)}
    if set(fields) != known or any(
        fields[t] != fields[n] for t, n in zip(titles, names, strict=True) if t is not None
    ):
        raise _odd("a dtype of records with more fields than names")
    described: Any = {
        "names": list(names),
        "formats": [fields[name][0] for name in names],
        "offsets": [fields[name][1] for name in names],
        "itemsize": size,
    }
    if any(title is not None for title in titles):
        described["titles"] = titles
    try:
        return np.dtype(described)
    except (ValueError, TypeError) as exc:
        raise _odd(f"a dtype of records that cannot be ({exc})") from exc


def _check_layout(expected: np.dtype[Any], size: Any, alignment: Any, flags: int) -> None:
    missing, extra = expected.flags & ~flags & _PICKLED_FLAGS, flags & ~expected.flags
    if (missing | extra) & ~_ALIGNED_STRUCT:
        raise _odd("a dtype with flags of another")
    if (size, alignment) == (-1, -1):
        if expected.names is not None or expected.subdtype is not None:
            raise _odd("a dtype without a size")
        return
    if size != expected.itemsize or alignment not in (1, 2, 4, 8, 16, 32):
        raise _odd("a dtype with the size of another")
    if expected.names is None and alignment != expected.alignment:
        raise _odd("a dtype with the alignment of another")


def _check_metadata(dtype: np.dtype[Any], metadata: Any) -> None:
    if dtype.kind in "mM":
        unit = metadata[1] if type(metadata) is tuple and len(metadata) == 2 else None
        metadata = metadata[0] if unit is not None else metadata
        if unit is not None and (
            type(unit) is not tuple
            or not 3 <= len(unit) <= 4
            or type(unit[0]) not in (bytes, str)
            or any(type(n) is not int for n in unit[1:])
        ):
            raise _odd("a dtype of times with a unit that is none")
    if metadata is not None and type(metadata) is not dict:
        raise _odd("a dtype with metadata that is no dictionary")


def _reconstruct(cls: Any, shape: Any, kind: Any) -> Any:
    """An empty array, whose state follows."""
    if cls not in _ARRAYS or shape != (0,) or kind not in (b"b", "b"):
        raise _odd(f"an array of {cls!r:.50}")
    return multiarray._reconstruct(cls, (0,), b"b")  # noqa: SLF001


def _array_state(array: Any, state: Any) -> None:
    if type(state) is not tuple or len(state) != 5 or type(state[1]) is not tuple:
        raise _odd("an array with a state of an unknown form")
    _, shape, dtype, fortran, data = state
    count = _count(shape)
    if not isinstance(dtype, np.dtype):
        raise _odd("an array without a dtype")
    if type(data) is list:
        good = dtype.hasobject and len(data) == count
    else:
        good = not dtype.hasobject and isinstance(data, bytes | bytearray | str)
        good = good and len(data) == count * dtype.itemsize
    if not good:
        raise _odd("an array with more or fewer bytes than its shape says")
    array.__setstate__((1, shape, dtype, bool(fortran), data))


def _count(shape: Any) -> int:
    if type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape):
        raise _odd(f"an array of the shape {shape!r:.50}")
    return math.prod(shape)


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, *axes: Any) -> Any:
    """An array over bytes that stand beside the pickle."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise _odd("an array of objects over plain bytes")
    count = _count(shape)
    if memoryview(data).nbytes != count * dtype.itemsize:
        raise _odd("an array with more or fewer bytes than its shape says")
    if axes:
        order_of = axes[0] if len(axes) == 1 else None
        if type(order_of) is not tuple or sorted(order_of) != list(range(len(shape))):
            raise _odd("an array with axes that are none")
    from numpy._core import numeric

    return numeric._frombuffer(data, dtype, shape, order, *axes)  # type: ignore[attr-defined]  # noqa: SLF001


def _scalar(dtype: Any, data: Any = None) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes | str):
        raise _odd("a scalar of objects")
    raw = data.encode("latin1") if isinstance(data, str) else data
    if len(raw) != dtype.itemsize:
        raise _odd("a scalar with more or fewer bytes than its dtype says")
    return multiarray.scalar(dtype, raw)


def _masked(cls: Any, base: Any, shape: Any, _kind: Any) -> Any:
    from numpy.ma import core

    if cls is not np.ma.MaskedArray or base is not np.ndarray or shape != (0,):
        raise _odd(f"a masked array of {cls!r:.50}")
    return core._mareconstruct(cls, base, (0,), b"b")  # type: ignore[attr-defined]  # noqa: SLF001


def _masked_state(array: Any, state: Any) -> None:
    if type(state) is not tuple or len(state) != 7 or not isinstance(state[5], bytes | bytearray):
        raise _odd("a masked array with a state of an unknown form")
    _, shape, dtype, fortran, data, mask, fill = state
    good = (
        isinstance(dtype, np.dtype) and not dtype.hasobject and isinstance(data, bytes | bytearray)
    )
    count = _count(shape)
    if not good or len(data) != count * dtype.itemsize:
        raise _odd("a masked array with more or fewer bytes than its shape says")
    if len(mask) != count * np.ma.make_mask_descr(dtype).itemsize:
        raise _odd("a mask with more or fewer bytes than its shape says")
    if fill is not None and not isinstance(fill, np.ndarray | np.generic):
        raise _odd("a masked array filled with what is no number")
    array.__setstate__((1, shape, dtype, bool(fortran), bytes(data), bytes(mask), fill))


def _rules() -> dict[tuple[str, str], Rule]:
    array = functools.partial(Rule, build=_array_state, once=True)
    table: dict[tuple[str, str], Rule] = {
        ("numpy", "dtype"): Rule(np.dtype, call=_dtype, build=_dtype_state, once=True),
        ("numpy", "ndarray"): array(np.ndarray),
        ("numpy", "matrix"): array(np.matrix),
        ("numpy", "recarray"): array(np.recarray),
        ("numpy.rec", "recarray"): array(np.recarray),
        ("numpy", "record"): Rule(np.record),
        ("numpy.ma", "MaskedArray"): Rule(np.ma.MaskedArray, build=_masked_state, once=True),
        ("numpy.ma.core", "MaskedArray"): Rule(np.ma.MaskedArray, build=_masked_state, once=True),
        ("numpy.ma.core", "_mareconstruct"): Rule(_masked, call=_masked, once=True),
        ("numpy._core.multiarray", "_reconstruct"): Rule(
            _reconstruct, call=_reconstruct, once=True
        ),
        ("numpy._core.multiarray", "scalar"): Rule(_scalar, call=_scalar),
        ("numpy._core.numeric", "_frombuffer"): Rule(_frombuffer, call=_frombuffer),
    }
    for scalar in {*np.sctypeDict.values()}:  # as values: {"dtype": np.float32}
        table["numpy", scalar.__name__] = Rule(scalar)
    return table


RULES = _rules()
