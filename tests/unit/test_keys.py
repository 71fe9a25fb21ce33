"""Keys, locations and the ranges that prefixes are."""

from __future__ import annotations

import enum

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from blobstore.errors import InvalidKeyError
from blobstore.keys import (
    MAX_KEY_BYTES,
    is_location,
    new_location,
    random_id,
    successor,
    validate_key,
)

CHARACTERS = st.characters(exclude_categories=["Cs"])


@given(st.text(CHARACTERS.filter(lambda c: c != "\0"), min_size=1, max_size=300))
def test_any_text_is_a_key_and_stays_as_it_is(text):
    assert validate_key(text) == text
    assert type(validate_key(text)) is str


@pytest.mark.parametrize("unit", ["a", "ü", "€", "\U0001f600"])
def test_the_limit_is_in_bytes_of_utf_8(unit):
    size = len(unit.encode())
    longest = unit * (MAX_KEY_BYTES // size)
    assert validate_key(longest) == longest
    with pytest.raises(InvalidKeyError, match="2048") as caught:
        validate_key(longest + unit)
    assert caught.value.key == longest + unit
    assert len(str(caught.value)) < 400


class Name(str):
    __slots__ = ()

    def __str__(self):
        return "another"


class Kind(str, enum.Enum):  # noqa: UP042 - the older form
    A = "a"


def test_subclasses_become_plain_text():
    for key, expected in ((Name("k"), "k"), (Kind.A, "a")):
        assert type(validate_key(key)) is str
        assert validate_key(key) == expected


@pytest.mark.parametrize("wrong", [None, 5, b"k", ("k",), ["k"], 1.5, object(), str], ids=type)
def test_what_is_no_text(wrong):
    with pytest.raises(InvalidKeyError, match="must be a str") as caught:
        validate_key(wrong)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("", "empty"),
        ("\0", "NUL"),
        ("a\0b", "NUL"),
        ("\ud800", "surrogate"),
        ("a\udfffb", "position 1"),
    ],
)
def test_what_no_store_can_keep(wrong, words):
    with pytest.raises(InvalidKeyError, match=words) as caught:
        validate_key(wrong)
    str(caught.value).encode()  # can be shown


def test_locations():
    ids = {random_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(x) == 32 and int(x, 16) >= 0 for x in ids)
    for extension in ("", ".b2nd", ".pkl.lz4", ".bin.zst"):
        location = new_location(extension)
        assert is_location(location)
        assert location.endswith(extension)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0" * 31,
        "0" * 33,
        "A" * 32,
        "g" * 32,
        "0" * 32 + ".",
        "0" * 32 + "..pkl",
        "0" * 32 + ".PKL",
        "0" * 32 + ".pkl~",
        "0" * 32 + ".pkl\n",
        "0" * 32 + "/x",
        "a/" + "0" * 32,
        " " + "0" * 32,
        "\u0660" * 32,
        ".blobstore-id",
    ],
)
def test_what_is_not_ours(name):
    assert not is_location(name)


@given(st.text(CHARACTERS, max_size=4), st.text(CHARACTERS, max_size=4))
@example("", "x")
@example("\U0010ffff", "\U0010ffffx")
@example("a\U0010ffff", "b")
@example("\ud7ff", "\ue000")
@example("run_%", "run_&")
def test_a_prefix_is_a_range(prefix, text):
    end = successor(prefix)
    inside = prefix <= text and (end is None or text < end)
    assert inside is text.startswith(prefix)
    if end is not None:
        end.encode()
        assert prefix < end


@given(st.text(CHARACTERS, max_size=3), st.text(CHARACTERS, max_size=3))
def test_whatever_starts_with_a_prefix_is_below_its_successor(prefix, rest):
    end = successor(prefix)
    assume(end is not None)
    assert prefix <= prefix + rest < end


def test_where_there_is_no_successor():
    assert successor("") is None
    assert successor("\U0010ffff" * 3) is None
