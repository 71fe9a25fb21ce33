"""What every object store must do, as tests to inherit.

Subclass `ObjectStoreSuite` in a test module, name the class ``Test...``, and write `make_store`::

    class TestMyStore(ObjectStoreSuite):
        def make_store(self, tmp_path):
            return MyStore(tmp_path / "objects")
"""

# ruff: noqa: D102 - the name of a test says what it is about

from __future__ import annotations

import array
import contextlib
import io
import itertools
import os
import pickle
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from blobstore.errors import ClosedError, InvalidInputError, KeyNotFoundError, NotSupportedError
from blobstore.protocols import ObjectStore
from blobstore.streams import Sink
from blobstore.testing.object_store_machine import machine_class

KeyStyle = Literal["any", "paths", "names"]

_NAMES = ["a", "0", "A", "model.b2nd", "x-1_2.tar.gz", ".hidden", "-rf", "n" * 120, "CON", "a..b"]
_PATHS = [
    "a/b.txt", "deep/er/and/deep/er", "two words", "tab\tand\nline", "ünï/cödé", "\U0001f600",
    "100%", "%41", "*?[x]", "back\\slash", "~", "...", "'; drop table x; --", "p" * 200,
]  # fmt: skip
_ANY = ["/absolute", "../up", "a//b", "trailing/", "..", ".", "k" * 1000]

_DATA = bytes(range(256)) * 5
_BIG = b"".join(n.to_bytes(8, "big") for n in range(3 << 17))  # 3 MiB, each word of it different


class ObjectStoreSuite:
    """Tests of one object store; subclass it and write `make_store`.

    Attributes
    ----------
    key_style : {"any", "paths", "names"}
        Which keys the store takes: any text, relative paths, or names without slashes.
    delete_is_strict : bool
        Whether deleting an absent object is `KeyNotFoundError`; some servers do not tell.
    refuses_wrong_types : bool
        Whether `put` refuses what is no buffer.
    picklable : bool
        Whether a pickled copy of a persistent store works.
    forks : bool
        Whether a forked child can use the store it inherits.
    machine_examples : int
        How many random sequences of calls are compared with a dictionary.
    """

    key_style: ClassVar[KeyStyle] = "any"
    delete_is_strict: ClassVar[bool] = True
    refuses_wrong_types: ClassVar[bool] = True
    picklable: ClassVar[bool] = True
    forks: ClassVar[bool] = True
    machine_examples: ClassVar[int] = 15

    def make_store(self, tmp_path: Path) -> ObjectStore:
        """Make an empty store; what it keeps on disk lies in `tmp_path`."""
        raise NotImplementedError

    def peek(self, store: ObjectStore, key: str) -> bytes | None:
        """Read an object behind the store's back, None if there is none."""
        return store.get(key) if store.exists(key) else None

    def poke(self, store: ObjectStore, key: str, data: bytes) -> None:
        """Write an object behind the store's back."""
        store.put(key, data)

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[ObjectStore]:
        """The store under test, closed afterwards."""
        with self.make_store(tmp_path) as store:
            yield store

    @property
    def odd_keys(self) -> list[str]:
        """Keys that fit the style of this store, and that a careless one trips over."""
        extra = {"names": [], "paths": _PATHS, "any": _PATHS + _ANY}[self.key_style]
        return _NAMES + extra

    def names(self, store: ObjectStore) -> list[str] | None:
        """All keys in order; None from a store that cannot list."""
        return sorted(store.keys()) if store.capabilities.list else None

    # --- the five methods ------------------------------------------------------------------------

    def test_put_is_what_is_kept(self, store: ObjectStore) -> None:
        store.put("key", _DATA)
        assert self.peek(store, "key") == _DATA
        assert store.exists("key") is True

    def test_get_gives_what_is_kept(self, store: ObjectStore) -> None:
        self.poke(store, "key", _DATA)
        found = store.get("key")
        assert found == _DATA
        assert type(found) is bytes

    @pytest.mark.parametrize("data", [b"", b"\0", _BIG], ids=["empty", "nul", "3MiB"])
    def test_sizes(self, store: ObjectStore, data: bytes) -> None:
        store.put("key", data)
        assert store.get("key") == data
        assert store.stat("key").size == len(data)
        with store.source("key") as source:
            assert (source.size, source.read()) == (len(data), data)

    def test_any_buffer(self, store: ObjectStore) -> None:
        buffers: list[Any] = [
            bytearray(_DATA),
            memoryview(_DATA),
            memoryview(_DATA)[::-3],
            memoryview(_DATA).cast("B", (4, 320)),
            array.array("d", [1.5, -2.0]),
            memoryview(b"").cast("i"),
        ]
        for buffer in buffers:
            wanted = memoryview(buffer).tobytes()
            store.put("key", buffer)
            assert store.get("key") == wanted
            with store.writer("other") as sink:
                sink.write(memoryview(wanted))
            assert store.get("other") == wanted

    def test_objects_are_values(self, store: ObjectStore) -> None:
        buffer = bytearray(b"before")
        store.put("put", buffer)
        store.put_if_absent("absent", buffer)
        with store.writer("sink") as sink:
            sink.write(buffer)
            buffer[:] = b"after!"
        assert [store.get(key) for key in ("put", "absent", "sink")] == [b"before"] * 3

    @pytest.mark.parametrize("wrong", ["text", 5, None, ["x"], 1.5], ids=repr)
    def test_what_is_no_buffer_is_refused(self, store: ObjectStore, wrong: Any) -> None:
        if not self.refuses_wrong_types:
            pytest.skip("this store leaves types to its callers")
        store.put("key", b"old")
        with pytest.raises((TypeError, ValueError)):
            store.put("key", wrong)
        with pytest.raises((TypeError, ValueError)):
            store.put_if_absent("new", wrong)
        assert store.get("key") == b"old"
        assert not store.exists("new")

    def test_text_is_no_part_of_an_object(self, store: ObjectStore) -> None:
        text: Any = "text"
        with pytest.raises((TypeError, ValueError)), store.writer("key") as sink:
            sink.write(text)
        assert not store.exists("key")

    def test_odd_keys(self, store: ObjectStore) -> None:
        for key in self.odd_keys:
            store.put(key, key.encode())
            assert store.get(key) == key.encode(), key
            assert store.exists(key), key
            store.delete(key)
            assert not store.exists(key), key

    def test_keys_do_not_run_together(self, store: ObjectStore) -> None:
        keys = ["a", "A", "a.", ".a", "aa", "a-", "a_"]
        for key in keys:
            store.put(key, key.encode())
        assert [store.get(key) for key in keys] == [key.encode() for key in keys]

    @pytest.mark.parametrize("wrong", [None, 5, b"bytes"], ids=repr)
    def test_keys_are_strings(self, store: ObjectStore, wrong: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            store.put(wrong, b"")
        if store.capabilities.list:
            assert list(store.keys()) == []

    def test_put_replaces(self, store: ObjectStore) -> None:
        for data in (_BIG, b"short", b"", _DATA):
            store.put("key", data)
            assert store.get("key") == data
        assert self.names(store) in (["key"], None)

    def test_absent(self, store: ObjectStore) -> None:
        store.put("other", b"")
        assert store.exists("key") is False
        calls: list[Callable[[], object]] = [
            lambda: store.get("key"),
            lambda: store.get_range("key", 0, 1),
            lambda: store.open("key"),
            lambda: store.source("key"),
            lambda: store.stat("key"),
            lambda: store.copy("key", "target"),
        ]
        if self.delete_is_strict:
            calls.append(lambda: store.delete("key"))
        for call in calls:
            with pytest.raises(KeyNotFoundError) as caught:
                call()
            assert isinstance(caught.value, KeyError)
        assert not store.exists("target")
        assert store.local_path("key") is None

    def test_delete(self, store: ObjectStore) -> None:
        store.put("key", b"1")
        store.put("key2", b"2")
        store.delete("key")
        assert self.peek(store, "key") is None
        assert store.get("key2") == b"2"
        store.put("key", b"3")
        assert store.get("key") == b"3"

    # --- listing ---------------------------------------------------------------------------------

    def test_keys(self, store: ObjectStore) -> None:
        if not store.capabilities.list:
            with pytest.raises(NotSupportedError):
                store.keys()
            return
        assert list(store.keys()) == []
        for key in self.odd_keys:
            with contextlib.suppress(InvalidInputError):  # "a" may be in the way of "a/b.txt"
                store.put(key, b"")
        found = sorted(store.keys())
        assert found == sorted(key for key in self.odd_keys if store.exists(key))
        assert len(found) >= len(_NAMES)

    def test_prefix_is_literal(self, store: ObjectStore) -> None:
        if not store.capabilities.list:
            pytest.skip("this store cannot list")
        keys = ["run_1", "run-1", "runs", "Run_2", "run_", "zrun_", "run.x", "ru"]
        if self.key_style != "names":
            keys += ["run%/1", "run%/2/x", "run*", "sub/run_1"]
        for key in keys:
            store.put(key, b"")
        prefixes = {key[:n] for key in keys for n in range(len(key) + 1)}
        for prefix in (*prefixes, "run_1x", "%", "*", "../", "/", "nothing/at/all/"):
            wanted = sorted(key for key in keys if key.startswith(prefix))
            assert sorted(store.keys(prefix)) == wanted, prefix

    def test_keys_survive_deletion(self, store: ObjectStore) -> None:
        if not store.capabilities.list:
            pytest.skip("this store cannot list")
        keys = {f"k{n:03}" for n in range(120)}
        for key in keys:
            store.put(key, b"")
        seen = []
        for key in store.keys():  # noqa: SIM118 - a store is no dictionary
            store.delete(key)
            store.put("later" + key, b"")
            seen.append(key)
        assert len(seen) == len(set(seen))
        assert keys <= set(seen) | {key for key in keys if store.exists(key)}
        assert not any(store.exists(key) for key in keys)

    def test_keys_may_be_left_halfway(self, store: ObjectStore) -> None:
        if not store.capabilities.list:
            pytest.skip("this store cannot list")
        for n in range(3):
            store.put(f"k{n}", b"")
        assert next(iter(store.keys())).startswith("k")

    # --- reading ---------------------------------------------------------------------------------

    @pytest.mark.parametrize("start", [0, 1, 1279, 1280, 1281, 10**12])
    @pytest.mark.parametrize("count", [0, 1, 700, 1280, 10**30])
    def test_ranges(self, store: ObjectStore, start: int, count: int) -> None:
        self.poke(store, "key", _DATA)
        wanted = bytes(_DATA[i] for i in range(start, min(start + count, len(_DATA))))
        assert store.get_range("key", start, start + count) == wanted
        with store.source("key") as source:
            assert source.read_range(start, start + count) == wanted

    @pytest.mark.parametrize(("start", "stop"), [(-1, 5), (0, -1), (-3, -1), (5, 4)])
    def test_ranges_that_are_none(self, store: ObjectStore, start: int, stop: int) -> None:
        store.put("key", _DATA)
        with pytest.raises(InvalidInputError):
            store.get_range("key", start, stop)

    def test_open(self, store: ObjectStore) -> None:
        self.poke(store, "key", _DATA)
        with store.open("key") as file, store.open("key") as other:
            assert file.readable()
            assert file.seekable()
            assert file.read(10) == _DATA[:10]
            assert other.read(3) == _DATA[:3]
            assert file.tell() == 10
            assert file.seek(-5, io.SEEK_END) == len(_DATA) - 5
            assert file.read() == _DATA[-5:]
            assert file.read() == b""
            file.seek(100)
            file.seek(7, io.SEEK_CUR)
            target = bytearray(4)
            assert file.readinto(target) == 4  # type: ignore[attr-defined]
            assert target == _DATA[107:111]

    def test_source(self, store: ObjectStore) -> None:
        self.poke(store, "key", _DATA)
        with store.source("key") as source:
            assert source.size == len(_DATA)
            assert source.read() == _DATA
            with source.open() as file, source.open() as other:
                assert file.read(4) == other.read(4) == _DATA[:4]
                file.seek(-2, io.SEEK_END)
                assert file.read() == _DATA[-2:]
            with source.path() as path:
                assert path.read_bytes() == _DATA
            assert source.read() == _DATA

    def test_reading_outlives_the_object(self, store: ObjectStore) -> None:
        store.put("key", _DATA)
        with store.source("key") as source, store.open("key") as file:
            store.put("key", b"newer")
            store.delete("key")
            assert file.read() == _DATA
            assert source.read() == _DATA
            assert source.read_range(5, 9) == _DATA[5:9]

    def test_local_path(self, store: ObjectStore) -> None:
        store.put("key", _DATA)
        path = store.local_path("key")
        if store.capabilities.local_files:
            assert path is not None
            assert path.is_absolute()
            assert path.read_bytes() == _DATA
        else:
            assert path is None

    def test_stat(self, store: ObjectStore) -> None:
        etags = []
        for data in (b"one", b"two", b"one", _DATA):
            store.put("key", data)
            stat = store.stat("key")
            assert stat.size == len(data)
            assert stat == store.stat("key")
            etags.append(stat.etag)
            assert (stat.etag is not None) == store.capabilities.etags
            if stat.modified is not None:
                assert stat.modified.utcoffset() == timedelta(0)
        if etags[0] is not None:
            assert all(before != after for before, after in itertools.pairwise(etags))
            assert etags[3] not in etags[:3]

    # --- writing ---------------------------------------------------------------------------------

    def test_writer(self, store: ObjectStore) -> None:
        with store.writer("key", size_hint=len(_BIG)) as sink:
            assert sink.write(_BIG[:10]) == 10
            assert sink.write(b"") == 0
            sink.write(bytearray(_BIG[10:1_000_000]))
            sink.write(memoryview(_BIG)[1_000_000:])
            assert not store.exists("key")
        assert store.get(sink.location) == _BIG
        assert self.names(store) in ([sink.location], None)

    def test_writer_of_nothing(self, store: ObjectStore) -> None:
        with store.writer("key", size_hint=0) as sink:
            pass
        assert store.get(sink.location) == b""

    def test_writer_lends_a_path(self, store: ObjectStore) -> None:
        with store.writer("key.bin") as sink:
            path = sink.path()
            assert not path.exists()
            path.write_bytes(_DATA)
            assert not store.exists("key.bin")
        assert store.get(sink.location) == _DATA
        assert not path.exists()
        assert list(store.leftovers()) == []

    def test_writer_whose_path_was_not_used(self, store: ObjectStore) -> None:
        store.put("key", b"old")
        with pytest.raises((OSError, ValueError)), store.writer("key") as sink:
            sink.path()
        assert store.get("key") == b"old"
        assert list(store.leftovers()) == []

    def test_writer_that_fails(self, store: ObjectStore) -> None:
        store.put("key", b"old")
        for key in ("key", "new"):
            lent: list[Path] = []

            def write(key: str = key) -> None:
                with store.writer(key) as sink:
                    sink.write(_BIG)
                    raise RuntimeError("halfway")

            def fill(key: str = key, lent: list[Path] = lent) -> None:
                with store.writer(key) as sink:
                    lent.append(sink.path())
                    lent[0].write_bytes(_DATA)
                    raise RuntimeError("halfway")

            for fail in (write, fill):
                with pytest.raises(RuntimeError, match="halfway"):
                    fail()
            assert not lent[0].exists()
        assert store.get("key") == b"old"
        assert not store.exists("new")
        assert self.names(store) in (["key"], None)
        assert list(store.leftovers()) == []

    def test_a_writer_is_used_once(self, store: ObjectStore) -> None:
        def committed() -> Sink:
            with store.writer("key") as sink:
                sink.write(b"whole")
            return sink

        def aborted() -> Sink:
            committed()
            sink = store.writer("key")
            sink.write(b"other")
            sink.abort()
            return sink

        for end in (committed, aborted):
            for again in (Sink.commit, Sink.path, lambda sink: sink.write(b"more")):
                with pytest.raises(InvalidInputError), end() as sink:
                    again(sink)
                sink.abort()
                assert store.get(sink.location or "key") == b"whole"
        assert list(store.leftovers()) == []

    def test_a_writer_is_written_or_lent(self, store: ObjectStore) -> None:
        def write(sink: Sink) -> None:
            sink.write(b"new")

        def fill(sink: Sink) -> None:
            sink.path().write_bytes(b"new")

        store.put("key", b"old")
        for first, then in ((write, fill), (fill, write), (fill, fill)):
            with pytest.raises(InvalidInputError), store.writer("key") as sink:  # noqa: PT012
                first(sink)
                then(sink)
        assert store.get("key") == b"old"
        assert list(store.leftovers()) == []

    def test_two_writers(self, store: ObjectStore) -> None:
        with store.writer("key") as first:
            first.write(b"first ")
            with store.writer("key") as second:
                second.write(b"second")
            assert store.get("key") == b"second"
            first.write(b"wins")
        assert store.get("key") == b"first wins"

    def test_streams_hold_pieces_only(self, store: ObjectStore) -> None:
        if not store.capabilities.streams:
            pytest.skip("this store holds whole objects in memory")
        piece = os.urandom(1 << 20)

        def write() -> None:
            with store.writer("key", size_hint=40 * len(piece)) as sink:
                for _ in range(40):
                    sink.write(piece)

        def read() -> None:
            with store.open("key") as file:
                for _ in range(40):
                    assert file.read(len(piece)) == piece
                assert file.read(1) == b""

        assert peak_memory(write) < 20 << 20
        assert peak_memory(read) < 20 << 20

    def test_delete_many(self, store: ObjectStore) -> None:
        for key in ("a", "b", "c"):
            store.put(key, b"")
        store.delete_many(iter(["a", "absent", "c", "a"]))
        assert [store.exists(key) for key in ("a", "b", "c")] == [False, True, False]
        store.delete_many([])

    def test_copy(self, store: ObjectStore) -> None:
        store.put("source", _BIG)
        store.put("target", b"old")
        store.copy("source", "target")
        store.copy("source", "new")
        store.copy("source", "source")
        assert [store.get(key) == _BIG for key in ("source", "target", "new")] == [True] * 3
        store.put("source", b"changed")
        assert store.get("target") == _BIG

    def test_put_if_absent(self, store: ObjectStore) -> None:
        assert store.put_if_absent("key", b"first") is True
        assert store.put_if_absent("key", b"second") is False
        assert store.get("key") == b"first"
        store.delete("key")
        assert store.put_if_absent("key", b"third") is True
        assert store.get("key") == b"third"
        assert list(store.leftovers()) == []

    def test_sync(self, store: ObjectStore) -> None:
        store.put("key", _DATA)
        store.sync(["key"])
        store.sync([])
        assert store.get("key") == _DATA

    # --- threads, processes, the end -------------------------------------------------------------

    def test_put_if_absent_has_one_winner(self, store: ObjectStore) -> None:
        if not store.capabilities.conditional_writes:
            pytest.skip("this store has no conditional writes")
        for attempt in range(5):
            key = f"key{attempt}"

            def claim(number: int, key: str = key) -> bool:
                return store.put_if_absent(key, bytes([number]))

            won = in_threads(claim, 6)
            assert sum(won) == 1
            assert store.get(key) == bytes([won.index(True)])

    def test_readers_see_whole_objects(self, store: ObjectStore) -> None:
        versions = [bytes([n]) * size for n, size in ((1, 300_000), (2, 70_001), (3, 5))]
        store.put("key", versions[0])
        done = threading.Event()

        def work(number: int) -> int:
            if number == 0:
                try:
                    for turn in range(60):
                        store.put("key", versions[turn % 3])
                finally:
                    done.set()
                return 0
            torn = 0
            while True:
                last = done.is_set()
                with store.open("key") as file:
                    torn += file.read() not in versions
                torn += store.get("key") not in versions
                if last:
                    return torn

        assert in_threads(work, 3) == [0, 0, 0]

    def test_threads_do_not_mix(self, store: ObjectStore) -> None:
        def work(number: int) -> bool:
            good = True
            for turn in range(15):
                key = f"t{number}-{turn}"
                store.put(key, key.encode() * 100)
                good &= store.get(key) == key.encode() * 100
                if turn % 2:
                    store.delete(key)
            return good

        assert all(in_threads(work, 4))
        wanted = sorted(f"t{n}-{turn}" for n in range(4) for turn in range(0, 15, 2))
        assert self.names(store) in (wanted, None)

    def test_forked_child(self, store: ObjectStore) -> None:
        if not (store.capabilities.persistent and self.forks):
            pytest.skip("this store lives in one process")
        store.put("parent", b"p")

        def child() -> None:
            assert store.get("parent") == b"p"
            store.put("child", b"c")

        in_fork(child)
        assert store.get("child") == b"c"
        store.put("parent", b"again")
        assert store.get("parent") == b"again"

    def test_pickled_copy(self, store: ObjectStore) -> None:
        if not (store.capabilities.persistent and self.picklable):
            pytest.skip("this store cannot be pickled")
        store.put("key", b"1")
        with pickle.loads(pickle.dumps(store)) as copy:
            assert copy.get("key") == b"1"
            copy.put("other", b"2")
        assert store.get("other") == b"2"

    def test_closed(self, store: ObjectStore) -> None:
        store.put("key", b"")
        capabilities = store.capabilities
        store.close()
        store.close()

        def write() -> None:
            with store.writer("key") as sink:
                sink.write(b"")

        calls: list[Callable[[], object]] = [
            lambda: store.get("key"),
            lambda: store.put("key", b""),
            lambda: store.exists("key"),
            lambda: store.delete("key"),
            lambda: store.get_range("key", 0, 1),
            lambda: store.open("key"),
            lambda: store.source("key"),
            lambda: store.stat("key"),
            lambda: store.delete_many(["key"]),
            lambda: store.copy("key", "other"),
            lambda: store.put_if_absent("key", b""),
            write,
        ]
        if capabilities.list:
            calls.append(store.keys)
        if capabilities.local_files:
            calls.append(lambda: store.local_path("key"))
        for call in calls:
            with pytest.raises(ClosedError):
                call()

    def test_context_manager_closes(self, tmp_path: Path) -> None:
        with self.make_store(tmp_path / "inner") as store:
            store.put("key", b"")
        with pytest.raises(ClosedError):
            store.get("key")

    def test_like_a_dictionary(self, tmp_path: Path) -> None:
        numbers = itertools.count()
        keys = ["a", "ab", "b.x", "b.y"]
        if self.key_style != "names":
            keys += ["d/1", "d/2", "d/e/f"]
        machine = machine_class(lambda: self.make_store(tmp_path / f"m{next(numbers)}"), keys)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=self.machine_examples,
                stateful_step_count=25,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def peak_memory(work: Callable[[], object]) -> int:
    """Bytes that Python objects took at the most while `work` ran, beyond those before it."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """Run ``work(0)`` to ``work(count - 1)`` at once; returns the results, raises the first error."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait()
        try:
            results[number] = work(number)
        except BaseException as exc:  # noqa: BLE001 - raised again in the thread of the test
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def in_fork(work: Callable[[], object]) -> None:
    """Run `work` in a forked child; an error there is an error here."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Newer Pythons warn of threads, which test runners have; the child uses none of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:  # pragma: no cover - coverage ends with the child
        status = 1
        try:
            work()
            status = 0
        except BaseException as exc:  # noqa: BLE001 - told to the parent
            os.write(writer, repr(exc).encode()[:4000])
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        message = file.read().decode()
    _, status = os.waitpid(pid, 0)
    if status:
        pytest.fail(f"the child failed with status {status}: {message}")
