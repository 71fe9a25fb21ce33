"""Digests: equal exactly for equal content, however it came about, in whatever process."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import io
import operator
import os
import pathlib
import re
import struct
import subprocess
import sys
import threading
import types
import uuid
import weakref

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blobstore import digest as digests
from blobstore.digest import (
    Canonical,
    checksum_like,
    checksum_of,
    checksum_text,
    new_checksum,
    new_digest,
)
from blobstore.errors import ConfigError, UnsupportedTypeError
from blobstore.handlers.pickle import PickleHandler, known_types
from blobstore.protocols import WriteOptions
from blobstore.registry import HandlerSet


def digest(obj):
    hasher = new_digest()
    Canonical(hasher, known_types).add(obj)
    return hasher.hexdigest()


def pickled_digest(obj):
    """As an object gets it that is stored by pickle."""
    (part,) = PickleHandler().plan(obj, WriteOptions()).parts
    hasher = new_digest()
    part.digest(hasher)
    return hasher.hexdigest()


def stored_digest(obj):
    """As an object gets it that is stored by whatever handler it has."""
    hasher = new_digest()
    for part in HandlerSet().plan(obj, WriteOptions()).plan.parts:
        part.digest(hasher)
    return hasher.hexdigest()


# --- checksums -----------------------------------------------------------------------------------


@pytest.mark.parametrize("executable", [True, False])
@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 20])
def test_checksums(executable, size):
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    hasher = new_checksum(executable=executable)
    for start in range(0, size, 777):
        hasher.update(data[start : start + 777])
    text = checksum_text(hasher, executable=executable)
    assert text.startswith("blake3:" if executable else "xxh3-128:")
    assert checksum_of(data, text) == checksum_of(memoryview(data), text) == text
    again, same = checksum_like(text)
    again.update(data)
    assert (checksum_text(again, executable=same), same) == (text, executable)
    assert checksum_of(data + b"\0", text) != text


def test_the_algorithms_are_what_they_say():
    assert new_digest("sha256").hexdigest() == hashlib.sha256().hexdigest()
    assert new_digest().hexdigest() == (  # BLAKE3 of nothing, from its specification
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    )
    for wrong in ("md5", "", "BLAKE3", None):
        with pytest.raises(ConfigError):
            new_digest(wrong)


# --- equal by an independent comparison ----------------------------------------------------------

ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([1 << 63, -(1 << 63) - 1, 1 << 64, -(1 << 64), 1 << 200, (1 << 63) - 1]),
    st.sampled_from([0.0, -0.0, 1.0, 2.0, float("inf"), float("nan"), 0.1]),
    st.sampled_from(["", "1", "a", "ab", "\ud800", "0x10000000000000000"]),
    st.sampled_from([b"", b"1", b"a", b"ab"]),
    st.sampled_from([1j, complex(1, 0), complex(-0.0, 0)]),
    st.just(...),
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(ATOMS, min_size=15, max_size=17)
        | st.integers(-3, 3).flatmap(lambda i: st.sampled_from([[i] * 15, [i] * 16, (i,) * 16]))
        | st.dictionaries(st.sampled_from(["a", "b", 1, None, (1,)]), inner, max_size=3)
        | st.sets(st.integers(-2, 2) | st.sampled_from(["a", b"a"]), max_size=4)
        | st.frozensets(st.integers(-2, 2), max_size=3)
    ),
    max_leaves=6,
)


def form(obj):
    """What an object is, as text: our own idea of equality, by type and bit."""
    kind = type(obj).__name__
    if isinstance(obj, list | tuple):
        return f"{kind}({','.join(map(form, obj))})"
    if isinstance(obj, dict):
        return f"dict({','.join(form(k) + ':' + form(v) for k, v in obj.items())})"
    if isinstance(obj, set | frozenset):
        return f"{kind}({','.join(sorted(map(form, obj)))})"
    if isinstance(obj, float):
        return f"float({struct.pack('>d', obj).hex()})"
    if isinstance(obj, complex):
        return f"complex({struct.pack('>dd', obj.real, obj.imag).hex()})"
    return f"{kind}({obj!r})"


def rebuilt(obj):
    """An equal object that shares no part with the other."""
    if isinstance(obj, list | tuple | set | frozenset):
        return type(obj)(map(rebuilt, obj))
    if isinstance(obj, dict):
        return {rebuilt(k): rebuilt(v) for k, v in obj.items()}
    if isinstance(obj, str):
        return obj[:1] + obj[1:]
    return copy.copy(obj)


def unshared(obj):
    """`obj` without any container in it twice, which would be content."""
    return rebuilt(obj)


@given(VALUES, VALUES)
@example([1] * 15, [1] * 16)
@example([[]], [[], []])
@example([1, [2]], [[1], 2])
@example({"a": 1}, ["a", 1])
@example(["0x10000000000000000"], [1 << 64])
def test_equal_if_and_only_if_the_content_is(one, other):
    one, other = unshared(one), unshared(other)
    assert (digest(one) == digest(other)) is (form(one) == form(other))


@given(VALUES)
def test_an_equal_object_has_the_same_digest(obj):
    obj = unshared(obj)
    assert digest(rebuilt(obj)) == digest(obj)
    assert digest(obj) == digest(obj)


# --- what does not count -------------------------------------------------------------------------


class Thing:
    def __init__(self, **fields):
        self.__dict__.update(fields)


class Named(dict):
    pass


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a, b):
        self.a, self.b = a, b


@dataclasses.dataclass
class Point:
    x: int
    y: object = None


class Color(enum.Enum):
    RED = 1
    BLUE = 2


def frame():
    return pd.DataFrame({"a": np.arange(5), "b": list("vwxyz")}, index=list("abcde"))


def used_frame():
    used = frame()
    used["c"] = 1
    del used["c"]
    used.loc["a", "a"]
    _ = used.index.is_unique, used.sort_values("b"), used.memory_usage(deep=True), used["a"].sum()
    return used


def text(*pieces):
    return "".join(pieces)


SAME = {
    "identity of strings": lambda: ([text("a", "bc"), "abc"], ["abc", "abc"]),
    "one string twice": lambda: (["x" * 20] * 2, [text("x" * 10, "x" * 10), "x" * 20]),
    "one tuple twice": lambda: ([(1, 2)] * 2, [(1, 2), tuple(map(int, "12"))]),
    "order of sets": lambda: ({"a", "b", "c", 8, 0}, {0, 8, "c", "b", "a"}),
    "history of sets": lambda: ({1, 2}, set(range(1000)) & {1, 2}),
    "history of dicts": lambda: ({"b": 2}, shrunk({"a": 1, "b": 2})),
    "sets of sets": lambda: (
        {frozenset({1, 2}), frozenset({3})},
        {frozenset({3}), frozenset({2, 1})},
    ),
    "memory order": lambda: (
        Thing(a=np.arange(12.0).reshape(3, 4)),
        Thing(a=np.asfortranarray(np.arange(12.0).reshape(3, 4))),
    ),
    "strides": lambda: ([np.arange(10)[::2]], [np.arange(0, 10, 2)]),
    "a view": lambda: ([np.arange(10)[3:5]], [np.array([3, 4])]),
    "a frame that was used": lambda: ([frame()], [used_frame()]),
    "a series that was used": lambda: ({"s": frame()["a"]}, {"s": used_frame()["a"]}),
    "arrays in dicts in objects": lambda: (
        Thing(d={"a": [np.ones(3)]}),
        Thing(d={"a": [np.ones(6)[::2]]}),
    ),
    "cached properties": lambda: (datetime.date(2020, 1, 1), hashed(datetime.date(2020, 1, 1))),
    "values by hash": lambda: (
        [datetime.date(2020, 1, 1)] * 2,
        [datetime.date(2020, 1, 1), datetime.date(2020, 1, 1)],
    ),
    "types": lambda: ([int, Thing, np.float32], [int, type(Thing()), np.dtype("f4").type]),
    "dtypes": lambda: ([np.dtype("f4"), np.dtype("f4")], [np.dtype(np.float32)] * 2),
    "numpy numbers": lambda: ([np.float32(0.1)], [np.array([0.1], "f4")[0]]),
    "dict subclass": lambda: (Named(a=1, b=[2]), Named([("a", 1), ("b", [2])])),
    "counter": lambda: (collections.Counter("ab"), collections.Counter({"a": 1, "b": 1})),
    "deque": lambda: (collections.deque([1, 2], 5), collections.deque((1, 2), maxlen=5)),
    "slots": lambda: (Slotted(1, [2]), Slotted(1, [2])),
    "dataclass": lambda: (Point(1, [2]), Point(y=[2], x=1)),
    "enum": lambda: (Color.RED, Color(1)),
    "partial": lambda: (functools.partial(int, base=2), functools.partial(int, base=2)),
    "method": lambda: (Point(1).__eq__, Point(1).__eq__),
    "path": lambda: (pathlib.PurePosixPath("a/b"), pathlib.PurePosixPath("a") / "b"),
    "pattern": lambda: (re.compile("a+"), re.compile("a+")),
    "cycle": lambda: (cycle(), cycle()),
}


def shrunk(mapping):
    del mapping["a"]
    return mapping


def hashed(obj):
    hash(obj)
    return obj


def cycle():
    obj = Thing(children=[])
    obj.children.append(Thing(parent=obj))
    return obj


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_count(name):
    one, other = SAME[name]()
    assert digest(one) == digest(other)
    assert pickled_digest(one) == pickled_digest(other)


PRINT = """
import collections, datetime, decimal, sys, uuid
import numpy as np, pandas as pd
from blobstore.digest import Canonical, new_digest
from blobstore.handlers.pickle import known_types
objects = [
    {"a", "b", "c", "d"}, {"x": {1, "y", None, (1, "z")}}, frozenset(map(str, range(50))),
    [1, 2.5, "three", b"4", None, True, 1 << 100, 1j, ...],
    collections.OrderedDict(a=1), collections.Counter("hello"), datetime.datetime(2020, 1, 1),
    decimal.Decimal("1.10"), uuid.UUID(int=5), {"a": [np.arange(5), np.float32(1)]},
    [pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), pd.Timestamp("2020-01-01")],
    list(range(100)), ["text"] * 100, [0.5] * 100,
]
for obj in objects:
    hasher = new_digest()
    Canonical(hasher, known_types).add(obj)
    print(hasher.hexdigest())
"""


def test_the_same_in_every_process():
    outputs = set()
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", PRINT],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert len({*outputs.pop().split()}) == 14


def test_the_canonical_stream_is_version_1():
    """Changing any of these would make stored digests useless: then it is version 2."""
    known = {
        "none": (None, b"n" + bytes(8)),
        "true": (True, b"b\1" + bytes(7) + b"\1"),
        "int": (-12, b"i\3" + bytes(7) + b"-12"),
        "large int": (1 << 64, b"i\x13" + bytes(7) + b"0x10000000000000000"),
        "float": (0.5, b"f\x08" + bytes(7) + struct.pack("<d", 0.5)),
        "str": ("ü", b"u\2" + bytes(7) + "ü".encode()),
        "bytes": (b"ab", b"y\2" + bytes(7) + b"ab"),
        "list": ([None], b"l\1" + bytes(7) + b"n" + bytes(8)),
        "tuple": ((), b"t" + bytes(8)),
        "dict": ({"a": None}, b"d\1" + bytes(7) + b"u\1" + bytes(7) + b"a" + b"n" + bytes(8)),
        "packed": (
            (1,) * 16,
            b"T\x10" + bytes(7) + b"i\x80" + bytes(7) + struct.pack("<q", 1) * 16,
        ),
    }

    class Collect:
        def __init__(self):
            self.stream = b""

        def update(self, data):
            self.stream += data

        def hexdigest(self):
            raise AssertionError("not asked for")

    for name, (obj, expected) in known.items():
        collector = Collect()
        Canonical(collector).add(obj)
        assert collector.stream == expected, name


def test_an_estimator_that_was_fitted_twice():
    linear_model = pytest.importorskip("sklearn.linear_model")
    ensemble = pytest.importorskip("sklearn.ensemble")
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((60, 4)), rng.integers(0, 2, 60)
    for make in (
        linear_model.LogisticRegression,
        lambda: ensemble.RandomForestClassifier(5, random_state=3),
    ):
        one, other, changed = make().fit(x, y), make().fit(x.copy(), y.copy()), make().fit(x, 1 - y)
        one.predict(x)
        assert pickled_digest(one) == pickled_digest(other) != pickled_digest(changed)


# --- what counts ---------------------------------------------------------------------------------


class Other:
    def __init__(self, **fields):
        self.__dict__.update(fields)


class Text(str):
    __slots__ = ()


class Number(int):
    pass


def with_attribute(obj, **attributes):
    vars(obj).update(attributes)
    return obj


shared_list = [1]

DIFFERENT = {
    "list and tuple": ([1], (1,)),
    "int and float": (1, 1.0),
    "int and bool": (1, True),
    "float and bool": (0.0, False),
    "text and bytes": ("1", b"1"),
    "text and number": ("1", 1),
    "none and nothing": (None, ""),
    "signs of zero": (0.0, -0.0),
    "complex and float": (1.0, 1 + 0j),
    "order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "set and frozenset": ({1}, frozenset({1})),
    "set and list": ({1}, [1]),
    "dict and pairs": ({"a": 1}, [("a", 1)]),
    "dict and subclass": ({"a": 1}, Named(a=1)),
    "dict and ordered": ({"a": 1}, collections.OrderedDict(a=1)),
    "subclass of str": ("a", Text("a")),
    "subclass of int": (1, Number(1)),
    "bytes and bytearray": (b"a", bytearray(b"a")),
    "names of classes": (Thing(a=1), Other(a=1)),
    "names of fields": (Thing(a=1), Thing(b=1)),
    "nested and not": ([[1], 2], [[1, 2]]),
    "empty in empty": ([[]], [[], []]),
    "empties": ([], ()),
    "empty dict and set": ({}, set()),
    "dtype": ([np.zeros(3)], [np.zeros(3, "f4")]),
    "byte order": ([np.zeros(3, "<f4")], [np.zeros(3, ">f4")]),
    "shape": ([np.zeros((2, 3))], [np.zeros((3, 2))]),
    "dimensions": ([np.zeros(3)], [np.zeros((1, 3))]),
    "nothing of another shape": ([np.empty((0, 2))], [np.empty((0, 3))]),
    "array and list": ([np.zeros(3)], [[0.0] * 3]),
    "array and masked": ([np.zeros(3)], [np.ma.zeros(3)]),
    "object arrays": ([np.array([1, "a"], object)], [np.array(["1", "a"], object)]),
    "number and array": ([np.float64(1)], [np.array(1.0)]),
    "numpy and python": ([np.float64(1)], [1.0]),
    "columns": ([frame()], [frame().rename(columns={"a": "A"})]),
    "order of columns": ([frame()], [frame()[["b", "a"]]]),
    "index": ([frame()], [frame().reset_index(drop=True)]),
    "name of a series": ([frame()["a"]], [frame()["a"].rename("b")]),
    "frame and series": ([frame()[["a"]]], [frame()["a"]]),
    "date and datetime": (datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1)),
    "zone": (datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
    "fold": (datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, fold=1)),
    "digits of a decimal": (decimal.Decimal("1.1"), decimal.Decimal("1.10")),
    "fraction": (fractions.Fraction(1, 2), fractions.Fraction(1, 3)),
    "enum": (Color.RED, Color.BLUE),
    "enum and value": (Color.RED, 1),
    "class and instance": (Thing, Thing()),
    "functions": (operator.add, operator.sub),
    "partial": (functools.partial(int, base=2), functools.partial(int, base=3)),
    "maximum of a deque": (collections.deque([1]), collections.deque([1], 5)),
    "attributes of a subclass": (Named(a=1), with_attribute(Named(a=1), b=2)),
    "default factory": (collections.defaultdict(int), collections.defaultdict(list)),
    "range": (range(3), range(0, 3, 2)),
    "slice": (slice(1), slice(2)),
    "uuid": (uuid.UUID(int=1), uuid.UUID(int=2)),
    "shared": ([shared_list, shared_list], [[1], [1]]),
    "nan": (float("nan"), struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]),
    "15 and 16": ([1] * 15, [1] * 16),
    "packed list and tuple": ([1] * 16, (1,) * 16),
    "packed ints and floats": ([1] * 16, [1.0] * 16),
    "packed ints and bools": ([1] * 16, [True] * 16),
    "packed ints and one bool": ([1] * 16, [1] * 15 + [True]),
    "packed and one large": ([1] * 16, [1] * 15 + [1 << 63]),
    "packed signs of zero": ([0.0] * 16, [0.0] * 15 + [-0.0]),
    "packed texts": (["ab", "c"] * 8, ["a", "bc"] * 8),
    "packed texts and bytes": (["a"] * 16, [b"a"] * 16),
    "packed texts with nul": (["a\0", "b"] * 8, ["a", "\0b"] * 8),
    "packed and its bytes": ([0] * 16, [bytes(8)] * 16),
    "subclasses in a row": ([1] * 16, [Number(1)] * 16),
    "set members": ({1, 2}, {1, True and 3}),
    "set of texts and bytes": ({"a"}, {b"a"}),
    "names of one dotted path": (
        type("c", (), {"__module__": "a.b", "__qualname__": "c"}),
        type("c", (), {"__module__": "a", "__qualname__": "b.c"}),
    ),
}


ONE_BLOB = {"bytes and bytearray", "names of one dotted path"}
"""Bytes of both types are one blob, read by two handlers; pickle does not find made-up classes."""


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_counts(name):
    one, other = DIFFERENT[name]
    assert digest(one) != digest(other)


@pytest.mark.parametrize("name", [n for n in DIFFERENT if n not in ONE_BLOB])
def test_what_counts_when_it_is_stored(name):
    one, other = DIFFERENT[name]
    assert stored_digest(one) != stored_digest(other)


# --- sharing -------------------------------------------------------------------------------------


def test_sharing_is_content_where_it_can_be_seen():
    mutable = {"x": [1]}
    assert digest([mutable, mutable]) == digest([m := {"x": [1]}, m])
    assert digest([mutable, mutable]) != digest([mutable, copy.deepcopy(mutable)])
    array = np.ones(3)
    assert digest([array, array]) != digest([array, array.copy()])
    thing = Thing()
    assert digest([thing, thing]) != digest([thing, Thing()])


def test_which_one_is_shared_counts():
    a, b = [1], [1]
    assert digest([a, b, a]) != digest([a, b, b])


def test_cycles():
    one, other = [], []
    one.append(one)
    other.append([other])
    assert digest(one) != digest(other)
    assert digest(one) != digest([[]])


def test_objects_that_vanish_while_they_are_walked():
    """An id that is used again must not pass for the object that had it."""

    class Makes:
        def __init__(self, values):
            self.values = values

        def __reduce__(self):
            return list, ([[value] for value in self.values],)

    assert digest([Makes([i]) for i in range(50)]) == digest([Makes([i]) for i in range(50)])
    assert digest([Makes([0])] * 1 + [Makes([0])]) != digest([Makes([0]), Makes([1])])


# --- odd objects ---------------------------------------------------------------------------------


class Hostile:
    """Takes every occasion to fail."""

    def __eq__(self, other):
        raise RuntimeError("compared")

    __hash__ = None

    def __bool__(self):
        raise RuntimeError("asked for truth")

    def __len__(self):
        raise RuntimeError("asked for its length")

    def __repr__(self):
        raise RuntimeError("shown")

    def __getattr__(self, name):
        raise AttributeError(name)


class Loop:
    """Hashes by value, and holds itself."""

    def __init__(self):
        self.me = self

    def __hash__(self):
        return 1

    def __eq__(self, other):
        return isinstance(other, Loop)


def nested(levels, kind=lambda x: [x]):
    obj = kind(None)
    for _ in range(levels):
        obj = kind(obj)
    return obj


ODD = {
    "hostile": Hostile,
    "loop of values": Loop,
    "bound built-in": lambda: [1].append,
    "method of a class": lambda: dict.fromkeys,
    "slot wrapper": lambda: str.join,
    "ufunc": lambda: np.add,
    "generic alias": lambda: list[int],
    "union": lambda: int | None,
    "namespace": lambda: types.SimpleNamespace(a=1),
    "stream": lambda: io.BytesIO(b"abc"),
    "exception": lambda: ValueError("x"),
    "not implemented": lambda: NotImplemented,
    "type of none": lambda: type(None),
    "iterator": lambda: iter([1, 2]),
    "random state": lambda: np.random.default_rng(1),
    "deep list": lambda: nested(300),
    "deep dict": lambda: nested(250, lambda x: {"a": x}),
    "deep objects": lambda: nested(120, lambda x: Thing(a=x)),
    "index": lambda: pd.Index([1, 2]),
    "categorical": lambda: pd.Categorical(["a", "b"]),
    "timestamp": lambda: pd.Timestamp("2020-01-01", tz="UTC"),
    "object array": lambda: np.array([None, [1]], object),
    "record": lambda: np.rec.array([(1, 2.0)]),
    "void": lambda: np.zeros(2, [("a", "O")]),
    "wide int": lambda: 10**5000,
}


@pytest.mark.parametrize("name", ODD)
def test_whatever_pickle_takes_has_a_digest(name):
    assert pickled_digest(ODD[name]()) == pickled_digest(ODD[name]())


@pytest.mark.parametrize("frames", [0, 200, 400])
def test_a_caller_that_is_deep_in_calls_itself(frames):
    """The interpreter's limit is on all calls together: running into it is no reason to fail."""
    obj = nested(180)

    def call(depth):
        return call(depth - 1) if depth else pickled_digest(obj)

    assert len(call(frames)) == 64


UNSUPPORTED = {
    "lambda": lambda: lambda: 0,
    "lock": threading.Lock,
    "weak reference": lambda: weakref.ref(Thing),
    "generator": lambda: (i for i in ()),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_stable_form(name):
    with pytest.raises(UnsupportedTypeError):
        digest([UNSUPPORTED[name]()])


def test_the_hook_decides():
    asked = []

    def known(obj, hasher):
        asked.append(obj)
        hasher.update(b"known")
        return isinstance(obj, Thing)

    def walk(obj):
        hasher = new_digest()
        Canonical(hasher, known).add(obj)
        return hasher.hexdigest()

    assert walk(Thing(a=1)) == walk(Thing(a=2)) != walk(Other(a=1))
    assert all(isinstance(obj, Thing | Other) for obj in asked)  # never a plain value
    assert walk([1, "a", {"b": (2.0, None)}]) == digest([1, "a", {"b": (2.0, None)}])


def test_a_walk_changes_nothing():
    obj = Thing(a=[1, {2}], b=np.arange(5), c=frame())
    before = copy.deepcopy(vars(obj))
    digest(obj)
    assert vars(obj)["a"] == before["a"]
    assert np.array_equal(obj.b, before["b"])
    assert obj.c.equals(before["c"])


def test_the_limits_are_where_they_were():
    assert (digests._PACKED_FROM, digests.ALGORITHMS) == (16, ("blake3", "sha256"))
