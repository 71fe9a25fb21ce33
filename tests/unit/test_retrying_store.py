"""RetryingStore: what is tried again, and what is made of answers that were lost."""

from __future__ import annotations

import io
import logging
import pickle
import tempfile
from pathlib import Path

import pytest

from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.errors import (
    BlobStoreError,
    ClosedError,
    ConfigError,
    IntegrityError,
    InvalidInputError,
    InvalidKeyError,
    KeyExistsError,
    KeyNotFoundError,
    LostDraftError,
    NotSupportedError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)
from blobstore.protocols import Capabilities, ObjectStore
from blobstore.streams import Source
from blobstore.testing.object_store import in_threads, peak_memory
from blobstore.wrappers.base import WrapperSink, WrapperStore
from blobstore.wrappers.retry import RetryingStore

DATA = bytes(range(256)) * 4096  # 1 MiB


class FlakyStore(WrapperStore):
    """Fails as often as it is told to, before or after it has done what was asked.

    Attributes
    ----------
    plan : dict of str to list of exceptions
        What the next calls of each method raise.
    landed : set of str
        Methods whose failing calls are carried out first, as if only the answer was lost.
    broken : dict of str to int
        How many bytes a stream opened by a method gives before it fails; for the next one each.
    """

    def __init__(self, store=None):
        super().__init__(DictStore() if store is None else store)
        self.plan: dict[str, list[Exception]] = {}
        self.landed: set[str] = set()
        self.broken: dict[str, list[int]] = {}
        self.calls: list[str] = []
        self.opened = 0
        self.stream_error: Exception = away()

    def _do(self, name, *args):
        self.calls.append(name)
        planned = self.plan.get(name)
        work = getattr(super(), name)
        if not planned:
            return work(*args)
        if name in self.landed:
            work(*args)
        raise planned.pop(0)

    def get(self, key):
        return self._do("get", key)

    def put(self, key, data):
        self._do("put", key, data)

    def exists(self, key):
        return self._do("exists", key)

    def delete(self, key):
        self._do("delete", key)

    def keys(self, prefix=""):
        return self._do("keys", prefix)

    def get_range(self, key, start, stop):
        return self._do("get_range", key, start, stop)

    def open(self, key):
        return self._breaking("open", self._do("open", key))

    def source(self, key):
        return FlakySource(self, self._do("source", key))

    def writer(self, key, size_hint=None):
        return FlakySink(self, self._do("writer", key, size_hint))

    def stat(self, key):
        return self._do("stat", key)

    def local_path(self, key):
        return self._do("local_path", key)

    def delete_many(self, keys):
        self._do("delete_many", keys)

    def copy(self, source, target):
        self._do("copy", source, target)

    def put_if_absent(self, key, data):
        return self._do("put_if_absent", key, data)

    def sync(self, keys):
        self._do("sync", keys)

    def leftovers(self):
        return self._do("leftovers")

    def remove_leftover(self, name):
        self._do("remove_leftover", name)

    def _breaking(self, name, raw):
        lasts = self.broken.get(name)
        return BreakingReader(self, raw, lasts.pop(0) if lasts else None)


class FlakySink(WrapperSink):
    def __init__(self, store, inner):
        super().__init__(inner)
        self.store = store

    def write(self, data):
        self._fail("write")
        return super().write(data)

    def commit(self):
        if "commit" in self.store.landed and self.store.plan.get("commit"):
            super().commit()
        self._fail("commit")
        super().commit()

    def _fail(self, name):
        self.store.calls.append(name)
        if self.store.plan.get(name):
            raise self.store.plan[name].pop(0)


class FlakySource(Source):
    def __init__(self, store, inner):
        self.store = store
        self.inner = inner
        self.size = inner.size
        store.opened += 1

    def open(self):
        self._fail("source.open")
        return self.store._breaking("source.open", self.inner.open())

    def read(self):
        self._fail("source.read")
        return self.inner.read()

    def read_range(self, start, stop):
        self._fail("source.read_range")
        return self.inner.read_range(start, stop)

    def close(self):
        self.store.opened -= 1
        self.inner.close()

    def _fail(self, name):
        if self.store.plan.get(name):
            raise self.store.plan[name].pop(0)


class BreakingReader(io.BytesIO):
    """Gives so many bytes, and fails then."""

    def __init__(self, store, raw, lasts):
        with raw:
            super().__init__(raw.read())
        self.store = store
        self.lasts = lasts
        store.opened += 1

    def read(self, size=-1):
        if self.lasts is not None:
            if self.lasts == 0:
                raise self.store.stream_error
            size = self.lasts if size < 0 else min(size, self.lasts)
            self.lasts -= size
        return super().read(size)

    def close(self):
        self.store.opened -= not self.closed
        super().close()


def away(outcome="failed"):
    return UnavailableError("not now", outcome=outcome)


@pytest.fixture
def waits():
    return []


@pytest.fixture
def flaky():
    return FlakyStore()


@pytest.fixture
def store(flaky, waits):
    flaky.store.put("key", DATA)
    with RetryingStore(flaky, attempts=4, sleep=waits.append) as store:
        yield store
    assert flaky.opened == 0


def drain(opened):
    with opened:
        return opened.read()


def write(store):
    with store.writer("new") as sink:
        sink.write(b"pieces ")
        sink.write(b"of it")


METHODS = {
    "get": lambda store: store.get("key"),
    "put": lambda store: store.put("new", b"1"),
    "exists": lambda store: store.exists("key"),
    "delete": lambda store: store.delete("key"),
    "keys": lambda store: list(store.keys("k")),
    "get_range": lambda store: store.get_range("key", 1, 3),
    "open": lambda store: drain(store.open("key")),
    "source": lambda store: drain(store.source("key")),
    "stat": lambda store: store.stat("key"),
    "local_path": lambda store: store.local_path("key"),
    "delete_many": lambda store: store.delete_many(iter(["key", "absent"])),
    "copy": lambda store: store.copy("key", "new"),
    "put_if_absent": lambda store: store.put_if_absent("new", b"1"),
    "sync": lambda store: store.sync(iter(["key"])),
    "leftovers": lambda store: list(store.leftovers()),
    "remove_leftover": lambda store: store.remove_leftover("put-" + "0" * 32),
    "writer": write,
    "write": write,
    "commit": write,
}


def content(store):
    return {key: store.get(key) for key in store.keys()}  # noqa: SIM118


# --- which failures are tried again ---------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("failures", [1, 3])
def test_every_method_is_tried_again(flaky, store, waits, method, failures):
    with DictStore() as other:
        other.put("key", DATA)
        wanted, wanted_content = METHODS[method](other), content(other)
    flaky.plan[method] = [away() for _ in range(failures)]
    answer = METHODS[method](store)
    assert getattr(answer, "size", answer) == getattr(wanted, "size", wanted)
    assert content(flaky.store) == wanted_content
    assert flaky.plan[method] == []
    assert len(waits) == failures


@pytest.mark.parametrize("method", METHODS)
def test_the_last_error_is_raised_itself(flaky, store, waits, method):
    errors = [away() for _ in range(6)]
    flaky.plan[method] = [*errors]
    with pytest.raises(UnavailableError) as caught:
        METHODS[method](store)
    assert caught.value is errors[3]
    (note,) = caught.value.__notes__
    assert "tried 4 times" in note
    assert len(waits) == 3
    assert caught.value.outcome == "failed"


@pytest.mark.parametrize(
    "error",
    [KeyNotFoundError("x"), IntegrityError("x"), InvalidInputError("x"), InvalidKeyError("x"), NotSupportedError("x"),
     ClosedError("x"), KeyExistsError("x"), ConfigError("x")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_what_never_passes(flaky, waits, error):
    everything = RetryingStore(flaky, retry_on=Exception, sleep=waits.append)
    flaky.store.put("key", b"1")
    for method, call in METHODS.items():
        flaky.plan[method] = [error]
        with pytest.raises(type(error)) as caught:
            call(everything)
        assert caught.value is error
    assert waits == []
    assert not hasattr(error, "__notes__")


def test_which_errors_pass(flaky, waits):
    default = RetryingStore(flaky, sleep=waits.append)
    passing = BlobStoreError("this one")
    passing.retryable = True
    for error in (away(), LostDraftError("x"), passing):
        assert default.is_passing(error)
    lasting = (
        PermissionDeniedError("x"),
        OutOfSpaceError("x"),
        StorageError("x"),
        OSError(),
        KeyError(),
    )
    for error in (*lasting, KeyboardInterrupt()):
        assert not default.is_passing(error)
        flaky.plan["get"] = [error]
        with pytest.raises(type(error)):
            default.get("key")
    more = RetryingStore(
        flaky, retry_on=[ConnectionError, PermissionDeniedError], sleep=waits.append
    )
    for error in (away(), ConnectionResetError(), PermissionDeniedError("x")):
        assert more.is_passing(error)
    assert not more.is_passing(OSError())
    assert waits == []


def test_one_attempt_is_one(flaky, waits):
    flaky.plan["get"] = [away()]
    with pytest.raises(UnavailableError) as caught:
        RetryingStore(flaky, attempts=1, sleep=waits.append).get("key")
    assert waits == []
    assert not hasattr(caught.value, "__notes__")


def test_waiting_grows_up_to_a_limit_and_is_random(waits):
    flaky = FlakyStore()
    store = RetryingStore(flaky, attempts=8, wait=0.5, max_wait=3, sleep=waits.append)
    for _ in range(40):
        flaky.plan["exists"] = [away() for _ in range(7)]
        store.exists("key")
    rounds = [waits[n : n + 7] for n in range(0, len(waits), 7)]
    for limit, column in zip([0.5, 1, 2, 3, 3, 3, 3], zip(*rounds, strict=True), strict=True):
        assert all(0 <= each <= limit for each in column)
        assert max(column) > limit / 2
        assert len(set(column)) > 1


def test_a_timeout_ends_it_before_another_wait(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("tenacity.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("tenacity.wait.random.uniform", lambda low, high: high)

    def sleep(seconds):
        clock[0] += seconds

    flaky = FlakyStore()
    flaky.plan["get"] = [away() for _ in range(100)]
    store = RetryingStore(flaky, attempts=100, wait=1, max_wait=60, timeout=10, sleep=sleep)
    with pytest.raises(UnavailableError) as caught:
        store.get("key")
    assert flaky.calls == ["get"] * 4  # at 0, 1, 3 and 7; the next would have been at 15
    assert "tried 4 times" in caught.value.__notes__[0]


def test_trying_again_is_logged(flaky, store, caplog):
    caplog.set_level(logging.INFO)
    flaky.plan["get"] = [away()]
    store.get("key")
    (record,) = caplog.records
    assert record.name == "blobstore.wrappers.retry"
    assert record.getMessage().startswith("get 'key' failed 1 times, trying again in ")


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": 0}, {"attempts": 1.5}, {"attempts": True}, {"wait": -1}, {"wait": "1"}, {"max_wait": None},
     {"timeout": -0.1}, {"timeout": float("nan")}, {"retry_on": "OSError"}, {"retry_on": [KeyboardInterrupt]},
     {"retry_on": 5}, {"retry_on": BaseException}, {"wait": True}],
    ids=str,
)  # fmt: skip
def test_wrong_parameters(wrong):
    with pytest.raises(ConfigError):
        RetryingStore(DictStore(), **wrong)


def test_a_pickled_copy_has_the_same_settings(tmp_path):
    store = RetryingStore(FilesystemStore(tmp_path), attempts=2, wait=0, retry_on=OSError)
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.attempts, copy.wait, copy.is_passing(OSError())) == (2, 0, True)
    assert repr(copy) == f"RetryingStore(FilesystemStore({str(tmp_path)!r}), attempts=2)"


# --- answers that were lost -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["put", "copy", "delete", "delete_many", "commit", "put_if_absent"]
)
@pytest.mark.parametrize("failures", [1, 2])
def test_changes_that_landed_count(flaky, store, method, failures):
    with DictStore() as other:
        other.put("key", DATA)
        wanted, wanted_content = METHODS[method](other), content(other)
    flaky.plan[method] = [away("unknown") for _ in range(failures)]
    flaky.landed = {method}
    if method == "delete" and failures == 2:
        flaky.plan[method][1:] = [away()]  # which does not find it any more
        flaky.landed.clear()
        flaky.store.delete("key")
    assert METHODS[method](store) == wanted
    assert content(flaky.store) == wanted_content


def test_a_delete_that_failed_for_sure_and_then_finds_nothing(flaky, store):
    flaky.plan["delete"] = [away("failed")]
    with pytest.raises(KeyNotFoundError):
        store.delete("absent")


def test_errors_that_are_not_ours_may_have_landed(flaky, waits):
    store = RetryingStore(flaky, retry_on=ConnectionError, sleep=waits.append)
    flaky.store.put("key", b"")
    flaky.plan = {"delete": [ConnectionResetError()], "put_if_absent": [ConnectionResetError()]}
    flaky.landed = {"delete", "put_if_absent"}
    store.delete("key")
    assert store.put_if_absent("key", b"1") is True
    assert flaky.store.get("key") == b"1"


@pytest.mark.parametrize("mine", [b"mine", bytearray(b"mine"), memoryview(b"enim")[::-1]])
def test_put_if_absent_compares_before_it_says_no(flaky, store, mine):
    flaky.plan["put_if_absent"] = [away("unknown")]
    flaky.landed = {"put_if_absent"}
    assert store.put_if_absent("new", mine) is True
    assert flaky.store.get("new") == b"mine"
    assert store.put_if_absent("new", b"mine") is False  # nothing was lost this time


def test_put_if_absent_that_somebody_else_won(flaky, store):
    flaky.plan["put_if_absent"] = [away("unknown")]
    flaky.store.put("new", b"theirs")
    assert store.put_if_absent("new", b"mine") is False
    flaky.plan["put_if_absent"] = [away("failed")]
    flaky.store.put("new", b"mine")
    assert store.put_if_absent("new", b"mine") is False  # the first attempt did nothing


def test_put_if_absent_that_was_removed_before_it_could_be_compared(flaky, store):
    flaky.plan["put_if_absent"] = [away("unknown")]
    flaky.plan["get"] = [KeyNotFoundError("gone", location="new")]
    flaky.store.put("new", b"mine")
    assert store.put_if_absent("new", b"mine") is False


def test_comparing_is_tried_again(flaky, store, waits):
    flaky.plan = {"put_if_absent": [away("unknown")], "get": [away(), away()]}
    flaky.landed = {"put_if_absent"}
    assert store.put_if_absent("new", b"mine") is True
    assert len(waits) == 3


@pytest.mark.parametrize(
    "method", ["put", "copy", "delete", "delete_many", "commit", "put_if_absent"]
)
def test_what_is_never_found_out_is_unknown(flaky, store, method):
    flaky.plan[method] = [away("unknown"), *(away("failed") for _ in range(3))]
    with pytest.raises(UnavailableError) as caught:
        METHODS[method](store)
    assert caught.value.outcome == "unknown"


def test_another_error_after_a_lost_answer_says_so(flaky, store):
    flaky.plan["put"] = [away("unknown"), PermissionDeniedError("no more")]
    with pytest.raises(PermissionDeniedError) as caught:
        store.put("key", b"1")
    assert any("may have been carried out" in note for note in caught.value.__notes__)


def test_values_that_are_no_bytes(waits):
    class Anything(FlakyStore):
        @property
        def capabilities(self):
            return Capabilities(values="any")

    class Plain(DictStore):
        def put_if_absent(self, key, data):
            return super().put_if_absent(key, repr(data).encode())

        def get(self, key):
            return eval(super().get(key))

    flaky = Anything(Plain())
    flaky.plan["put_if_absent"] = [away("unknown")]
    flaky.landed = {"put_if_absent"}
    assert RetryingStore(flaky, sleep=waits.append).put_if_absent("key", {"x": 1}) is True


# --- writing in pieces ----------------------------------------------------------------------------


@pytest.fixture
def own_tmp(tmp_path, monkeypatch):
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, 9 << 20])
@pytest.mark.parametrize("method", ["writer", "write", "commit"])
def test_pieces_are_written_again(flaky, store, own_tmp, size, method):
    data = DATA * 10
    with store.writer("new") as sink:
        for start in range(0, size, 1 << 20):
            sink.write(memoryview(data)[start : min(size, start + (1 << 20))])
        flaky.plan[method] = [away("unknown"), away()] if size or method != "write" else []
    assert flaky.store.get("new") == data[:size]
    assert flaky.plan[method] == []


def test_a_lent_path_is_written_again(flaky, store, own_tmp):
    with store.writer("new") as sink:
        path = sink.path()
        assert not path.exists()
        path.write_bytes(DATA)
        flaky.plan["commit"] = [away(), away()]
    assert flaky.store.get("new") == DATA
    assert not path.exists()


def test_what_is_gathered_is_bounded(tmp_path, own_tmp):
    piece = b"p" * (1 << 20)
    flaky = FlakyStore(FilesystemStore(tmp_path / "root"))
    flaky.plan["commit"] = [away()]
    store = RetryingStore(flaky, sleep=lambda seconds: None)

    def work():
        with store.writer("key") as sink:
            for _ in range(64):
                sink.write(piece)

    assert peak_memory(work) < 20 << 20
    assert store.stat("key").size == 64 << 20


def test_a_writer_that_gives_up_leaves_nothing(flaky, store, own_tmp):
    flaky.plan["commit"] = [away() for _ in range(9)]
    for fill in (lambda sink: sink.write(DATA * 10), lambda sink: sink.path().write_bytes(b"1")):
        with pytest.raises(UnavailableError), store.writer("new") as sink:
            fill(sink)
        with pytest.raises(RuntimeError), store.writer("new") as sink:
            fill(sink)
            raise RuntimeError("never mind")
    assert not flaky.store.exists("new")


def test_a_writer_is_used_once(store, own_tmp):
    with store.writer("new") as sink:
        sink.write(b"1")
        with pytest.raises(InvalidInputError, match="used twice"):
            sink.path()
    for again in (sink.commit, sink.path):
        with pytest.raises(InvalidInputError, match="used twice"):
            again()
    sink.abort()
    with pytest.raises(InvalidInputError, match="nothing was written"), store.writer("new") as sink:
        sink.path()
        with pytest.raises(InvalidInputError, match="used twice"):
            sink.write(b"1")


def test_a_wrong_key_is_told_before_anything_is_written(tmp_path):
    with RetryingStore(FilesystemStore(tmp_path)) as store, pytest.raises(InvalidKeyError):
        store.writer("../x")
    with pytest.raises(ClosedError):
        store.writer("x")


@pytest.mark.parametrize("use", [lambda sink: sink.path(), lambda sink: sink.write(DATA * 9)])
def test_no_room_for_a_temporary_file(store, tmp_path, monkeypatch, use):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(StorageError) as caught, store.writer("new") as sink:
        use(sink)
    assert caught.value.location == "new"
    assert isinstance(caught.value.__cause__, OSError)


# --- reading in pieces ----------------------------------------------------------------------------


@pytest.mark.parametrize("breaks", [[0], [1], [300_000], [300_000, 5, 400_000], [1 << 20]])
@pytest.mark.parametrize("size", [-1, 1000, 70_000, 1 << 20])
def test_reading_goes_on_where_it_was(flaky, store, waits, breaks, size):
    flaky.broken["open"] = [*breaks]
    with store.open("key") as file:
        found = b"".join(iter(lambda: file.read(size), b""))
        assert file.tell() == len(DATA)
        file.seek(-3, io.SEEK_END)
        assert file.read() == DATA[-3:]
        file.seek(5)
        assert file.read(2) == DATA[5:7]
    assert found == DATA
    assert len(waits) == len(breaks)
    assert flaky.broken["open"] == []


def test_positions(store):
    with store.open("key") as file:
        assert file.seek(10) == 10
        assert file.raw.seek(5, io.SEEK_CUR) == 15
        assert file.raw.seek(0, io.SEEK_END) == len(DATA)
        for offset, whence in ((-1, io.SEEK_SET), (-(10**9), io.SEEK_CUR), (-(10**9), io.SEEK_END)):
            with pytest.raises(ValueError):
                file.raw.seek(offset, whence)
        assert file.raw.seek(10**9) == 10**9
        assert file.raw.read(5) == b""
    with pytest.raises(ValueError, match="closed"):
        file.read()


@pytest.mark.parametrize("change", ["replaced", "removed", "same bytes"])
def test_two_versions_are_never_mixed(flaky, store, waits, change):
    flaky.broken["open"] = [300_000]
    with store.open("key") as file:
        assert file.read(200_000) == DATA[:200_000]
        if change == "removed":
            flaky.store.delete("key")
        else:
            flaky.store.put("key", DATA if change == "same bytes" else DATA[::-1])
        with pytest.raises(UnavailableError, match="open it again") as caught:
            file.read()
        assert caught.value.location == "key"
        assert not caught.value.retryable
    assert len(waits) == 1


def test_one_that_is_replaced_while_it_is_opened_again(flaky, store):
    flaky.broken["open"] = [300_000]
    with store.open("key") as file:
        file.read(200_000)
        opens = flaky.open

        def replace_and_open(key):
            flaky.store.put("key", DATA[::-1])
            return opens(key)

        flaky.open = replace_and_open
        with pytest.raises(UnavailableError, match="replaced"):
            file.read()


def test_one_that_is_replaced_while_it_is_opened_first(flaky, store):
    """The version is asked for before: it may then look older than it is, and never newer."""
    flaky.broken["open"] = [300_000]
    opens = flaky.open

    def open_and_replace(key):
        opened = opens(key)
        flaky.store.put("key", DATA[::-1])
        return opened

    flaky.open = open_and_replace
    with store.open("key") as file:
        del flaky.open
        with pytest.raises(UnavailableError, match="replaced"):
            file.read()


def test_without_etags_nothing_is_tried_again_once_bytes_were_given(waits):
    class NoEtags(FlakyStore):
        def stat(self, key):
            stat = super().stat(key)
            return type(stat)(stat.size)

    flaky = NoEtags()
    flaky.store.put("key", DATA)
    store = RetryingStore(flaky, sleep=waits.append)
    flaky.broken["open"] = [0]
    assert drain(store.open("key")) == DATA
    assert len(waits) == 1
    flaky.broken["open"] = [300_000]
    with store.open("key") as file, pytest.raises(UnavailableError, match="not now"):
        file.read()
    assert len(waits) == 1
    flaky.plan["source.read"] = [away()]
    with store.source("key") as source:
        with pytest.raises(UnavailableError, match="not now"):
            source.read()
        assert source.read() == DATA
    assert flaky.opened == 0


def test_reading_fails_at_last(flaky, store):
    flaky.broken["open"] = [5, 0, 0, 0, 0, 0]
    with store.open("key") as file:
        with pytest.raises(UnavailableError, match="not now") as caught:
            file.read(10)
        assert any("tried 4 times" in note for note in caught.value.__notes__)


def test_an_error_that_lasts_keeps_what_is_open(flaky, store):
    flaky.broken["open"] = [1000]
    flaky.stream_error = IntegrityError("damaged")
    with store.open("key") as file:
        for _ in range(2):
            with pytest.raises(IntegrityError):
                file.read()
        assert flaky.calls.count("open") == 1


@pytest.mark.parametrize("method", ["source.read", "source.read_range", "source.open"])
def test_a_source_is_read_again(flaky, store, waits, method):
    with store.source("key") as source:
        assert source.size == len(DATA)
        flaky.plan[method] = [away(), away()]
        flaky.broken["source.open"] = [1000]
        assert source.read() == DATA
        assert source.read_range(5, 70_000) == DATA[5:70_000]
        with source.open() as file:
            assert file.read(2000) == DATA[:2000]
        with source.path() as path:
            assert path.read_bytes() == DATA
    assert len(waits) == 3
    assert flaky.plan[method] == []


@pytest.mark.parametrize(
    "read",
    [lambda s: s.read(), lambda s: s.read_range(1, 5), lambda s: drain(s.open()), lambda s: enter(s.path())],
)  # fmt: skip
def test_a_source_never_mixes_versions(flaky, store, read):
    with store.source("key") as source:
        flaky.store.put("key", DATA[::-1])
        for _ in range(2):
            assert source.read() == DATA
        flaky.plan = {
            name: [away()] for name in ("source.read", "source.read_range", "source.open")
        }
        with pytest.raises(UnavailableError, match="replaced"):
            read(source)


def enter(path):
    with path:
        pass


def test_readers_of_a_source_need_no_object_any_more(flaky, store):
    with store.source("key") as source:
        flaky.store.delete("key")
        file = source.open()
        assert source.read() == DATA
    with file:
        assert file.read() == DATA


def test_a_source_shared_by_threads(flaky, store):
    with store.source("key") as source:
        flaky.plan["source.read_range"] = [away() for _ in range(3)]
        found = in_threads(lambda n: source.read_range(n, n + 1000), 6)
        assert found == [DATA[n : n + 1000] for n in range(6)]


def test_a_closed_source_is_not_opened_again(flaky, store):
    store.put("key", b"value")
    source = store.source("key")
    source.close()
    for read in (source.read, source.open, lambda: source.read_range(0, 1)):
        with pytest.raises(ClosedError, match="closed"):
            read()


def test_files_keep_their_own_path(tmp_path):
    with RetryingStore(FilesystemStore(tmp_path)) as store:
        store.put("key", DATA)
        with store.source("key") as source, source.path() as path:
            assert not str(path).startswith(tempfile.gettempdir() + "/blobstore-")
            assert Path(path).read_bytes() == DATA
        assert store.local_path("key") == tmp_path / "key"


def test_a_store_that_reads_everything_at_once_is_not_asked_twice(waits):
    class Simple(ObjectStore):
        def __init__(self):
            self.calls = 0

        def get(self, key):
            self.calls += 1
            if self.calls % 2:
                raise away()
            return DATA

        def put(self, key, data): ...

        def exists(self, key):
            return True

        def delete(self, key): ...

        def keys(self, prefix=""):
            return iter(())

    simple = Simple()
    store = RetryingStore(simple, sleep=waits.append)
    assert drain(store.open("key")) == drain(store.source("key")) == DATA
    assert (simple.calls, len(waits)) == (4, 2)


# --- listing --------------------------------------------------------------------------------------


def test_a_listing_is_tried_again_up_to_its_first_key(waits):
    class Paged(DictStore):
        fails = 2

        def keys(self, prefix=""):
            def pages():
                if self.fails:
                    Paged.fails -= 1
                    raise away()
                yield from ("a", "b")
                raise away()

            return pages()

    found = RetryingStore(Paged(), sleep=waits.append).keys()
    assert len(waits) == 2
    assert [next(found), next(found)] == ["a", "b"]
    with pytest.raises(UnavailableError):
        next(found)
    assert len(waits) == 2
