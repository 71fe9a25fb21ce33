"""AsyncObjectStore: an object store whose calls are awaited; five methods are to be written."""

from __future__ import annotations

import asyncio
import functools
import io
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
)
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar

from blobstore.entry import ObjectStat
from blobstore.errors import InvalidInputError, KeyNotFoundError, StorageError
from blobstore.protocols import Capabilities, Leftover, check_range
from blobstore.streams import CHUNK, Buffer, as_contiguous

P = ParamSpec("P")
T = TypeVar("T")


class _Entered(Protocol):
    """What can be entered and left, awaiting both."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Any: ...


E = TypeVar("E", bound=_Entered)


class Opening(Generic[E]):
    """Something that is opened when it is awaited, or entered with ``async with``."""

    def __init__(self, start: Callable[[], Awaitable[E]]) -> None:
        self._start = start
        self._opened: E | None = None

    def __await__(self) -> Generator[Any, Any, E]:
        return self._start().__await__()

    async def __aenter__(self) -> E:
        self._opened = opened = await self._start()
        await opened.__aenter__()
        return opened

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._opened is not None
        await self._opened.__aexit__(kind, exc, tb)


class _Each(Generic[T]):
    """Goes through an ordinary iterable as if it were asynchronous."""

    def __init__(self, items: Iterable[T]) -> None:
        self._iterator = iter(items)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        for item in self._iterator:
            return item
        raise StopAsyncIteration


def each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Go through what is iterable in either way."""
    return aiter(items) if isinstance(items, AsyncIterable) else _Each(items)


async def take(iterator: AsyncIterator[T], count: int) -> list[T]:
    """Take the next items, fewer than `count` only at the end."""
    batch = []
    async for item in iterator:
        batch.append(item)
        if len(batch) == count:
            break
    return batch


def opening(method: Callable[P, Awaitable[E]]) -> Callable[P, Opening[E]]:
    """Let the result of an ``async def open`` or ``writer`` be awaited, or entered at once.

    Examples
    --------
    >>> class Store(AsyncObjectStore):
    ...     @opening
    ...     async def open(self, key):
    ...         return BytesReader(b"abc")
    """

    @functools.wraps(method)
    def start(*args: P.args, **kwargs: P.kwargs) -> Opening[E]:
        return Opening(lambda: method(*args, **kwargs))

    return start


class AsyncReader(ABC):
    """An object that is read, seekable; to be closed, or used with ``async with``.

    One call at a time. Iterating over it gives what is left in pieces of up to 1 MiB.
    """

    @abstractmethod
    async def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, fewer only at the end; all that is left if it is negative."""

    @abstractmethod
    async def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a position, and return it."""

    @abstractmethod
    def tell(self) -> int:
        """Where the next read begins; no I/O, so not awaited."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of it. Calling it again does nothing."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read(CHUNK):
            yield piece

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


class BytesReader(AsyncReader):
    """A reader over bytes in memory.

    Examples
    --------
    >>> reader = BytesReader(b"abc")
    >>> asyncio.run(reader.read(2)), reader.tell()
    (b'ab', 2)
    """

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    async def read(self, size: int = -1, /) -> bytes:
        """Take the next bytes."""
        return self._file.read(size)

    async def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Where the next read begins."""
        return self._file.tell()

    async def close(self) -> None:
        """Let go of the bytes."""
        self._file.close()


class AsyncSink(ABC):
    """One object being written: published as a whole on clean exit, or not at all.

    One call at a time. A write that is cancelled leaves nothing to be published.

    Attributes
    ----------
    location : str
        Where the bytes are; valid after a clean exit.
    """

    location: str = ""

    @abstractmethod
    async def write(self, data: Buffer, /) -> int:
        """Append bytes; they may be reused by the caller afterwards. Returns how many."""

    @abstractmethod
    async def commit(self) -> None:
        """Publish what was written."""

    @abstractmethod
    async def abort(self) -> None:
        """Leave nothing behind. Calling it again does nothing, nor does it after `commit`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is not None:
            await self._abort_after(exc)
            return
        try:
            await self.commit()
        except BaseException as failure:
            await self._abort_after(failure)
            raise

    async def _abort_after(self, failure: BaseException) -> None:
        """Abort; if that fails, too, a cancellation is still told as one."""
        try:
            await self.abort()
        except BaseException:
            if isinstance(failure, asyncio.CancelledError):
                raise failure  # noqa: B904 - the other is its context
            raise


class GatheringSink(AsyncSink):
    """A sink that ends in bytes, which are given to `publish`; for values that fit in memory.

    Parameters
    ----------
    publish : callable
        Awaited with the whole content at commit; its result becomes `location`.
    """

    def __init__(self, publish: Callable[[bytes], Awaitable[str]]) -> None:
        self._publish = publish
        self._chunks: list[bytes] | None = []

    async def write(self, data: Buffer, /) -> int:
        """Append a copy of the bytes."""
        chunk = bytes(as_contiguous(data))
        self._gathered().append(chunk)
        return len(chunk)

    async def commit(self) -> None:
        """Publish the content."""
        content = b"".join(self._gathered())
        self._chunks = None
        self.location = await self._publish(content)

    async def abort(self) -> None:
        """Forget the content."""
        self._chunks = None

    def _gathered(self) -> list[bytes]:
        if self._chunks is None:
            raise finished()
        return self._chunks


class AsyncObjectStore(ABC):
    """Bytes under keys, each call awaited: what a store with asynchronous I/O subclasses.

    Five methods are to be written; the rest have working defaults. They keep the rules of
    `ObjectStore`: absent objects are `KeyNotFoundError`, no method keeps a reference to a caller's
    buffer, after `close` each raises `ClosedError`. Many calls may run at once.

    Examples
    --------
    >>> class Mine(AsyncObjectStore):
    ...     def __init__(self):
    ...         self.kept = {}
    ...     async def get(self, key):
    ...         if key not in self.kept:
    ...             raise KeyNotFoundError(f"there is no object {key!r}", location=key)
    ...         return self.kept[key]
    ...     async def put(self, key, data):
    ...         self.kept[key] = bytes(data)
    ...     async def exists(self, key):
    ...         return key in self.kept
    ...     async def delete(self, key):
    ...         await self.get(key)
    ...         del self.kept[key]
    ...     async def keys(self, prefix=""):
    ...         for key in list(self.kept):
    ...             if key.startswith(prefix):
    ...                 yield key
    >>> async def main():
    ...     async with Mine() as store:
    ...         async with store.writer("greeting") as sink:
    ...             await sink.write(b"hello")
    ...         return await store.get_range("greeting", 1, 3), [key async for key in store.keys()]
    >>> asyncio.run(main())
    (b'el', ['greeting'])
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do."""
        return Capabilities()

    @abstractmethod
    async def get(self, key: str) -> bytes:
        """Read a whole object; `KeyNotFoundError` if there is none."""

    @abstractmethod
    async def put(self, key: str, data: Buffer) -> None:
        """Write a whole object, replacing any: a reader sees the old or the new bytes."""

    @abstractmethod
    async def exists(self, key: str) -> bool:
        """Whether there is such an object; an outage is an error, not False."""

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Remove an object; `KeyNotFoundError` if there is none."""

    @abstractmethod
    def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Give the keys that start with `prefix`, in no particular order, lazily.

        Errors come from the first step at the latest. Survives changes made meanwhile: a key that
        was there all the time is given once.
        """

    async def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read bytes ``[start, stop)`` of an object, clipped at its end."""
        check_range(start, stop)
        return (await self.get(key))[start:stop]

    @opening
    async def open(self, key: str) -> AsyncReader:
        """Open an object for reading: ``async with store.open(key) as reader``, or await it."""
        return BytesReader(await self.get(key))

    @opening
    async def writer(self, key: str, size_hint: int | None = None) -> AsyncSink:
        """Write an object piece by piece: published on clean exit, nothing left on error.

        Parameters
        ----------
        key : str
        size_hint : int, optional
            About how many bytes will come.
        """

        async def publish(data: bytes) -> str:
            await self.put(key, data)
            return key

        return GatheringSink(publish)

    async def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of an object; `KeyNotFoundError` if there is none."""
        return ObjectStat(size=len(await self.get(key)))

    async def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of its own; None where there is no such file."""
        return None

    async def delete_many(self, keys: Iterable[str] | AsyncIterable[str]) -> None:
        """Remove objects; absent ones are fine.

        One that cannot be removed does not keep the others; its error is raised at the end.
        """
        failed: StorageError | None = None
        async for key in each(keys):
            try:
                await self.delete(key)
            except KeyNotFoundError:
                continue
            except StorageError as exc:
                failed = exc
        if failed is not None:
            raise failed

    async def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store, replacing the target."""
        await self.put(target, await self.get(source))

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one; True if this call wrote it."""
        if await self.exists(key):
            return False
        await self.put(key, data)
        return True

    async def sync(self, keys: Iterable[str] | AsyncIterable[str]) -> None:
        """Return once these objects would survive a power cut."""

    async def leftovers(self) -> AsyncIterator[Leftover]:
        """What interrupted writers left behind, as far as this store can tell."""
        nothing: tuple[Leftover, ...] = ()
        for leftover in nothing:
            yield leftover

    async def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`; an absent one is fine."""

    async def close(self) -> None:
        """Let go of files, connections and threads. Calling it again does nothing."""

    async def aclose(self) -> None:
        """Do what `close` does, for `contextlib.aclosing`."""
        await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


def finished() -> InvalidInputError:
    """Make the error of a writer that is used after its end."""
    return InvalidInputError(
        "this writer was committed, aborted or cancelled: open a new one, and write all of it again"
    )
