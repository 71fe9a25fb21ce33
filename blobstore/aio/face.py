"""AsyncFace: any object store, with calls that are awaited and done in worker threads."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from blobstore.aio.bridge import SyncBridge
from blobstore.aio.face_streams import ThreadReader, ThreadSink, put_in_pieces, size_of
from blobstore.aio.store import AsyncObjectStore, AsyncReader, AsyncSink, each, opening, take
from blobstore.aio.threads import DEFAULT_LIMIT, Threads
from blobstore.entry import ObjectStat
from blobstore.errors import ConfigError, StorageError
from blobstore.protocols import Capabilities, Leftover, ObjectStore
from blobstore.streams import CHUNK

_MANY = 1000
"""Keys that are handed over in one hop."""


class AsyncFace(AsyncObjectStore):
    """An object store whose calls are awaited: each is done in a worker thread.

    A call that is cancelled before it began is dropped. One that runs comes to its end, then
    `CancelledError` is raised: nothing goes on behind the caller's back. A large `put` stops in the
    middle, and leaves nothing.

    May be used by several event loops, and by a forked child. Where a call fails, the error is that
    of the store.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.
    limit : int
        Calls that are done at once; the others wait for their turn.

    Raises
    ------
    ConfigError
        An argument is wrong.

    Attributes
    ----------
    sync_store : ObjectStore
        The store.

    Examples
    --------
    >>> import asyncio
    >>> from blobstore.backends import DictStore
    >>> async def main():
    ...     async with AsyncFace(DictStore()) as store:
    ...         await store.put("key", b"1")
    ...         return await store.get("key"), [key async for key in store.keys()]
    >>> asyncio.run(main())
    (b'1', ['key'])
    """

    sync_store: ObjectStore

    def __init__(self, store: ObjectStore, *, limit: int = DEFAULT_LIMIT) -> None:
        if not isinstance(store, ObjectStore):
            raise ConfigError(f"store must be an ObjectStore without await, not {store!r}")
        self._set_up(store, limit, bridges=[store] if isinstance(store, SyncBridge) else [])

    @classmethod
    def over(cls, store: ObjectStore, *, limit: int = DEFAULT_LIMIT) -> Self:
        """Make the face of a store that there is already, whatever the class's own arguments."""
        face = cls.__new__(cls)
        AsyncFace.__init__(face, store, limit=limit)
        return face

    def _set_up(
        self,
        store: ObjectStore,
        limit: int,
        *,
        bridges: Iterable[SyncBridge] = (),
        inner: Iterable[Threads] = (),
    ) -> None:
        """Take over a store, and what the faces had that were given to it."""
        self.sync_store = store
        self._threads = Threads(limit)
        self._inner: tuple[Threads, ...] = ()
        self._look_after(bridges, inner)

    def _look_after(self, bridges: Iterable[SyncBridge], inner: Iterable[Threads]) -> None:
        """Tell bridges which loop is theirs, and end the threads of others with these."""
        self._bridges = tuple(bridges)
        self._inner += tuple(inner)
        self._threads.tell_loop = tuple(bridge.remember for bridge in self._bridges)

    def give_away(self) -> tuple[ObjectStore, tuple[SyncBridge, ...], tuple[Threads, ...]]:
        """Hand the store to another face, with what that one has to look after from now on."""
        return self.sync_store, self._bridges, (self._threads, *self._inner)

    @property
    def limit(self) -> int:
        """Calls that are done at once."""
        return self._threads.limit

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store."""
        return self.sync_store.capabilities

    async def get(self, key: str) -> Any:
        """Read a whole object; `KeyNotFoundError` if there is none."""
        return await self._threads.run(lambda: self.sync_store.get(key), reads=True)

    async def put(self, key: str, data: Any) -> Any:
        """Write a whole object, replacing any.

        Over 1 MiB it goes through the store's writer, if that streams, so that a cancellation is
        heard between the pieces.
        """
        can = self.capabilities
        if size_of(data) > CHUNK and can.streams and can.values == "bytes":
            return await self._threads.run(lambda: put_in_pieces(self.sync_store, key, data))
        put: Callable[[str, Any], Any] = self.sync_store.put  # what it answers is handed on
        return await self._threads.run(lambda: put(key, data))

    async def exists(self, key: str) -> bool:
        """Whether there is such an object; an outage is an error, not False."""
        return await self._threads.run(lambda: self.sync_store.exists(key), reads=True)

    async def delete(self, key: str) -> Any:
        """Remove an object; `KeyNotFoundError` if there is none."""
        delete: Callable[[str], Any] = self.sync_store.delete
        return await self._threads.run(lambda: delete(key))

    def keys(self, prefix: str = "") -> AsyncGenerator[str, None]:
        """Give the keys that start with `prefix`, in no particular order, lazily."""
        return self._threads.iterate(lambda: self.sync_store.keys(prefix))

    async def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read bytes ``[start, stop)`` of an object, clipped at its end."""
        return await self._threads.run(
            lambda: self.sync_store.get_range(key, start, stop), reads=True
        )

    @opening
    async def open(self, key: str) -> AsyncReader:
        """Open an object for reading: ``async with store.open(key) as reader``, or await it."""
        file = await self._threads.run(
            lambda: self.sync_store.open(key), reads=True, undo=lambda file: file.close()
        )
        return ThreadReader(self._threads, file)

    @opening
    async def writer(self, key: str, size_hint: int | None = None) -> AsyncSink:
        """Write an object piece by piece: published on clean exit, nothing left on error."""
        sink = await self._threads.run(
            lambda: self.sync_store.writer(key, size_hint), undo=lambda sink: sink.abort()
        )
        return ThreadSink(self._threads, sink)

    async def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of an object; `KeyNotFoundError` if there is none."""
        return await self._threads.run(lambda: self.sync_store.stat(key), reads=True)

    async def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of its own; None where there is no such file."""
        return await self._threads.run(lambda: self.sync_store.local_path(key), reads=True)

    async def delete_many(self, keys: Iterable[str] | AsyncIterable[str]) -> None:
        """Remove objects; absent ones are fine.

        One that cannot be removed does not keep the others; its error is raised at the end.
        """
        failed: StorageError | None = None
        iterator = each(keys)
        more = True
        while more:
            some = await take(iterator, _MANY)
            more = len(some) == _MANY
            try:
                await self._threads.run(partial(self.sync_store.delete_many, some))
            except StorageError as exc:
                failed = exc
        if failed is not None:
            raise failed

    async def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store, replacing the target."""
        await self._threads.run(lambda: self.sync_store.copy(source, target))

    async def put_if_absent(self, key: str, data: Any) -> bool:
        """Write an object unless there is one; True if this call wrote it."""
        return await self._threads.run(lambda: self.sync_store.put_if_absent(key, data))

    async def sync(self, keys: Iterable[str] | AsyncIterable[str]) -> None:
        """Return once these objects would survive a power cut."""
        iterator = each(keys)
        more = True
        while more:
            some = await take(iterator, _MANY)
            more = len(some) == _MANY
            await self._threads.run(partial(self.sync_store.sync, some))

    def leftovers(self) -> AsyncGenerator[Leftover, None]:
        """What interrupted writers left behind, as far as the store can tell."""
        return self._threads.iterate(self.sync_store.leftovers)

    async def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`; an absent one is fine."""
        await self._threads.run(lambda: self.sync_store.remove_leftover(name))

    async def close(self) -> None:
        """Close the store, and end the threads. Calling it again does nothing."""
        await self._close(self.sync_store.close)

    async def __aenter__(self) -> Self:
        try:
            await self._threads.run(self.sync_store.__enter__)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._close(lambda: self.sync_store.__exit__(kind, exc, tb))

    def __repr__(self) -> str:
        shown = repr(self.sync_store)
        name = type(self.sync_store).__name__
        inside = shown.removeprefix(name + "(").removesuffix(")")
        if type(self) is AsyncFace or inside == shown:
            inside = shown
        return f"{type(self).__name__}({inside})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_threads": self.limit, "_inner": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _threads=Threads(state["_threads"]))

    async def _close(self, work: Callable[[], object]) -> None:
        def finish() -> None:
            try:
                work()
            finally:
                for threads in self._inner:
                    threads.end()

        await self._threads.close(finish)
