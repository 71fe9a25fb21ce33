"""Every metadata backend passes the suite; so does the model that the machines compare with."""

from __future__ import annotations

import pytest

from blobstore.keys import random_id
from blobstore.protocols import Delete
from blobstore.query import Query
from blobstore.testing.metadata_backend import (
    MetadataBackendSuite,
    commit,
    equal_to,
    make_blob,
    make_put,
    put,
    rows,
)
from blobstore.testing.model import ModelBackend


class TestModelBackend(MetadataBackendSuite):
    """The suite holds for the oracle: what it asks for can be had, and the oracle is right."""

    def make_backend(self, path, **options):
        options.pop("fsync", None)
        return ModelBackend(path, **options)


class TestJsonBackend(MetadataBackendSuite):
    def make_backend(self, path, **options):
        from blobstore.backends.metadata.json import JsonBackend

        return JsonBackend(path, **options)


class SqlSuite(MetadataBackendSuite):
    """What all databases have besides."""

    def test_namespaces_are_apart(self, place):
        """Keys, blobs, digests and store ids of one namespace are not those of another."""
        with self.opened(place, namespace="one") as one, self.opened(place, namespace="two") as two:
            blob = make_blob(digest="d")
            put(one, "k", blob, metadata={"v": 1})
            assert (two.get("k"), two.count(Query()), rows(two)) == (None, 0, {})
            assert (two.find_digests(["d"]), two.known([blob.location])) == ({}, set())
            mine = make_blob(digest="d")
            assert commit(two, make_put("k", mine, expected="absent")).condemned == ()
            assert commit(two, Delete("k")).condemned == (mine.location,)
            assert one.condemned() == []
            assert list(one.keys(equal_to({"v": 1}))) == ["k"]
            assert one.store_id != two.store_id

    def test_a_namespace_is_there_again_after_reopening(self, place):
        """And is not the default one."""
        with self.opened(place, namespace="one") as one:
            put(one, "k")
            store_id = one.store_id
        with self.opened(place, namespace="one") as one:
            assert (one.store_id, one.count(Query())) == (store_id, 1)
        with self.opened(place) as default:
            assert default.count(Query()) == 0


class TestSqliteBackend(SqlSuite):
    def make_backend(self, path, **options):
        from blobstore.backends.metadata.sql import SqlBackend

        path.mkdir(parents=True, exist_ok=True)
        return SqlBackend(path / "cache_metadata.db", **options)


@pytest.fixture(scope="module")
def database(postgres_server):
    url = postgres_server.new_database()
    yield url
    postgres_server.drop_database(url)


class TestPostgresBackend(SqlSuite):
    """All tests share a database: each folder has namespaces of its own."""

    @pytest.fixture(autouse=True)
    def in_a_database(self, database):
        self.url = database

    def make_backend(self, path, *, namespace="default", **options):
        from blobstore.backends.metadata.sql import SqlBackend

        path.mkdir(parents=True, exist_ok=True)
        mark = path / "mark"
        if not mark.exists():
            mark.write_text(random_id())
        return SqlBackend(self.url, namespace=f"{mark.read_text()}/{namespace}", **options)
