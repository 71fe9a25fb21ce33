"""ObjectStore: bytes under keys; and BlobBackend, the same in the words of the older BlobStore."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from blobstore.entry import ObjectStat
from blobstore.errors import (
    InvalidInputError,
    KeyNotFoundError,
    NotSupportedError,
    StorageError,
)
from blobstore.streams import (
    Buffer,
    BytesSource,
    Closeable,
    FileSource,
    MemorySink,
    Sink,
    Source,
    as_contiguous,
)

Values = Literal["bytes", "text", "any"]
"""What a store takes and gives: bytes; `str`; or other objects."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do, to be asked before trying.

    Whatever is False here raises `NotSupportedError` when it is tried, or falls back to a way that
    holds one object in memory, never more.

    Attributes
    ----------
    list : bool
        `keys` works.
    ranges : bool
        `get_range`, `open` and `source` read no more than they are asked for.
    streams : bool
        `open` and `writer` hold pieces of an object in memory, never all of it.
    local_files : bool
        `local_path` gives a path, for memory mapping and for libraries that need one.
    conditional_writes : bool
        `put_if_absent` has one winner, also between processes.
    etags : bool
        `stat` gives an etag.
    persistent : bool
        What was put is there in another process, and after this one ended.
    readable : bool
        What is there can be read, looked for and listed.
    writable : bool
        Objects can be put and deleted.
    encrypted : bool
        What is stored cannot be read without a key, so nothing of it may be kept in the clear
        beside it.
    raises : bool
        What fails is raised. Where it is swallowed, an outage looks like an absent object, and a
        put that failed like one that did not.
    values : {"bytes", "text", "any"}
        What `put` takes and `get` gives. Unless it is "bytes" there are no ranges, no streams,
        no `open`, `source` and `writer`.
    """

    list: bool = True
    ranges: bool = False
    streams: bool = False
    local_files: bool = False
    conditional_writes: bool = False
    etags: bool = False
    persistent: bool = True
    readable: bool = True
    writable: bool = True
    encrypted: bool = False
    raises: bool = True
    values: Values = "bytes"


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that an interrupted writer left in a store, and that no reader can see."""

    name: str
    size: int
    modified: datetime


class ObjectStore(Closeable, ABC):
    """Bytes under keys. Five methods are to be written; the rest have working defaults.

    All methods may be called from several threads at once. No method keeps a reference to a
    caller's buffer. After `close` each of them raises `ClosedError`.
    """

    @classmethod
    def for_folder(cls, directory: Path, *, fsync: bool = False) -> Self:
        """Make the store that a BlobStore in `directory` uses, when it is asked for by name.

        Parameters
        ----------
        directory : Path
            The store's folder; use names of your own below it.
        fsync : bool
            Whether an acknowledged put is to survive a power cut.
        """
        return cls()

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do."""
        return Capabilities()

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Read a whole object; `KeyNotFoundError` if there is none."""

    @abstractmethod
    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object, replacing any: a reader sees the old or the new bytes."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is such an object; an outage is an error, not False."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; `KeyNotFoundError` if there is none."""

    @abstractmethod
    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys that start with `prefix`, in no particular order, lazily.

        Survives changes made meanwhile: a key that was there all the time is given once.
        """

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read bytes ``[start, stop)`` of an object, clipped at its end."""
        check_range(start, stop)
        return self.get(key)[start:stop]

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading; seekable, to be closed by the caller."""
        return io.BytesIO(self.get(key))

    def source(self, key: str) -> Source:
        """Prepare an object for reading in several ways; to be closed by the caller."""
        if (path := self.local_path(key)) is None:
            return BytesSource(self.get(key))
        try:
            return FileSource(path)
        except FileNotFoundError as exc:
            raise KeyNotFoundError(f"there is no object {key!r}", location=key) from exc

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece: published on clean exit, nothing left on error.

        Parameters
        ----------
        key : str
        size_hint : int, optional
            About how many bytes will come.
        """

        def publish(data: bytes) -> str:
            self.put(key, data)
            return key

        return MemorySink(publish, key)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of an object; `KeyNotFoundError` if there is none."""
        return ObjectStat(size=len(self.get(key)))

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of its own; None where there is no such file."""
        return None

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are fine.

        One that cannot be removed does not keep the others; its error is raised at the end.
        """
        failed: StorageError | None = None
        for key in keys:
            try:
                self.delete(key)
            except KeyNotFoundError:
                continue
            except StorageError as exc:
                failed = exc
        if failed is not None:
            raise failed

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store, replacing the target."""
        self.put(target, self.get(source))

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one; True if this call wrote it."""
        if self.exists(key):
            return False
        self.put(key, data)
        return True

    def sync(self, keys: Iterable[str]) -> None:
        """Return once these objects would survive a power cut."""

    def leftovers(self) -> Iterator[Leftover]:
        """What interrupted writers left behind, as far as this store can tell."""
        return iter(())

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`; an absent one is fine."""


class BlobBackend(ObjectStore):
    """An object store in the words of the older BlobStore: subclass it, or use it as it is.

    The five methods of `ObjectStore` call `write_blob`, `read_blob`, `delete_blob` and `exists`,
    so whatever a subclass overrides is what really happens. The path that `write_blob` answers is
    the location under which the blob is read afterwards.
    """

    @property
    def capabilities(self) -> Capabilities:
        """No listing, until a subclass has one."""
        return Capabilities(list=False)

    @abstractmethod
    def write_blob(self, blob_id: str, data: bytes) -> str:
        """Store bytes under an id and say where."""

    @abstractmethod
    def read_blob(self, blob_path: str) -> bytes:
        """Read what `write_blob` stored; `FileNotFoundError` or `KeyError` if it is not there."""

    @abstractmethod
    def delete_blob(self, blob_path: str) -> bool:
        """Remove a blob; False if it is not there."""

    @abstractmethod
    def exists(self, blob_path: str) -> bool:
        """Whether the blob is there."""

    def get_size(self, blob_path: str) -> int:
        """Stored bytes of a blob."""
        return len(self.read_blob(blob_path))

    def write_blob_stream(self, blob_id: str, stream: BinaryIO) -> str:
        """Store what is left of a stream."""
        return self.write_blob(blob_id, stream.read())

    def read_blob_stream(self, blob_path: str) -> BinaryIO:
        """Open a blob for reading."""
        return io.BytesIO(self.read_blob(blob_path))

    def get(self, key: str) -> bytes:
        """Read a blob."""
        try:
            return self.read_blob(key)
        except (FileNotFoundError, KeyError) as exc:
            raise KeyNotFoundError(f"there is no blob {key!r}", location=key) from exc

    def put(self, key: str, data: Buffer) -> None:
        """Write a blob."""
        self.write_blob(key, bytes(as_contiguous(data)))

    def delete(self, key: str) -> None:
        """Remove a blob."""
        if not self.delete_blob(key):
            raise KeyNotFoundError(f"there is no blob {key!r}", location=key)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Not to be had from a backend that only knows how to write and read."""
        raise NotSupportedError(
            f"{type(self).__name__} cannot list its blobs: override keys() and capabilities"
        )

    def open(self, key: str) -> BinaryIO:
        """Open a blob for reading."""
        try:
            return self.read_blob_stream(key)
        except (FileNotFoundError, KeyError) as exc:
            raise KeyNotFoundError(f"there is no blob {key!r}", location=key) from exc

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Gather a blob in memory and give it to `write_blob`."""
        return MemorySink(lambda data: str(self.write_blob(key, data)), key)

    def stat(self, key: str) -> ObjectStat:
        """Tell the size of a blob."""
        if not self.exists(key):
            raise KeyNotFoundError(f"there is no blob {key!r}", location=key)
        return ObjectStat(size=self.get_size(key))


def check_range(start: int, stop: int) -> None:
    """Refuse a range that is not ``0 <= start <= stop``.

    Raises
    ------
    InvalidInputError
    """
    given: tuple[Any, Any] = (start, stop)
    if not all(isinstance(bound, int) for bound in given) or not 0 <= start <= stop:
        raise InvalidInputError(
            f"a range is [start, stop) with ints 0 <= start <= stop, not [{start!r}, {stop!r})"
        )
