"""Metadata: exact JSON, the path of whatever is none, and a caller's dict left alone."""

from __future__ import annotations

import collections
import copy
import datetime
import decimal
import enum
import json
import math
import pathlib
import types
import uuid
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.errors import InvalidInputError, InvalidMetadataError
from blobstore.metadata import MAX_DEPTH, merge, to_text

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=25,
)


def exactly(one, other):
    """Equal in value, type, sign and order."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return [*one] == [*other] and all(exactly(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(exactly, one, other))
    if isinstance(one, float):
        return one.hex() == other.hex()
    return one == other


@given(st.dictionaries(TEXT, JSON, max_size=5))
def test_json_comes_back_exactly(metadata):
    before = copy.deepcopy(metadata)
    text = to_text(metadata)
    assert exactly(json.loads(text), metadata)
    assert exactly(metadata, before)
    assert to_text(json.loads(text)) == text
    text.encode("utf-8")


def test_the_text_is_compact_and_readable():
    assert to_text({"ü": [1, 2.5, None, True, "\0"]}) == '{"ü":[1,2.5,null,true,"\\u0000"]}'
    assert to_text(None) == to_text({}) == "{}"
    assert to_text({"b": 1, "a": 2}) == '{"b":1,"a":2}'


def test_large_integers():
    for number in (2**53 + 1, 2**64, -(2**70), 10**4299):
        assert json.loads(to_text({"n": number}))["n"] == number
    with pytest.raises(InvalidMetadataError, match="4300"):
        to_text({"n": 10**4300})


class Text(str):
    __slots__ = ()

    def __str__(self):
        return "shown otherwise"

    __repr__ = __str__


class Number(int):
    def __str__(self):
        return "shown otherwise"

    __repr__ = __str__


class Real(float):
    def __str__(self):
        return "shown otherwise"

    __repr__ = __str__


class Word(str, enum.Enum):  # noqa: UP042 - the older form
    A = "a"


class Plain(enum.Enum):
    A = (1, "x")


class Bits(enum.IntFlag):
    A = 1
    B = 2


class Pair(NamedTuple):
    a: int
    b: int


CONVERTED = {
    "tuple": ((1, (2,)), [1, [2]]),
    "named tuple": (Pair(1, 2), [1, 2]),
    "str subclass": (Text("a"), "a"),
    "int subclass": (Number(5), 5),
    "float subclass": (Real(0.1), 0.1),
    "str enum": (Word.A, "a"),
    "enum": (Plain.A, [1, "x"]),
    "flags": (Bits.A | Bits.B, 3),
    "list subclass": (type("L", (list,), {})([1]), [1]),
    "dict subclass": (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "other mapping": (types.MappingProxyType({"a": (1,)}), {"a": [1]}),
    "chain": (collections.ChainMap({"a": 1}), {"a": 1}),
    "datetime": (datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), "2020-01-02T00:00:00+00:00"),
    "date": (datetime.date(2020, 1, 2), "2020-01-02"),
    "time": (datetime.time(1, 2), "01:02:00"),
    "path": (pathlib.PurePosixPath("a/b"), "a/b"),
    "uuid": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "numpy float": (np.float64(0.1), 0.1),
    "numpy float32": (np.float32(0.1), 0.10000000149011612),
    "numpy float16": (np.float16(0.5), 0.5),
    "numpy int": (np.int8(-5), -5),
    "numpy uint": (np.uint64(2**64 - 1), 2**64 - 1),
    "numpy bool": (np.bool_(True), True),
    "numpy str": (np.str_("ü"), "ü"),
    "numpy datetime": (
        np.datetime64("2020-01-02T03:04:05.000000006"),
        "2020-01-02T03:04:05.000000006",
    ),
    "numpy date": (np.datetime64("2020-01-02"), "2020-01-02"),
    "0-d int": (np.array(5), 5),
    "0-d bool": (np.array(False), False),
    "0-d str": (np.array("x"), "x"),
    "0-d datetime": (np.array("2020-01-02", "M8[D]"), "2020-01-02"),
    "0-d object": (np.array("x", object), "x"),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_types_with_one_obvious_form(name):
    value, expected = CONVERTED[name]
    for metadata, result in (
        ({"x": value}, {"x": expected}),
        ({"x": [{"y": (value,)}]}, {"x": [{"y": [expected]}]}),
    ):
        assert exactly(json.loads(to_text(metadata)), result)


def test_names_may_be_subclasses_of_str():
    assert to_text({Text("b"): 1, Word.A: 2, np.str_("n"): 3}) == '{"b":1,"a":2,"n":3}'


class Weird:
    def __repr__(self):
        raise RuntimeError("shown")


REFUSED = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "numpy nan": np.float32("nan"),
    "0-d nan": np.array(np.nan),
    "set": {1},
    "bytes": b"x",
    "bytearray": bytearray(b"x"),
    "numpy bytes": np.bytes_(b"x"),
    "complex": 1j,
    "numpy complex": np.complex64(1j),
    "array": np.zeros(3),
    "1-element array": np.zeros(1),
    "empty array": np.zeros(0),
    "decimal": decimal.Decimal(1),
    "object": object(),
    "weird": Weird(),
    "class": int,
    "function": len,
    "generator": (i for i in ()),
    "range": range(3),
    "deque": collections.deque([1]),
    "timedelta": datetime.timedelta(1),
    "numpy timedelta": np.timedelta64(5, "s"),
    "numpy timedelta ns": np.timedelta64(5, "ns"),
    "not a time": np.datetime64("NaT", "s"),
    "long double": np.longdouble("0.1"),
    "void": np.zeros((), [("a", "i4")]),
    "0-d object": np.array({"a": 1}, object),
    "surrogate": "a\ud800",
    "surrogate in a subclass": Text("\udfff"),
    "type with a length": memoryview(b"x"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda x: {"a": x}, '["a"]'),
        (lambda x: {"a": [0, {'b"\n': (x,)}]}, '["a"][1]["b\\"\\n"][0]'),
        (lambda x: {"": types.MappingProxyType({"ü": x})}, '[""]["\\u00fc"]'),
    ],
    ids=["flat", "nested", "odd names"],
)
def test_what_json_has_not_is_refused_and_its_place_named(name, wrap, path):
    with pytest.raises(InvalidMetadataError) as caught:
        to_text(wrap(REFUSED[name]))
    assert f"metadata{path} " in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("name", [1, 1.5, None, True, (1,), b"a", np.int64(1), Plain.A], ids=repr)
def test_names_that_are_no_text(name):
    for metadata, place in (({name: 1}, "metadata "), ({"a": [{name: 1}]}, 'metadata["a"][0] ')):
        with pytest.raises(InvalidMetadataError) as caught:
            to_text(metadata)
        assert str(caught.value).startswith(place)
        assert repr(name) in str(caught.value)


def test_names_with_a_lone_surrogate():
    with pytest.raises(InvalidMetadataError) as caught:
        to_text({"a": {"\ud800": 1}})
    str(caught.value).encode()
    assert '["a"]["\\ud800"]' in str(caught.value)


@pytest.mark.parametrize("wrong", [[], [("a", 1)], "a", 5, b"", {1}, ()], ids=repr)
def test_what_is_no_mapping(wrong):
    with pytest.raises(InvalidMetadataError, match=type(wrong).__name__):
        to_text(wrong)


def nested(levels, kind):
    value = 1
    for _ in range(levels):
        value = kind(value)
    return value


@pytest.mark.parametrize("kind", [lambda x: [x], lambda x: {"a": x}, lambda x: (x,)])
def test_depth(kind):
    deepest = {"a": nested(MAX_DEPTH, kind)}
    assert json.loads(to_text(deepest)) is not None
    for levels in (MAX_DEPTH + 1, 5000):
        with pytest.raises(InvalidMetadataError, match="deep"):
            to_text({"a": nested(levels, kind)})


def test_cycles():
    looped = {}
    looped["a"] = [looped]
    with pytest.raises(InvalidMetadataError, match="contains itself"):
        to_text(looped)
    wide = []
    wide.extend([wide] * 1000)
    with pytest.raises(InvalidMetadataError, match="contains itself"):
        to_text({"a": wide})
    assert to_text({"a": (shared := [1]), "b": shared}) == '{"a":[1],"b":[1]}'


def test_the_callers_dict_is_not_changed():
    inner = [np.float32(1), (1, 2)]
    metadata = {"a": inner, "b": {"c": {"d": Word.A}}}
    to_text(metadata)
    assert metadata["a"] is inner
    assert type(inner[0]) is np.float32
    assert type(inner[1]) is tuple
    assert metadata["b"]["c"]["d"] is Word.A
    with pytest.raises(InvalidMetadataError):
        to_text({**metadata, "bad": {1}})
    assert metadata["a"] is inner


@given(st.dictionaries(TEXT, JSON, max_size=4), st.dictionaries(TEXT, JSON, max_size=4))
def test_merging(old, new):
    merged = json.loads(merge(to_text(old), to_text(new)))
    assert exactly(merged, {**old, **new})
    assert merge(to_text(old), to_text(new), replace=True) == to_text(new)
    assert merge(to_text(old), "{}") == to_text(old)


def test_merging_is_shallow():
    assert merge('{"a":{"x":1},"b":2}', '{"a":{"y":2}}') == '{"a":{"y":2},"b":2}'
    assert merge('{"a":1.0,"b":1e+20}', '{"c":null}') == '{"a":1.0,"b":1e+20,"c":null}'
    assert issubclass(InvalidMetadataError, InvalidInputError)
