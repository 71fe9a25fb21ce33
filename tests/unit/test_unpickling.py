"""What loads without anybody's word: plain data, NumPy, pandas, by every protocol; and what does not."""

from __future__ import annotations

import array
import collections
import contextlib
import datetime
import decimal
import fractions
import ipaddress
import pathlib
import pickle
import re
import types
import uuid
import warnings
import zoneinfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.errors import UntrustedTypeError
from blobstore.handlers.unpickling import load_untrusted
from blobstore.testing.blob_store import assert_same
from blobstore.trust import Trust, TypePatterns

UTC = datetime.UTC
RECORD = np.dtype([("a", "<f4"), ("b", "O"), (("title", "c"), "<U3"), ("d", "i2", (2, 2))])
STANDARD = {
    "date": datetime.date(2024, 2, 29),
    "aware": datetime.datetime(2024, 2, 29, 12, 30, tzinfo=UTC),
    "fold": datetime.datetime(2024, 10, 27, 2, 30, fold=1),
    "zone": datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    "time": datetime.time(12, 30, 15, 999_999),
    "delta": datetime.timedelta(-1, 5, 7),
    "named zone": datetime.timezone(datetime.timedelta(hours=2), "two"),
    "decimal": decimal.Decimal("-1.10e-50"),
    "nan": fractions.Fraction(-22, 7),
    "uuid": uuid.uuid4(),
    "path": pathlib.Path("a/b c/../d"),
    "pure": pathlib.PureWindowsPath("c:/x"),
    "counter": collections.Counter("abracadabra"),
    "defaultdict": collections.defaultdict(list, {1: [2]}),
    "deque": collections.deque([1, 2, 3], maxlen=5),
    "ordered": collections.OrderedDict(b=1, a=2),
    "chain": collections.ChainMap({"a": 1}, {"b": 2}),
    "namespace": types.SimpleNamespace(a=1, b=[2]),
    "array": array.array("d", [1.5, 2.5]),
    "address": ipaddress.ip_address("::1"),
    "network": ipaddress.ip_network("10.0.0.0/8"),
    "interface": ipaddress.ip_interface("10.0.0.1/8"),
    "complex": 1 - 2j,
    "range": range(3, 30, 4),
    "slice": slice(1, None, -2),
    "sets": [{1, 2}, frozenset({"a"}), set()],
    "bytearray": bytearray(b"xyz"),
    "singletons": [..., NotImplemented, None],
    "types": [int, str, dict, list, float, bool, bytes, tuple, set, type(None), np.float32],
}
NUMPY = {
    "floats": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big-endian": np.arange(5, dtype=">i4"),
    "text": np.array(["", "a", "süß"]),
    "raw": np.array([b"a", b"bcd"]),
    "objects": np.array([1, "a", None, [2]], object),
    "no axis": np.array(2.5),
    "nothing": np.empty((0, 3), "i2"),
    "times": np.array(["2024-02-29", "NaT"], "M8[25s]"),
    "durations": np.array([1, 2], "m8[us]"),
    "booleans": np.array([True, False]),
    "halves": np.array([1, 2], "f2"),
    "complex": np.array([1 + 2j], "c8"),
    "void": np.zeros(2, "V5"),
    "large": np.arange(100_000),
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", PendingDeprecationWarning)
    NUMPY["matrix"] = np.matrix([[1, 2], [3, 4]])
SCALARS = [
    np.float64(1.5), np.float16(2), np.int8(-3), np.bool_(True), np.str_("süß"), np.bytes_(b"ab"),
    np.datetime64("2024-02-29", "D"), np.timedelta64(5, "ms"), np.complex64(1j),
]  # fmt: skip
DTYPES = [
    RECORD, np.dtype(">f4"), np.dtype("U7"), np.dtype(("f4", (2, 3))), np.dtype("O"), np.dtype("V3"),
    np.dtype([("a", "i1"), ("b", "f8")], align=True), np.dtype("M8[ns]"),
    np.dtype("f8", metadata={"unit": "m"}), np.dtype([("in", [("side", "O")])]),
    np.dtype({"names": ["x"], "formats": ["i4"], "offsets": [4], "itemsize": 16}),
]  # fmt: skip
PANDAS = {
    "frame": pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": [0.5, None], "d": [True, False]}),
    "labels": pd.DataFrame({"a": [1, 2]}, index=pd.Index(["p", "q"], name="key")),
    "kinds": pd.DataFrame(
        {
            "time": pd.date_range("2024", periods=2, tz="Europe/Berlin"),
            "naive": pd.date_range("2024", periods=2),
            "gap": pd.to_timedelta([1, 2], "s"),
            "category": pd.Categorical(["a", None], ["a", "b"], ordered=True),
            "whole": pd.array([1, None], dtype="Int64"),
            "small": pd.array([1, None], dtype="UInt8"),
            "real": pd.array([1.5, None], dtype="Float64"),
            "flag": pd.array([True, None], dtype="boolean"),
            "month": pd.period_range("2024", periods=2, freq="M"),
            "text": pd.array(["a", None], dtype="string[python]"),
            "arrow": pd.array(["a", None], dtype="string[pyarrow]"),
            "objects": pd.Series([1, "a"], dtype=object),
        }
    ),
    "mixed order": pd.DataFrame({"a": [1], "b": [0.5], "c": [2], "d": [1.5]}),
    "nothing": pd.DataFrame(),
    "no rows": pd.DataFrame({"a": [], "b": []}),
    "levels": pd.DataFrame({"x": [1, 2]}, index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])),
    "column levels": pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([(1, 2), (3, 4)])),
    "series": pd.Series([1.5, None], index=[5, 3], name="s"),
    "categories": pd.Series(["a", "b", "a"], dtype="category"),
    "moments": pd.Series(pd.date_range("2024", periods=3, tz="UTC")),
}
INDEXES = [
    pd.RangeIndex(2, 9, 3, name="r"), pd.Index([3, 1], name=("a", 1)), pd.Index(["a", "b"]),
    pd.date_range("2024", periods=3, tz="UTC"), pd.timedelta_range("1h", periods=3),
    pd.period_range("2024", periods=2, freq="Q"), pd.CategoricalIndex(["a", "b"]),
    pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["x", None]),
]  # fmt: skip
MOMENTS = [
    pd.Timestamp("2024-02-29 12:00", tz="Europe/Berlin"), pd.Timestamp("2024"), pd.Timedelta(5, "s"),
    pd.NaT, pd.NA, pd.Period("2024-02"), pd.Interval(0, 1, closed="left"),
    pd.offsets.MonthEnd(2), pd.offsets.Hour(3), pd.offsets.BusinessDay(),
]  # fmt: skip
PROTOCOLS = range(6)


def again(obj, protocol, **types):
    return load_untrusted(pickle.dumps(obj, protocol), Trust(**types))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", STANDARD)
def test_the_standard_library(name, protocol):
    obj = pickle.loads(pickle.dumps(STANDARD[name], protocol))  # old protocols lose a little
    found = again(STANDARD[name], protocol)
    assert type(found) is type(obj)
    assert found == obj
    assert repr(found) == repr(obj) or isinstance(obj, set | frozenset | list)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", NUMPY)
def test_arrays(name, protocol):
    obj = pickle.loads(pickle.dumps(NUMPY[name], protocol))  # which may swap bytes
    found = again(NUMPY[name], protocol)
    assert type(found) is type(obj)
    assert (found.dtype, found.shape) == (obj.dtype, obj.shape)
    assert found.tolist() == obj.tolist()
    assert found.flags.f_contiguous == obj.flags.f_contiguous
    assert found.flags.writeable or protocol == 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_records_of_objects(protocol):
    obj = np.zeros(2, RECORD)
    obj["b"][0] = ["x"]
    found = again(obj, protocol)
    assert found.dtype == RECORD
    assert repr(found) == repr(obj)
    plain = np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    assert again(plain, protocol).a == 1
    assert type(again(plain, protocol)) is np.recarray


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_masked_arrays(protocol):
    obj = np.ma.array([[1.0, 2.0], [3.0, 4.0]], mask=[[0, 1], [0, 0]], fill_value=7)
    found = again(obj, protocol)
    assert type(found) is np.ma.MaskedArray
    assert found.tolist() == obj.tolist()
    assert found.fill_value == 7


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scalars_and_dtypes(protocol):
    for obj in [*SCALARS, np.zeros(1, [("a", "f4")])[0]]:
        found = again(obj, protocol)
        assert type(found) is type(obj)
        assert found == obj
    for obj in DTYPES:
        found = again(obj, protocol)
        assert found == obj
        assert found.isalignedstruct == obj.isalignedstruct
        assert found.metadata == obj.metadata
    shared = np.dtype([("a", "i4")])
    one, other = again([np.zeros(2, shared), np.ones(3, shared)], protocol)
    assert one.dtype == other.dtype == shared


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("name", PANDAS)
def test_frames_and_series(name, protocol):
    obj = PANDAS[name]
    found = again({"in": [obj]}, protocol)["in"][0]
    assert_same(found, obj)
    assert_same(found.copy(), obj)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_indexes_and_moments(protocol):
    for obj in INDEXES:
        pd.testing.assert_index_equal(again(obj, protocol), obj, exact=True)
    for obj in MOMENTS:
        found = again(obj, protocol)
        assert type(found) is type(obj)
        assert repr(found) == repr(obj)


def test_what_is_said_of_a_frame_comes_back():
    frame = pd.DataFrame({"a": [1]}).set_flags(allows_duplicate_labels=False)
    frame.attrs["unit"] = "m"
    found = again(frame, 5)
    assert found.attrs == {"unit": "m"}
    assert not found.flags.allows_duplicate_labels


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_identities_inside_are_kept(protocol):
    shared = np.arange(3)
    obj = {"a": shared, "b": [shared, uuid.UUID(int=1)]}
    obj["self"] = obj
    found = again(obj, protocol)
    assert found["a"] is found["b"][0]
    assert found["self"] is found


def test_buffers_beside_the_pickle():
    buffers = []
    frame = pd.DataFrame({"a": np.arange(5.0)})
    data = pickle.dumps([frame, np.arange(9)], 5, buffer_callback=buffers.append)
    found = load_untrusted(data, Trust(), buffers=[bytearray(b.raw()) for b in buffers])
    pd.testing.assert_frame_equal(found[0], frame)
    found[1][0] = 7  # the caller's own


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(allow_nan=False) | st.decimals(allow_nan=False)
    | st.datetimes() | st.uuids() | st.fractions(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner)
    | st.lists(inner).map(collections.deque),
    max_leaves=15,
)  # fmt: skip


@given(VALUES, st.sampled_from(PROTOCOLS))
def test_any_plain_value(value, protocol):
    assert again(value, protocol) == value


# --- what does not -------------------------------------------------------------------------------


class Basket:
    class Item:
        def __init__(self, name):
            self.name = name

        def __eq__(self, other):
            return self.name == other.name

        __hash__ = None

    def __init__(self, *items):
        self.items = items

    def __eq__(self, other):
        return self.items == other.items

    __hash__ = None


class Slots:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a, self.b = 1, [2]


class Words(list):
    pass


class Exact(int):
    def __new__(cls, *, value):
        return super().__new__(cls, value)

    def __getnewargs_ex__(self):
        return (), {"value": int(self)}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    import sys

    module = sys.modules.get(__name__) or types.ModuleType(__name__)
    for cls in (Basket, Slots, Words, Exact):
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, __name__, module)


OBJECTS = {
    "nested class": Basket(Basket.Item("apple")),
    "slots": Slots(),
    "a list": Words("abc"),
    "arguments by name": Exact(value=3),
    "a class": Basket,
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", OBJECTS)
def test_classes_need_trust(name, protocol):
    obj = OBJECTS[name]
    trusting = Trust(types=TypePatterns([f"{__name__}.*"]))
    data = b""
    with contextlib.suppress(Exception):
        data = pickle.dumps(obj, protocol)
        pickle.loads(data)
    if not data:
        pytest.skip("pickle itself does not do it")
    # There were no names with dots and no arguments by name: getattr and partial did that.
    by_other_means = (name, protocol) in {("arguments by name", 2), ("arguments by name", 3)}
    by_other_means |= name == "nested class" and protocol < 4
    with pytest.raises(
        UntrustedTypeError,
        match="getattr|partial|Basket" if by_other_means else re.escape(__name__),
    ):
        load_untrusted(data, Trust())
    if by_other_means:
        with pytest.raises(UntrustedTypeError, match=r"getattr|partial"):
            load_untrusted(data, trusting)
        return
    found = load_untrusted(data, trusting)
    if obj is Basket:
        assert found is Basket
        return
    assert type(found) is type(obj)
    if not isinstance(obj, Slots):
        assert found == obj
    else:
        assert (found.a, found.b) == (1, [2])


def test_patterns_have_to_match_the_whole_name():
    data = pickle.dumps(Words("a"))
    for pattern in (f"{__name__}.Word", f"{__name__}.Words.*", "x.*", f"{__name__}x.*"):
        with pytest.raises(UntrustedTypeError):
            load_untrusted(data, Trust(types=TypePatterns([pattern])))
    for pattern in (f"{__name__}.Words", f"{__name__}.W*", f"{__name__}.Word?"):
        assert load_untrusted(data, Trust(types=TypePatterns([pattern]))) == ["a"]


@pytest.mark.parametrize(
    "obj",
    [re.compile("a"), np.random.default_rng(1), pd.DateOffset(months=1), pd.IntervalDtype("int64")],
    ids=type,
)
def test_the_error_names_what_is_not_on_the_list(obj):
    with pytest.raises(UntrustedTypeError, match=r"it needs [a-z_]+\.[\w.]+, whose code would run"):
        again(obj, 5)
