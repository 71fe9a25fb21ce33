"""What only the index on PostgreSQL has: a server, other writers at the same time, lost replies."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers.postgres import PostgresServer

from blobstore import BlobStore
from blobstore.backends import DictStore, FilesystemStore, JsonBackend
from blobstore.backends.metadata import postgres, schema
from blobstore.backends.metadata.postgres_errors import sqlstate
from blobstore.backends.metadata.sql import SqlBackend
from blobstore.backends.metadata.transaction import Transaction
from blobstore.errors import (
    ClosedError,
    ConfigError,
    IncompatibleStoreError,
    IntegrityError,
    InvalidInputError,
    KeyExistsError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)
from blobstore.protocols import Delete
from blobstore.query import Query
from blobstore.testing.metadata_backend import (
    commit,
    equal_to,
    make_blob,
    make_copy,
    make_inline,
    make_patch,
    make_put,
    put,
    rows,
    snapshot,
    states,
)

ALL = Query()


def opened(url, **options):
    return contextlib.closing(SqlBackend(url, **options))


@pytest.fixture
def backend(postgres_url):
    with opened(postgres_url) as backend:
        yield backend


@pytest.fixture
def other(postgres_url, backend):
    """The same index, opened by somebody else."""
    with opened(postgres_url) as other:
        yield other


@pytest.fixture
def ask(postgres_server, postgres_url):
    """Ask the database behind the backend's back."""
    with postgres_server.connect(sa.make_url(postgres_url).database) as connection:
        yield lambda text, *values: connection.execute(text, values or None)


def inline(key, payload=b"bytes", **options):
    return make_put(key, parts=(make_inline(payload),), size=len(payload), **options)


def wait_for_blocked(ask, count=1):
    """Return once so many transactions wait for a lock that another holds."""
    deadline = time.monotonic() + 30
    text = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while ask(text).fetchone()[0] < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def in_the_middle(monkeypatch, work, place="_apply"):
    """Have `work` done by others once, when a transaction has read what it decides by."""
    original = getattr(Transaction, place)
    turns = iter([work])

    def after_work(self, *arguments):
        next(turns, lambda: None)()
        return original(self, *arguments)

    monkeypatch.setattr(Transaction, place, after_work)


# --- what is stored and found ---------------------------------------------------------------------


def history(backend):
    """Puts of small values in every situation that they can meet; what each led to."""
    blob = make_blob("0" * 32)
    steps = [
        (inline("a", b"1", now_us=10),),
        (inline("a", b"", now_us=20, signature="s", metadata={"x": 1}),),
        (inline("b", b"1", expected="absent", now_us=30),),
        (make_put("c", blob, now_us=40),),
        (inline("c", b"2", now_us=50),),
        (inline("c", b"3", now_us=60),),
        (inline("a", b"5", expected=2, now_us=80),),
        (Delete("a"),),
        (inline("a", b"6", now_us=90),),
        (make_copy("a", "d", now_us=95),),
        (inline("d", b"7", now_us=99),),
    ]
    results = [backend.commit(step, f"commit{i}") for i, step in enumerate(steps)]
    results.append(backend.commit(steps[-1], f"commit{len(steps) - 1}"))
    return results, snapshot(backend)


def without_ids(found):
    results, (entries, blobs) = found
    listed = [entry for result in results for entry in result.entries] + entries
    facts = [(result.condemned, result.missing) for result in results]
    return [entry._replace(id=0) for entry in listed], facts, blobs


def test_one_statement_and_transaction_agree(postgres_url, monkeypatch):
    with opened(postgres_url, namespace="fast") as backend:
        fast = history(backend)
    monkeypatch.setattr(SqlBackend, "_commit_inline", lambda *_: None)
    with opened(postgres_url, namespace="slow") as backend:
        slow = history(backend)
    assert without_ids(fast) == without_ids(slow)
    assert fast[0][-1] == fast[0][-2]


def test_keys_are_sorted_by_code_point_whatever_the_language(backend, ask):
    """The columns say so themselves, and do not follow the database."""
    keys = ["B", "a", "A/", "A", "ä", "z", "\uffff", "\U0001f389", "a b", "a-b", "1", "~"]
    commit(backend, *(inline(key) for key in keys))
    assert list(backend.keys(ALL)) == sorted(keys)
    found = ask(
        "SELECT table_name, column_name FROM information_schema.columns WHERE collation_name = 'C'"
        " AND table_schema = 'public' ORDER BY 1"
    )
    expected = [("blobs", "location"), ("entries", "key"), ("parts", "location")]
    assert found.fetchall() == expected


def test_no_key_has_nul_or_half_a_surrogate_pair(backend):
    commit(backend, inline("a"), inline("a\x01"), inline("b"), inline("\ue000"))
    for nowhere in ("a\0", "\ud800"):
        assert backend.get(nowhere) is None
        assert backend.get_many([nowhere, "a"]).keys() == {"a"}
        assert backend.count(Query(prefix=nowhere)) == 0
        assert backend.known([nowhere]) == set()
    assert list(backend.keys(Query(after="a\0zzz"))) == ["a\x01", "b", "\ue000"]
    assert list(backend.keys(Query(after="\ud800"))) == ["\ue000"]


def test_the_longest_key_and_namespace(postgres_url):
    with opened(postgres_url, namespace="n" * 255) as backend:
        keys = [os.urandom(1024).hex()[:2048], "\U0001f389" * 512]
        commit(backend, *(make_put(key, make_blob(digest=key[:64])) for key in keys))
        assert list(backend.keys(ALL)) == sorted(keys)
    with pytest.raises(InvalidInputError):
        SqlBackend(postgres_url, namespace="n" * 256)


def test_large_numbers_and_payloads(backend):
    payload = bytes(range(256)) * 4096
    blob = make_blob(size=2**62, created_us=2**62)
    commit(backend, inline("small", payload), make_put("large", blob, size=2**62, now_us=2**62))
    assert backend.get("small").parts[0].payload == payload
    assert (backend.get("large").size, backend.get("large").parts[0].blob) == (2**62, blob)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    | st.sampled_from(
        [10**400, 10**23, 1e23, int(1e23), 2**53, 2**53 + 1, 2.0**53, -0.0, 5e-324, 0.1, "a\0b"]
    )
    | st.sampled_from(["a\u2400b", "\\u0000", "\\\0", "u0000", "\\u2400"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab.", max_size=2), inner),
    max_leaves=4,
)
names = st.sampled_from(
    ["", "a", "a.b", "$", "$.a", '"', "[0]", "a\0", "a\u2400", "\n", "é", "🎉", "\\u0061"]
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(
    documents=st.lists(st.dictionaries(names, json_values, max_size=3), max_size=6), data=st.data()
)
def test_filters_agree_with_the_reference(backend, documents, data):
    """Whatever the names and the values are; half of the filters are taken from what is stored."""
    keys = [f"{i}" for i in range(len(documents))]
    commit(backend, *(inline(k, metadata=d) for k, d in zip(keys, documents, strict=True)))
    pairs = [pair for document in documents for pair in document.items()]
    wanted = st.tuples(names, json_values)
    if pairs:
        wanted = st.one_of(st.sampled_from(pairs), wanted)
    query = equal_to(dict([data.draw(wanted)]))
    entries = list(backend.scan(ALL))
    assert list(backend.scan(query)) == list(filter(query.matcher(), entries))
    commit(backend, *(Delete(key) for key in keys))


def test_answers_are_those_of_json(backend, tmp_path):
    """The same calls on both, with everything that the two say compared."""
    with JsonBackend(tmp_path) as json_backend:
        ours, theirs = history(backend), history(json_backend)
        assert without_ids(ours) == without_ids(theirs)
        documents = [{"v": v, "w": i % 2} for i, v in enumerate([1, 1.0, "1", True, None, [1], {}])]
        operations = [inline(f"k{i}", metadata=d, now_us=1) for i, d in enumerate(documents)]
        for index in (backend, json_backend):
            index.commit(operations, "some")
        for wanted in [*({"v": d["v"]} for d in documents), {"w": 0}, {"v": 1, "w": 0}, {"x": 1}]:
            for query in (equal_to(wanted), replace(equal_to(wanted), prefix="k", limit=2)):
                assert list(backend.keys(query)) == list(json_backend.keys(query))
                assert backend.count(query) == json_backend.count(query)


def test_filters_are_narrowed_down_by_the_database(backend):
    for i, value in enumerate([1, 1.5, "1", True, False, None, [1], {"a": 1}, 10**30, "\0"]):
        commit(backend, inline(f"k{i}", metadata={"v": value, "w": 0}))
    search = backend._search
    expected = [(1, 1), (1.5, 1), ("1", 1), (True, 1), (None, 1), ([2], 0), (10**30, 1), ("\0", 1)]
    for value, count in expected:
        plan = search._plan(equal_to({"v": value}))
        found = [row for page in search._pages(plan, 500) for row in page]
        assert len(found) == count, value
        assert all(row.sure for row in found) == (value not in (10**30, "\0"))


def explain(kept, text, values=()):
    kept.driver.execute("SET plan_cache_mode = force_generic_plan")
    with psycopg.RawCursor(kept.driver) as cursor:
        lines = cursor.execute(f"EXPLAIN {text}", values).fetchall()
    return "\n".join(line for (line,) in lines)


def test_statements_use_indexes(backend):
    """Also in a new database, of which there are no statistics."""
    kept = backend._pool.acquire()
    sql = backend._sql
    for text, values, index in [
        (sql.get, ("x", "k"), "entries_namespace_key_key"),
        (sql.head, ("x", "k"), "entries_namespace_key_key"),
        (sql.get_many, ("x", ["k"]), "entries_namespace_key_key"),
        (sql.hold_entries, ("x", ["k"]), "entries_namespace_key_key"),
        (sql.hold_blobs, ("x", ["l"]), "blobs_pkey"),
        (sql.blobs_by_digest, (["d"], "x"), "blobs_live_digest"),
        (sql.condemned, ("x",), "blobs_condemned"),
        (sql.unreferenced, ("x", ["l"]), "parts_by_location"),
        (sql.condemn_unused, (1, "x", ["l"]), "blobs_pkey"),
        (sql.delete_parts, (1,), "parts_pkey"),
    ]:
        found = explain(kept, text, values)
        assert index in found, found
        assert "Seq Scan" not in found, found
    backend._pool.release(kept)


def test_listing_and_filtering_use_indexes(backend, ask):
    commit(backend, *(inline(f"k{i:05}", metadata={"n": i}) for i in range(2000)))
    ask("VACUUM ANALYZE entries")
    for query, wanted in [
        (Query(prefix="k01"), "Index Cond: ((namespace = 'default'::text) AND (key >= 'k01'"),
        (equal_to({"n": 7}), "entries_by_metadata"),
    ]:
        found = backend.explain(query)
        assert wanted in found.plan, found
        assert not found.scans


def test_a_namespace_by_url(postgres_url):
    url = f"{postgres_url}&blobstore_namespace=team%20a"
    with opened(url) as one, opened(postgres_url, namespace="team a") as two:
        put(one, "k")
        assert (two.store_id, two.count(ALL)) == (one.store_id, 1)
        copied = pickle.loads(pickle.dumps(one))
        assert copied.store_id == one.store_id
        copied.close()
    with opened(url, namespace="b") as stronger:
        assert stronger.count(ALL) == 0
    with pytest.raises(InvalidInputError, match="one name"):
        SqlBackend(f"{url}&blobstore_namespace=b")


# --- others at the same time ----------------------------------------------------------------------


def test_a_key_that_came_into_being_is_overwritten_in_full(backend, other, monkeypatch):
    theirs = make_blob()
    in_the_middle(monkeypatch, lambda: put(other, "k", theirs))
    result = commit(backend, make_put("k"))
    assert (result.entries[0].version, result.condemned) == (2, (theirs.location,))
    assert backend.get("k") == result.entries[0]
    assert backend.check() == []


def test_a_key_that_came_into_being_is_no_longer_absent(backend, other, monkeypatch):
    in_the_middle(monkeypatch, lambda: put(other, "k"))
    with pytest.raises(KeyExistsError):
        commit(backend, make_put("k", expected="absent"), make_put("l"))
    assert list(backend.keys(ALL)) == ["k"]


def test_a_commit_is_seen_as_a_whole(backend, other, monkeypatch):
    """Also by a transaction that waited for one of its keys, and looked for the other before."""
    put(backend, "old", metadata={"n": 0})
    hold = Transaction._hold_entries

    def hold_and_let_others(self, keys):
        monkeypatch.setattr(Transaction, "_hold_entries", hold)
        held = hold(self, [key for key in keys if key != "old"])
        commit(other, make_patch("old", {"n": 1}), make_put("new"))
        return held | hold(self, ["old"])

    monkeypatch.setattr(Transaction, "_hold_entries", hold_and_let_others)
    result = commit(backend, make_patch("old", {"m": 1}), make_patch("new", {"m": 1}))
    assert result.entries[0].metadata == {"n": 1, "m": 1}
    assert result.entries[1].metadata == {"m": 1}


def test_a_blob_that_gc_condemned_meanwhile_is_missing(backend, other, monkeypatch):
    blob = make_blob()
    in_the_middle(monkeypatch, lambda: other.condemn([blob.location], 5))
    result = backend.commit([make_put("k", blob)], "c")
    assert result.missing == (blob.location,)
    assert backend.get("k") is None
    assert states(backend) == {blob.location: "condemned"}


def test_content_that_another_entered_meanwhile_is_adopted(backend, other, monkeypatch):
    theirs, ours = make_blob(digest="d"), make_blob(digest="d")
    in_the_middle(monkeypatch, lambda: put(other, "theirs", theirs))
    result = commit(backend, make_put("ours", ours))
    assert result.entries[0].locations == (theirs.location,)
    assert result.condemned == (ours.location,)
    assert backend.check() == []


def test_gc_waits_for_whoever_shares_a_blob(backend, other, ask, monkeypatch):
    """A pending blob is committed while gc is about to condemn it."""
    blob = make_blob()
    backend.announce([blob])
    with ThreadPoolExecutor(1) as pool:
        found = []

        def start_gc():
            found.append(pool.submit(other.condemn, [blob.location], 5))
            wait_for_blocked(ask)

        in_the_middle(monkeypatch, start_gc)
        commit(backend, make_put("k", blob))
        assert found[0].result() == []
    assert states(backend) == {blob.location: "live"}
    assert backend.check() == []


def test_whoever_shares_a_blob_waits_for_who_drops_it(backend, other, ask, monkeypatch):
    """The last reference goes while another commit wants to reuse the blob."""
    blob = make_blob(digest="d")
    put(backend, "a", blob)
    with ThreadPoolExecutor(1) as pool:
        found = []

        def start_sharing():
            monkeypatch.undo()
            found.append(pool.submit(other.commit, [make_put("b", blob, reused=[blob])], "b"))
            wait_for_blocked(ask)

        in_the_middle(monkeypatch, start_sharing)
        assert commit(backend, Delete("a")).condemned == (blob.location,)
        assert found[0].result().missing == (blob.location,)
    assert backend.check() == []


def test_of_two_who_drop_a_shared_blob_the_last_condemns_it(backend, other, ask, monkeypatch):
    blob = make_blob()
    put(backend, "a", blob)
    commit(backend, make_copy("a", "b"))
    with ThreadPoolExecutor(1) as pool:
        found = []

        def start_the_other():
            monkeypatch.undo()
            found.append(pool.submit(commit, other, Delete("b")))
            wait_for_blocked(ask)

        in_the_middle(monkeypatch, start_the_other)
        assert commit(backend, Delete("a")).condemned == ()
        assert found[0].result().condemned == (blob.location,)
    assert states(backend) == {blob.location: "condemned"}


def test_writers_of_different_keys_do_not_wait(backend, other, monkeypatch):
    done = []
    in_the_middle(monkeypatch, lambda: done.append(put(other, "b")))
    assert put(backend, "a").version == 1
    assert done[0].version == 1


def test_a_deadlock_is_resolved(backend, other):
    """The server ends one of the two transactions, which is done again.

    The one that is done again may take its first row before the one that waited for it wakes:
    then they meet once more.
    """
    put(backend, "a")
    put(backend, "b")
    barrier = threading.Barrier(2)
    attempts = []

    def work(index, keys):
        def locked(kept):
            attempts.append(index)
            for key in keys:
                kept.execute(index._sql.hold_entries, (index._namespace, [key])).fetchall()
                if len(attempts) <= 2 and key is keys[0]:
                    barrier.wait(30)

        index._write(locked, "locking in")

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work, backend, "ab"), pool.submit(work, other, "ba")]
        for future in futures:
            future.result()
    assert len(attempts) > 2


@pytest.fixture
def deadlocks(monkeypatch):
    """Deadlocks that the server resolved by ending a transaction."""
    found = []
    original = postgres.is_transient

    def noting(exc):
        if sqlstate(exc) == "40P01":
            found.append(exc)
        return original(exc)

    monkeypatch.setattr(postgres, "is_transient", noting)
    return found


def test_gc_and_a_commit_do_not_wait_for_each_other(backend, other, ask, monkeypatch, deadlocks):
    """Of two blobs of a commit the index knows one, and gc comes upon both."""
    known, new = make_blob("f" * 32), make_blob("0" * 32)
    backend.announce([known])
    with ThreadPoolExecutor(1) as pool:
        found = []

        def start_gc():
            found.append(pool.submit(other.condemn, [known.location, new.location], 5))
            wait_for_blocked(ask)

        in_the_middle(monkeypatch, start_gc)
        result = backend.commit([make_put("k", known, new)], "c")
        assert found[0].result() == [known.location, new.location]
    assert set(result.missing) == {known.location, new.location}
    assert deadlocks == []


def test_two_who_enter_the_same_blobs_do_not_wait_for_each_other(backend, other, ask, deadlocks):
    """Each in an order of its own."""
    first, second = make_blob("0" * 32), make_blob("f" * 32)
    with ThreadPoolExecutor(1) as pool:
        found = []
        kept = backend._pool.acquire()
        original = kept.execute

        def pausing(text, *arguments, **options):
            result = original(text, *arguments, **options)
            if text == backend._sql.add_blob and not found:
                operation = make_put("b", first, second)
                found.append(pool.submit(other.commit, [operation], "b"))
                wait_for_blocked(ask)
            return result

        kept.execute = pausing
        backend._pool.release(kept)
        entry = put(backend, "a", second, first)
        assert entry.locations == (second.location, first.location)
        assert found[0].result().entries[0].locations == (first.location, second.location)
    assert backend.check() == []
    assert deadlocks == []


@pytest.mark.parametrize("code", ["40001", "40P01", "23505"])
def test_a_transaction_that_lost_to_others_is_done_again(backend, code):
    tries = []

    def work(kept):
        tries.append(1)
        if len(tries) < 4:
            kept.driver.execute(f"DO $$ BEGIN RAISE SQLSTATE '{code}'; END $$")
        return "done"

    assert backend._write(work, "testing") == "done"
    assert len(tries) == 4


def test_it_is_not_done_again_for_ever(backend, monkeypatch):
    monkeypatch.setattr("blobstore.backends.metadata.sql._TRIES", 3)
    tries = []

    def work(kept):
        tries.append(1)
        kept.driver.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

    with pytest.raises(UnavailableError) as caught:
        backend._write(work, "testing")
    assert caught.value.outcome == "failed"
    assert len(tries) == 3


def test_a_client_that_vanished_does_not_keep_its_locks(postgres_url, backend, other, monkeypatch):
    """Its transaction is ended by the server, which need not notice that it is gone."""
    put(backend, "k", metadata={"n": 0})
    monkeypatch.setattr(postgres, "_SILENCE", 0.02)
    monkeypatch.setattr(postgres, "_LEAST_SILENCE", 0)
    with opened(postgres_url, timeout=20) as silent:
        tries = []

        def fall_silent():
            tries.append(1)
            assert commit(other, make_patch("k", {"n": 1})).entries[0].version == 2

        in_the_middle(monkeypatch, fall_silent, place="_condemn_dropped")
        assert commit(silent, make_patch("k", {"m": 1})).entries[0].metadata == {"n": 1, "m": 1}
    assert tries == [1]


def test_who_waits_too_long_for_a_lock_is_told(postgres_url, backend, ask):
    put(backend, "k")
    with opened(postgres_url, timeout=0.05) as hasty:
        ask("BEGIN")
        ask("SELECT * FROM entries FOR UPDATE")
        for operation in (make_patch("k", {}), inline("k"), Delete("k")):
            with pytest.raises(UnavailableError, match="longer timeout") as caught:
                commit(hasty, operation)
            assert caught.value.outcome == "failed"
        ask("ROLLBACK")
        assert commit(hasty, Delete("k")).entries[0].version == 1


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_many_writers_and_gc(postgres_url, ask, isolation):
    """Shared content, overwriting, deleting, copying and collecting at the same time.

    Whatever the database has for others: each transaction says what it needs.
    """
    name = sa.make_url(postgres_url).database
    ask(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    SqlBackend(postgres_url).close()
    digests = [f"d{i}" for i in range(3)]

    def write(number):
        with opened(postgres_url) as index:
            for i in range(25):
                digest = digests[(number + i) % 3]
                shared = make_blob(digest=digest)
                known = index.find_digests([digest]).get(digest, shared)
                reused = [known] if known is not shared else []
                result = index.commit(
                    [make_put(f"k{(number * i) % 4}", known, reused=reused), make_put(f"k{i % 4}")],
                    f"{number}/{i}",
                )
                if i % 5 == 0:
                    commit(index, make_copy("k0", f"copy{i % 2}"), Delete(f"k{(i + 1) % 4}"))
                if i % 7 == 0:
                    index.condemn([shared.location, *result.condemned, *rows(index)], 1)
                    index.forget([blob.location for blob in index.condemned()])

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(write, number) for number in range(4)]:
            future.result()
    with opened(postgres_url) as backend:
        assert backend.check() == []
        live = {at for at, state in states(backend).items() if state == "live"}
        assert live == {at for entry in backend.scan(ALL) for at in entry.locations}


# --- connections that break -----------------------------------------------------------------------


def cut(ask, text="pid <> pg_backend_pid()"):
    """Have the server end connections, and return when it has."""
    ask(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {text}").fetchall()


CUT = "datname = current_database() AND pid <> pg_backend_pid()"


def test_connections_that_were_cut_while_idle_are_replaced(backend, ask):
    calls = [
        lambda: backend.get("k"),
        lambda: put(backend, "k"),
        lambda: put(backend, "i", parts=(make_inline(b"x"),)),
        lambda: list(backend.scan(ALL)),
        lambda: backend.count(ALL),
        lambda: backend.condemn(["x"], 1),
        lambda: backend.sync(),
        lambda: backend.check(),
        lambda: backend.stats(),
    ]
    for call in calls:
        call()
        cut(ask, CUT)
        call()
    assert backend.get("k").version == 2


@pytest.fixture
def break_once(monkeypatch):
    """Make the connection break at the next call of a method of the driver."""

    def prepare(name, *, after, count=1):
        original = getattr(postgres.Connection, name)
        left = [count]

        def breaking(self, *arguments, **options):
            if not left[0]:
                return original(self, *arguments, **options)
            left[0] -= 1
            if after:
                original(self, *arguments, **options)
            self.pgconn.finish()
            raise psycopg.OperationalError("the connection broke")

        monkeypatch.setattr(postgres.Connection, name, breaking)

    return prepare


@pytest.mark.parametrize("after", [True, False])
def test_a_commit_whose_reply_was_lost_is_looked_up(backend, break_once, after):
    """Landed or not: it is done once, and its result is what was decided."""
    old = make_blob()
    put(backend, "k", old, metadata={"a": 1})
    break_once("commit", after=after)
    operations = [make_put("k"), make_patch("k", {"b": 1}), Delete("k", 3), make_put("l")]
    result = commit(backend, *operations)
    assert [entry.version for entry in result.entries] == [2, 3, 3, 1]
    assert old.location in result.condemned
    assert list(backend.keys(ALL)) == ["l"]


def test_a_commit_that_another_overwrote_meanwhile_is_not_done_again(
    backend, other, break_once, monkeypatch
):
    """Its mark on the entry is gone, but the server knows."""
    put(backend, "k", metadata={"n": 0})
    original = SqlBackend._has_landed

    def overwrite_and_ask(self, *arguments):
        put(other, "k", metadata={"n": 10})
        return original(self, *arguments)

    monkeypatch.setattr(SqlBackend, "_has_landed", overwrite_and_ask)
    break_once("commit", after=True)
    (entry,) = commit(backend, make_patch("k", {"n": 1})).entries
    assert (entry.version, entry.metadata) == (2, {"n": 1})
    assert (backend.get("k").version, backend.get("k").metadata) == (3, {"n": 10})


def test_a_commit_that_does_not_end(postgres_url, break_once, monkeypatch):
    with opened(postgres_url, timeout=0.2) as backend:
        break_once("commit", after=True)
        monkeypatch.setattr(postgres.PostgresDialect, "outcome", lambda *_: "running")
        with pytest.raises(UnavailableError) as caught:
            commit(backend, make_put("k"))
        assert caught.value.outcome == "unknown"
        assert backend.get("k").version == 1


@pytest.fixture
def break_and(backend, break_once, monkeypatch):
    """Lose the reply to a commit that landed, and do something before it is asked about."""

    def prepare(act):
        original = SqlBackend._has_landed

        def act_and_ask(self, *arguments):
            act()
            return original(self, *arguments)

        monkeypatch.setattr(SqlBackend, "_has_landed", act_and_ask)
        break_once("commit", after=True)

    return prepare


def start_another_life(ask):
    """As a crash does: numbers of transactions mean nothing any more."""
    ask("SELECT pg_stat_reset_shared('bgwriter')")


def test_a_server_that_crashed_is_asked_for_what_it_kept(backend, break_and, ask):
    """It may have given the number of the transaction to another one."""
    put(backend, "k")
    break_and(lambda: start_another_life(ask))
    result = commit(backend, Delete("k"), make_put("l"))
    assert [entry.key for entry in result.entries] == ["k", "l"]
    assert list(backend.keys(ALL)) == ["l"]


@pytest.mark.parametrize("operation", [make_patch("k", {"n": 1}), Delete("k")])
def test_a_server_that_crashed_may_not_know(backend, other, break_and, ask, operation):
    put(backend, "k")

    def overwrite():
        start_another_life(ask)
        put(other, "k", metadata={"n": 10})

    break_and(overwrite)
    with pytest.raises(UnavailableError) as caught:
        commit(backend, operation)
    assert caught.value.outcome == "unknown"
    assert backend.get("k").metadata == {"n": 10}


def test_what_may_be_done_twice_is_done_again(backend, break_once, ask):
    blob = make_blob()
    for call, expected in [
        (lambda: backend.announce([blob]), {blob.location: "pending"}),
        (lambda: backend.condemn([blob.location], 1), {blob.location: "condemned"}),
        (lambda: backend.forget([blob.location]), {}),
    ]:
        for after in (True, False):
            break_once("commit", after=after)
            call()
            assert states(backend) == expected


def test_a_connection_that_broke_before_the_commit(backend, ask, monkeypatch):
    in_the_middle(monkeypatch, lambda: cut(ask, CUT))
    assert put(backend, "k").version == 1
    assert backend.check() == []


def test_a_connection_that_breaks_again_and_again(backend, ask, monkeypatch):
    original = Transaction._apply
    monkeypatch.setattr(
        Transaction, "_apply", lambda self, *a: (cut(ask, CUT), original(self, *a))[1]
    )
    with pytest.raises(UnavailableError) as caught:
        put(backend, "k")
    assert caught.value.outcome == "failed"
    monkeypatch.undo()
    assert backend.get("k") is None


@pytest.fixture
def break_statement(monkeypatch):
    """Break the connection at the one statement that puts a small value."""

    def prepare(backend, *, after):
        kept = backend._pool.acquire()
        original = kept.execute

        def breaking(text, values):
            if after:
                original(text, values)
            kept.driver.pgconn.finish()
            raise psycopg.OperationalError("the connection broke")

        kept.execute = breaking
        backend._pool.release(kept)

    return prepare


def test_a_small_value_whose_reply_was_lost(backend, break_statement):
    put(backend, "k", parts=(make_inline(b"1"),))
    break_statement(backend, after=True)
    entry = put(backend, "k", parts=(make_inline(b"2"),))
    assert entry.version == 2
    assert backend.get("k") == entry


def test_a_small_value_that_may_have_landed(postgres_url, break_statement):
    """Nothing tells whether it did before another wrote the key: that is what the error says."""
    with opened(postgres_url, timeout=0.5) as backend:
        put(backend, "k", parts=(make_inline(b"1"),))
        break_statement(backend, after=False)
        with pytest.raises(UnavailableError) as caught:
            put(backend, "k", parts=(make_inline(b"2"),))
        assert caught.value.outcome == "unknown"
        assert backend.get("k").version == 1


def test_reading_on_another_connection(backend, break_statement):
    entry = put(backend, "k")
    for call, expected in [
        (lambda: backend.get("k"), entry),
        (lambda: backend.get_many(["k"]), {"k": entry}),
        (lambda: [blob.location for blob in backend.blobs()], [*entry.locations]),
    ]:
        break_statement(backend, after=False)
        assert call() == expected


@pytest.mark.parametrize("patient", [False, True])
def test_a_server_that_says_nothing(postgres_url, monkeypatch, patient):
    """One that was stopped keeps its connections, and answers nobody."""
    monkeypatch.setattr(postgres, "_PATIENCE", 1)
    with opened(postgres_url, timeout=0.05) as backend:
        put(backend, "k")
        (kept,) = backend._pool.idle
        os.kill(kept.pid, signal.SIGSTOP)
        try:
            with pytest.raises(UnavailableError, match="did not answer"):
                list(backend.scan(ALL)) if patient else backend.get_many(["k"])
            assert kept not in backend._pool._all
            assert backend.get("k").version == 1
        finally:
            os.kill(kept.pid, signal.SIGCONT)


def test_a_connection_that_was_idle_for_long_is_tried_first(postgres_url, monkeypatch):
    """What lies between may have forgotten it: nothing is sent into the void."""
    with opened(postgres_url) as backend:
        put(backend, "k", parts=(make_inline(b"1"),))
        (kept,) = backend._pool.idle
        monkeypatch.setattr(postgres, "_IDLE", 0)
        assert backend.get("k").version == 1
        assert backend._pool.idle == [kept]
        monkeypatch.setattr(postgres, "_PING_PATIENCE", 0.05)
        os.kill(kept.pid, signal.SIGSTOP)
        try:
            assert put(backend, "k", parts=(make_inline(b"2"),)).version == 2
            assert kept not in backend._pool._all
        finally:
            os.kill(kept.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def own_server():
    """A server of this module, which tests may stop; it runs again after each."""
    with PostgresServer() as server:
        yield server


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_that_comes_back(own_server, how):
    """Acknowledged commits are there; the same backend goes on."""
    with opened(own_server.new_database()) as backend:
        for i in range(20):
            put(backend, f"k{i}")
            put(backend, f"i{i}", parts=(make_inline(b"x"),))
        getattr(own_server, how)()
        for call in (
            lambda: backend.get("k1"),
            lambda: put(backend, "k1"),
            lambda: list(backend.keys(ALL)),
            lambda: commit(backend, inline("k1")),
        ):
            with pytest.raises(UnavailableError) as caught:
                call()
            assert caught.value.outcome == "failed"
        own_server.start()
        assert backend.count(ALL) == 40
        assert put(backend, "k1").version == 2
        assert backend.check() == []


def test_there_is_no_server(tmp_path):
    with pytest.raises(UnavailableError, match="See that the server is there"):
        SqlBackend(f"postgresql+psycopg://ann:secret@/db?host={tmp_path}")


# --- the pool, forks ------------------------------------------------------------------------------


def test_there_are_no_more_connections_than_allowed(postgres_url, ask):
    with opened(f"{postgres_url}&blobstore_pool_size=2") as backend:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: put(backend, f"k{i % 3}"), range(40)))
        assert 1 <= len(backend._pool._all) <= 2
        assert backend.count(ALL) == 3


def test_who_waits_too_long_for_a_connection_is_told(postgres_url):
    with opened(f"{postgres_url}&blobstore_pool_size=1", timeout=0.05) as backend:
        kept = backend._pool.acquire()
        with pytest.raises(UnavailableError, match="blobstore_pool_size"):
            backend.get("k")
        backend._pool.release(kept)
        assert backend.get("k") is None


@pytest.mark.parametrize("said", ["0", "x", "-1"])
def test_pool_sizes_that_are_none(postgres_url, said):
    with pytest.raises(ConfigError, match="blobstore_pool_size"):
        SqlBackend(f"{postgres_url}&blobstore_pool_size={said}")


def test_a_closed_backend_leaves_no_connection(postgres_url, ask):
    backend = SqlBackend(postgres_url)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: put(backend, f"k{i}"), range(20)))
    backend.close()
    with pytest.raises(ClosedError):
        backend.get("k1")
    deadline = time.monotonic() + 10
    while ask(f"SELECT count(*) FROM pg_stat_activity WHERE {CUT}").fetchone()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_child_leaves_the_connections_of_its_parent_alone(postgres_url):
    """It ends in every way that a process may end, with all clean-up, and the parent goes on."""
    code = """
        import gc, os, sys
        from blobstore.backends.metadata.sql import SqlBackend
        backend = SqlBackend(sys.argv[1])
        pids = {backend._pool.idle[0].pid}
        for way in ("return", "exit", "close", "collect"):
            child = os.fork()
            if not child:
                assert backend.get("k") is None
                if way == "close":
                    backend.close()
                if way == "collect":
                    del backend
                    gc.collect()
                if way == "exit":
                    os._exit(0)
                sys.exit(0)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert backend.get("k") is None
            assert {kept.pid for kept in backend._pool.idle} == pids
        print("whole")
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), postgres_url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("whole\n", "")


# --- opening --------------------------------------------------------------------------------------


def tables(ask):
    return ask(
        "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    ).fetchall()


def test_many_make_one_index_at_once(postgres_url):
    barrier = threading.Barrier(6)

    def make(_):
        barrier.wait()
        with opened(postgres_url) as backend:
            return backend.store_id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(make, range(6)))) == 1


@pytest.mark.parametrize("name", ["meta", "entries", "parts", "blobs"])
def test_tables_of_others_are_left_alone(postgres_url, ask, name):
    ask(f"CREATE TABLE {name} (id INTEGER)")
    before = tables(ask)
    with pytest.raises(IncompatibleStoreError, match=f"public.{name}"):
        SqlBackend(postgres_url)
    assert tables(ask) == before
    ask("CREATE SCHEMA mine")
    with opened(f"{postgres_url}&options=-csearch_path%3Dmine") as backend:
        put(backend, "k")
    assert tables(ask) == before
    assert ask("SELECT count(*) FROM mine.entries").fetchone() == (1,)


def test_a_search_path_that_leads_nowhere(postgres_url):
    with pytest.raises(ConfigError, match="search path"):
        SqlBackend(f"{postgres_url}&options=-csearch_path%3Dnowhere")


def test_a_newer_schema_is_refused(postgres_url, ask):
    SqlBackend(postgres_url).close()
    ask("UPDATE meta SET value = '999' WHERE name = 'schema_version'")
    with pytest.raises(IncompatibleStoreError, match="upgrade blobstore"):
        SqlBackend(postgres_url)
    ask("DELETE FROM meta WHERE name = 'schema_version'")
    with pytest.raises(IntegrityError):
        SqlBackend(postgres_url)


def test_an_older_schema_is_migrated_once(postgres_url, ask, monkeypatch):
    with opened(postgres_url) as old:
        put(old, "k")
        applied = []

        def step(connection):
            applied.append(1)
            schema.add_column(connection, "entries", sa.Column("owner", sa.Text))

        monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, schema.Migration(3, step)])
        monkeypatch.setattr("blobstore.backends.metadata.sql.MIGRATIONS", schema.MIGRATIONS)
        with pytest.raises(IncompatibleStoreError, match="open it for writing once"):
            SqlBackend(postgres_url, readonly=True)
        with ThreadPoolExecutor(4) as pool:
            for index in pool.map(lambda _: SqlBackend(postgres_url), range(4)):
                assert index.stats()["schema_version"] == 3
                index.close()
        assert applied == [1]
        assert put(old, "k").version == 2  # whoever had it open before goes on
    assert ask("SELECT owner FROM entries").fetchall() == [(None,)]


def test_users_without_rights(postgres_server, postgres_url, ask):
    def url_of(user):
        return sa.make_url(postgres_url).set(username=user).render_as_string(hide_password=False)

    database = sa.make_url(postgres_url).database
    owner, guest = f"owner_{database}", f"guest_{database}"
    ask(f"CREATE ROLE {owner} LOGIN")
    ask(f"CREATE ROLE {guest} LOGIN")
    try:
        with pytest.raises(PermissionDeniedError, match="CREATE on the schema"):
            SqlBackend(url_of(guest))
        ask(f"CREATE SCHEMA AUTHORIZATION {owner}")
        with opened(url_of(owner)) as backend:  # "$user" comes first in the search path
            put(backend, "k", metadata={"a": 1})
            assert backend.check() == []
        ask(f"GRANT USAGE ON SCHEMA {owner} TO {guest}")
        ask(f"GRANT SELECT ON ALL TABLES IN SCHEMA {owner} TO {guest}")
        reading = f"{url_of(guest)}&options=-csearch_path%3D{owner}"
        with opened(reading, readonly=True) as backend:
            assert list(backend.keys(equal_to({"a": 1}))) == ["k"]
        with opened(reading) as backend, pytest.raises(PermissionDeniedError):
            put(backend, "k")
    finally:
        ask(f"DROP OWNED BY {owner}, {guest}")
        ask(f"DROP ROLE {owner}, {guest}")


def test_readonly_makes_nothing(postgres_url, ask):
    with pytest.raises(StorageError, match="open the store for writing"):
        SqlBackend(postgres_url, readonly=True)
    assert tables(ask) == []


def test_another_encoding_is_refused(postgres_server, ask):
    ask(
        "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C' LOCALE_PROVIDER libc"
    )
    try:
        with pytest.raises(ConfigError, match="UTF8"):
            SqlBackend(postgres_server.url("latin"))
    finally:
        ask("DROP DATABASE latin")


def test_a_database_that_is_not_there(postgres_server):
    with pytest.raises(ConfigError, match="CREATE DATABASE"):
        SqlBackend(postgres_server.url("nowhere"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://host/db",
        "postgresql+psycopg2://host/db",
        "postgres://host/db",
        "mysql://host/db",
        "postgresql+psycopg://ann:secret@host:port/db",
        "postgresql+psycopg://ann:secret@/db?host=/nowhere&nonsense=1",
    ],
)
def test_urls_of_no_use(url):
    with pytest.raises(ConfigError) as caught:
        SqlBackend(url)
    assert "secret" not in f"{caught.value!r}{caught.value}"


@pytest.mark.parametrize(
    "secret", ["ann:hidden@/", "/"], ids=["in the address", "among the options"]
)
def test_the_password_is_never_shown(postgres_url, secret):
    parsed = sa.make_url(postgres_url)
    if secret == "/":
        url = f"{postgres_url}&password=hidden"
    else:
        url = parsed.set(password="hidden").render_as_string(hide_password=False)
    with opened(url) as backend:
        shown = [repr(backend), str(backend.stats())]
        with pickle.loads(pickle.dumps(backend)) as copied:
            shown.append(repr(copied))
            assert sa.make_url(copied._dialect.address) == sa.make_url(url)
        with contextlib.suppress(StorageError):
            backend._write(lambda kept: kept.driver.execute("SELECT nonsense"), "trying")
        try:
            SqlBackend(url.replace("host=", "host=/nowhere/"))
        except UnavailableError as exc:
            shown += [str(exc), repr(exc), str(exc.__cause__)]
    assert len(shown) == 6
    assert "hidden" not in "".join(shown)


# --- on the disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "fsync", "expected"),
    [("on", False, "on"), ("off", True, "on"), ("off", False, "off"), ("remote_apply", True, None)],
)
def test_commits_are_never_less_safe_than_the_server_has_them(
    postgres_url, ask, server, fsync, expected
):
    name = sa.make_url(postgres_url).database
    ask(f"ALTER DATABASE {name} SET synchronous_commit = {server}")
    with opened(postgres_url, fsync=fsync) as backend:
        kept = backend._pool.acquire()
        (found,) = kept.driver.execute("SHOW synchronous_commit").fetchone()
        backend._pool.release(kept)
        assert found == (expected or server)


def test_sync_flushes_what_was_committed_lazily(postgres_url, ask):
    name = sa.make_url(postgres_url).database
    ask(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with opened(postgres_url) as backend:
        put(backend, "k")
        (before,) = ask("SELECT pg_current_wal_insert_lsn()").fetchone()
        backend.sync()
        assert ask("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", before).fetchone() == (True,)


def test_check_finds_an_index_that_is_not_valid(backend, ask):
    ask("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'parts_by_location'::regclass")
    (line,) = backend.check()
    assert "parts_by_location" in line
    ask("REINDEX INDEX parts_by_location")
    assert backend.check() == []


def test_lost_tables_are_no_empty_index(backend, ask):
    put(backend, "k")
    ask("DROP TABLE entries")
    with pytest.raises(StorageError, match="gone"):
        backend.get("k")
    with pytest.raises(StorageError, match="gone"):
        list(backend.scan(ALL))


# --- BlobStore: which store of a database ---------------------------------------------------------


def test_two_folders_share_nothing_by_accident(postgres_url, tmp_path):
    with BlobStore(tmp_path / "a", postgres_url) as a, BlobStore(tmp_path / "b", postgres_url) as b:
        a.put(1, key="k")
        b.put(b"2" * 100_000, key="l")
        assert (list(a), list(b)) == (["k"], ["l"])
    with BlobStore(tmp_path / "a", postgres_url) as a:
        assert dict(a) == {"k": 1}


def test_machines_that_share_blobs_share_the_store(postgres_url, tmp_path):
    """Each with a folder of its own, and no word about namespaces."""
    bucket = tmp_path / "bucket"

    def machine(name):
        return BlobStore(tmp_path / name, postgres_url, blob_backend=FilesystemStore(bucket))

    with machine("one") as one, machine("two") as two:
        one.put(b"x" * 100_000, key="k")
        assert two["k"] == b"x" * 100_000
        two.put(2, key="k")
        assert one["k"] == 2
        assert one.gc(dry_run=False, grace=0).items == ()
        with pickle.loads(pickle.dumps(two)) as copied:
            assert copied["k"] == 2


def test_machines_that_start_a_store_at_the_same_time(postgres_url, tmp_path, ask):
    bucket, barrier = tmp_path / "bucket", threading.Barrier(4)

    def machine(number):
        barrier.wait()
        with BlobStore(
            tmp_path / str(number), postgres_url, blob_backend=FilesystemStore(bucket)
        ) as store:
            store.put(number, key=f"k{number}")
            return store._index.store_id

    with ThreadPoolExecutor(4) as pool:
        (store_id,) = set(pool.map(machine, range(4)))
    assert ask("SELECT value FROM meta WHERE name = 'store_id'").fetchall() == [(store_id,)]
    (tmp_path / "reader").mkdir()
    objects = FilesystemStore(bucket)
    with BlobStore(
        tmp_path / "reader", postgres_url, blob_backend=objects, readonly=True
    ) as reader:
        assert list(reader) == [f"k{i}" for i in range(4)]


def test_a_store_by_name_whose_blobs_are_elsewhere_is_refused(postgres_url, tmp_path):
    url = f"{postgres_url}&blobstore_namespace=team"
    with BlobStore(tmp_path / "a", url) as store:
        store.put(1, key="k")
    with pytest.raises(IncompatibleStoreError, match="blobstore_namespace"):
        BlobStore(tmp_path / "b", url)
    with BlobStore(tmp_path / "a", url) as store:
        assert store["k"] == 1
    with BlobStore(tmp_path / "a", postgres_url) as store:  # the folder remembers
        assert store["k"] == 1


def test_blobs_of_a_store_that_the_database_does_not_know(postgres_server, postgres_url, tmp_path):
    with BlobStore(tmp_path / "a", "json") as store:
        store.put(b"x" * 100_000, key="k")
    blobs = tmp_path / "a" / "blobs"
    with pytest.raises(IncompatibleStoreError, match="knows no store"):
        BlobStore(tmp_path / "b", postgres_url, blob_backend=FilesystemStore(blobs))


def test_a_folder_over_memory(postgres_url, tmp_path):
    with BlobStore(tmp_path / "a", postgres_url, blob_backend=DictStore()) as store:
        store.put(b"x" * 100_000, key="k")
        assert store["k"] == b"x" * 100_000


def test_nothing_to_read_yet(postgres_url, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match="readonly=True"):
        BlobStore(tmp_path / "a", postgres_url, readonly=True)
