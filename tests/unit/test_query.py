"""Queries: the reference answer that every index must agree with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.entry import Entry
from blobstore.errors import InvalidMetadataError
from blobstore.query import Query, matches_metadata, parse_filter, same

ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 1.0, 2.5, 2.0**53, 1e300]),
    st.sampled_from([2**53, 2**53 + 1, -(2**70)]),
    st.sampled_from(["", "1", "a", "true", "\0", "\ud7ff"]),
)
JSON = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=6,
)


def entry(key="k", metadata=None):
    return Entry(1, key, 1, "c", "pickle", "object", "{}", json.dumps(metadata or {}), (), 0, 0, 0)


def form(value):
    """Our own idea of equality: a text that is equal exactly for equal values."""
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, int | float):
        return f"number {value.as_integer_ratio()}"
    if isinstance(value, str):
        return f"text {value!r}"
    if isinstance(value, list):
        return f"[{','.join(map(form, value))}]"
    return "{" + ",".join(sorted(f"{name!r}:{form(item)}" for name, item in value.items())) + "}"


@given(JSON, JSON)
def test_equality(left, right):
    assert same(left, right) is (form(left) == form(right))
    assert same(left, right) is same(right, left)
    assert same(left, left) is True


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        (0, -0.0, True),
        (2**53 + 1, float(2**53), False),
        (1, True, False),
        (0, False, False),
        (0.0, False, False),
        (True, True, True),
        (None, False, False),
        (None, None, True),
        ("1", 1, False),
        ([], {}, False),
        ([1], [True], False),
        ([1, 2], [2, 1], False),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ("é", "e\u0301", False),
        ("a", "A", False),
    ],
)
def test_equality_of_pairs(left, right, equal):
    assert same(left, right) is equal
    assert same(right, left) is equal
    assert same([left], [right]) is equal
    assert same({"x": left}, {"x": right}) is equal


@given(
    st.dictionaries(st.sampled_from("abcd"), JSON), st.dictionaries(st.sampled_from("abc"), JSON)
)
def test_every_name_must_match(stored, wanted):
    expected = all(name in stored and same(stored[name], wanted[name]) for name in wanted)
    assert matches_metadata(wanted, json.dumps(stored)) is expected
    assert matches_metadata({}, json.dumps(stored))


def test_a_name_that_is_not_there_matches_nothing():
    assert not matches_metadata({"a": None}, "{}")
    assert matches_metadata({"a": None}, '{"a":null}')


def test_names_are_data():
    for name in ("a.b", "$gt", "a'b", 'x"y', "", "%", "*", "@key", "metadata"):
        assert matches_metadata({name: 1}, json.dumps({name: 1}))
        assert not matches_metadata({name: 1}, json.dumps({"a": {"b": 1}, "other": 1}))


def test_selecting():
    assert Query().matches(entry())
    assert Query(prefix="k").matches(entry("key"))
    assert not Query(prefix="K").matches(entry("key"))
    for wild in ("%", "_", "*", "k%", ".", "[k]"):
        assert not Query(prefix=wild).matches(entry("key"))
        assert Query(prefix=wild).matches(entry(wild + "x"))
    assert Query(after="a").matches(entry("b"))
    assert not Query(after="b").matches(entry("b"))
    assert not Query(after="c").matches(entry("b"))
    assert Query(after="\uffff").matches(entry("\U00010000"))  # by code point
    assert Query(equal={"a": 1}).matches(entry(metadata={"a": 1.0, "b": 2}))
    assert not Query(equal={"a": 1, "b": 3}).matches(entry(metadata={"a": 1, "b": 2}))
    assert not Query(prefix="x", equal={"a": 1}).matches(entry(metadata={"a": 1}))


def test_filters_are_brought_into_the_form_of_stored_metadata():
    assert parse_filter({"a": (1, np.float64(0.5)), "b": np.True_}) == {"a": [1, 0.5], "b": True}
    assert parse_filter(None) == parse_filter({}) == {}
    for wrong in ({"a": {1}}, {1: 2}, {"a": float("nan")}, [("a", 1)]):
        with pytest.raises(InvalidMetadataError):
            parse_filter(wrong)


def test_a_filter_is_not_changed():
    given_filter = {"a": (1, 2)}
    parsed = parse_filter(given_filter)
    parsed["a"].append(3)
    assert given_filter == {"a": (1, 2)}
