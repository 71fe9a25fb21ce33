"""The async faces: what a cancellation leaves, who waits for whom, and where the classes come from."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import contextvars
import io
import itertools
import pickle
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

import blobstore.aio
from blobstore import aio
from blobstore.aio import (
    AsyncCachingStore,
    AsyncDictStore,
    AsyncFace,
    AsyncFilesystemBlobBackend,
    AsyncFilesystemStore,
    AsyncGzipStore,
    AsyncMirroringStore,
    AsyncNotifyingStore,
    AsyncObjectStore,
    AsyncRegexRoutingStore,
    AsyncSqliteStore,
    AsyncWriteonlyStore,
    async_class,
    async_clear_store,
    async_copy_store,
    async_sync_stores,
    names,
    opening,
    to_async,
    to_sync,
)
from blobstore.aio.bridge import SyncBridge
from blobstore.aio.store import BytesReader
from blobstore.aio.threads import current_call
from blobstore.aio.transfer import SyncOptions, TransferOptions
from blobstore.backends import DictStore, FilesystemStore
from blobstore.errors import (
    ClosedError,
    ConfigError,
    InvalidInputError,
    InvalidKeyError,
    KeyNotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)
from blobstore.protocols import Capabilities, ObjectStore
from blobstore.registry import store_types
from blobstore.streams import CHUNK
from blobstore.testing.object_store import in_fork
from blobstore.transfer import clear_store, copy_store, sync_stores
from blobstore.wrappers import BufferStore, WrapperStore
from blobstore.wrappers.base import WrapperSink

LONG = 30.0  # seconds after which a test that hangs fails


class Gate:
    """Something that a thread comes to, and passes when it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.passed = 0

    def pass_through(self) -> None:
        self.reached.set()
        assert self.opened.wait(LONG)
        self.passed += 1

    async def is_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, LONG)


class GatedStore(WrapperStore):
    """A store with a gate in front of some calls: "get", "write 2" (the second piece), "commit"."""

    def __init__(self, store: ObjectStore, *gated: str) -> None:
        super().__init__(store)
        self.gates = {name: Gate() for name in gated}
        self.calls: Counter[str] = Counter()

    def come_to(self, name: str) -> None:
        self.calls[name] += 1
        for gated in (name, f"{name} {self.calls[name]}"):
            if gated in self.gates:
                self.gates[gated].pass_through()

    def get(self, key):
        self.come_to("get")
        return super().get(key)

    def put(self, key, data):
        self.come_to("put")
        super().put(key, data)

    def open(self, key):
        self.come_to("open")
        return super().open(key)

    def keys(self, prefix=""):
        for key in super().keys(prefix):
            self.come_to("key")
            yield key

    def writer(self, key, size_hint=None):
        self.come_to("writer")
        return GatedSink(super().writer(key, size_hint), self.come_to)

    def close(self):
        self.come_to("close")
        super().close()


class GatedSink(WrapperSink):
    def __init__(self, inner, come_to):
        super().__init__(inner)
        self.come_to = come_to

    def write(self, data, /):
        self.come_to("write")
        return super().write(data)

    def commit(self):
        self.come_to("commit")
        super().commit()

    def abort(self):
        self.come_to("abort")
        super().abort()


class Native(AsyncObjectStore):
    """A store that is asynchronous by itself; each call notes the loop it runs on."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.loops: set[asyncio.AbstractEventLoop] = set()
        self.closed = False
        self.hang: asyncio.Event | None = None
        self.hanging: asyncio.Event | None = None
        self.cancelled: list[str] = []

    async def _come_to(self, name: str) -> None:
        self.loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0)
        if self.hang is not None and self.hanging is not None:
            self.hanging.set()
            try:
                await self.hang.wait()
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise

    def hang_up(self) -> None:
        self.hang, self.hanging = asyncio.Event(), asyncio.Event()

    async def is_hanging(self) -> None:
        async with asyncio.timeout(LONG):
            await self.hanging.wait()

    async def get(self, key):
        await self._come_to("get")
        if key not in self.objects:
            raise KeyNotFoundError("none", location=key)
        return self.objects[key]

    async def put(self, key, data):
        await self._come_to("put")
        self.objects[key] = bytes(data)

    async def exists(self, key):
        await self._come_to("exists")
        return key in self.objects

    async def delete(self, key):
        await self.get(key)
        del self.objects[key]

    async def keys(self, prefix=""):
        await self._come_to("keys")
        for key in list(self.objects):
            if key.startswith(prefix):
                yield key

    async def close(self):
        self.closed = True


async def cancelled_while_it_hangs(native, call) -> None:
    """Cancel a call of a store over a native one; it goes on until the native one has answered."""
    native.hang_up()
    task = asyncio.create_task(call)
    await native.is_hanging()
    task.cancel()
    await turns()
    assert not task.done()
    native.hang.set()
    with pytest.raises(asyncio.CancelledError):
        await task


class NativeWithIterator(Native):
    """Its keys have to be closed, and count how often they are."""

    open_listings = 0

    async def keys(self, prefix=""):
        self.open_listings += 1
        try:
            for number in range(1000):
                yield f"{prefix}{number}"
        finally:
            self.open_listings -= 1


async def until(condition) -> None:
    """Let others go on until something holds."""
    async with asyncio.timeout(LONG):
        while not condition():
            await asyncio.sleep(0)


async def listed(store: AsyncObjectStore, prefix: str = "") -> list[str]:
    return [key async for key in store.keys(prefix)]


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("blobstore")]


def big(pieces: int = 4) -> bytes:
    return bytes(range(256)) * (pieces * CHUNK // 256)


asynchronous = pytest.mark.asyncio


# --- the documents -------------------------------------------------------------------------------


@asynchronous
@pytest.mark.parametrize(
    "make",
    [
        lambda path: AsyncFilesystemStore(path / "new" / "root"),
        lambda path: aio.AsyncHashdirStore(str(path / "new")),
        lambda path: AsyncSqliteStore(path / "db.sqlite"),
        lambda _: AsyncDictStore(),
        lambda path: AsyncCachingStore(AsyncFilesystemStore(path), AsyncDictStore()),
        lambda path: aio.AsyncFanoutStore([AsyncFilesystemStore(path), AsyncDictStore()]),
        lambda _: AsyncGzipStore(AsyncDictStore()),
    ],
)
async def test_the_example_of_the_documents_awaited(make, tmp_path):
    async with make(tmp_path) as store:
        await store.put("my_object_key", b"my object data")
        assert await store.get("my_object_key") == b"my object data"
        assert await store.exists("my_object_key")
        if store.capabilities.list:
            assert await listed(store) == ["my_object_key"]
        await store.delete("my_object_key")
        assert not await store.exists("my_object_key")
        with pytest.raises(KeyNotFoundError):
            await store.get("my_object_key")


def test_fanout_is_another_name_of_mirroring():
    assert aio.AsyncFanoutStore is AsyncMirroringStore


# --- threads ---------------------------------------------------------------------------------------


@asynchronous
async def test_a_thousand_calls_use_as_many_threads_as_the_limit_says():
    limit = 4
    meeting = threading.Barrier(limit)  # passed only by so many at once
    idents = set()

    class Meeting(DictStore):
        def get(self, key):
            meeting.wait(LONG)
            idents.add(threading.get_ident())
            return super().get(key)

    async with to_async(Meeting(), limit=limit) as store:
        await asyncio.gather(*(store.put(f"k{n}", b"%d" % n) for n in range(1000)))
        found = await asyncio.gather(*(store.get(f"k{n}") for n in range(1000)))
        assert found == [b"%d" % n for n in range(1000)]
        assert len(idents) == limit
        assert len(workers()) == limit
    assert workers() == []


@asynchronous
async def test_the_loop_goes_on_while_a_store_waits():
    gated = GatedStore(DictStore(), "put", "key", "close", "writer", "write", "commit", "open")
    store = to_async(gated)

    async def write() -> None:
        async with store.writer("w") as sink:
            await sink.write(b"x")

    async def read() -> None:
        async with store.open("k") as reader:
            assert await reader.read() == b"1"

    async def list_keys() -> None:
        assert sorted(await listed(store)) == ["k", "w"]

    for work, stations in [
        (lambda: store.put("k", b"1"), ["put"]),
        (write, ["writer", "write", "commit"]),
        (read, ["open"]),
        (list_keys, ["key"]),
        (store.close, ["close"]),
    ]:
        task = asyncio.ensure_future(work())
        for name in stations:
            await gated.gates[name].is_reached()
            await turns()
            assert not task.done()
            gated.gates[name].opened.set()
        await task


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "3", None], ids=repr)
def test_a_limit_is_a_number_of_threads(limit):
    for make in (AsyncDictStore, lambda limit: to_async(DictStore(), limit=limit)):
        with pytest.raises(ConfigError, match="limit must be an int of at least 1"):
            make(limit=limit)


@asynchronous
async def test_context_variables_reach_the_thread():
    name = contextvars.ContextVar("name")

    class Naming(DictStore):
        def get(self, key):
            return name.get().encode()

    name.set("outer")
    async with to_async(Naming()) as store:
        assert await store.get("k") == b"outer"


def test_one_face_in_two_loops_after_each_other(tmp_path):
    store = AsyncFilesystemStore(tmp_path)
    asyncio.run(store.put("a", b"1"))
    assert asyncio.run(store.get("a")) == b"1"

    async def both():
        return await asyncio.gather(store.get("a"), store.exists("b"))

    assert asyncio.run(both()) == [b"1", False]
    asyncio.run(store.close())


def test_one_face_in_two_loops_at_once():
    store = AsyncDictStore(limit=3)
    start = threading.Barrier(2)
    found = []

    def work(name: str) -> None:
        async def main() -> None:
            await asyncio.gather(*(store.put(f"{name}{n}", name.encode()) for n in range(100)))
            found.extend(await asyncio.gather(*(store.get(f"{name}{n}") for n in range(100))))

        start.wait(LONG)
        asyncio.run(main())

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(found) == {b"a": 100, b"b": 100}
    assert len(workers()) <= 3
    asyncio.run(store.close())


def test_a_forked_child_has_threads_of_its_own(tmp_path):
    store = AsyncFilesystemStore(tmp_path, limit=2)
    asyncio.run(store.put("parent", b"p"))
    assert workers()

    def child() -> None:
        async def main() -> None:
            assert await store.get("parent") == b"p"
            await store.put("child", b"c")
            await store.close()

        asyncio.run(main())
        assert workers() == []

    in_fork(child)
    assert asyncio.run(store.get("child")) == b"c"
    asyncio.run(store.close())


@asynchronous
async def test_threads_of_a_forgotten_face_end():
    store = AsyncDictStore()
    await store.put("k", b"1")
    threads = workers()
    del store
    for thread in threads:
        await asyncio.to_thread(thread.join, LONG)
    assert workers() == []


# --- cancellation ----------------------------------------------------------------------------------


@asynchronous
async def test_a_call_that_has_not_begun_is_dropped():
    gated = GatedStore(DictStore(), "get")
    async with to_async(gated, limit=1) as store:
        await store.put("k", b"1")
        running = asyncio.create_task(store.get("k"))
        await gated.gates["get"].is_reached()
        waiting = asyncio.create_task(store.put("never", b"2"))
        await turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not running.done()
        gated.gates["get"].opened.set()
        assert await running == b"1"
        assert not await store.exists("never")


@asynchronous
@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_call_that_runs_is_waited_for_however_often_it_is_cancelled(times):
    gated = GatedStore(DictStore(), "put")
    gate = gated.gates["put"]
    async with to_async(gated) as store:
        task = asyncio.create_task(store.put("k", b"1"))
        await gate.is_reached()
        for _ in range(times):
            task.cancel()
            await turns()
            assert not task.done()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.passed == 1
        assert await store.get("k") == b"1"


@asynchronous
async def test_a_cancelled_call_that_fails_is_cancelled():
    class Failing(DictStore):
        gate = Gate()

        def get(self, key):
            self.gate.pass_through()
            raise PermissionDeniedError("no")

    async with to_async(Failing()) as store:
        task = asyncio.create_task(store.get("k"))
        await Failing.gate.is_reached()
        task.cancel()
        Failing.gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task


@asynchronous
@pytest.mark.parametrize("nested", [False, True])
async def test_time_limits(nested):
    gated = GatedStore(DictStore(), "put")
    expired = []

    async def work(store) -> None:
        async with contextlib.AsyncExitStack() as stack:
            limits = [await stack.enter_async_context(asyncio.timeout(None)) for _ in range(2)]
            expired.extend(limits)
            await store.put("k", b"1")

    async with to_async(gated) as store:
        task = asyncio.create_task(work(store))
        await gated.gates["put"].is_reached()
        outer, inner = expired
        now = asyncio.get_running_loop().time()
        inner.reschedule(now)
        if nested:
            outer.reschedule(now)
        await until(lambda: task.cancelling() == 1 + nested)
        await turns()
        assert not task.done()
        gated.gates["put"].opened.set()
        with pytest.raises(TimeoutError):
            await task
        assert task.cancelling() == 0
        assert (outer.expired(), inner.expired()) == (nested, True)


@asynchronous
@pytest.mark.parametrize("piece", [1, 2, 4])
@pytest.mark.parametrize("old", [None, b"old"])
async def test_a_large_put_that_is_cancelled_leaves_nothing(tmp_path, piece, old):
    gated = GatedStore(FilesystemStore(tmp_path), f"write {piece}")
    async with to_async(gated) as store:
        if old is not None:
            await store.put("k", old)
        task = asyncio.create_task(store.put("k", bytearray(big(4))))
        gate = gated.gates[f"write {piece}"]
        await gate.is_reached()
        task.cancel()
        await turns()
        assert not task.done()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gated.calls["write"] == piece
        assert gated.calls["commit"] == 0
        assert [leftover async for leftover in store.leftovers()] == []
        assert await store.exists("k") is (old is not None)
        assert old is None or await store.get("k") == old


@asynchronous
async def test_a_large_put_goes_through_the_writer_only_if_that_streams(tmp_path):
    on_disk, in_memory = GatedStore(FilesystemStore(tmp_path)), GatedStore(DictStore())
    for gated, calls in (
        (on_disk, {"writer": 1, "write": 2, "commit": 1}),
        (in_memory, {"put": 1}),
    ):
        async with to_async(gated) as store:
            await store.put("k", big(2))
            assert gated.calls == calls
            assert await store.get("k") == big(2)
            await store.put("k", big(1))  # one piece: as it is
            assert gated.calls["put"] == calls.get("put", 0) + 1


@asynchronous
async def test_a_large_put_of_a_cancelled_task_that_has_not_begun(tmp_path):
    gated = GatedStore(FilesystemStore(tmp_path), "get")
    async with to_async(gated, limit=1) as store:
        await store.put("k", b"1")
        running = asyncio.create_task(store.get("k"))
        await gated.gates["get"].is_reached()
        waiting = asyncio.create_task(store.put("new", big()))
        await turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gated.gates["get"].opened.set()
        await running
        assert gated.calls["writer"] == 0


@asynchronous
async def test_what_a_cancelled_open_opened_is_closed(tmp_path):
    opened = []

    class Keeping(FilesystemStore):
        gate = Gate()

        def open(self, key):
            opened.append(super().open(key))
            self.gate.pass_through()
            return opened[-1]

        def writer(self, key, size_hint=None):
            opened.append(super().writer(key))
            opened[-1].write(b"half")
            self.gate.pass_through()
            return opened[-1]

    async with to_async(Keeping(tmp_path)) as store:
        await store.put("k", b"1")
        for start in (lambda: store.open("k"), lambda: store.writer("new")):
            Keeping.gate = Gate()
            task = asyncio.ensure_future(start())
            await Keeping.gate.is_reached()
            task.cancel()
            Keeping.gate.opened.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert opened[0].closed
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["k"]
        assert not await store.exists("new")


@asynchronous
async def test_what_cannot_be_undone_does_not_hide_the_cancellation():
    gate = Gate()

    class Stubborn(DictStore):
        def open(self, key):
            gate.pass_through()
            return Unclosable()

    class Unclosable(io.BytesIO):
        def close(self):
            super().close()
            raise StorageError("cannot close")

    async with to_async(Stubborn()) as store:
        task = asyncio.ensure_future(store.open("k"))
        await gate.is_reached()
        task.cancel()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        context = caught.value.__context__
        while not isinstance(context, StorageError):
            context = context.__context__


# --- sinks -------------------------------------------------------------------------------------------


@asynchronous
async def test_a_writer(tmp_path):
    async with AsyncFilesystemStore(tmp_path) as store:
        async with store.writer("k", size_hint=10) as sink:
            assert await sink.write(b"first ") == 6
            assert await sink.write(bytearray(big(3))) == 3 * CHUNK
            assert not await store.exists("k")
        assert sink.location == "k"
        assert await store.get("k") == b"first " + big(3)
        with pytest.raises(InvalidInputError, match="open a new one"):
            await sink.write(b"more")
        with pytest.raises(InvalidInputError, match="open a new one"):
            await sink.commit()
        await sink.abort()
        assert await store.get("k") == b"first " + big(3)


@asynchronous
async def test_a_writer_that_is_awaited(tmp_path):
    async with AsyncFilesystemStore(tmp_path) as store:
        sink = await store.writer("k")
        await sink.write(b"x")
        await sink.abort()
        await sink.abort()
        assert not await store.exists("k")
        assert [leftover async for leftover in store.leftovers()] == []
        with pytest.raises(RuntimeError, match="halfway"):
            async with store.writer("k") as sink:
                await sink.write(b"x")
                raise RuntimeError("halfway")
        with pytest.raises(InvalidInputError):
            async with store.writer("k") as sink:
                await sink.write("text")
        assert not await store.exists("k")


@asynchronous
@pytest.mark.parametrize("inside", [True, False], ids=["async with", "by hand"])
async def test_a_write_that_is_cancelled_leaves_nothing(tmp_path, inside):
    gated = GatedStore(FilesystemStore(tmp_path), "write 2")
    gate = gated.gates["write 2"]
    sinks = []

    async def work(store) -> None:
        if inside:
            async with store.writer("k") as sink:
                await sink.write(b"1")
                await sink.write(b"2")
        else:
            sinks.append(await store.writer("k"))
            await sinks[0].write(b"1")
            await sinks[0].write(big(3))

    async with to_async(gated) as store:
        task = asyncio.create_task(work(store))
        await gate.is_reached()
        task.cancel()
        await turns()
        task.cancel()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gated.calls["write"] == 2  # of the large one, only the piece that was under way
        assert not await store.exists("k")
        assert [leftover async for leftover in store.leftovers()] == []
        for sink in sinks:
            with pytest.raises(InvalidInputError, match="cancelled"):
                await sink.commit()


@asynchronous
async def test_a_cancelled_body_aborts_even_if_it_is_cancelled_again(tmp_path):
    gated = GatedStore(FilesystemStore(tmp_path), "abort")
    written = asyncio.Event()

    async def work(store) -> None:
        async with store.writer("k") as sink:
            await sink.write(b"1")
            written.set()
            await asyncio.sleep(LONG)

    async with to_async(gated) as store:
        task = asyncio.create_task(work(store))
        await written.wait()
        task.cancel()
        await gated.gates["abort"].is_reached()
        task.cancel()
        await turns()
        assert not task.done()
        gated.gates["abort"].opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [leftover async for leftover in store.leftovers()] == []
        assert not await store.exists("k")


@asynchronous
async def test_an_abort_waits_for_its_turn_though_it_is_cancelled(tmp_path):
    gated = GatedStore(FilesystemStore(tmp_path), "get")
    async with to_async(gated, limit=1) as store:
        await store.put("other", b"1")
        sink = await store.writer("k")
        await sink.write(b"half")
        running = asyncio.create_task(store.get("other"))
        await gated.gates["get"].is_reached()
        task = asyncio.create_task(sink.abort())
        await turns()
        task.cancel()
        await turns()
        assert not task.done()
        gated.gates["get"].opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await running
        assert [leftover async for leftover in store.leftovers()] == []


@asynchronous
async def test_a_commit_that_runs_is_finished(tmp_path):
    gated = GatedStore(FilesystemStore(tmp_path), "commit")

    async def work(store) -> None:
        async with store.writer("k") as sink:
            await sink.write(b"whole")

    async with to_async(gated) as store:
        task = asyncio.create_task(work(store))
        await gated.gates["commit"].is_reached()
        task.cancel()
        gated.gates["commit"].opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await store.get("k") == b"whole"
        assert gated.calls["abort"] == 0
        assert [leftover async for leftover in store.leftovers()] == []


@asynchronous
@pytest.mark.parametrize("inside", [True, False], ids=["async with", "by hand"])
async def test_a_commit_that_has_not_begun_is_dropped(tmp_path, inside):
    gated = GatedStore(FilesystemStore(tmp_path), "get")
    begun = asyncio.Event()
    write = asyncio.Event()

    async def work(store) -> None:
        sink = await store.writer("k")
        await sink.write(b"whole")
        begun.set()
        await write.wait()
        if inside:
            async with sink:
                pass
        else:
            await sink.commit()

    async with to_async(gated, limit=1) as store:
        await store.put("other", b"1")
        task = asyncio.create_task(work(store))
        await begun.wait()
        running = asyncio.create_task(store.get("other"))
        await gated.gates["get"].is_reached()
        write.set()
        await turns()
        task.cancel()
        await turns()
        gated.gates["get"].opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await running
        assert not await store.exists("k")
        assert gated.calls["commit"] == 0
        assert [leftover async for leftover in store.leftovers()] == []


@asynchronous
@pytest.mark.parametrize("where", ["write", "body"])
async def test_an_abort_that_fails_does_not_hide_the_cancellation(where):
    class Sink(WrapperSink):
        def abort(self):
            raise StorageError("cannot tidy up")

    class Stubborn(GatedStore):
        def writer(self, key, size_hint=None):
            return Sink(super().writer(key))

    gated = Stubborn(DictStore(), "write 2")
    once = asyncio.Event()

    async def work(store) -> None:
        async with store.writer("k") as sink:
            await sink.write(b"1")
            once.set()
            if where == "body":
                await asyncio.sleep(LONG)
            await sink.write(b"2")

    async with to_async(gated) as store:
        task = asyncio.create_task(work(store))
        await once.wait()
        if where == "write":
            await gated.gates["write 2"].is_reached()
        task.cancel()
        gated.gates["write 2"].opened.set()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        causes = []
        exc = caught.value
        while exc is not None:
            causes.append(str(exc))
            exc = exc.__context__
        assert "cannot tidy up" in causes


@asynchronous
async def test_one_call_at_a_time():
    gated = GatedStore(DictStore(), "write 1")
    async with to_async(gated) as store:
        sink = await store.writer("k")
        first = asyncio.create_task(sink.write(b"1"))
        await gated.gates["write 1"].is_reached()
        for call in (lambda: sink.write(b"2"), sink.commit, sink.abort):
            with pytest.raises(InvalidInputError, match="in use"):
                await call()
        gated.gates["write 1"].opened.set()
        await first
        await sink.commit()
        assert await store.get("k") == b"1"


# --- readers ----------------------------------------------------------------------------------------


@asynchronous
async def test_a_reader(tmp_path):
    async with AsyncFilesystemStore(tmp_path) as store:
        await store.put("k", big(3))
        async with store.open("k") as reader:
            assert await reader.read(10) == big()[:10]
            assert reader.tell() == 10
            assert await reader.seek(-5, io.SEEK_END) == reader.tell() == 3 * CHUNK - 5
            assert await reader.read() == big(3)[-5:]
            assert await reader.read() == b""
            await reader.seek(CHUNK - 1)
            assert [len(piece) async for piece in reader] == [CHUNK, CHUNK, 1]
        with pytest.raises(ValueError, match="closed"):
            await reader.read()
        await reader.close()
        with pytest.raises(KeyNotFoundError):
            await store.open("absent")
        with pytest.raises(KeyNotFoundError):
            async with store.open("absent"):
                pass


@asynchronous
async def test_readers_and_writers_can_be_let_go_after_the_store(tmp_path):
    store = AsyncFilesystemStore(tmp_path)
    await store.put("k", b"1")
    reader, sink = await store.open("k"), await store.writer("new")
    await sink.write(b"half")
    await store.close()
    with pytest.raises(ClosedError):
        await reader.read()
    with pytest.raises(ClosedError):
        await sink.write(b"more")
    with pytest.raises(ClosedError):
        await sink.commit()
    await reader.close()
    await sink.abort()
    assert workers() == []
    assert list(FilesystemStore(tmp_path).leftovers()) == []


# --- listing ----------------------------------------------------------------------------------------


@asynchronous
async def test_keys_hop_by_batch():
    hops = set()

    class Listing(DictStore):
        def keys(self, prefix=""):
            for key in super().keys(prefix):
                hops.add(id(current_call()))
                calls.append(current_call())  # held, so that ids differ
                yield key

    calls: list[Any] = []
    async with to_async(Listing()) as store:
        for count in (0, 1, 255, 256, 257, 600):
            hops.clear()
            for number in range(count):
                store.sync_store.put(f"{number:04}", b"")
            assert sorted(await listed(store)) == [f"{n:04}" for n in range(count)]
            assert len(hops) == -(-count // 256)
        assert await listed(store, "05") == [f"{n:04}" for n in range(500, 600)]


@asynchronous
@pytest.mark.parametrize("taken", [1, 256, 300])
async def test_keys_that_are_left_halfway_are_closed(taken):
    state = []

    class Listing(DictStore):
        def keys(self, prefix=""):
            listings.append(self.listing())  # held, so that nobody but the face closes it
            return listings[-1]

        def listing(self):
            try:
                for number in range(1000):
                    yield str(number)
            finally:
                state.append("closed")

    listings = []

    async with to_async(Listing()) as store:
        async with contextlib.aclosing(store.keys()) as keys:
            found = []
            async for key in keys:
                found.append(key)
                if len(found) == taken:
                    break
            assert state == []
        assert state == ["closed"]
        assert found == [str(n) for n in range(taken)]


@asynchronous
async def test_a_listing_that_is_cancelled_is_closed():
    state = []
    gate = Gate()

    class Listing(DictStore):
        def keys(self, prefix=""):
            try:
                for number in range(1000):
                    if number == 300:
                        gate.pass_through()
                    yield str(number)
            finally:
                state.append("closed")

    async def work(store) -> None:
        async for _ in store.keys():
            pass

    async with to_async(Listing()) as store:
        task = asyncio.create_task(work(store))
        await gate.is_reached()
        task.cancel()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: state == ["closed"])


@asynchronous
@pytest.mark.parametrize("fails_at", [0, 300])
async def test_a_listing_that_fails_is_closed(fails_at):
    class Listing:
        closed = False
        given = 0

        def __iter__(self):
            return self

        def __next__(self):
            if self.given == fails_at:
                raise UnavailableError("lost")
            self.given += 1
            return str(self.given)

        def close(self):
            self.closed = True

    class Broken(DictStore):
        def keys(self, prefix=""):
            return listing

    listing = Listing()
    async with to_async(Broken()) as store:
        with pytest.raises(UnavailableError, match="lost"):
            await listed(store)
        assert listing.closed


@asynchronous
async def test_errors_of_a_listing_come_at_the_first_step():
    async with AsyncWriteonlyStore(AsyncDictStore()) as store:
        with pytest.raises(NotSupportedError):
            await anext(store.keys())
    with pytest.raises(ClosedError):
        await anext(store.keys())


# --- errors, and the end ----------------------------------------------------------------------------


@asynchronous
async def test_errors_are_those_of_the_store(tmp_path):
    async with AsyncFilesystemStore(tmp_path) as store:
        with pytest.raises(KeyNotFoundError) as caught:
            await store.get("absent")
        assert caught.value.location == "absent"
        with pytest.raises(InvalidKeyError):
            await store.put("../out", big(2))
        with pytest.raises(InvalidInputError):
            await store.put("k", "text")
        with pytest.raises(InvalidInputError):
            await store.get_range("k", 5, 4)


@asynchronous
async def test_an_error_that_generators_use_ends_the_call_too():
    class Odd(DictStore):
        def get(self, key):
            raise StopIteration(key)

    async with to_async(Odd()) as store:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await store.get("k")


@asynchronous
async def test_after_close_every_call_is_refused(tmp_path):
    store = AsyncFilesystemStore(tmp_path)
    await store.put("k", b"1")
    await store.close()
    await store.close()
    await store.aclose()
    for call in [
        lambda: store.get("k"),
        lambda: store.put("k", b""),
        lambda: store.put("k", big(2)),
        lambda: store.exists("k"),
        lambda: store.delete("k"),
        lambda: anext(store.keys()),
        lambda: store.get_range("k", 0, 1),
        lambda: store.open("k"),
        lambda: store.writer("k"),
        lambda: store.stat("k"),
        lambda: store.local_path("k"),
        lambda: store.delete_many([]),
        lambda: store.copy("k", "l"),
        lambda: store.put_if_absent("k", b""),
        lambda: store.sync([]),
        lambda: anext(store.leftovers()),
        lambda: store.remove_leftover("x"),
        lambda: store.__aenter__(),
    ]:
        with pytest.raises(ClosedError):
            await call()
    assert store.capabilities.ranges
    assert workers() == []


@asynchronous
async def test_closing_waits_for_calls_that_run():
    gated = GatedStore(DictStore(), "put")
    store = to_async(gated)
    running = asyncio.create_task(store.put("k", b"1"))
    await gated.gates["put"].is_reached()
    closing = asyncio.create_task(store.close())
    await until(lambda: gated.calls["close"] == 1)
    await turns()
    assert not closing.done()
    gated.gates["put"].opened.set()
    await closing
    assert workers() == []
    with pytest.raises(ClosedError):  # the DictStore was closed before it was written
        await running


@asynchronous
async def test_a_cancelled_close_is_finished():
    gated = GatedStore(DictStore(), "close")
    store = to_async(gated)
    await store.put("k", b"1")
    task = asyncio.create_task(store.close())
    await gated.gates["close"].is_reached()
    task.cancel()
    await turns()
    assert not task.done()
    gated.gates["close"].opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert workers() == []


@asynchronous
async def test_a_close_that_fails_ends_the_threads():
    class Failing(DictStore):
        def close(self):
            raise StorageError("cannot close")

    store = to_async(Failing())
    await store.put("k", b"1")
    with pytest.raises(StorageError, match="cannot close"):
        await store.close()
    assert workers() == []


@asynchronous
async def test_entering_and_leaving_are_those_of_the_store():
    events = []

    class Stateful(DictStore):
        def __enter__(self):
            events.append("enter")
            return self

        def __exit__(self, kind, exc, tb):
            events.append(kind)
            self.close()

    async with to_async(Stateful()) as store:
        await store.put("k", b"1")
    with pytest.raises(RuntimeError):
        async with to_async(Stateful()):
            raise RuntimeError
    assert events == ["enter", None, "enter", RuntimeError]


@asynchronous
async def test_a_store_that_cannot_be_entered_is_closed():
    class Locked(GatedStore):
        def __enter__(self):
            raise UnavailableError("locked")

    locked = Locked(DictStore())
    with pytest.raises(UnavailableError, match="locked"):
        async with to_async(locked):
            pass
    assert locked.calls["close"] == 1
    assert workers() == []


@asynchronous
async def test_many_keys_at_once(tmp_path):
    batches = []

    class Counting(DictStore):
        def delete_many(self, keys):
            batches.append(len(keys := list(keys)))
            super().delete_many(keys)
            if len(batches) == 1:
                raise PermissionDeniedError("not that one")

        def sync(self, keys):
            batches.append(len(list(keys)))

    async with to_async(Counting()) as store:
        for number in range(2500):
            store.sync_store.put(str(number), b"")
        with pytest.raises(PermissionDeniedError, match="not that one"):
            await store.delete_many(store.keys())
        assert batches == [1000, 1000, 500]
        assert await listed(store) == []
        batches.clear()
        await store.sync(str(n) for n in range(1000))
        await store.sync(store.keys())
        await store.delete_many(["absent"])
        assert batches == [1000, 0, 0, 1]


# --- native stores, bridges, stacks ----------------------------------------------------------------


@asynchronous
async def test_the_defaults_of_a_native_store():
    async with Native() as store:
        assert store.capabilities == Capabilities()
        async with store.writer("k") as sink:
            await sink.write(bytearray(b"first "))
            await sink.write(b"second")
        assert sink.location == "k"
        with pytest.raises(InvalidInputError, match="open a new one"):
            await sink.write(b"third")
        sink = await store.writer("aborted")
        await sink.write(b"x")
        await sink.abort()
        with pytest.raises(InvalidInputError, match="open a new one"):
            await sink.commit()
        assert await store.get_range("k", 6, 9) == b"sec"
        with pytest.raises(InvalidInputError):
            await store.get_range("k", 3, 2)
        async with store.open("k") as reader:
            assert await reader.read(5) == b"first"
            assert reader.tell() == 5
            assert await reader.seek(1, io.SEEK_CUR) == 6
            assert [piece async for piece in reader] == [b"second"]
        assert (await store.stat("k")).size == 12
        assert await store.local_path("k") is None
        await store.copy("k", "copy")
        assert await store.put_if_absent("copy", b"") is False
        assert await store.put_if_absent("new", b"") is True
        await store.sync(["k"])
        assert [leftover async for leftover in store.leftovers()] == []
        await store.remove_leftover("x")
        await store.delete_many(["absent", "copy", "new"])
        assert await listed(store) == ["k"]
        await store.delete_many(store.keys())
        assert store.objects == {}
    assert store.closed


@asynchronous
async def test_a_native_object_that_cannot_be_removed_does_not_keep_the_others():
    class Stubborn(Native):
        async def delete(self, key):
            if key == "b":
                raise PermissionDeniedError("not this one")
            await super().delete(key)

    store = Stubborn()
    store.objects = {"a": b"", "b": b"", "c": b""}
    with pytest.raises(PermissionDeniedError, match="not this one"):
        await store.delete_many("abc")
    assert list(store.objects) == ["b"]


@asynchronous
async def test_a_native_store_may_open_in_its_own_way():
    class Own(Native):
        @opening
        async def open(self, key):
            return BytesReader(await self.get(key) + b"!")

    store = Own()
    await store.put("k", b"1")
    async with store.open("k") as reader:
        assert await reader.read() == b"1!"
    assert await (await store.open("k")).read() == b"1!"


@asynchronous
async def test_one_hop_serves_a_stack_of_faces():
    inner = AsyncDictStore()
    await inner.put("other", b"")
    assert len(workers()) == 1
    async with AsyncGzipStore(AsyncGzipStore(inner, level=1)) as store:
        assert type(store.sync_store.store.store) is DictStore
        assert store.sync_store.store.store is inner.sync_store
        await store.put("k", b"1")
        assert await store.get("k") == b"1"
        assert (await inner.get("k"))[:2] == b"\x1f\x8b"
    assert workers() == []  # those of the inner faces, too
    with pytest.raises(ClosedError):
        await inner.get("k")


@asynchronous
@pytest.mark.parametrize("form", ["list", "tuple", "dict", "generator", "routes"])
async def test_stores_inside_of_arguments_are_replaced(form):
    native, face, plain = Native(), AsyncDictStore(), DictStore()
    stores = [face, native, plain]
    make = {
        "list": lambda: AsyncMirroringStore(stores),
        "tuple": lambda: AsyncMirroringStore(children=tuple(stores)),
        "dict": lambda: AsyncMirroringStore(dict(zip("abc", stores, strict=True))),
        "generator": lambda: AsyncMirroringStore(store for store in stores),
        "routes": lambda: AsyncMirroringStore(
            [AsyncRegexRoutingStore(routes=[(".*", store)]) for store in stores]
        ),
    }[form]
    async with make() as store:
        await store.put("k", b"1")
        assert native.objects == {"k": b"1"}
        assert face.sync_store.get("k") == plain.get("k") == b"1"
        assert await store.get("k") == b"1"
    assert native.closed


@asynchronous
async def test_a_native_store_that_is_given_twice_is_one_store():
    native = Native()
    with pytest.raises(ConfigError):
        AsyncMirroringStore([native, AsyncDictStore(), native])
    with pytest.raises(ConfigError):
        AsyncMirroringStore([bridge := to_sync(native), AsyncDictStore(), bridge])
    async with AsyncMirroringStore([to_sync(Native()), native]) as store:
        assert len(store._bridges) == 2
    async with AsyncRegexRoutingStore(native) as store:
        store.add_route("a.*", native)
        store.add_route("b.*", other := Native())
        await store.put("a", b"1")
        await store.put("b", b"2")
        assert await listed(store) == ["a", "b"]
        assert (native.objects, other.objects) == ({"a": b"1"}, {"b": b"2"})
        assert [bridge.async_store for bridge in store._bridges] == [native, other]
    assert native.closed
    assert other.closed


@asynchronous
async def test_arguments_that_hold_no_store_stay_what_they_are():
    class Odd(DictStore):
        def __init__(self, *args, **kwargs):
            super().__init__()
            self.args, self.kwargs = args, kwargs

    class Names(list):
        pass

    odd, pair, table, text = Names("ab"), (1, 2), {"a": [1]}, io.BytesIO()
    async with async_class(Odd)(odd, pair, text, table=table) as store:
        assert store.sync_store.args[0] is odd
        assert store.sync_store.args[1] is pair
        assert store.sync_store.args[2] is text
        assert store.sync_store.kwargs["table"] is table


@asynchronous
async def test_a_native_store_runs_on_the_loop_of_the_caller(tmp_path):
    native = Native()
    store = AsyncCachingStore(
        AsyncMirroringStore([AsyncFilesystemStore(tmp_path), native]), AsyncDictStore()
    )
    await store.put("k", big(2))
    assert await store.get("k") == native.objects["k"] == big(2)
    assert native.loops == {asyncio.get_running_loop()}
    await store.close()
    assert native.closed


def test_a_native_store_follows_its_face_to_another_loop():
    native = Native()
    store = AsyncGzipStore(native)
    for number in range(2):
        asyncio.run(store.put(str(number), b"1"))
        assert asyncio.run(store.get(str(number))) == b"1"
    assert len(native.loops) == 4
    asyncio.run(store.close())


@asynchronous
async def test_a_wrapper_may_have_threads_of_its_own():
    class Threaded(WrapperStore):
        def get(self, key):
            found = []
            thread = threading.Thread(target=lambda: found.append(self.store.get(key)))
            thread.start()
            thread.join()
            return found[0]

    native = Native()
    native.objects["k"] = b"1"
    async with async_class(Threaded)(native) as store:
        assert await store.get("k") == b"1"
    async with to_async(WrapperStore(Threaded(to_sync(native)))) as store:
        assert await store.exists("k")  # from here on, the bridge inside knows the loop
        assert await store.get("k") == b"1"


@asynchronous
async def test_a_bridge_does_not_wait_for_its_own_loop():
    native = Native()
    for bridge in (to_sync(native), to_sync(native, asyncio.get_running_loop())):
        assert isinstance(bridge, SyncBridge)
        for call in (partial(bridge.get, "k"), bridge.keys, bridge.close):
            with pytest.raises(InvalidInputError, match="never end"):
                call()
    async with to_async(to_sync(native)) as store:
        await store.put("k", b"1")
        with pytest.raises(InvalidInputError, match="never end"):
            store.sync_store.get("k")
        assert (
            await asyncio.to_thread(store.sync_store.get, "k") == b"1"
        )  # it knows the loop by now


def test_a_bridge_needs_a_loop_that_runs():
    native = Native()
    with pytest.raises(ConfigError, match="not known"):
        to_sync(native).get("k")
    loop = asyncio.new_event_loop()
    bridge = to_sync(native, loop)
    with pytest.raises(InvalidInputError, match="does not run"):
        bridge.get("k")
    loop.close()
    with pytest.raises(ClosedError, match="was closed"):
        bridge.get("k")
    assert repr(bridge) == f"SyncBridge({native!r})"
    with pytest.raises(NotSupportedError, match="event loop"):
        pickle.dumps(bridge)


def test_there_and_back():
    store, native = DictStore(), Native()
    face = to_async(store)
    assert type(face) is AsyncDictStore
    assert to_async(face) is face
    assert to_sync(face) is store
    assert to_sync(store) is store
    assert to_sync(native).async_store is native
    for wrong in (native, "text", None, DictStore):
        with pytest.raises(ConfigError):
            to_async(wrong)
        with pytest.raises(ConfigError):
            AsyncFace(wrong)
    for wrong in ("text", None, DictStore):
        with pytest.raises(ConfigError):
            to_sync(wrong)
        with pytest.raises(ConfigError):
            AsyncGzipStore(wrong)


@asynchronous
async def test_a_cancelled_read_lets_go_of_a_native_store():
    native = Native()
    async with AsyncGzipStore(native) as store:
        native.hang_up()
        for start, name in [
            (lambda: store.get("k"), "get"),
            (lambda: store.exists("k"), "exists"),
            (lambda: anext(store.keys()), "keys"),
            (lambda: store.open("k"), "get"),
        ]:
            native.hanging.clear()
            task = asyncio.ensure_future(start())
            await native.is_hanging()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert native.cancelled.pop() == name
        native.hang = None


@asynchronous
async def test_a_cancelled_write_waits_for_a_native_store():
    native = Native()
    async with AsyncGzipStore(native) as store:
        await cancelled_while_it_hangs(native, store.put("k", b"1"))
        assert native.cancelled == []
        native.hang = None
        assert await store.get("k") == b"1"


@asynchronous
async def test_a_read_that_was_cancelled_does_not_begin_with_a_native_store():
    native = Native()
    gated = GatedStore(to_sync(native), "get")
    async with to_async(gated) as store:
        native.hang_up()
        task = asyncio.create_task(store.get("k"))
        await gated.gates["get"].is_reached()
        task.cancel()
        await turns()
        gated.gates["get"].opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not native.loops
        native.hang = None


@asynchronous
async def test_a_cancelled_write_finishes_what_it_reads():
    class Looking(WrapperStore):
        def put(self, key, data):
            if not self.store.exists(key):
                self.store.put(key, data)

    native = Native()
    async with async_class(Looking)(native) as store:
        await cancelled_while_it_hangs(native, store.put("k", b"1"))
        assert native.objects == {"k": b"1"}


@asynchronous
async def test_a_cancelled_read_finishes_what_it_writes():
    main, cache = Native(), Native()
    main.objects["k"] = b"1"
    async with AsyncCachingStore(main, cache) as store:
        cache.get = lambda _: main.get("absent")  # only its writes hang
        await cancelled_while_it_hangs(cache, store.get("k"))
        assert cache.cancelled == []


@asynchronous
async def test_a_cancelled_read_does_not_go_on_to_another_store():
    native, other = Native(), GatedStore(DictStore())
    other.put("k", b"1")
    async with AsyncMirroringStore([native, other]) as store:
        native.hang_up()
        task = asyncio.create_task(store.get("k"))
        await native.is_hanging()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        native.hang = None
        assert other.calls["get"] == 0


@asynchronous
async def test_a_native_call_that_somebody_else_cancels_is_an_outage():
    class Cancelled(Native):
        async def put(self, key, data):
            raise asyncio.CancelledError

    async with AsyncGzipStore(Cancelled()) as store:
        with pytest.raises(UnavailableError) as caught:
            await store.put("k", b"1")
        assert caught.value.outcome == "unknown"


@asynchronous
async def test_a_listing_of_a_native_store_is_closed():
    native = NativeWithIterator()
    async with to_async(to_sync(native)) as store:
        async with contextlib.aclosing(store.keys()) as keys:
            assert await anext(keys) == "0"
            assert native.open_listings == 1
        await until(lambda: native.open_listings == 0)
        listing = await asyncio.to_thread(store.sync_store.keys)
        assert next(listing) == "0"
        assert native.open_listings == 1
        del listing  # in the loop's own thread, which must not wait for itself
        await until(lambda: native.open_listings == 0)


@asynchronous
async def test_maintenance_over_a_bridge():
    batches = []

    class Counting(Native):
        async def delete_many(self, keys):
            batches.append(len(found := list(keys)))
            await super().delete_many(found)
            if len(batches) == 1:
                raise PermissionDeniedError("not that one")

        async def remove_leftover(self, name):
            batches.append(name)

    native = Counting()
    native.objects = {str(n): b"" for n in range(2500)}

    def work() -> None:
        with pytest.raises(PermissionDeniedError, match="not that one"):
            bridge.delete_many(bridge.keys())  # which asks the loop while it goes on
        bridge.sync(bridge.keys())
        bridge.remove_leftover("x")

    bridge = to_sync(native, asyncio.get_running_loop())
    await asyncio.to_thread(work)
    assert batches == [1000, 1000, 500, "x"]
    assert native.objects == {}


def test_what_is_let_go_after_its_loop_is_forgotten():
    native = NativeWithIterator()

    async def main():
        bridge = to_sync(native, asyncio.get_running_loop())
        return await asyncio.to_thread(bridge.keys)

    keys = asyncio.run(main())
    assert next(keys) == "0"
    keys.close()  # its generator was closed with the loop
    assert native.open_listings == 0


def test_a_loop_that_is_closed_just_now():
    class Closing:
        def is_closed(self):
            return False

        def is_running(self):
            return True

        def call_soon_threadsafe(self, *args, **kwargs):
            raise RuntimeError("Event loop is closed")

    with pytest.raises(ClosedError, match="was closed"):
        to_sync(Native(), Closing()).get("k")


@asynchronous
async def test_a_face_that_is_closed_just_now():
    store = AsyncDictStore()
    threads = store._threads
    ended = threads._pool()
    ended.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        await store.get("k")

    def close_meanwhile():
        threads.closed = True
        return ended

    threads._pool = close_meanwhile
    with pytest.raises(ClosedError):
        await store.get("k")


@asynchronous
async def test_a_sources_files_outlive_it():
    class Ranged(Native):
        capabilities = Capabilities(ranges=True)
        open_readers = 0

        @opening
        async def open(self, key):
            outer = self

            class Reader(BytesReader):
                async def close(self):
                    outer.open_readers -= 1
                    await super().close()

            self.open_readers += 1
            return Reader(await self.get(key))

    native = Ranged()
    native.objects["k"] = big(1)
    bridge = to_sync(native, asyncio.get_running_loop())

    def work() -> None:
        with bridge.source("k") as source:
            one, other = source.open(), source.open()
        assert native.open_readers == 1
        assert one.read(3) == other.read(3) == big()[:3]
        assert one.seek(-2, io.SEEK_END) == len(big(1)) - 2
        assert one.read() == big(1)[-2:]
        assert other.tell() == 3
        with pytest.raises(ValueError, match="negative"):
            other.seek(-1)
        assert other.read() == big(1)[3:]
        one.close()
        assert native.open_readers == 1
        other.close()
        assert native.open_readers == 0

    await asyncio.to_thread(work)


# --- classes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(aio.__all__))
def test_every_name_is_there(name):
    found = getattr(aio, name)
    assert found.__doc__
    if name.endswith(("Store", "Backend")) and isinstance(found, type) and name[5:] in REGISTERED:
        assert issubclass(found, AsyncFace)
        assert found is async_class(store_types.get(name.removeprefix("Async")))
        assert found.__module__ == "blobstore.aio"
        assert found.sync_class.__name__ in found.__doc__


REGISTERED = set(store_types.names()) - set(store_types.third_party())


@pytest.mark.parametrize("name", sorted(REGISTERED))
def test_every_store_has_an_async_name(name):
    assert getattr(aio, f"Async{name}") is async_class(store_types.get(name))


def test_a_new_store_type_has_its_names_without_a_line(monkeypatch):
    monkeypatch.setitem(store_types._builtin, "RichStore", f"{__name__}:Rich")
    try:
        assert blobstore.RichStore is Rich
        assert aio.AsyncRichStore is async_class(Rich)
    finally:
        vars(blobstore).pop("RichStore", None)
        vars(aio).pop("AsyncRichStore", None)
    with pytest.raises(AttributeError):
        aio.RichStore  # noqa: B018


def test_names_that_type_checkers_see_are_those_that_there_are():
    text = Path(blobstore.aio.__file__).read_text(encoding="utf-8")
    seen = {
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("blobstore.aio")
        for alias in node.names
        if alias.asname == alias.name
    }
    assert seen == set(aio.__all__)


def declared() -> dict[str, dict[str, type]]:
    """What the module `names` says that each class has beyond the interface."""
    text = Path(names.__file__).read_text(encoding="utf-8")
    found: dict[str, dict[str, type]] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if not isinstance(part, ast.Expr)]
            found[node.name] = {method.name: type(method) for method in methods}
        elif isinstance(node, ast.Assign) and node.targets[0].id.startswith("Async"):
            found[node.targets[0].id] = found[node.value.id]
    return found


@pytest.mark.parametrize("name", sorted(name[5:] for name in aio.__all__ if name[5:] in REGISTERED))
def test_what_type_checkers_see_of_a_class_is_what_it_has(name):
    hooks = {"transform", "reverse_transform"}
    hooks |= {"transform_key", "reverse_transform_key", "transform_prefix"}
    made = {
        attribute: ast.AsyncFunctionDef if asyncio.iscoroutinefunction(value) else ast.FunctionDef
        for attribute, value in vars(getattr(aio, f"Async{name}")).items()
        if not attribute.startswith("_") and attribute not in {"sync_class", *hooks}
    }
    assert declared()[f"Async{name}"] == made


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'AsyncNothing'"):
        aio.AsyncNothing  # noqa: B018
    assert dir(aio) == sorted(aio.__all__)


class Rich(DictStore):
    """Has more than the interface asks for."""

    not_io: ClassVar[frozenset[str]] = frozenset({"count"})

    def __init__(self, given=("a",), *, limit="theirs"):
        super().__init__()
        self.given, self.limit = given, limit

    @property
    def first(self):
        """The first name."""
        return self.given[0]

    @classmethod
    def with_names(cls, *given):
        return cls(given)

    @classmethod
    def kinds(cls):
        return ["rich"]

    @staticmethod
    def add(a, b):
        return a + b

    def count(self):
        return threading.get_ident()

    def slow_count(self, *, extra):
        return threading.get_ident(), extra

    def all_names(self, prefix=""):
        yield from (prefix + name for name in self.given)

    def file(self):
        return io.BytesIO(b"content")


class Richer(Rich):
    not_io: ClassVar[frozenset[str]] = frozenset({"more"})

    def more(self):
        return "more"


@asynchronous
async def test_what_a_class_has_beyond_the_interface():
    cls = async_class(Richer)
    assert cls.__module__ == __name__
    assert cls.__name__ == "AsyncRicher"
    assert cls.kinds() == ["rich"]
    assert cls.add(1, 2) == 3
    async with cls.with_names("x", "y") as store:
        assert isinstance(store, cls)
        assert store.first == "x"
        here = threading.get_ident()
        assert store.count() == here
        assert store.more() == "more"
        there, extra = await store.slow_count(extra=1)
        assert there != here
        assert extra == 1
        assert [name async for name in store.all_names(prefix="-")] == ["-x", "-y"]
        reader = await store.file()
        assert await reader.read() == b"content"
        await reader.close()
    with pytest.raises(ClosedError):
        await store.slow_count(extra=1)


@asynchronous
async def test_a_file_that_a_cancelled_call_opened_is_closed():
    opened = []
    gate = Gate()

    class Filing(DictStore):
        def file(self):
            opened.append(io.BytesIO(b"content"))
            gate.pass_through()
            return opened[-1]

    async with async_class(Filing)() as store:
        task = asyncio.create_task(store.file())
        await gate.is_reached()
        task.cancel()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert opened[0].closed


@asynchronous
async def test_a_store_may_have_a_limit_of_its_own():
    async with async_class(Rich)(limit="its own") as store:
        assert store.sync_store.limit == "its own"
        assert store.limit == 32
    async with async_class(Rich).over(Rich(), limit=3) as store:
        assert store.limit == 3


def test_async_class_takes_classes_of_stores():
    assert async_class(Rich) is async_class(Rich)
    for wrong in (Native, "DictStore", DictStore(), int):
        with pytest.raises(ConfigError, match="subclass of ObjectStore"):
            async_class(wrong)


@asynchronous
async def test_the_extras_of_our_own_stores(tmp_path):
    changes = []
    async with AsyncNotifyingStore(AsyncDictStore()) as store:
        assert store.on_put(changes.append) == changes.append
        store.on_change(lambda *args: changes.append(args[1:]))
        store.sync_store._handlers.pop(0)
        await store.put("k", b"1")
    assert changes == [("put", "k", None)]

    main, cache = AsyncDictStore(), AsyncDictStore()
    async with AsyncCachingStore(main, cache) as store:
        await store.put("k", b"1")
        await store.get("k")
        await store.clear()
        assert await listed(cache) == []
        assert store.main_store is main.sync_store

    near, far = AsyncDictStore(), AsyncDictStore()
    async with AsyncMirroringStore({"near": near, "far": far}) as store:
        await far.put("k", b"1")
        assert (await store.repair()).copied == {"near": ("k",)}

    async with AsyncFilesystemBlobBackend(tmp_path) as store:
        path = await store.write_blob("abc123", b"data")
        assert await store.read_blob(path) == b"data"
        async with await store.read_blob_stream("abc123") as reader:
            assert await reader.read(2) == b"da"
        assert await store.get_size("abc123") == 4
        assert await store.delete_blob("abc123") is True


def test_what_wrappers_let_their_subclasses_write_is_no_io():
    assert aio.AsyncPrefixStore(AsyncDictStore(), "a/").transform_key("b") == "a/b"
    assert aio.AsyncJsonStore(AsyncDictStore()).reverse_transform(b"[1]") == [1]


@asynchronous
async def test_what_a_store_answers_is_handed_on():
    async with aio.AsyncExceptionLoggingStore(AsyncDictStore(), logger="blobstore.test") as store:
        sync = store.sync_store
        assert await store.get("absent") == sync.get("absent")
        assert await store.delete("absent") == sync.delete("absent")
    async with aio.AsyncJsonStore(AsyncDictStore()) as store:
        await store.put("k", {"a": [1, 2.5, None]})
        assert await store.get("k") == {"a": [1, 2.5, None]}
    async with async_class(BufferStore)(AsyncDictStore()) as store:
        await store.put("k", io.BytesIO(b"from a file"))
        assert (await store.get("k")).read() == b"from a file"


def test_reprs(tmp_path):
    root = str(tmp_path)
    assert repr(AsyncDictStore()) == "AsyncDictStore()"
    assert repr(AsyncFilesystemStore(root)) == f"AsyncFilesystemStore({root!r})"
    assert repr(AsyncFace(DictStore())) == "AsyncFace(DictStore())"
    assert repr(AsyncGzipStore(AsyncDictStore())).startswith("AsyncGzipStore(DictStore()")

    class Unnamed(DictStore):
        def __repr__(self):
            return "<unnamed>"

    assert repr(to_async(Unnamed())) == "AsyncUnnamed(<unnamed>)"


def test_pickling(tmp_path):
    async def use(store) -> None:
        async with store:
            await store.put("k", b"1")
            async with pickle.loads(pickle.dumps(store)) as copy:
                assert type(copy) is type(store)
                assert copy.limit == 5
                assert await copy.get("k") == b"1"

    asyncio.run(use(AsyncFilesystemStore(tmp_path / "a", limit=5)))
    asyncio.run(use(AsyncGzipStore(AsyncFilesystemStore(tmp_path / "b"), limit=5)))
    asyncio.run(use(AsyncFace(FilesystemStore(tmp_path / "c"), limit=5)))
    asyncio.run(use(to_async(ThirdParty(tmp_path / "d"), limit=5)))
    asyncio.run(use(OwnFace(tmp_path / "e", limit=5)))
    with pytest.raises(NotSupportedError, match="pickled"):
        pickle.dumps(AsyncDictStore())


class ThirdParty(FilesystemStore):
    """Somebody else's store, whose async class nobody can import."""


class OwnFace(AsyncFilesystemStore):
    """Somebody's subclass of a class that was made."""


# --- between stores ----------------------------------------------------------------------------------


@asynchronous
async def test_copy_sync_and_clear(tmp_path):
    native = Native()
    async with AsyncDictStore() as source, AsyncFilesystemStore(tmp_path) as target:
        for number in range(50):
            await source.put(f"k{number}", b"%d" % number)
        report = await async_copy_store(source, target)
        assert (report.copied, report.cancelled) == (50, False)
        await target.put("extra", b"")
        await source.put("k0", b"changed")
        report = await async_sync_stores(source, target, delete=True)
        assert (report.copied, report.deleted) == (1, 1)
        assert await target.get("k0") == b"changed"
        assert (await async_sync_stores(target, AsyncGzipStore(native), workers=2)).copied == 50
        assert len(native.objects) == 50
        assert (await async_copy_store(native, source, overwrite=False)).unchanged == 50
        assert (await async_copy_store(native, native)).unchanged == 50
        plain = DictStore()
        assert (await async_copy_store(target, plain, prefix="k1", dry_run=True)).copied == 11
        assert list(plain.keys()) == []
        assert (await async_clear_store(target, prefix="k1")).deleted == 11
        assert len(await listed(target)) == 39
        assert (await async_clear_store(native)).deleted == 50
        with pytest.raises(NotSupportedError):
            await async_copy_store(AsyncWriteonlyStore(source), target)
        with pytest.raises(ConfigError):
            await async_copy_store(source, "text")
        with pytest.raises(ConfigError):
            await async_clear_store(target, progress="text")
        with pytest.raises(ConfigError):
            await async_clear_store(target, cancelled=5)


@asynchronous
@pytest.mark.parametrize("is_async", [False, True])
async def test_progress_is_told_on_the_loop(is_async):
    told = []

    def note(step) -> None:
        told.append((step.key, threading.get_ident()))

    async def note_later(step) -> None:
        await asyncio.sleep(0)
        note(step)

    async with AsyncDictStore() as store:
        for key in "abc":
            await store.put(key, b"")
        await async_clear_store(store, progress=note_later if is_async else note)
    assert sorted(told) == [(key, threading.get_ident()) for key in "abc"]


@asynchronous
async def test_an_error_of_progress_ends_it():
    def fail(step) -> None:
        raise RuntimeError("enough")

    async with AsyncDictStore() as store:
        await store.put("k", b"")
        with pytest.raises(RuntimeError, match="enough"):
            await async_copy_store(store, AsyncDictStore(), progress=fail)


@asynchronous
async def test_a_transfer_that_is_cancelled_stops_between_objects(tmp_path):
    source = DictStore()
    for number in range(500):
        source.put(f"k{number:03}", b"%d" % number)
    copied = []
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def progress(step) -> None:
        copied.append(step.key)
        if len(copied) == 10:
            reached.set()
            await go_on.wait()

    async with AsyncFilesystemStore(tmp_path) as target:
        task = asyncio.create_task(async_copy_store(source, target, progress=progress, workers=2))
        await reached.wait()
        task.cancel()
        await turns()
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        found = await listed(target)
        assert 10 <= len(found) < 100
        for key in found:
            assert await target.get(key) == source.get(key)
        assert [leftover async for leftover in target.leftovers()] == []
        assert len(workers()) <= 1 + target.limit
        # The same call goes on from where it was.
        assert (await async_sync_stores(source, target)).copied == 500 - len(found)


@asynchronous
async def test_a_transfer_asks_whether_to_go_on():
    calls = itertools.count()
    async with AsyncDictStore() as source, AsyncDictStore() as target:
        for number in range(100):
            await source.put(str(number), b"")
        report = await async_copy_store(source, target, cancelled=lambda: next(calls) > 20)
        assert report.cancelled
        assert report.copied < 100


def test_the_options_of_transfers_are_those_of_the_functions():
    import inspect

    for function, options, own in [
        (copy_store, TransferOptions, {"from_store", "to_store", "overwrite"}),
        (sync_stores, SyncOptions, {"from_store", "to_store", "delete"}),
        (clear_store, TransferOptions, {"store"}),
    ]:
        parameters = inspect.signature(function).parameters
        assert set(parameters) == own | set(options.__annotations__)
        twin = inspect.signature(getattr(aio, f"async_{function.__name__}")).parameters
        for name in own:
            assert twin[name].default == parameters[name].default
