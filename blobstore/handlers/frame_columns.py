"""Columns of pandas data as Arrow arrays, and back without a difference.

A `ColumnType` is one pandas dtype: `facts` says in JSON what it is, `arrow` makes rows into what
Parquet keeps, a `Builder` makes a column of what Parquet gives back. Rows are converted slice by
slice, so neither way holds a second copy of a large column. Categories are in `frame_schema`,
because they need an index.
"""

from __future__ import annotations

import datetime
import zoneinfo
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from blobstore.errors import DecodeError, UnsupportedTypeError
from blobstore.handlers.arrow import describe_type, single

NdArray = np.ndarray[Any, Any]
Facts = dict[str, Any]

_WIDEST = 8  # bytes of a number
_NAT = np.iinfo(np.int64).min
_MASKED: dict[type, Callable[..., Any]] = {
    **dict.fromkeys(
        (pd.Int8Dtype, pd.Int16Dtype, pd.Int32Dtype, pd.Int64Dtype), pd.arrays.IntegerArray
    ),
    **dict.fromkeys(
        (pd.UInt8Dtype, pd.UInt16Dtype, pd.UInt32Dtype, pd.UInt64Dtype), pd.arrays.IntegerArray
    ),
    **dict.fromkeys((pd.Float32Dtype, pd.Float64Dtype), pd.arrays.FloatingArray),
    pd.BooleanDtype: pd.arrays.BooleanArray,
}
_MASKED_NAMES: dict[str, type] = {cls().name: cls for cls in _MASKED}
_MISSING: dict[str, Any] = {"none": None, "nan": np.nan, "NA": pd.NA}


class Builder(ABC):
    """A column being read: takes arrays in order, then gives the whole."""

    @abstractmethod
    def add(self, array: pa.Array, *, shared: bool = False) -> None:
        """Take in the next rows; `shared` if somebody else keeps the array too."""

    @abstractmethod
    def finish(self) -> Any:
        """The column, in memory of its own."""


class Fill(Builder):
    """Copies rows into arrays that were allocated at once; a single array becomes the column.

    Parameters
    ----------
    targets : tuple of ndarray
        All of the length of the column.
    decode : callable
        Makes one ndarray for each target from an Arrow array.
    result : callable
        Makes the column from the filled targets.
    adopt : bool
        Whether an array that has all rows may take the place of a target.
    """

    def __init__(
        self,
        targets: tuple[NdArray, ...],
        decode: Callable[[pa.Array], tuple[NdArray, ...]],
        result: Callable[..., Any],
        *,
        adopt: bool = False,
    ) -> None:
        self._targets = targets
        self._adopt = adopt
        self._decode = decode
        self._result = result
        self._done = 0

    def add(self, array: pa.Array, *, shared: bool = False) -> None:
        """Decode and copy rows."""
        stop = self._done + len(array)
        if stop > len(self._targets[0]):
            raise DecodeError("a column has more rows than its frame")
        decoded = self._decode(array)
        whole = len(array) == len(self._targets[0])
        kept = _own_memory(array, decoded[0]) if self._adopt and whole and not shared else None
        if kept is not None:
            self._targets = (kept,)
        else:
            for target, values in zip(self._targets, decoded, strict=True):
                target[self._done : stop] = values
        self._done = stop

    def finish(self) -> Any:
        """Hand out the column."""
        if self._done != len(self._targets[0]):
            raise DecodeError("a column has fewer rows than its frame")
        return self._result(*self._targets)


class Collect(Builder):
    """Keeps Arrow arrays for columns that stay Arrow, or that need all values at once."""

    def __init__(self, rows: int, kind: pa.DataType, result: Callable[[Any], Any]) -> None:
        self._rows = rows
        self._kind = kind
        self._result = result
        self._chunks: list[pa.Array] = []

    def add(self, array: pa.Array, *, shared: bool = False) -> None:
        """Keep rows."""
        self._chunks.append(array if array.type.equals(self._kind) else array.cast(self._kind))

    def finish(self) -> Any:
        """Hand out the column."""
        if sum(map(len, self._chunks)) != self._rows:
            raise DecodeError("a column has not as many rows as its frame")
        return self._result(pa.chunked_array(self._chunks, self._kind))


class ColumnType(ABC):
    """One dtype. `arrow_type` is what it is in Parquet, `key_type` what `keys` gives."""

    kind: ClassVar[str]

    @property
    def keeps_dictionary(self) -> bool:
        """Whether values that Arrow has in a dictionary are not written out when they are read."""
        return False

    @property
    @abstractmethod
    def arrow_type(self) -> pa.DataType:
        """Of the arrays that `arrow` makes."""

    @property
    def key_type(self) -> pa.DataType:
        """Of the arrays that `keys` makes."""
        return self.arrow_type

    @abstractmethod
    def facts(self) -> Facts:
        """All that tells this type from any other, in JSON."""

    def logical(self) -> Any:
        """The same as plain values that no version of a library changes, for a digest."""
        return self.facts()

    @abstractmethod
    def arrow(self, values: Any, start: int, stop: int) -> pa.Array | pa.ChunkedArray:
        """Rows ``[start, stop)`` as Arrow, without a copy where that is possible."""

    @abstractmethod
    def builder(self, rows: int, out: NdArray | None = None) -> Builder:
        """Start to read a column; into `out`, if that is given and the type is fixed in width."""

    def keys(self, array: pa.Array) -> pa.Array:
        """What Parquet gave, in one form that tells values apart and can be searched."""
        return array if array.type.equals(self.key_type) else array.cast(self.key_type)


@dataclass(frozen=True)
class Column:
    """A column about to be stored: its type, and values that the type understands."""

    type: ColumnType
    values: Any
    nbytes: int

    def rows(self, start: int, stop: int) -> pa.Array | pa.ChunkedArray:
        """Rows ``[start, stop)`` as Arrow."""
        return self.type.arrow(self.values, start, stop)

    def all(self) -> pa.Array:
        """The whole column as one Arrow array."""
        return single(self.rows(0, len(self.values)))


def _own_memory(array: pa.Array, values: NdArray) -> NdArray | None:
    """The same values, writable, if they lie in memory that was made for this very array."""
    data = array.buffers()[-1]
    start = array.offset * values.dtype.itemsize
    if data is None or not data.is_mutable or values.ctypes.data != data.address + start:
        return None
    owned: NdArray = np.frombuffer(data, values.dtype, len(values), start)
    return owned


def _without_nulls(array: pa.Array) -> tuple[NdArray]:
    if array.null_count:
        raise DecodeError(f"there are nulls in a column of {array.type}, which cannot have any")
    return (array.to_numpy(zero_copy_only=False),)


@dataclass(frozen=True)
class NumpyType(ColumnType):
    """Booleans, integers and floats of NumPy; NaN is a value, nothing is null."""

    dtype: np.dtype[Any]
    kind: ClassVar[str] = "numpy"

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type of the same bits."""
        return pa.from_numpy_dtype(self.dtype)

    def facts(self) -> Facts:
        """The name of the dtype."""
        return {"kind": self.kind, "dtype": self.dtype.name}

    def arrow(self, values: NdArray, start: int, stop: int) -> pa.Array:
        """The memory of the column itself, if it is contiguous."""
        return pa.array(values[start:stop], type=self.arrow_type, from_pandas=False)

    def builder(self, rows: int, out: NdArray | None = None) -> Builder:
        """Start to read."""
        target = np.empty(rows, self.dtype) if out is None else out

        def decode(array: pa.Array) -> tuple[NdArray]:
            if not array.type.equals(self.arrow_type):
                raise DecodeError(f"a column of {self.dtype} is stored as {array.type}")
            return _without_nulls(array)

        return Fill((target,), decode, lambda values: values, adopt=out is None)


def tz_facts(tz: datetime.tzinfo) -> Facts:
    """A time zone as JSON; only those of the standard library come back as they were."""
    if type(tz) is zoneinfo.ZoneInfo and tz.key:
        return {"zone": tz.key}
    if type(tz) is datetime.timezone:
        offset = tz.utcoffset(None)
        if tz.tzname(None) == datetime.timezone(offset).tzname(None):
            return {"offset_us": offset // datetime.timedelta(microseconds=1)}
    raise UnsupportedTypeError(f"the time zone {tz!r} cannot be kept in Parquet")


def _tz(facts: Facts) -> datetime.tzinfo:
    if "zone" in facts:
        return zoneinfo.ZoneInfo(facts["zone"])
    offset = datetime.timedelta(microseconds=facts["offset_us"])
    return datetime.timezone(offset) if offset else datetime.UTC


@dataclass(frozen=True)
class TemporalType(ColumnType):
    """Instants and time spans in s, ms, us or ns, instants also with a time zone.

    `wide`: they do not fit Parquet, which has no seconds, and are kept as plain integers.
    """

    code: str
    unit: str
    tz: datetime.tzinfo | None = None
    wide: bool = False
    kind: ClassVar[str] = "temporal"

    @property
    def arrow_type(self) -> pa.DataType:
        """A timestamp or duration."""
        if self.wide:
            return pa.int64()
        if self.code == "m":
            return pa.duration(self.unit)
        return pa.timestamp(self.unit, tz=self._tz_name())

    @property
    def key_type(self) -> pa.DataType:
        """Integers since 1970, or of the span."""
        return pa.int64()

    def _tz_name(self) -> str | None:
        if self.tz is None:
            return None
        facts = tz_facts(self.tz)
        if "zone" in facts:
            return str(facts["zone"])
        minutes, rest = divmod(facts["offset_us"], 60_000_000)
        if rest or not minutes:
            return "UTC"  # Arrow knows no finer offsets; the facts do
        sign, size = ("+", minutes) if minutes > 0 else ("-", -minutes)
        return f"{sign}{size // 60:02}:{size % 60:02}"

    def facts(self) -> Facts:
        """Unit and zone."""
        zone = {} if self.tz is None else {"tz": tz_facts(self.tz)}
        return {"kind": self.kind, "dtype": self.code, "unit": self.unit, **zone}

    def arrow(self, values: NdArray, start: int, stop: int) -> pa.Array:
        """Not-a-time becomes null."""
        if self.wide:
            return pa.array(values[start:stop].view("i8"))
        return pa.array(values[start:stop], type=self.arrow_type)

    def keys(self, array: pa.Array) -> pa.Array:
        """The integers beneath."""
        kind = array.type
        if pa.types.is_timestamp(kind) and kind.unit != self.unit:
            array = array.cast(pa.timestamp(self.unit, kind.tz))
        return array.view(pa.int64())

    def builder(self, rows: int, out: NdArray | None = None) -> Builder:
        """Start to read."""
        target = np.empty(rows, f"{self.code}8[{self.unit}]") if out is None else out

        def decode(array: pa.Array) -> tuple[NdArray]:
            return _without_nulls(pc.fill_null(self.keys(array), _NAT))

        def result(values: NdArray) -> Any:
            if self.tz is None:
                return values
            return pd.DatetimeIndex(values, copy=False).tz_localize("UTC").tz_convert(self.tz).array

        finish = lambda ints: result(ints.view(target.dtype))  # noqa: E731
        return Fill((target.view("i8"),), decode, finish, adopt=out is None)


@dataclass(frozen=True)
class StringType(ColumnType):
    """The string dtypes: in Arrow or Python memory, NaN or NA for what is missing."""

    storage: str
    na: str
    kind: ClassVar[str] = "string"

    @property
    def arrow_type(self) -> pa.DataType:
        """Text without a limit of 2 GiB."""
        return pa.large_string()

    def facts(self) -> Facts:
        """Storage and the missing value."""
        return {"kind": self.kind, "storage": self.storage, "missing": self.na}

    def arrow(self, values: pa.ChunkedArray, start: int, stop: int) -> pa.ChunkedArray:
        """The memory of the column itself, if it is Arrow's."""
        return values.slice(start, stop - start)

    def builder(self, rows: int, out: NdArray | None = None) -> Builder:
        """Start to read."""
        dtype = pd.StringDtype(self.storage, na_value=_MISSING[self.na])  # type: ignore[call-overload]
        return Collect(rows, self.arrow_type, dtype.__from_arrow__)


@dataclass(frozen=True)
class ObjectType(ColumnType):
    """Python objects that are all `str`, or all `bytes`, but for one kind of missing value."""

    values: str
    missing: str
    kind: ClassVar[str] = "object"

    @property
    def arrow_type(self) -> pa.DataType:
        """Text or bytes."""
        return pa.large_string() if self.values == "str" else pa.large_binary()

    def facts(self) -> Facts:
        """What the objects are."""
        return {"kind": self.kind, "values": self.values, "missing": self.missing}

    def arrow(self, values: pa.ChunkedArray, start: int, stop: int) -> pa.ChunkedArray:
        """Converted already: only that tells whether UTF-8 can hold them."""
        return values.slice(start, stop - start)

    def builder(self, rows: int, out: NdArray | None = None) -> Builder:
        """Start to read."""
        missing = _MISSING[self.missing]

        def decode(array: pa.Array) -> tuple[NdArray]:
            array = self.keys(array)
            objects: NdArray = array.to_numpy(zero_copy_only=False).astype(object, copy=False)
            if array.null_count and missing is not None:
                objects[pc.is_null(array).to_numpy(zero_copy_only=False)] = missing
            return (objects,)

        return Fill((np.empty(rows, object),), decode, lambda objects: objects)


@dataclass(frozen=True)
class MaskedType(ColumnType):
    """The nullable integers, floats and booleans; a float may be NaN and not missing."""

    name: str
    kind: ClassVar[str] = "masked"

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type of the values."""
        return pa.from_numpy_dtype(self._values)

    @property
    def _values(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = _MASKED_NAMES[self.name]().numpy_dtype
        return dtype

    def facts(self) -> Facts:
        """The name of the dtype."""
        return {"kind": self.kind, "dtype": self.name}

    def arrow(self, values: Any, start: int, stop: int) -> pa.Array:
        """What is missing becomes null."""
        return pa.array(values[start:stop], type=self.arrow_type)

    def builder(self, rows: int, out: NdArray | None = None) -> Builder:
        """Start to read."""

        def decode(array: pa.Array) -> tuple[NdArray, NdArray]:
            if not array.type.equals(self.arrow_type):
                raise DecodeError(f"a column of {self.name} is stored as {array.type}")
            filled = pc.fill_null(array, pa.scalar(0).cast(array.type))
            mask = pc.is_null(array).to_numpy(zero_copy_only=False)
            return (filled.to_numpy(zero_copy_only=False), mask)

        targets = (np.empty(rows, self._values), np.empty(rows, bool))
        return Fill(targets, decode, _MASKED[_MASKED_NAMES[self.name]])


@dataclass(frozen=True)
class ArrowType(ColumnType):
    """Columns that pandas itself keeps as Arrow, of those types that Parquet gives back."""

    arrow_type_: pa.DataType
    kind: ClassVar[str] = "arrow"

    @property
    def arrow_type(self) -> pa.DataType:
        """The type itself."""
        return self.arrow_type_

    def facts(self) -> Facts:
        """The type, as the schema of one field in Arrow's own form, and as text for people."""
        schema = pa.schema([pa.field("", self.arrow_type_)]).serialize().to_pybytes()
        return {"kind": self.kind, "dtype": str(self.arrow_type_), "schema": schema.hex()}

    def logical(self) -> Any:
        """The type without the bytes of its schema, whose layout is Arrow's affair."""
        return {"kind": self.kind, "dtype": describe_type(self.arrow_type_)}

    def arrow(self, values: pa.ChunkedArray, start: int, stop: int) -> pa.ChunkedArray:
        """The memory of the column itself."""
        return values.slice(start, stop - start)

    def builder(self, rows: int, out: NdArray | None = None) -> Builder:
        """Start to read."""
        return Collect(rows, self.arrow_type_, pd.arrays.ArrowExtensionArray)


def _restorable(kind: pa.DataType) -> bool:
    """Whether Parquet gives back columns of this Arrow type as they were (tested, type by type)."""
    types = pa.types
    if types.is_struct(kind):
        return kind.num_fields > 0 and all(_restorable(field.type) for field in kind)
    if types.is_map(kind):
        return _restorable(kind.key_type) and _restorable(kind.item_type)
    if types.is_list(kind) or types.is_large_list(kind):
        return _restorable(kind.value_type)
    if types.is_timestamp(kind) or types.is_time32(kind):
        return bool(kind.unit != "s")
    return bool(
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_date32(kind)
        or types.is_time64(kind)
        or types.is_duration(kind)
        or types.is_decimal128(kind)
        or types.is_decimal256(kind)
    )


def check_dtype(dtype: Any) -> None:
    """Refuse a dtype that cannot come back exactly, without a look at any value.

    Raises
    ------
    UnsupportedTypeError
    """
    if isinstance(dtype, np.dtype):
        fits = dtype.kind in "biuMmO" or (dtype.kind == "f" and dtype.itemsize <= 8)
        known = dtype.isnative and fits
    elif type(dtype) is pd.DatetimeTZDtype:
        tz_facts(dtype.tz)
        known = True
    elif type(dtype) is pd.ArrowDtype:
        known = _restorable(dtype.pyarrow_dtype)
    elif type(dtype) is pd.CategoricalDtype:
        known = dtype.categories is not None
    else:
        known = type(dtype) is pd.StringDtype or type(dtype) in _MASKED
    if not known:
        raise UnsupportedTypeError(f"Parquet cannot hold a pandas column of dtype {dtype} exactly")


def simple_column(array: Any) -> Column:
    """Prepare an extension array of any supported dtype but a categorical one.

    Raises
    ------
    UnsupportedTypeError
        Its dtype, or a value in it, would not come back as it is.
    """
    if type(array) is pd.arrays.NumpyExtensionArray:  # StringArray is one of its subclasses
        array = np.asarray(array)
    dtype = array.dtype
    check_dtype(dtype)
    if type(dtype) is pd.StringDtype:
        missing = "NA" if dtype.na_value is pd.NA else "nan"
        text = as_chunked(array, pa.large_string())
        return Column(StringType(dtype.storage, missing), text, text.nbytes)
    if type(dtype) is pd.ArrowDtype:
        kept = as_chunked(array, dtype.pyarrow_dtype)
        return Column(ArrowType(dtype.pyarrow_dtype), kept, kept.nbytes)
    if type(dtype) in _MASKED:
        return Column(MaskedType(dtype.name), array, array.nbytes)
    if dtype.kind in "Mm":
        return _temporal_column(array)
    if dtype.kind == "O":
        return _object_column(array)
    return Column(NumpyType(dtype), array, array.nbytes)


def as_chunked(array: Any, kind: pa.DataType) -> pa.ChunkedArray:
    """Convert to Arrow; what cannot be converted, lone surrogates for instance, is unsupported."""
    try:
        made = pa.array(array, type=kind)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as exc:
        raise UnsupportedTypeError(f"a column holds what Parquet cannot: {exc}") from exc
    chunked = made if isinstance(made, pa.ChunkedArray) else pa.chunked_array([made])
    return chunked if chunked.type.equals(kind) else chunked.cast(kind)


def _temporal_column(array: Any) -> Column:
    code, unit = array.dtype.kind, getattr(array, "unit", "ns")
    ints: NdArray = array.view("i8")
    wide = False
    if code == "M" and unit == "s":  # becomes milliseconds in Parquet
        limit = np.iinfo(np.int64).max // 1000
        wide = bool(((ints > limit) | ((ints < -limit) & (ints != _NAT))).any())
    tz = getattr(array, "tz", None)
    return Column(TemporalType(code, unit, tz, wide), ints.view(f"{code}8[{unit}]"), ints.nbytes)


def _object_column(objects: NdArray) -> Column:
    kinds = set(map(type, objects))
    missing = kinds - {str, bytes}
    values = kinds - missing
    name = {frozenset(): "none", frozenset({type(None)}): "none", frozenset({float}): "nan"}.get(
        frozenset(missing), "NA" if missing == {type(pd.NA)} else ""
    )
    only_nan = name != "nan" or all(x != x for x in objects if type(x) is float)  # noqa: PLR0124
    if not name or len(values) > 1 or not only_nan:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UnsupportedTypeError(f"Parquet cannot hold a pandas column of objects ({found})")
    kind = ObjectType("bytes" if values == {bytes} else "str", name)
    if name == "NA":
        objects = objects.copy()
        objects[pd.isna(objects)] = None
    try:
        made = pa.array(objects, type=kind.arrow_type, from_pandas=True)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as exc:
        raise UnsupportedTypeError(f"a column of objects holds what UTF-8 cannot: {exc}") from exc
    chunked = made if isinstance(made, pa.ChunkedArray) else pa.chunked_array([made])
    return Column(kind, chunked, chunked.nbytes)


def simple_type(facts: Facts) -> ColumnType:
    """The type that `facts` came from; categories apart."""
    kind = facts["kind"]
    if kind == "numpy":
        dtype = np.dtype(facts["dtype"])
        if dtype.kind not in "biuf" or dtype.itemsize > _WIDEST:
            raise DecodeError(f"there is no column of numbers of the dtype {facts['dtype']!r}")
        return NumpyType(dtype)
    if kind == "temporal":
        code, unit = facts["dtype"], facts["unit"]
        if code not in ("m", "M") or unit not in ("s", "ms", "us", "ns"):
            raise DecodeError(f"there is no column of times of the kind {code!r} and unit {unit!r}")
        return TemporalType(code, unit, _tz(facts["tz"]) if "tz" in facts else None)
    if kind == "string":
        return StringType(facts["storage"], facts["missing"])
    if kind == "object":
        return ObjectType(facts["values"], facts["missing"])
    if kind == "masked":
        return MaskedType(facts["dtype"])
    if kind == "arrow":
        return ArrowType(pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(facts["schema"])))[0].type)
    raise DecodeError(f"there is no kind of column {kind!r}: upgrade blobstore")
