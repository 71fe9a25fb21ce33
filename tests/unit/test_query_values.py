"""JSON values in queries: kinds, equality, order, literals."""

from __future__ import annotations

import datetime
import enum
import math
import random
import uuid
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.errors import InvalidQueryError
from blobstore.query import MISSING, F, parse, same
from blobstore.query.values import kind_of, literal, order_place, rank
from blobstore.testing.queries import NUMBERS, TEXTS, values


def form(value):
    """Our own idea of equality: a text that is equal exactly for equal values."""
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, int | float):
        return f"number {Fraction(value)!r}"
    if isinstance(value, str):
        return f"text {value!r}"
    if isinstance(value, list):
        return f"[{','.join(map(form, value))}]"
    return "{" + ",".join(sorted(f"{name!r}:{form(item)}" for name, item in value.items())) + "}"


@given(values(), values())
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


def test_kinds():
    assert [kind_of(v) for v in (1, 1.0, True, "", None, [], {}, MISSING)] == [
        *("number", "number", "bool", "text", "null", "array", "object", None),
    ]


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("given_value", "stored"),
    [
        ((1, (2.5, None)), [1, [2.5, None]]),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.True_, True),
        (np.array(3), 3),
        (np.str_("a"), "a"),
        (datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC), "2026-01-31T12:00:00+00:00"),
        (datetime.date(2026, 1, 31), "2026-01-31"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        ({"a": {"b": (1,)}}, {"a": {"b": [1]}}),
        (10**400, 10**400),
        ("é\0", "é\0"),
    ],
)
def test_literals_are_what_storing_makes_of_them(given_value, stored):
    assert repr(literal(given_value)) == repr(stored)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "nan cannot be asked for: metadata holds neither NaN nor infinities"),
        (-math.inf, "-inf cannot be asked for"),
        (np.float64("nan"), "nan cannot be asked for"),
        ([1, {"a": math.inf}], r'the value\[1\]\["a"\] is inf, which JSON does not have'),
        ({1, 2}, "the value is a set, which JSON does not have"),
        (b"x", "the value is a bytes"),
        (object(), "the value is a object"),
        ({1: 2}, "names in JSON are strings"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_what_cannot_be_stored_cannot_be_asked_for(value, message):
    with pytest.raises(InvalidQueryError, match=message):
        literal(value)


def test_integers_that_python_does_not_write_cannot_be_asked_for():
    for wrong in (10**5000, [10**5000]):
        with pytest.raises(InvalidQueryError, match="4300 digits"):
            literal(wrong)
    with pytest.raises(InvalidQueryError, match="takes a list of values, not a very long int"):
        F("a").isin(10**5000)
    with pytest.raises(InvalidQueryError, match="takes a list of at least one condition, not"):
        parse({"$or": 10**5000})


def test_a_literal_shares_nothing_with_what_was_given():
    given_value = {"a": [1]}
    made = literal(given_value)
    given_value["a"].append(2)
    assert made == {"a": [1]}


def test_order_of_numbers_is_exact_up_to_64_bits():
    ordered = [
        *(-(10**400), -(2**63) - 1, -1.5, -1, -0.0, 5e-324, 0.5, 1, 2**53, 2**53 + 1),
        *(float(2**53 + 2), 2**63 - 1, 2**63, 2**70, 1.7e308, 10**400),
    ]
    shuffled = random.Random(3).sample(ordered, len(ordered))
    assert sorted(shuffled, key=order_place) == ordered
    assert order_place(2**63 - 1) < order_place(float(2**63)) == order_place(2**63)
    assert order_place(2**70 + 1) == order_place(float(2**70))
    assert order_place(-(2**63)) == order_place(-float(2**63)) == order_place(-(2**63) - 1)
    assert order_place(10**400) == (0, math.inf) == order_place(10**401)
    assert order_place(1.7976931348623157e308) < order_place(10**400)


def test_order_of_kinds():
    mixed = [MISSING, "b", None, True, [1], "a", False, 3, {"a": 1}, -2.5]
    assert sorted(mixed, key=order_place) == [
        *(-2.5, 3, "a", "b", False, True, MISSING, None, [1], {"a": 1}),
    ]
    assert {rank(v) for v in (MISSING, None, [], {})} == {3}
    assert order_place("a\0b") == order_place("a\1b") < order_place("a\2")


@given(st.sampled_from((*NUMBERS, *TEXTS)), st.sampled_from((*NUMBERS, *TEXTS)))
def test_equal_values_have_one_place(left, right):
    if same(left, right):
        assert order_place(left) == order_place(right)
