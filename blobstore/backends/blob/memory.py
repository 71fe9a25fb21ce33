"""An object store in memory: for tests, and for what need not last."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import BinaryIO, NamedTuple, NoReturn

from blobstore.entry import ObjectStat
from blobstore.errors import ClosedError, InvalidKeyError, KeyNotFoundError, NotSupportedError
from blobstore.protocols import Capabilities, ObjectStore, check_range
from blobstore.streams import Buffer, BytesSource, MemorySink, Sink, Source, as_contiguous


class _Object(NamedTuple):
    data: bytes
    modified: datetime
    etag: str


class DictStore(ObjectStore):
    """Objects in a dictionary, by value. Any string is a key.

    May be shared by threads. A forked child has its own copy from then on; pickling is refused,
    because a copy would go its own way without anybody noticing.

    Examples
    --------
    >>> store = DictStore()
    >>> store.put("a", b"1")
    >>> store.get("a"), list(store.keys())
    (b'1', ['a'])
    """

    # No lock: each step below is one operation of the dictionary, which Python makes atomic, and
    # a lock that some thread holds at a fork would stay locked in the child for ever.

    def __init__(self) -> None:
        self._objects: dict[str, _Object] = {}
        self._etags = itertools.count(1)
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Everything but files and persistence."""
        return Capabilities(ranges=True, conditional_writes=True, etags=True, persistent=False)

    def get(self, key: str) -> bytes:
        """Return the bytes of an object."""
        return self._find(key).data

    def put(self, key: str, data: Buffer) -> None:
        """Keep a copy of `data`, unless it cannot change."""
        self._objects[self._check(key)] = self._new(data)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self._check(key) in self._objects

    def delete(self, key: str) -> None:
        """Remove an object."""
        if self._objects.pop(self._check(key), None) is None:
            raise _missing(key)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys that were there at the time of the call."""
        prefix = self._check(prefix)
        snapshot = list(self._objects)
        return (key for key in snapshot if key.startswith(prefix))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Slice an object."""
        found = self._find(key)
        check_range(start, stop)
        return found.data[start:stop]

    def open(self, key: str) -> BinaryIO:
        """Open an object as a file."""
        return io.BytesIO(self.get(key))

    def source(self, key: str) -> Source:
        """Lend the bytes themselves."""
        return BytesSource(self.get(key))

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Gather an object, and keep it at the end."""
        key = self._check(key)

        def publish(data: bytes) -> str:
            self.put(key, data)
            return key

        return _CheckedSink(publish, key)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag; every put has an etag of its own."""
        found = self._find(key)
        return ObjectStat(len(found.data), found.modified, found.etag)

    def local_path(self, key: str) -> None:
        """There are no files."""
        self._check(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are fine."""
        self._check("")
        for key in keys:
            self._objects.pop(self._check(key), None)

    def copy(self, source: str, target: str) -> None:
        """Let two keys share the same bytes."""
        self._objects[self._check(target)] = self._new(self._find(source).data)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Keep an object unless there is one."""
        new = self._new(data)
        return self._objects.setdefault(self._check(key), new) is new

    def sync(self, keys: Iterable[str]) -> None:
        """Nothing here survives a power cut."""
        self._check("")

    def leftovers(self) -> Iterator[NoReturn]:
        """Nothing is ever left over."""
        self._check("")
        return iter(())

    def remove_leftover(self, name: str) -> None:
        """Do nothing, as there are none."""
        self._check(name)

    def close(self) -> None:
        """Forget everything."""
        self._closed = True
        self._objects = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __reduce__(self) -> NoReturn:
        raise NotSupportedError(
            "a DictStore cannot be pickled: the copy would not see later changes. "
            "Use a FilesystemStore to share objects between processes"
        )

    def _check(self, key: str) -> str:
        if self._closed:
            raise ClosedError("this DictStore was closed: make a new one")
        if not isinstance(key, str):
            raise InvalidKeyError(f"a key must be a str, not {type(key).__name__}")
        return key if type(key) is str else str.__str__(key)

    def _find(self, key: str) -> _Object:
        found = self._objects.get(self._check(key))
        if found is None:
            raise _missing(key)
        return found

    def _new(self, data: Buffer) -> _Object:
        return _Object(bytes(as_contiguous(data)), datetime.now(UTC), f"{next(self._etags):x}")


class _CheckedSink(MemorySink):
    """Takes buffers of any shape, and nothing that is no buffer."""

    def write(self, data: Buffer, /) -> int:
        return super().write(as_contiguous(data))


def _missing(key: str) -> KeyNotFoundError:
    return KeyNotFoundError(f"there is no object {key!r} in memory", location=key)
