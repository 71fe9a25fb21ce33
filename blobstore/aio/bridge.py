"""A store without ``await`` over an `AsyncObjectStore`: its calls are done on the event loop.

For wrappers, which know only stores without ``await``: the thread in which one works waits until
the loop has done what the native store beneath it was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NoReturn

from blobstore.aio.loop_hop import LoopHop
from blobstore.aio.loop_streams import hold, open_file, sink_over
from blobstore.aio.store import AsyncObjectStore
from blobstore.entry import ObjectStat
from blobstore.errors import ConfigError, NotSupportedError, StorageError
from blobstore.protocols import Capabilities, Leftover, ObjectStore
from blobstore.streams import Buffer, Sink, Source
from blobstore.wrappers.stream import spooled

_MANY = 1000
"""Keys that are handed to the loop at once."""


class SyncBridge(ObjectStore):
    """An object store whose calls run on the event loop of an asynchronous one.

    They are made in other threads than the loop's own, where waiting for the loop would never end.
    A call that only reads ends with the awaited call that it is made for, if that is cancelled;
    one that writes comes to its end.

    Parameters
    ----------
    store : AsyncObjectStore
        Taken over: it is closed with this one.
    loop : asyncio.AbstractEventLoop, optional
        By default that of the awaited call that it is used for.

    Raises
    ------
    ConfigError
        `store` is something else.
    """

    def __init__(
        self, store: AsyncObjectStore, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        if not isinstance(store, AsyncObjectStore):
            raise ConfigError(f"store must be an AsyncObjectStore, not {store!r}")
        self.async_store = store
        self._hop = LoopHop(store, loop)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the asynchronous store."""
        return self.async_store.capabilities

    def remember(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this loop where a call does not tell: in the threads that a wrapper starts."""
        self._hop.remember(loop)

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        return self._hop.wait(lambda: self.async_store.get(key), reads=True)

    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object."""
        self._hop.wait(lambda: self.async_store.put(key, data))

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self._hop.wait(lambda: self.async_store.exists(key), reads=True)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._hop.wait(lambda: self.async_store.delete(key))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys that start with `prefix`."""
        return self._hop.iterate(lambda: self.async_store.keys(prefix))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object."""
        return self._hop.wait(lambda: self.async_store.get_range(key, start, stop), reads=True)

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading."""
        return open_file(self._hop, self._hop.wait(lambda: self.async_store.open(key), reads=True))

    def source(self, key: str) -> Source:
        """Prepare an object for reading in several ways."""
        if self.capabilities.local_files:
            return super().source(key)
        reader = self._hop.wait(lambda: self.async_store.open(key), reads=True)
        if self.capabilities.ranges:
            return hold(self._hop, reader)
        with open_file(self._hop, reader) as file:
            return spooled(file)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece."""
        sink = self._hop.wait(lambda: self.async_store.writer(key, size_hint))
        return sink_over(self._hop, sink, key)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of an object."""
        return self._hop.wait(lambda: self.async_store.stat(key), reads=True)

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of its own."""
        return self._hop.wait(lambda: self.async_store.local_path(key), reads=True)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are fine."""
        # The keys may come from a store that must not be asked on the loop: this one, say.
        failed: StorageError | None = None
        for some in _batches(keys):
            try:
                self._hop.wait(lambda some=some: self.async_store.delete_many(some))  # type: ignore[misc]
            except StorageError as exc:
                failed = exc
        if failed is not None:
            raise failed

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store."""
        self._hop.wait(lambda: self.async_store.copy(source, target))

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one."""
        return self._hop.wait(lambda: self.async_store.put_if_absent(key, data))

    def sync(self, keys: Iterable[str]) -> None:
        """Return once these objects would survive a power cut."""
        for some in _batches(keys):
            self._hop.wait(lambda some=some: self.async_store.sync(some))  # type: ignore[misc]

    def leftovers(self) -> Iterator[Leftover]:
        """What interrupted writers left behind."""
        return self._hop.iterate(self.async_store.leftovers)

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`."""
        self._hop.wait(lambda: self.async_store.remove_leftover(name))

    def close(self) -> None:
        """Close the asynchronous store."""
        self._hop.wait(self.async_store.close)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.async_store!r})"

    def __reduce__(self) -> NoReturn:
        raise NotSupportedError(f"{self!r} cannot be pickled: it belongs to an event loop")


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    """Cut keys into batches; an empty one if there are none, so that a closed store tells."""
    iterator = iter(keys)
    yield list(islice(iterator, _MANY))
    while batch := list(islice(iterator, _MANY)):
        yield batch
