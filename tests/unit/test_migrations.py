"""Schema versions of the SQL index: older ones are migrated, newer ones refused."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

import pytest
import sqlalchemy as sa

from blobstore.backends.metadata import schema
from blobstore.backends.metadata.dialects import APPLICATION_ID
from blobstore.backends.metadata.sql import SqlBackend
from blobstore.errors import IncompatibleStoreError, IntegrityError, StorageError
from blobstore.query import F, Query
from blobstore.testing.metadata_backend import make_blob, put

VERSION_1 = f"""
    PRAGMA application_id = {APPLICATION_ID};
    CREATE TABLE meta (
        namespace TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
        PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID;
    CREATE TABLE entries (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL, "key" TEXT NOT NULL, version BIGINT NOT NULL,
        commit_id TEXT NOT NULL, handler TEXT NOT NULL, data_type TEXT NOT NULL,
        size BIGINT NOT NULL, created_us BIGINT NOT NULL, updated_us BIGINT NOT NULL,
        signature TEXT, located INTEGER NOT NULL, info TEXT NOT NULL, metadata TEXT NOT NULL,
        part_name TEXT, part_size BIGINT, part_checksum TEXT, part_codec TEXT, part_handler TEXT,
        part_format_version INTEGER, part_digest TEXT, part_created_us BIGINT, payload BLOB,
        UNIQUE (namespace, "key")
    );
    CREATE TABLE parts (
        entry_id INTEGER NOT NULL, position INTEGER NOT NULL, namespace TEXT NOT NULL,
        name TEXT NOT NULL, location TEXT NOT NULL, PRIMARY KEY (entry_id, position)
    ) WITHOUT ROWID;
    CREATE INDEX parts_by_location ON parts (namespace, location);
    CREATE TABLE blobs (
        namespace TEXT NOT NULL, location TEXT NOT NULL, size BIGINT NOT NULL,
        checksum TEXT NOT NULL, codec TEXT NOT NULL, handler TEXT NOT NULL,
        format_version INTEGER NOT NULL, digest TEXT, state TEXT NOT NULL,
        created_us BIGINT NOT NULL, condemned_us BIGINT, condemned_by TEXT,
        PRIMARY KEY (namespace, location)
    ) WITHOUT ROWID;
    CREATE INDEX blobs_condemned ON blobs (location) WHERE state = 'condemned';
    CREATE UNIQUE INDEX blobs_live_digest ON blobs (digest, namespace)
        WHERE state = 'live' AND digest IS NOT NULL;
    INSERT INTO meta VALUES ('', 'schema_version', '1');
    INSERT INTO meta VALUES ('default', 'store_id', '00000000000000000000000000000001');
    INSERT INTO entries VALUES (7, 'default', 'a', 3, 'c1', 'pickle', 'object', 5, 10, 20, NULL, 0,
        '{{}}', '{{"n":1}}', 'data', 5, 'xxh3-128:0', 'none', 'pickle', 1, NULL, 10, x'0001020304');
    INSERT INTO entries VALUES (9, 'default', 'b', 1, 'c2', 'numpy', 'array', 6, 11, 21, 's', 1,
        '{{}}', '{{}}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
    INSERT INTO parts VALUES (9, 0, 'default', 'array', 'l1.b2nd');
    INSERT INTO blobs VALUES
        ('default', 'l1.b2nd', 6, 'xxh3-128:1', 'lz4', 'numpy', 1, 'd1', 'live', 11, NULL, NULL);
"""
"""A store as version 1 made it. Never to be changed: stores like this one exist."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache_metadata.db"


@pytest.fixture
def old(path):
    """A store of schema version 1."""
    with raw(path) as connection:
        connection.executescript(VERSION_1)
    return path


@pytest.fixture
def future(monkeypatch):
    """What a later version of blobstore would know besides."""

    def add_owner(connection):
        schema.add_column(connection, "entries", sa.Column("owner", sa.Text))
        connection.exec_driver_sql("UPDATE entries SET owner = 'somebody'")

    def add_log(connection):
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS log (line TEXT)")

    steps = [schema.Migration(3, add_owner), schema.Migration(4, add_log)]
    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, *steps])
    monkeypatch.setattr("blobstore.backends.metadata.sql.MIGRATIONS", schema.MIGRATIONS)
    return steps


def raw(path):
    return contextlib.closing(sqlite3.connect(path, isolation_level=None))


def ask(path, statement):
    with raw(path) as connection:
        return connection.execute(statement).fetchall()


def opened(path, **options):
    return contextlib.closing(SqlBackend(path, **options))


def version(path):
    return ask(path, "SELECT value FROM meta WHERE name = 'schema_version'")


def shape(path):
    """Tables with their columns, and indexes with their conditions, as SQLite understands them."""
    tables = [name for (name,) in ask(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns = {name: ask(path, f"PRAGMA table_xinfo({name})") for name in tables}
    described = {
        name: sorted(
            (index[1], *index[2:], tuple(ask(path, f"PRAGMA index_xinfo('{index[1]}')")))
            for index in ask(path, f"PRAGMA index_list({name})")
        )
        for name in tables
    }
    kinds = {row[1]: row[2:] for row in ask(path, "PRAGMA table_list") if row[0] == "main"}
    return columns, described, kinds


def test_steps_are_numbered_one_by_one():
    assert [step.number for step in schema.MIGRATIONS] == list(range(1, len(schema.MIGRATIONS) + 1))


def test_new_store_has_the_shape_that_is_written_down(old, tmp_path):
    """Whoever changes a table finds here that stores of the old shape exist."""
    new = tmp_path / "new.db"
    SqlBackend(new).close()
    SqlBackend(old).close()
    assert shape(new) == shape(old)
    assert ask(new, "PRAGMA application_id") == [(APPLICATION_ID,)]


def test_store_of_version_1_is_read_and_written(old):
    with opened(old) as backend:
        a, b = backend.scan(Query())
        assert (a.id, a.version, a.metadata, a.parts[0].payload) == (
            7,
            3,
            {"n": 1},
            bytes(range(5)),
        )
        assert (b.id, b.signature, b.locations) == (9, "s", ("l1.b2nd",))
        assert backend.store_id == "0" * 31 + "1"
        assert put(backend, "c", make_blob(digest="d1")).locations == ("l1.b2nd",)
        assert backend.get("c").id > 9
        assert backend.check() == []


def test_metadata_that_databases_misread_is_respelled(old):
    """Step 2, for what step 1 knew nothing of."""
    texts = [r'{"n":"x\u0000y"}', '{"n":4.611686018427388e+18}', r'{"\u006e":1}', '{"n":[1e+22]}']
    with raw(old) as connection:
        for i, text in enumerate(texts):
            connection.execute(
                "INSERT INTO entries SELECT 100 + ?, namespace, 'k' || ?, version, commit_id,"
                " handler, data_type, size, created_us, updated_us, signature, located, info, ?,"
                " part_name, part_size, part_checksum, part_codec, part_handler,"
                " part_format_version, part_digest, part_created_us, payload"
                " FROM entries WHERE id = 7",
                [i, i, text],
            )
    with opened(old) as backend:
        assert ask(old, "SELECT searchable FROM entries WHERE key LIKE 'k%' ORDER BY key") == [
            (r'{"n":"x\u0001y"}',),
            ('{"n":4611686018427387904}',),
            ('{"n":1}',),
            (None,),
        ]
        for where, expected in [
            (F("n").startswith("x\0"), ["k0"]),
            (F("n") == 2**62, ["k1"]),
            (F("n") == 1, ["a", "k2"]),
            (F("n").contains(10**22), ["k3"]),
        ]:
            assert list(backend.keys(Query(where=where))) == expected


def test_older_store_is_migrated_at_opening(old, future):
    with opened(old) as backend:
        assert [entry.key for entry in backend.scan(Query())] == ["a", "b"]
        assert backend.store_id == "0" * 31 + "1"
        assert backend.stats()["schema_version"] == 4
        put(backend, "c")
    assert version(old) == [("4",)]
    assert ask(old, "SELECT owner FROM entries") == [("somebody",), ("somebody",), (None,)]
    assert ask(old, "SELECT * FROM log") == []


def test_version_0_takes_every_step(path, future):
    """A file that was marked as ours, and given nothing yet but its version."""
    with raw(path) as connection:
        connection.executescript(
            f"PRAGMA application_id = {APPLICATION_ID};"
            "CREATE TABLE meta (namespace TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,"
            "PRIMARY KEY (namespace, name)) WITHOUT ROWID;"
            "INSERT INTO meta VALUES ('', 'schema_version', '0')"
        )
    with opened(path) as backend:
        put(backend, "k")
        assert backend.check() == []
    assert version(path) == [("4",)]
    assert ask(path, "SELECT owner FROM entries") == [(None,)]


def test_migrated_store_has_the_shape_of_a_new_one(old, tmp_path, future):
    SqlBackend(old).close()
    SqlBackend(tmp_path / "new.db").close()
    assert shape(old) == shape(tmp_path / "new.db")


def test_process_that_opened_before_a_migration_goes_on(old, request):
    with opened(old) as before:
        assert before.get("a").version == 3
        request.getfixturevalue("future")
        with opened(old) as after:
            assert put(before, "a").version == 4
            assert after.get("a").version == 4


def test_newer_store_is_refused_untouched(path, future, monkeypatch):
    with opened(path) as backend:
        put(backend, "k")
    known = schema.MIGRATIONS[:-2]
    monkeypatch.setattr(schema, "MIGRATIONS", known)
    monkeypatch.setattr("blobstore.backends.metadata.sql.MIGRATIONS", known)
    before = path.read_bytes()
    for readonly in (False, True):
        with pytest.raises(IncompatibleStoreError, match=r"version 4.*upgrade"):
            SqlBackend(path, readonly=readonly)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_reader_does_not_migrate(old, future):
    before = old.read_bytes()
    with pytest.raises(IncompatibleStoreError, match="for writing once"):
        SqlBackend(old, readonly=True)
    assert old.read_bytes() == before


def test_failing_step_leaves_the_store_as_it_was(old, future, monkeypatch):
    def fail(connection):
        connection.exec_driver_sql("CREATE TABLE half (a)")
        connection.exec_driver_sql("SELECT * FROM nowhere")

    steps = [*schema.MIGRATIONS, schema.Migration(5, fail)]
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    monkeypatch.setattr("blobstore.backends.metadata.sql.MIGRATIONS", steps)
    before = shape(old)
    with pytest.raises(StorageError, match="nowhere"):
        SqlBackend(old)
    assert shape(old) == before
    assert version(old) == [("1",)]


def test_two_openers_migrate_once(old, future, monkeypatch):
    """Whoever waited for the other's migration finds nothing left to do."""
    calls = []
    counted = [
        schema.Migration(step.number, lambda c, s=step: (calls.append(s.number), s.apply(c))[1])
        for step in schema.MIGRATIONS
    ]
    monkeypatch.setattr(schema, "MIGRATIONS", counted)
    monkeypatch.setattr("blobstore.backends.metadata.sql.MIGRATIONS", counted)
    barrier = threading.Barrier(3)
    errors = []

    def work():
        barrier.wait()
        try:
            SqlBackend(old).close()
        except StorageError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (errors, calls) == ([], [2, 3, 4])


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5"])
def test_version_that_is_no_number_is_damage(old, text):
    with raw(old) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", [text])
    with pytest.raises(IntegrityError, match="schema version"):
        SqlBackend(old)


def test_each_namespace_gets_an_id_of_its_own(old):
    with opened(old, namespace="other") as other, opened(old, namespace="other") as again:
        assert other.store_id == again.store_id != "0" * 31 + "1"
        assert list(other.scan(Query())) == []
