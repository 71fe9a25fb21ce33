"""Mirrors and caches pass the suite of object stores, over memory and over files, in each mode."""

from __future__ import annotations

import pytest

from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.testing.faults import FaultyStore
from blobstore.testing.object_store import ObjectStoreSuite
from blobstore.wrappers.cache import CachingStore
from blobstore.wrappers.mirror import FanoutStore, MirroringStore


class CombinedSuite(ObjectStoreSuite):
    machine_examples = 5

    def test_closed_for_maintenance_too(self, store):
        store.close()
        for call in (
            store.leftovers,
            lambda: store.sync([]),
            lambda: store.delete_many([]),
            lambda: store.remove_leftover("x"),
            lambda: store.writer("key"),
            lambda: store.local_path("key"),
        ):
            with pytest.raises(ValueError, match="closed"):
                call()


class TestMirrorInMemory(CombinedSuite):
    def make_store(self, tmp_path):
        return MirroringStore([DictStore(), DictStore()])

    def test_both_have_it(self, store):
        store.put("key", b"1")
        assert [child.get("key") for child in store.children.values()] == [b"1", b"1"]


class TestMirrorOfOne(CombinedSuite):
    def make_store(self, tmp_path):
        return FanoutStore({"only": DictStore()})


class TestMirrorOfFiles(CombinedSuite):
    key_style = "paths"

    def make_store(self, tmp_path):
        return MirroringStore([FilesystemStore(tmp_path / name) for name in "ab"])

    def peek(self, store, key):
        first, second = (
            child.get(key) if child.exists(key) else None for child in store.children.values()
        )
        assert first == second
        return first


class TestMirrorOfFilesAndMemory(CombinedSuite):
    key_style = "paths"

    def make_store(self, tmp_path):
        return MirroringStore({"disk": FilesystemStore(tmp_path / "a"), "memory": DictStore()})


class TestCacheInMemory(CombinedSuite):
    def make_store(self, tmp_path):
        return CachingStore(DictStore(), DictStore())

    def test_the_copy_is_the_object(self, store):
        store.put("key", b"1")
        assert store.cache_store.get("key") == b"1"


class TestCacheOnFilesOverMemory(CombinedSuite):
    key_style = "paths"

    def make_store(self, tmp_path):
        return CachingStore(DictStore(), FilesystemStore(tmp_path / "cache"))


class TestCacheInMemoryOverFiles(CombinedSuite):
    key_style = "paths"
    picklable = False  # memory is not

    def make_store(self, tmp_path):
        return CachingStore(FilesystemStore(tmp_path / "main"), DictStore())


class TestCacheOnFilesOverFiles(CombinedSuite):
    key_style = "paths"

    def make_store(self, tmp_path):
        return CachingStore(FilesystemStore(tmp_path / "m"), FilesystemStore(tmp_path / "c"))


class TestValidatingCacheInMemory(CombinedSuite):
    def make_store(self, tmp_path):
        return CachingStore(DictStore(), DictStore(), validate=True)


class TestValidatingCacheOnFiles(CombinedSuite):
    key_style = "paths"

    def make_store(self, tmp_path):
        main, cache = FilesystemStore(tmp_path / "m"), FilesystemStore(tmp_path / "c")
        return CachingStore(main, cache, validate=True, max_bytes=1 << 20, max_age=3600)


class TestBoundedCacheInMemory(CombinedSuite):
    def make_store(self, tmp_path):
        return CachingStore(DictStore(), DictStore(), max_bytes=1000)


class TestBoundedCacheOnFiles(CombinedSuite):
    key_style = "paths"

    def make_store(self, tmp_path):
        main, cache = FilesystemStore(tmp_path / "m"), FilesystemStore(tmp_path / "c")
        return CachingStore(main, cache, max_bytes=400_000, max_age=3600)


class TestBrokenCache(CombinedSuite):
    """Nothing can be had from the cache, nor put into it."""

    def make_store(self, tmp_path):
        cache = FaultyStore(DictStore())
        cache.fail()
        return CachingStore(DictStore(), cache)


class TestFaultyStore(ObjectStoreSuite):
    """What does not fail is handed on as it is."""

    machine_examples = 5

    def make_store(self, tmp_path):
        return FaultyStore(DictStore())
