"""The object store in SQLite passes the suite, in one row and in parts, with a log and without."""

from __future__ import annotations

import contextlib
import pickle
import sqlite3

import pytest

from blobstore.backends.blob import sqlite_file
from blobstore.backends.blob.sqlite import SqliteStore
from blobstore.errors import ClosedError, InvalidInputError
from blobstore.protocols import Capabilities
from blobstore.testing.object_store import ObjectStoreSuite


class PartedStore(SqliteStore):
    """Nearly everything has parts."""

    part_size = 1000


class SqliteSuite(ObjectStoreSuite):
    key_style = "any"

    def peek(self, store, key):
        with contextlib.closing(sqlite3.connect(store.db_path)) as connection:
            row = connection.execute(
                "SELECT id, part, data FROM objects WHERE key = ?", (key,)
            ).fetchone()
            if row is None or row[1] == 0:
                return row and row[2]
            parts = "SELECT data FROM parts WHERE object = ? ORDER BY number"
            return b"".join(data for (data,) in connection.execute(parts, (row[0],)))

    def poke(self, store, key, data):
        if not store.db_path.exists():
            store.put("to make the file", b"")
            store.delete("to make the file")
        values = (key, len(data), 0, 7, 0, data)
        with contextlib.closing(sqlite3.connect(store.db_path)) as connection, connection:
            connection.execute(
                "INSERT INTO objects (key, size, modified, etag, part, data) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )

    def test_capabilities(self, store):
        assert store.capabilities == Capabilities(
            ranges=True, streams=True, conditional_writes=True, etags=True
        )

    def test_wrong_types_are_invalid_input(self, store):
        for wrong in ("text", 5, None):
            with pytest.raises(InvalidInputError):
                store.put("key", wrong)
            with pytest.raises(InvalidInputError):
                store.put_if_absent("key", wrong)
            with pytest.raises(InvalidInputError), store.writer("key") as sink:
                sink.write(wrong)
        assert not store.exists("key")

    def test_closed_for_maintenance_too(self, store):
        store.close()
        for call in (
            store.leftovers,
            store.compact,
            lambda: store.sync([]),
            lambda: store.delete_many([]),
            lambda: store.remove_leftover("x"),
            lambda: store.writer("key"),
            lambda: store.local_path("key"),
            lambda: store.keys(),
        ):
            with pytest.raises(ClosedError):
                call()

    def test_a_pickled_copy_has_the_same_options(self, store):
        with pickle.loads(pickle.dumps(store)) as copy:
            assert type(copy) is type(store)
            assert (copy.db_path, copy._options) == (store.db_path, store._options)


class TestSqliteStore(SqliteSuite):
    def make_store(self, tmp_path):
        return SqliteStore(tmp_path / "folder" / "objects.db")


class TestSqliteStoreSynced(SqliteSuite):
    machine_examples = 3

    def make_store(self, tmp_path):
        return SqliteStore(str(tmp_path / "objects.db"), fsync=True, timeout=20)


class TestSqliteStoreInParts(SqliteSuite):
    machine_examples = 5

    def make_store(self, tmp_path):
        return PartedStore(tmp_path / "objects.db")


class TestSqliteStoreWithRollbackJournal(SqliteSuite):
    """As on a network file system."""

    machine_examples = 3

    @pytest.fixture(autouse=True)
    def network(self, monkeypatch):
        monkeypatch.setattr(sqlite_file, "on_network", lambda folder: True)

    def make_store(self, tmp_path):
        return PartedStore(tmp_path / "objects.db")
