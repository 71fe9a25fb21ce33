"""What a cache serves when it, or the main store, fails, and when others are faster."""

from __future__ import annotations

import contextlib
import logging
import pickle
import threading
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from blobstore.backends.blob.filesystem import FilesystemBlobBackend, FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.entry import ObjectStat
from blobstore.errors import (
    ClosedError,
    ConfigError,
    IntegrityError,
    InvalidInputError,
    KeyNotFoundError,
    NotSupportedError,
    OutOfSpaceError,
    StorageError,
    UnavailableError,
)
from blobstore.protocols import BlobBackend, Capabilities, Leftover
from blobstore.testing.faults import OPERATIONS, FaultyStore
from blobstore.testing.object_store import in_fork, peak_memory
from blobstore.wrappers import cache as cache_module
from blobstore.wrappers import cache_copies, cache_guard, cache_room
from blobstore.wrappers.cache import CachingStore
from blobstore.wrappers.compress import GzipStore

MODES = {"plain": {}, "validate": {"validate": True}, "bounded": {"max_bytes": 1000}}


def make(**options):
    main, cache = FaultyStore(DictStore()), FaultyStore(DictStore())
    return CachingStore(main, cache, **options), main, cache


@pytest.fixture(params=MODES)
def trio(request):
    store, main, cache = make(**MODES[request.param])
    with store:
        yield store, main, cache


@pytest.fixture
def plain():
    store, main, cache = make()
    with store:
        yield store, main, cache


def warm(store, key="key", data=b"old"):
    store.put(key, data)
    assert store.get(key) == data
    return list(store.cache_store.store.keys())


# --- construction ----------------------------------------------------------------------------------


@contextlib.contextmanager
def stalled_read(store, way, stall):
    """While a reader in another thread is held up; gives what it has read in the end."""
    found = []

    def read():
        if way == "get":
            found.append(store.get("key"))
        else:
            with store.source("key") as source:
                found.append(source.read())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert stall.reached.wait(30)
        yield found
    finally:
        stall.go.set()
        reader.join()


class NoList(DictStore):
    @property
    def capabilities(self):
        return Capabilities(list=False, persistent=False)


class NoTimes(DictStore):
    def stat(self, key):
        return ObjectStat(super().stat(key).size)


class DefaultStat(DictStore):
    stat = BlobBackend.stat


class Text(DictStore):
    @property
    def capabilities(self):
        return Capabilities(values="text", persistent=False)


@pytest.mark.parametrize(
    ("main", "cache", "options", "match"),
    [
        (None, DictStore(), {}, "main_store"),
        (DictStore(), "cache", {}, "cache_store"),
        (NoList(), DictStore(), {"validate": True}, "etags"),
        (DictStore(), NoList(), {"max_bytes": 5}, "lists"),
        (DictStore(), DefaultStat(), {"max_age": 5}, "times"),
        (Text(), DictStore(), {}, "text"),
        (Text(), Text(), {"max_bytes": 5}, "bytes"),
        (DictStore(), DictStore(), {"max_bytes": 0}, "max_bytes"),
        (DictStore(), DictStore(), {"max_bytes": True}, "max_bytes"),
        (DictStore(), DictStore(), {"max_bytes": 1.5}, "max_bytes"),
        (DictStore(), DictStore(), {"max_age": -1}, "max_age"),
        (DictStore(), DictStore(), {"max_age": "1"}, "max_age"),
        (DictStore(), DictStore(), {"max_age": float("inf")}, "max_age"),
        (DictStore(), DictStore(), {"max_age": float("nan")}, "max_age"),
        (DictStore(), DictStore(), {"max_age": 1e15}, "max_age"),
    ],
)
def test_what_cannot_work_is_refused(main, cache, options, match):
    with pytest.raises(ConfigError, match=match):
        CachingStore(main, cache, **options)


def test_a_store_is_not_its_own_cache():
    store = DictStore()
    with pytest.raises(ConfigError, match="own cache"):
        CachingStore(store, store)


def test_capabilities_and_repr(tmp_path):
    files = FilesystemStore(tmp_path / "f")
    assert CachingStore(files, DictStore()).capabilities == Capabilities(
        ranges=True, local_files=True, conditional_writes=True, etags=True
    )
    assert not CachingStore(DictStore(), files).capabilities.persistent

    class Secret(DictStore):
        @property
        def capabilities(self):
            return Capabilities(encrypted=True, persistent=False)

    assert not CachingStore(Secret(), files).capabilities.encrypted
    assert not CachingStore(DictStore(), Secret()).capabilities.encrypted
    assert CachingStore(Secret(), DictStore()).capabilities.encrypted  # memory keeps nothing
    assert CachingStore(Secret(), Secret()).capabilities.encrypted
    assert repr(make(validate=True, max_age=5)[0]) == (
        "CachingStore(FaultyStore(DictStore()), FaultyStore(DictStore()), validate=True, max_age=5)"
    )


# --- plain -----------------------------------------------------------------------------------------


def test_put_writes_through_and_get_asks_the_cache(plain):
    store, main, cache = plain
    store.put("key", b"1")
    assert cache.store.get("key") == main.store.get("key") == b"1"
    assert store.get("key") == b"1"
    assert not main.calls["get"]


def test_what_others_change_is_served_stale_until_it_is_cleared(plain):
    store, main, _ = plain
    store.put("key", b"old")
    main.store.put("key", b"new")
    assert store.get("key") == b"old"
    store.clear("key")
    assert store.get("key") == b"new"
    main.store.delete("key")
    assert store.get("key") == b"new"
    assert not store.exists("key")
    store.clear()
    with pytest.raises(KeyNotFoundError):
        store.get("key")


@pytest.mark.parametrize("read", ["get", "source"])
def test_get_and_source_fill_the_cache(plain, read):
    store, main, cache = plain
    main.store.put("key", b"1")
    if read == "get":
        assert store.get("key") == b"1"
    else:
        with store.source("key") as source:
            main.store.delete("key")
            assert source.read() == b"1"
    assert cache.store.get("key") == b"1"


def test_ranges_and_open_files_use_a_copy_but_make_none(plain):
    store, main, cache = plain
    main.store.put("key", b"12345")
    assert store.get_range("key", 1, 3) == b"23"
    with store.open("key") as file:
        assert file.read() == b"12345"
    assert list(cache.store.keys()) == []
    store.get("key")
    main.fail()
    assert store.get_range("key", 1, 3) == b"23"
    with store.open("key") as file:
        assert file.read() == b"12345"


def test_existence_stat_and_listing_are_the_main_stores(plain):
    store, _, cache = plain
    cache.store.put("only a copy", b"1")
    assert store.exists("only a copy") is False
    assert list(store.keys()) == []
    with pytest.raises(KeyNotFoundError):
        store.stat("only a copy")


def test_a_large_object_is_cached_in_pieces(tmp_path):
    main, cache = FilesystemStore(tmp_path / "m"), FilesystemStore(tmp_path / "c")
    store = CachingStore(main, cache)
    with main.writer("key") as sink, sink.path().open("wb") as file:
        for _ in range(40):
            file.write(bytes(1 << 20))
    assert peak_memory(lambda: store.source("key").close()) < 20 << 20
    with store.source("key") as source, source.path() as path:
        assert source.size == path.stat().st_size == cache.stat("key").size == 40 << 20


# --- a cache that fails ----------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("operations", [["put"], ["put", "delete"], ["*"]], ids=str)
@pytest.mark.parametrize("error", [UnavailableError("down"), OSError("odd"), IntegrityError("x")])
def test_a_cache_that_fails_on_put_never_serves_the_old_value(trio, operations, after, error):
    store, main, cache = trio
    warm(store)
    cache.fail(operations, error, after=after)
    store.put("key", b"new")
    assert main.store.get("key") == b"new"
    assert store.get("key") == b"new"
    cache.heal()
    for _ in range(3):
        assert store.get("key") == b"new"
        with store.source("key") as source, store.open("key") as file:
            assert source.read() == file.read() == b"new"
        assert store.get_range("key", 0, 9) == b"new"


WRITES = {
    "put": lambda store: store.put("key", b"new"),
    "delete": lambda store: store.delete("key"),
    "delete_many": lambda store: store.delete_many(["key", "absent"]),
    "copy": lambda store: store.copy("other", "key"),
    "put_if_absent": lambda store: store.put_if_absent("key", b"new"),
    "commit": lambda store: write(store, b"new"),
}


def write(store, data):
    with store.writer("key") as sink:
        sink.write(data)


@pytest.mark.parametrize("operation", WRITES)
@pytest.mark.parametrize("when", ["as it should", "cache down", "cache down, put works"])
def test_no_change_leaves_an_old_copy_to_be_served(trio, operation, when):
    store, main, cache = trio
    main.store.put("other", b"new")
    warm(store)
    if operation == "put_if_absent":
        main.store.delete("key")  # behind our back: the copy is still there
    if when != "as it should":
        cache.fail("*" if when == "cache down" else ["delete", "delete_many"])
    WRITES[operation](store)
    for _ in range(2):
        if "delete" in operation:
            with pytest.raises(KeyNotFoundError):
                store.get("key")
        else:
            assert store.get("key") == b"new"
        cache.heal()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("operation", WRITES)
def test_a_main_store_that_fails_leaves_no_copy(trio, operation, after):
    store, main, cache = trio
    main.store.put("other", b"new")
    warm(store)
    if operation == "put_if_absent":
        main.store.delete("key")
    main.fail(operation, UnavailableError("lost", outcome="unknown"), after=after)
    with pytest.raises(UnavailableError):
        WRITES[operation](store)
    assert list(cache.store.keys()) == []
    wanted = main.store.get("key") if main.store.exists("key") else None
    found = store.get("key") if store.exists("key") else None
    assert found == wanted


def test_delete_of_what_the_main_store_has_not_clears_the_copy(plain):
    store, _, cache = plain
    cache.store.put("key", b"stale")
    with pytest.raises(KeyNotFoundError):
        store.delete("key")
    assert not cache.store.exists("key")


def test_delete_clears_a_copy_that_another_process_made(tmp_path):
    def open_it():
        main, cache = (FilesystemStore(tmp_path / name) for name in ("main", "cache"))
        return CachingStore(main, cache, validate=True)

    with open_it() as before:
        before.put("key", b"secret")
        assert before.get("key") == b"secret"
        assert len(list(before.cache_store.keys())) == 1
    with open_it() as after:
        after.delete("key")
        assert list(after.cache_store.keys()) == []
        with pytest.raises(KeyNotFoundError):
            after.delete("key")


def test_one_object_that_cannot_be_deleted_does_not_keep_others(monkeypatch, plain):
    monkeypatch.setattr(cache_module, "_BATCH", 2)
    store, main, _ = plain
    for number in range(5):
        store.put(str(number), b"1")
    main.fail("delete_many", times=1)
    with pytest.raises(UnavailableError):
        store.delete_many(map(str, range(5)))
    assert sorted(store.keys()) == ["0", "1"]


def test_a_copy_that_could_not_be_removed_is_removed_later(plain):
    store, main, cache = plain
    warm(store)
    cache.fail(["delete", "put"])
    store.delete("key")
    assert cache.store.exists("key")
    with pytest.raises(KeyNotFoundError):
        store.get("key")
    cache.heal()
    with pytest.raises(KeyNotFoundError):
        store.get_range("key", 0, 1)
    assert not cache.store.exists("key")
    main.store.put("key", b"later")
    assert store.get("key") == b"later"
    main.fail()
    assert store.get("key") == b"later"


@pytest.mark.parametrize("operation", sorted(OPERATIONS - {"remove_leftover"}))
@pytest.mark.parametrize("after", [False, True])
def test_a_broken_cache_fails_nothing(trio, caplog, operation, after):
    store, main, cache = trio
    caplog.set_level(logging.WARNING)
    warm(store)
    main.store.put("behind", b"behind")
    cache.fail(operation, after=after)
    for data in (b"1", b"2"):
        store.put("key", data)
        for key, wanted in (("key", data), ("behind", b"behind")):
            assert store.get(key) == wanted
            with store.open(key) as file, store.source(key) as source:
                assert file.read() == source.read() == wanted
            assert store.get_range(key, 0, 9) == wanted
    write(store, b"3")
    store.copy("key", "copy")
    store.delete("key")
    store.delete_many(["copy"])
    assert store.put_if_absent("key", b"4")
    assert store.get("key") == b"4"
    assert list(store.leftovers()) == []
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    if operation in ("delete", "put") and not store.validate:
        assert "the store is down" in caplog.text


def test_a_copy_that_is_corrupt_is_written_again(plain):
    store, _, cache = plain
    warm(store)
    cache.fail("get", IntegrityError("corrupt"), times=1)
    cache.store.put("key", b"c0rrupt")
    assert store.get("key") == b"old"
    assert cache.store.get("key") == b"old"


@pytest.mark.parametrize("way", ["open", "source", "ranges", "source.open", "path"])
def test_a_copy_that_fails_when_it_is_read_gives_way_to_the_main_store(plain, way):
    store, _, cache = plain
    warm(store)
    cache.fail("read", IntegrityError("corrupt"))
    if way == "open":
        with store.open("key") as file:
            assert file.read() == b"old"
        return
    with store.source("key") as source:
        if way == "source":
            assert source.read() == b"old"
        elif way == "ranges":
            assert source.read_range(1, 2) == b"l"
        elif way == "path":
            with source.path() as path:
                assert path.read_bytes() == b"old"
        else:
            with source.open() as file:
                assert file.read() == b"old"


def test_a_key_that_the_cache_does_not_take(tmp_path, caplog):
    store = CachingStore(DictStore(), FilesystemStore(tmp_path / "c"))
    store.put("../up", b"1")
    assert store.get("../up") == b"1"
    store.delete("../up")
    assert not store._guard.doubts("../up")


def test_a_cache_full_of_doubt_is_not_used_until_it_is_cleared(monkeypatch, plain):
    monkeypatch.setattr(cache_guard, "LIMIT", 2)
    store, main, cache = plain
    for n in range(4):
        store.put(f"k{n}", b"old")
    cache.fail(["delete", "put"])
    for n in range(3):
        store.put(f"k{n}", b"new")
    cache.heal()
    assert [store.get(f"k{n}") for n in range(3)] == [b"new"] * 3
    assert cache.store.get("k0") == b"old"
    with store.source("k3") as source:
        assert source.read() == b"old"
    assert main.calls["get"] == 3
    store.clear()
    store.get("k0")
    store.get("k0")
    assert main.calls["get"] == 4


@pytest.mark.parametrize("error", [UnavailableError("down"), IntegrityError("corrupt")])
def test_a_main_store_that_fails_while_it_fills_leaves_no_copy(tmp_path, error):
    main, cache = FaultyStore(DictStore()), FilesystemStore(tmp_path / "c")
    store = CachingStore(main, cache)
    main.store.put("key", b"1")
    main.fail("read", error)
    with pytest.raises(type(error)):
        store.source("key")
    assert list(cache.keys()) == list(cache.leftovers()) == []


def test_a_sink_of_the_cache_that_cannot_even_be_given_up(caplog):
    class Stubborn(DictStore):
        def writer(self, key, size_hint=None):
            sink = super().writer(key, size_hint)
            sink.abort = sink.write = self.fail
            return sink

        def fail(self, *_):
            raise OSError("stuck")

    store = CachingStore(DictStore(), Stubborn())
    store.main_store.put("key", b"1")
    with store.source("key") as source:
        assert source.read() == b"1"
    assert "abandoning" in caplog.text


# --- clear -----------------------------------------------------------------------------------------


def test_clear(trio):
    store, _, cache = trio
    warm(store, "a")
    warm(store, "b")
    assert len(list(cache.store.keys())) == 2
    store.clear("a")
    store.clear("absent")
    assert len(list(cache.store.keys())) == 1
    store.clear()
    assert list(cache.store.keys()) == []
    assert [store.get(key) for key in "ab"] == [b"old"] * 2


def test_clear_says_what_it_could_not_do(plain):
    store, _, cache = plain
    warm(store)
    cache.fail(["delete", "delete_many"])
    for key in (None, "key"):
        with pytest.raises(UnavailableError):
            store.clear(key)

    class CannotList(DictStore):
        def keys(self, prefix=""):
            raise NotSupportedError("it cannot list")

    other = CachingStore(DictStore(), CannotList())
    other.put("key", b"1")
    other.clear("key")
    with pytest.raises(NotSupportedError):
        other.clear()


def test_what_is_doubted_while_the_cache_is_cleared_stays_doubted(plain):
    store, _, cache = plain
    for key in ("before", "key"):
        store.put(key, b"old")
    cache.fail("delete")
    store.delete("before")
    stall = cache.stall("delete_many")
    clear = threading.Thread(target=store.clear)
    clear.start()
    assert stall.reached.wait(30)
    store.delete("key")
    stall.go.set()
    clear.join()
    assert [store._guard.doubts(key) for key in ("before", "key")] == [False, True]


def test_clear_of_a_key_finds_copies_of_older_versions():
    main, cache = DictStore(), DictStore()
    store = CachingStore(main, cache, validate=True)
    warm_names = set()
    for n in range(3):
        main.put("key", bytes([n]))
        store.get("key")
        warm_names.update(cache.keys())
    for name in warm_names:
        cache.put(name, b"from another process")
    main.put("other", b"1")
    store.get("other")
    store.clear("key")
    assert len(list(cache.keys())) == 1


# --- validate --------------------------------------------------------------------------------------


def test_what_others_change_is_noticed():
    store, main, cache = make(validate=True)
    (name,) = warm(store)
    assert len(name) == 65
    assert name[32] == "-"
    assert main.calls["get"] == 1
    assert store.get("key") == b"old"
    assert main.calls["get"] == 1
    main.store.put("key", b"new")
    assert store.get("key") == b"new"
    assert len(list(cache.store.keys())) == 1
    main.store.delete("key")
    for read in (store.get, store.open, store.source):
        with pytest.raises(KeyNotFoundError):
            read("key")
    assert list(cache.store.keys()) == []


def test_a_hit_needs_the_main_store_to_vouch_for_it():
    store, main, _ = make(validate=True)
    warm(store)
    main.fail("stat")
    with pytest.raises(UnavailableError):
        store.get("key")


@pytest.mark.parametrize("way", ["get", "source"])
def test_what_changes_between_stat_and_read_is_not_cached(way):
    store, main, cache = make(validate=True)
    main.store.put("key", b"old")
    with stalled_read(store, way, main.stall(way)) as found:
        main.store.put("key", b"new")  # by somebody else, after the etag was read
    assert found == [b"new"]
    assert list(cache.store.keys()) == []
    assert store.get("key") == b"new"


@pytest.mark.parametrize("error", [UnavailableError("down"), KeyNotFoundError("gone")])
def test_what_cannot_be_confirmed_is_given_but_not_cached(error):
    store, main, cache = make(validate=True)
    main.store.put("key", b"1")
    for read in (store.get, lambda key: store.source(key).read()):
        main.heal()
        stall = main.stall("get" if read == store.get else "source", after=True)
        found = []
        reader = threading.Thread(target=lambda found=found, read=read: found.append(read("key")))
        reader.start()
        assert stall.reached.wait(30)
        main.fail("stat", error)
        stall.go.set()
        reader.join()
        assert found == [b"1"]
        assert list(cache.store.keys()) == []


def test_an_object_without_an_etag_is_not_cached():
    class Forgetful(DictStore):
        def stat(self, key):
            stat = super().stat(key)
            return ObjectStat(stat.size, stat.modified, None)

    cache = DictStore()
    store = CachingStore(Forgetful(), cache, validate=True)
    store.put("key", b"1")
    assert store.get("key") == b"1"
    with store.source("key") as source:
        assert source.read() == b"1"
    assert list(cache.keys()) == []


def test_a_cache_outlives_a_main_store_in_memory():
    cache = DictStore()
    for data in (b"1", b"2"):
        main = DictStore()  # whose etags begin anew
        store = CachingStore(main, cache, validate=True)
        store.put("key", data)
        assert store.get("key") == data


def test_processes_share_a_validating_cache(tmp_path):
    def make_files():
        main, cache = FilesystemStore(tmp_path / "m"), FilesystemStore(tmp_path / "c")
        return CachingStore(main, cache, validate=True)

    store = make_files()
    warm_up = FaultyStore(store)
    warm_up.put("key", b"old")
    store.get("key")

    def child():
        assert store.get("key") == b"old"
        store.put("key", b"new")
        assert store.get("key") == b"new"

    in_fork(child)
    assert store.get("key") == b"new"
    with pickle.loads(pickle.dumps(store)) as copy:
        copy.put("key", b"newest")
    assert store.get("key") == make_files().get("key") == b"newest"


# --- max_bytes, max_age ----------------------------------------------------------------------------


def total(cache):
    return sum(cache.stat(name).size for name in cache.keys())  # noqa: SIM118


def test_what_was_not_used_for_longest_goes_first():
    store, _main, cache = make(max_bytes=30)
    for key in "abc":
        store.put(key, bytes(10))
    store.get("a")
    store.put("d", bytes(10))
    assert sorted(cache.store.keys()) == ["a", "c", "d"]
    with store.source("c"):
        pass
    store.put("e", bytes(15))
    assert sorted(cache.store.keys()) == ["c", "e"]
    store.put("c", bytes(15))
    assert (total(cache.store), store._copies._room.total) == (30, 30)
    store.delete("c")
    assert store._copies._room.total == 15


def test_an_object_that_is_too_large_is_not_cached_and_removes_nothing():
    store, _main, cache = make(max_bytes=30)
    store.put("small", bytes(10))
    store.put("key", bytes(10))
    store.put("key", bytes(31))
    assert store.get("key") == bytes(31)
    with store.source("key") as source:
        assert source.size == 31
    assert list(cache.store.keys()) == ["small"]


def test_the_books_are_made_from_what_is_there():
    main, cache = DictStore(), DictStore()
    for n in range(5):
        cache.put(f"k{n}", bytes(10))
    store = CachingStore(main, cache, max_bytes=35)
    store.put("new", bytes(5))
    assert sorted(cache.keys()) == ["k2", "k3", "k4", "new"]


def test_a_copy_that_is_no_copy_is_the_first_to_go():
    cache = GzipStore(DictStore())
    cache.store.put("README", b"not of ours")
    with CachingStore(DictStore(), cache, max_bytes=10) as store:
        store.put("a", b"1" * 6)
        assert sorted(cache.keys()) == ["README", "a"]
        store.put("b", b"1" * 6)
        assert sorted(cache.keys()) == ["b"]


def test_books_that_do_not_fit_are_made_again():
    store, _, cache = make(max_bytes=30)
    store.put("a", bytes(10))
    for n in range(3):
        cache.store.put(f"other{n}", bytes(10))  # by another process
    store.main_store.store.put("other0", bytes(10))
    store.get_range("other0", 0, 1)  # unknown to the books
    store.put("b", bytes(10))
    assert total(cache.store) <= 30
    for name in list(cache.store.keys()):
        cache.store.delete(name)
    for key in "cdefg":
        store.put(key, bytes(10))
        assert total(cache.store) <= 30
    assert len(list(cache.store.keys())) == 3


def test_books_are_made_again_now_and_then(monkeypatch):
    monkeypatch.setattr(cache_room, "_LEAST_FILLS", 4)
    store, _, cache = make(max_bytes=100)
    store.put("a", bytes(10))
    cache.store.put("unseen", bytes(95))
    for n in range(6):
        store.put(f"k{n}", bytes(1))
    assert total(cache.store) <= 100


@pytest.mark.parametrize("operation", ["keys", "next", "stat", "delete", "put"])
def test_a_bounded_cache_that_fails_holds_no_more_than_it_may(operation):
    store, _main, cache = make(max_bytes=25)
    for key in "ab":
        store.put(key, bytes(10))
    cache.fail(operation, after=True, times=3)
    for key in "cdefgh":
        store.put(key, key.encode() * 10)
        assert store.get(key) == key.encode() * 10
    cache.heal()
    store.put("last", bytes(10))
    assert total(cache.store) <= 25


@pytest.mark.parametrize("after", [False, True])
def test_a_fill_that_fails_does_not_cost_a_listing(after):
    store, main, cache = make(max_bytes=100)
    with store:
        store.put("warm", b"1")
        cache.calls.clear()
        cache.fail("put", OutOfSpaceError("full"), after=after)
        for name in "abc":
            main.put(name, b"123")
            assert store.get(name) == b"123"
        assert cache.calls["keys"] == 0
        assert store._copies._room.total == 1 + 9 * after
        cache.fail("stat")
        main.put("d", b"123")
        store.get("d")
        cache.heal()
        main.put("e", b"123")
        store.get("e")
        assert cache.calls["keys"] == 1  # nobody could tell what there is of "d"
        assert store._copies._room.total == 4 + 12 * after


def test_fills_at_the_same_time_make_room_for_each_other():
    store, _main, cache = make(max_bytes=20)
    stall = cache.stall("put", key="a")
    first = threading.Thread(target=store.put, args=("a", bytes(15)))
    first.start()
    assert stall.reached.wait(30)
    store.put("b", bytes(15))  # there is no room, and what is being written cannot go
    assert list(cache.store.keys()) == []
    stall.go.set()
    first.join()
    assert list(cache.store.keys()) == ["a"]
    store.put("b", bytes(15))
    assert list(cache.store.keys()) == ["b"]


def test_a_copy_counts_as_large_as_it_may_be_while_it_is_written():
    cache = DictStore()
    cache.put("x", bytes(10))
    room = cache_room.Room(cache, 20)
    assert room.reserve("x", 5)
    assert not room.reserve("y", 12)
    room.settle("x", 5)
    assert room.reserve("y", 12)
    room.settle("y", None)  # nothing came of it
    assert room.reserve("z", 1)
    assert room.total == 6


def test_a_copy_that_is_too_old_is_fetched_again(monkeypatch):
    store, main, cache = make(max_age=60)
    store.put("key", b"old")
    main.store.put("key", b"new")
    assert store.get("key") == b"old"
    start = cache_copies.now()
    for later in (61, -3600):
        monkeypatch.setattr(
            cache_copies, "now", lambda later=later: start + timedelta(seconds=later)
        )
        cache.store.put("key", b"old")
        assert store.get_range("key", 0, 9) == b"new"
        assert store.get("key") == b"new"
        assert cache.store.get("key") == b"new"
        with store.source("key") as source:
            assert source.read() == b"new"


def test_a_copy_without_a_time_is_not_served():
    main = FaultyStore(DictStore())
    store = CachingStore(main, NoTimes(), max_age=60)
    store.put("key", b"1")
    assert store.get("key") == b"1"
    assert main.calls["get"] == 1


# --- at the same time ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["get", "source"])
@pytest.mark.parametrize("operation", WRITES)
def test_what_was_fetched_before_a_change_is_not_cached_after_it(trio, way, operation):
    store, main, cache = trio
    main.store.put("key", b"old")
    main.store.put("other", b"new")
    with stalled_read(store, way, main.stall(way, after=True)) as found:
        if operation == "put_if_absent":
            main.store.delete("key")
        WRITES[operation](store)
    assert found == [b"old"]
    if "delete" in operation:
        with pytest.raises(KeyNotFoundError):
            store.get("key")
        assert list(cache.store.keys()) == []
    else:
        assert store.get("key") == b"new"


def test_what_is_fetched_during_a_change_is_not_cached(trio):
    store, main, cache = trio
    store.put("key", b"old")
    stall = main.stall("put")
    writer = threading.Thread(target=store.put, args=("key", b"new"))
    writer.start()
    assert stall.reached.wait(30)
    assert store.get("key") == b"old"
    with store.source("key") as source:
        assert source.read() == b"old"
    assert list(cache.store.keys()) == []
    read_stall = main.stall("get", after=True)
    found = []
    reader = threading.Thread(target=lambda: found.append(store.get("key")))
    reader.start()
    assert read_stall.reached.wait(30)
    stall.go.set()
    writer.join()
    read_stall.go.set()
    reader.join()
    assert found == [b"old"]
    assert store.get("key") == b"new"


def test_a_change_waits_for_a_copy_that_is_being_written(plain):
    store, main, cache = plain
    main.store.put("key", b"old")
    stall = cache.stall("put")
    reader = threading.Thread(target=store.get, args=("key",))
    reader.start()
    assert stall.reached.wait(30)
    writer = threading.Thread(target=store.put, args=("key", b"new"))
    writer.start()
    assert store.get("key") in (b"old", b"new")
    stall.go.set()
    reader.join()
    writer.join()
    assert store.get("key") == cache.store.get("key") == b"new"


def test_a_store_beneath_that_reads_while_it_is_changed_fills_nothing(plain):
    store, main, cache = plain
    store.put("key", b"old")

    class Nosy(DictStore):
        def delete(self, key):
            assert store.get(key) == b"old"
            super().delete(key)

    main.store.__class__ = Nosy
    store.delete("key")
    assert not cache.store.exists("key")
    with pytest.raises(KeyNotFoundError):
        store.get("key")


def test_what_is_fetched_during_a_change_never_counts(plain):
    guard = plain[0]._guard
    with guard.fetching("key") as before, guard.changing("key"):
        with guard.fetching("key") as during, guard.changing("key"):
            pass
        with guard.fetching("key") as later:
            assert (before.valid, during.valid, later.valid) == (False, False, False)
    with guard.fetching("key") as after, guard.fetching("other") as other:
        assert (after.valid, other.valid) == (True, True)


def test_a_fork_while_another_thread_writes(tmp_path):
    main = FaultyStore(FilesystemStore(tmp_path / "m"))
    store = CachingStore(main, FilesystemStore(tmp_path / "c"), max_bytes=100)
    store.put("other", b"1")
    stall = main.stall("put", key="key")
    writer = threading.Thread(target=store.put, args=("key", b"parent"))
    writer.start()
    assert stall.reached.wait(30)

    def child():
        store.put("key", b"child")
        assert store.get("key") == b"child"
        assert store.get("other") == b"1"

    in_fork(child)
    stall.go.set()
    writer.join()
    assert store.get("key") == b"parent"


def test_what_is_doubted_is_known_to_a_pickled_copy(tmp_path):
    cache = FilesystemStore(tmp_path / "c")
    store = CachingStore(FilesystemStore(tmp_path / "m"), cache, max_bytes=100)
    store.put("key", b"1")
    store._guard.doubt("key")
    cache.put("key", b"wrong")
    with pickle.loads(pickle.dumps(store)) as copy:
        assert copy.get("key") == b"1"
        assert cache.get("key") == b"1"


# --- the rest --------------------------------------------------------------------------------------


def test_a_main_store_that_chooses_its_own_places(tmp_path):
    class Own(FilesystemBlobBackend):
        def write_blob(self, blob_id, data):
            return super().write_blob("fixed", data)

    store = CachingStore(Own(tmp_path / "m"), DictStore())
    for data in (b"1", b"2"):
        with store.writer("key") as sink:
            sink.write(data)
        assert store.get(sink.location) == data


def test_leftovers_of_both():
    class Leaving(DictStore):
        def __init__(self, *names):
            super().__init__()
            self.names = list(names)

        def leftovers(self):
            return iter([Leftover(name, 1, cache_copies.now()) for name in self.names])

        def remove_leftover(self, name):
            self.names.remove(name)

    store = CachingStore(Leaving("x", "cache:y"), Leaving("x"))
    names = [leftover.name for leftover in store.leftovers()]
    assert names == ["main:x", "main:cache:y", "cache:x"]
    for name in names:
        store.remove_leftover(name)
    assert list(store.leftovers()) == []
    with pytest.raises(InvalidInputError, match="main:"):
        store.remove_leftover("x")


def test_both_are_closed():
    main, cache = DictStore(), DictStore()
    CachingStore(main, cache).close()
    for store in (main, cache):
        with pytest.raises(ClosedError):
            store.get("key")


def test_values_of_another_kind():
    class Objects(DictStore):
        def __init__(self):
            super().__init__()
            self.kept = {}

        @property
        def capabilities(self):
            return Capabilities(values="any", persistent=False)

        def get(self, key):
            if key not in self.kept:
                raise KeyNotFoundError("none", location=key)
            return self.kept[key]

        def put(self, key, data):
            self.kept[key] = data

        def delete(self, key):
            if self.kept.pop(key, None) is None:
                raise KeyNotFoundError("none", location=key)

    store = CachingStore(Objects(), Objects())
    store.put("key", {"a": 1})
    assert store.cache_store.get("key") == {"a": 1}
    store.clear("key")
    assert store.get("key") == store.cache_store.get("key") == {"a": 1}


# --- at random -------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b"])
DATA = st.integers(0, 255).map(lambda n: bytes([n]) * (n % 7))
FAULTS = sorted(OPERATIONS - {"remove_leftover", "leftovers"})


class CacheMachine(RuleBasedStateMachine):
    """Whatever the cache does, what is read is what was put: a dictionary, and the main store."""

    @initialize(mode=st.sampled_from(["plain", "validate", "bounded", "aged"]))
    def start(self, mode):
        options = {**MODES, "aged": {"max_age": 3600}, "bounded": {"max_bytes": 8}}[mode]
        self.store, self.main, self.cache = make(**options)
        self.model: dict[str, bytes] = {}

    def teardown(self):
        if hasattr(self, "store"):
            self.cache.heal()
            self.store.close()

    @rule(what=st.lists(st.sampled_from(FAULTS), min_size=1), after=st.booleans())
    def break_cache(self, what, after):
        self.cache.fail(what, after=after)

    @rule(what=st.lists(st.sampled_from(FAULTS), min_size=1), times=st.integers(1, 3))
    def break_cache_for_a_while(self, what, times):
        self.cache.fail(what, IntegrityError("corrupt"), times=times)

    @rule()
    def break_cache_wholly(self):
        self.cache.fail()

    @rule()
    def heal(self):
        self.cache.heal()

    @rule(after=st.booleans(), what=st.sampled_from(["put", "delete", "commit", "copy"]))
    def break_main_once(self, after, what):
        self.main.fail(what, after=after, times=1)

    def change(self, key, value, act):
        try:
            act()
        except UnavailableError:  # of the main store: what it has now, it has
            value = self.main.store.get(key) if self.main.store.exists(key) else None
        if value is None:
            self.model.pop(key, None)
        else:
            self.model[key] = value

    @rule(key=KEYS, data=DATA)
    def put(self, key, data):
        self.change(key, data, lambda: self.store.put(key, data))

    @rule(key=KEYS, data=DATA)
    def write(self, key, data):
        def act():
            with self.store.writer(key) as sink:
                sink.write(data)

        self.change(key, data, act)

    @rule(key=KEYS)
    def delete(self, key):
        try:
            self.change(key, None, lambda: self.store.delete(key))
        except KeyNotFoundError:
            assert key not in self.model

    @rule(key=KEYS, data=DATA)
    def put_if_absent(self, key, data):
        assert self.store.put_if_absent(key, data) is (key not in self.model)
        self.model.setdefault(key, data)

    @rule(key=KEYS, to=KEYS)
    def copy(self, key, to):
        try:
            self.change(to, self.model.get(key), lambda: self.store.copy(key, to))
        except KeyNotFoundError:
            assert key not in self.model

    @rule(key=st.none() | KEYS)
    def clear(self, key):
        with contextlib.suppress(StorageError, IntegrityError):
            self.store.clear(key)

    @rule(key=KEYS, way=st.sampled_from(["get", "source", "open", "get_range"]))
    def read(self, key, way):
        try:
            if way == "get":
                found = self.store.get(key)
            elif way == "get_range":
                found = self.store.get_range(key, 0, 100)
            else:
                with getattr(self.store, way)(key) as file:
                    found = file.read()
        except KeyNotFoundError:
            found = None
        assert found == self.model.get(key)

    @invariant()
    def bounded(self):
        if hasattr(self, "store"):
            assert set(self.store.keys()) == set(self.model)
            if self.store.max_bytes is not None:
                assert total(self.cache.store) <= self.store.max_bytes


def test_at_random():
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(max_examples=120, stateful_step_count=30, deadline=None, database=None),
    )


def test_copies_that_are_too_old_are_removed_whoever_made_them(monkeypatch):
    main, cache = DictStore(), DictStore()
    for store in (CachingStore(main, cache, max_age=60), CachingStore(main, cache, max_age=60)):
        key = f"k{id(store)}"
        store.put(key, b"1")
        store.get(key)
    later = CachingStore(main, cache, max_age=60)
    copies = len(list(cache.keys()))
    assert copies == 2
    assert later.expire() == 0
    start = cache_copies.now()
    monkeypatch.setattr(cache_copies, "now", lambda: start + timedelta(seconds=61))
    assert later.expire() == copies
    assert list(cache.keys()) == []
    assert len(list(main.keys())) == 2
    assert later.expire() == 0 == CachingStore(main, DictStore()).expire()
