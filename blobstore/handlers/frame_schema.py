"""Labels, indexes and categories of pandas data as JSON facts, and back without a difference.

An index is either *inline*, all of it in the facts (column labels, categories), or *stored*: its
values are columns of the Parquet file and the facts say only what they are (row indexes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from blobstore.errors import DecodeError, UnsupportedTypeError
from blobstore.handlers.frame_columns import (
    Builder,
    Collect,
    Column,
    ColumnType,
    Facts,
    Fill,
    NdArray,
    check_dtype,
    simple_column,
    simple_type,
)

MAX_INLINE_CATEGORIES = 1 << 16
"""Sorted categories beyond this number are found again in the data and not listed in the facts."""

_MAX_INT_BITS = 4096  # Python refuses to print much longer ones
_INDEX_TYPES = (
    pd.Index,
    pd.RangeIndex,
    pd.DatetimeIndex,
    pd.TimedeltaIndex,
    pd.CategoricalIndex,
    pd.MultiIndex,
)


# --- plain values: names, labels, attrs ----------------------------------------------------------


def encode_value(value: Any) -> Any:
    """A label or an attribute as JSON that `decode_value` turns back into an equal one.

    Raises
    ------
    UnsupportedTypeError
        It is, or holds, anything but None, bool, int, float, str, bytes, tuple, list and dict.

    Examples
    --------
    >>> encode_value(("a", 1, None))
    {'$': 'tuple', 'v': ['a', 1, None]}
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int and value.bit_length() <= _MAX_INT_BITS:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$": "float", "v": repr(value)}
    if kind is bytes:
        return {"$": "bytes", "v": value.hex()}
    if kind is list:
        return [encode_value(item) for item in value]
    if kind is tuple:
        return {"$": "tuple", "v": [encode_value(item) for item in value]}
    if kind is dict and "$" not in value and all(type(name) is str for name in value):
        return {name: encode_value(item) for name, item in value.items()}
    if kind is dict:
        pairs = [[encode_value(name), encode_value(item)] for name, item in value.items()]
        return {"$": "dict", "v": pairs}
    raise UnsupportedTypeError(
        f"Parquet cannot keep a label or attribute of type {kind.__name__} exactly"
    )


def decode_value(value: Any) -> Any:
    """Undo `encode_value`."""
    if isinstance(value, list):
        return [decode_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$" not in value:
        return {name: decode_value(item) for name, item in value.items()}
    tag, content = value["$"], value["v"]
    if tag == "float":
        return float(content)
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "tuple":
        return tuple(decode_value(item) for item in content)
    if tag == "dict":
        return {decode_value(name): decode_value(item) for name, item in content}
    raise DecodeError(f"there is no kind of value {tag!r}: upgrade blobstore")


# --- categories ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Categories:
    """Codes into an index, as `pd.Categorical` and each level of a `MultiIndex` have them.

    `plain` are the values of the index as Arrow, where they are about to be written.
    """

    codes: NdArray
    index: pd.Index[Any]
    plain: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.codes)


def _categorical(found: Categories, ordered: bool) -> Any:
    dtype = pd.CategoricalDtype(found.index, ordered=ordered)
    return pd.Categorical.from_codes(found.codes, dtype=dtype)


@dataclass(frozen=True, eq=False)
class CategoryType(ColumnType):
    """Values out of a list; in Parquet the values themselves, which every tool understands.

    `keys_` are the listed values; `listed` says whether the facts name them, or they are sorted
    and all in use and are found in the data; `dense` whether Arrow is given no dictionary.
    """

    index_facts: Facts
    value_type: ColumnType
    ordered: bool
    keys_: pa.Array | None
    listed: bool = True
    dense: bool = False
    result: Callable[[Categories, bool], Any] = _categorical
    kind: ClassVar[str] = "category"

    @property
    def keeps_dictionary(self) -> bool:
        """If the categories are listed; else they are found among all values."""
        return self.keys_ is not None

    @property
    def arrow_type(self) -> pa.DataType:
        """A dictionary of texts; anything else is kept as plain values."""
        plain = self.value_type.arrow_type
        return plain if self.dense else pa.dictionary(pa.int32(), plain, ordered=self.ordered)

    @property
    def key_type(self) -> pa.DataType:
        """Of the values."""
        return self.value_type.key_type

    def facts(self) -> Facts:
        """All categories in order, those not in use too."""
        return {"kind": self.kind, "ordered": self.ordered, "categories": self.index_facts}

    def arrow(self, values: Categories, start: int, stop: int) -> pa.Array:
        """Look the rows up."""
        codes = values.codes[start:stop]
        indices = pa.array(codes, type=pa.int32(), mask=codes < 0)
        if values.plain is None:
            raise AssertionError("these categories were read, not prepared for writing")
        if self.dense:
            return values.plain.take(indices)
        return pa.DictionaryArray.from_arrays(indices, values.plain, ordered=self.ordered)

    def keys(self, array: pa.Array) -> pa.Array:
        """The values, as the type of the categories tells them apart."""
        return self.value_type.keys(_undo_dictionary(array))

    def builder(self, rows: int, out: NdArray | None = None) -> Builder:
        """Start to read."""
        keys = self.keys_
        if keys is None:
            return Collect(rows, self.key_type, self._find_sorted) if rows else self._empty()
        index = inline_index(self.index_facts)
        target = np.empty(rows, _code_dtype(len(index)))

        def result(codes: NdArray) -> Any:
            return self.result(Categories(codes, index), self.ordered)

        return Fill((target,), lambda array: (self._codes(array, keys),), result)

    def _codes(self, array: pa.Array, keys: pa.Array) -> NdArray:
        if not pa.types.is_dictionary(array.type):
            return _positions(self.keys(array), keys)
        places = _positions(self.value_type.keys(_undo_dictionary(array.dictionary)), keys)
        codes = pc.fill_null(array.indices, -1).to_numpy(zero_copy_only=False)
        looked_up: NdArray = np.append(places, -1)[codes]  # a null is -1: the last
        return looked_up

    def _empty(self) -> Builder:
        raise DecodeError("categories are to be found in the data, and there are none")

    def _find_sorted(self, values: pa.ChunkedArray) -> Any:
        encoded = values.combine_chunks().dictionary_encode()
        encoded = encoded if isinstance(encoded, pa.Array) else encoded.combine_chunks()
        order = pc.array_sort_indices(encoded.dictionary)
        ranks = np.empty(len(order) + 1, _code_dtype(len(order)))
        ranks[order.to_numpy()] = np.arange(len(order))
        ranks[-1] = -1
        codes = ranks[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)]
        index = _index_of_keys(self.index_facts, encoded.dictionary.take(order))
        return self.result(Categories(codes, index), self.ordered)


def _undo_dictionary(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _positions(array: pa.Array, keys: pa.Array) -> NdArray:
    """Where each value is among `keys`; -1 for null."""
    found = pc.index_in(array, value_set=keys)
    if found.null_count != array.null_count:
        raise DecodeError("a column has a value that is not among its categories")
    codes: NdArray = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
    return codes


def _code_dtype(categories: int) -> type[np.signedinteger[Any]]:
    """What pandas keeps the codes of so many categories in."""
    for dtype in (np.int8, np.int16, np.int32):
        if categories < np.iinfo(dtype).max:
            return dtype
    return np.int64


def category_column(
    codes: NdArray,
    index: pd.Index[Any],
    *,
    ordered: bool = False,
    listed: bool = False,
    dense: bool = False,
) -> Column:
    """Prepare codes into an index, `listed` in the facts however long it is.

    `dense` ones are written without a dictionary of Arrow, which tools would see as categories.

    Raises
    ------
    UnsupportedTypeError
        The categories cannot be kept exactly.
    """
    column = index_column(index)
    value_type = column.type
    if value_type.kind == "arrow":
        raise UnsupportedTypeError(f"Parquet cannot keep categories of dtype {index.dtype}")
    plain = _undo_dictionary(column.all())
    keys = value_type.keys(plain)
    listed = (
        listed or len(index) <= MAX_INLINE_CATEGORIES or not _is_found_again(codes, index, keys)
    )
    facts = inline_facts(index) if listed else {**_stored_facts(index), "sorted": True}
    if isinstance(value_type, CategoryType):
        value_type = value_type.value_type
    text = pa.types.is_large_string(value_type.arrow_type)
    kind = CategoryType(
        index_facts=facts,
        value_type=value_type,
        ordered=ordered,
        keys_=keys if listed else None,
        listed=listed,
        dense=dense or not text or len(index) * 4 > len(codes),
    )
    return Column(kind, Categories(codes, index, plain), codes.nbytes + column.nbytes)


def _is_found_again(codes: NdArray, index: pd.Index[Any], keys: pa.Array) -> bool:
    """Whether the categories are just the values of the column in order."""
    if type(index) is pd.CategoricalIndex or getattr(index, "freq", None) is not None:
        return False
    used = np.unique(codes[codes >= 0])
    if len(used) != len(index) or type(index) is pd.RangeIndex:
        return False
    order = pc.array_sort_indices(keys).to_numpy()
    return bool((order == np.arange(len(order))).all())


# --- indexes -------------------------------------------------------------------------------------


def column_of(array: Any, *, listed: bool = False) -> Column:
    """Prepare an extension array of any supported dtype; its categories `listed` in the facts."""
    dtype = array.dtype
    if type(dtype) is not pd.CategoricalDtype:
        return simple_column(array)
    check_dtype(dtype)
    ordered = bool(dtype.ordered)
    return category_column(array.codes, dtype.categories, ordered=ordered, listed=listed)


def type_of(facts: Facts) -> ColumnType:
    """The column type that `facts` came from."""
    if facts["kind"] != "category":
        return simple_type(facts)
    return _category_type(facts, _categorical)


def _category_type(facts: Facts, result: Callable[[Categories, bool], Any]) -> CategoryType:
    index_facts = facts["categories"]
    if index_facts.get("sorted"):
        value_type, keys = type_of(index_facts["type"]), None
    else:
        column = index_column(inline_index(index_facts))
        value_type, keys = column.type, column.type.keys(column.all())
    if isinstance(value_type, CategoryType):
        value_type = value_type.value_type
    return CategoryType(
        index_facts, value_type, facts["ordered"], keys, keys is not None, result=result
    )


def check_index(index: pd.Index[Any]) -> None:
    """Refuse an index that cannot come back exactly, by its type alone."""
    if type(index) not in _INDEX_TYPES:
        raise UnsupportedTypeError(f"Parquet cannot keep a {type(index).__name__} exactly")
    if type(index) is not pd.MultiIndex:
        check_dtype(index.dtype)
        return
    for level in index.levels:
        check_index(level)


def index_column(index: pd.Index[Any], *, listed: bool = False) -> Column:
    """Prepare the values of an index of one level."""
    check_index(index)
    return column_of(index.array, listed=listed)


def _freq_facts(index: pd.Index[Any]) -> Facts:
    freq = getattr(index, "freq", None)
    if freq is None:
        return {}
    try:
        again = _with_freq(index, freq.freqstr).freq
    except ValueError as exc:
        raise UnsupportedTypeError(f"the frequency {freq!r} of an index has no name") from exc
    if again != freq:
        raise UnsupportedTypeError(f"the frequency {freq!r} of an index has no name of its own")
    return {"freq": freq.freqstr}


def _with_freq(index: pd.Index[Any], freq: str) -> Any:
    """The same times; pandas checks that they have this frequency."""
    made: Any = pd.Index(index.array, copy=False)
    made.freq = freq
    return made


def _range_facts(index: pd.RangeIndex) -> Facts:
    span = {"start": index.start, "stop": index.stop, "step": index.step}
    return {"kind": "range", **span, "name": encode_value(index.name)}


def _stored_facts(index: pd.Index[Any], column: Column | None = None) -> Facts:
    column = column or index_column(index)
    facts = {"kind": "index", "type": column.type.facts(), "name": encode_value(index.name)}
    return {**facts, **_freq_facts(index)}


def inline_facts(index: pd.Index[Any]) -> Facts:
    """All of a small index as JSON."""
    check_index(index)
    if isinstance(index, pd.RangeIndex):
        return _range_facts(index)
    if isinstance(index, pd.MultiIndex):
        return {
            "kind": "multi",
            "names": [encode_value(name) for name in index.names],
            "levels": [inline_facts(level) for level in index.levels],
            "codes": [np.asarray(codes).tolist() for codes in index.codes],
        }
    if index.dtype == object:
        labels = [encode_value(label) for label in index.array]
        return {"kind": "labels", "values": labels, "name": encode_value(index.name)}
    column = index_column(index, listed=True)
    if column.type.kind == "arrow":
        raise UnsupportedTypeError(f"Parquet cannot keep labels of dtype {index.dtype}")
    values = column.type.keys(column.all()).to_pylist()
    return {**_stored_facts(index, column), "values": [encode_value(value) for value in values]}


def labels_in_ranges(facts: Any) -> int:
    """How many labels the ranges in facts stand for: few bytes may tell of any number.

    Examples
    --------
    >>> labels_in_ranges([{"categories": {"kind": "range", "start": 0, "stop": 9, "step": 2}}])
    5
    """
    if isinstance(facts, list):
        return sum(map(labels_in_ranges, facts))
    if not isinstance(facts, dict):
        return 0
    if facts.get("kind") == "range":
        return len(range(facts["start"], facts["stop"], facts["step"]))
    return sum(map(labels_in_ranges, facts.values()))


def inline_index(facts: Facts) -> pd.Index[Any]:
    """Undo `inline_facts`."""
    kind = facts["kind"]
    if kind == "range":
        name = decode_value(facts["name"])
        return pd.RangeIndex(facts["start"], facts["stop"], facts["step"], name=name)
    if kind == "multi":
        levels: list[Any] = [inline_index(level) for level in facts["levels"]]
        names = [decode_value(name) for name in facts["names"]]
        return pd.MultiIndex(levels=levels, codes=facts["codes"], names=names)
    if kind == "labels":
        labels = np.empty(len(facts["values"]), object)
        labels[:] = [decode_value(value) for value in facts["values"]]
        return _index(labels, facts)
    if kind == "index":
        kind = type_of(facts["type"]).key_type
        return _index_of_keys(
            facts, pa.array([decode_value(value) for value in facts["values"]], type=kind)
        )
    raise DecodeError(f"there is no kind of index {kind!r}: upgrade blobstore")


def _index_of_keys(facts: Facts, keys: pa.Array) -> pd.Index[Any]:
    builder = type_of(facts["type"]).builder(len(keys))
    builder.add(keys)
    return _index(builder.finish(), facts)


def _index(values: Any, facts: Facts) -> pd.Index[Any]:
    """An index over values of its dtype."""
    dtype = object if isinstance(values, np.ndarray) and values.dtype == object else None
    name: Hashable = decode_value(facts["name"])
    index: Any = pd.Index(values, dtype=dtype, name=name, copy=False, tupleize_cols=False)
    if "freq" in facts:
        index.freq = facts["freq"]
    made: pd.Index[Any] = index
    return made


def stored_index(index: pd.Index[Any]) -> tuple[Facts, list[Column]]:
    """Facts of a row index, and the columns that hold its values.

    Raises
    ------
    UnsupportedTypeError
        It would not come back as it is.
    """
    check_index(index)
    if isinstance(index, pd.RangeIndex):
        return _range_facts(index), []
    if not isinstance(index, pd.MultiIndex):
        column = index_column(index)
        return _stored_facts(index, column), [column]
    columns = [
        category_column(codes, level, dense=True)
        for codes, level in map(_shortened, index.codes, index.levels)
    ]
    return {
        "kind": "multi",
        "names": [encode_value(name) for name in index.names],
        "levels": [column.type.facts() for column in columns],
    }, columns


def _trimmed(codes: Any, level: pd.Index[Any]) -> tuple[NdArray, pd.Index[Any]]:
    """A level without the labels that no row has; those that stay keep their order."""
    codes = np.asarray(codes)
    used = np.unique(codes[codes >= 0])
    places = np.full(len(level) + 1, -1, codes.dtype)
    places[used] = np.arange(len(used))
    if isinstance(level, pd.RangeIndex):  # else it might remain a range, or not
        level = pd.Index(level.to_numpy(), name=level.name)
    return places[codes], level.take(used)


def _shortened(codes: Any, level: pd.Index[Any]) -> tuple[NdArray, pd.Index[Any]]:
    """A level as it is, but for the unused labels of a very long one."""
    codes = np.asarray(codes)
    short = len(level) <= MAX_INLINE_CATEGORIES or isinstance(level, pd.RangeIndex)
    if short or not (codes >= 0).any():
        return codes, level
    return _trimmed(codes, level)


def logical_facts(index: pd.Index[Any], facts: Facts, *, inline: bool) -> Any:
    """`facts` of an index as a digest has them, in which unused labels of a `MultiIndex` have no part.

    They are left over from rows that were there once. Levels of another class or frequency are
    other levels, however: those are what comparisons look at.
    """
    if not isinstance(index, pd.MultiIndex):
        return {name: value for name, value in facts.items() if inline or name != "type"}
    kinds = [
        [type(level).__name__, level.inferred_type, _freq_facts(level)] for level in index.levels
    ]
    pairs = list(map(_trimmed, index.codes, index.levels))
    used = {
        "names": facts["names"],
        "levels": [
            inline_facts(level) if inline else category_column(codes, level).type.facts()
            for codes, level in pairs
        ],
        "codes": [codes.tolist() for codes, _ in pairs] if inline else None,
    }
    for level in used["levels"]:
        level.get("categories", level).pop("freq", None)
    return [kinds, used]


def stored_types(facts: Facts) -> list[ColumnType]:
    """Types of the columns that hold a row index."""
    if facts["kind"] == "range":
        return []
    if facts["kind"] == "multi":
        return [_category_type(level, lambda found, _: found) for level in facts["levels"]]
    return [type_of(facts["type"])]


def restore_index(facts: Facts, columns: Sequence[Any]) -> pd.Index[Any]:
    """A row index from its facts and the columns that hold its values."""
    if facts["kind"] == "range":
        return inline_index(facts)
    if facts["kind"] != "multi":
        return _index(columns[0], facts)
    levels: list[Any] = [found.index for found in columns]
    return pd.MultiIndex(
        levels=levels,
        codes=[found.codes for found in columns],
        names=[decode_value(name) for name in facts["names"]],
    )
