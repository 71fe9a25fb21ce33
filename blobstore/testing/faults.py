"""A store that fails, counts and waits as a test tells it to.

::

    main = FaultyStore(DictStore())
    main.fail("put", UnavailableError("down"), key="a", after=True)   # lands, and says it did not
    stall = main.stall("get")                                         # the next get waits
    ... ; stall.reached.wait(10); ... ; stall.go.set()
    main.heal()
"""

from __future__ import annotations

import copy
import io
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

from blobstore.entry import ObjectStat
from blobstore.errors import UnavailableError
from blobstore.protocols import Leftover, ObjectStore
from blobstore.streams import Buffer, Sink, Source, WrappedReader
from blobstore.wrappers.base import WrapperSink, WrapperStore

T = TypeVar("T")

OPERATIONS = frozenset({
    "get", "put", "exists", "delete", "keys", "get_range", "open", "source", "writer", "stat",
    "local_path", "delete_many", "copy", "put_if_absent", "sync", "leftovers", "remove_leftover",
    "next", "read", "write", "commit",
})  # fmt: skip
"""The methods of a store; and "next" key of a listing, "read" from what `open` or `source` gave,
"write" and "commit" of a sink."""

WAIT = 30.0
"""Seconds after which a stalled call goes on by itself, so that a wrong test ends."""


@dataclass
class Fault:
    """When to fail, and how."""

    operations: frozenset[str]
    error: BaseException
    keys: frozenset[str] | None
    after: bool
    times: int | None

    def hits(self, operation: str, key: str | None) -> bool:
        """Whether it is for this call."""
        return operation in self.operations and (self.keys is None or key in self.keys)


@dataclass
class Stall:
    """A call that waits until it is told to go on.

    Attributes
    ----------
    reached : threading.Event
        Set when a call has come to where it waits.
    go : threading.Event
        To be set by the test.
    """

    operation: str
    key: str | None
    after: bool
    reached: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


class FaultyStore(WrapperStore):
    """Hands everything on, and fails or waits where it is told to.

    Parameters
    ----------
    store : ObjectStore

    Attributes
    ----------
    calls : collections.Counter of str
        How often each operation was begun.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> from blobstore.errors import OutOfSpaceError
    >>> store = FaultyStore(DictStore())
    >>> store.fail("put", OutOfSpaceError("full"), key="a")
    >>> store.put("b", b"1")
    >>> store.put("a", b"1")
    Traceback (most recent call last):
    ...
    blobstore.errors.OutOfSpaceError: full
    >>> store.calls["put"], store.store.exists("a")
    (2, False)
    """

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self.calls: Counter[str] = Counter()
        self._faults: list[Fault] = []
        self._stalls: list[Stall] = []
        self._mutex = threading.Lock()

    # --- what to do ------------------------------------------------------------------------------

    def fail(
        self,
        operations: str | Iterable[str] = "*",
        error: BaseException | None = None,
        *,
        key: str | Iterable[str] | None = None,
        after: bool = False,
        times: int | None = None,
    ) -> None:
        """Fail from now on, until `heal`.

        Parameters
        ----------
        operations : str or iterable of str
            Some of `OPERATIONS`; "*" for all.
        error : BaseException, optional
            A copy of it is raised; by default an `UnavailableError`.
        key : str or iterable of str, optional
            Only for these keys; for `copy` that is the target.
        after : bool
            Only once the operation has landed.
        times : int, optional
            So many times, then no more.

        Raises
        ------
        ValueError
            There is no such operation.
        """
        wanted = {operations} if isinstance(operations, str) else set(operations)
        chosen = OPERATIONS if wanted == {"*"} else frozenset(wanted)
        if unknown := chosen - OPERATIONS:
            raise ValueError(f"there are no operations {sorted(unknown)}")
        keys = None if key is None else frozenset({key} if isinstance(key, str) else key)
        error = error or UnavailableError("the store is down: a test wants it so")
        with self._mutex:
            self._faults.append(Fault(chosen, error, keys, after, times))

    def heal(self) -> None:
        """Fail no more."""
        with self._mutex:
            self._faults.clear()

    def stall(self, operation: str, *, key: str | None = None, after: bool = False) -> Stall:
        """Let the next such call wait, before or after it has done its work."""
        if operation not in OPERATIONS:
            raise ValueError(f"there is no operation {operation!r}")
        stall = Stall(operation, key, after)
        with self._mutex:
            self._stalls.append(stall)
        return stall

    def _run(self, operation: str, key: str | None, act: Callable[[], T]) -> T:
        with self._mutex:
            self.calls[operation] += 1
        self._meet(operation, key, after=False)
        result = act()
        self._meet(operation, key, after=True)
        return result

    def _meet(self, operation: str, key: str | None, *, after: bool) -> None:
        with self._mutex:
            stalls = [
                s
                for s in self._stalls
                if s.operation == operation and s.key in (None, key) and s.after == after
            ][:1]
            for stall in stalls:
                self._stalls.remove(stall)
        for stall in stalls:
            stall.reached.set()
            stall.go.wait(WAIT)
        with self._mutex:
            fault = next(
                (f for f in self._faults if f.after == after and f.hits(operation, key)), None
            )
            if fault is not None and fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self._faults.remove(fault)
        if fault is not None:
            raise copy.copy(fault.error)

    # --- the store -------------------------------------------------------------------------------

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        return self._run("get", key, lambda: self.store.get(key))

    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object."""
        self._run("put", key, lambda: self.store.put(key, data))

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self._run("exists", key, lambda: self.store.exists(key))

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._run("delete", key, lambda: self.store.delete(key))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys that start with `prefix`."""
        found = self._run("keys", None, lambda: self.store.keys(prefix))
        return self._steps(found)

    def _steps(self, found: Iterator[str]) -> Iterator[str]:
        for key in found:
            yield self._run("next", key, lambda key=key: key)  # type: ignore[misc]

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object."""
        return self._run("get_range", key, lambda: self.store.get_range(key, start, stop))

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading."""
        file = self._run("open", key, lambda: self.store.open(key))
        return io.BufferedReader(_FaultyReader(file, self, key), 1 << 16)

    def source(self, key: str) -> Source:
        """Prepare an object for reading in several ways."""
        return _FaultySource(self._run("source", key, lambda: self.store.source(key)), self, key)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece."""
        sink = self._run("writer", key, lambda: self.store.writer(key, size_hint))
        return _FaultySink(sink, self, key)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of an object."""
        return self._run("stat", key, lambda: self.store.stat(key))

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of its own."""
        return self._run("local_path", key, lambda: self.store.local_path(key))

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects; faults are for the call as a whole."""
        self._run("delete_many", None, lambda: self.store.delete_many(keys))

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store."""
        self._run("copy", target, lambda: self.store.copy(source, target))

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one."""
        return self._run("put_if_absent", key, lambda: self.store.put_if_absent(key, data))

    def sync(self, keys: Iterable[str]) -> None:
        """Return once these objects would survive a power cut."""
        self._run("sync", None, lambda: self.store.sync(keys))

    def leftovers(self) -> Iterator[Leftover]:
        """What interrupted writers left behind."""
        return self._run("leftovers", None, self.store.leftovers)

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`."""
        self._run("remove_leftover", name, lambda: self.store.remove_leftover(name))


class _FaultyReader(WrappedReader):
    def __init__(self, file: BinaryIO, store: FaultyStore, key: str) -> None:
        super().__init__(file)
        self._store = store
        self._key = key

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._store._run("read", self._key, lambda: self._raw.read(len(buffer)))  # noqa: SLF001
        buffer[: len(chunk)] = chunk
        return len(chunk)


class _FaultySource(Source):
    def __init__(self, inner: Source, store: FaultyStore, key: str) -> None:
        self._inner = inner
        self._store = store
        self._key = key
        self.size = inner.size

    def open(self) -> BinaryIO:
        return io.BufferedReader(_FaultyReader(self._inner.open(), self._store, self._key), 1 << 16)

    def read(self) -> bytes:
        return self._store._run("read", self._key, self._inner.read)  # noqa: SLF001

    def read_range(self, start: int, stop: int) -> bytes:
        return self._store._run(  # noqa: SLF001
            "read", self._key, lambda: self._inner.read_range(start, stop)
        )

    def close(self) -> None:
        self._inner.close()


class _FaultySink(WrapperSink):
    def __init__(self, inner: Sink, store: FaultyStore, key: str) -> None:
        super().__init__(inner)
        self._store = store
        self._key = key

    def write(self, data: Buffer, /) -> int:
        return self._store._run("write", self._key, lambda: self._inner.write(data))  # noqa: SLF001

    def commit(self) -> None:
        self._store._run("commit", self._key, super().commit)  # noqa: SLF001
