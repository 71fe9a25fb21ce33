"""Indexes on fields in SQLite: which queries they serve, what is said of it, and what they survive."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from blobstore.backends.metadata import searching
from blobstore.backends.metadata.sql import SqlBackend
from blobstore.errors import NotSupportedError
from blobstore.protocols import Delete
from blobstore.query import Field, Query, parse, parse_field, parse_order
from blobstore.testing.metadata_backend import commit, make_put, put

ACCURACY, MODEL, RUN = map(parse_field, ["accuracy", "model", "run.name"])


def ask(where=None, order=None, **others):
    return Query(where=parse(where), order=parse_order(order), **others)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index.db"


@pytest.fixture
def backend(path):
    with contextlib.closing(SqlBackend(path)) as backend:
        fill(backend)
        yield backend


def fill(backend, count=60):
    commit(
        backend,
        *(
            make_put(
                f"k{i:03}",
                metadata={
                    "accuracy": i / 100 if i % 10 else "none",
                    "model": "vit" if i % 3 else None,
                    "run": {"name": f"r{i:03}"},
                },
            )
            for i in range(count)
        ),
    )


def names(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE 'field%'"
        )
        return [name for (name,) in found]


SERVED = [
    (ask("accuracy > 0.3", "-accuracy", limit=10), ACCURACY, "(<expr>=? AND <expr>>?)"),
    (ask("accuracy between 0.3 and 0.4", "accuracy"), ACCURACY, "<expr>>? AND <expr><?)"),
    (ask(None, "accuracy", limit=1), ACCURACY, "(<expr>=?)"),
    (ask(None, "-accuracy", limit=1), ACCURACY, "(<expr>=?)"),
    (ask("accuracy = 0.11"), ACCURACY, "(<expr>=? AND <expr>=?)"),
    (ask("accuracy in (0.11, 0.12, 1e300)", prefix="k"), ACCURACY, "(<expr>=? AND <expr>=?)"),
    (ask("accuracy = 0.11 and model = 'vit'", "-@size"), ACCURACY, "(<expr>=? AND <expr>=?)"),
    (ask("run.name = 'r011'", "-accuracy"), RUN, "(<expr>=? AND <expr>=?)"),
    (ask("run.name startswith 'r01'"), RUN, "<expr>>? AND <expr><?)"),
    (ask("run.name in ('r011', 'r012')"), RUN, "(<expr>=? AND <expr>=?)"),
]


@pytest.mark.parametrize(("query", "field", "terms"), SERVED)
def test_the_plan_goes_by_the_index(backend, query, field, terms):
    without = list(backend.scan(query))
    assert without
    told = backend.explain(query)
    assert (told.indexes, told.scans) == ((), True)
    if field is ACCURACY and len(query.order) < 2:
        assert told.suggestion == ACCURACY
    made = [backend.create_index(one) for one in (ACCURACY, RUN)]
    told = backend.explain(query)
    assert [one.field for one in told.indexes] == [field]
    assert f"USING INDEX {made[field is RUN].name}" in told.plan
    assert terms in told.plan
    assert "USING INDEX sqlite_autoindex" not in told.plan
    assert (told.scans, told.suggestion) == (False, None)
    assert str(field) in str(told)
    assert list(backend.scan(query)) == without
    assert list(backend.keys(query)) == [entry.key for entry in without]
    assert backend.count(query) == len(without)


def test_an_order_is_read_from_the_index_without_sorting_it_all(backend):
    backend.create_index(ACCURACY)
    for order in ("accuracy", "-accuracy"):
        plan = backend.explain(ask(None, order)).plan
        assert "TEMP B-TREE FOR ORDER BY" not in plan
        # With the rank given, what is sorted is only what has the same value.
        assert plan.count("RIGHT PART OF ORDER BY") == (3 if order[0] == "-" else 0)


def test_suggestions(backend):
    """Equality before a choice before a range, and the order last."""
    for where, order, expected in [
        ("model = 'vit' and accuracy > 1", None, "model"),
        ("accuracy > 1 and model in ('a', 'b')", None, "model"),
        ("accuracy > 1 and not model = 'vit'", None, "accuracy"),
        ("accuracy > 1 or model = 'vit'", None, None),
        ("not accuracy > 1", "-run.name", "run.name"),
        ("@size > 1", "@size", None),
        ("model != 'vit' and model contains 'v' and model like 'v%'", None, None),
        (None, ["run.name", "accuracy"], "run.name"),
        ("model = [1]", None, None),
        ('`a"b` = 1', None, None),
    ]:
        told = backend.explain(ask(where, order))
        wanted = None if expected is None else parse_field(expected)
        assert (told.scans, told.suggestion) == (True, wanted), where
    for query in (Query(), Query(prefix="k"), ask(None, "-@key"), ask("@key = 'k001'")):
        assert not backend.explain(query).scans


def test_an_index_is_not_taken_for_what_is_common(backend, monkeypatch):
    """Going through keys in their order gives the first page at once."""
    backend.create_index(ACCURACY)
    monkeypatch.setattr(searching, "_FEW", 10)
    told = backend.explain(ask("accuracy > 0.1", limit=5))
    assert (told.indexes, told.scans, told.suggestion) == ((), True, None)
    assert "USING INDEX sqlite_autoindex_entries_1 (namespace=?)" in told.plan
    assert [one.field for one in backend.explain(ask("accuracy > 0.55")).indexes] == [ACCURACY]


def test_making_and_dropping(backend, path):
    assert backend.indexes() == []
    assert backend.drop_index(ACCURACY) is False
    made = backend.create_index(ACCURACY)
    assert backend.create_index(ACCURACY) == made
    assert backend.create_index(RUN).field == RUN
    assert [one.field for one in backend.indexes()] == [ACCURACY, RUN]
    assert len(names(path)) == 2
    assert backend.drop_index(ACCURACY) is True
    assert backend.drop_index(ACCURACY) is False
    assert [one.field for one in backend.indexes()] == [RUN]
    assert len(names(path)) == 1
    assert backend.explain(ask("accuracy > 0.1")).suggestion == ACCURACY
    assert backend.check() == []


def test_indexes_are_kept_when_the_store_is_opened_anew(backend, path):
    made = backend.create_index(ACCURACY)
    for readonly in (False, True):
        with contextlib.closing(SqlBackend(path, readonly=readonly)) as other:
            assert other.indexes() == [made]
            assert other.explain(ask("accuracy = 0.11")).indexes == (made,)


def test_an_index_that_another_process_dropped_costs_no_answer(backend, path):
    backend.create_index(ACCURACY)
    query = ask("accuracy > 0.3", "-accuracy")
    expected = list(backend.keys(query))
    with contextlib.closing(SqlBackend(path)) as other:
        other.drop_index(ACCURACY)
        assert list(backend.keys(query)) == expected  # by what it knew a moment ago
        assert backend.indexes() == []


def test_a_readonly_store_makes_none(backend, path):
    backend.create_index(ACCURACY)
    with contextlib.closing(SqlBackend(path, readonly=True)) as reader:
        for call in (reader.create_index, reader.drop_index):
            with pytest.raises(NotSupportedError, match="readonly"):
                call(ACCURACY)
    assert len(names(path)) == 1


def test_stores_of_one_database_have_their_own(backend, path):
    with contextlib.closing(SqlBackend(path, namespace="o'ther")) as other:
        fill(other, 30)
        made = other.create_index(ACCURACY)
        assert backend.indexes() == []
        assert backend.explain(ask("accuracy = 0.11")).suggestion == ACCURACY
        assert backend.create_index(ACCURACY).name != made.name
        assert other.drop_index(ACCURACY)
        assert backend.explain(ask("accuracy = 0.11")).indexes == tuple(backend.indexes())
        assert backend.count(ask("accuracy >= 0")) == 54
        assert other.count(ask("accuracy >= 0")) == 27


ODD = [
    "a.b",
    "odd name",
    "'",
    "''; DROP TABLE entries; --",
    "é\U0001f600",
    "[0]",
    "$",
    "%s",
    ":x",
    "?",
]


@pytest.mark.parametrize("name", ODD)
def test_names_are_data(backend, path, name):
    field = Field((name, "x"))
    commit(backend, *(make_put(f"o{i}", metadata={name: {"x": i}}) for i in range(5)))
    made = backend.create_index(field)
    assert backend.indexes() == [made]
    query = ask(None, "-" + str(field), prefix="o", limit=2)
    assert list(backend.keys(query)) == ["o4", "o3"]
    query = ask(f"{field} >= 3")
    told = backend.explain(query)
    assert told.indexes == (made,)
    assert name not in told.statement or name in ("'", "?", "$", "%s", "[0]")
    assert list(backend.keys(query)) == ["o3", "o4"]
    assert backend.drop_index(field)


@pytest.mark.parametrize("name", ["", 'a"b', "a\\b", "a\nb", "a\0b", "a\1b"])
def test_names_that_sqlite_cannot_address_are_answered_all_the_same(backend, name):
    field = Field((name,))
    for i in (2, 0, 1):
        put(backend, f"o{i}", metadata={name: i})
    with pytest.raises(NotSupportedError, match="cannot address"):
        backend.create_index(field)
    order = parse_order(f"-`{name}`")
    assert list(backend.keys(Query(order=order, limit=2))) == ["o2", "o1"]
    told = backend.explain(Query(order=order))
    assert told.scans
    assert told.suggestion is None
    assert "Python" in told.plan


def test_an_entrys_own_facts_have_no_index_of_this_kind(backend):
    with pytest.raises(NotSupportedError, match="@size"):
        backend.create_index(parse_field("@size"))
    assert backend.drop_index(parse_field("@size")) is False


def test_what_changes_while_pages_are_read(backend, monkeypatch):
    """What was deleted or no longer matches is left out; what matches still is given as it is."""
    monkeypatch.setattr(searching, "_PAGE", 10)
    for order in (None, "accuracy", "@size"):
        found = backend.scan(ask("accuracy > 0", order))
        first = next(found)
        commit(backend, Delete("k058"), make_put("k059", metadata={"accuracy": -1}))
        keys = [first.key, *(entry.key for entry in found)]
        assert len(keys) == len(set(keys)) == 52
        assert not {"k058", "k059"} & set(keys)
        fill(backend)


def test_a_page_that_was_overtaken_is_confirmed(backend):
    """Between finding rows and reading their entries."""
    search = backend._search
    fetch = search.fetch

    def late(keys):
        commit(backend, Delete("k001"), make_put("k002", metadata={}), make_put("k003"))
        return fetch(keys)

    search.fetch = late
    keys = list(backend.scan(ask("accuracy > 0", limit=3)))
    assert [entry.key for entry in keys] == ["k004", "k005", "k006"]


def test_many_conditions_are_decided_in_part_by_the_evaluator(backend):
    """A database takes only so many in one statement."""
    where = " and ".join(f"not accuracy = {i / 100}" for i in range(1, 50))
    where = f"({where}) and " + " and ".join(f"not model = 'm{i}'" for i in range(3000))
    assert backend.count(ask(where)) == 15


@pytest.mark.parametrize("count", [1, 2000])
def test_long_lists_are_one_parameter(backend, count):
    wanted = [*range(count), *(f"r{i:03}" for i in range(count))]
    query = ask({"run.name": {"$in": wanted}})
    assert backend.count(query) == min(count, 60)
    assert len(backend.explain(query).statement) < 2000


def test_a_pattern_longer_than_sqlite_takes_is_answered(backend):
    query = Query(where=parse({"run.name": {"$like": "r00" + "%" * 60_000 + "_"}}))
    assert backend.count(query) == 10
