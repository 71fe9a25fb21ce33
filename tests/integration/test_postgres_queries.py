"""Indexes on fields in PostgreSQL: the plans, and how they are made beside others at work."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import sqlalchemy as sa

from blobstore.backends.metadata.sql import SqlBackend
from blobstore.errors import NotSupportedError, UnavailableError
from blobstore.query import Field, Query, parse, parse_field, parse_order
from blobstore.testing.metadata_backend import commit, make_put

ACCURACY, MODEL, RUN = map(parse_field, ["accuracy", "model", "run.name"])


def ask(where=None, order=None, **others):
    return Query(where=parse(where), order=parse_order(order), **others)


def fill(backend, count=3000):
    for start in range(0, count, 1000):
        commit(
            backend,
            *(
                make_put(
                    f"k{i:05}",
                    metadata={
                        "accuracy": i / count if i % 10 else "none",
                        "model": "vit" if i % 3 else None,
                        "run": {"name": f"r{i:05}" + "x" * (i % 200)},
                    },
                )
                for i in range(start, min(start + 1000, count))
            ),
        )


@pytest.fixture
def backend(postgres_url):
    with contextlib.closing(SqlBackend(postgres_url)) as backend:
        yield backend


@pytest.fixture
def sql(postgres_server, postgres_url):
    with postgres_server.connect(sa.make_url(postgres_url).database) as connection:
        connection.autocommit = True
        yield lambda statement, *values: connection.execute(statement, values)


def names(sql):
    found = sql("SELECT indexname FROM pg_indexes WHERE starts_with(indexname, 'field_')")
    return [name for (name,) in found.fetchall()]


def test_plans_go_by_the_indexes(backend, sql):
    fill(backend)
    queries = [
        (ask("accuracy > 0.9", "-accuracy", limit=10), ACCURACY),
        (ask("accuracy between 0.3 and 0.4", "accuracy", limit=10), ACCURACY),
        (ask(None, "accuracy", limit=1), ACCURACY),
        (ask(None, "-accuracy", limit=1), ACCURACY),
        (ask("accuracy = 0.111"), ACCURACY),
        (ask("accuracy in (0.111, 0.112)"), ACCURACY),
        (ask("run.name startswith 'r0001'", limit=10), RUN),
        (ask("run.name = 'r00011xxxxxxxxxxx'"), RUN),
        (ask({"run.name": {"$in": ["r00011xxxxxxxxxxx", "r00199" + "x" * 199]}}), RUN),
        (ask("run.name > 'r0299'", "run.name"), RUN),
    ]
    expected = [list(backend.keys(query)) for query, _ in queries]
    assert all(expected)
    made = {field: backend.create_index(field) for field in (ACCURACY, RUN)}
    sql("VACUUM ANALYZE entries")
    for (query, field), keys in zip(queries, expected, strict=True):
        told = backend.explain(query)
        assert told.indexes == (made[field],), told
        assert f"using {made[field].name}" in told.plan or f"on {made[field].name}" in told.plan
        assert "Index Cond: (CASE" in told.plan or "Index Cond: ((CASE" in told.plan, told.plan
        assert "entries_namespace_key_key" not in told.plan
        assert "Seq Scan" not in told.plan
        assert (told.scans, told.suggestion) == (False, None)
        assert list(backend.keys(query)) == keys
        assert backend.count(query) == len(keys) if query.limit is None else True


def test_an_order_is_not_sorted_where_the_index_has_it(backend, sql):
    fill(backend, 1000)
    backend.create_index(ACCURACY)
    sql("VACUUM ANALYZE entries")
    plan = backend.explain(ask("accuracy > 0.5", "accuracy", limit=10)).plan
    assert "Sort" not in plan
    plan = backend.explain(ask(None, "-accuracy", limit=10)).plan
    assert "Incremental Sort" in plan
    assert "  ->  Sort" not in plan


def test_equality_needs_no_index_on_the_field(backend, sql):
    """That on all metadata serves it."""
    fill(backend, 2000)
    sql("VACUUM ANALYZE entries")
    commit(backend, make_put("x", metadata={"tags": [7, {"b": 1}], "n": 1}))
    for where in ("run.name = 'r00100'", "tags contains 7", 'tags = [7, {"b": 1}]', "n = 1.0"):
        told = backend.explain(ask(where))
        assert "entries_by_metadata" in told.plan, where
        assert (told.indexes, told.scans, told.suggestion) == ((), False, None)
    assert backend.explain(ask("accuracy > 2")).suggestion == ACCURACY
    assert backend.explain(ask(None, "model")).suggestion == MODEL


def test_making_dropping_and_reopening(backend, postgres_url, sql):
    fill(backend, 50)
    made = backend.create_index(ACCURACY)
    assert backend.create_index(ACCURACY) == made
    odd = backend.create_index(Field(("odd \"'%s:x\\\n", "é\U0001f600")))
    with contextlib.closing(SqlBackend(postgres_url, readonly=True)) as reader:
        assert reader.indexes() == [made, odd]
        with pytest.raises(NotSupportedError, match="readonly"):
            reader.create_index(MODEL)
    with contextlib.closing(SqlBackend(postgres_url, namespace="o'ther")) as other:
        assert other.indexes() == []
        fill(other, 20)
        assert other.create_index(ACCURACY).name != made.name
        assert other.drop_index(ACCURACY)
    assert sorted(names(sql)) == sorted([made.name, odd.name])
    assert backend.drop_index(odd.field)
    assert backend.drop_index(odd.field) is False
    assert backend.indexes() == [made]
    assert names(sql) == [made.name]


def test_several_make_the_same_at_a_time(postgres_url, sql):
    with contextlib.ExitStack() as stack:
        backends = [
            stack.enter_context(contextlib.closing(SqlBackend(postgres_url))) for _ in range(4)
        ]
        fill(backends[0], 500)
        with ThreadPoolExecutor(8) as pool:
            jobs = [
                pool.submit(backend.create_index, field)
                for backend in backends
                for field in (ACCURACY, MODEL)
            ]
            made = {job.result(timeout=60) for job in jobs}
        assert len(made) == len(names(sql)) == 2
        assert backends[0].check() == []


def test_writers_go_on_meanwhile(backend, postgres_url):
    fill(backend, 2000)
    with (
        contextlib.closing(SqlBackend(postgres_url)) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        making = pool.submit(other.create_index, ACCURACY)
        count = 0
        while not making.done() or count < 5:
            commit(backend, make_put(f"w{count}", metadata={"accuracy": 5}))
            count += 1
        making.result()
        assert other.count(ask("accuracy = 5")) == count
        assert other.explain(ask("accuracy = 5")).indexes


def test_what_was_not_finished_is_made_anew(backend, sql, postgres_url):
    """A transaction that is too long for the timeout leaves an index that is not valid."""
    fill(backend, 20)
    sql("BEGIN")
    sql("LOCK TABLE entries IN ROW EXCLUSIVE MODE")
    with (
        contextlib.closing(SqlBackend(postgres_url, timeout=0.3)) as hasty,
        pytest.raises(UnavailableError),
    ):
        hasty.create_index(ACCURACY)
    sql("ROLLBACK")
    assert backend.indexes() == []
    assert len(names(sql)) == 1
    assert ["not valid" in line for line in backend.check()] == [True]
    made = backend.create_index(ACCURACY)
    assert names(sql) == [made.name]
    assert backend.check() == []


def test_another_who_makes_one_is_waited_for(backend, sql, postgres_url):
    from blobstore.backends.metadata import postgres

    sql("SELECT pg_advisory_lock(%s)", postgres._INDEX_LOCK)
    with (
        contextlib.closing(SqlBackend(postgres_url, timeout=0.3)) as hasty,
        pytest.raises(UnavailableError, match="another process makes an index"),
    ):
        hasty.create_index(ACCURACY)
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(backend.create_index, ACCURACY)
        sql("SELECT pg_advisory_unlock(%s)", postgres._INDEX_LOCK)
        assert making.result(timeout=30).field == ACCURACY


def test_the_longest_keys_and_texts_have_room(backend):
    """Rows of an index are limited, and so is what it takes of a text."""
    backend.create_index(ACCURACY)
    texts = ["".join(chr(0x10000 + (i * j * 7919) % 50_000) for i in range(3000)) for j in (1, 2)]
    keys = ["".join(chr(0x20000 + (i * 104_729 + j) % 40_000) for i in range(512)) for j in (1, 2)]
    values = [texts[0], texts[0] + "a", texts[1], 10**4000 + 1, 1.5]
    for key in keys:
        commit(
            backend,
            *(make_put(f"{key[:-1]}{i}", metadata={"accuracy": v}) for i, v in enumerate(values)),
        )
    for value in values[:3]:
        assert backend.count(Query(where=parse({"accuracy": value}))) == 2
    assert backend.count(Query(where=parse({"accuracy": {"$gt": texts[0]}}))) in (2, 4)
    found = list(backend.scan(ask(None, "-accuracy")))
    assert [len(str(entry.metadata["accuracy"])) > 20 for entry in found[:2]] == [True, True]


def test_an_index_that_cannot_be_made_says_why(backend, postgres_url, sql):
    sql("CREATE ROLE reader LOGIN")
    try:
        sql("GRANT USAGE ON SCHEMA public TO reader")
        sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO reader")
        url = sa.make_url(postgres_url).set(username="reader")
        with contextlib.closing(SqlBackend(url.render_as_string(hide_password=False))) as other:
            with pytest.raises(Exception, match="owner") as caught:
                other.create_index(ACCURACY)
            assert type(caught.value).__module__ == "blobstore.errors"
            assert not isinstance(caught.value, psycopg.Error)
            assert other.indexes() == []
    finally:
        sql("DROP OWNED BY reader")
        sql("DROP ROLE reader")
