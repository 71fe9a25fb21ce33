"""The stores that change, check or route keys pass the suite, over memory and over files."""

from __future__ import annotations

import pytest

from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.backends.blob.hashdir import HashdirStore
from blobstore.backends.blob.memory import DictStore
from blobstore.backends.blob.safe_filesystem import SafeFilesystemStore
from blobstore.protocols import Capabilities, ObjectStore
from blobstore.testing.object_store import ObjectStoreSuite
from blobstore.wrappers.key_transform import KeyTransformer, KeyTransformingStore
from blobstore.wrappers.prefix import HashPrefixStore, PrefixStore, PrefixTransformer
from blobstore.wrappers.routing import RegexRoutingStore
from blobstore.wrappers.url_encoding import UrlEncodingStore
from blobstore.wrappers.validate import (
    KeyValidatingStore,
    RegexValidatingStore,
    UrlValidatingStore,
)


class WrapperSuite(ObjectStoreSuite):
    machine_examples = 5


class OverMemory(WrapperSuite):
    def test_the_capabilities_of_the_store_beneath(self, store):
        assert store.capabilities == DictStore().capabilities


class OverFiles(WrapperSuite):
    key_style = "paths"

    def test_the_capabilities_of_the_store_beneath(self, store, tmp_path):
        assert store.capabilities == FilesystemStore(tmp_path).capabilities


# --- stores of files with names of their own ------------------------------------------------------


class TestHashdirStore(WrapperSuite):
    def make_store(self, tmp_path):
        return HashdirStore(tmp_path / "root")

    def peek(self, store, key):
        path = store.local_path(key)
        return None if path is None else path.read_bytes()

    def test_capabilities(self, store):
        assert store.capabilities == Capabilities(
            list=False,
            ranges=True,
            streams=True,
            local_files=True,
            conditional_writes=True,
            etags=True,
        )


class TestHashdirStoreFlat(TestHashdirStore):
    def make_store(self, tmp_path):
        return HashdirStore(tmp_path / "root", 5, 0, fsync=True, tmp_dir=tmp_path / "tmp")


class TestSafeFilesystemStore(WrapperSuite):
    def make_store(self, tmp_path):
        return SafeFilesystemStore(tmp_path / "root")

    def test_capabilities(self, store, tmp_path):
        assert store.capabilities == FilesystemStore(tmp_path).capabilities

    def test_no_key_is_in_the_way_of_another(self, store):
        keys = ["", *self.odd_keys, *("k" * n for n in (154, 155, 156, 309, 310, 311, 2048))]
        for key in keys:
            store.put(key, key.encode())
        assert sorted(store.keys()) == sorted(keys)
        assert all(store.get(key) == key.encode() for key in keys)


# --- prefixes -------------------------------------------------------------------------------------


def crowded(store: ObjectStore) -> ObjectStore:
    """Objects of others, whose keys begin almost like ours."""
    for key in ("other/x", "run", "run-2/key", "Run/key", "runs/a"):
        store.put(key, b"foreign")
    return store


class TestPrefixOverMemory(OverMemory):
    def make_store(self, tmp_path):
        return PrefixStore(crowded(DictStore()), "run/")


class TestPrefixOverFiles(OverFiles):
    def make_store(self, tmp_path):
        return PrefixStore(crowded(FilesystemStore(tmp_path / "root")), "runs/1/")


class TestPrefixInTheMiddleOfANameOverFiles(OverFiles):
    def make_store(self, tmp_path):
        return PrefixStore(FilesystemStore(tmp_path / "root"), "deep/er-")


class TestHashPrefixOverMemory(OverMemory):
    def make_store(self, tmp_path):
        return HashPrefixStore(crowded(DictStore()))


class TestHashPrefixOverFiles(OverFiles):
    def make_store(self, tmp_path):
        return HashPrefixStore(crowded(FilesystemStore(tmp_path / "root")), 64, "-")

    @property
    def odd_keys(self):
        return [key for key in super().odd_keys if len(key) < 190]  # with the hash, one name


# --- encodings ------------------------------------------------------------------------------------


class TestUrlEncodingOverMemory(OverMemory):
    def make_store(self, tmp_path):
        return UrlEncodingStore(DictStore())


class TestUrlEncodingOverFiles(OverFiles):
    key_style = "any"

    def make_store(self, tmp_path):
        return UrlEncodingStore(FilesystemStore(tmp_path / "root"))

    @property
    def odd_keys(self):
        more = ["", "/", "//", "a/", ".blobstore-tmp/x", ".blobstore-tmp", "%", "%2E", "nul\0"]
        return [key for key in super().odd_keys if len(key) <= 255] + more


# --- validation -----------------------------------------------------------------------------------


def almost_all(key):
    if key.startswith("run-2/"):
        raise KeyError("foreign")


class TestKeyValidatingOverMemory(OverMemory):
    def make_store(self, tmp_path):
        beneath = DictStore()
        beneath.put("run-2/key", b"foreign")
        return KeyValidatingStore(beneath, almost_all)


class TestKeyValidatingOverFiles(OverFiles):
    def make_store(self, tmp_path):
        beneath = FilesystemStore(tmp_path / "root")
        beneath.put("run-2/key", b"foreign")
        return KeyValidatingStore(beneath, almost_all)


class TestRegexValidatingOverMemory(OverMemory):
    def make_store(self, tmp_path):
        beneath = DictStore()
        beneath.put("~foreign~", b"")
        return RegexValidatingStore(beneath, r"(?s)(?!~foreign~).*")


class TestRegexValidatingOverFiles(OverFiles):
    def make_store(self, tmp_path):
        beneath = FilesystemStore(tmp_path / "root")
        beneath.put("~foreign~", b"")
        return RegexValidatingStore(beneath, r"(?s)(?!~foreign~).*")


class UrlSuite(WrapperSuite):
    """Every key of the suite becomes an address, so that only addresses reach the store."""

    host = "https://example.org/"

    def beneath(self, tmp_path):
        raise NotImplementedError

    def make_store(self, tmp_path):
        beneath = self.beneath(tmp_path)
        beneath.put("no address", b"foreign")
        return PrefixStore(UrlValidatingStore(beneath), self.host)

    @property
    def odd_keys(self):
        return [key for key in super().odd_keys if not any(c.isspace() or c < " " for c in key)]

    def test_other_keys_are_refused(self, store):
        with pytest.raises(KeyError, match="blanks"):
            store.put("a b", b"")
        assert list(store.store.keys()) == []


class TestUrlValidatingOverMemory(UrlSuite):
    def beneath(self, tmp_path):
        return DictStore()


class TestUrlValidatingOverFiles(UrlSuite):
    def beneath(self, tmp_path):
        return SafeFilesystemStore(tmp_path / "root")


# --- routing --------------------------------------------------------------------------------------


class TestRoutingOverMemory(OverMemory):
    def make_store(self, tmp_path):
        target = crowded(DictStore())
        return RegexRoutingStore(
            crowded(DictStore()),
            [("^(run|other/x)", PrefixStore(target, "deeper/")), ("", PrefixTransformer("own/"))],
        )


class TestRoutingOverFilesAndMemory(WrapperSuite):
    key_style = "paths"
    picklable = False
    forks = False

    def make_store(self, tmp_path):
        files = FilesystemStore(tmp_path / "root")
        return RegexRoutingStore(routes={"^[a-k]": files, "(?s).": DictStore()})

    def test_what_all_have_in_common(self, store):
        assert store.capabilities == DictStore().capabilities


class TestRoutingOverFiles(OverFiles):
    def make_store(self, tmp_path):
        return RegexRoutingStore(
            FilesystemStore(tmp_path / "base"),
            [
                ("^a", FilesystemStore(tmp_path / "a")),
                ("^[s-t]", PrefixTransformer("x/")),
                ("", PrefixTransformer("y/")),
            ],
        )


# --- the base -------------------------------------------------------------------------------------


class Backwards(KeyTransformer):
    def transform_key(self, key):
        return key[::-1]

    def reverse_transform_key(self, key):
        return key[::-1]


class OneWay(KeyTransformer):
    reversible = False

    def transform_key(self, key):
        return "".join(f"{ord(character):x}-" for character in key)


class TestKeyTransformingOverMemory(OverMemory):
    def make_store(self, tmp_path):
        return KeyTransformingStore(DictStore(), Backwards())


class TestKeyTransformingThatChangesNothing(OverFiles):
    def make_store(self, tmp_path):
        return KeyTransformingStore(FilesystemStore(tmp_path / "root"))


class TestKeyTransformingOneWay(WrapperSuite):
    def make_store(self, tmp_path):
        return KeyTransformingStore(DictStore(), OneWay())

    def test_says_so(self, store):
        assert not store.capabilities.list


class SubclassedStore(KeyTransformingStore):
    def transform_key(self, key):
        return f"<{key}>"

    def reverse_transform_key(self, key):
        if not key.startswith("<"):
            raise ValueError(key)
        return key[1:-1]

    def transform_prefix(self, prefix):
        return "<" + prefix


class TestKeyTransformingBySubclassing(OverMemory):
    def make_store(self, tmp_path):
        return SubclassedStore(crowded(DictStore()))

    def test_errors_name_the_key_of_the_caller(self, store):
        with pytest.raises(KeyError) as caught:
            store.get("absent")
        assert caught.value.location == "absent"
