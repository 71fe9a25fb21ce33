"""Stores that restrict, tell and log: every method of each."""

from __future__ import annotations

import inspect
import logging
import pickle
import threading
from dataclasses import replace

import pytest

from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.errors import (
    ClosedError,
    ConfigError,
    InvalidInputError,
    InvalidKeyError,
    KeyNotFoundError,
    NotSupportedError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)
from blobstore.protocols import Capabilities, ObjectStore
from blobstore.streams import MemorySink
from blobstore.testing.faults import FaultyStore
from blobstore.wrappers.access import ReadonlyStore, WriteonlyStore
from blobstore.wrappers.base import IdentityStore, WrapperSink, WrapperStore
from blobstore.wrappers.base64 import Base64Store
from blobstore.wrappers.cache import CachingStore
from blobstore.wrappers.checksum import ChecksumStore
from blobstore.wrappers.compress import GzipStore
from blobstore.wrappers.log import ExceptionLoggingStore, LoggingStore
from blobstore.wrappers.mirror import MirroringStore
from blobstore.wrappers.notify import DELETE, PUT, NotifyingStore
from blobstore.wrappers.routing import RegexRoutingStore
from blobstore.wrappers.text import BufferStore, JsonStore, TextEncodingStore
from blobstore.wrappers.transform import TransformingStore


def read_and_close(opened):
    with opened:
        return opened.read()


METHODS = {
    "get": lambda store: store.get("key"),
    "put": lambda store: store.put("key", b"new"),
    "exists": lambda store: store.exists("key"),
    "delete": lambda store: store.delete("key"),
    "keys": lambda store: list(store.keys()),
    "get_range": lambda store: store.get_range("key", 0, 2),
    "open": lambda store: read_and_close(store.open("key")),
    "source": lambda store: read_and_close(store.source("key")),
    "writer": lambda store: store.writer("key").commit(),
    "stat": lambda store: store.stat("key").size,
    "local_path": lambda store: store.local_path("key"),
    "delete_many": lambda store: store.delete_many(["key"]),
    "copy": lambda store: store.copy("key", "copy"),
    "put_if_absent": lambda store: store.put_if_absent("new", b"1"),
    "sync": lambda store: store.sync(["key"]),
    "leftovers": lambda store: list(store.leftovers()),
    "remove_leftover": lambda store: store.remove_leftover("put-" + "0" * 32),
}
WRITES = {"put", "delete", "writer", "delete_many", "copy", "put_if_absent", "remove_leftover"}
READS = {"get", "exists", "keys", "get_range", "open", "source", "stat", "local_path"}


def test_no_method_is_forgotten():
    public = {
        name
        for name, _ in inspect.getmembers(ObjectStore, inspect.isfunction)
        if not name.startswith("_")
    }
    assert public - {"close"} == {*METHODS}


@pytest.fixture(params=["memory", "files"])
def beneath(request, tmp_path):
    store = DictStore() if request.param == "memory" else FilesystemStore(tmp_path / "root")
    with store:
        store.put("key", b"old")
        yield store


# --- read only, write only ------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_readonly(beneath, method):
    store = ReadonlyStore(beneath)
    if method in WRITES:
        with pytest.raises(NotSupportedError, match=method) as caught:
            METHODS[method](store)
        assert isinstance(caught.value, NotImplementedError)
    else:
        assert METHODS[method](store) == METHODS[method](beneath)
    assert {key: beneath.get(key) for key in beneath.keys()} == {"key": b"old"}  # noqa: SIM118


@pytest.mark.parametrize("method", METHODS)
def test_writeonly(beneath, method):
    store = WriteonlyStore(beneath)
    if method in READS:
        with pytest.raises(NotSupportedError, match=method) as caught:
            METHODS[method](store)
        assert isinstance(caught.value, NotImplementedError)
        assert beneath.get("key") == b"old"
    else:
        METHODS[method](store)
        found = {key: beneath.get(key) for key in beneath.keys()}  # noqa: SIM118
        assert found == {
            "put": {"key": b"new"},
            "delete": {},
            "writer": {"key": b""},
            "delete_many": {},
            "copy": {"key": b"old", "copy": b"old"},
            "put_if_absent": {"key": b"old", "new": b"1"},
        }.get(method, {"key": b"old"})


def test_what_they_can_do(beneath):
    able = beneath.capabilities
    read = ReadonlyStore(beneath).capabilities
    assert (read.readable, read.writable, read.conditional_writes) == (True, False, False)
    assert (read.list, read.ranges, read.local_files) == (able.list, able.ranges, able.local_files)
    write = WriteonlyStore(beneath).capabilities
    assert (write.readable, write.writable) == (False, True)
    assert (write.list, write.ranges, write.local_files, write.etags) == (False,) * 4
    assert (write.streams, write.conditional_writes) == (able.streams, able.conditional_writes)


@pytest.mark.parametrize("make", [ReadonlyStore, WriteonlyStore, LoggingStore, NotifyingStore])
def test_closing_closes_what_is_beneath(make):
    beneath = DictStore()
    with make(beneath) as store:
        assert repr(store).startswith(f"{make.__name__}(DictStore()")
    with pytest.raises(ClosedError):
        beneath.get("key")
    with pytest.raises(ConfigError):
        make("no store")


@pytest.mark.parametrize("method", METHODS)
def test_identity_hands_on_everything(beneath, method):
    calls = []

    class Recording(WrapperStore):
        def __getattribute__(self, name):
            if name in METHODS:
                calls.append(name)
            return super().__getattribute__(name)

    METHODS[method](IdentityStore(Recording(beneath)))
    assert calls == [method]


# --- telling --------------------------------------------------------------------------------------


class Broken(WrapperStore):
    """Refuses what changes anything, once it is told to."""

    def __init__(self, store):
        super().__init__(store)
        self.error = None

    def _do(self, work):
        if self.error is not None:
            raise self.error
        return work()

    def put(self, key, data):
        self._do(lambda: super(Broken, self).put(key, data))

    def delete(self, key):
        self._do(lambda: super(Broken, self).delete(key))

    def writer(self, key, size_hint=None):
        return BrokenSink(super().writer(key, size_hint), self)

    def copy(self, source, target):
        self._do(lambda: super(Broken, self).copy(source, target))

    def put_if_absent(self, key, data):
        return self._do(lambda: super(Broken, self).put_if_absent(key, data))


class BrokenSink(WrapperSink):
    def __init__(self, inner, store):
        super().__init__(inner)
        self.store = store

    def write(self, data):
        return self.store._do(lambda: super(BrokenSink, self).write(data))

    def path(self):
        return self.store._do(super().path)

    def commit(self):
        self.store._do(super().commit)


@pytest.fixture
def told(beneath):
    store = NotifyingStore(Broken(beneath))
    seen = []

    def changed(about, action, key, error):
        assert about is store.store
        seen.append((action, key, error))

    assert store.on_change(changed) is changed
    return store, seen


def test_each_way_of_writing_is_told(told):
    store, seen = told
    store.put("a", b"1")
    with store.writer("b") as sink:
        sink.write(b"2")
        assert seen == [(PUT, "a", None)]
    with store.writer("c") as sink:
        sink.path().write_bytes(b"3")
    store.copy("a", "d")
    assert store.put_if_absent("e", b"5") is True
    assert store.put_if_absent("e", b"6") is False
    assert seen == [(PUT, key, None) for key in "abcde"]
    assert PUT == NotifyingStore.PUT == "put"


def test_each_way_of_removing_is_told(told):
    store, seen = told
    for key in "abc":
        store.store.put(key, b"")
    store.delete("a")
    store.delete_many(iter(["absent", "b", "c", "b"]))
    assert seen == [(DELETE, key, None) for key in "abc"]
    assert DELETE == NotifyingStore.DELETE == "delete"


@pytest.mark.parametrize(
    ("method", "action", "key"),
    [("put", PUT, "key"), ("delete", DELETE, "key"), ("copy", PUT, "copy"), ("writer", PUT, "key"),
     ("put_if_absent", PUT, "new"), ("delete_many", DELETE, "key")],
)  # fmt: skip
@pytest.mark.parametrize("kind", [UnavailableError, PermissionDeniedError])
def test_failures_are_told_and_raised_unchanged(told, method, action, key, kind):
    store, seen = told
    store.store.error = error = kind("not now")
    with pytest.raises(kind) as caught:
        METHODS[method](store)
    assert caught.value is error
    assert seen == [(action, key, error)]


def test_a_failing_delete_of_an_absent_object_is_told(told):
    store, seen = told
    with pytest.raises(KeyNotFoundError) as caught:
        store.delete("absent")
    assert seen == [(DELETE, "absent", caught.value)]


def test_a_writer_that_cannot_begin_is_told(told):
    store, seen = told
    with pytest.raises(InvalidKeyError) as caught:
        store.writer(5)
    assert seen == [(PUT, 5, caught.value)]


def test_a_writer_that_fails_in_the_middle_is_told_once(told):
    store, seen = told
    sink = store.writer("key")
    sink.write(b"1")
    store.store.error = error = UnavailableError("full")
    for call in (lambda: sink.write(b"2"), sink.path, sink.commit):
        with pytest.raises(UnavailableError):
            call()
    sink.abort()
    assert seen == [(PUT, "key", error)]
    with pytest.raises(UnavailableError):
        store.writer("other").path()
    assert seen[1:] == [(PUT, "other", error)]


def test_a_writer_whose_user_gives_up_is_not_told(told):
    store, seen = told
    with pytest.raises(RuntimeError), store.writer("key") as sink:
        sink.write(b"1")
        raise RuntimeError("never mind")
    assert seen == []


def test_handlers_of_one_action():
    store = NotifyingStore(DictStore())
    seen = []

    @store.on_put
    def put(about, key, error):
        seen.append(("put", about, key, error))

    @store.on_delete
    def deleted(about, key, error):
        seen.append(("deleted", about, key, error))

    @store.on_change
    def changed(about, action, key, error):
        seen.append(("changed", about, key, error))

    store.put("key", b"")
    store.delete("key")
    about = store.store
    assert seen == [
        ("put", about, "key", None),
        ("changed", about, "key", None),
        ("deleted", about, "key", None),
        ("changed", about, "key", None),
    ]
    assert callable(put)
    assert callable(deleted)


@pytest.mark.parametrize("problem", [None, UnavailableError("not now")])
def test_a_failing_handler_hides_nothing(told, caplog, problem):
    store, seen = told
    bad = NotifyingStore(store.store)

    @bad.on_put
    def broken(about, key, error):
        raise RuntimeError("a bug")

    bad.on_change(lambda about, action, key, error: seen.append(error))
    store.store.error = problem
    if problem is None:
        bad.put("key", b"new")
        assert bad.get("key") == b"new"
    else:
        with pytest.raises(UnavailableError) as caught:
            bad.put("key", b"new")
        assert caught.value is problem
    assert seen == [problem]
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("ERROR", "blobstore.wrappers.notify")
    assert "a bug" in record.exc_text
    assert "'key'" in record.getMessage()


def test_a_removal_that_fails_does_not_keep_the_others(told):
    store, seen = told
    store.store.put("last", b"")
    error = PermissionDeniedError("not this one")

    def delete(key):
        if key == "key":
            raise error
        store.store.store.delete(key)

    store.store.delete = delete
    with pytest.raises(PermissionDeniedError):
        store.delete_many(["key", "last"])
    assert seen == [(DELETE, "key", error), (DELETE, "last", None)]


def test_one_that_was_removed_meanwhile_is_not_told(told):
    store, seen = told
    store.store.exists = lambda key: True
    store.delete_many(["absent"])
    assert seen == []


def test_removals_from_a_store_that_cannot_be_asked():
    beneath = DictStore()
    beneath.put("key", b"")
    store = NotifyingStore(WriteonlyStore(beneath))
    seen = []
    store.on_delete(lambda about, key, error: seen.append(key))
    store.delete_many(["absent", "key"])
    assert (seen, beneath.exists("key")) == (["key"], False)


def test_a_readonly_store_says_so_to_no_keys_too():
    store = NotifyingStore(ReadonlyStore(DictStore()))
    for _ in range(2):
        with pytest.raises(NotSupportedError):
            store.delete_many([])
        store.on_change(print)


def test_handlers_may_be_added_meanwhile():
    store = NotifyingStore(DictStore())
    seen = []

    @store.on_put
    def first(about, key, error):
        if key == "0":
            store.on_put(lambda about, key, error: seen.append(key))

    store.put("0", b"")
    assert seen == []  # it was added after that change
    store.put("1", b"")
    assert seen == ["1"]

    def add():
        for _ in range(50):
            store.on_change(lambda *about: seen.append(about[2]))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(50):
        store.put("x", b"%d" % n)
    for thread in threads:
        thread.join()
    seen.clear()
    store.put("last", b"")
    assert seen == ["last"] * 201


def test_what_an_asynchronous_face_calls_directly():
    assert NotifyingStore.not_io == frozenset({"on_change", "on_put", "on_delete"})
    assert all(callable(getattr(NotifyingStore, name)) for name in NotifyingStore.not_io)


def test_handlers_travel_with_a_pickled_copy(tmp_path):
    store = NotifyingStore(FilesystemStore(tmp_path))
    store.on_put(note)
    NOTED.clear()
    pickle.loads(pickle.dumps(store)).put("key", b"")
    assert NOTED == ["key"]


NOTED: list[str] = []


def note(store, key, error):
    NOTED.append(key)


# --- logging --------------------------------------------------------------------------------------


@pytest.fixture
def infos(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [(r.name, r.levelname, r.getMessage()) for r in caplog.records]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [LoggingStore, ExceptionLoggingStore])
def test_every_method_logs_under_its_own_name(beneath, infos, method, make):
    METHODS[method](make(beneath))
    rest = {
        "keys": "",
        "leftovers": "",
        "copy": " key copy",
        "put_if_absent": " new",
        "remove_leftover": " put-" + "0" * 32,
    }.get(method, " key")
    assert infos() == [("root", "INFO", f"store {method}{rest}")]


def test_the_line_comes_before_the_operation(infos):
    with LoggingStore(DictStore(), "images") as store, pytest.raises(KeyNotFoundError):
        store.get("absent")
    assert infos() == [("root", "INFO", "images get absent")]


def test_several_keys_are_logged_each(beneath, infos):
    store = LoggingStore(beneath)
    store.delete_many(iter(["a", "key"]))
    store.sync(iter(["b"]))
    list(store.keys("k"))
    lines = [line for *_, line in infos()]
    assert lines == ["store delete_many a", "store delete_many key", "store sync b", "store keys k"]
    assert not beneath.exists("key")


def test_a_key_cannot_look_like_a_line(infos):
    store = LoggingStore(DictStore())
    store.put("a\nstore delete b", b"")
    store.put("käse 100%s", b"")
    assert [line for *_, line in infos()] == [
        "store put 'a\\nstore delete b'",
        "store put käse 100%s",
    ]


def test_nothing_else_is_logged(infos):
    store = ExceptionLoggingStore(DictStore())
    store.put("key", b"secret")
    store.put("key", "secret")
    assert not any("secret" in line for *_, line in infos())


@pytest.mark.parametrize("how", ["logger", "name", "adapter"])
def test_another_logger(infos, how):
    logger = logging.getLogger("mine")
    given = {"logger": logger, "name": "mine", "adapter": logging.LoggerAdapter(logger, {})}[how]
    LoggingStore(DictStore(), logger=given).exists("x")
    assert infos() == [("mine", "INFO", "store exists x")]


def test_what_is_no_logger():
    with pytest.raises(ConfigError, match="logger"):
        LoggingStore(DictStore(), logger=print)


class Away(DictStore):
    """Fails, with an error that is not ours."""

    def _check(self, key):
        raise ConnectionError("gone\nfishing")


@pytest.mark.parametrize("reraise", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_failures_are_logged(caplog, method, reraise):
    store = ExceptionLoggingStore(Away(), reraise=reraise)
    answers = {"get": None, "put": None, "exists": False, "delete": False, "keys": []}
    if method in answers and not reraise:
        assert METHODS[method](store) == answers[method]
    else:
        with pytest.raises(ConnectionError):
            METHODS[method](store)
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("ERROR", "root")
    rest = {
        "keys": "get keys",
        "copy": "copy key copy",
        "put_if_absent": "put_if_absent new",
        "remove_leftover": "remove_leftover put-" + "0" * 32,
    }
    words = rest.get(
        method, method if method in {"delete_many", "sync", "leftovers"} else f"{method} key"
    )
    assert record.getMessage() == f"failed to {words}: 'gone\\nfishing'"


def test_what_goes_well_is_answered(beneath):
    store = ExceptionLoggingStore(beneath)
    assert store.get("key") == b"old"
    assert store.exists("key") is True
    assert list(store.keys("k")) == ["key"]
    assert store.delete("key") is True
    assert store.delete("key") is False
    assert store.capabilities == replace(beneath.capabilities, raises=False)


@pytest.mark.parametrize("reraise", [False, True])
def test_a_listing_that_fails_in_the_middle(caplog, reraise):
    class Halfway(DictStore):
        def keys(self, prefix=""):
            yield "a"
            raise UnavailableError("no more")

    found = ExceptionLoggingStore(Halfway(), reraise=reraise).keys()
    assert next(found) == "a"
    if reraise:
        with pytest.raises(UnavailableError):
            next(found)
    else:
        assert list(found) == []
    assert [r.getMessage() for r in caplog.records] == ["failed to get keys: no more"]


def test_the_end_of_a_writer_is_logged(caplog):
    store = ExceptionLoggingStore(Broken(DictStore()))
    with pytest.raises(UnavailableError), store.writer("key") as sink:
        sink.write(b"1")
        store.store.error = UnavailableError("full")
    assert [r.getMessage() for r in caplog.records] == ["failed to writer key: full"]


def test_a_piece_that_cannot_be_written_is_logged(caplog):
    beneath = FaultyStore(DictStore())
    beneath.fail("write", OutOfSpaceError("full"))
    with (
        pytest.raises(OutOfSpaceError),
        ExceptionLoggingStore(beneath).writer("key") as sink,
    ):
        sink.write(b"1")
    assert [r.getMessage() for r in caplog.records] == ["failed to writer key: full"]


def test_a_path_that_cannot_be_lent_is_logged(caplog, monkeypatch):
    def full(self):
        raise OutOfSpaceError("full")

    monkeypatch.setattr(MemorySink, "path", full)
    with (
        pytest.raises(OutOfSpaceError),
        ExceptionLoggingStore(DictStore()).writer("key") as sink,
    ):
        sink.path()
    assert [r.getMessage() for r in caplog.records] == ["failed to writer key: full"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_failure(caplog, kind):
    class Interrupted(DictStore):
        def get(self, key):
            raise kind

    with pytest.raises(kind):
        ExceptionLoggingStore(Interrupted()).get("key")
    assert caplog.records == []


def test_a_wrong_call_is_swallowed_too():
    store = ExceptionLoggingStore(DictStore())
    assert store.put("key", 5) is None
    assert not store.exists("key")
    with pytest.raises(InvalidInputError):
        ExceptionLoggingStore(DictStore(), reraise=True).put("key", 5)


PROMISING = {
    "a mirror": lambda store: MirroringStore([DictStore(), store]),
    "a cache of it": lambda store: CachingStore(store, DictStore()),
    "a cache in it": lambda store: CachingStore(DictStore(), store),
}


@pytest.mark.parametrize("what", PROMISING)
def test_what_keeps_promises_about_failures_refuses_stores_that_swallow_them(what):
    make = PROMISING[what]
    for wrap in (IdentityStore, GzipStore, lambda store: RegexRoutingStore(routes={"": store})):
        swallowing = wrap(ExceptionLoggingStore(DictStore()))
        assert not swallowing.capabilities.raises
        with pytest.raises(ConfigError, match=r"swallows errors.*reraise=True"):
            make(swallowing)
        assert make(wrap(ExceptionLoggingStore(DictStore(), reraise=True))).capabilities.raises
    assert not ExceptionLoggingStore(make(DictStore())).capabilities.raises


@pytest.mark.parametrize(
    "wrapper",
    [
        *(Base64Store, GzipStore, ChecksumStore, TransformingStore),
        *(BufferStore, JsonStore, TextEncodingStore),
    ],
)
def test_an_answer_that_is_none_is_not_turned_into_an_object(wrapper):
    beneath = FaultyStore(DictStore())
    beneath.store.put("key", b"1")
    beneath.fail("get", UnavailableError("away"))
    store = wrapper(ExceptionLoggingStore(beneath))
    with pytest.raises(StorageError, match="answered nothing for 'key'") as caught:
        store.get("key")
    assert caught.value.location == "key"


def test_nothing_may_be_a_value():
    store = IdentityStore(JsonStore(DictStore()))
    store.put("key", None)
    assert TransformingStore(store).get("key") is None


def test_what_they_say_they_are(tmp_path):
    assert repr(LoggingStore(DictStore(), "x")) == "LoggingStore(DictStore(), store_name='x')"
    assert LoggingStore(DictStore()).capabilities == Capabilities(
        ranges=True, conditional_writes=True, etags=True, persistent=False
    )
    copy = pickle.loads(pickle.dumps(LoggingStore(FilesystemStore(tmp_path), logger="mine")))
    assert copy.logger is logging.getLogger("mine")
