"""Frames and series come back from Parquet as they were, or are refused."""

from __future__ import annotations

import datetime as dt
import decimal
import errno
import gc
import io
import json
import os
import subprocess
import sys
import zoneinfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore import codecs
from blobstore.digest import new_digest
from blobstore.errors import (
    DecodeError,
    InvalidInputError,
    OutOfSpaceError,
    StorageError,
    UnsupportedTypeError,
)
from blobstore.handlers import frame_schema
from blobstore.handlers.frame_columns import NumpyType
from blobstore.handlers.pandas import PandasHandler
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.streams import BytesSource, FileSource, MemorySink

HANDLER = PandasHandler()


# --- helpers -------------------------------------------------------------------------------------


def encode(obj, codec: str = "lz4", level: int = 3) -> tuple[bytes, str]:
    (part,) = HANDLER.plan(obj, WriteOptions(codec, level)).parts
    with MemorySink() as sink:
        part.write(sink)
    return sink.content, part.encoding().codec


def decode(content: bytes, **options):
    part = StoredPart("data", BytesSource(content), "lz4", "pandas", 1)
    return HANDLER.read({"data": part}, {}, **options)


def round_trip(obj, codec: str = "lz4", level: int = 3, **options):
    return decode(encode(obj, codec, level)[0], **options)


def digest(obj) -> str:
    hasher = new_digest()
    HANDLER.plan(obj, WriteOptions()).parts[0].digest(hasher)
    return hasher.hexdigest()


def assert_same(left, right) -> None:
    """Equal, and the same in all that the asserts of pandas pass over."""
    assert type(left) is type(right)
    exact = {"check_exact": True, "check_freq": True, "check_flags": True}
    if isinstance(left, pd.DataFrame):
        pd.testing.assert_frame_equal(
            left, right, check_index_type="exact", check_column_type="exact", **exact
        )
        assert_same_index(left.columns, right.columns)
        for place in range(left.shape[1]):
            assert_same_values(left.iloc[:, place], right.iloc[:, place])
    else:
        pd.testing.assert_series_equal(left, right, check_index_type="exact", **exact)
        assert_same_values(left, right)
        assert type(left.name) is type(right.name)
    assert_same_index(left.index, right.index)
    assert repr(left.attrs) == repr(right.attrs)


def assert_same_values(left: pd.Series, right: pd.Series) -> None:
    assert dtype_facts(left.dtype) == dtype_facts(right.dtype)
    if left.dtype == object:
        assert list(map(type, left)) == list(map(type, right))
    if left.dtype == "Float64":  # an NA and a NaN are equal to the asserts
        one, other = pa.array(left.array), pa.array(right.array)
        assert one.is_null().equals(other.is_null())


def assert_same_index(left: pd.Index, right: pd.Index) -> None:
    pd.testing.assert_index_equal(left, right, exact=True)
    assert type(left) is type(right)
    assert list(map(repr, left.names)) == list(map(repr, right.names))
    assert getattr(left, "freq", None) == getattr(right, "freq", None)
    if isinstance(left, pd.MultiIndex):
        for one, other in zip(left.levels, right.levels, strict=True):
            assert dtype_facts(one.dtype) == dtype_facts(other.dtype)
            pd.testing.assert_index_equal(one, other, exact=True)
            assert getattr(one, "freq", None) == getattr(other, "freq", None)
    else:
        assert dtype_facts(left.dtype) == dtype_facts(right.dtype)


def dtype_facts(dtype) -> tuple:
    if isinstance(dtype, pd.CategoricalDtype):
        index = dtype.categories
        facts = (type(index), dtype_facts(index.dtype), getattr(index, "freq", None), index.name)
        return ("category", dtype.ordered, *facts, list(map(repr, index)))
    if isinstance(dtype, pd.StringDtype):
        return ("string", dtype.storage, repr(dtype.na_value))
    tz = getattr(dtype, "tz", None)
    return (type(dtype), str(dtype), type(tz), tz)


# --- strategies ----------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
ZONES = st.sampled_from(
    [
        zoneinfo.ZoneInfo("Europe/Berlin"),
        zoneinfo.ZoneInfo("UTC"),
        dt.UTC,
        dt.timezone(dt.timedelta(hours=5, minutes=30)),
        dt.timezone(-dt.timedelta(hours=1, seconds=7)),
    ]
)
UNITS = st.sampled_from(["s", "ms", "us", "ns"])
NUMPY = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
MASKED = ["Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"]
ARROW = [
    pa.array([1, None, -3], pa.int8()),
    pa.array(np.array([1.5, np.nan, -0.0], "f2")),
    pa.array([1.5, None, float("nan")]),
    pa.array([True, None, False]),
    pa.array(["", None, "ü\0"]),
    pa.array(["", None, "ü\0"], pa.large_string()),
    pa.array([b"", None, b"\xff\0"]),
    pa.array([b"ab", None, b"\0\0"], pa.binary(2)),
    pa.array([1, None, -3], pa.date32()),
    pa.array([1, None, 3], pa.time32("ms")),
    pa.array([1, None, 3], pa.time64("ns")),
    pa.array([1, None, -3], pa.timestamp("us")),
    pa.array([1, None, -3], pa.timestamp("ns", "Europe/Berlin")),
    pa.array([1, None, -3], pa.timestamp("ms", "+01:00")),
    pa.array([1, None, -3], pa.duration("s")),
    pa.array([decimal.Decimal("1.500"), None], pa.decimal128(12, 3)),
    pa.array([decimal.Decimal("1.5"), None], pa.decimal256(50, 1)),
    pa.array([[1, None], None, []], pa.list_(pa.int32())),
    pa.array([["a", None], None, []], pa.large_list(pa.string())),
    pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}]),
    pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
]
NAMES = (
    st.none() | TEXT | st.integers() | st.floats(0, 1) | st.tuples(TEXT, st.integers() | st.none())
)
ATTRS = st.dictionaries(
    TEXT | st.integers(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | TEXT | st.floats() | st.binary(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.tuples(inner)
            | st.dictionaries(TEXT, inner, max_size=2)
            | st.dictionaries(st.just("$") | st.integers(), inner, max_size=2)
        ),
        max_leaves=4,
    ),
    max_size=2,
)


def some(values, rows: int, *, unique: bool):
    """Rows of a column; missing values among them, unless they are to be categories."""
    values = values if unique else st.none() | values
    return st.lists(values, min_size=rows, max_size=rows, unique=unique)


@st.composite
def instants(draw, rows: int, code: str, unique: bool):
    unit = draw(UNITS)
    near = st.integers(-(10**9), 10**9)  # pandas cannot print what is farther off
    ints = draw(some(near if unique else near | st.integers(0, 2**62), rows, unique=unique))
    values = np.array([-(2**63) if x is None else x for x in ints], "i8")
    return values.view(f"{code}8[{unit}]")


@st.composite
def simple(draw, rows: int, unique: bool = False):
    """An index of one simple dtype; a unique one has nothing missing."""
    kind = draw(st.sampled_from(["numpy", "M", "m", "tz", "str", "string", "object", "masked"]))
    if kind == "numpy":
        most = 99 if not unique else 120
        name = draw(st.sampled_from(["i1", "i8", "u2", "u8", "f4", "f8", "bool"]))
        if name == "bool" and unique:
            name = "i4"
        return pd.Index(
            np.array(
                draw(st.lists(st.integers(0, most), min_size=rows, max_size=rows, unique=unique)),
                name,
            )
        )
    if kind in ("M", "m"):
        return pd.Index(draw(instants(rows, kind, unique)))
    if kind == "tz":
        # Not so far off that its wall time leaves the range of the unit.
        values = draw(instants(rows, "M", unique))
        return pd.DatetimeIndex(values).tz_localize("UTC").tz_convert(draw(ZONES))
    if kind in ("str", "string"):
        dtypes = ["str"] if kind == "str" else ["string[python]", "string[pyarrow]"]
        dtype = draw(st.sampled_from(dtypes))
        return pd.Index(pd.array(draw(some(TEXT, rows, unique=unique)), dtype=dtype))
    if kind == "object":
        values = draw(st.sampled_from([TEXT, st.binary(max_size=3)]))
        return pd.Index(draw(some(values, rows, unique=unique)), dtype=object)
    dtype = draw(st.sampled_from([*MASKED, "Float64"]))
    return pd.Index(pd.array(draw(some(st.integers(0, 99), rows, unique=unique)), dtype=dtype))


@st.composite
def categories(draw, rows: int):
    index = draw(st.integers(0, 5).flatmap(lambda count: simple(count, unique=True)))
    codes = draw(st.lists(st.integers(-1, len(index) - 1), min_size=rows, max_size=rows))
    return pd.Categorical.from_codes(codes, index, ordered=draw(st.booleans()))


@st.composite
def columns(draw, rows: int):
    kind = draw(st.sampled_from(["simple", "numpy", "masked", "category", "arrow", "objects"]))
    if kind == "numpy":
        dtype = np.dtype(draw(st.sampled_from(NUMPY)))
        raw = draw(st.binary(min_size=rows * 8, max_size=rows * 8))[: rows * dtype.itemsize]
        bits = np.frombuffer(raw, "u1" if dtype.kind == "b" else dtype)
        return pd.Series(bits > 127 if dtype.kind == "b" else bits.copy())
    if kind == "masked":
        dtype = draw(st.sampled_from([*MASKED, "Float32", "Float64", "boolean"]))
        values = st.booleans() if dtype == "boolean" else st.integers(0, 100)
        return pd.Series(draw(some(values, rows, unique=False)), dtype=dtype)
    if kind == "category":
        return pd.Series(draw(categories(rows)))
    if kind == "arrow":
        made = draw(st.sampled_from(ARROW))
        places = draw(st.lists(st.integers(0, len(made) - 1), min_size=rows, max_size=rows))
        return pd.Series(pd.arrays.ArrowExtensionArray(made.take(pa.array(places, "i8"))))
    if kind == "objects":
        missing = draw(st.sampled_from([None, np.nan, pd.NA]))
        values = st.lists(st.just(missing) | TEXT, min_size=rows, max_size=rows)
        return pd.Series(draw(values), dtype=object)
    return pd.Series(draw(simple(rows)))


@st.composite
def indexes(draw, rows: int):
    kind = draw(st.sampled_from(["range", "simple", "category", "multi", "freq"]))
    if kind == "range":
        start, step = draw(st.integers(-9, 9)), draw(st.sampled_from([1, -2, 7]))
        return pd.RangeIndex(start, start + step * rows, step, name=draw(NAMES))
    if kind == "freq":
        freq = draw(st.sampled_from(["D", "h", "ME", "W-WED", "3s", "B", "QS-FEB"]))
        tz = draw(st.none() | ZONES)
        return pd.date_range("2020-01-01", periods=rows, freq=freq, tz=tz, name=draw(NAMES))
    if kind == "multi":
        levels = [
            draw(simple(draw(st.integers(1, 4)), unique=True))
            for _ in range(draw(st.integers(1, 3)))
        ]
        codes = [
            draw(st.lists(st.integers(-1, len(level) - 1), min_size=rows, max_size=rows))
            for level in levels
        ]
        return pd.MultiIndex(levels=levels, codes=codes, names=[draw(NAMES) for _ in levels])
    index = (
        pd.CategoricalIndex(draw(categories(rows))) if kind == "category" else draw(simple(rows))
    )
    return index.rename(draw(NAMES))


@st.composite
def labels(draw, count: int):
    kind = draw(st.sampled_from(["names", "mixed", "index"]))
    if kind == "names":
        return pd.Index(draw(st.lists(TEXT, min_size=count, max_size=count)), dtype="str")
    if kind == "mixed":
        made = np.empty(count, object)
        made[:] = draw(st.lists(NAMES, min_size=count, max_size=count))
        return pd.Index(made, dtype=object, tupleize_cols=False, name=draw(NAMES))
    return draw(indexes(count))


@st.composite
def frames(draw):
    rows, count = draw(st.integers(0, 5)), draw(st.integers(0, 4))
    frame = pd.DataFrame({i: draw(columns(rows)) for i in range(count)}, index=range(rows))
    frame.index = draw(indexes(rows))
    frame.columns = draw(labels(count))
    frame.attrs = draw(ATTRS)
    return frame


# --- round trips ---------------------------------------------------------------------------------


@given(frames())
@settings(deadline=None)
def test_a_frame_comes_back_equal(frame) -> None:
    assert_same(round_trip(frame), frame)


@given(st.integers(0, 5).flatmap(lambda n: st.tuples(columns(n), indexes(n), NAMES)))
@settings(deadline=None)
def test_a_series_comes_back_equal(case) -> None:
    values, index, name = case
    series = pd.Series(values.array, index=index, dtype=values.dtype, name=name)
    assert_same(round_trip(series), series)


MIXED = pd.DataFrame(
    {
        "i": [1, 2, 3],
        "f": [1.5, np.nan, -0.0],
        "s": pd.array(["a", None, "c"], dtype="str"),
        "t": pd.date_range("2020", periods=3, tz="Europe/Berlin"),
        "c": pd.Categorical(["x", None, "y"], ["y", "z", "x"], ordered=True),
        "I": pd.array([1, None, 3], "Int8"),
        "o": pd.Series(["a", None, "c"], dtype=object),
    }
)
STRUCT = pd.Series([{"b": 2}], dtype=pd.ArrowDtype(pa.struct([("b", pa.int8())])))


@pytest.mark.parametrize(
    "obj",
    [
        pd.DataFrame(),
        pd.DataFrame(index=["a", "b"]),
        pd.DataFrame(index=range(3)),
        pd.DataFrame(columns=["a", "b"]),
        MIXED.iloc[:0],
        MIXED.iloc[:1],
        MIXED[[]],
        MIXED[["i", "i", "f"]],
        MIXED.set_index(["s", "i"]),
        MIXED.groupby(["c", "i"], observed=False)["f"].sum(),
        pd.DataFrame(np.arange(12).reshape(3, 4)),
        pd.DataFrame(np.arange(12).reshape(3, 4))[::-2],
        pd.DataFrame({"a.b": [1], "a": STRUCT}),
        pd.DataFrame({"": [1], "x\0y": [2]}),
        pd.DataFrame({"__index_level_0__": [1]}, index=[5]),
        pd.DataFrame({"a": [1]}, index=pd.Index([5], name="a")),
        pd.DataFrame([[1]], columns=pd.Index(["\ud800"], dtype=object)),
        pd.concat({"b": MIXED, "a": MIXED}),
        pd.Series([1, 2], name=("a", 1)),
        pd.Series(["nul\0", ""], dtype=object),
        pd.Series([np.nan, np.nan], dtype=object),
        pd.Series([None], dtype=object),
        pd.Series([2**64 - 1], dtype="u8"),
        pd.Series(pd.Categorical(range(3))),
        pd.Series(pd.Categorical(pd.date_range("2020", periods=3))),
        pd.Series([1, 2], index=pd.Index([None, "a"], dtype=object)),
        pd.Series([1], index=pd.Index(["a"], dtype=pd.ArrowDtype(pa.string()))),
        pd.Series([1], index=pd.Index([1.5], name=np.nan)),
    ],
    ids=lambda obj: type(obj).__name__,
)
def test_corners(obj) -> None:
    assert_same(round_trip(obj), obj)


def test_nan_and_missing_stay_apart() -> None:
    values = pd.arrays.FloatingArray(np.array([np.nan, 1.0, 2.0]), np.array([False, True, False]))
    back = pa.array(round_trip(pd.Series(values)).array)
    assert back.is_null().to_pylist() == [False, True, False]
    assert np.isnan(back[0].as_py())


def test_seconds_that_parquet_cannot_hold() -> None:
    far = pd.Series(np.array([2**58, -(2**58), 5], "M8[s]"))
    far[1] = pd.NaT
    assert_same(round_trip(far), far)
    assert pq.read_schema(io.BytesIO(encode(far)[0])).field(0).type == pa.int64()


def test_levels_keep_their_order() -> None:
    whole = pd.concat({"b": pd.Series([1, 2]), "a": pd.Series([3]), "z": pd.Series([4])})
    part = whole[whole < 4]
    back = round_trip(part)
    assert_same(back, part)
    pd.testing.assert_frame_equal(back.unstack(0), part.unstack(0))


def test_long_levels_lose_what_is_unused(monkeypatch) -> None:
    monkeypatch.setattr(frame_schema, "MAX_INLINE_CATEGORIES", 2)
    part = pd.Series(range(4), pd.MultiIndex.from_product([["d", "c", "b", "a"], [1]]))[1:3]
    back = round_trip(part)
    pd.testing.assert_series_equal(back, part)
    assert sorted(back.index.levels[0]) == ["b", "c"]


MANY = {
    "sorted": pd.Index([f"{i:03}" for i in range(50)]),
    "numbers": pd.Index(range(0, 100, 2)).astype("int64").astype("Int64"),
    "reversed": pd.Index([f"{i:03}" for i in range(50)][::-1]),
    "range": pd.RangeIndex(50),
    "freq": pd.date_range("2020", periods=50),
    "dates": pd.DatetimeIndex(pd.date_range("2020", periods=50), freq=None),
    "nested": pd.CategoricalIndex([f"{i:03}" for i in range(50)]),
}


@pytest.mark.parametrize("kind", MANY)
def test_many_categories(monkeypatch, kind: str) -> None:
    """Sorted ones are found again in the data, others are listed."""
    monkeypatch.setattr(frame_schema, "MAX_INLINE_CATEGORIES", 10)
    index = MANY[kind]
    codes = np.r_[np.arange(50)[::-1], -1, 3]
    objects = [pd.Series(range(52), index=pd.MultiIndex([index, ["a"]], [codes, [0] * 52]))]
    if kind != "nested":
        objects.append(pd.Series(pd.Categorical.from_codes(codes, index)))
    for obj in objects:
        assert_same(round_trip(obj), obj)
        check = pd.testing.assert_series_equal if "Multi" in repr(type(obj.index)) else assert_same
        check(round_trip(obj.iloc[:20]), obj.iloc[:20])
        content = encode(obj)[0]
        facts = facts_of(content)
        (*levels, last) = [*facts["index"].get("levels", facts["types"])]
        found = (levels or [last])[0]["categories"]
        assert ("values" not in found and kind != "range") == (
            kind in {"sorted", "numbers", "dates"}
        )


def test_flags_come_back() -> None:
    frame = pd.DataFrame({"a": [1]}).set_flags(allows_duplicate_labels=False)
    assert round_trip(frame).flags.allows_duplicate_labels is False


def test_many_row_groups(monkeypatch) -> None:
    monkeypatch.setattr("blobstore.handlers.parquet.ROW_GROUP_ROWS", (7, 7))
    monkeypatch.setattr("blobstore.handlers.pandas._READ_BYTES", 1)
    frame = pd.concat([MIXED] * 10, ignore_index=True).set_index(["t", "c"], append=True)
    content, _ = encode(frame)
    assert pq.ParquetFile(io.BytesIO(content)).num_row_groups == 5
    assert_same(decode(content), frame)


def test_the_object_is_not_changed() -> None:
    frame = MIXED.copy()
    encode(frame)
    digest(frame)
    assert_same(frame, MIXED)


def test_the_result_can_be_written_to_and_needs_no_file(tmp_path) -> None:
    path = tmp_path / "frame.parquet"
    path.write_bytes(encode(MIXED)[0])
    with FileSource(path) as source:
        back = HANDLER.read({"data": StoredPart("data", source, "lz4", "pandas", 1)}, {})
    path.write_bytes(b"gone" * 1000)
    assert_same(back, MIXED)
    for name in back.columns:
        back.loc[0, name] = back.loc[2, name]
        assert back.loc[0, name] == back.loc[2, name]
    frame = round_trip(pd.DataFrame(np.zeros((3, 2))))
    frame.iloc[0, 0] = 5.0
    assert frame.iloc[0, 0] == 5.0


def test_many_columns_end_in_few_blocks() -> None:
    frame = pd.DataFrame({f"c{i}": np.full(3, i, "i8" if i % 2 else "f8") for i in range(200)})
    back = round_trip(frame)
    assert_same(back, frame)
    assert len(back._mgr.blocks) == 2
    assert len(round_trip(frame.astype("f8"))._mgr.blocks) == 1


# --- what is refused -----------------------------------------------------------------------------

DAYS = pd.period_range("2020", periods=1, freq="D")
ODD_DAYS = pd.offsets.CustomBusinessDay(holidays=["2024-01-03"])
REFUSED = {
    "int and str": pd.Series([1, "a"], dtype=object),
    "str and bytes": pd.Series(["a", b"a"], dtype=object),
    "lists": pd.Series([[1], [2]], dtype=object),
    "dicts": pd.Series([{"a": 1}], dtype=object),
    "decimals": pd.Series([decimal.Decimal(1)], dtype=object),
    "dates": pd.Series([dt.date(2020, 1, 1)], dtype=object),
    "None and NaN": pd.Series(["a", None, np.nan], dtype=object),
    "str and float": pd.Series(["a", 1.5], dtype=object),
    "bool objects": pd.Series([True, None], dtype=object),
    "huge integers": pd.Series([2**100], dtype=object),
    "NumPy strings": pd.Series([np.str_("a")], dtype=object),
    "surrogates": pd.Series(["\ud800"], dtype=object),
    "surrogates in str": pd.Series(pd.array(["\ud800"], dtype="string[python]")),
    "complex": pd.Series([1j]),
    "long double": pd.Series([1], dtype=np.longdouble),
    "other byte order": pd.Series(np.array([1], ">i4")),
    "period": pd.Series(DAYS),
    "interval": pd.Series(pd.interval_range(0, 2)),
    "sparse": pd.Series(pd.arrays.SparseArray([0, 1])),
    "interval categories": pd.Series(pd.cut([1, 2, 3], 2)),
    "Arrow seconds": pd.Series([1], dtype=pd.ArrowDtype(pa.timestamp("s"))),
    "Arrow seconds in lists": pd.Series([], dtype=pd.ArrowDtype(pa.list_(pa.timestamp("s")))),
    "Arrow dictionary": pd.Series([], dtype=pd.ArrowDtype(pa.dictionary(pa.int8(), pa.string()))),
    "Arrow empty struct": pd.Series([], dtype=pd.ArrowDtype(pa.struct([]))),
    "Arrow categories": pd.Series(
        pd.Categorical(pd.array(["a"], dtype=pd.ArrowDtype(pa.string())))
    ),
    "mixed index": pd.Series([1, 2], index=pd.Index([1, "a"], dtype=object)),
    "period index": pd.Series([1], index=DAYS),
    "period level": pd.Series([1], index=pd.MultiIndex.from_arrays([DAYS])),
    "date as name": pd.Series([1], name=dt.date(2020, 1, 1)),
    "NumPy number as name": pd.Series([1], name=np.int64(1)),
    "date as label": pd.DataFrame([[1]], columns=[dt.date(2020, 1, 1)]),
    "interval as label": pd.DataFrame([[1]], columns=pd.interval_range(0, 1)),
    "Arrow as label": pd.DataFrame([[1]], columns=pd.Index([1], dtype="int64[pyarrow]")),
    "frequency without name": pd.Series(
        range(3), index=pd.date_range("2024-01-02", periods=3, freq=ODD_DAYS)
    ),
    "named time zone": pd.Series(
        pd.DatetimeIndex(["2020"]).tz_localize(dt.timezone(dt.timedelta(hours=1), "x"))
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_parquet_cannot_hold_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedTypeError):
        HANDLER.plan(REFUSED[kind], WriteOptions())


@pytest.mark.parametrize("attr", [object(), np.int64(1), {1, 2}, dt.date(2020, 1, 1), 1 << 5000])
def test_attributes_that_json_cannot_hold_are_refused(attr) -> None:
    frame = pd.DataFrame({"a": [1]})
    frame.attrs = {"x": [attr]}
    with pytest.raises(UnsupportedTypeError):
        HANDLER.plan(frame, WriteOptions())


def test_endless_attributes_are_refused() -> None:
    series = pd.Series([1])
    loop: list = []
    loop.append(loop)
    series.attrs["self"] = loop
    with pytest.raises(UnsupportedTypeError, match="nested too deeply"):
        HANDLER.plan(series, WriteOptions())


def test_facts_too_large_for_a_footer_are_refused(monkeypatch) -> None:
    monkeypatch.setattr("blobstore.handlers.pandas._MAX_FACTS", 1000)
    with pytest.raises(UnsupportedTypeError, match="too large"):
        HANDLER.plan(pd.DataFrame({"a" * 1000: [1]}), WriteOptions())


def test_subclasses_are_left_to_others() -> None:
    class MyFrame(pd.DataFrame):
        pass

    assert not HANDLER.can_handle(MyFrame({"a": [1]}))
    assert HANDLER.can_handle(pd.DataFrame())
    assert HANDLER.can_handle(pd.Series([1]))
    with pytest.raises(UnsupportedTypeError):
        HANDLER.plan(MyFrame({"a": [1]}), WriteOptions())


# --- reading -------------------------------------------------------------------------------------


def test_columns_are_chosen_by_label_and_order() -> None:
    assert_same(round_trip(MIXED, columns=["c", "i"]), MIXED[["c", "i"]])
    assert_same(round_trip(MIXED, columns=[]), MIXED[[]])
    assert_same(round_trip(MIXED, columns=["i", "i"]), MIXED[["i", "i"]])
    doubled = MIXED[["i", "f", "i"]].set_index("f")
    assert_same(round_trip(doubled, columns=["i"]), doubled)
    pairs = pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)])
    wide = pd.DataFrame(np.eye(3), columns=pairs)
    chosen = round_trip(wide, columns=[("b", 1), ("a", 1)])
    pd.testing.assert_frame_equal(chosen, wide[[("b", 1), ("a", 1)]])
    dotted = pd.DataFrame({"a.b": [1], "a": STRUCT})
    for name in dotted.columns:
        assert_same(round_trip(dotted, columns=[name]), dotted[[name]])


def test_only_the_chosen_columns_are_read() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.random(50_000), "b": rng.random(50_000)})
    content, _ = encode(frame)
    read = 0

    class Counting(io.BytesIO):
        def read(self, size=-1):
            nonlocal read
            data = super().read(size)
            read += len(data)
            return data

    source = BytesSource(content)
    source.open = lambda: Counting(content)
    part = StoredPart("data", source, "lz4", "pandas", 1)
    assert_same(HANDLER.read({"data": part}, {}, columns=["b"]), frame[["b"]])
    assert 400_000 <= read < 600_000


@pytest.mark.parametrize(
    "options",
    [{"rows": 3}, {"columns": "i"}, {"columns": ["x"]}, {"columns": [["i"]]}, {"columns": 3}],
)
def test_wrong_read_options(options) -> None:
    with pytest.raises(InvalidInputError):
        round_trip(MIXED, **options)


def test_a_series_has_no_columns() -> None:
    with pytest.raises(InvalidInputError, match="Series"):
        round_trip(MIXED["i"], columns=["i"])


def facts_of(content: bytes) -> dict:
    return json.loads(pq.ParquetFile(io.BytesIO(content)).metadata.metadata[b"blobstore"])


def rewrite(content: bytes, change) -> bytes:
    """The same file with other facts."""
    table = pq.read_table(io.BytesIO(content))
    facts = facts_of(content)
    change(facts)
    out = io.BytesIO()
    with pq.ParquetWriter(out, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({b"blobstore": json.dumps(facts)})
    return out.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.update(format=2),
        lambda facts: facts.update(rows=2),
        lambda facts: facts.update(rows=4),
        lambda facts: facts.update(rows="x"),
        lambda facts: facts["types"].pop(),
        lambda facts: facts.pop("types"),
        lambda facts: facts["types"][0].update(kind="new"),
        lambda facts: facts["types"][0].update(dtype="float64"),
        lambda facts: facts["types"][0].update(dtype="nonsense"),
        lambda facts: facts["types"].reverse(),
        lambda facts: facts["types"][4]["categories"]["values"].pop(),
        lambda facts: facts["types"][5].update(dtype="Int64"),
        lambda facts: facts["index"].update(stop=9),
        lambda facts: facts["index"].update(kind="new"),
        lambda facts: facts["types"][3]["tz"].update(zone="Mars/Olympus"),
        lambda facts: facts["columns"]["values"].pop(),
        lambda facts: facts["columns"].update(kind="new"),
        lambda facts: facts.update(attrs={"$": "new", "v": 1}),
        lambda facts: facts.update(index=None),
    ],
)
def test_facts_that_do_not_fit_the_file(change) -> None:
    content = encode(MIXED)[0]
    assert_same(decode(rewrite(content, lambda facts: None)), MIXED)
    with pytest.raises(DecodeError):
        decode(rewrite(content, change))


@pytest.mark.parametrize("content", [b"", b"junk", b"PAR1" + b"x" * 100 + b"PAR1"])
def test_bytes_that_are_no_parquet(content: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(content)


def test_parquet_of_others_and_files_cut_short() -> None:
    out = io.BytesIO()
    pd.DataFrame({"a": [1]}).to_parquet(out)
    with pytest.raises(DecodeError, match="not written by blobstore"):
        decode(out.getvalue())
    content = encode(MIXED)[0]
    for cut in (4, len(content) // 2, len(content) - 1):
        with pytest.raises(DecodeError):
            decode(content[:cut])
    with pytest.raises(DecodeError, match="one part"):
        HANDLER.read({}, {})


def test_a_disk_that_fails_is_no_bad_file() -> None:
    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise OSError(errno.EIO, "Input/output error")

    source = BytesSource(b"")
    source.open = lambda: Broken(b"x" * 100)
    source.read = source.open().read
    for options in ({}, {"columns": ["a"]}):
        with pytest.raises(StorageError, match="Input/output"):
            HANDLER.read({"data": StoredPart("data", source, "lz4", "pandas", 1)}, {}, **options)


def test_more_rows_in_a_column_than_in_the_frame() -> None:
    builder = NumpyType(np.dtype("i8")).builder(1)
    with pytest.raises(DecodeError, match="more rows"):
        builder.add(pa.array([1, 2]))
    with pytest.raises(DecodeError, match="fewer rows"):
        builder.finish()


# --- writing -------------------------------------------------------------------------------------


def shrinking() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    lists = pd.Series([[1, 2]] * 20_000, dtype=pd.ArrowDtype(pa.list_(pa.int64())))
    steps = np.arange(20_000) // 7 * 1000
    words = rng.choice(["alpha", "beta", "gamma"], 20_000)
    return pd.DataFrame({"noise": rng.random(20_000), "steps": steps, "w": words, "l": lists})


@pytest.mark.parametrize("codec", codecs.NAMES)
@pytest.mark.parametrize("level", [1, 5, 9])
@pytest.mark.parametrize("nested", [False, True])
def test_codecs_and_levels(codec: str, level: int, nested: bool) -> None:
    frame = shrinking() if nested else shrinking().drop(columns="l")
    content, used = encode(frame, codec, level)
    assert used == ("lz4" if codec == "blosclz" else codec)
    assert_same(decode(content), frame)
    group = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    found = {group.column(i).path_in_schema: group.column(i).compression for i in range(3)}
    assert found["noise"] == "UNCOMPRESSED"
    assert found["steps"] == {"none": "UNCOMPRESSED", "blosclz": "LZ4"}.get(codec, codec.upper())


def test_levels_count() -> None:
    frame = shrinking()
    for codec in ("zstd", "gzip", "lz4"):
        assert len(encode(frame, codec, 9)[0]) < len(encode(frame, codec, 1)[0])


def test_noise_is_not_compressed() -> None:
    noise = pd.DataFrame(np.random.default_rng(0).random((20_000, 2)))
    for codec in codecs.NAMES:
        (part,) = HANDLER.plan(noise, WriteOptions(codec)).parts
        assert part.encoding().codec == "none"
        assert part.encoding().extension == ".parquet"
    assert encode(pd.DataFrame({"a": []}))[1] == "none"


def test_writing_can_be_repeated() -> None:
    (part,) = HANDLER.plan(MIXED, WriteOptions()).parts
    contents = []
    for _ in range(2):
        with MemorySink() as sink:
            part.write(sink)
        contents.append(sink.content)
    assert contents[0] == contents[1]
    assert part.size_hint > 0
    assert not part.executable
    assert (part.name, part.handler, part.format_version) == ("data", "pandas", 1)


def test_errors_of_the_sink_pass_through() -> None:
    class Full(MemorySink):
        def write(self, data, /):
            raise OutOfSpaceError("the disk is full")

    (part,) = HANDLER.plan(MIXED, WriteOptions()).parts
    with pytest.raises(OutOfSpaceError), Full() as sink:
        part.write(sink)
    gc.collect()


def test_what_the_index_shows() -> None:
    plan = HANDLER.plan(MIXED, WriteOptions())
    assert plan.data_type == "dataframe"
    assert plan.info["shape"] == [3, 7]
    assert plan.info["columns"] == list("ifstcIo")
    assert plan.info["dtypes"][:2] == ["int64", "float64"]
    wide = HANDLER.plan(
        pd.DataFrame(np.zeros((1, 150)), columns=np.arange(150) / 2), WriteOptions()
    )
    assert len(wide.info["columns"]) == len(wide.info["dtypes"]) == 100
    series = HANDLER.plan(pd.Series([1], name="\ud800"), WriteOptions())
    assert series.data_type == "series"
    assert series.info == {"shape": [1], "name": "?", "dtype": "int64"}
    json.dumps(dict(plan.info))


def test_other_tools_read_the_file() -> None:
    frame = pd.concat([MIXED] * 4, ignore_index=True)
    seen = pd.read_parquet(io.BytesIO(encode(frame)[0]))
    pd.testing.assert_frame_equal(seen.drop(columns="o"), frame.drop(columns="o"))
    assert seen["o"].tolist()[0] == "a"
    indexed = frame.drop(columns="o").set_index(["i", "s"])
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(encode(indexed)[0])), indexed)
    numbered = pd.DataFrame(np.eye(2), index=pd.RangeIndex(5, 9, 2, name="n"))
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(encode(numbered)[0])), numbered)
    named = pd.Series([1.5, 2.5], index=pd.date_range("2020", periods=2), name="x")
    seen = pd.read_parquet(io.BytesIO(encode(named)[0]))
    pd.testing.assert_series_equal(seen["x"], named, check_freq=False)


@given(frames())
@settings(deadline=None, max_examples=30)
def test_arrow_reads_every_file(frame) -> None:
    table = pq.read_table(io.BytesIO(encode(frame)[0]))
    assert table.num_columns >= frame.shape[1]
    assert len(set(table.column_names)) == table.num_columns


# --- digests -------------------------------------------------------------------------------------


@given(frames())
@settings(deadline=None)
def test_equal_frames_have_one_digest(frame) -> None:
    expected = digest(frame)
    assert digest(frame.copy()) == expected
    assert digest(round_trip(frame, "zstd", 9)) == expected
    twice = frame.iloc[[*range(len(frame)), *range(len(frame))]].iloc[: len(frame)]
    twice.index, twice.attrs = frame.index, frame.attrs
    assert digest(twice) == expected
    for place in range(frame.shape[1]):
        frame.iloc[:, place].isna().sum()
    frame.memory_usage(deep=True)
    frame.index.is_unique  # noqa: B018
    assert digest(frame) == expected


@given(frames(), frames())
@settings(deadline=None)
def test_one_digest_means_equal_frames(one, other) -> None:
    if digest(one) == digest(other):
        assert_same(round_trip(one), other)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.data())
def test_a_changed_value_changes_the_digest(values, data) -> None:
    place = data.draw(st.integers(0, len(values) - 1))
    changed = [*values[:place], values[place] + 1, *values[place + 1 :]]
    for dtype in ("i8", "f4", "Int16", "category", "str", "M8[s]", "int64[pyarrow]"):
        one, other = (pd.Series(v).astype(dtype) for v in (values, changed))
        assert digest(one) != digest(other)


def test_memory_layout_does_not_count() -> None:
    values = np.arange(12.0).reshape(4, 3)
    one = pd.DataFrame(values)
    other = pd.DataFrame(np.asfortranarray(values))
    apart = pd.DataFrame({i: values[:, i].copy() for i in range(3)})
    apart.columns = pd.RangeIndex(3)
    assert digest(one) == digest(other) == digest(apart)


def test_nothing_hidden_counts() -> None:
    mask = np.array([False, True])
    one, other = (pd.Series(pd.arrays.IntegerArray(np.array([1, x]), mask)) for x in (5, 6))
    assert digest(one) == digest(other)
    chunks = pd.arrays.ArrowExtensionArray(pa.chunked_array([["a"], ["b", None]]))
    whole = pd.arrays.ArrowExtensionArray(pa.chunked_array([["a", "b", None]]))
    assert digest(pd.Series(chunks)) == digest(pd.Series(whole))
    assert digest(pd.Series([np.nan])) == digest(pd.Series([-np.nan]))
    built = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])
    cut = pd.MultiIndex.from_tuples([("a", 1), ("b", 2), ("c", 3)])[:2]
    assert digest(pd.Series([1, 2], built)) == digest(pd.Series([1, 2], cut))


def variants() -> dict[str, pd.DataFrame | pd.Series]:
    base = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    attrs = base.copy()
    attrs.attrs = {"unit": "m"}
    return {
        "base": base,
        "value": pd.DataFrame({"a": [1, 3], "b": ["x", "y"]}),
        "dtype": base.astype({"a": "i4"}),
        "nullable": base.astype({"a": "Int64"}),
        "object": base.astype({"b": object}),
        "python": base.astype({"b": pd.StringDtype("python", na_value=np.nan)}),
        "NA": base.astype({"b": "string"}),
        "arrow": base.astype({"b": pd.ArrowDtype(pa.string())}),
        "category": base.astype({"b": "category"}),
        "ordered": base.astype({"b": pd.CategoricalDtype(["x", "y"], ordered=True)}),
        "categories": base.astype({"b": pd.CategoricalDtype(["x", "y", "z"])}),
        "order of categories": base.astype({"b": pd.CategoricalDtype(["y", "x"])}),
        "label": base.rename(columns={"a": "c"}),
        "dtype of labels": base.set_axis(base.columns.astype(object), axis=1),
        "name of labels": base.rename_axis("n", axis=1),
        "order of columns": base[["b", "a"]],
        "order of rows": base.iloc[::-1],
        "index": base.set_axis([0, 1]),
        "named index": base.rename_axis("n"),
        "other range": base.set_axis(pd.RangeIndex(1, 3)),
        "column as index": base.set_index("a"),
        "multi": base.set_index(["a", "b"]),
        "fewer rows": base.iloc[:1],
        "attrs": attrs,
        "flags": base.set_flags(allows_duplicate_labels=False),
        "dates": base.assign(a=pd.to_datetime([1, 2])),
        "unit": base.assign(a=pd.to_datetime([0, 0]).as_unit("ms")),
        "zone": base.assign(a=pd.to_datetime([1, 2]).tz_localize("UTC")),
        "freq": base.set_index(pd.date_range("2020", periods=2, unit="ns")),
        "no freq": base.set_index(pd.DatetimeIndex(["2020-01-01", "2020-01-02"]).as_unit("ns")),
        "series": base["a"],
        "frame of it": base[["a"]],
        "named series": base["a"].rename("x"),
        "unnamed series": base["a"].rename(None),
        "empty": pd.DataFrame(),
    }


def test_everything_counts() -> None:
    by_digest: dict[str, str] = {}
    for name, obj in variants().items():
        assert by_digest.setdefault(digest(obj), name) == name


def test_the_stream_is_fixed() -> None:
    """Digests are keys: they must never change, whatever the versions of pandas and pyarrow."""
    frame = pd.DataFrame(
        {
            "a": [1.5, np.nan],
            "b": np.array(["x", None], dtype=object),
            "c": pd.Categorical(
                pd.Series(["p", None], dtype=object), pd.Index(["q", "p"], dtype=object)
            ),
            "d": pd.array([1, None], dtype="Int8"),
            "e": pd.array([[1], None], dtype=pd.ArrowDtype(pa.list_(pa.int8()))),
        },
        index=pd.DatetimeIndex(["2020-01-01", "2021-01-01"], name="t").as_unit("ms"),
    )
    frame["b"] = frame["b"].astype(object)
    frame.columns = frame.columns.astype(object)
    assert digest(frame) == "707e8130ed584180618c715f8e0943a76d49934c45f9baef84a99c88814811b2"


def test_the_digest_is_the_same_in_another_process() -> None:
    code = (
        "import pandas as pd; from blobstore.digest import new_digest;"
        "from blobstore.handlers.pandas import PandasHandler as H;"
        "from blobstore.protocols import WriteOptions as W; h = new_digest();"
        "f = pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']});"
        "H().plan(f, W()).parts[0].digest(h); print(h.hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    made = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert made.stdout.decode().strip() == digest(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}))


# --- memory --------------------------------------------------------------------------------------

MEMORY = """
import sys, numpy as np, pandas as pd
from blobstore.handlers.frame_columns import NumpyType
from blobstore.handlers.pandas import PandasHandler
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.streams import FileSource, Sink

class FileSink(Sink):
    def __init__(self, path): self.file = open(path, "wb")
    def write(self, data): return self.file.write(data)
    def path(self): raise NotImplementedError
    def commit(self): self.file.close()
    def abort(self): self.file.close()

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def put(frame, path):
    part, = PandasHandler().plan(frame, WriteOptions()).parts
    part.encoding()
    with FileSink(path) as sink:
        part.write(sink)

def get(path):
    with FileSource(path) as source:
        return PandasHandler().read({"data": StoredPart("data", source, "lz4", "pandas", 1)}, {})

def growth(call):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    result = call()
    return (status("VmHWM") - before) / (128 << 20)

mode, path = sys.argv[1:]
put(pd.DataFrame({"f": np.zeros(10)}), path + ".small")
get(path + ".small")
if mode == "put":
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"c{i}": rng.random(1 << 21) for i in range(8)})
    print(growth(lambda: put(frame, path)))
else:
    print(growth(lambda: get(path)))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_memory_of_a_large_frame(tmp_path) -> None:
    script = tmp_path / "memory.py"
    script.write_text(MEMORY)
    grown = []
    for mode in ("put", "get"):
        command = [sys.executable, str(script), mode, str(tmp_path / "frame.parquet")]
        grown.append(float(subprocess.run(command, capture_output=True, check=True).stdout))
    assert grown[0] < 0.5, "a put holds no second copy"
    assert 0.9 < grown[1] < 2.0, "a get holds the result and a part of it"
