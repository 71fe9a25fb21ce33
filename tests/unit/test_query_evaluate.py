"""The reference evaluator and selections, against rules written out and against the oracle."""

from __future__ import annotations

import json
import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore.entry import Entry
from blobstore.errors import InvalidQueryError
from blobstore.query import (
    MISSING,
    Cursor,
    F,
    Query,
    fields_of,
    lookup,
    matcher,
    matches,
    parse,
    parse_field,
    parse_order,
    place_key,
    sort_key,
    values_reader,
)
from blobstore.query.patterns import Wild, pattern_test, split_pattern
from blobstore.testing.metadata_backend.queries import COMPARISONS, KEYED, NO_VALUE, PATTERNS
from blobstore.testing.model_query import holds, select
from blobstore.testing.queries import expressions, metadata, queries

KEYS = st.sampled_from(["", "a", "b", "ab", "é", "\uffff", "\U00010000", "k1", "k2"])
SIZES = st.integers(0, 3)


def entry(metadata=None, key="k", **facts):
    text = json.dumps(metadata or {})
    facts = {"size": 0, "created_us": 2, "updated_us": 2, "version": 1} | facts
    return Entry(
        1, key, facts["version"], "c", "pickle", "object", "{}", text, (),
        facts["size"], facts["created_us"], facts["updated_us"],
    )  # fmt: skip


@pytest.mark.parametrize(("where", "keys"), COMPARISONS + PATTERNS)
def test_every_rule_by_example(where, keys):
    holding = {
        key
        for key, value in KEYED.items()
        if matches(where, entry({} if value is NO_VALUE else {"v": value}))
    }
    assert holding == set(keys)


@settings(max_examples=300)
@given(st.data())
def test_the_evaluator_agrees_with_the_oracle(data):
    documents = data.draw(st.lists(metadata(), min_size=1, max_size=4))
    expression = data.draw(expressions(documents))
    holds_for = matcher(expression)
    for document in [*documents, {}]:
        one = entry(document, size=data.draw(SIZES))
        assert holds_for(one) is holds(expression, one)
        assert matches(~expression, one) is not holds_for(one)


@settings(max_examples=300)
@given(st.data())
def test_selections_agree_with_the_oracle(data):
    keyed = data.draw(st.dictionaries(KEYS, metadata(), max_size=6))
    query = data.draw(queries(keyed))
    entries = [entry(document, key, size=data.draw(SIZES)) for key, document in keyed.items()]
    found = sorted(filter(query.matcher(), entries), key=sort_key(query.order))
    assert found[: query.limit] == select(entries, query)


@given(st.data())
def test_pages_by_cursor_are_the_whole(data):
    keyed = data.draw(st.dictionaries(KEYS, metadata(), max_size=6))
    order = data.draw(queries(keyed)).order
    entries = [entry(document, key) for key, document in keyed.items()]
    whole = sorted(entries, key=sort_key(order))
    paged = []
    after = None
    while True:
        behind = filter(Query(order=order, after=after).matcher(), entries)
        page = sorted(behind, key=sort_key(order))[:2]
        if not page:
            break
        paged += page
        after = Cursor.of(order, page[-1])
    assert paged == whole


def test_the_drawn_conditions_hit():
    """A property test that never finds anything would prove nothing."""
    hits = misses = 0

    @settings(max_examples=300, database=None, derandomize=True)
    @given(st.data())
    def count(data):
        nonlocal hits, misses
        documents = data.draw(st.lists(metadata(), min_size=2, max_size=4))
        holds_for = matcher(data.draw(expressions(documents)))
        found = [holds_for(entry(document)) for document in documents]
        hits += any(found)
        misses += not all(found)

    count()
    assert hits > 100
    assert misses > 100


def test_a_condition_on_the_entry_alone_does_not_read_its_metadata():
    broken = entry()._replace(metadata_text="no JSON")
    assert matches(F("@key") == "k", broken)
    assert sort_key(parse_order("@size"))(broken) == ((0, 0), "k")
    with pytest.raises(json.JSONDecodeError):
        matches(F("key") == "k", broken)


def test_fields_of():
    asked = parse("a = 1 and (not b.c exists or @size in (1) or a like 'x' or d contains 1)")
    assert fields_of(asked) == {parse_field(name) for name in ("a", "b.c", "@size", "d")}
    assert fields_of(parse("x startswith 'a'")) == {parse_field("x")}


def test_reading_several_values():
    read = values_reader([parse_field("a"), parse_field("@size"), parse_field("b.c")])
    assert read(entry({"a": None}, size=3)) == (None, 3, MISSING)
    assert values_reader([parse_field("@key")])(entry()) == ("k",)
    assert lookup(parse_field("a"), entry()) is MISSING


def test_missing_is_one_thing():
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING
    assert repr(MISSING) == "MISSING"


# --- patterns


@pytest.mark.parametrize(
    ("pattern", "pieces"),
    [
        ("", ()),
        ("abc", ("abc",)),
        ("%a_", (Wild.ANY, "a", Wild.ONE)),
        (r"\%\_\\\a", ("%_\\a",)),
        ("a%%b", ("a", Wild.ANY, Wild.ANY, "b")),
    ],
)
def test_pieces_of_patterns(pattern, pieces):
    assert split_pattern(pattern) == pieces


@pytest.mark.parametrize("pattern", ["\\", "a\\", "\\\\\\"])
def test_a_backslash_must_take_something(pattern):
    with pytest.raises(InvalidQueryError, match="ends in a single backslash"):
        F("a").like(pattern)


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("", [""], ["a"]),
        ("%", ["", "a", "a\nb"], []),
        ("%%", ["", "a"], []),
        ("_", ["a", "\n", "\U0001f389"], ["", "ab"]),
        ("a%a", ["aa", "aba", "aaa"], ["a", "ab"]),
        ("%ab%b", ["abb", "xabyb", "ababb"], ["ab", "bab"]),
        ("%a_c%", ["abc", "xa\ncx"], ["ac", "ABC"]),
        ("a%b%c", ["abc", "a1b2c", "abcbc"], ["acb", "ac"]),
        ("%_%", ["a", "ab"], [""]),
        ("._*+?", [".x*+?"], ["xx*+?"]),
    ],
)
def test_what_fits_a_pattern(pattern, fitting, others):
    test = pattern_test(pattern)
    assert all(test(text) for text in fitting)
    assert not any(test(text) for text in others)


def test_no_pattern_takes_long():
    start = time.perf_counter()
    assert not pattern_test("%a" * 50 + "%b")("a" * 20_000)
    assert not pattern_test("%" * 5000 + "b")("a" * 20_000)
    assert time.perf_counter() - start < 2


# --- selections


def test_selecting():
    def chosen(query, one):
        return query.matcher()(one)

    assert chosen(Query(), entry())
    assert chosen(Query(prefix="k"), entry(key="key"))
    assert not chosen(Query(prefix="K"), entry(key="key"))
    for wild in ("%", "_", "*", "k%", ".", "[k]"):
        assert not chosen(Query(prefix=wild), entry(key="key"))
        assert chosen(Query(prefix=wild), entry(key=wild + "x"))
    assert chosen(Query(after="a"), entry(key="b"))
    assert not chosen(Query(after="b"), entry(key="b"))
    assert not chosen(Query(after="c"), entry(key="b"))
    assert chosen(Query(after=Cursor((), "a")), entry(key="b"))
    assert not chosen(Query(after=Cursor((), "b")), entry(key="b"))
    assert chosen(Query(after="\uffff"), entry(key="\U00010000"))  # by code point
    assert chosen(Query("k", F("a") == 1), entry({"a": 1.0}))
    assert not chosen(Query("x", F("a") == 1), entry({"a": 1}))


def test_ranks_ascend_either_way():
    stored = {"n1": 1, "n2": 2.5, "ta": "a", "tb": "b", "f": False, "t": True, "x": None, "y": [1]}
    entries = [entry({"v": value}, key) for key, value in stored.items()] + [entry(key="z")]
    assert [e.key for e in sorted(entries, key=sort_key(parse_order("v")))] == [
        *("n1", "n2", "ta", "tb", "f", "t", "x", "y", "z"),
    ]
    assert [e.key for e in sorted(entries, key=sort_key(parse_order("-v")))] == [
        *("n2", "n1", "tb", "ta", "t", "f", "x", "y", "z"),
    ]


def test_several_levels_and_ties():
    entries = [entry({"a": a, "b": b}, f"{a}{b}{i}") for a in (1, 2) for b in "xy" for i in (2, 1)]
    ordered = sorted(entries, key=sort_key(parse_order(["-a", "b"])))
    assert [e.key for e in ordered] == ["2x1", "2x2", "2y1", "2y2", "1x1", "1x2", "1y1", "1y2"]
    ordered = sorted(entries, key=sort_key(parse_order(["a", "-b"])))
    assert [e.key for e in ordered] == ["1y1", "1y2", "1x1", "1x2", "2y1", "2y2", "2x1", "2x2"]


def test_places_need_what_the_order_needs():
    order = parse_order(["a", "-b"])
    cursor = Cursor.of(order, entry({"a": 1}))
    assert cursor == Cursor((1, MISSING), "k")
    assert place_key(order, cursor.values, cursor.key) == sort_key(order)(entry({"a": 1.0}))
    assert Query(order=order, after=cursor).after == cursor
    with pytest.raises(InvalidQueryError, match="has 2 values, for an order by 1 fields"):
        Query(order=order[:1], after=cursor)
    with pytest.raises(InvalidQueryError, match="after='k' is a key, but the order is not"):
        Query(order=order, after="k")
