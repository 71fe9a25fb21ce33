"""Threads, processes, forked children and pickled copies that use one store at once.

Run as a program, this file is the other process: it takes its task as JSON, says "ready", waits for
a line on standard input, and works.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import operator
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from blobstore import BlobStore, ConflictError
from blobstore.keys import is_location
from blobstore.protocols import Encoding, Handler, Plan, PlannedPart

BACKENDS = ["json", "sqlite"]
THREADS = 4


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def options(backend):
    return {"backend": backend}


# --- values that prove to be whole ---

KINDS = ("small", "bytes", "array", "parts")


def make(seed, kind):
    """A value that any part of which tells its seed."""
    if kind == "small":
        return {"seed": seed, "again": [seed] * 5}
    noise = np.random.default_rng(seed).bytes(12_000)
    if kind == "bytes":
        return noise
    if kind == "array":
        return np.full(9000, seed) ^ np.frombuffer(noise[:9000], "u1")
    return {"seed": seed, "a": np.full(9000, seed), "b": np.full((90, 100), seed * 1.5), "n": noise}


def is_made(value, seed):
    """Whether a value is, in all its parts, what the seed makes."""
    for kind in KINDS:
        wanted = make(seed, kind)
        if type(value) is type(wanted) and np.array_equal(*map(_flat, (value, wanted))):
            return True
    return False


def _flat(value):
    if isinstance(value, dict):
        return np.concatenate([np.ravel(_flat(x)) for x in value.values()])
    if isinstance(value, bytes):
        return np.frombuffer(value, "u1")
    return np.asarray(value)


def put(store, key, seed, kind):
    store.put(make(seed, kind), key=key, metadata={"seed": seed})


def whole(store, key):
    """Read a key that is always there: the value is whole, and its metadata's if none came between."""
    before = store.entry(key)
    value = store[key]
    after = store.entry(key)
    if (before.id, before.version) == (after.id, after.version):
        assert is_made(value, before.metadata["seed"]), (key, before.metadata)
        return True
    seed = value["seed"] if isinstance(value, dict) else None
    assert seed is None or is_made(value, seed), (key, seed)
    return False


# --- what a process does ---


def together(work, threads=THREADS):
    """Run `work(number)` in threads that start at once; raise what any raised."""
    start = threading.Barrier(threads)

    def run(number):
        start.wait()
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return [f.result() for f in [pool.submit(run, n) for n in range(threads)]]


def write(store, name, rounds):
    """Own and shared keys, metadata that all add to, a counter by compare and swap."""

    def work(number):
        me = f"{name}{number}"
        for i in range(rounds):
            put(store, f"own/{me}/{i}", i, KINDS[i % 4])
            put(store, f"shared/{i % 2}", i, KINDS[(i + number) % 4])
            assert store.update_metadata("counter", {me: i})
            while not increment(store):
                pass
            if i % 3 == 2:
                assert store.delete(f"own/{me}/{i - 1}")
            whole(store, "shared/0")
            assert is_made(store[f"own/{me}/{i}"], i)

    together(work)


def increment(store):
    entry = store.entry("number")
    try:
        store.put(store["number"] + 1, key="number", if_version=entry)
    except ConflictError:
        return False
    return True


def overwrite(store, name, rounds):
    """One writer that replaces values of changing kinds."""
    for seed in range(rounds):
        put(store, "hot", seed, KINDS[seed % 4])
        put(store, f"kind/{KINDS[seed % 4]}", seed, KINDS[seed % 4])
        if seed % 7 == 0:
            store.put_many((f"pair/{x}", make(seed, "bytes"), {"seed": seed}) for x in "ab")


def toggle(store, name, rounds):
    """Put and delete the same few contents as everybody else, under names of one's own."""

    def work(number):
        for i in range(rounds):
            key, seed = f"{name}{number}", (i + number) % 3
            put(store, key, seed, "parts")
            assert is_made(store[key], seed)
            assert store.exists(key)
            assert store.delete(key)
        put(store, f"{name}{number}", number % 3, "parts")

    together(work, 2)


def churn(store, name, rounds):
    """Put, overwrite, copy and delete: much garbage, and values that have to stay."""

    def work(number):
        for i in range(rounds):
            put(store, f"stay/{name}{number}/{i}", i, KINDS[1 + i % 3])
            put(store, f"hot/{name}{number}", i, KINDS[1 + i % 3])
            store.copy(f"hot/{name}{number}", f"copy/{name}{number}/{i}")
            store.move(f"copy/{name}{number}/{i}", f"moved/{name}{number}/{i}")
            if i:
                store.delete(f"moved/{name}{number}/{i - 1}")
            assert is_made(store[f"hot/{name}{number}"], i)

    together(work, 2)


def main():
    task = json.loads(sys.argv[1])
    with BlobStore(task["folder"], **task["options"]) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        globals()[task["do"]](store, task["name"], task["rounds"])


@contextmanager
def processes(folder, do, names, rounds, **options):
    """Other processes, started together when the block begins, and waited for at its end."""
    started = []
    try:
        for name in names:
            task = {
                "folder": str(folder),
                "do": do,
                "name": name,
                "rounds": rounds,
                "options": options,
            }
            started.append(
                subprocess.Popen(
                    [sys.executable, "-W", "error", __file__, json.dumps(task)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for process in started:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        yield started
        for process in started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.communicate()
            for pipe in (process.stdin, process.stdout, process.stderr):
                pipe.close()


def check_blobs(store):
    """The store is whole, and holds no blob but those of its entries."""
    report = store.verify(deep=True)
    assert report.ok, report.problems
    there = {p.name for p in store.path.rglob("*") if is_location(p.name) and p.is_file()}
    assert there == {x for key in store for x in store.entry(key).locations}
    assert store.gc(grace=0).items == ()


# --- writers ---


def writers(folder, options, names, rounds):
    with BlobStore(folder, **options) as store:
        store.put(0, key="number")
        store.put(0, key="counter")
        put(store, "shared/0", 0, "small")
        put(store, "shared/1", 0, "small")
        with processes(folder, "write", names, rounds, **options):
            write(store, "here", rounds)
        check_written(store, [*names, "here"], rounds)
    with BlobStore(folder, **options) as store:
        check_written(store, [*names, "here"], rounds)


def check_written(store, names, rounds):
    """All that was acknowledged is there, in every process's and thread's name."""
    everybody = [f"{name}{number}" for name in names for number in range(THREADS)]
    deleted = {i - 1 for i in range(rounds) if i % 3 == 2}
    kept = [i for i in range(rounds) if i not in deleted]
    assert store.list("own/") == sorted(f"own/{me}/{i}" for me in everybody for i in kept)
    assert all(is_made(store[f"own/{me}/{i}"], i) for me in everybody for i in kept)
    assert store["number"] == len(everybody) * rounds
    assert store.entry("number").version == 1 + len(everybody) * rounds
    assert store.entry("counter").metadata == dict.fromkeys(everybody, rounds - 1)
    versions = sum(store.entry(f"shared/{i}").version for i in (0, 1))
    assert versions == 2 + len(everybody) * rounds
    assert whole(store, "shared/0")
    assert whole(store, "shared/1")
    assert len(store) == 4 + len(everybody) * len(kept)
    check_blobs(store)


def test_processes_with_four_threads_each_lose_nothing(tmp_path, options):
    writers(tmp_path, options, ["one"], 5)


def test_processes_that_share_content_lose_nothing(tmp_path, options):
    writers(tmp_path, {**options, "content_addressable": True}, ["one"], 4)


@pytest.mark.nightly
@pytest.mark.parametrize("content_addressable", [False, True])
def test_many_processes_for_a_long_time(tmp_path, options, content_addressable):
    options["content_addressable"] = content_addressable
    writers(tmp_path, options, ["one", "two", "three"], 60)


# --- readers ---


def readers(folder, options, rounds):
    with BlobStore(folder, **options) as store:
        overwrite(store, "", 4)
        with processes(folder, "overwrite", ["writer"], rounds, **options) as (writer,):

            def read(number):
                for count in itertools.count():
                    done = writer.poll() is not None  # then the last look sees the last values
                    for key in ("hot", *(f"kind/{kind}" for kind in KINDS), "pair/a", "pair/b"):
                        assert store.get(key) is not None
                        assert whole(store, key) or not done
                    one, other = _pair(store)
                    assert one == other
                    if done:
                        return count
                return None

            counts = together(read, 2)
            assert writer.returncode == 0, writer.stderr.read()
        assert min(counts) > 0, "the readers came too late"
        last = {kind: max(s for s in range(rounds) if KINDS[s % 4] == kind) for kind in KINDS}
        for kind, seed in last.items():
            assert is_made(store[f"kind/{kind}"], seed)
        check_blobs(store)


def _pair(store):
    """Two keys of one put_many, as one listing of the index shows them."""
    found = store._index.get_many(["pair/a", "pair/b"])
    return [found[key].metadata["seed"] for key in ("pair/a", "pair/b")]


def test_readers_never_see_torn_values(tmp_path, options):
    readers(tmp_path, options, 32)


def test_readers_of_shared_content_never_see_torn_values(tmp_path, options):
    readers(tmp_path, {**options, "content_addressable": True}, 32)


@pytest.mark.nightly
@pytest.mark.parametrize("content_addressable", [False, True])
def test_readers_for_a_long_time(tmp_path, options, content_addressable):
    readers(tmp_path, {**options, "content_addressable": content_addressable}, 3000)


# --- content addressing, and garbage ---


def toggling(folder, options, rounds):
    options = {**options, "content_addressable": True}
    with BlobStore(folder, **options) as store:
        with processes(folder, "toggle", ["one", "two"], rounds, **options):
            for _ in range(rounds):
                put(store, "here", 1, "parts")
                assert is_made(store["here"], 1)
                store.delete("here")
        assert store.list() == ["one0", "one1", "two0", "two1"]
        for key in store:
            assert is_made(store[key], int(key[-1]))
        check_blobs(store)
        assert store.clear() == 4
        check_blobs(store)


def test_the_same_content_put_and_deleted_by_all_never_dangles(tmp_path, options):
    toggling(tmp_path, options, 6)


@pytest.mark.nightly
def test_the_same_content_put_and_deleted_for_a_long_time(tmp_path, options):
    toggling(tmp_path, options, 400)


def collecting(folder, options, rounds):
    with BlobStore(folder, **options) as store:
        with processes(folder, "churn", ["one"], rounds, **options) as (other,):
            done = threading.Event()

            def collect():
                runs = 0
                while not done.is_set() or runs < 3:
                    store.gc(dry_run=False, grace=0)
                    runs += 1
                return runs

            with ThreadPoolExecutor(1) as pool:
                collector = pool.submit(collect)
                try:
                    churn(store, "here", rounds)
                    _, errors = other.communicate(timeout=300)
                finally:
                    done.set()
                assert collector.result() >= 3
            assert other.returncode == 0, errors
            other.communicate = lambda timeout=None: ("", errors)
        for name in ("one0", "one1", "here0", "here1"):
            for i in range(rounds):
                assert is_made(store[f"stay/{name}/{i}"], i)
            for key in (f"hot/{name}", f"moved/{name}/{rounds - 1}"):
                assert is_made(store[key], rounds - 1)
        assert len(store) == 4 * (rounds + 2)
        store.gc(dry_run=False, grace=0)
        check_blobs(store)


class Paused(Handler):
    """Stores bytes, and calls back when half of them are written."""

    name = "paused"
    type_names = ("builtins.memoryview",)
    halfway = staticmethod(lambda: None)

    def can_handle(self, obj):
        return True

    def plan(self, obj, options):
        return Plan("bytes", {}, (PausedPart(obj, self.halfway),))

    def read(self, parts, info, **options):
        return memoryview(parts["data"].source.read())


class PausedPart(PlannedPart):
    handler = "paused"

    def __init__(self, data, halfway):
        self.data, self.halfway, self.size_hint = data, halfway, len(data)

    def digest(self, hasher):
        hasher.update(self.data)

    def encoding(self):
        return Encoding("none", ".bin")

    def write(self, sink):
        sink.write(self.data[:20_000])
        self.halfway()
        sink.write(self.data[20_000:])


@pytest.mark.parametrize("collector", ["same handle", "second handle", "other process"])
def test_collecting_in_the_middle_of_a_put(tmp_path, options, collector):
    """However little grace is given, what a living writer has in hand is no garbage."""
    handler = Paused()
    code = "import sys; from blobstore import BlobStore; BlobStore(sys.argv[1]).gc(dry_run=False, grace=0.0)"
    with BlobStore(tmp_path, handlers=[handler], **options) as store, BlobStore(tmp_path) as second:
        handler.halfway = {
            "same handle": lambda: store.gc(dry_run=False, grace=0),
            "second handle": lambda: second.gc(dry_run=False, grace=0),
            "other process": lambda: subprocess.run(
                [sys.executable, "-c", code, tmp_path], check=True
            ),
        }[collector]
        data = memoryview(make(1, "bytes") * 4)
        store.put(data, key="k")
        assert store["k"] == data
        check_blobs(store)


@pytest.mark.parametrize("content_addressable", [False, True])
def test_collecting_all_the_while_takes_only_garbage(tmp_path, options, content_addressable):
    collecting(tmp_path, {**options, "content_addressable": content_addressable}, 10)


@pytest.mark.nightly
@pytest.mark.parametrize("content_addressable", [False, True])
def test_collecting_for_a_long_time(tmp_path, options, content_addressable):
    collecting(tmp_path, {**options, "content_addressable": content_addressable}, 300)


# --- forked children ---


def fork(work):
    """Run `work` in a forked child; give its process id."""
    with warnings.catch_warnings():
        # Python warns of forking with threads; that a store bears it is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.alarm(60)  # a child that waits for a lock nobody holds must not wait for ever
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def join(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "its error is above"


def test_a_forked_child_uses_the_store_and_the_parent_goes_on(tmp_path, options):
    with BlobStore(tmp_path, **options) as store:
        put(store, "before", 1, "parts")

        def work(name):
            for i in range(8):
                assert is_made(store["before"], 1)
                put(store, f"{name}/{i}", i, KINDS[i % 4])
                put(store, "shared", i, KINDS[i % 4])
                assert is_made(store[f"{name}/{i}"], i)

        children = [fork(lambda name=name: work(name)) for name in ("one", "two")]
        work("parent")
        for child in children:
            join(child)
        for name in ("one", "two", "parent"):
            assert all(is_made(store[f"{name}/{i}"], i) for i in range(8))
        assert store.entry("shared").version == 24
        assert len(store) == 26
        check_blobs(store)
    with BlobStore(tmp_path) as store:
        assert len(store) == 26
        check_blobs(store)


def test_a_forked_child_that_closes_takes_nothing_from_the_parent(tmp_path, options):
    with BlobStore(tmp_path, **options) as store:
        put(store, "k", 1, "parts")

        def work():
            with store:
                put(store, "child", 2, "bytes")

        join(fork(work))
        assert is_made(store["child"], 2)
        assert is_made(store["k"], 1)
        put(store, "k", 3, "small")
        assert is_made(store["k"], 3)


def test_forking_while_other_threads_are_writing(tmp_path, options):
    with BlobStore(tmp_path, **options) as store:
        put(store, "busy", 0, "bytes")
        started, stop = threading.Event(), threading.Event()

        def keep_writing():
            for seed in itertools.count():
                put(store, "busy", seed, KINDS[seed % 4])
                store.put_many((f"many/{n}", make(seed, "bytes"), {"seed": seed}) for n in range(3))
                if seed == 2:
                    started.set()
                if stop.is_set():
                    return seed
            return None

        def work(number):
            put(store, f"child/{number}", number, "parts")
            assert is_made(store[f"child/{number}"], number)
            whole(store, "busy")
            assert store.get_many(["busy", "many/0"]).keys() == {"busy", "many/0"}

        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(keep_writing)
            try:
                assert started.wait(60) or busy.result()
                for number in range(4):
                    join(fork(lambda number=number: work(number)))
            finally:
                stop.set()
            last = busy.result()
        assert store.entry("busy").version == last + 2
        assert is_made(store["busy"], last)
        assert all(is_made(store[f"child/{n}"], n) for n in range(4))
        store.gc(dry_run=False, grace=0)
        check_blobs(store)


def test_a_child_that_is_killed_leaves_the_parent_unharmed(tmp_path, options):
    with BlobStore(tmp_path, **options) as store:
        put(store, "hot", 0, "parts")
        read_end, write_end = os.pipe()

        def work():
            for seed in itertools.count(1):
                put(store, "hot", seed, KINDS[seed % 4])
                if seed == 5:
                    os.write(write_end, b"x")

        child = fork(work)
        os.read(read_end, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)
        assert store.entry("hot").metadata["seed"] >= 5
        assert whole(store, "hot")
        put(store, "hot", 3, "parts")
        assert is_made(store["hot"], 3)
        store.gc(dry_run=False, grace=0)
        check_blobs(store)


# --- pickled copies ---


def test_pickled_copies_in_a_pool_of_fresh_processes(tmp_path, options):
    with BlobStore(tmp_path, content_addressable=True, **options) as store:
        put(store, "k", 7, "parts")
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            # Functions of this file have no name that a fresh process could import.
            for value in pool.map(operator.itemgetter("k"), [store] * 4):
                assert is_made(value, 7)
            items = [
                [(f"{n}/{i}", make(i, KINDS[i % 4]), {"seed": i}) for i in range(4)]
                for n in range(4)
            ]
            calls = [operator.methodcaller("put_many", x) for x in items]
            keys = [pool.apply_async(call, (store,)) for call in calls]
            assert [x.get(60) for x in keys] == [[key for key, _, _ in x] for x in items]
            assert pool.map(len, [store] * 2) == [17, 17]
            entry = pool.apply(operator.methodcaller("entry", "2/3"), (store,))
            assert entry == store.entry("2/3")
            caught = pool.apply_async(operator.itemgetter("absent"), (store,))
            with pytest.raises(KeyError, match="absent") as raised:
                caught.get(60)
            assert raised.value.key == "absent"
            pool.close()
            pool.join()
        for n, i in itertools.product(range(4), range(4)):
            assert is_made(store[f"{n}/{i}"], i)
        check_blobs(store)


def test_the_folder_of_a_pickled_store_is_absolute(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with BlobStore("store", **options) as store:
        put(store, "k", 1, "bytes")
        code = "import pickle, sys; print(len(pickle.load(sys.stdin.buffer)['k']))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(store),
            capture_output=True,
            cwd=tmp_path / "elsewhere",
            check=False,
        )
    assert done.stdout.strip() == b"12000", done.stderr.decode()
    assert [*(tmp_path / "elsewhere").iterdir()] == []


# --- opening ---


def test_everybody_makes_the_store_at_once(tmp_path, options):
    """A new folder, opened by several at the same moment, becomes one store."""
    for attempt in range(5):
        folder = tmp_path / str(attempt)

        def work(number, folder=folder):
            with BlobStore(folder, **options) as store:
                put(store, str(number), number, "bytes")
                return store._index.store_id

        assert len(set(together(work, 6))) == 1
        with BlobStore(folder, **options) as store:
            assert store.list() == [str(n) for n in range(6)]
            check_blobs(store)
        assert not [*Path(folder).glob(".blobstore.json.*")]


def test_processes_make_the_store_at_once(tmp_path, options):
    code = (
        "import sys; from blobstore import BlobStore; print('ready', flush=True); sys.stdin.readline();"
        "store = BlobStore(sys.argv[1], backend=sys.argv[2]); store.put(b'x', key=sys.argv[3]); store.close()"
    )
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(folder), options["backend"], str(n)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for n in range(3)
        ]  # fmt: skip
        for process in started:
            process.stdout.readline()
        for process in started:
            process.stdin.write(b"go\n")
            process.stdin.flush()
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
        with BlobStore(folder) as store:
            assert store.list() == ["0", "1", "2"]
            check_blobs(store)


if __name__ == "__main__":
    main()
