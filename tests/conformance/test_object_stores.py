"""The object stores here, and two that know only what their interface asks for, pass the suite."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobstore.backends.blob.filesystem import FilesystemBlobBackend, FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.errors import (
    ClosedError,
    ConfigError,
    InvalidInputError,
    KeyNotFoundError,
    NotSupportedError,
    PermissionDeniedError,
)
from blobstore.keys import random_id
from blobstore.protocols import BlobBackend, Capabilities, ObjectStore
from blobstore.registry import object_stores
from blobstore.testing.object_store import ObjectStoreSuite


class OwnStoreSuite(ObjectStoreSuite):
    """What our own stores promise beyond the interface."""

    @pytest.mark.parametrize("wrong", ["text", 5, None], ids=repr)
    def test_wrong_types_are_invalid_input(self, store, wrong):
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
            lambda: store.sync([]),
            lambda: store.delete_many([]),
            lambda: store.remove_leftover("put-" + "0" * 32),
            lambda: store.writer("key"),
            lambda: store.local_path("key"),
            lambda: store.keys(),
        ):
            with pytest.raises(ClosedError):
                call()

    def test_wrong_ranges_of_absent_objects_are_absent_first_or_invalid(self, store):
        with pytest.raises((InvalidInputError, KeyNotFoundError)):
            store.get_range("absent", 5, 4)


class TestDictStore(OwnStoreSuite):
    def make_store(self, tmp_path):
        return DictStore()

    def test_capabilities(self, store):
        assert store.capabilities == Capabilities(
            ranges=True, conditional_writes=True, etags=True, persistent=False
        )

    def test_pickling_is_refused(self, store):
        with pytest.raises(NotSupportedError, match="FilesystemStore"):
            pickle.dumps(store)


class FileSuite(OwnStoreSuite):
    def peek(self, store: ObjectStore, key: str) -> bytes | None:
        path = self.file(store, key)
        return path.read_bytes() if path.is_file() else None

    def poke(self, store: ObjectStore, key: str, data: bytes) -> None:
        path = self.file(store, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def file(self, store: ObjectStore, key: str) -> Path:
        raise NotImplementedError

    def test_capabilities(self, store):
        assert store.capabilities == Capabilities(
            ranges=True, streams=True, local_files=True, conditional_writes=True, etags=True
        )


class TestFilesystemStore(FileSuite):
    key_style = "paths"

    def make_store(self, tmp_path):
        return FilesystemStore(tmp_path / "root")

    def file(self, store, key):
        return store.root_path / key


class TestFilesystemStoreSynced(TestFilesystemStore):
    machine_examples = 3

    def make_store(self, tmp_path):
        return FilesystemStore(tmp_path / "root", fsync=True, tmp_dir=tmp_path / "tmp")


class TestFilesystemBlobBackend(FileSuite):
    key_style = "names"

    def make_store(self, tmp_path):
        return FilesystemBlobBackend(tmp_path / "blobs")

    def file(self, store, key):
        return store.base_dir / key[: store.shard_chars] / key


class TestFilesystemBlobBackendDeepShards(TestFilesystemBlobBackend):
    machine_examples = 3

    def make_store(self, tmp_path):
        return FilesystemBlobBackend(tmp_path / "blobs", 8, tmp_dir=tmp_path / "tmp")


class TestOverriddenBlobBackend(ObjectStoreSuite):
    """All that is inherited goes through the methods that a subclass changes."""

    key_style = "names"

    def make_store(self, tmp_path):
        return ReversingBackend(tmp_path / "blobs")

    def peek(self, store, key):
        path = store.base_dir / key[:2] / key
        return path.read_bytes()[::-1] if path.is_file() else None

    def test_capabilities(self, store):
        assert store.capabilities == Capabilities()


class ReversingBackend(FilesystemBlobBackend):
    def write_blob(self, blob_id, data):
        assert type(data) is bytes
        return super().write_blob(blob_id, data[::-1])

    def read_blob(self, blob_path):
        return super().read_blob(blob_path)[::-1]


class FiveMethods(ObjectStore):
    """The least that is an object store."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] | None = {}

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(persistent=False)

    def _open(self) -> dict[str, bytes]:
        if self.objects is None:
            raise ClosedError("closed")
        return self.objects

    def get(self, key: str) -> bytes:
        try:
            return self._open()[key]
        except KeyError as exc:
            raise KeyNotFoundError("none", location=key) from exc

    def put(self, key, data):
        if not isinstance(key, str):
            raise TypeError("a key is a str")
        self._open()[key] = memoryview(data).tobytes()

    def exists(self, key: str) -> bool:
        return key in self._open()

    def delete(self, key: str) -> None:
        try:
            del self._open()[key]
        except KeyError as exc:
            raise KeyNotFoundError("none", location=key) from exc

    def keys(self, prefix: str = "") -> Iterator[str]:
        return iter([key for key in self._open() if key.startswith(prefix)])

    def close(self) -> None:
        self.objects = None


class TestFiveMethods(ObjectStoreSuite):
    def make_store(self, tmp_path):
        return FiveMethods()


class SimpleBlobs(BlobBackend):
    """A backend as the documents of the older BlobStore show it, that makes up its own paths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closed = False

    def _path(self, name: str) -> Path:
        if self.closed:
            raise ClosedError("closed")
        if not isinstance(name, str):
            raise TypeError("an id is a str")
        return self.folder / name.removeprefix(f"{self.folder}/")

    def write_blob(self, blob_id: str, data: bytes) -> str:
        path = self._path(blob_id)
        assert type(data) is bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".part-{random_id()}")
        beside.write_bytes(data)
        beside.replace(path)
        return str(path)

    def read_blob(self, blob_path: str) -> bytes:
        return self._path(blob_path).read_bytes()

    def delete_blob(self, blob_path: str) -> bool:
        path = self._path(blob_path)
        if not path.exists():
            return False
        path.unlink()
        return True

    def exists(self, blob_path: str) -> bool:
        return self._path(blob_path).exists()

    def close(self) -> None:
        self.closed = True


class TestSimpleBlobs(ObjectStoreSuite):
    key_style = "names"

    def make_store(self, tmp_path):
        return SimpleBlobs(tmp_path / "blobs")

    def peek(self, store, key):
        path = store.folder / key
        return path.read_bytes() if path.is_file() else None

    def test_location_is_what_write_blob_answers(self, store):
        with store.writer("key") as sink:
            sink.write(b"x")
        assert sink.location == str(store.folder / "key")


def test_names_in_the_registry():
    assert object_stores.get("memory") is DictStore
    assert object_stores.get("filesystem") is FilesystemBlobBackend
    with pytest.raises(ConfigError, match=r"'filesystem'.*'memory'"):
        object_stores.get("carrier-pigeon")


def test_an_object_that_cannot_be_removed_does_not_keep_the_others():
    class Stubborn(DictStore):
        delete_many = ObjectStore.delete_many

        def delete(self, key):
            if key == "b":
                raise PermissionDeniedError("not this one", location=key)
            super().delete(key)

    with Stubborn() as store:
        for key in "abc":
            store.put(key, b"x")
        with pytest.raises(PermissionDeniedError, match="not this one"):
            store.delete_many(["a", "absent", "b", "c"])
        assert list(store.keys()) == ["b"]
