"""Digests of Arrow data: what it says, not how it lies in memory.

Two arrays of equal type and values feed the same bytes, whatever their chunks, offsets, validity
bitmaps, values under nulls, dictionaries and views. Values are taken in blocks of 65,536 rows, so
that no more than a block is ever copied. One block is, by the kind of its type:

- any but null: ``0`` if nothing is null, else ``1`` and one bit for each row, set where it is valid;
- fixed width: the little-endian values, zeros under nulls, every NaN as one and the same;
- text and binary: lengths as 64-bit integers (0 under nulls), then the bytes of all values;
- lists and maps: lengths in the same way, then the values of all rows as an array of their own;
- structs: the blocks of the fields, null where the struct is;
- dictionaries, run-end encoding, views and extensions: as the plain values that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blobstore.digest import Canonical
from blobstore.errors import UnsupportedTypeError
from blobstore.streams import Hasher

BLOCK_ROWS = 1 << 16


def update_table(hasher: Hasher, table: pa.Table) -> None:
    """Feed names, types and values of a table to `hasher`; its metadata are left to the caller.

    Raises
    ------
    UnsupportedTypeError
        A type has no canonical form (unions).
    """
    fields = tuple(_describe_field(field) for field in table.schema)
    Canonical(hasher).add(("arrow.table", 1, table.num_rows, fields))
    for column in table.columns:
        update_values(hasher, column)


def update_array(hasher: Hasher, array: pa.Array | pa.ChunkedArray) -> None:
    """Feed the type and the values of an array to `hasher`.

    Examples
    --------
    >>> from blobstore.digest import new_digest
    >>> def digest(array):
    ...     hasher = new_digest()
    ...     update_array(hasher, array)
    ...     return hasher.hexdigest()
    >>> whole = pa.array([1, None, 3])
    >>> digest(pa.chunked_array([whole[:1], whole[1:]])) == digest(whole)
    True
    >>> digest(whole) == digest(whole.cast("int32"))
    False
    """
    Canonical(hasher).add(("arrow.array", 1, describe_type(array.type)))
    update_values(hasher, array)


def update_values(hasher: Hasher, array: pa.Array | pa.ChunkedArray) -> None:
    """Feed the values of an array, without its type, to `hasher`."""
    update_blocks(hasher, len(array), lambda start, stop: array.slice(start, stop - start))


def update_blocks(
    hasher: Hasher, rows: int, rows_of: Callable[[int, int], pa.Array | pa.ChunkedArray]
) -> None:
    """Feed values that are made block by block: `rows_of(start, stop)` gives those rows."""
    hasher.update(rows.to_bytes(8, "little"))
    for start in range(0, rows, BLOCK_ROWS):
        _update_block(hasher, single(rows_of(start, min(rows, start + BLOCK_ROWS))))


def describe_type(kind: pa.DataType) -> Any:
    """A type as plain values that say all of it but the names of list items, which mean nothing.

    Examples
    --------
    >>> describe_type(pa.list_(pa.field("element", pa.int8())))
    ('list', (True, 'int8'))
    """
    if isinstance(kind, pa.BaseExtensionType):
        return ("extension", kind.extension_name, describe_type(kind.storage_type))
    if pa.types.is_dictionary(kind):
        parts = (describe_type(kind.index_type), describe_type(kind.value_type))
        return ("dictionary", kind.ordered, *parts)
    if pa.types.is_run_end_encoded(kind):
        return ("run_end_encoded", describe_type(kind.run_end_type), describe_type(kind.value_type))
    if pa.types.is_map(kind):
        sides = (describe_type(kind.key_type), describe_type(kind.item_type))
        return ("map", kind.keys_sorted, kind.item_field.nullable, *sides)
    if pa.types.is_struct(kind):
        return ("struct", *(_describe_field(kind.field(i)) for i in range(kind.num_fields)))
    if _is_list(kind):
        name = str(kind).partition("<")[0]
        size = (kind.list_size,) if pa.types.is_fixed_size_list(kind) else ()
        return (name, *size, (kind.value_field.nullable, describe_type(kind.value_type)))
    if kind.num_fields:
        raise UnsupportedTypeError(f"there is no canonical form of the Arrow type {kind}")
    return str(kind)


def _describe_field(field: pa.Field) -> tuple[Any, ...]:
    return (field.name, field.nullable, describe_type(field.type))


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    plain = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(plain or types.is_list_view(kind) or types.is_large_list_view(kind))


def single(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The rows as one array; copied only if they lie in several chunks."""
    if isinstance(array, pa.Array):
        return array
    if array.num_chunks == 1:
        return array.chunk(0)
    if pa.types.is_dictionary(array.type):  # each chunk may have a dictionary of its own
        array = pa.chunked_array(
            [chunk.dictionary_decode() for chunk in array.chunks], array.type.value_type
        )
    return pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)


def _plain(array: pa.Array) -> pa.Array:
    """The values that dictionaries, runs, views and extensions stand for."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(array.storage)
    if pa.types.is_dictionary(kind):
        return _plain(array.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(array))
    if pa.types.is_string_view(kind):
        return array.cast(pa.large_string())
    if pa.types.is_binary_view(kind):
        return array.cast(pa.large_binary())
    return array


def _update_block(hasher: Hasher, array: pa.Array) -> None:
    array = _plain(array)
    kind = array.type
    if pa.types.is_null(kind):
        return
    valid = _update_validity(hasher, array)
    if pa.types.is_struct(kind):
        for child in array.flatten():
            _update_block(hasher, child)
    elif pa.types.is_boolean(kind):
        bits = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
        hasher.update(np.packbits(bits, bitorder="little").data)
    elif pa.types.is_map(kind) or _is_list(kind):
        _update_lists(hasher, array, valid)
    elif _is_text(kind):
        _update_text(hasher, array, valid)
    else:
        _update_fixed(hasher, array, valid)


def _update_validity(hasher: Hasher, array: pa.Array) -> np.ndarray[Any, Any] | None:
    """Feed which rows are valid; None if all are."""
    if array.null_count == 0:
        hasher.update(b"\0")
        return None
    valid: np.ndarray[Any, Any] = pc.is_valid(array).to_numpy(zero_copy_only=False)
    hasher.update(b"\1" + np.packbits(valid, bitorder="little").tobytes())
    return valid


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    )


def _update_text(hasher: Hasher, array: pa.Array, valid: np.ndarray[Any, Any] | None) -> None:
    offsets = _offsets(array)
    lengths = np.diff(offsets)
    if valid is not None and lengths[~valid].any():  # text under nulls: seldom, so it may cost
        array = pc.fill_null(array, "" if "string" in str(array.type) else b"")
        offsets = _offsets(array)
        lengths = np.diff(offsets)
    hasher.update(lengths.astype("<i8", copy=False).view(np.uint8).data)
    data = array.buffers()[2]
    if data is not None and len(offsets):
        hasher.update(memoryview(data)[int(offsets[0]) : int(offsets[-1])])


def _offsets(array: pa.Array) -> np.ndarray[Any, Any]:
    """Where the values of a text or binary array start, and where the last one ends."""
    large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    dtype: np.dtype[Any] = np.dtype("<i8" if large else "<i4")
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(1, "<i8")
    first = array.offset * dtype.itemsize
    values = np.frombuffer(buffer, dtype, len(array) + 1, first)
    return values.astype("<i8", copy=False)


def _update_lists(hasher: Hasher, array: pa.Array, valid: np.ndarray[Any, Any] | None) -> None:
    kind = array.type
    if pa.types.is_map(kind):
        entry = pa.struct([kind.key_field, kind.item_field])
        array = array.cast(pa.list_(pa.field("entries", entry, nullable=False)))
    if not pa.types.is_fixed_size_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        hasher.update(lengths.astype("<i8").view(np.uint8).data)
    elif valid is not None:  # Arrow keeps room for a list that is null
        array = array.filter(pa.array(valid))
    update_values(hasher, array.flatten())


def _update_fixed(hasher: Hasher, array: pa.Array, valid: np.ndarray[Any, Any] | None) -> None:
    kind = array.type
    width = kind.bit_width // 8
    buffer = array.buffers()[1]
    if buffer is None or not width:
        return
    first = array.offset * width
    data = np.frombuffer(buffer, np.uint8, len(array) * width, first)
    if valid is not None:
        data = data.copy()
        data.reshape(-1, width)[~valid] = 0
    if pa.types.is_floating(kind):
        floats = data.view(f"<f{width}")
        nan = np.isnan(floats)
        if nan.any():
            floats = np.where(nan, floats.dtype.type("nan"), floats)
        data = floats.view(np.uint8)
    hasher.update(data.data)
