"""What only the SQL index has: its statements, its files, its locks and its errors."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobstore.backends.metadata import searching
from blobstore.backends.metadata.dialects import SqliteDialect, dialect_for, on_network
from blobstore.backends.metadata.sql import SqlBackend
from blobstore.errors import (
    ClosedError,
    ConfigError,
    IncompatibleStoreError,
    IntegrityError,
    InvalidInputError,
    NotSupportedError,
    OutOfSpaceError,
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
)

linux = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs /proc/locks")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache_metadata.db"


@pytest.fixture
def backend(path):
    with contextlib.closing(SqlBackend(path)) as backend:
        yield backend


def inline(key, payload=b"bytes", **options):
    return make_put(key, parts=(make_inline(payload),), size=len(payload), **options)


def raw(path):
    return contextlib.closing(sqlite3.connect(path, isolation_level=None))


def run_python(code, *arguments, **options):
    """Run a script in a process of its own and return what it printed."""
    command = [sys.executable, "-B", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


# --- the statement for one small put, and the transaction for everything else ---------------------


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
        (inline("a", b"4", expected="present", now_us=70),),
        (inline("a", b"5", expected=3, now_us=80),),
        (Delete("a"),),
        (inline("a", b"6", now_us=90),),
        (make_copy("a", "d", now_us=95),),
        (inline("d", b"7", now_us=99),),
    ]
    results = [backend.commit(step, f"commit{i}") for i, step in enumerate(steps)]
    # The last one again: it has landed already.
    results.append(backend.commit(steps[-1], f"commit{len(steps) - 1}"))
    return results, snapshot(backend)


def ranked(found):
    """The same with ids counted in order: which of the unused numbers is taken is not promised."""
    results, (entries, blobs) = found
    listed = [entry for result in results for entry in result.entries] + entries
    order = {id: rank for rank, id in enumerate(sorted({entry.id for entry in listed}))}
    facts = [(result.condemned, result.missing) for result in results]
    return [entry._replace(id=order[entry.id]) for entry in listed], facts, blobs


def test_one_statement_and_transaction_agree(tmp_path, monkeypatch):
    with contextlib.closing(SqlBackend(tmp_path / "fast.db")) as backend:
        fast = history(backend)
    monkeypatch.setattr(SqlBackend, "_commit_inline", lambda *_: None)
    with contextlib.closing(SqlBackend(tmp_path / "slow.db")) as backend:
        slow = history(backend)
    assert ranked(fast) == ranked(slow)
    assert fast[0][-1] == fast[0][-2]


def test_small_put_needs_no_transaction(backend, monkeypatch):
    """Over nothing and over another small value."""

    def refuse(*_, **__):
        raise AssertionError("a transaction was begun")

    monkeypatch.setattr(SqlBackend, "_write", refuse)
    assert [put(backend, "k", parts=(make_inline(b"x"),)).version for _ in range(3)] == [1, 2, 3]
    assert commit(backend, inline("new", expected="absent")).entries[0].version == 1


def test_entries_are_read_as_they_were_written(backend):
    """Every field of an entry, a part and a blob survives, small value and blobs alike."""
    blob = make_blob(
        "1" * 32, digest="d", size=2**40, checksum="blake3:1", codec="zstd", handler="h",
        format_version=7, created_us=2**50,
    )  # fmt: skip
    fields = {"handler": "x", "data_type": "y", "info_text": '{"z":1}', "signature": "s"}
    located = put(backend, "blobs", blob, make_blob("2" * 32), size=2**41, now_us=2**51, **fields)
    part = make_inline(b"\0\xff")._replace(name="é", blob=blob._replace(location="", size=2))
    small = put(backend, "small", parts=(part,), size=2, now_us=2**51, **fields)
    assert backend.get("blobs") == located
    assert backend.get("small") == small
    assert list(backend.scan(Query())) == [located, small]
    assert backend.get_many(["small", "blobs", "no"]) == {"blobs": located, "small": small}


def test_mixed_parts_are_refused(backend):
    parts = (make_inline(b"x"), *make_put("k").draft.parts)
    with pytest.raises(InvalidInputError, match="mixes"):
        commit(backend, make_put("k", parts=parts))
    assert backend.get("k") is None


def test_adopting_counts_the_stored_bytes(backend):
    """`size` is of the bytes that are kept, not of those that lost."""
    put(backend, "a", make_blob(digest="d", size=10), size=10)
    entry = put(backend, "b", make_blob(digest="d", size=25), make_blob(size=1), size=26)
    assert entry.size == 11
    assert backend.get("b") == entry


def test_repeated_commit_answers_with_the_same_condemned(backend):
    """Also after the entry's blob was adopted, and its former one dropped."""
    put(backend, "a", make_blob(digest="d"))
    put(backend, "k", make_blob())
    operation = make_put("k", make_blob(digest="d"))
    first = backend.commit([operation], "once")
    assert len(first.condemned) == 2
    again = backend.commit([operation], "once")
    assert again.entries == first.entries
    assert sorted(again.condemned) == sorted(first.condemned)


def test_part_shared_within_one_commit_survives_adoption(backend):
    """A new blob under two keys that loses to a live one: both keys get the winner."""
    winner = put(backend, "a", make_blob(digest="d")).locations
    loser = make_blob(digest="d")
    result = commit(backend, make_put("b", loser), make_put("c", loser))
    assert [entry.locations for entry in result.entries] == [winner, winner]
    assert result.condemned == (loser.location,)


# --- plans and pages ------------------------------------------------------------------------------


def plan(backend, text, count):
    statement = f"EXPLAIN QUERY PLAN {text}"
    kept = backend._pool.acquire()
    found = " | ".join(row[3] for row in kept.driver.execute(statement, ("x",) * count).fetchall())
    backend._pool.release(kept)
    return found


def test_statements_use_indexes(backend):
    statements = backend._sql
    assert "SEARCH entries USING INDEX" in plan(backend, statements.get, 2)
    assert "TEMP B-TREE" not in plan(backend, statements.get, 2)
    for name, count, index in [
        ("get_many", 2, "entries USING INDEX sqlite_autoindex_entries_1 (namespace=? AND key=?)"),
        ("blobs_at", 2, "blobs USING PRIMARY KEY (namespace=? AND location=?)"),
        ("blobs_by_digest", 2, "blobs USING INDEX blobs_live_digest (digest=?)"),
        ("condemned", 1, "SCAN blobs USING INDEX blobs_condemned"),
        ("condemned_by", 2, "SCAN blobs USING INDEX blobs_condemned"),
        ("unreferenced", 2, "blobs USING PRIMARY KEY (namespace=? AND location=?)"),
        ("unreferenced", 2, "parts USING INDEX parts_by_location (namespace=? AND location=?)"),
        ("delete_parts", 1, "parts USING PRIMARY KEY (entry_id=?)"),
        ("forget", 2, "(namespace=? AND location=?)"),
        ("condemn_unused", 3, "blobs USING PRIMARY KEY (namespace=? AND location=?)"),
    ]:
        found = plan(backend, getattr(statements, name), count)
        assert index in found, (name, found)
        assert "SCAN entries" not in found, (name, found)
        assert "SCAN blobs" not in found or "blobs_condemned" in found, (name, found)
        assert "(namespace=?)" not in found, (name, found)


def test_prefix_is_a_range_of_the_index(backend):
    found = backend.explain(Query(prefix="a%", after="a%b"))
    assert "INDEX sqlite_autoindex_entries_1 (namespace=? AND key>? AND key<?)" in found.plan
    assert "TEMP B-TREE" not in found.plan
    assert not found.scans


def test_pages_of_any_size_give_the_same(backend, monkeypatch):
    keys = [f"k{i:02}" for i in range(20)]
    commit(
        backend, *(make_put(k, make_blob(), make_blob(), metadata={"n": k < "k1"}) for k in keys)
    )
    queries = [
        Query(),
        Query(prefix="k1"),
        equal_to({"n": True}),
        replace(equal_to({"n": True}), limit=3),
        Query(after="k03", limit=9),
        Query(limit=0),
    ]
    expected = [list(backend.scan(query)) for query in queries]
    assert [len(found) for found in expected] == [20, 10, 10, 3, 9, 0]
    for size in (1, 2, 5, 20):
        monkeypatch.setattr(searching, "_PAGE", size)
        monkeypatch.setattr(searching, "_KEY_PAGE", size)
        for query, entries in zip(queries, expected, strict=True):
            assert list(backend.scan(query)) == entries
            assert list(backend.keys(query)) == [entry.key for entry in entries]
            assert backend.count(query) == len(entries)


def test_listing_holds_no_connection(backend):
    """Between two entries, the connection is free for others."""
    commit(backend, *(inline(f"k{i}") for i in range(3)))
    listing = backend.scan(Query())
    next(listing)
    assert len(backend._pool.idle) == len(backend._pool._all) == 1


def test_more_names_than_a_statement_takes_parameters(backend):
    keys = [f"k{i}" for i in range(40_000)]
    commit(backend, *(make_put(key) for key in keys[:3]))
    assert set(backend.get_many(keys)) == set(keys[:3])
    assert backend.known(keys) == set()
    assert len(backend.condemn(keys, 1)) == len(keys)
    backend.forget(keys)
    assert len(rows(backend)) == 3


def test_lone_surrogates_are_nowhere(backend):
    commit(backend, inline("a"), inline("\ue000"), inline("\ud7ff"))
    assert backend.get("\ud800") is None
    assert backend.get_many(["\ud800", "a"]).keys() == {"a"}
    assert list(backend.keys(Query(prefix="\ud800"))) == []
    assert list(backend.keys(Query(after="\ud800x"))) == ["\ue000"]
    assert backend.count(Query(prefix="\udfff")) == 0


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    | st.sampled_from([10**400, 2**63, -(2**63) - 1, 5e-324, 1.7976931348623157e308, 0.1, "a\0b"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab.", max_size=2), inner),
    max_leaves=4,
)
names = st.sampled_from(
    ["", "a", "a.b", "$", "$.a", '"', "[0]", "#-1", "a\0", "\n", "é", "🎉", "\\u0061"]
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
    entries = list(backend.scan(Query()))
    assert list(backend.scan(query)) == list(filter(query.matcher(), entries))
    commit(backend, *(Delete(key) for key in keys))


def test_filters_are_narrowed_down_by_the_database(backend):
    """Rows that differ in type or value do not even reach Python."""
    for i, value in enumerate([1, 1.5, "1", True, False, None, [1], {"a": 1}, 10**30]):
        commit(backend, inline(f"k{i}", metadata={"v": value, "w": 0}))
    for value, expected in [
        (1, 1),
        (1.5, 1),
        ("1", 1),
        (True, 1),
        (None, 1),
        ([2], 0),
        (10**30, 1),
    ]:
        found = rows_of(backend, equal_to({"v": value}))
        assert len(found) == expected, value
        assert all(row.sure for row in found) == (value != 10**30)


def rows_of(backend, query):
    """What the database finds, before it is confirmed."""
    search = backend._search
    return [row for page in search._pages(search._plan(query), 500) for row in page]


def test_ascii_escapes_in_stored_text_are_understood(backend):
    """A document that another writer escaped in full."""
    commit(backend, make_put("k", metadata_text='{"\\ud83c\\udf89":"\\u00e9\\n"}'))
    assert list(backend.keys(equal_to({"🎉": "é\n"}))) == ["k"]


# --- places and files -----------------------------------------------------------------------------


def test_urls_and_paths_name_the_same_file(path):
    for place in (path, str(path), f"sqlite:///{path}"):
        with contextlib.closing(SqlBackend(place)) as backend:
            put(backend, "k")
            assert backend.stats()["place"] == str(path)
            assert repr(backend) == f"SqlBackend({str(path)!r}, namespace='default')"
    with contextlib.closing(SqlBackend(path)) as backend:
        assert backend.get("k").version == 3


def test_relative_path_is_fixed_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backend = SqlBackend("odd %41?#name.db")
    monkeypatch.chdir("/")
    put(backend, "k")
    backend.close()
    assert [file.name for file in tmp_path.iterdir()] == ["odd %41?#name.db"]


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "sqlite:////x?mode=ro", "mysql://h/d", "://", 3, b"x.db"],
)
def test_other_places_are_refused(url):
    with pytest.raises(ConfigError):
        dialect_for(url, fsync=False, readonly=False, timeout=1)


def test_namespace_must_be_a_name(path):
    with pytest.raises(InvalidInputError):
        SqlBackend(path, namespace="")
    assert not path.exists()


def test_old_sqlite_is_refused(path, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(NotSupportedError, match="too old"):
        SqlBackend(path)


def test_closing_leaves_one_file(path):
    backend = SqlBackend(path)
    put(backend, "k")
    assert path.with_name(path.name + "-wal").exists()
    backend.close()
    assert list(path.parent.iterdir()) == [path]


def test_forgotten_backend_is_closed_without_noise(path):
    """Connections go with the last reference to the backend; ResourceWarning would be an error."""
    put(SqlBackend(path), "k")
    assert list(path.parent.iterdir()) == [path]


def test_closing_while_in_use(backend):
    kept = backend._pool.acquire()
    backend.close()
    backend._pool.release(kept)
    assert backend._pool._all == {}
    with pytest.raises(ClosedError):
        backend.get("k")


@pytest.mark.parametrize(("fsync", "expected"), [(False, 1), (True, 2)])
def test_fsync_is_sqlites_own(path, fsync, expected):
    with contextlib.closing(SqlBackend(path, fsync=fsync)) as backend:
        ask = backend._read(lambda kept: kept.driver.execute("PRAGMA synchronous").fetchone(), "")
        assert ask == (expected,)
        assert raw_mode(path) == "wal"
        backend.sync()


def raw_mode(path):
    with raw(path) as connection:
        return connection.execute("PRAGMA journal_mode").fetchone()[0]


def test_sync_covers_wal_and_folder(backend, path, monkeypatch):
    put(backend, "k")
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))
    ) if Path("/proc/self/fd").exists() else pytest.skip("needs /proc")
    backend.sync()
    assert synced == [f"{path}-wal", str(path.parent)]


def test_mounts_tell_network_file_systems(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/a / ext4 rw 0 0\nserver:/x /mnt/my\\040nfs nfs4 rw 0 0\n"
        "/dev/b /mnt/my\\040nfs/disk xfs rw 0 0\nu@h: /home/u/far fuse.sshfs rw 0 0\n"
    )
    found = {
        place: on_network(place, str(mounts))
        for place in ("/data", "/mnt/my nfs/a", "/mnt/my nfs/disk/a", "/home/u/far", "/home/u/farm")
    }
    assert list(found.values()) == [False, True, False, True, False]
    assert on_network("/data", str(tmp_path / "none")) is False


def test_rollback_journal_on_network(path, monkeypatch):
    """New or moved there from a local disk; and back."""
    name = "blobstore.backends.metadata.dialects.on_network"
    for here, mode in [(False, "wal"), (True, "delete"), (True, "delete"), (False, "wal")]:
        monkeypatch.setattr(name, lambda _, here=here: here)
        with contextlib.closing(SqlBackend(path)) as backend:
            put(backend, "k")
            backend.sync()
            assert raw_mode(path) == mode
            assert path.with_name(path.name + "-wal").exists() is not here


# --- what is not ours, or not whole ---------------------------------------------------------------


def untouched(path, error, match=None, **options):
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(error, match=match):
        SqlBackend(path, **options)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_database_of_another_program_is_refused(path, mode, readonly):
    with raw(path) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE meta (namespace, name, value)")
    untouched(path, IncompatibleStoreError, "another program", readonly=readonly)


def test_unfinished_wal_of_another_program_is_left_alone(path):
    code = """
        import os, sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("PRAGMA journal_mode=wal")
        connection.execute("CREATE TABLE t (a)")
        os._exit(0)
    """
    run_python(code, path, check=True)
    before = path.read_bytes()
    with pytest.raises(IncompatibleStoreError):
        SqlBackend(path)
    assert path.read_bytes() == before
    with raw(path) as connection:
        assert connection.execute("SELECT * FROM t").fetchall() == []


@pytest.mark.parametrize("content", [b"", b"x", b"not a database, but long enough" * 300])
@pytest.mark.parametrize("readonly", [False, True])
def test_file_that_is_no_database_is_refused(path, content, readonly):
    path.write_bytes(content)
    untouched(path, IntegrityError, readonly=readonly)


def test_missing_file_beside_its_wal_is_no_new_store(path):
    path.with_name(path.name + "-wal").write_bytes(b"frames")
    untouched(path, IntegrityError, "is gone")


@pytest.mark.parametrize("size", [512, 5000, 4096 * 4])
def test_shortened_database_is_damaged(path, size):
    with contextlib.closing(SqlBackend(path)) as backend:
        commit(backend, *(make_put(f"k{i}") for i in range(200)))
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(IntegrityError), contextlib.closing(SqlBackend(path)) as backend:
        backend.get("k1")


def test_lost_schema_version_is_damage(path):
    SqlBackend(path).close()
    with raw(path) as connection:
        connection.execute("DELETE FROM meta")
    with pytest.raises(IntegrityError, match="schema version"):
        SqlBackend(path)


def test_damaged_pages_are_reported(path):
    with contextlib.closing(SqlBackend(path)) as backend:
        commit(backend, *(inline(f"k{i:03}", bytes(500)) for i in range(100)))
    with path.open("r+b") as file:
        file.seek(4096 * 6)
        file.write(os.urandom(path.stat().st_size - 4096 * 6))
    with contextlib.closing(SqlBackend(path)) as backend:
        assert backend.check() != []
        with pytest.raises(IntegrityError):
            list(backend.scan(Query()))
    assert path.stat().st_size > 4096 * 6


def test_damaged_metadata_is_no_miss(backend, path):
    put(backend, "k", metadata={"a": 1})
    with raw(path) as connection:
        connection.execute("UPDATE entries SET metadata = '{\"a\":'")
    with pytest.raises(IntegrityError):
        list(backend.scan(equal_to({"a": 1})))


def test_lost_blob_row_is_damage(backend, path):
    blob = make_blob()
    put(backend, "k", blob)
    with raw(path) as connection:
        connection.execute("DELETE FROM blobs")
    with pytest.raises(IntegrityError) as caught:
        backend.get("k")
    assert (caught.value.key, caught.value.location) == ("k", blob.location)


def test_check_names_every_contradiction(backend, path):
    blobs = [make_blob() for _ in range(4)]
    first = put(backend, "a", blobs[0])
    put(backend, "b", blobs[1])
    put(backend, "c", blobs[2])
    put(backend, "d", blobs[3])
    assert backend.check() == []
    with raw(path) as connection:
        connection.execute("DELETE FROM entries WHERE key = 'a'")
        connection.execute(
            "UPDATE blobs SET state = 'condemned' WHERE location = ?", [blobs[1].location]
        )
        connection.execute("DELETE FROM parts WHERE location = ?", [blobs[2].location])
        connection.execute("DELETE FROM blobs WHERE location = ?", [blobs[3].location])
    found = backend.check()
    assert len(found) == 5
    for part in (
        f"belongs to the entry {first.id}",
        f"'b' refers to the blob {blobs[1].location!r}, which is not live (state 'condemned')",
        f"the blob {blobs[2].location!r} is live, but no entry",
        "'c' has 0 parts, but should have 1",
        f"'d' refers to the blob {blobs[3].location!r}",
    ):
        assert any(part in line for line in found), part


def test_index_removed_meanwhile_is_no_new_store(path):
    backend = SqlBackend(path)
    backend._pool.drain()
    path.unlink()
    with pytest.raises(StorageError, match="gone"):
        backend.get("k")
    with pytest.raises(StorageError, match="gone"):
        put(backend, "k")
    backend.close()
    assert list(path.parent.iterdir()) == []


# --- locks, limits, rights ------------------------------------------------------------------------


def test_locked_database_is_unavailable(path):
    with contextlib.closing(SqlBackend(path, timeout=0.02)) as backend:
        put(backend, "k")
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            for operation in (inline("k"), make_put("k"), Delete("k"), make_patch("k", {})):
                with pytest.raises(UnavailableError, match="timeout") as caught:
                    commit(backend, operation)
                assert (caught.value.retryable, caught.value.outcome) == (True, "failed")
            assert backend.get("k").version == 1
            other.execute("ROLLBACK")
        assert put(backend, "k").version == 2


def test_turn_that_an_interrupted_thread_took_along_is_replaced(path):
    with contextlib.closing(SqlBackend(path, timeout=0.02)) as backend:
        lost = backend._pool.writing
        lost.acquire()
        commit(backend, make_put("k"))
        assert backend._pool.writing is not lost
        assert not backend._pool.writing.locked()
        lost = backend._pool.writing
        lost.acquire()
        commit(backend, inline("small"))
        assert backend._pool.writing is not lost


def test_thread_that_writes_too_long_makes_others_unavailable(path):
    with contextlib.closing(SqlBackend(path, timeout=0.02)) as backend:
        kept = backend._pool.acquire()
        with backend._pool.writing:
            kept.driver.execute("BEGIN IMMEDIATE")
            for operation in (inline("k"), make_put("k")):
                with pytest.raises(UnavailableError, match="timeout"):
                    commit(backend, operation)
            kept.driver.execute("ROLLBACK")
        backend._pool.release(kept)
        commit(backend, make_put("k"))


def test_file_size_limit_is_out_of_space(path):
    with contextlib.closing(SqlBackend(path)) as backend:
        put(backend, "old", metadata={"safe": True})
    code = """
        import resource, sys
        from blobstore.backends.metadata.sql import SqlBackend
        from blobstore.errors import OutOfSpaceError
        from blobstore.testing.metadata_backend import commit, make_inline, make_put
        backend = SqlBackend(sys.argv[1])
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        for make in (
            lambda i: [make_put(f"a{i}", parts=(make_inline(bytes(5000)),))],
            lambda i: [make_put(f"b{i}{j}", parts=(make_inline(bytes(5000)),)) for j in "xy"],
        ):
            stored = 0
            try:
                for i in range(1000):
                    commit(backend, *make(i))
                    stored += 1
            except OutOfSpaceError as exc:
                print("full", stored, exc)
        assert backend.get("old").metadata == {"safe": True}
    """
    done = run_python(code, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("full") == 2, done.stdout
    with contextlib.closing(SqlBackend(path)) as backend:
        stored = int(done.stdout.split()[1])
        assert backend.count(Query(prefix="a")) == stored > 10
        assert backend.check() == []
        put(backend, "new")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_FULL, OutOfSpaceError),
        (sqlite3.SQLITE_READONLY, PermissionDeniedError),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, UnavailableError),
        (sqlite3.SQLITE_CORRUPT_INDEX, IntegrityError),
        (sqlite3.SQLITE_IOERR_READ, StorageError),
        (sqlite3.SQLITE_TOOBIG, StorageError),
    ],
)
def test_errors_are_told_by_their_codes(backend, code, expected):
    exc = sqlite3.OperationalError("words")
    exc.sqlite_errorcode = code
    translated = backend._dialect.translate(exc, "doing x")
    assert type(translated) is expected
    assert str(translated).startswith("doing x failed: words")


UNPRIVILEGED = """
import contextlib, os, resource, sys, tempfile
from blobstore.backends.metadata.sql import SqlBackend
from blobstore.errors import PermissionDeniedError
from blobstore.query import Query
from blobstore.testing.metadata_backend import put
if os.getuid() == 0:
    # Without its capabilities, root is an owner like any other, to whom modes apply.
    import ctypes
    nothing = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), nothing) == 0
"""


READER = """
backend = SqlBackend(sys.argv[1], readonly=True)
for line in sys.stdin:
    print(*backend.keys(Query()), flush=True)
backend.close()
"""


def test_reading_without_any_rights_to_write(tmp_path):
    """At rest, while another process writes, and again at rest: always what is committed."""
    folder = tmp_path / "store"
    folder.mkdir()
    path = folder / "cache_metadata.db"
    with contextlib.closing(SqlBackend(path)) as writer:
        put(writer, "a")
    folder.chmod(0o555)
    command = [sys.executable, "-c", UNPRIVILEGED + READER, str(path)]
    pipe = subprocess.PIPE
    reader = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask():
        reader.stdin.write("?\n")
        reader.stdin.flush()
        return reader.stdout.readline().split()

    with reader:
        assert ask() == ["a"]
        folder.chmod(0o755)
        writer = SqlBackend(path)
        put(writer, "b")
        assert ask() == ["a", "b"]
        put(writer, "c")
        assert ask() == ["a", "b", "c"]
        writer.close()
        assert ask() == ["a", "b", "c"]
        with contextlib.closing(SqlBackend(path)) as writer:
            put(writer, "d")
        assert ask() == ["a", "b", "c", "d"]
        reader.stdin.close()
    assert reader.returncode == 0


WRITER = """
for name in sys.argv[1:]:
    try:
        with contextlib.closing(SqlBackend(name)) as backend:
            put(backend, "k")
    except PermissionDeniedError:
        print("denied")
"""


def test_writing_without_rights_is_denied(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    path = folder / "cache_metadata.db"
    SqlBackend(path).close()
    path.chmod(0o444)
    folder.chmod(0o555)
    done = run_python(UNPRIVILEGED + WRITER, path, folder / "new.db", folder / "sub" / "new.db")
    folder.chmod(0o755)
    assert done.stdout.split() == ["denied"] * 3, done.stderr
    assert list(folder.iterdir()) == [path]


def test_reading_makes_no_file(path):
    with pytest.raises(StorageError, match="there is no index"):
        SqlBackend(path, readonly=True)
    with contextlib.closing(SqlBackend(path)) as writer:
        put(writer, "k")
        store_id = writer.store_id
    with contextlib.closing(SqlBackend(path, readonly=True)) as reader:
        assert reader.get("k").version == 1
        assert (reader.count(Query()), reader.store_id, reader.check()) == (1, store_id, [])
        reader.sync()
        assert list(path.parent.iterdir()) == [path]
        with pytest.raises(NotSupportedError):
            commit(reader, inline("k"))
        with pytest.raises(NotSupportedError):
            commit(reader, make_put("k"))
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(IncompatibleStoreError, match="other"):
        SqlBackend(path, readonly=True, namespace="other")


def test_reader_follows_a_writer_of_the_same_process(path):
    SqlBackend(path).close()
    with contextlib.closing(SqlBackend(path, readonly=True)) as reader:
        for i in range(3):
            with contextlib.closing(SqlBackend(path)) as writer:
                put(writer, "k")
                assert reader.get("k").version == i + 1
            assert reader.get("k").version == i + 1


def locks_on(path):
    """Processes that hold a lock on the file."""
    inode = str(path.stat().st_ino)
    fields = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return {int(f[4]) for f in fields if f[1] == "POSIX" and f[5].split(":")[2] == inode}


@linux
def test_readers_snapshot_drops_no_lock_of_the_writer(path):
    """Closing any descriptor of a file ends all locks that the process has on it."""
    SqlBackend(path).close()
    reader = SqlBackend(path, readonly=True)
    assert reader.get("k") is None  # through a snapshot, nobody having it open
    with contextlib.closing(SqlBackend(path)) as writer:
        put(writer, "k")
        assert locks_on(path) == {os.getpid()}
        assert reader.get("k").version == 1  # the snapshot is out of date
        reader.close()
        assert locks_on(path) == {os.getpid()}


# --- processes ------------------------------------------------------------------------------------


def test_two_processes_make_one_store(path):
    code = """
        import sys
        from blobstore.backends.metadata.sql import SqlBackend
        sys.stdin.readline()
        backend = SqlBackend(sys.argv[1])
        print(backend.store_id)
        backend.close()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = {child.communicate(timeout=60)[0] for child in children}
    assert len(answers) == 1
    assert [child.returncode for child in children] == [0, 0, 0]
    assert list(path.parent.iterdir()) == [path]


def test_losing_the_race_to_make_a_store(path, monkeypatch):
    """Another process puts its database into place while ours is being made."""
    real = SqliteDialect._choose_journal
    others = []

    def slow(self, connection, place):
        real(self, connection, place)
        if place.endswith(".new") and not others:
            others.append(place)
            with contextlib.closing(SqlBackend(path)) as other:
                put(other, "k")
                others.append(other.store_id)

    monkeypatch.setattr(SqliteDialect, "_choose_journal", slow)
    with contextlib.closing(SqlBackend(path)) as backend:
        assert backend.store_id == others[1]
        assert backend.get("k").version == 1
    assert list(path.parent.iterdir()) == [path]


def test_making_a_store_without_hard_links(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with contextlib.closing(SqlBackend(path)) as backend:
        put(backend, "k")
    with contextlib.closing(SqlBackend(path)) as backend:
        assert backend.get("k").version == 1


WORKER = """
    import sys, threading
    from blobstore.backends.metadata.sql import SqlBackend
    from blobstore.keys import random_id
    from blobstore.testing.metadata_backend import commit, make_blob, make_inline, make_patch, make_put
    backend, name = SqlBackend(sys.argv[1]), sys.argv[2]
    sys.stdin.readline()
    def work(t):
        for i in range(15):
            commit(backend, make_put("shared", parts=(make_inline(b"x"),)))
            commit(backend, make_put(f"{name}/{t}/{i}", make_blob(digest=f"d{i}")))
            commit(backend, make_patch("counted", {f"{name}{t}{i}": i}))
    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    backend.close()
"""


def test_two_processes_of_four_threads(path):
    with contextlib.closing(SqlBackend(path)) as backend:
        commit(backend, inline("counted"))
        command = [sys.executable, "-c", textwrap.dedent(WORKER), str(path)]
        pipe = subprocess.PIPE
        children = [
            subprocess.Popen([*command, name], stdin=pipe, stderr=pipe, text=True) for name in "pq"
        ]
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children:
            assert child.communicate(timeout=120)[1] == ""
            assert child.returncode == 0
        assert backend.get("shared").version == 2 * 4 * 15
        assert len(backend.get("counted").metadata) == 2 * 4 * 15
        assert backend.count(Query(prefix="p/")) == backend.count(Query(prefix="q/")) == 60
        assert sum(blob.state == "live" for blob in backend.blobs()) == 15
        assert backend.check() == []


def test_killed_in_the_middle_of_a_commit(path):
    """Whatever was written of it before is gone, and nobody waits for its lock."""
    with contextlib.closing(SqlBackend(path)) as backend:
        before = put(backend, "a", make_blob("0" * 32))
    code = """
        import os, signal, sys
        from blobstore.backends.metadata.sql import SqlBackend
        from blobstore.backends.metadata.transaction import Transaction
        from blobstore.protocols import Delete
        from blobstore.testing.metadata_backend import make_put
        backend = SqlBackend(sys.argv[1])
        def die(self): os.kill(os.getpid(), signal.SIGKILL)
        Transaction._condemn_dropped = die
        backend.commit([make_put("a"), make_put("b"), Delete("a")], "never")
    """
    assert run_python(code, path).returncode == -signal.SIGKILL
    with contextlib.closing(SqlBackend(path, timeout=5)) as backend:
        assert list(backend.scan(Query())) == [before]
        assert list(rows(backend)) == ["0" * 32]
        assert backend.check() == []
        assert put(backend, "b").version == 1


FORKING = """
    import os, sys
    from pathlib import Path
    from blobstore.backends import sqlite_pool as connections
    from blobstore.backends.metadata.sql import SqlBackend
    from blobstore.query import Query
    from blobstore.testing.metadata_backend import put
    path = Path(sys.argv[1])
    def locks_on(path):
        inode = str(path.stat().st_ino)
        fields = [line.split() for line in open("/proc/locks")]
        return {int(f[4]) for f in fields if f[1] == "POSIX" and f[5].split(":")[2] == inode}
    backend = SqlBackend(path)
    put(backend, "parent")
"""

IDLE = """
    pid = os.fork()
    if pid == 0:
        put(backend, "child")
        assert os.getpid() in locks_on(path)
        assert backend.count(Query()) == 2
        sys.exit(0)  # with all that an interpreter finalises at its end
    assert os.waitpid(pid, 0)[1] == 0
    put(backend, "parent")
    assert locks_on(path) == {os.getpid()}
    assert backend.get("parent").version == 2
    assert backend.check() == []
    backend.close()
    assert os.listdir(path.parent) == [path.name]
"""

IN_USE = """
    connections._FORK_WAIT = 0
    kept = backend._pool.acquire()
    pid = os.fork()
    if pid == 0:
        assert (backend._pool.idle, backend._pool._all) == ([], {})
        kept = None
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert locks_on(path) == {os.getpid()}
    assert path.with_name(path.name + "-wal").exists()
    backend._pool.release(kept)
    assert put(backend, "parent").version == 2
    backend.close()
    assert os.listdir(path.parent) == [path.name]
"""


BUSY = """
    import threading, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is the point
    stop = threading.Event()
    def read():
        while not stop.is_set():
            backend.get("parent")
    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            held = {os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")}
            os._exit(any(name.startswith(str(path)) for name in held))
        assert os.waitpid(pid, 0)[1] == 0, "the child inherited a connection"
    stop.set()
    for reader in readers:
        reader.join()
    put(backend, "parent")
"""

TORN = """
    from blobstore.errors import StorageError
    connections._FORK_WAIT = 0
    kept = backend._pool.acquire()
    pid = os.fork()
    if pid == 0:
        try:
            backend.get("parent")
        except StorageError as exc:
            os._exit("forked" not in str(exc))
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    backend._pool.release(kept)
"""


@linux
@pytest.mark.parametrize(
    "script", [IDLE, IN_USE, BUSY, TORN], ids=["idle", "in use", "busy", "torn"]
)
def test_forked_child_locks_for_itself(path, script):
    """SQLite would believe that the child holds the locks of an open connection it inherited.

    And of one that is not given back in time, the child finalises nothing.
    """
    done = run_python(FORKING + script, path)
    assert (done.returncode, done.stderr) == (0, "")


class FailingCommit:
    """A driver's connection of which the disk fails at the end of a transaction."""

    def __init__(self, driver):
        self.driver = driver

    def __getattr__(self, name):
        return getattr(self.driver, name)

    def execute(self, text, *arguments):
        if text.startswith("INSERT INTO entries") and not self.driver.in_transaction:
            self.fail()
        return self.driver.execute(text, *arguments)

    def commit(self):
        if self.driver.in_transaction:
            self.fail()

    def fail(self):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error


@pytest.mark.parametrize(
    "operation", [inline("k"), make_put("k"), Delete("old")], ids=["inline", "put", "delete"]
)
def test_disk_that_fails_at_the_commit_leaves_the_outcome_open(backend, operation, monkeypatch):
    """SQLite's recovery may accept a transaction whose last sync failed."""
    put(backend, "old")
    kept = backend._pool.acquire()
    failing = FailingCommit(kept.driver)
    monkeypatch.setattr(kept, "driver", failing)
    monkeypatch.setattr(kept, "execute", failing.execute)
    backend._pool.release(kept)
    with pytest.raises(UnavailableError, match="next opened") as caught:
        commit(backend, operation)
    assert caught.value.outcome == "unknown"


def test_fork_waits_for_other_threads(backend):
    """A connection in use is given back and closed before the process forks."""
    from blobstore.backends import sqlite_pool as connections

    kept = backend._pool.acquire()
    waiting = threading.Thread(target=connections._before_fork)
    waiting.start()
    assert backend._pool._all
    backend._pool.release(kept)
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert backend._pool._all == {}
    assert connections._gate.locked()
    connections._gate.release()
    backend._pool.forking = False
    assert backend.get("k") is None
