"""Digests of Arrow data depend on what it says, and on nothing else."""

from __future__ import annotations

import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.digest import new_digest
from blobstore.errors import UnsupportedTypeError
from blobstore.handlers.arrow import BLOCK_ROWS, update_array, update_table

INT = st.integers(-(2**31), 2**31 - 1)
TYPES = {
    "int32": (pa.int32(), INT),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "bool": (pa.bool_(), st.booleans()),
    "float": (pa.float64(), st.floats(allow_nan=False)),
    "float32": (pa.float32(), st.floats(width=32, allow_nan=False)),
    "string": (pa.string(), st.text(max_size=4)),
    "large_string": (pa.large_string(), st.text(max_size=4)),
    "string_view": (pa.string_view(), st.text(max_size=20)),
    "binary": (pa.binary(), st.binary(max_size=4)),
    "fixed": (pa.binary(3), st.binary(min_size=3, max_size=3)),
    "timestamp": (pa.timestamp("us", "UTC"), INT),
    "duration": (pa.duration("s"), INT),
    "date": (pa.date32(), INT),
    "decimal": (pa.decimal128(12, 2), st.decimals(-1000, 1000, places=2)),
    "list": (pa.list_(pa.int32()), st.lists(st.none() | INT, max_size=3)),
    "large_list": (pa.large_list(pa.string()), st.lists(st.text(max_size=2), max_size=3)),
    "list_view": (pa.list_view(pa.int32()), st.lists(st.none() | INT, max_size=3)),
    "fixed_list": (pa.list_(pa.int32(), 2), st.lists(st.none() | INT, min_size=2, max_size=2)),
    "struct": (
        pa.struct([("a", pa.int32()), ("b", pa.string())]),
        st.builds(lambda a, b: {"a": a, "b": b}, st.none() | INT, st.none() | st.text(max_size=2)),
    ),
    "map": (
        pa.map_(pa.string(), pa.int32()),
        st.lists(st.tuples(st.text(max_size=2), st.none() | INT), max_size=3),
    ),
    "nested": (
        pa.list_(pa.struct([("x", pa.list_(pa.bool_()))])),
        st.lists(
            st.fixed_dictionaries({"x": st.none() | st.lists(st.booleans(), max_size=2)}),
            max_size=2,
        ),
    ),
}


def data_of(kind: pa.DataType) -> st.SearchStrategy:
    return next(values for known, values in TYPES.values() if known == kind)


def digest(array: pa.Array | pa.ChunkedArray) -> str:
    hasher = new_digest()
    update_array(hasher, array)
    return hasher.hexdigest()


def table_digest(table: pa.Table) -> str:
    hasher = new_digest()
    update_table(hasher, table)
    return hasher.hexdigest()


@st.composite
def typed_values(draw):
    kind, values = TYPES[draw(st.sampled_from(sorted(TYPES)))]
    return kind, draw(st.lists(st.none() | values, max_size=8))


@given(typed_values(), st.data())
def test_neither_chunks_nor_offsets_matter(case, data) -> None:
    kind, values = case
    whole = pa.array(values, kind)
    cut = data.draw(st.integers(0, len(values)))
    chunks = [pa.array(values[:cut], kind), pa.array(values[cut:], kind)]
    assert digest(pa.chunked_array(chunks, kind)) == digest(whole)
    if not pa.types.is_list_view(kind):  # Arrow cannot concatenate all of these
        padding = pa.array(values[::-1], kind)
        padded = pa.concat_arrays([padding, whole, padding])
        assert digest(padded.slice(len(values), len(values))) == digest(whole)


@given(typed_values(), st.data())
def test_other_values_have_another_digest(case, data) -> None:
    kind, values = case
    others = data.draw(st.lists(st.none() | data_of(kind), max_size=3))
    one, other = digest(pa.array(values, kind)), digest(pa.array(others, kind))
    assert (one == other) == (repr(values) == repr(others))  # 0.0 is not -0.0


def test_values_under_nulls_do_not_matter() -> None:
    valid = pa.py_buffer(bytes([0b101]))
    one, other = (
        pa.Array.from_buffers(pa.int64(), 3, [valid, pa.py_buffer(np.array([1, x, 3]).tobytes())])
        for x in (7, 8)
    )
    assert digest(one) == digest(other) == digest(pa.array([1, None, 3]))


def test_text_under_nulls_does_not_matter() -> None:
    valid = pa.py_buffer(bytes([0b101]))
    offsets = pa.py_buffer(np.array([0, 1, 3, 4], "i4").tobytes())
    hidden = pa.Array.from_buffers(pa.string(), 3, [valid, offsets, pa.py_buffer(b"axxb")])
    assert digest(hidden) == digest(pa.array(["a", None, "b"]))
    binary = pa.Array.from_buffers(pa.binary(), 3, [valid, offsets, pa.py_buffer(b"axxb")])
    assert digest(binary) == digest(pa.array([b"a", None, b"b"]))


def test_lists_under_nulls_do_not_matter() -> None:
    valid = pa.py_buffer(bytes([0b101]))
    hidden = pa.ListArray.from_buffers(
        pa.list_(pa.int64()),
        3,
        [valid, pa.py_buffer(np.array([0, 1, 3, 4], "i4").tobytes())],
        children=[pa.array([1, 8, 9, 2])],
    )
    assert digest(hidden) == digest(pa.array([[1], None, [2]]))


def test_a_validity_bitmap_without_nulls_does_not_matter() -> None:
    data = pa.py_buffer(np.arange(3).tobytes())
    with_bitmap = pa.Array.from_buffers(pa.int64(), 3, [pa.py_buffer(b"\xff"), data])
    assert digest(with_bitmap) == digest(pa.Array.from_buffers(pa.int64(), 3, [None, data]))


def test_the_order_of_a_dictionary_does_not_matter_but_the_type_does() -> None:
    one = pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int8()), ["a", "b"])
    other = pa.DictionaryArray.from_arrays(pa.array([2, 0, None], pa.int8()), ["b", "c", "a"])
    assert digest(one) == digest(other) == digest(pa.chunked_array([one[:1], other[1:]]))
    assert digest(one) != digest(one.dictionary_decode())


def test_every_nan_is_the_same() -> None:
    bits = np.array([0x7FF8000000000000, 0xFFF8000000000001], "u8").view("f8")
    assert digest(pa.array(bits[:1])) == digest(pa.array(bits[1:]))
    assert digest(pa.array(bits)) != digest(pa.array([None, None], pa.float64()))


def test_runs_and_extensions_are_what_they_stand_for() -> None:
    runs = pa.RunEndEncodedArray.from_arrays([2, 5], ["a", None])
    shifted = pa.RunEndEncodedArray.from_arrays([2, 3, 5], ["a", None, None])
    assert digest(runs) == digest(shifted)
    ids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None], pa.binary(16)))
    assert digest(ids) != digest(ids.storage)
    assert digest(ids) == digest(pa.chunked_array([ids[:1], ids[1:]]))


@pytest.mark.parametrize("length", [0, 1, BLOCK_ROWS - 1, BLOCK_ROWS, 2 * BLOCK_ROWS + 1])
def test_block_borders(length: int) -> None:
    values = pa.array(np.arange(length))
    cut = length // 3
    assert digest(pa.chunked_array([values[:cut], values[cut:]])) == digest(values)
    if length:
        assert digest(values[:-1]) != digest(values)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.int32(), pa.int64()),
        (pa.string(), pa.large_string()),
        (pa.timestamp("s"), pa.timestamp("ms")),
        (pa.timestamp("s"), pa.timestamp("s", "UTC")),
        (pa.list_(pa.int8()), pa.list_(pa.field("item", pa.int8(), nullable=False))),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3)),
        (pa.struct([("a", pa.int8())]), pa.struct([("b", pa.int8())])),
        (pa.map_(pa.string(), pa.int8()), pa.map_(pa.string(), pa.int8(), keys_sorted=True)),
        (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int16(), pa.string())),
        (pa.decimal128(5, 2), pa.decimal128(5, 1)),
        (pa.null(), pa.int8()),
    ],
)
def test_types_count(one: pa.DataType, other: pa.DataType) -> None:
    assert digest(pa.array([], one)) != digest(pa.array([], other))


def test_names_of_list_items_do_not_count() -> None:
    item, element = (pa.list_(pa.field(name, pa.int8())) for name in ("item", "element"))
    assert digest(pa.array([[1]], item)) == digest(pa.array([[1]], element))


def test_tables() -> None:
    table = pa.table({"a": [1, 2, None], "b": ["x", None, "z"]})
    same = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert table_digest(table) == table_digest(same)
    assert table_digest(table) == table_digest(table.replace_schema_metadata({"creator": "me"}))
    assert table_digest(table) != table_digest(table.rename_columns(["a", "c"]))
    assert table_digest(table) != table_digest(table.select(["b", "a"]))


def test_unions_have_no_canonical_form() -> None:
    union = pa.UnionArray.from_sparse(
        pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array([3, 4])]
    )
    with pytest.raises(UnsupportedTypeError, match="no canonical form"):
        digest(union)


def test_the_stream_is_fixed() -> None:
    """Digests are keys: they must never change."""
    values = pa.array([decimal.Decimal("1.50"), None])
    assert digest(values) == "e3cb486859001d384f93b62886b61c80de8bb6a481655b122a5279b92cd7923d"
    assert (
        table_digest(pa.table({"a": [1.5, float("nan"), None], "b": [["x"], None, []]}))
        == "b743c129a2ff1cabd20d16183e52d4de24b5613e7eee3a4440db7348ae8c15c9"
    )
