"""ZipStore passes the suite, in each of its kinds; what it left is read back by `zipfile`."""

from __future__ import annotations

import zipfile
from typing import Any, ClassVar

import pytest

from blobstore.backends.blob.zip import ZipStore
from blobstore.errors import ClosedError, InvalidInputError
from blobstore.protocols import Capabilities
from blobstore.testing.object_store import ObjectStoreSuite


class ZipStoreSuite(ObjectStoreSuite):
    key_style = "paths"
    machine_examples = 8
    options: ClassVar[dict[str, Any]] = {}

    def make_store(self, tmp_path):
        return ZipStore(tmp_path / "objects.zip", **self.options)

    @pytest.fixture
    def store(self, tmp_path):
        with self.make_store(tmp_path) as store:
            yield store
            if store._finish.alive:
                objects = {key: store.get(key) for key in store.keys()}  # noqa: SIM118
                store.close()
                if store.path.exists():
                    with zipfile.ZipFile(store.path) as archive:
                        assert archive.testzip() is None
                        found = {name: archive.read(name) for name in archive.namelist()}
                    assert found == objects

    def test_capabilities(self, store):
        assert store.capabilities == Capabilities(
            ranges=store.compression == "stored",
            streams=True,
            conditional_writes=True,
            etags=True,
        )

    @pytest.mark.parametrize("wrong", ["text", 5, None], ids=repr)
    def test_wrong_types_are_invalid_input(self, store, wrong):
        for call in (store.put, store.put_if_absent):
            with pytest.raises(InvalidInputError):
                call("key", wrong)
        with pytest.raises(InvalidInputError), store.writer("key") as sink:
            sink.write(wrong)
        assert not store.path.exists()

    def test_closed_for_maintenance_too(self, store):
        store.close()
        for call in (
            store.leftovers,
            store.flush,
            store.compact,
            lambda: store.sync([]),
            lambda: store.delete_many([]),
            lambda: store.remove_leftover(".blobstore-00000000-" + "0" * 32),
            lambda: store.writer("key"),
            lambda: store.local_path("key"),
            lambda: store.keys(),
        ):
            with pytest.raises(ClosedError):
                call()


class TestZipStore(ZipStoreSuite):
    pass


class TestZipStoreDeflated(ZipStoreSuite):
    options: ClassVar[dict[str, Any]] = {"compression": "deflated", "level": 1}


class TestZipStoreSynced(ZipStoreSuite):
    machine_examples = 3
    options: ClassVar[dict[str, Any]] = {"fsync": True}
