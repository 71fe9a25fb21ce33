"""Names of fields: read, written, looked up."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.entry import Entry
from blobstore.errors import InvalidQueryError
from blobstore.query import MISSING, F, Field, lookup, parse, parse_field, print_field
from blobstore.query.fields import KEYWORDS, SYSTEM_FIELDS
from blobstore.testing.queries import NAMES

NAME = st.one_of(
    st.sampled_from(
        [*NAMES, *KEYWORDS, "AND", "l\u0131ke", "\u017ftartswith", "liKe", "`", "``", ".", "-a"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)


def entry(metadata, **facts):
    facts = {"size": 0, "created_us": 0, "updated_us": 0} | facts
    text = json.dumps(metadata)
    return Entry(1, "k", 1, "c", "pickle", "object", "{}", text, (), **facts)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a", ("a",)),
        ("a.b.c", ("a", "b", "c")),
        ("learning-rate", ("learning-rate",)),
        ("val loss.x y", ("val loss", "x y")),
        ("`a.b`", ("a.b",)),
        ("`a.b`.c", ("a.b", "c")),
        ("a.`b``c`", ("a", "b`c")),
        ("``", ("",)),
        ("a.``", ("a", "")),
        ("`@size`", ("@size",)),
        ("`-a`", ("-a",)),
        ("and", ("and",)),
        ("$gt", ("$gt",)),
        ("é日本", ("é日本",)),
        ("a@b", ("a@b",)),
        ("0", ("0",)),
        ("a\n", ("a\n",)),
    ],
)
def test_names_as_they_are_read(text, path):
    assert parse_field(text) == Field(path)
    assert parse_field(print_field(Field(path))) == Field(path)


@pytest.mark.parametrize(
    ("text", "character"),
    [("", 1), (".", 1), ("a.", 3), (".a", 1), ("a..b", 3), ("`a", 1), ("a`b`", 1), ("`a`b", 1), ("`a``", 1), ("a.@b", 3)],
)  # fmt: skip
def test_names_that_are_none(text, character):
    with pytest.raises(InvalidQueryError, match=rf"see its character {character}\).*backquotes"):
        parse_field(text)


def test_other_types_are_no_names():
    for wrong in (1, None, b"a"):
        with pytest.raises(InvalidQueryError, match="name of a field must be a str"):
            parse_field(wrong)
    with pytest.raises(InvalidQueryError, match="names of metadata are strings, not 1"):
        F(("a", 1))
    with pytest.raises(InvalidQueryError, match="at least one name"):
        F(())
    with pytest.raises(InvalidQueryError, match="lone surrogate"):
        parse_field("a\ud800")


def test_an_unknown_field_of_the_entry_names_those_there_are():
    with pytest.raises(InvalidQueryError) as caught:
        parse_field("@siez")
    assert str(caught.value) == (
        "there is no field @siez: an entry's own are @key, @id, @version, @size, @data_type, "
        "@handler, @created_at, @updated_at; metadata whose name starts with @ is written in "
        "backquotes"
    )


@given(st.lists(NAME, min_size=1, max_size=4).map(tuple))
def test_every_field_is_read_back_by_all_spellings(path):
    field = Field(path)
    printed = str(field)
    assert parse_field(printed) == field == F(path).field == F(printed).field
    assert parse(f"{printed} = 1").field == field
    assert parse({printed: 1}).field == field


def test_system_fields_are_printed_with_their_sign():
    for name in SYSTEM_FIELDS:
        assert str(parse_field(f"@{name}")) == f"@{name}"
        assert parse(f"@{name} exists").field == Field((name,), system=True)


def test_looking_up():
    found = entry({"a": {"b": {"c": 1}, "n": None}, "a.b": 2, "l": [{"x": 1}], "": {"": 3}})
    assert lookup(parse_field("a.b.c"), found) == 1
    assert lookup(parse_field("`a.b`"), found) == 2
    assert lookup(parse_field("``.``"), found) == 3
    assert lookup(parse_field("a.n"), found) is None
    for absent in ("b", "a.x", "a.b.c.d", "a.n.x", "l.x", "l.0", "l.`0`.x", "A", "`@size`"):
        assert lookup(parse_field(absent), found) is MISSING, absent


def test_looking_up_the_entrys_own():
    found = entry({"size": 1}, size=9, created_us=5, updated_us=6)
    read = {name: lookup(Field((name,), system=True), found) for name in SYSTEM_FIELDS}
    assert read == {
        "key": "k",
        "id": 1,
        "version": 1,
        "size": 9,
        "data_type": "object",
        "handler": "pickle",
        "created_at": 5,
        "updated_at": 6,
    }
