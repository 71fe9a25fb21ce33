"""Mirrors and caches under threads, over stores that fail at random: no reader is taken back in time.

Each key has one thread that changes it, step by step; the number of the step is in the bytes. A
step is *sure* once its call ended well, or said that some child has it. A reader that begins after
a sure step must never be given an older one, whatever fails meanwhile.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blobstore import (
    CachingStore,
    DictStore,
    EncryptingStore,
    FilesystemStore,
    GzipStore,
    MirroringStore,
    SqliteStore,
    ZstdStore,
)
from blobstore.errors import BlobStoreError, KeyNotFoundError, MirrorError, UnavailableError
from blobstore.protocols import ObjectStore
from blobstore.wrappers.base import WrapperSink, WrapperStore

KEYS = ("a", "b", "c")
STEPS = 120
READERS = 3
SIZES = (0, 10, 100_000)


class Shaky(WrapperStore):
    """Fails now and then: before it did what it was asked, or after that."""

    steady = False

    def _shake(self, work: Callable[[], Any], *, changes: bool = False) -> Any:
        at = random.random()
        if at < 0.08 and not self.steady:
            raise UnavailableError("away")
        result = work()
        if changes and at > 0.92 and not self.steady:
            raise UnavailableError("no answer", outcome="unknown")
        return result

    def get(self, key):
        return self._shake(lambda: self.store.get(key))

    def exists(self, key):
        return self._shake(lambda: self.store.exists(key))

    def open(self, key):
        return self._shake(lambda: self.store.open(key))

    def source(self, key):
        return self._shake(lambda: self.store.source(key))

    def stat(self, key):
        return self._shake(lambda: self.store.stat(key))

    def put(self, key, data):
        self._shake(lambda: self.store.put(key, data), changes=True)

    def put_if_absent(self, key, data):
        return self._shake(lambda: self.store.put_if_absent(key, data), changes=True)

    def delete(self, key):
        self._shake(lambda: self.store.delete(key), changes=True)

    def delete_many(self, keys):
        found = list(keys)
        self._shake(lambda: self.store.delete_many(found), changes=True)

    def writer(self, key, size_hint=None):
        return ShakySink(self.store.writer(key, size_hint), self)


class ShakySink(WrapperSink):
    def __init__(self, inner, store):
        super().__init__(inner)
        self._store = store

    def commit(self):
        self._store._shake(super().commit, changes=True)


class History:
    """The steps of one key: which of them were sure, and which left no object."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.leaves_object = [False]
        self.sure = 0

    def begin(self, *, leaves_object: bool) -> int:
        with self.lock:
            self.leaves_object.append(leaves_object)
            return len(self.leaves_object) - 1

    def is_sure(self, step: int) -> None:
        with self.lock:
            self.sure = step


class Play:
    """Threads that change and read a store at once."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.histories = {key: History() for key in KEYS}
        self.over = threading.Event()
        self.wrong: list[object] = []
        self.reads = 0

    def run(self) -> None:
        writers = [threading.Thread(target=self._guarded, args=(self._write, key)) for key in KEYS]
        readers = [
            threading.Thread(target=self._guarded, args=(self._read,)) for _ in range(READERS)
        ]
        for thread in (*writers, *readers):
            thread.start()
        for thread in writers:
            thread.join()
        self.over.set()
        for thread in readers:
            thread.join()
        assert self.wrong == []
        assert self.reads > 0

    def _guarded(self, work: Callable[..., None], *args: str) -> None:
        try:
            work(*args)
        except BaseException as exc:  # told by the thread of the test
            self.wrong.append(exc)

    def _write(self, key: str) -> None:
        history = self.histories[key]
        for _ in range(STEPS):
            change = random.choice((self._put, self._put, self._stream, self._delete, self._forget))
            step = history.begin(leaves_object=change in (self._put, self._stream))
            try:
                change(key, step)
            except MirrorError as exc:
                if not exc.succeeded:
                    continue
            except KeyNotFoundError:
                pass  # there was none: so much is sure
            except BlobStoreError:
                continue
            history.is_sure(step)

    @staticmethod
    def _data(step: int) -> bytes:
        return b"%d|" % step + bytes(random.choice(SIZES))

    def _put(self, key: str, step: int) -> None:
        self.store.put(key, self._data(step))

    def _stream(self, key: str, step: int) -> None:
        with self.store.writer(key) as sink:
            sink.write(self._data(step))

    def _delete(self, key: str, _: int) -> None:
        self.store.delete(key)

    def _forget(self, key: str, _: int) -> None:
        self.store.delete_many([key])

    def _read(self) -> None:
        while not self.over.is_set():
            key = random.choice(KEYS)
            history = self.histories[key]
            least = history.sure
            try:
                found = self._look(key)
            except KeyNotFoundError:
                found = None
            except BlobStoreError:
                continue
            with history.lock:
                later = history.leaves_object[least:]
            self.reads += 1
            if found is None:
                fits = not all(later)
            else:
                fits = 0 <= found - least < len(later) and later[found - least]
            if not fits:
                self.wrong.append((key, found, least, later))

    def _look(self, key: str) -> int:
        way = random.randrange(3)
        if way == 0:
            data = self.store.get(key)
        elif way == 1:
            with self.store.open(key) as file:
                data = file.read()
        else:
            with self.store.source(key) as source:
                data = source.read()
        return int(data.partition(b"|")[0])


def mirror(folder: Path, shaky: list[Shaky]) -> MirroringStore:
    children = (DictStore(), FilesystemStore(folder / "a"), SqliteStore(folder / "b.db"))
    shaky += [Shaky(child) for child in children]
    return MirroringStore(shaky)


def stack(folder: Path, shaky: list[Shaky]) -> CachingStore:
    shaky += [Shaky(FilesystemStore(folder / "a")), Shaky(FilesystemStore(folder / "b"))]
    both = [ZstdStore(EncryptingStore(shaky[0], bytes(32))), GzipStore(shaky[1])]
    return CachingStore(MirroringStore(both), Shaky(DictStore()))


def cache(**options: Any) -> Callable[[Path, list[Shaky]], CachingStore]:
    def make(folder: Path, shaky: list[Shaky]) -> CachingStore:
        main = Shaky(FilesystemStore(folder / "main"))
        return CachingStore(main, Shaky(FilesystemStore(folder / "cache")), **options)

    return make


STACKS = {
    "mirror": mirror,
    "cache": cache(),
    "validating cache": cache(validate=True),
    "bounded cache": cache(max_bytes=150_000),
    "bounded and validating cache": cache(validate=True, max_bytes=150_000, max_age=3600),
    "cache over a mirror": stack,
}


@pytest.mark.parametrize("name", STACKS)
def test_no_reader_is_taken_back_in_time(name, tmp_path, caplog):
    caplog.set_level("CRITICAL")  # a shaky cache warns of each failure
    shaky: list[Shaky] = []
    with STACKS[name](tmp_path, shaky) as store:
        Play(store).run()
        for child in shaky:
            child.steady = True
        together = store if isinstance(store, MirroringStore) else store.main_store
        if isinstance(together, MirroringStore):
            assert together.repair().complete
            for key in KEYS:
                children = together.children.values()
                found = {child.get(key) if child.exists(key) else None for child in children}
                assert len(found) == 1
