"""What a mirror does when its children fail, lag behind, or disagree."""

from __future__ import annotations

import gc
import io
import os
import pickle
import shutil
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.entry import ObjectStat
from blobstore.errors import (
    ClosedError,
    ConfigError,
    IntegrityError,
    InvalidInputError,
    InvalidKeyError,
    KeyNotFoundError,
    MirrorError,
    NotSupportedError,
    OutOfSpaceError,
    StorageError,
    UnavailableError,
)
from blobstore.protocols import Capabilities, Leftover, ObjectStore
from blobstore.streams import BytesSource
from blobstore.testing.faults import FaultyStore
from blobstore.testing.object_store import in_fork, peak_memory
from blobstore.wrappers import fallback, mirror_trust
from blobstore.wrappers.fallback import FallbackSource
from blobstore.wrappers.locks import KeyLocks
from blobstore.wrappers.mirror import FanoutStore, MirroringStore

DAY = datetime(2020, 1, 1, tzinfo=UTC)


class Dated(DictStore):
    """Objects in memory whose times are told by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[str, datetime | None] = {}

    def stat(self, key):
        stat = super().stat(key)
        return ObjectStat(stat.size, self.times.get(key, DAY), stat.etag)


def three():
    children = [FaultyStore(Dated()) for _ in range(3)]
    return MirroringStore(dict(zip("abc", children, strict=True))), *children


@pytest.fixture
def pair():
    near, far = FaultyStore(DictStore()), FaultyStore(DictStore())
    with MirroringStore({"near": near, "far": far}) as store:
        yield store, near, far


# --- construction ----------------------------------------------------------------------------------


def test_names_and_children():
    a, b = DictStore(), DictStore()
    assert MirroringStore([a, b]).names == ("0", "1")
    named = MirroringStore({"x": a, "y": b})
    assert (named.names, named.children) == (("x", "y"), {"x": a, "y": b})
    assert repr(named) == "MirroringStore({'x': DictStore(), 'y': DictStore()})"
    assert repr(MirroringStore(iter([a]))) == "MirroringStore([DictStore()])"
    assert FanoutStore is MirroringStore


@pytest.mark.parametrize(
    "wrong",
    [[], {}, None, 5, "ab", [None], {"a": "store"}, {"": DictStore()}, {"a:b": DictStore()},
     {1: DictStore()}, [DictStore()] * 2, DictStore()],
    ids=repr,
)  # fmt: skip
def test_what_is_no_set_of_children_is_refused(wrong):
    with pytest.raises(ConfigError):
        MirroringStore(wrong)


class TextStore(DictStore):
    """Keeps text."""

    @property
    def capabilities(self):
        return Capabilities(values="text", persistent=False)

    def put(self, key, data):
        if not isinstance(data, str):
            raise InvalidInputError("text only")
        super().put(key, data.encode())

    def get(self, key):
        return super().get(key).decode()

    copy = ObjectStore.copy


def test_capabilities_are_what_all_have(tmp_path):
    files, memory = FilesystemStore(tmp_path / "f"), DictStore()
    assert MirroringStore([files]).capabilities == files.capabilities
    mixed = MirroringStore([files, memory]).capabilities
    assert mixed == Capabilities(ranges=True, conditional_writes=True, etags=True, persistent=False)
    assert MirroringStore([memory, TextStore()]).capabilities.values == "any"


def test_children_of_different_values():
    store = MirroringStore([TextStore(), DictStore()])
    with pytest.raises(MirrorError, match="1:") as caught:
        store.put("key", "text")
    assert caught.value.succeeded == ("0",)
    assert store.get("key") == "text"
    with pytest.raises(NotSupportedError, match="bytes, text"):
        store.repair()


# --- writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
def test_put_tries_every_child_and_then_raises(after):
    store, a, b, c = three()
    store.put("key", b"old")
    b.fail("put", OutOfSpaceError("full"), after=after)
    with pytest.raises(
        MirrorError, match="put of 'key' failed in b and was done in a, c"
    ) as caught:
        store.put("key", b"new")
    assert caught.value.succeeded == ("a", "c")
    assert {name: type(exc) for name, exc in caught.value.failures.items()} == {
        "b": OutOfSpaceError
    }
    assert caught.value.location == "key"
    assert [child.store.get("key") for child in (a, c)] == [b"new"] * 2
    assert pickle.loads(pickle.dumps(caught.value)).succeeded == ("a", "c")


def test_the_first_child_failing_does_not_keep_the_others(pair):
    store, near, _far = pair
    near.fail("put")
    with pytest.raises(MirrorError) as caught:
        store.put("key", b"1")
    assert (list(caught.value.failures), caught.value.succeeded) == (["near"], ("far",))
    assert store.get("key") == b"1"


def test_errors_of_the_system_count_as_a_child_that_failed(pair):
    store, near, _ = pair
    near.fail("put", ConnectionResetError("reset"))
    with pytest.raises(MirrorError, match="reset"):
        store.put("key", b"1")


@pytest.mark.parametrize("wrong", ["text", None, 5])
def test_a_wrong_argument_is_no_failure_of_the_mirror(pair, wrong):
    store, near, far = pair
    for call in (store.put, store.put_if_absent):
        with pytest.raises(InvalidInputError) as caught:
            call("key", wrong)
        assert not isinstance(caught.value, MirrorError)
    assert not near.calls["put"] + far.calls["put"]


def test_a_key_that_the_first_child_refuses_is_written_nowhere(tmp_path):
    memory = DictStore()
    store = MirroringStore([FilesystemStore(tmp_path / "f"), memory])
    for call in (
        lambda: store.put("../up", b"1"),
        lambda: store.writer("../up"),
        lambda: store.put_if_absent("../up", b"1"),
        lambda: store.delete("../up"),
        lambda: store.get("../up"),
    ):
        with pytest.raises(InvalidKeyError):
            call()
    assert list(memory.keys()) == []


def test_a_key_that_only_a_later_child_refuses(tmp_path):
    store = MirroringStore([DictStore(), FilesystemStore(tmp_path / "f")])
    with pytest.raises(KeyNotFoundError):
        store.get("../up")
    with pytest.raises(MirrorError, match="below the root"):
        store.put("../up", b"1")
    assert store.get("../up") == b"1"
    store.delete("../up")
    assert not store.exists("../up")


def test_a_child_that_missed_a_write_is_not_believed(pair):
    store, near, far = pair
    store.put("key", b"old")
    far.fail(["put", "delete"])
    with pytest.raises(MirrorError):
        store.put("key", b"new")
    far.heal()
    near.fail(["get", "exists", "stat", "open", "source", "get_range"])
    for read in (
        lambda: store.get("key"),
        lambda: store.exists("key"),
        lambda: store.stat("key"),
        lambda: store.open("key"),
        lambda: store.source("key"),
        lambda: store.get_range("key", 0, 1),
    ):
        with pytest.raises(UnavailableError):
            read()
    store.put("key", b"newest")
    assert store.get("key") == b"newest"


def test_a_child_that_missed_a_deletion_is_not_believed(pair):
    store, _, far = pair
    store.put("key", b"old")
    store.put("other", b"1")
    far.fail("delete")
    with pytest.raises(MirrorError):
        store.delete("key")
    assert far.store.exists("key")
    assert not store.exists("key")
    assert sorted(store.keys()) == ["other"]
    with pytest.raises(KeyNotFoundError):
        store.get("key")
    far.heal()
    store.delete("key")
    with pytest.raises(KeyNotFoundError):
        store.delete("key")


def test_when_all_children_fail_each_is_believed_as_before(pair):
    store, near, far = pair
    store.put("key", b"old")
    near.fail("put", after=True)
    far.fail("put")
    with pytest.raises(MirrorError, match="done in no child") as caught:
        store.put("key", b"new")
    assert caught.value.succeeded == ()
    assert store.get("key") == b"new"
    near.fail("get")
    assert store.get("key") == b"old"


def test_an_interrupted_write_leaves_no_old_value_to_be_read(pair):
    store, near, far = pair
    store.put("key", b"old")
    far.fail("put", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        store.put("key", b"new")
    near.fail("get")
    with pytest.raises(UnavailableError):
        store.get("key")


def test_a_reader_that_saw_the_new_value_does_not_see_the_old_one_again(pair):
    store, near, far = pair
    store.put("key", b"old")
    stall = far.stall("put")
    writer = threading.Thread(target=store.put, args=("key", b"new"))
    writer.start()
    assert stall.reached.wait(30)
    assert store.get("key") == b"new"
    near.fail("get")
    with pytest.raises(UnavailableError):
        store.get("key")
    stall.go.set()
    writer.join()
    assert store.get("key") == b"new"


def write(store, data):
    with store.writer("key") as sink:
        sink.write(data)


@pytest.mark.parametrize("way", [lambda store, data: store.put("key", data), write])
def test_two_writers_of_one_key_leave_the_same_everywhere(pair, way):
    store, near, far = pair
    stall = far.stall("put")
    first = threading.Thread(target=store.put, args=("key", b"first"))
    first.start()
    assert stall.reached.wait(30)
    second = threading.Thread(target=way, args=(store, b"second"))
    second.start()
    store.put("other", b"is not kept waiting")
    second.join(0.1)  # it cannot come to its end, unless something is wrong
    stall.go.set()
    first.join()
    second.join()
    assert near.store.get("key") == far.store.get("key") == b"second"


def test_delete_tries_every_child(pair):
    store, near, far = pair
    store.put("key", b"1")
    near.fail("delete")
    with pytest.raises(MirrorError, match="failed in near and was done in far"):
        store.delete("key")
    assert not far.store.exists("key")
    with pytest.raises(KeyNotFoundError):
        store.get("key")


def test_delete_of_what_one_child_has(pair):
    store, _, far = pair
    far.store.put("key", b"1")
    store.delete("key")
    assert not far.store.exists("key")


def test_delete_many_goes_on(pair):
    store, near, far = pair
    for key in "abc":
        store.put(key, b"1")
    near.fail("delete_many", times=1)
    with pytest.raises(MirrorError) as caught:
        store.delete_many(iter("ab"))
    assert caught.value.succeeded == ("far",)
    assert list(far.store.keys()) == ["c"]
    assert not store.exists("a")
    assert list(store.keys()) == ["c"]


def test_delete_many_of_many(monkeypatch, pair):
    monkeypatch.setattr("blobstore.wrappers.mirror._BATCH", 2)
    store, near, far = pair
    for key in "abcde":
        store.put(key, b"1")
    far.fail("delete_many", times=1)
    with pytest.raises(MirrorError):
        store.delete_many("abcde")
    assert list(near.store.keys()) == []
    assert list(far.store.keys()) == ["a", "b"]
    assert list(store.keys()) == []


def test_copy_takes_the_place_of_a_source_that_is_not_good(pair):
    store, near, far = pair
    store.put("source", b"old")
    near.fail("put")
    with pytest.raises(MirrorError):
        store.put("source", b"new")
    store.copy("source", "target")
    assert near.store.get("target") == far.store.get("target") == b"new"
    far.store.delete("target")
    near.store.delete("target")
    near.heal()
    store.put("only", b"x")
    far.store.delete("only")
    store.copy("only", "target")
    assert far.store.get("target") == b"x"


def test_copy_names_the_child_that_failed(pair):
    store, _near, far = pair
    store.put("source", b"1")
    far.fail("copy", key="target")
    with pytest.raises(MirrorError, match="failed in far and was done in near"):
        store.copy("source", "target")
    assert store.get("target") == b"1"


def test_sync_reaches_every_child(pair):
    store, near, far = pair
    near.fail("sync")
    with pytest.raises(MirrorError, match="sync failed in near and was done in far"):
        store.sync(["key"])
    assert far.calls["sync"] == 1


@pytest.mark.parametrize("operation", ["put", "delete", "writer", "copy", "delete_many"])
def test_what_no_child_can_do_is_not_supported(pair, operation):
    store, near, far = pair
    store.put("key", b"1")
    for child in (near, far):
        child.fail(operation, NotSupportedError("read only"))
    calls = {
        "put": lambda: store.put("key", b"2"),
        "delete": lambda: store.delete("key"),
        "writer": lambda: store.writer("key"),
        "copy": lambda: store.copy("key", "target"),
        "delete_many": lambda: store.delete_many(["key"]),
    }
    with pytest.raises(NotSupportedError, match="read only"):
        calls[operation]()
    assert store.get("key") == b"1"


def test_copy_of_text_that_one_child_lacks():
    a, b = TextStore(), TextStore()
    store = MirroringStore([a, b])
    a.put("key", "text")
    store.copy("key", "target")
    assert b.get("target") == "text"


# --- put_if_absent ---------------------------------------------------------------------------------


def test_the_first_child_decides_who_was_first(pair):
    store, near, far = pair
    near.store.put("key", b"first")
    assert store.put_if_absent("key", b"second") is False
    assert not far.store.exists("key")
    near.fail("put_if_absent")
    with pytest.raises(UnavailableError):
        store.put_if_absent("new", b"1")
    assert not far.store.exists("new")
    near.heal()
    far.fail("put")
    with pytest.raises(MirrorError) as caught:
        store.put_if_absent("new", b"1")
    assert caught.value.succeeded == ("near",)


def test_what_only_another_child_has_is_not_replaced(pair):
    store, near, far = pair
    far.store.put("key", b"the last copy")
    assert store.put_if_absent("key", b"mine") is False
    assert far.store.get("key") == b"the last copy"
    assert not near.store.exists("key")

    store.put("gone", b"1")
    far.fail("delete")
    with pytest.raises(MirrorError):
        store.delete("gone")
    assert store.put_if_absent("gone", b"mine") is True  # what a child only failed to delete

    far.fail("exists")
    assert store.put_if_absent("new", b"mine") is True  # it cannot say: the first one decides


def test_a_first_child_that_missed_something_is_mended_before_it_decides(pair):
    store, near, far = pair
    near.fail("put")
    with pytest.raises(MirrorError):
        store.put("key", b"there")
    with pytest.raises(StorageError):
        near.fail()
        store.put_if_absent("key", b"mine")
    near.heal()
    assert store.put_if_absent("key", b"mine") is False
    assert near.store.get("key") == far.store.get("key") == b"there"

    near.fail("delete")
    with pytest.raises(MirrorError):
        store.delete("key")
    near.heal()
    assert store.put_if_absent("key", b"mine") is True
    assert near.store.get("key") == far.store.get("key") == b"mine"


def test_nobody_decides_where_nobody_can_tell(pair):
    store, near, far = pair
    near.fail("put")
    with pytest.raises(MirrorError):
        store.put("key", b"there")
    near.heal()
    far.fail()
    with pytest.raises(StorageError, match=r"missed a change|down"):
        store.put_if_absent("key", b"mine")
    assert not near.store.exists("key")


# --- streams ---------------------------------------------------------------------------------------


def test_a_child_whose_sink_fails_is_dropped_and_named():
    for operation in ("writer", "write", "commit"):
        store, a, b, c = three()
        store.put("key", b"old")
        b.fail(operation)
        with pytest.raises(MirrorError) as caught, store.writer("key") as sink:
            sink.write(b"ne")
            sink.write(b"w")
        assert (list(caught.value.failures), caught.value.succeeded) == (["b"], ("a", "c"))
        assert [child.store.get("key") for child in (a, b, c)] == [b"new", b"old", b"new"]
        a.fail("get")
        c.fail("get")
        with pytest.raises(UnavailableError):
            store.get("key")


@pytest.mark.parametrize("operation", ["writer", "write", "commit"])
def test_a_writer_that_no_child_takes(pair, operation):
    store, near, far = pair
    near.fail(operation)
    far.fail(operation)
    with pytest.raises(MirrorError, match="done in no child"), store.writer("key") as sink:
        sink.write(b"1")
    near.heal()
    far.heal()
    assert not store.exists("key")


def test_a_lent_path_that_was_not_used_is_a_wrong_use(pair):
    store, near, far = pair
    with pytest.raises(InvalidInputError, match="nothing was written"), store.writer("k") as sink:
        sink.path()
    assert not near.store.exists("k")
    assert not far.store.exists("k")


def test_only_the_lent_path_is_published(pair):
    store, _, far = pair
    with store.writer("key.db") as sink:
        path = sink.path()
        path.write_bytes(b"1")
        path.with_suffix(".db-journal").write_bytes(b"2")
    assert (store.get("key.db"), far.store.get("key.db")) == (b"1", b"1")
    assert not path.parent.exists()


def test_an_aborted_writer_leaves_nothing(tmp_path):
    store = MirroringStore([FilesystemStore(tmp_path / name) for name in "ab"])
    for lend in (False, True):
        sink = store.writer("key.bin")
        if lend:
            path = sink.path()
            assert path.suffix == ".bin"
            path.write_bytes(b"x")
        else:
            sink.write(b"x")
            assert len(list(store.leftovers())) in (0, 2)
        sink.abort()
        sink.abort()
        assert not lend or not path.parent.exists()
    assert list(store.leftovers()) == []
    assert list(store.keys()) == []


def test_a_child_that_keeps_objects_elsewhere_is_named():
    class Elsewhere(DictStore):
        def writer(self, key, size_hint=None):
            sink = super().writer(key, size_hint)
            sink._publish = lambda data: self.put("elsewhere", data) or "elsewhere"
            return sink

    store = MirroringStore({"here": DictStore(), "there": Elsewhere()})
    with pytest.raises(MirrorError, match="place of its own"), store.writer("key") as sink:
        sink.write(b"1")
    assert store.get("key") == b"1"


def test_writing_holds_pieces_only(tmp_path):
    store = MirroringStore([FilesystemStore(tmp_path / name) for name in "ab"])

    def work():
        with store.writer("key") as sink:
            path = sink.path()
            with path.open("wb") as file:
                for _ in range(40):
                    file.write(bytes(1 << 20))
        store.children["1"].delete("key")
        store.repair()

    assert peak_memory(work) < 20 << 20
    assert store.children["1"].stat("key").size == 40 << 20


# --- reading ---------------------------------------------------------------------------------------

READS = {
    "get": lambda store: store.get("key"),
    "get_range": lambda store: store.get_range("key", 0, 99),
    "open": lambda store: store.open("key").read(),
    "source": lambda store: store.source("key").read(),
    "stat": lambda store: store.stat("key").size,
    "exists": lambda store: store.exists("key"),
}


@pytest.mark.parametrize("operation", READS)
@pytest.mark.parametrize(
    "error", [IntegrityError("corrupt"), UnavailableError("down"), TimeoutError("late"), None]
)
def test_reading_falls_over_to_the_next_child(pair, operation, error):
    store, near, _ = pair
    store.put("key", b"value")
    wanted = READS[operation](store)
    if error is None:
        near.store.delete("key")
    else:
        near.fail(operation, error)
    assert READS[operation](store) == wanted


@pytest.mark.parametrize("operation", READS)
def test_absent_here_and_failing_there_is_a_failure(pair, operation):
    store, _, far = pair
    far.fail(operation)
    with pytest.raises(UnavailableError):
        READS[operation](store)
    far.heal()
    if operation == "exists":
        assert store.exists("key") is False
    else:
        with pytest.raises(KeyNotFoundError):
            READS[operation](store)


def test_of_several_failures_one_that_may_pass_is_raised(pair):
    store, near, far = pair
    near.fail("get", IntegrityError("corrupt"))
    far.fail("get", UnavailableError("down"))
    with pytest.raises(UnavailableError, match="down") as caught:
        store.get("key")
    assert caught.value.__notes__ == ["child 'near' failed as well: corrupt"]


@pytest.mark.parametrize("way", ["open", "read", "read_range", "source.open", "path"])
def test_what_fails_when_it_is_read_falls_over_too(pair, way):
    store, near, _ = pair
    store.put("key", b"value")
    near.fail("read", IntegrityError("corrupt"))
    if way == "open":
        with store.open("key") as file:
            assert file.seek(0, os.SEEK_END) == 5
            file.seek(1)
            assert file.read() == b"alue"
        return
    with store.source("key") as source:
        if way == "read":
            assert source.read() == b"value"
        elif way == "read_range":
            assert source.read_range(1, 3) == b"al"
        elif way == "path":
            with source.path() as path:
                assert path.read_bytes() == b"value"
        else:
            with source.open() as file:
                assert file.read(2) == b"va"


@pytest.mark.parametrize("way", ["open", "source"])
def test_what_has_given_bytes_never_changes_over(pair, way):
    store, near, far = pair
    store.put("key", b"a" * 200_000)
    far.store.put("key", b"b" * 200_000)
    if way == "open":
        with store.open("key") as file:
            assert file.read(10) == b"a" * 10
            near.fail("read")
            with pytest.raises(UnavailableError):
                file.read()
        return
    with store.source("key") as source, source.open() as file:
        assert file.read(10) == b"a" * 10
        near.fail("read")
        with pytest.raises(UnavailableError):
            source.read_range(0, 10)


def test_a_size_that_was_told_stays_true(pair):
    store, near, far = pair
    store.put("key", b"value")
    far.store.put("key", b"longer value")
    near.fail("read")
    with store.open("key") as file:
        assert file.seek(0, os.SEEK_END) == 5
        file.seek(0)
        with pytest.raises(UnavailableError):
            file.read()


def test_reading_ends_with_the_error_of_the_child_that_was_read(pair):
    store, near, far = pair
    store.put("key", b"value")
    near.fail("read", IntegrityError("corrupt"))
    far.fail(["open", "source"])
    with store.open("key") as file, pytest.raises(IntegrityError):
        file.read()
    with store.source("key") as source, pytest.raises(IntegrityError):
        source.read()


class LateStore(DictStore):
    """Finds out only while it is read that it cannot give an object."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0

    def open(self, key):
        self.opened += 1
        return LateFile(super().open(key).read())

    def source(self, key):
        return LateSource(super().get(key))


class LateFile(io.BytesIO):
    def read(self, size=-1):
        raise UnavailableError("down")

    def seek(self, offset, whence=os.SEEK_SET):
        raise UnavailableError("down")

    def close(self):
        super().close()
        raise UnavailableError("down")


class LateSource(BytesSource):
    def read(self):
        raise UnavailableError("down")

    def open(self):
        if self.size > 5:
            raise UnavailableError("down")
        return LateFile()

    def close(self):
        raise UnavailableError("down")


@pytest.mark.parametrize("value", [b"value", b"longer value"])
@pytest.mark.parametrize("way", ["open", "source", "source.open"])
def test_reading_goes_on_to_the_last_child(way, value):
    store = MirroringStore([LateStore(), LateStore(), LateStore(), DictStore()])
    store.put("key", value)
    if way == "open":
        with store.open("key") as file:
            assert file.read() == value
        return
    with store.source("key") as source:
        if way == "source":
            assert source.read() == value
        else:
            with source.open() as file:
                assert file.read() == value


def test_what_has_another_size_is_passed_over():
    children = [FaultyStore(DictStore()) for _ in range(3)]
    store = MirroringStore(children)
    store.put("key", b"value")
    children[1].store.put("key", b"longer value")
    with store.open("key") as file:
        assert file.seek(0, os.SEEK_END) == 5
        file.seek(0)
        children[0].fail("read")
        assert file.read() == b"value"


def test_each_reader_of_a_source_falls_over(pair):
    store, near, _ = pair
    store.put("key", b"")
    near.fail("read")
    with store.source("key") as source, source.open() as one, source.open() as other:
        assert (one.read(), other.read()) == (b"", b"")


def test_threads_that_share_a_source_fall_over_together():
    results = []
    near = LateSource(b"value")

    def sources():
        yield near
        thread.start()
        thread.join(0.1)  # it has to wait for this one
        yield BytesSource(b"value")
        raise AssertionError("there is no need for a third one")

    found = FallbackSource(sources())
    thread = threading.Thread(target=lambda: results.append(found.read()))
    assert found.read() == b"value"
    thread.join()
    assert results == [b"value"]


def test_an_absent_object_cannot_be_opened_and_leaves_nothing_behind(pair, monkeypatch):
    store, _, _ = pair
    closed = []
    monkeypatch.setattr(fallback._FallbackReader, "close", lambda self: closed.append(self))
    with pytest.raises(KeyNotFoundError):
        store.open("key")
    gc.collect()
    assert closed == []


def test_local_path_of_the_first_that_has_it(tmp_path):
    near, far = (FaultyStore(FilesystemStore(tmp_path / name)) for name in "nf")
    store = MirroringStore([near, far])
    far.store.put("key", b"1")
    assert store.local_path("key") == far.store.local_path("key")
    near.store.put("key", b"2")
    assert store.local_path("key") == near.store.local_path("key")
    assert store.local_path("absent") is None
    near.fail("local_path")
    assert store.local_path("key") == far.store.local_path("key")
    with pytest.raises(UnavailableError):
        store.local_path("absent")


def test_etags_of_children_are_kept_apart(pair):
    store, near, far = pair
    near.store.put("key", b"1")
    far.store.put("key", b"2")
    assert near.store.stat("key").etag == far.store.stat("key").etag
    before = store.stat("key").etag
    near.fail("stat")
    assert before.startswith("near:")
    assert store.stat("key").etag.startswith("far:")


def test_keys_are_the_union_and_lazy(pair):
    store, near, far = pair
    near.store.put("a", b"")
    far.store.put("b", b"")
    store.put("both", b"")
    assert sorted(store.keys()) == ["a", "b", "both"]
    assert sorted(store.keys("b")) == ["b", "both"]
    far.calls.clear()
    next(store.keys())
    assert far.calls == {"keys": 1}


def test_a_child_that_cannot_list_is_an_error(pair):
    store, _, far = pair
    store.put("key", b"1")
    far.fail("keys")
    with pytest.raises(UnavailableError):
        store.keys()
    far.heal()
    far.store.put("only here", b"")
    far.fail("next")
    with pytest.raises(UnavailableError):
        list(store.keys())


def test_keys_that_change_hands_while_they_are_listed(pair):
    store, near, far = pair
    near.fail("put")
    with pytest.raises(MirrorError):
        store.put("key", b"1")
    near.heal()
    near.store.put("key", b"0")
    near.store.put("z", b"")
    found = []
    for key in store.keys():  # noqa: SIM118
        found.append(key)
        if key == "z":
            far.fail("put")
            with pytest.raises(MirrorError):
                store.put("key", b"2")
    assert sorted(found) == ["key", "z"]


# --- bounded memory --------------------------------------------------------------------------------


def test_a_child_that_missed_too_much_is_believed_for_nothing(monkeypatch, pair):
    monkeypatch.setattr(mirror_trust, "LIMIT", 3)
    store, near, far = pair
    store.put("other", b"1")
    far.fail("put")
    for n in range(4):
        with pytest.raises(MirrorError):
            store.put(f"k{n}", b"1")
    far.heal()
    near.fail("get")
    with pytest.raises(UnavailableError):
        store.get("other")
    near.heal()
    assert store.repair().complete
    near.fail("get")
    assert [store.get(key) for key in ("other", "k0", "k3")] == [b"1"] * 3


def test_a_child_is_not_believed_at_the_moment_when_it_missed_too_much(monkeypatch):
    monkeypatch.setattr(mirror_trust, "LIMIT", 1)
    trust = mirror_trust.Trust(["near"])
    trust.missing(["near"], "key")

    class Lost(frozenset):
        def __contains__(self, name):
            # Just now another thread misses one key too many.
            answer = super().__contains__(name)
            if trust._lost is self:
                trust.missing(["near"], "other")
            return answer

    trust._lost = Lost()
    assert trust.believes("near", "key") is False


def test_what_is_missed_during_a_repair_still_counts(monkeypatch, pair):
    monkeypatch.setattr(mirror_trust, "LIMIT", 1)
    store, near, far = pair

    def miss(*keys):
        far.fail("put", key=keys)
        for key in keys:
            with pytest.raises(MirrorError):
                store.put(key, b"1")

    for more in (["c"], ["c", "d", "e"]):
        miss("a", "b")
        far.heal()
        stall = near.stall("stat", key="a")
        repair = threading.Thread(target=store.repair)
        repair.start()
        assert stall.reached.wait(30)
        miss(*more)
        stall.go.set()
        repair.join()
        near.fail("get")
        with pytest.raises(UnavailableError):
            store.get(more[-1])
        if len(more) == 1:
            assert store.get("a") == b"1"
        else:
            with pytest.raises(UnavailableError):
                store.get("a")
        near.heal()
        far.heal()


def test_a_mirror_of_which_nothing_is_known_says_so(monkeypatch, pair):
    monkeypatch.setattr(mirror_trust, "LIMIT", 0)
    store, near, far = pair
    for child in (near, far):
        child.fail("put", times=1)
        with pytest.raises(MirrorError):
            store.put("key", b"1" if child is near else b"2")
    with pytest.raises(StorageError, match=r"repair\(\)"):
        store.get("key")
    assert store.repair().complete
    assert store.get("key") == b"2"


# --- repair ----------------------------------------------------------------------------------------


def test_the_newest_value_wins():
    store, a, b, c = three()
    for child, data, day in ((a, b"old", 1), (b, b"new", 2), (c, b"old", 1)):
        child.store.put("key", data)
        child.store.times["key"] = DAY + timedelta(days=day)
    report = store.repair()
    assert (report.copied, report.deleted, report.checked) == (
        {"a": ("key",), "c": ("key",)},
        {},
        1,
    )
    assert report.complete
    assert [child.store.get("key") for child in (a, b, c)] == [b"new"] * 3
    assert store.repair().copied == {}


def test_of_equal_times_the_majority_wins_then_the_order():
    store, a, b, c = three()
    for key, values in {"most": b"xyy", "order": b"xyz"}.items():
        for child, value in zip((a, b, c), values, strict=True):
            child.store.put(key, bytes([value]))
            child.store.times[key] = None if key == "order" else DAY
    store.repair()
    assert {child.store.get("most") for child in (a, b, c)} == {b"y"}
    assert {child.store.get("order") for child in (a, b, c)} == {b"x"}


def test_what_any_child_has_is_kept_without_an_authority():
    store, a, b, c = three()
    b.store.put("key", b"1")
    c.store.put("x/key", b"2")
    assert store.repair("x/").copied == {"a": ("x/key",), "b": ("x/key",)}
    assert not a.store.exists("key")
    assert store.repair().copied == {"a": ("key",), "c": ("key",)}


@pytest.mark.parametrize("authority", ["b", 1])
def test_all_become_equal_to_the_authority(authority):
    store, a, b, c = three()
    a.store.put("extra", b"1")
    for child, data in ((a, b"a"), (b, b"b")):
        child.store.put("key", data)
        child.store.times["key"] = DAY
    a.store.times["key"] = DAY + timedelta(days=1)
    wanted = {"a": ("key",), "c": ("key",)}, {"a": ("extra",)}
    planned = store.repair(authority=authority, dry_run=True)
    assert (planned.copied, planned.deleted, planned.dry_run) == (*wanted, True)
    assert a.store.get("key") == b"a"
    done = store.repair(authority=authority)
    assert (done.copied, done.deleted, done.dry_run) == (*wanted, False)
    for child in (a, b, c):
        assert {key: child.store.get(key) for key in list(child.store.keys())} == {"key": b"b"}


@pytest.mark.parametrize("wrong", ["x", 3, -1, ""])
def test_an_authority_that_is_no_child(pair, wrong):
    with pytest.raises(ConfigError, match="near, far"):
        pair[0].repair(authority=wrong)


def test_what_is_known_goes_before_times(pair):
    store, near, far = pair
    store.put("gone", b"1")
    store.put("key", b"old")
    far.fail(["put", "delete"])
    with pytest.raises(MirrorError):
        store.delete("gone")
    with pytest.raises(MirrorError):
        store.put("key", b"new")
    far.heal()
    far.store.put("key", b"newer by the clock, but replaced")
    report = store.repair()
    assert (report.copied, report.deleted) == ({"far": ("key",)}, {"far": ("gone",)})
    near.fail("get")
    assert store.get("key") == b"new"
    with pytest.raises(StorageError):
        store.get("gone")


def test_a_dry_run_changes_nothing_that_is_known(pair):
    store, near, far = pair
    store.put("key", b"old")
    far.fail("put")
    with pytest.raises(MirrorError):
        store.put("key", b"new")
    far.heal()
    assert store.repair(dry_run=True).copied == {"far": ("key",)}
    near.fail("get")
    with pytest.raises(UnavailableError):
        store.get("key")


def test_a_child_that_is_down_is_reported_and_the_others_are_repaired():
    store, a, b, _c = three()
    a.store.put("key", b"1")
    b.fail()
    report = store.repair()
    assert list(report.failures) == ["b"]
    assert not report.complete
    assert report.copied == {"c": ("key",)}
    with pytest.raises(UnavailableError):
        store.repair(authority="b")


@pytest.mark.parametrize("operation", ["stat", "open", "writer", "commit"])
def test_a_child_that_fails_for_one_key(operation):
    store, a, b, c = three()
    for key in ("one", "two"):
        a.store.put(key, b"1")
        b.store.put(key, b"2")
        a.store.times[key] = DAY + timedelta(days=1)
    b.fail(operation, key="one")
    report = store.repair()
    assert (list(report.failures), report.unresolved) == (["b"], ("one",))
    assert [child.store.get("two") for child in (a, b, c)] == [b"1"] * 3
    assert c.store.get("one") == b"1"
    if operation in ("writer", "commit"):  # it is known to have another value than it should
        a.fail("get")
        c.fail("get")
        with pytest.raises(UnavailableError):
            store.get("one")


def test_corrupt_objects_are_written_again():
    store, a, _b, c = three()
    store.put("key", b"1")
    a.fail("read", IntegrityError("corrupt"))
    c.fail("stat", IntegrityError("corrupt"))
    assert store.repair().copied == {"a": ("key",), "c": ("key",)}


def test_an_object_that_is_corrupt_everywhere_is_left_alone(pair):
    store, near, _far = pair
    near.store.put("key", b"1")
    near.fail("stat", IntegrityError("corrupt"))
    report = store.repair()
    assert (report.copied, report.deleted, report.unresolved) == ({}, {}, ("key",))
    assert store.repair(authority="near").unresolved == ("key",)
    assert near.store.get("key") == b"1"


def test_an_object_that_goes_while_it_is_compared_is_absent():
    store, a, b, c = three()
    store.put("key", b"1")
    b.fail("open", KeyNotFoundError("gone"), times=1)
    assert store.repair().copied == {"b": ("key",)}
    assert [child.store.get("key") for child in (a, b, c)] == [b"1"] * 3


def test_contents_are_compared_not_etags(pair):
    store, near, far = pair
    near.store.put("key", b"1")
    far.store.put("key", b"2")
    assert near.store.stat("key").etag == far.store.stat("key").etag
    assert store.repair().copied == {"near": ("key",)}  # it was written first


def test_a_mirror_of_text_is_repaired():
    a, b = TextStore(), TextStore()
    a.put("key", "tëxt")
    assert MirroringStore([a, b]).repair().copied == {"1": ("key",)}
    b.put("key", "newer")
    assert MirroringStore([a, b]).repair().copied == {"0": ("key",)}
    assert a.get("key") == "newer"


def test_a_child_that_never_lists_cannot_be_repaired():
    class Blind(DictStore):
        def keys(self, prefix=""):
            raise NotSupportedError("it cannot list")

    with pytest.raises(NotSupportedError):
        MirroringStore([DictStore(), Blind()]).repair()


def test_a_write_during_a_repair_waits_for_its_key(pair):
    store, near, far = pair
    near.store.put("key", b"old")
    stall = far.stall("writer")
    repair = threading.Thread(target=store.repair)
    repair.start()
    assert stall.reached.wait(30)
    writer = threading.Thread(target=store.put, args=("key", b"new"))
    writer.start()
    store.put("other", b"is not kept waiting")
    stall.go.set()
    repair.join()
    writer.join()
    assert near.store.get("key") == far.store.get("key") == b"new"


# --- upkeep ----------------------------------------------------------------------------------------


def test_leftovers_have_the_name_of_their_child():
    class Leaving(DictStore):
        def __init__(self, names):
            super().__init__()
            self.names = names

        def leftovers(self):
            return iter([Leftover(name, 1, DAY) for name in self.names])

        def remove_leftover(self, name):
            self.names.remove(name)

    store = MirroringStore({"a": Leaving(["x"]), "b": Leaving(["x", "y:z"])})
    assert [leftover.name for leftover in store.leftovers()] == ["a:x", "b:x", "b:y:z"]
    store.remove_leftover("b:y:z")
    assert [leftover.name for leftover in store.leftovers()] == ["a:x", "b:x"]
    with pytest.raises(InvalidInputError, match="a, b"):
        store.remove_leftover("x")


def test_every_child_is_closed_even_if_one_cannot_be():
    class Stuck(DictStore):
        def close(self):
            raise UnavailableError("stuck")

    last = DictStore()
    store = MirroringStore([Stuck(), last])
    with pytest.raises(UnavailableError):
        store.close()
    with pytest.raises(ClosedError):
        last.get("key")
    with pytest.raises(ClosedError):
        store.repair()


def test_what_was_missed_is_known_to_a_pickled_copy_and_in_a_fork(tmp_path):
    drafts = tmp_path / "drafts"
    far = FilesystemStore(tmp_path / "b", tmp_dir=drafts)
    store = MirroringStore([FilesystemStore(tmp_path / "a"), far])
    store.put("key", b"old")
    shutil.rmtree(drafts)
    drafts.write_bytes(b"no folder")
    with pytest.raises(MirrorError):
        store.put("key", b"new")
    assert far.get("key") == b"old"
    store.children["0"].delete("key")

    def child():
        with pytest.raises(KeyNotFoundError):
            store.get("key")

    in_fork(child)
    with pickle.loads(pickle.dumps(store)) as copy, pytest.raises(KeyNotFoundError):
        copy.get("key")


def test_a_lock_that_was_abandoned_is_open_again():
    locks = KeyLocks()

    def abandon():
        holder = locks.hold("key")
        holder.__enter__()
        with locks._mutex:  # a collection of garbage may come at any time
            del holder

    thread = threading.Thread(target=abandon, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    with locks.attempt("key") as free:
        assert free
    assert len(locks) == 0


def test_a_fork_finds_the_locks_of_other_threads_open(tmp_path):
    slow = FaultyStore(FilesystemStore(tmp_path / "a"))
    store = MirroringStore([slow])
    stall = slow.stall("put")
    writer = threading.Thread(target=store.put, args=("key", b"parent"))
    writer.start()
    assert stall.reached.wait(30)
    in_fork(lambda: store.put("key", b"child"))
    assert store.get("key") == b"child"
    stall.go.set()
    writer.join()
    assert store.get("key") == b"parent"


# --- at random -------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "c"])
DATA = st.integers(0, 250).map(lambda n: bytes([n]))


class MirrorMachine(RuleBasedStateMachine):
    """One child at a time fails; what may be read is the last value of which any child said yes.

    If no child did, each of them holds the old value or the new one.
    """

    def __init__(self):
        super().__init__()
        self.children = [FaultyStore(DictStore()) for _ in range(3)]
        self.store = MirroringStore(self.children)
        self.may_be: dict[str, set[bytes | None]] = {key: {None} for key in "abc"}

    def teardown(self):
        self.store.close()

    @rule(
        which=st.integers(0, 2), after=st.booleans(), what=st.sampled_from(["*", "put", "delete"])
    )
    def break_one(self, which, after, what):
        for child in self.children:
            child.heal()
        self.children[which].fail(what, after=after)

    @rule()
    def heal(self):
        for child in self.children:
            child.heal()

    def change(self, key, value, act):
        try:
            act()
        except MirrorError as exc:
            self.may_be[key] = {value} if exc.succeeded else self.may_be[key] | {value}
        else:
            self.may_be[key] = {value}

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
            assert None in self.may_be[key]

    @rule(keys=st.lists(KEYS, unique=True, min_size=1))
    def delete_many(self, keys):
        try:
            self.store.delete_many(keys)
        except MirrorError as exc:
            done = exc.succeeded
        else:
            done = self.store.names
        assert len(done) >= 2
        for key in keys:
            self.may_be[key] = {None}

    @rule(key=KEYS, data=DATA)
    def put_if_absent(self, key, data):
        try:
            won = self.store.put_if_absent(key, data)
        except MirrorError as exc:
            won = "0" in exc.succeeded
        except StorageError:
            if None in self.may_be[key]:
                self.may_be[key] |= {data}
            return
        if won:
            assert None in self.may_be[key]
            self.may_be[key] = {data}
        else:
            assert self.may_be[key] != {None}

    @rule(source=KEYS, to=KEYS)
    def copy(self, source, to):
        values = self.may_be[source] - {None}
        try:
            self.store.copy(source, to)
        except KeyNotFoundError:
            assert None in self.may_be[source]
        except MirrorError as exc:
            self.may_be[to] = values if exc.succeeded else self.may_be[to] | values
        except StorageError:
            pass
        else:
            self.may_be[to] = values

    @rule()
    def repair(self):
        for child in self.children:
            child.heal()
        assert self.store.repair().complete
        for key, values in self.may_be.items():
            stores = [child.store for child in self.children]
            found = {store.get(key) if store.exists(key) else None for store in stores}
            assert len(found) == 1
            assert found <= values
            self.may_be[key] = found

    @rule(which=st.integers(0, 2))
    def repair_while_one_is_down(self, which):
        for child in self.children:
            child.heal()
        self.children[which].fail()
        report = self.store.repair()
        assert list(report.failures) == [str(which)]

    @invariant()
    def reads_give_what_may_be(self):
        for key, values in self.may_be.items():
            try:
                found = self.store.get(key)
            except KeyNotFoundError:
                found = None
            except StorageError:
                continue
            assert found in values
        with_error = None
        try:
            listed = set(self.store.keys())
        except StorageError as exc:
            with_error = exc
        if with_error is None:
            assert listed <= {key for key, values in self.may_be.items() if values != {None}}
            assert listed >= {key for key, values in self.may_be.items() if None not in values}


def test_at_random():
    run_state_machine_as_test(
        MirrorMachine,
        settings=settings(max_examples=60, stateful_step_count=30, deadline=None, database=None),
    )


def test_custom_children_need_only_five_methods():
    class Five(ObjectStore):
        def __init__(self):
            self.kept = {}

        def get(self, key):
            try:
                return self.kept[key]
            except KeyError as exc:
                raise KeyNotFoundError("none", location=key) from exc

        def put(self, key, data):
            self.kept[key] = bytes(data)

        def exists(self, key):
            return key in self.kept

        def delete(self, key):
            self.get(key)
            del self.kept[key]

        def keys(self, prefix=""):
            return iter([key for key in self.kept if key.startswith(prefix)])

    store = MirroringStore([Five(), Five()])
    with store.writer("key") as sink:
        sink.path().write_bytes(b"1")
    store.copy("key", "other")
    store.children["0"].delete("other")
    assert store.repair().copied == {"0": ("other",)}
    assert store.get("other") == b"1"
