"""The local cache of a BlobStore: a hit asks for nothing, and nothing goes wrong because of it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from blobstore import (
    BlobStore,
    ConfigError,
    DictStore,
    EncryptingStore,
    FilesystemStore,
    IntegrityError,
    StoreFactory,
)
from blobstore.errors import KeyNotFoundError, NotSupportedError, OutOfSpaceError, UnavailableError
from blobstore.testing.blob_store import BlobStoreSuite, big
from blobstore.testing.faults import FaultyStore
from blobstore.testing.object_store import in_fork, in_threads, peak_memory
from blobstore.wrappers.cache_folder import CacheFolder
from blobstore.wrappers.cache_total import SharedTotal
from blobstore.wrappers.local_cache import LocalCacheStore

SIZE = 40_000


@pytest.fixture
def main():
    with FaultyStore(DictStore()) as store:
        yield store


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def opened(tmp_path, main, cache):
    stores = []

    def make(name="store", **options):
        options = {"blob_backend": main, "local_cache": cache, "compression": "none", **options}
        stores.append(BlobStore(tmp_path / name, backend="sqlite", **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def copies(cache: Path) -> dict[str, Path]:
    """Every copy in a cache folder, by name."""
    return {path.name: path for path in cache.glob("copies/*/*") if path.is_file()}


def sizes(cache: Path) -> int:
    return sum(path.stat().st_size for path in copies(cache).values())


def asked(main: FaultyStore) -> dict[str, int]:
    """What the main store was asked since the last time."""
    calls = dict(main.calls)
    main.calls.clear()
    return calls


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    elif how == "cut":
        del data[len(data) // 2 :]
    elif how == "emptied":
        data.clear()
    elif how == "longer":
        data += b"x"
    path.write_bytes(data)


DAMAGES = ["flipped", "cut", "emptied", "longer"]


# --- what is asked of the main store ---------------------------------------------------------------


def test_a_hit_asks_the_main_store_nothing(opened, main):
    store = opened()
    store.put(big(), key="k")
    store.put({"w": np.arange(20_000.0), "x": np.ones(20_000)}, key="parts")
    asked(main)
    store.get("k"), store.get("parts")
    assert asked(main)
    assert store.get("k") == big()
    assert store["parts"]["w"][-1] == 19_999
    assert store.get_many(["k", "parts"])["k"] == big()
    with store.open("k") as file:
        assert file.read() == big()
    assert asked(main) == {}


def test_what_is_written_is_not_copied_before_it_is_read(opened, main, cache):
    store = opened()
    store.put(big(), key="k")
    store.put_many([("a", big(1)), ("b", big(2))])
    assert copies(cache) == {}
    store.get("a")
    assert sizes(cache) == SIZE
    with LocalCacheStore(main, cache, 100, "x") as objects:
        objects.put("a", b"1")
        assert objects.put_if_absent("b", b"2")
        assert not objects.holds("a")
        assert not objects.holds("b")


def test_streams_and_files_fill_the_cache_too(opened, main, cache, tmp_path):
    store = opened()
    store.put(big(), key="k")
    store.put(big(1), key="l")
    with store.open("k") as file:
        assert file.read(10) == big()[:10]
    store.get_file("l", tmp_path / "out")
    asked(main)
    assert (store["k"], store["l"]) == (big(), big(1))
    assert asked(main) == {}


def test_another_store_over_the_same_bytes_finds_the_copies(opened, main):
    first, second = opened(), opened()
    first.put(big(), key="k")
    assert first["k"] == big()
    asked(main)
    assert second["k"] == big()
    assert asked(main) == {}


def test_the_same_names_in_two_stores_are_two_objects(tmp_path, cache):
    """Object stores that choose their own names may choose the same."""
    a, b = FaultyStore(DictStore()), FaultyStore(DictStore())
    a.put("1", b"of a")
    b.put("1", b"of b")
    with LocalCacheStore(a, cache, 100, "a") as one, LocalCacheStore(b, cache, 100, "b") as two:
        for _ in range(2):
            assert (one.get("1"), two.get("1")) == (b"of a", b"of b")
    assert (a.calls["get"], b.calls["get"]) == (1, 1)


def test_an_overwritten_value_is_not_served(opened, cache):
    store, other = opened(), opened()
    store.put(big(), key="k")
    assert other["k"] == big()
    store.put(big(1), key="k")
    assert (other["k"], store["k"]) == (big(1), big(1))
    store.delete("k")
    assert other.get("k") is None


def test_nothing_is_left_of_what_was_deleted(opened, cache):
    store = opened()
    store.put_many([(str(i), big(i)) for i in range(4)])
    store.get_many(map(str, range(4)))
    assert len(copies(cache)) == 4
    store.delete("0")
    store.put(big(9), key="1")
    assert len(copies(cache)) == 2
    store.clear()
    assert copies(cache) == {}
    assert CacheFolder(cache, 10, "x").total == 0


def test_gc_leaves_no_copy(opened, main, cache):
    store = opened()
    store.put(big(), key="k")
    assert store["k"] == big()
    main.fail("delete_many", UnavailableError("down"), times=1)
    main.fail("delete", UnavailableError("down"), times=1)
    store.delete("k")
    assert any(key != ".blobstore-id" for key in main.store.keys())  # noqa: SIM118
    store.gc(dry_run=False, grace=0)
    assert [*main.store.keys()] == [".blobstore-id"]
    assert copies(cache) == {}


# --- damaged copies --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("value", ["bytes", "array", "pickle", "large", "parts"])
def test_a_damaged_copy_is_replaced(opened, main, cache, how, value):
    values = {
        "bytes": big(),
        "array": np.random.default_rng(0).standard_normal(5000),
        "pickle": [*big()],
        "large": np.random.default_rng(0).bytes(3 << 20),
        "parts": {name: np.random.default_rng(ord(name)).standard_normal(9000) for name in "abc"},
    }
    store = opened()
    store.put(values[value], key="k")
    store.get("k")
    for path in copies(cache).values():
        damage(path, how)
    np.testing.assert_equal(store["k"], values[value])
    asked(main)
    np.testing.assert_equal(store["k"], values[value])
    assert asked(main) == {}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("size", [SIZE, 3 << 20])
def test_a_stream_never_gives_a_damaged_copy(opened, cache, how, size, tmp_path):
    store = opened()
    data = np.random.default_rng(1).bytes(size)
    store.put(data, key="k")
    for read in (
        lambda: store.open("k").read(),
        lambda: store.get_file("k", tmp_path / "out").read_bytes(),
    ):
        store.get("k")
        (path,) = copies(cache).values()
        damage(path, how)
        assert read() == data


def test_many_threads_meet_a_damaged_copy(opened, cache):
    store = opened()
    store.put(big(), key="k")
    store.get("k")
    for path in copies(cache).values():
        damage(path, "flipped")
    assert in_threads(lambda _: store["k"], 8) == [big()] * 8


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_damage_in_the_main_store_is_an_error_and_its_repair_is_seen(opened, main, cache, how):
    store = opened()
    store.put(big(), key="k")
    (location,) = store.entry("k").locations
    wrong = bytearray(big())
    wrong[100] ^= 1
    main.store.put(location, wrong if how == "flipped" else wrong[:50])
    for read in (store.__getitem__, store.get, lambda key: store.open(key).read()):
        with pytest.raises(IntegrityError) as error:
            read("k")
        assert error.value.location == location
        assert copies(cache) == {}
    main.store.put(location, big())
    assert store["k"] == big()


def test_a_right_copy_is_as_good_as_a_main_store_that_lost_the_bytes(opened, main):
    store = opened()
    store.put(big(), key="k")
    store.get("k")
    (location,) = store.entry("k").locations
    main.store.delete(location)
    assert store["k"] == big()
    assert not store.exists("k")


def test_verify_looks_at_the_main_store(opened, main):
    store = opened()
    store.put(big(), key="k")
    store.get("k")
    (location,) = store.entry("k").locations
    main.store.put(location, big(1))
    (problem,) = store.verify(deep=True).problems
    assert (problem.kind, problem.location) == ("checksum", location)
    main.store.delete(location)
    (problem,) = store.verify().problems
    assert problem.kind == "missing"


# --- caches that do not work -----------------------------------------------------------------------


def a_file(cache):
    cache.write_bytes(b"")


def a_file_inside(cache):
    cache.mkdir()
    (cache / "copies").write_bytes(b"")


def a_folder_in_place_of_the_total(cache):
    (cache / "total").mkdir(parents=True)


def a_link_in_place_of_the_copies(cache):
    cache.mkdir()
    (cache.parent / "elsewhere").mkdir()
    (cache / "unfinished").symlink_to(cache.parent / "elsewhere")
    (cache / "total").symlink_to(cache.parent / "elsewhere/total")


@pytest.mark.parametrize(
    "spoil", [a_file, a_file_inside, a_folder_in_place_of_the_total, a_link_in_place_of_the_copies]
)
def test_a_broken_folder_fails_nothing(opened, cache, caplog, spoil):
    spoil(cache)
    store = opened()
    with caplog.at_level(logging.WARNING):
        store.put(big(), key="k")
        for _ in range(2):
            assert store["k"] == big()
        with store.open("k") as file:
            assert file.read() == big()
        store.delete("k")
    assert "cached copy" in caplog.text


def test_a_full_disk_fails_nothing(opened, monkeypatch, caplog, cache):
    def full(*args):
        raise OutOfSpaceError("the disk is full")

    store = opened()
    store.put(big(), key="k")
    monkeypatch.setattr(CacheFolder, "publish", full)
    assert [store["k"], store["k"]] == [big()] * 2
    assert "the disk is full" in caplog.text
    assert not [*cache.rglob("put-*")]
    monkeypatch.undo()
    store.get("k")
    assert sizes(cache) == SIZE


def test_a_disk_that_fills_up_on_the_way(main, cache):
    """A limit on the size of files, which the system raises as a full disk is."""
    resource = pytest.importorskip("resource")
    main.put("k", big())

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with LocalCacheStore(main, cache, 1 << 20, "x") as store:
            with store.source("k") as source:
                assert source.read() == big()
            assert store.get("k") == big()

    in_fork(limited)
    assert copies(cache) == {}
    assert CacheFolder(cache, 1 << 20, "x").total == 0
    assert not [*cache.rglob("put-*")]


def test_a_copy_that_cannot_be_removed_is_not_served(opened, cache, monkeypatch):
    store = opened()
    store.put(big(), key="k")
    store.get("k")
    for path in copies(cache).values():
        damage(path, "flipped")

    def stuck(self, key):
        raise OutOfSpaceError("no")

    monkeypatch.setattr(CacheFolder, "delete", stuck)
    assert store["k"] == big()
    assert store["k"] == big()


def test_a_folder_that_is_removed_while_it_is_used(opened, cache, main):
    import shutil

    store = opened()
    store.put(big(), key="k")
    store.get("k")
    shutil.rmtree(cache)
    for _ in range(3):
        assert store["k"] == big()
    asked(main)
    assert store["k"] == big()
    assert asked(main) == {}
    assert sizes(cache) == SIZE


def test_a_copy_that_goes_while_it_is_read(opened, cache):
    store = opened()
    data = np.random.default_rng(1).bytes(3 << 20)
    store.put(data, key="k")
    store.get("k")
    with store.open("k") as file:
        start = file.read(100)
        for path in copies(cache).values():
            path.unlink()
        assert start + file.read() == data


# --- the limit -------------------------------------------------------------------------------------


def test_the_longest_unused_goes_first(opened, main, cache):
    store = opened(local_cache_bytes=3 * SIZE + 10)
    store.put_many([(str(i), big(i)) for i in range(5)])
    for key in "012":
        store.get(key)
    store.get("0")
    store.get("3")
    asked(main)
    for key in "03":
        assert store[key] == big(int(key))
    assert asked(main) == {}
    store.get("1")
    assert asked(main)
    assert sizes(cache) <= 3 * SIZE + 10


def test_the_limit_holds_for_all_who_share_the_folder(opened, cache):
    limit = 5 * SIZE
    one, two = (
        opened(name, blob_backend="filesystem", local_cache_bytes=limit) for name in ("one", "two")
    )
    for store in (one, two):
        store.put_many([(str(i), big(i)) for i in range(8)])
    for i in range(24):
        for store in (one, two):
            assert store[str(i % 8)] == big(i % 8)
            assert sizes(cache) <= limit
    assert sizes(cache) >= 3 * SIZE


def test_threads_keep_the_limit(opened, cache):
    limit = 3 * SIZE
    store = opened(local_cache_bytes=limit)
    store.put_many([(str(i), big(i)) for i in range(8)])
    found = []

    def work(number):
        for i in range(12):
            key = (number * 3 + i) % 8
            assert store[str(key)] == big(key)
            found.append(CacheFolder(cache, limit, "x").total)

    in_threads(work, 4)
    assert max(found) <= limit
    assert CacheFolder(cache, limit, "x").total == sizes(cache)


def test_what_is_larger_than_the_limit_is_read_from_the_main_store(opened, cache, caplog):
    store = opened(local_cache_bytes=SIZE - 1)
    store.put(big(), key="k")
    assert [store["k"], store["k"]] == [big()] * 2
    assert copies(cache) == {}
    assert not caplog.records


def test_a_total_that_is_lost_or_damaged_is_counted_anew(cache):
    folder = CacheFolder(cache, 100, "x")
    folder.put("a", b"1" * 40)
    for text in (b"", b"-5", b"x" * 20, b"1", b"9" * 50):
        (cache / "total").write_bytes(text)
        assert folder.total == 40
    (cache / "total").unlink()
    folder.put("b", b"2" * 40)
    assert folder.total == 80
    folder.put("b", b"2" * 30)
    assert folder.total == 70
    folder.delete("a")
    assert folder.total == 30


def test_a_total_that_is_too_high_is_mended_when_room_is_needed(cache):
    folder = CacheFolder(cache, 100, "x")
    folder.put("a", b"1" * 40)
    (cache / "total").write_bytes(b"%020d" % 90)
    folder.put("b", b"2" * 40)
    assert (folder.total, len(copies(cache))) == (80, 2)


def test_a_publication_that_fails_counts_for_nothing(cache, monkeypatch):
    folder = CacheFolder(cache, 100, "x")
    folder.put("a", b"1" * 40)
    (cache / "copies").rename(cache / "gone")
    (cache / "copies").write_bytes(b"in the way")
    with pytest.raises(Exception, match="folder"):
        folder.put("b", b"2" * 40)
    assert (cache / "total").read_bytes() == b"%020d" % 40


def test_only_copies_are_ever_removed(cache):
    others = [cache / name for name in ("copies/ab/notes.txt", "copies/x.copy", "total.txt")]
    folder = CacheFolder(cache, 50, "x")
    folder.put("a", b"1" * 40)
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"9" * 100)
    outside = cache.parent / "outside"
    outside.mkdir()
    (outside / f"{'f' * 32}.copy").write_bytes(b"mine")
    for path in (*others, *outside.iterdir()):
        os.utime(path, (0, 0))  # these would be the first to go
    (cache / "copies/ff").symlink_to(outside)
    folder.put("b", b"2" * 40)
    assert all(path.exists() for path in others)
    assert (outside / f"{'f' * 32}.copy").exists()
    assert not folder.exists("a")


def test_a_cache_folder_as_an_object_store(cache):
    with CacheFolder(cache, 1000, "x") as folder:
        assert not folder.exists("a/../b")
        with pytest.raises(KeyNotFoundError):
            folder.get("a")
        with pytest.raises(KeyNotFoundError):
            folder.delete("a")
        with folder.writer("a/../b") as sink:
            sink.write(b"123")
            sink.write(b"456")
        with folder.writer("lent") as sink:
            sink.path().write_bytes(b"12")
        assert folder.total == 8
        assert folder.get_range("a/../b", 1, 3) == b"23"
        with folder.open("a/../b") as file, folder.source("a/../b") as source:
            assert (file.read(), source.size, folder.stat("lent").size) == (b"123456", 6, 2)
        assert folder.local_path("lent").read_bytes() == b"12"
        assert not folder.capabilities.list
        with pytest.raises(NotSupportedError):
            folder.keys()
        with pytest.raises(OutOfSpaceError):
            folder.put("big", bytes(1001))
        with pytest.raises(OutOfSpaceError), folder.writer("big") as sink:
            sink.write(bytes(600))
            sink.write(bytes(600))
        assert folder.total == 8
        assert not [*cache.rglob("put-*")]


def test_the_folder_is_for_its_user_alone(opened, cache):
    store = opened()
    store.put(big(), key="k")
    store.get("k")
    assert cache.stat().st_mode & 0o777 == 0o700


def is_held(path: Path) -> bool:
    """Whether somebody has the lock of a total."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_copies_are_published_and_deleted_in_turns(cache, monkeypatch):
    folder = CacheFolder(cache, 100, "x")
    folder.put("a", b"1")
    assert not is_held(cache / "total")
    seen = []
    replace, unlink = os.replace, os.unlink
    monkeypatch.setattr(
        os,
        "replace",
        lambda *args, **kw: (seen.append(is_held(cache / "total")), replace(*args, **kw)),
    )
    monkeypatch.setattr(
        os,
        "unlink",
        lambda *args, **kw: (seen.append(is_held(cache / "total")), unlink(*args, **kw)),
    )
    folder.put("b", b"2")
    folder.delete("a")
    assert seen == [True, True]
    assert not is_held(cache / "total")


def test_a_fork_while_the_total_is_held_does_not_keep_it(tmp_path):
    total = SharedTotal(tmp_path / "total", lambda: 0)
    with total.held() as held:
        held.write(1)
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads: not ours
            child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent is done
            os._exit(0)
    kept = is_held(tmp_path / "total")
    os.close(writer)
    os.close(reader)
    os.waitpid(child, 0)
    assert not kept


def test_large_blobs_are_not_held_in_memory(opened, tmp_path):
    store = opened(blob_backend="filesystem")
    (tmp_path / "file").write_bytes(bytes(range(256)) * (1 << 16))
    store.put_file(tmp_path / "file", key="k")
    for _ in range(2):
        assert peak_memory(lambda: store.get_file("k", tmp_path / "out")) < 6 << 20


# --- killed, forked, pickled -----------------------------------------------------------------------

KILLED = """
import os, signal, sys
from blobstore import BlobStore, FilesystemStore
from blobstore.streams import Source

folder, cache, where = sys.argv[1:]
store = BlobStore(folder, blob_backend=FilesystemStore(folder + "/objects"), local_cache=cache)

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "half":
    import blobstore.wrappers.cache_copies as copies
    feed = copies.Copies.feed
    def half(self, sink, name, data):
        feed(self, sink, name, bytes(data)[: len(data) // 2])
        sink._inner._file.flush()
        die()
    copies.Copies.feed = half
elif where == "counted":
    import blobstore.wrappers.cache_folder as folders
    def publish(self, name, size, sink):
        with self._total.held() as held:
            held.write(held.read() + size)
            die()
    folders.CacheFolder.publish = publish
store["k"]
"""


@pytest.mark.parametrize("where", ["half", "counted"])
def test_killed_while_filling(tmp_path, cache, where):
    folder = tmp_path / "store"
    objects = FilesystemStore(folder / "objects")
    data = np.random.default_rng(0).bytes(3 << 20)
    with BlobStore(folder, blob_backend=objects, local_cache=cache, compression="none") as store:
        store.put(data, key="k")
        done = subprocess.run([sys.executable, "-c", KILLED, folder, cache, where], check=False)
        assert done.returncode == -signal.SIGKILL
        assert len([*cache.rglob("put-*")]) == 1
        assert copies(cache) == {}
        for _ in range(2):
            assert store["k"] == data
        assert sizes(cache) == len(data)
        assert not [*cache.rglob("put-*")]  # the first to fill the cache tidies up


def test_gc_names_what_was_not_finished(opened, cache, main):
    store = opened()
    (cache / "unfinished").mkdir(parents=True)
    (cache / "unfinished" / f"put-{'a' * 32}.copy").write_bytes(b"123")
    (item,) = store.gc(grace=0).items
    assert (item.kind, item.size) == ("leftover", 3)
    store.gc(dry_run=False, grace=0)
    assert not [*cache.rglob("put-*")]


READER = """
import json, sys
from blobstore import BlobStore
from pathlib import Path

folder, cache, limit, seed = sys.argv[1:]
most = 0
with BlobStore(folder, local_cache=cache, local_cache_bytes=int(limit)) as store:
    keys = store.list()
    for i in range(60):
        key = keys[(i * int(seed)) % len(keys)]
        assert store[key] == store.get_metadata(key)["metadata"]["seed"] * b"0123456789"
        paths = [path for path in Path(cache).glob("copies/*/*")]
        total = 0
        for path in paths:
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                pass
        most = max(most, total)
print(json.dumps(most))
"""


def test_two_processes_share_one_cache(tmp_path, cache):
    folder, limit = tmp_path / "store", 30_000
    with BlobStore(folder, compression="none", backend="sqlite", inline_max_bytes=0) as store:
        store.put_many([(f"k{n}", n * b"0123456789", {"seed": n}) for n in range(300, 1300, 100)])
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, folder, cache, str(limit), seed], stdout=subprocess.PIPE
        )
        for seed in ("3", "7")
    ]
    for reader in readers:
        out, _ = reader.communicate(timeout=60)
        assert reader.returncode == 0
        assert 0 < json.loads(out) <= limit
    assert CacheFolder(cache, limit, "x").total == sizes(cache) <= limit


def test_a_fork_uses_the_same_cache(opened, main):
    store = opened()
    store.put(big(), key="k")
    store.get("k")

    def child():
        main.calls.clear()
        assert store["k"] == big()
        assert not main.calls

    in_fork(child)


def test_a_pickled_copy_uses_the_same_cache(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with BlobStore("store", local_cache="cache", inline_max_bytes=0) as store:
        store.put(big(), key="k")
        assert store["k"] == big()
        data = pickle.dumps(store)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with pickle.loads(data) as copy:
        assert copy["k"] == big()
    assert not [*(tmp_path / "below").iterdir()]
    assert len(copies(cache)) == 1


# --- arguments -------------------------------------------------------------------------------------


def test_nothing_is_kept_in_the_clear_beside_what_is_encrypted(tmp_path, cache):
    objects = EncryptingStore(DictStore(), bytes(32))
    with pytest.raises(ConfigError, match="beneath"):
        BlobStore(tmp_path / "store", blob_backend=objects, local_cache=cache)
    assert not cache.exists()


def test_what_the_error_advises_keeps_ciphertext(tmp_path, cache):
    from blobstore import CachingStore

    main = FaultyStore(DictStore())
    objects = EncryptingStore(CachingStore(main, FilesystemStore(cache)), bytes(32))
    with BlobStore(tmp_path / "store", blob_backend=objects, close_blob_backend=True) as store:
        store.put("a secret " * 10_000, key="k")
        store.get("k")
        main.calls.clear()
        assert store["k"] == "a secret " * 10_000
        assert not main.calls
    assert not any(b"a secret" in p.read_bytes() for p in cache.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "options",
    [
        {"local_cache": 5},
        {"local_cache": ""},
        {"local_cache": "a\0b"},
        {"local_cache": b"bytes"},
        {"local_cache_bytes": 0},
        {"local_cache_bytes": -1},
        {"local_cache_bytes": 1.5},
        {"local_cache_bytes": True},
        {"local_cache_bytes": None},
        {"local_cache": "~nobody-of-that-name/x"},
    ],
)
def test_wrong_arguments(tmp_path, options):
    with pytest.raises(ConfigError, match="local_cache"):
        BlobStore(tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_a_description_takes_a_local_cache(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("CACHE_BYTES", str(2 * SIZE))
    description = {
        "stores": {
            "data": {
                "type": "BlobStore",
                "base": {
                    "type": "FilesystemStore",
                    "config": {"root_path": str(tmp_path / "objects")},
                },
                "config": {
                    "cache_dir": str(tmp_path / "store"),
                    "local_cache": str(cache),
                    "local_cache_bytes": "${CACHE_BYTES}",
                },
            }
        },
        "main": "data",
    }
    with StoreFactory(description).build() as store:
        store.put_many([(str(i), big(i)) for i in range(4)])
        assert [store[str(i)] for i in range(4)] == [big(i) for i in range(4)]
    assert 0 < sizes(cache) <= 2 * SIZE


def test_a_store_that_is_only_read_has_a_cache_too(opened, main):
    opened().put(big(), key="k")
    store = opened(readonly=True)
    assert store["k"] == big()
    asked(main)
    assert store["k"] == big()
    assert asked(main) == {}


class TestABlobStoreWithALocalCache(BlobStoreSuite):
    """All that holds of a store holds with a cache before it."""

    def make_store(self, folder):
        return BlobStore(folder, backend="sqlite", inline_max_bytes=0, local_cache=folder / "cache")

    def poke(self, store, location, data):
        super().poke(store, location, data)
        store._cache.forget(location)  # which hides what is wrong
