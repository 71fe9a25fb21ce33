"""How much memory Arrow arrays take once every value stands for itself.

In Arrow many rows may share one value: those of a dictionary do. Other libraries repeat it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BYTES_OF_OBJECT = 64
_BYTES_OF_LIST = 120
_BYTES_OF_DICT = 184
_BYTES_OF_DECIMAL = 104


def dense_bytes(array: pa.Array) -> int:
    """Bytes that an array takes without dictionaries.

    Parameters
    ----------
    array : pyarrow.Array

    Examples
    --------
    >>> names = pa.array(["a" * 100]).dictionary_encode()
    >>> many = pa.DictionaryArray.from_arrays(pa.array([0] * 1000), names.dictionary)
    >>> dense_bytes(many), dense_bytes(pa.array(range(1000)))
    (104000, 8000)
    """
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return dense_bytes(array.storage)
    if pa.types.is_dictionary(kind):
        return _of_dictionary(array)
    if not has_dictionary(kind):
        return plain_bytes(array)
    if pa.types.is_struct(kind):
        return sum(map(dense_bytes, array.flatten()))
    if pa.types.is_map(kind):
        return dense_bytes(array.keys) + dense_bytes(array.items) + 4 * len(array)
    if pa.types.is_union(kind):
        return sum(dense_bytes(array.field(i)) for i in range(kind.num_fields))
    return dense_bytes(array.flatten()) + 4 * len(array)  # lists


def has_dictionary(kind: pa.DataType) -> bool:
    """Whether values of a type refer to a dictionary, at any depth.

    Examples
    --------
    >>> has_dictionary(pa.list_(pa.dictionary(pa.int8(), pa.string()))), has_dictionary(pa.string())
    (True, False)
    """
    if isinstance(kind, pa.BaseExtensionType):
        return has_dictionary(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return True
    return any(has_dictionary(kind.field(i).type) for i in range(kind.num_fields))


def leaf_types(kind: pa.DataType) -> list[pa.DataType]:
    """The types that a type is made of, as far as they have values of their own.

    Examples
    --------
    >>> leaf_types(pa.map_(pa.string(), pa.struct({"x": pa.int8(), "y": pa.list_(pa.bool_())})))
    [DataType(string), DataType(int8), DataType(bool)]
    """
    if isinstance(kind, pa.BaseExtensionType):
        return leaf_types(kind.storage_type)
    if not kind.num_fields:
        return [kind]
    return [leaf for i in range(kind.num_fields) for leaf in leaf_types(kind.field(i).type)]


def object_bytes(array: pa.Array) -> int:
    """Bytes that an array takes in pandas besides its values, because it holds Python objects.

    Numbers, times and text are none there, a list of numbers is one, and of bytes and dates that
    are equal there is one for all.

    Examples
    --------
    >>> object_bytes(pa.array([[1, 2, 3], [4]])), object_bytes(pa.array(["a", "b"]))
    (240, 0)
    """
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return object_bytes(array.storage)
    if pa.types.is_struct(kind):
        each: int = _BYTES_OF_DICT + _BYTES_OF_OBJECT * kind.num_fields
        return len(array) * each + sum(map(object_bytes, array.flatten()))
    if pa.types.is_map(kind):
        pairs = _BYTES_OF_LIST * (len(array) + len(array.keys))
        items = object_bytes(array.keys) + object_bytes(array.items)
        return pairs + 2 * _BYTES_OF_OBJECT * len(array.keys) + items
    if kind.num_fields == 1 and not pa.types.is_union(kind):
        return len(array) * _BYTES_OF_LIST + object_bytes(array.flatten())
    return len(array) * _BYTES_OF_DECIMAL if pa.types.is_decimal(kind) else 0


def is_text_dictionary(kind: pa.DataType) -> bool:
    """Whether a type is a dictionary of text or bytes."""
    return pa.types.is_dictionary(kind) and _is_text(kind.value_type)


def plain_bytes(array: pa.Array | pa.Table) -> int:
    """Bytes that an array or table takes as it is; about, for types of which Arrow does not know."""
    try:
        return int(array.nbytes)
    except (pa.ArrowException, TypeError):  # views
        return int(array.get_total_buffer_size())


def _of_dictionary(array: Any) -> int:
    values, places = array.dictionary, array.indices
    counts = np.bincount(
        places.drop_null().to_numpy(zero_copy_only=False).astype(np.int64), minlength=len(values)
    )
    return int(counts @ _sizes(values)) + 4 * len(array)


def _sizes(values: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Bytes of each value."""
    kind = values.type
    try:
        return np.full(len(values), (kind.bit_width + 7) // 8, np.int64)
    except ValueError:  # of no fixed width
        pass
    if _is_text(kind):
        lengths = pc.fill_null(pc.binary_length(values), 0)
        return np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)
    return np.array([dense_bytes(values.slice(i, 1)) for i in range(len(values))], np.int64)


def _is_text(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_binary,
            pa.types.is_large_string,
            pa.types.is_large_binary,
        )
    )
