"""Random metadata and random queries: every index gives the answers of the reference evaluator."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobstore.backends.metadata import searching
from blobstore.backends.metadata.json import JsonBackend
from blobstore.backends.metadata.sql import SqlBackend
from blobstore.keys import random_id
from blobstore.protocols import Delete
from blobstore.query import Cursor, Field, Order, Query, rank, sort_key, values_reader
from blobstore.query.conditions import among, compare, contains, exists, like, starts_with
from blobstore.query.tree import And, Exists, Not, Or
from blobstore.query.values import MISSING
from blobstore.testing.metadata_backend import make_put

EXAMPLES = max(settings.default.max_examples // 5, 10)
QUERIES = 12

NUMBERS = [
    *(0, 1, -1, 1.0, -0.0, 0.1, 1.5, 2, 2.5, 7, 5e-324, 1.7976931348623157e308),
    *(2**53, 2**53 + 1, float(2**53), 10**16, 1e16, 10**16 + 1, 2**62 - 50, 2**62, float(2**62)),
    *(2**63 - 1, 2**63, float(2**63), 2**63 + 1, -(2**63), -float(2**63), -(2**63) - 1, 10**19),
    *(10**30, 1e30, 10**30 + 1, 10**400, 10**400 + 1, -(10**400), 1697040000000000001),
]
TEXTS = [
    *("", "a", "b", "A", "ab", "abc", "ba", "a b", "1", "true", "null", "é", "e\u0301", "ß", "ﬃ"),
    *("a%", "a_", "_", "%", "a\\", "\\", "a*b", "*", "?", "[a]", "]", "[", "'", '"', "a'b", "^a"),
    *("\0", "\1", "a\0", "a\1", "a\0b", "a\1b", "\\u0000", "\\u0001", "\\", "a\\u0000", "0000"),
    *("\n", "\t", "\x7f", "\x1f", "\u2028", "\uffff", "\ue000", "\U0001f600", "\U0010ffff"),
    *("z" * 127, "z" * 128, "z" * 129, "z" * 127 + "a", "z" * 128 + "a", "z" * 128 + "b"),
]
CLUSTERS = [
    [0, 1, 1.0, True, False, None, "1", "a", [], {}],
    [None, True, "a", 1, [1], [1, "a"], {"a": 1}, {"a": None}],
    [10**30, 10**30 + 1, 1e30, 2**70, 2.0**70, 10**400, 10**400 + 1, -(10**400)],
    [2**63 - 1, 2**63, 2.0**63, 2**63 + 1, -(2**63), -(2.0**63), -(2**63) - 1],
    [2**62, 2**62 - 50, 2.0**62, 10**16, 1e16, 10**16 + 1, 1697040000000000001],
    ["z" * 127, "z" * 128, "z" * 129, "z" * 127 + "a", "z" * 128 + "a", "z" * 128 + "b"],
    ["\0", "\1", "a\0", "a\1", "a\0b", "a\1b", "\\u0000", "\\u0001", "a\\u0000", "0000"],
    NUMBERS,
    TEXTS,
]
"""Values that are easily taken for one another; those of an example are mostly of one cluster."""
NAMES = ["a", "b", "c", "a.b", "odd name", "", 'q"', "b\\", "\n", "\0", "\1", "$", "0", "[0]", "é"]
NAMES += ["@size", "and", "`", "'", "\\u0000", "x" * 300, "%s", ":a", "?", "A"]

others = st.sampled_from([*NUMBERS, *TEXTS, None, True]) | st.integers(-3, 3)
others |= st.floats(-4, 4, width=16) | st.integers()
others |= st.text(st.sampled_from("ab\0\1%_\\*[]?é\"'"), max_size=4) | st.text(max_size=5)
others |= st.floats(allow_nan=False, allow_infinity=False)
usual = st.sampled_from(["a", "b", "c"])
names = st.one_of(usual, usual, usual, st.sampled_from(NAMES))


def values_of(cluster):
    """JSON values, mostly of a cluster."""
    some = st.sampled_from(cluster)
    return st.recursive(
        st.one_of(some, some, some, others),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=3,
    )


paths = st.sampled_from([("a",), ("b",), ("a",), ("b",), ("c", "a")])
paths |= st.lists(names, min_size=1, max_size=3).map(tuple)
INDEXED = [Field(path) for path in [("a",), ("b",), ("c", "a"), ("odd name",)]]
SYSTEM = ["key", "id", "version", "size", "data_type", "handler", "created_at", "updated_at"]
TIMES = [
    "1970-01-01",
    "1970-01-01T00:00:00.000002Z",
    "1970-01-01T01:00:00.000003+01:00",
    "1969-12-31T23:59:59",
    "2026-01-31T12:00:00",
]
"""The entries here are of the first microseconds of 1970."""

user_fields = paths.map(Field)
system_fields = st.sampled_from(SYSTEM).map(lambda name: Field((name,), system=True))
fields = st.one_of(user_fields, user_fields, user_fields, system_fields)


@st.composite
def leaves(draw, stored):
    """A condition, often on a field that is there and with a value that is, or nearly."""
    paths_there, values_there, values = stored
    known = st.sampled_from(paths_there) if paths_there else fields
    field = draw(st.one_of(known, known, known, fields))
    near = values | st.sampled_from(values_there) if values_there else values
    orderable = [v for v in values_there if rank(v) < 2] or [0]
    sortable = st.sampled_from(orderable) | values.filter(lambda v: rank(v) < 2)
    text = st.sampled_from([v for v in orderable if isinstance(v, str)] or [""])
    text |= st.sampled_from(TEXTS)
    if field.system:
        is_text = field.path[0] in ("key", "data_type", "handler")
        near = sortable = text if is_text else st.sampled_from(NUMBERS) | st.integers(0, 30)
        if field.path[0].endswith("_at"):
            near = sortable = st.sampled_from(TIMES)
        if not is_text:
            kind = draw(st.sampled_from(["=", "!=", "<", "in", "not in", "exists"]))
        else:
            kind = draw(st.sampled_from(KINDS))
    else:
        kind = draw(st.sampled_from(KINDS))
    if kind in ("=", "!="):
        return compare(field, kind, draw(near))
    if kind == "<":
        return compare(field, draw(st.sampled_from(["<", "<=", ">", ">="])), draw(sortable))
    if kind in ("in", "not in"):
        wanted = draw(st.lists(near, max_size=4))
        return among(field, wanted, negated=kind == "not in")
    if kind == "exists":
        return exists(field)
    if kind == "contains":
        if field.system:
            return contains(field, draw(text))
        inside = [one for v in values_there if isinstance(v, list) for one in v]
        return contains(field, draw(st.sampled_from(inside) | near if inside else near | text))
    if kind == "startswith":
        return starts_with(field, draw(text)[: draw(st.integers(0, 3))])
    pattern = draw(text | st.text(st.sampled_from("ab%_\\*[?é\0"), max_size=6))
    try:
        return like(field, pattern)
    except ValueError:  # a backslash at its end
        return like(field, pattern + "\\")


KINDS = ["=", "=", "!=", "<", "<", "in", "not in", "exists", "contains", "startswith", "like"]


def expressions(stored):
    """Conditions on what is stored, and combinations of them."""
    return st.recursive(
        leaves(stored),
        lambda inner: (
            st.lists(inner, min_size=2, max_size=3).map(lambda items: And(tuple(items)))
            | st.lists(inner, min_size=2, max_size=3).map(lambda items: Or(tuple(items)))
            | inner.map(Not)
        ),
        max_leaves=5,
    )


orders = st.lists(st.builds(Order, fields, st.booleans()), max_size=3).map(tuple)
keys = st.text(st.sampled_from("abz/é\U0001f600%_"), min_size=1, max_size=4)


def fields_in(document, path=()):
    """All fields of metadata, and their values."""
    for name, value in document.items():
        yield Field((*path, name)), value
        if isinstance(value, dict):
            yield from fields_in(value, (*path, name))


def canonical(value):
    """Equal for values that are equal in JSON, and only for them."""
    if isinstance(value, dict):
        return ("{", frozenset((name, canonical(one)) for name, one in value.items()))
    if isinstance(value, list):
        return ("[", tuple(map(canonical, value)))
    return (type(value).__name__ if isinstance(value, bool) else "", value)


@pytest.fixture(scope="module")
def backends(postgres_server, tmp_path_factory):
    """One of each kind; of those in databases also one with indexes on fields."""
    folder = tmp_path_factory.mktemp("differential")
    url = postgres_server.new_database()
    with contextlib.ExitStack() as stack:

        def opened(backend):
            return stack.enter_context(contextlib.closing(backend))

        found = {
            "json": opened(JsonBackend(folder / "index.json")),
            "sqlite": opened(SqlBackend(folder / "index.db")),
            "sqlite, indexed": opened(SqlBackend(folder / "index.db", namespace="it's")),
            "postgresql": opened(SqlBackend(url)),
            "postgresql, indexed": opened(SqlBackend(url, namespace="it's")),
        }
        for name, backend in found.items():
            if "indexed" in name:
                for field in INDEXED:
                    backend.create_index(field)
        yield found
    postgres_server.drop_database(url)


@pytest.mark.parametrize("cluster", CLUSTERS[:-2], ids=lambda values: repr(values[0])[:8])
def test_values_that_look_alike_are_told_apart(backends, monkeypatch_pages, cluster):
    """Each is compared with each, and each is a place to go on from."""
    documents = {f"{i:02}": {"a": value} for i, value in enumerate(cluster)} | {"none": {"b": 1}}
    field = Field(("a",))
    leaves = [Exists(field)]
    for value in cluster:
        leaves += [compare(field, op, value) for op in ("=", "!=")]
        leaves += [among(field, [value, 5, "x"], negated=negated) for negated in (False, True)]
        leaves.append(contains(field, value))
        if rank(value) < 2:
            leaves += [compare(field, op, value) for op in ("<", "<=", ">", ">=")]
        if isinstance(value, str):
            leaves += [starts_with(field, value), like(field, value.replace("\\", "\\\\") + "%")]
    for name, backend in backends.items():
        fill(backend, documents)
        entries = list(backend.scan(Query()))
        for leaf in leaves:
            for where in (leaf, Not(leaf)):
                query = Query(where=where)
                expected = [entry.key for entry in filter(query.matcher(), entries)]
                assert list(backend.keys(query)) == expected, (name, where)
        for few, descending in itertools.product([0, 5000], [False, True]):
            monkeypatch_pages(2, few)
            order = (Order(field, descending),)
            check(name, backend, entries, Query(order=order), (field,))
            check(name, backend, entries, Query(where=leaves[3], order=order), (field,))
            for entry in entries:
                check(name, backend, entries, Query(order=order, after=Cursor.of(order, entry)), ())
        monkeypatch_pages(500, 5000)
        check(name, backend, entries, Query(), (field,))


def fill(backend, documents):
    """Have these entries, and no others."""
    old = [Delete(key) for key in backend.keys(Query())]
    new = [
        make_put(key, metadata=document, size=i % 3, data_type=TEXTS[i], now_us=i)
        for i, (key, document) in enumerate(documents.items())
    ]
    backend.commit([*old, *new], random_id())


@settings(
    max_examples=EXAMPLES,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_all_indexes_answer_like_the_evaluator(backends, monkeypatch_pages, data):
    values = values_of(data.draw(st.sampled_from(CLUSTERS)))
    documents = data.draw(
        st.dictionaries(keys, st.dictionaries(names, values, max_size=5), min_size=2, max_size=12)
    )
    entries = {}
    for name, backend in backends.items():
        fill(backend, documents)
        entries[name] = list(backend.scan(Query()))
    there = [pair for document in documents.values() for pair in fields_in(document)]
    fields_there = list(dict.fromkeys(field for field, _ in there))
    stored = fields_there, [value for _, value in there], values
    for _ in range(QUERIES):
        monkeypatch_pages(
            data.draw(st.sampled_from([2, 3, 500])), data.draw(st.sampled_from([0, 2, 5000]))
        )
        query = draw_query(data, documents, stored)
        wanted = data.draw(st.lists(fields, max_size=2))
        for name, backend in backends.items():
            check(name, backend, entries[name], query, wanted)


def draw_query(data, documents, stored):
    some = expressions(stored)
    where = data.draw(st.one_of(st.none(), some, some, some, some))
    prefix = data.draw(st.sampled_from(["", "", "", "a", "z/", "é"]))
    order = data.draw(orders)
    limit = data.draw(st.sampled_from([None, None, 0, 1, 3, 10]))
    after = None
    if documents and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(documents)) | keys)
        if not order:
            after = data.draw(st.sampled_from([key, key + "\0", key + "\ud800", Cursor((), key)]))
        else:
            document = dict(fields_in(documents.get(key, {})))
            # Where the key comes before other fields, only places of entries make sense.
            free = all(one.field != Field(("key",), system=True) for one in order)
            after = Cursor(
                tuple(
                    cursor_value(one.field, key, document, data.draw(stored[2]) if free else 7)
                    for one in order
                ),
                key,
            )
    return Query(prefix, where, order, after, limit)


def cursor_value(field, key, document, other):
    """A value of the field, or another that it could have."""
    if not field.system:
        return document.get(field, other if other != 7 else MISSING)
    return key if field.path[0] in ("key", "data_type", "handler") else 1


def check(name, backend, entries, query, wanted):
    """Compare a backend's answers with those worked out from its entries."""
    chosen = sorted(filter(query.matcher(), entries), key=sort_key(query.order))[: query.limit]
    expected = [entry.key for entry in chosen]
    assert [entry.key for entry in backend.scan(query)] == expected, name
    assert list(backend.keys(query)) == expected, name
    assert backend.count(query) == len(expected), name
    read = values_reader(wanted)
    tally = Counter()
    for found, count in backend.tally(query, wanted):
        tally[tuple(map(canonical, found))] += count
    assert tally == Counter(tuple(map(canonical, read(entry))) for entry in chosen), name


@pytest.fixture
def monkeypatch_pages(monkeypatch):
    """Set how many entries a page has, and up to how many of them an index on a field is taken."""

    def choose(page, few):
        monkeypatch.setattr(searching, "_PAGE", page)
        monkeypatch.setattr(searching, "_KEY_PAGE", page)
        monkeypatch.setattr(searching, "_TALLY_PAGE", page)
        monkeypatch.setattr(searching, "_LONGEST_PAGE", page * 2)
        monkeypatch.setattr(searching, "_FEW", few)

    return choose
