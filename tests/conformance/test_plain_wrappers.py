"""The stores that watch, or try again, pass the suite, over memory and over files."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import ClassVar

import pytest

from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.errors import KeyNotFoundError, UnavailableError
from blobstore.protocols import ObjectStore
from blobstore.testing.object_store import ObjectStoreSuite
from blobstore.wrappers.access import ReadonlyStore, WriteonlyStore
from blobstore.wrappers.base import IdentityStore, WrapperStore
from blobstore.wrappers.log import ExceptionLoggingStore, LoggingStore
from blobstore.wrappers.notify import NotifyingStore
from blobstore.wrappers.retry import RetryingStore


class WrapperSuite(ObjectStoreSuite):
    machine_examples = 5
    wrapper: ClassVar[type[WrapperStore]]

    def beneath(self, tmp_path) -> ObjectStore:
        raise NotImplementedError

    def make_store(self, tmp_path):
        return self.wrapper(self.beneath(tmp_path))

    def peek(self, store, key):
        return store.store.get(key) if store.store.exists(key) else None

    def poke(self, store, key, data):
        store.store.put(key, data)

    def test_the_capabilities_of_the_store_beneath(self, store):
        assert store.capabilities == store.store.capabilities


class OverMemory(WrapperSuite):
    def beneath(self, tmp_path):
        return DictStore()


class OverFiles(WrapperSuite):
    key_style = "paths"

    def beneath(self, tmp_path):
        return FilesystemStore(tmp_path / "root")


class TestIdentityOverMemory(OverMemory):
    wrapper = IdentityStore


class TestIdentityOverFiles(OverFiles):
    wrapper = IdentityStore


class BothHalves(WriteonlyStore):
    """Writes through a `WriteonlyStore`, and reads through a `ReadonlyStore` over the same objects."""

    def __init__(self, store):
        super().__init__(store)
        self.readonly = ReadonlyStore(store)

    @property
    def capabilities(self):
        writes, reads = super().capabilities, self.readonly.capabilities
        return replace(
            reads, writable=writes.writable, conditional_writes=writes.conditional_writes
        )

    def get(self, key):
        return self.readonly.get(key)

    def exists(self, key):
        return self.readonly.exists(key)

    def keys(self, prefix=""):
        return self.readonly.keys(prefix)

    def get_range(self, key, start, stop):
        return self.readonly.get_range(key, start, stop)

    def open(self, key):
        return self.readonly.open(key)

    def source(self, key):
        return self.readonly.source(key)

    def stat(self, key):
        return self.readonly.stat(key)

    def local_path(self, key):
        return self.readonly.local_path(key)


class TestReadonlyAndWriteonlyOverMemory(OverMemory):
    wrapper = BothHalves


class TestReadonlyAndWriteonlyOverFiles(OverFiles):
    wrapper = BothHalves


class TestNotifyingOverMemory(OverMemory):
    """With a handler: what happens then is another way through the store."""

    def make_store(self, tmp_path):
        store = NotifyingStore(self.beneath(tmp_path))
        store.on_change(tell)
        store.on_put(fail)
        return store

    @pytest.fixture(autouse=True)
    def quiet(self, caplog):
        caplog.set_level(logging.CRITICAL)


class TestNotifyingOverFiles(TestNotifyingOverMemory):
    key_style = "paths"

    def beneath(self, tmp_path):
        return FilesystemStore(tmp_path / "root")


class TestNotifyingNobody(OverFiles):
    wrapper = NotifyingStore


def tell(store, action, key, error):
    assert action in {"put", "delete"}


def fail(store, key, error):
    raise RuntimeError("a handler of no use")


class TestLoggingOverMemory(OverMemory):
    wrapper = LoggingStore


class TestLoggingOverFiles(OverFiles):
    wrapper = LoggingStore


class TestExceptionLoggingOverMemory(OverMemory):
    def make_store(self, tmp_path):
        return ExceptionLoggingStore(self.beneath(tmp_path), reraise=True)


class TestExceptionLoggingOverFiles(TestExceptionLoggingOverMemory):
    key_style = "paths"

    def beneath(self, tmp_path):
        return FilesystemStore(tmp_path / "root")


class TestRetryingOverMemory(OverMemory):
    wrapper = RetryingStore


class TestRetryingOverFiles(OverFiles):
    wrapper = RetryingStore


class EveryOther(WrapperStore):
    """Fails at every first try, without having done anything or with the answer lost."""

    def __init__(self, store):
        super().__init__(store)
        self.calls: dict[int, int] = {}  # by thread, so that no thread meets two failures in a row

    def _fails(self):
        me = threading.get_ident()
        self.calls[me] = self.calls.get(me, 0) + 1
        return self.calls[me] % 2 == 1

    def get(self, key):
        if self._fails():
            raise UnavailableError("not now")
        return super().get(key)

    def put(self, key, data):
        if self._fails():
            super().put(key, data)
            raise UnavailableError("lost", outcome="unknown")
        super().put(key, data)

    def exists(self, key):
        if self._fails():
            raise UnavailableError("not now")
        return super().exists(key)

    def delete(self, key):
        super().delete(key)
        if self._fails():
            raise UnavailableError("lost", outcome="unknown")

    def keys(self, prefix=""):
        if self._fails():
            raise UnavailableError("not now")
        return super().keys(prefix)

    def get_range(self, key, start, stop):
        if self._fails():
            raise UnavailableError("not now")
        return super().get_range(key, start, stop)

    def stat(self, key):
        if self._fails():
            raise UnavailableError("not now")
        return super().stat(key)

    def copy(self, source, target):
        super().copy(source, target)
        if self._fails():
            raise UnavailableError("lost", outcome="unknown")

    def put_if_absent(self, key, data):
        written = super().put_if_absent(key, data)
        if written and self._fails():
            raise UnavailableError("lost", outcome="unknown")
        return written


class TestRetryingOverFailures(WrapperSuite):
    def make_store(self, tmp_path):
        return RetryingStore(EveryOther(DictStore()), sleep=no_time)

    def peek(self, store, key):
        try:
            return store.store.store.get(key)
        except KeyNotFoundError:
            return None

    def poke(self, store, key, data):
        store.store.store.put(key, data)


class TestRetryingOverFailuresOfFiles(TestRetryingOverFailures):
    key_style = "paths"

    def make_store(self, tmp_path):
        return RetryingStore(EveryOther(FilesystemStore(tmp_path / "root")), sleep=no_time)


def no_time(seconds):
    assert 0 <= seconds <= 10
