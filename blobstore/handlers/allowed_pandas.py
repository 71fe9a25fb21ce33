"""What a pickle of nobody in particular may name of pandas: frames, series, indexes, scalars.

pandas and pyarrow take the state in a pickle on faith, too: a column number, a category or a string
offset that is out of range reads or writes memory that is not theirs. So everything is compared
with what it refers to, and built by public constructors where there are such.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas._libs import arrays, internals  # type: ignore[attr-defined]
from pandas._libs.tslibs import nattype, offsets, timedeltas, timestamps
from pandas.core.indexes import datetimes
from pandas.core.indexes import timedeltas as durations
from pandas.core.internals import managers  # type: ignore[import-not-found]
from pandas.core.internals.blocks import Block  # type: ignore[import-not-found]

from blobstore.errors import UntrustedTypeError
from blobstore.handlers.allowed_plain import only
from blobstore.handlers.unpickling import Rule

# What pandas itself writes into its pickles, and has no stubs for.
_unpickle_array = arrays.__dict__["__pyx_unpickle_NDArrayBacked"]
_unpickle_block = internals.__dict__["_unpickle_block"]
_unpickle_timestamp = timestamps.__dict__["_unpickle_timestamp"]
_unpickle_timedelta = timedeltas.__dict__["_timedelta_unpickle"]
_unpickle_nat = nattype.__dict__["_nat_unpickle"]
_new_times = datetimes.__dict__["_new_DatetimeIndex"]
_new_durations = durations.__dict__.get("_new_TimedeltaIndex")

_MASKED = (pd.arrays.IntegerArray, pd.arrays.FloatingArray, pd.arrays.BooleanArray)
_BACKED = (
    pd.Categorical,
    pd.arrays.DatetimeArray,
    pd.arrays.TimedeltaArray,
    pd.arrays.PeriodArray,
    pd.arrays.StringArray,
)
_ARRAYS = (*_MASKED, *_BACKED, pd.arrays.ArrowStringArray)
_INDEXES = (pd.Index, pd.CategoricalIndex, pd.PeriodIndex, pd.TimedeltaIndex, pd.DatetimeIndex)
_UNITS = ("s", "ms", "us", "ns")
_MAX_NAME = 64

_LEGACY = {
    "DataFrame": "pandas.core.frame",
    "Series": "pandas.core.series",
    "Index": "pandas.core.indexes.base",
    "RangeIndex": "pandas.core.indexes.range",
    "MultiIndex": "pandas.core.indexes.multi",
    "DatetimeIndex": "pandas.core.indexes.datetimes",
    "TimedeltaIndex": "pandas.core.indexes.timedeltas",
    "PeriodIndex": "pandas.core.indexes.period",
    "CategoricalIndex": "pandas.core.indexes.category",
    "Categorical": "pandas.core.arrays.categorical",
    "DatetimeArray": "pandas.core.arrays.datetimes",
    "TimedeltaArray": "pandas.core.arrays.timedeltas",
    "PeriodArray": "pandas.core.arrays.period",
    "IntegerArray": "pandas.core.arrays.integer",
    "FloatingArray": "pandas.core.arrays.floating",
    "BooleanArray": "pandas.core.arrays.boolean",
    "StringArray": "pandas.core.arrays.string_",
    "ArrowStringArray": "pandas.core.arrays.string_arrow",
    "CategoricalDtype": "pandas.core.dtypes.dtypes",
    "DatetimeTZDtype": "pandas.core.dtypes.dtypes",
    "PeriodDtype": "pandas.core.dtypes.dtypes",
    "StringDtype": "pandas.core.arrays.string_",
}
"""Where pandas 2 says that its classes are."""


def _odd(what: str) -> UntrustedTypeError:
    return UntrustedTypeError(
        f"it has {what}, which pandas never writes: an attack on memory, or damage. It was not loaded"
    )


def _insist(good: object, what: str) -> None:
    if not good:
        raise _odd(what)


# --- arrays --------------------------------------------------------------------------------------


def _backed(cls: Any, checksum: Any, state: Any) -> Any:
    _insist(cls in _BACKED and type(checksum) is int and state is None, f"an array {cls!r:.60}")
    return _unpickle_array(cls, checksum, None)


def _backed_state(array: Any, state: Any) -> None:
    _insist(type(state) is tuple and len(state) in (2, 3), "an array with an unknown state")
    dtype, data = state[:2]
    _insist(type(data) is np.ndarray, "an array without values")
    cls = type(array)
    if cls is pd.Categorical:
        _insist(isinstance(dtype, pd.CategoricalDtype), "a categorical without categories")
        _insist(data.dtype.kind == "i" and data.ndim == 1, "a categorical without codes")
        if data.size:
            inside = data.min() >= -1 and data.max() < len(dtype.categories)
            _insist(inside, "a category that there is not")
    elif cls is pd.arrays.DatetimeArray:
        _insist(data.dtype.kind == "M" and data.dtype.isnative, "times that are none")
        if isinstance(dtype, pd.DatetimeTZDtype):
            _insist(np.datetime_data(data.dtype) == (dtype.unit, 1), "times of another unit")
        else:
            _insist(dtype == data.dtype, "times of another dtype")
    elif cls is pd.arrays.TimedeltaArray:
        _insist(data.dtype.kind == "m" and data.dtype.isnative, "times that are none")
        _insist(dtype == data.dtype, "times of another dtype")
    elif cls is pd.arrays.PeriodArray:
        _insist(isinstance(dtype, pd.PeriodDtype) and data.dtype == np.int64, "periods of nothing")
    else:
        _insist(isinstance(dtype, pd.StringDtype) and data.dtype == object, "text of nothing")
        texts = all(isinstance(x, str) or x is pd.NA or x != x for x in data.ravel())  # noqa: PLR0124 - NaN
        _insist(texts, "text that is none")
    array.__setstate__((dtype, data))


def _masked_state(array: Any, state: Any) -> None:
    only(dict)("masked array", state)
    data, mask = state.get("_data"), state.get("_mask")
    _insist(type(data) is type(mask) is np.ndarray, "a masked array without values")
    kinds = {"IntegerArray": "iu", "FloatingArray": "f", "BooleanArray": "b"}[type(array).__name__]
    good = data.dtype.kind in kinds and mask.dtype == bool and data.shape == mask.shape
    _insist(good and data.dtype.isnative, "a mask that does not fit")
    made = type(array)(data, mask)
    vars(array).update(vars(made))


def _arrow_type(name: Any) -> Any:
    _insist(name in ("string", "large_string"), f"the Arrow type {name!r:.40}")
    return pa.string() if name == "string" else pa.large_string()


def _arrow_buffer(data: Any) -> Any:
    only(bytes, bytearray)("buffer", data)
    return pa.py_buffer(data)


def _arrow_array(data: Any) -> Any:
    """Strings, whose offsets are compared with their buffers."""
    _insist(type(data) is tuple and len(data) == 7, "an Arrow array with an unknown state")
    dtype, length, nulls, offset, buffers, children, dictionary = data
    strings = dtype in (pa.string(), pa.large_string())
    whole = type(buffers) is list and len(buffers) == 3 and not children and dictionary is None
    _insist(strings and whole, "an Arrow array other than of text")
    only(int)("Arrow array", length, nulls, offset)
    _insist(length >= 0 and offset >= 0 and nulls >= -1, "an Arrow array of negative size")
    for buffer in buffers:
        _insist(buffer is None or isinstance(buffer, pa.Buffer), "an Arrow array without buffers")
    try:
        made = pa.Array.from_buffers(dtype, length, buffers, nulls, offset)
        made.validate(full=True)
    except pa.ArrowInvalid as exc:
        raise _odd(f"text that is out of its bounds ({exc})") from exc
    return made


def _arrow_chunks(chunks: Any, dtype: Any = None) -> Any:
    only(list)("chunked array", chunks)
    _insist(all(isinstance(chunk, pa.Array) for chunk in chunks), "chunks that are none")
    return pa.chunked_array(chunks, dtype)


def _arrow_state(array: Any, state: Any) -> None:
    only(dict)("text", state)
    text, dtype = state.get("_pa_array"), state.get("_dtype")
    good = isinstance(text, pa.Array | pa.ChunkedArray) and isinstance(dtype, pd.StringDtype)
    _insist(good, "text that is none")
    make: Any = pd.arrays.ArrowStringArray
    vars(array).update(vars(make(text, dtype=dtype)))


# --- dtypes --------------------------------------------------------------------------------------


def _categories(dtype: Any, state: Any) -> None:
    only(dict)("CategoricalDtype", state)
    categories, ordered = state.get("categories"), state.get("ordered")
    _insist(categories is None or isinstance(categories, pd.Index), "categories that are none")
    only(bool, type(None))("CategoricalDtype", ordered)
    vars(dtype).update(vars(pd.CategoricalDtype(categories, ordered)))


def _zoned(dtype: Any, state: Any) -> None:
    only(dict)("DatetimeTZDtype", state)
    unit, zone = state.get("unit"), state.get("tz")
    _insist(unit in _UNITS and isinstance(zone, datetime.tzinfo), "a time zone that is none")
    dtype.__setstate__({"unit": unit, "tz": zone})


def _period_dtype(name: Any) -> Any:
    _insist(type(name) is str and len(name) <= _MAX_NAME, "periods without a name")
    return pd.PeriodDtype(name)


def _string_dtype(*args: Any) -> Any:
    for arg in args:
        good = arg in ("python", "pyarrow") if type(arg) is str else arg is pd.NA or arg != arg  # noqa: PLR0124 - NaN
        _insist(good, "a text dtype that is none")
    return pd.StringDtype(*args)


# --- indexes -------------------------------------------------------------------------------------


def _new_index(cls: Any, facts: Any) -> Any:
    only(dict)("index", facts)
    if cls is pd.RangeIndex:
        _insist(set(facts) <= {"name", "start", "stop", "step"}, "a range with more than it has")
        only(int)("RangeIndex", *(facts[name] for name in ("start", "stop", "step")))
        return pd.RangeIndex(facts["start"], facts["stop"], facts["step"], name=facts.get("name"))
    if cls is pd.MultiIndex:
        return _levels(facts)
    known = cls in _INDEXES and set(facts) <= {"data", "name", "freq"}
    _insist(known, f"an index {cls!r:.60}")
    data = facts.get("data")
    _insist(type(data) is np.ndarray or type(data) in (*_ARRAYS, *_INDEXES), "an index of nothing")
    made = pd.Index(data, name=facts.get("name"), dtype=data.dtype, copy=False)
    _insist(type(made) is cls, f"an index {cls.__name__} of {data.dtype}")
    return made


def _levels(facts: Any) -> Any:
    _insist(set(facts) <= {"levels", "codes", "sortorder", "names"}, "levels with more than that")
    levels, codes = facts["levels"], facts["codes"]
    fits = all(isinstance(level, pd.Index) for level in levels) and len(levels) == len(codes)
    fits = fits and all(type(one) is np.ndarray and one.dtype.kind == "i" for one in codes)
    _insist(fits, "levels that are none")
    # Compares the codes with the levels.
    return pd.MultiIndex(levels, codes, names=facts.get("names"), verify_integrity=True)


def _checked_times(cls: Any, facts: Any, index: Any, array: Any) -> dict[str, Any]:
    only(dict)(index.__name__, facts)
    known = cls is index and set(facts) <= {"data", "name", "freq"}
    _insist(known and type(facts.get("data")) is array, "an index of times without any")
    freq = facts.get("freq")
    _insist(freq is None or isinstance(freq, offsets.BaseOffset), "times without a frequency")
    return dict(facts)


def _new_datetimes(cls: Any, facts: Any) -> Any:
    return _new_times(cls, _checked_times(cls, facts, pd.DatetimeIndex, pd.arrays.DatetimeArray))


def _new_timedeltas(cls: Any, facts: Any) -> Any:
    checked = _checked_times(cls, facts, pd.TimedeltaIndex, pd.arrays.TimedeltaArray)
    return None if _new_durations is None else _new_durations(cls, checked)


# --- frames --------------------------------------------------------------------------------------


def _block(values: Any, placement: Any, ndim: Any) -> Any:
    _insist(ndim in (1, 2) and type(ndim) is int, "a block of other dimensions")
    _insist(type(values) is np.ndarray or type(values) in _ARRAYS, "a block of no values")
    if type(placement) is slice:
        only(int, type(None))("block", placement.start, placement.stop, placement.step)
    else:
        _insist(
            type(placement) is np.ndarray and placement.dtype == np.int64 and placement.ndim == 1,
            "a block without a place",
        )
    return _unpickle_block(values, placement, ndim)


def _manager(blocks: Any, axes: Any) -> Any:
    """Put blocks together, of which each column is in exactly one."""
    _insist(type(blocks) is tuple and type(axes) is list and len(axes) == 2, "a frame of no parts")
    _insist(all(isinstance(axis, pd.Index) for axis in axes), "a frame without labels")
    columns, rows = len(axes[0]), len(axes[1])
    seen = np.zeros(columns, dtype=bool)
    for block in blocks:
        _insist(isinstance(block, Block) and block.ndim == 2, "a frame of other things than blocks")
        count = len(block.mgr_locs)
        _insist(block.shape == (count, rows) and count <= columns, "a block of another size")
        places = block.mgr_locs.as_array
        inside = not count or (places.min() >= 0 and places.max() < columns)
        _insist(inside and not seen[places].any(), "a block at a place that is not its own")
        seen[places] = True
        _insist(len(np.unique(places)) == count, "a block at one place twice")
    _insist(seen.all(), "a column without a block")
    return managers.BlockManager(blocks, axes, verify_integrity=True)


def _single_state(manager: Any, state: Any) -> None:
    try:
        facts = state[3]["0.14.1"]
        (axis,), (block,) = facts["axes"], facts["blocks"]
        values = block["values"]
    except (TypeError, KeyError, IndexError, ValueError) as exc:
        raise _odd("a series with an unknown state") from exc
    _insist(type(values) is np.ndarray or type(values) in _ARRAYS, "a series of no values")
    fits = isinstance(axis, pd.Index) and values.ndim == 1 and len(values) == len(axis)
    _insist(fits, "a series without labels")
    block = {"values": values, "mgr_locs": slice(0, len(values), 1)}
    manager.__setstate__(
        ([axis], [values], [axis], {"0.14.1": {"axes": [axis], "blocks": [block]}})
    )


def _frame_state(frame: Any, state: Any) -> None:
    only(dict)("frame", state)
    one = isinstance(frame, pd.Series)
    kind = managers.SingleBlockManager if one else managers.BlockManager
    _insist(type(state.get("_mgr")) is kind, "a frame without columns")
    attrs, flags = state.get("attrs", {}), state.get("_flags", {})
    only(dict)("frame", attrs, flags)
    frame.__setstate__(
        {
            "_mgr": state["_mgr"],
            "_typ": "series" if one else "dataframe",
            "_metadata": ["_name"] if one else [],
            "attrs": attrs,
            "_flags": {
                "allows_duplicate_labels": flags.get("allows_duplicate_labels") is not False
            },
            **({"_name": state.get("_name")} if one else {}),
        }
    )


# --- scalars -------------------------------------------------------------------------------------


def _timestamp(value: Any, freq: Any, zone: Any, unit: Any = 10) -> Any:
    only(int)("Timestamp", value, unit)
    _insist(freq is None, "a time with a frequency")
    _insist(zone is None or isinstance(zone, datetime.tzinfo), "a time zone that is none")
    return _unpickle_timestamp(value, None, zone, unit)


def _timedelta(value: Any, unit: Any) -> Any:
    only(int)("Timedelta", value, unit)
    return _unpickle_timedelta(value, unit)


def _period(nothing: Any, freq: Any, ordinal: Any) -> Any:
    only(int)("Period", ordinal)
    _insist(nothing is None and isinstance(freq, offsets.BaseOffset), "a period of nothing")
    return pd.Period(None, freq, ordinal)


def _interval(left: Any, right: Any, closed: Any) -> Any:
    for end in (left, right):
        if not isinstance(end, pd.Timestamp | pd.Timedelta | np.number):
            only(int, float)("Interval", end)
    only(str)("Interval", closed)
    return pd.Interval(left, right, closed)


def _offset(cls: Any, *args: Any) -> Any:
    only(int, bool, datetime.timedelta, type(None))(cls.__name__, *args)
    return cls(*args)


def _bare(cls: Any, *args: Any) -> Any:
    _insist(not args, f"a {cls.__name__} of {len(args)} arguments")
    return cls.__new__(cls)


def _rules() -> dict[tuple[str, str], Rule]:
    table: dict[tuple[str, str], Rule] = {
        ("pandas", "NA"): Rule(pd.NA),
        ("pandas", "Period"): Rule(pd.Period, call=_period),
        ("pandas", "Interval"): Rule(pd.Interval, call=_interval),
        ("pandas._libs.interval", "Interval"): Rule(pd.Interval, call=_interval),
        ("pandas._libs.tslibs.period", "Period"): Rule(pd.Period, call=_period),
        ("pandas._libs.missing", "NA"): Rule(pd.NA),
        ("pandas._libs.tslibs.timestamps", "_unpickle_timestamp"): Rule(
            _timestamp, call=_timestamp
        ),
        ("pandas._libs.tslibs.timedeltas", "_timedelta_unpickle"): Rule(
            _timedelta, call=_timedelta
        ),
        ("pandas._libs.tslibs.nattype", "_nat_unpickle"): Rule(
            _unpickle_nat, call=lambda *_: pd.NaT
        ),
        ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"): Rule(
            _backed, call=_backed, once=True
        ),
        ("pandas._libs.internals", "_unpickle_block"): Rule(_block, call=_block),
        ("pandas.core.indexes.base", "_new_Index"): Rule(_new_index, call=_new_index),
        ("pandas.core.indexes.datetimes", "_new_DatetimeIndex"): Rule(
            _new_datetimes, call=_new_datetimes
        ),
        ("pandas.core.indexes.timedeltas", "_new_TimedeltaIndex"): Rule(
            _new_timedeltas, call=_new_timedeltas
        ),
        ("pandas.core.internals.managers", "BlockManager"): Rule(
            managers.BlockManager, call=_manager
        ),
        ("pandas.core.internals.managers", "SingleBlockManager"): Rule(
            managers.SingleBlockManager,
            new=functools.partial(_bare, managers.SingleBlockManager),
            build=_single_state,
            once=True,
        ),
        ("pyarrow.lib", "type_for_alias"): Rule(_arrow_type, call=_arrow_type),
        ("pyarrow.lib", "py_buffer"): Rule(_arrow_buffer, call=_arrow_buffer),
        ("pyarrow.lib", "_restore_array"): Rule(_arrow_array, call=_arrow_array),
        ("pyarrow.lib", "chunked_array"): Rule(_arrow_chunks, call=_arrow_chunks),
    }
    states: dict[Any, Callable[[Any, Any], None]] = {
        pd.DataFrame: _frame_state,
        pd.Series: _frame_state,
        pd.CategoricalDtype: _categories,
        pd.DatetimeTZDtype: _zoned,
        pd.arrays.ArrowStringArray: _arrow_state,
        **dict.fromkeys(_MASKED, _masked_state),
    }
    for cls, build in states.items():
        new = functools.partial(_bare, cls)
        _add(table, cls, Rule(cls, new=new, build=build, once=True))
    for cls in _BACKED:
        _add(table, cls, Rule(cls, build=_backed_state, once=True))
    for cls in (*_INDEXES, pd.RangeIndex, pd.MultiIndex):
        _add(table, cls, Rule(cls))
    _add(table, pd.PeriodDtype, Rule(pd.PeriodDtype, call=_period_dtype))
    _add(table, pd.StringDtype, Rule(pd.StringDtype, call=_string_dtype))
    for bits in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"):
        _add_bare(table, getattr(pd, f"{bits}Dtype"))
    for cls in (pd.Float32Dtype, pd.Float64Dtype, pd.BooleanDtype):
        _add_bare(table, cls)
    for name, cls in vars(offsets).items():
        if (
            isinstance(cls, type)
            and issubclass(cls, offsets.BaseOffset)
            and "Custom" not in name
            and name not in ("BaseOffset", "DateOffset", "RelativeDeltaOffset")
        ):
            table[offsets.__name__, name] = Rule(cls, call=functools.partial(_offset, cls))
    return table


def _add(table: dict[tuple[str, str], Rule], cls: Any, rule: Rule) -> None:
    table[cls.__module__, cls.__name__] = rule
    if cls.__name__ in _LEGACY:
        table[_LEGACY[cls.__name__], cls.__name__] = rule


def _add_bare(table: dict[tuple[str, str], Rule], cls: Any) -> None:
    new = functools.partial(_bare, cls)
    _add(table, cls, Rule(cls, call=new, new=new, build=_no_state))


def _no_state(instance: Any, state: Any) -> None:
    """Of dtypes that only cache things in it."""


RULES = _rules()
