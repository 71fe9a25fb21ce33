"""A store around another store: every method handed on, by hand.

A subclass overrides what it is about, and only that. What changes keys or values is better built
on `KeyTransformingStore`, `TransformingStore` or `StreamTransformingStore`, which change them on
every way in and out; here a method that is not overridden goes straight to the store beneath.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from blobstore.entry import ObjectStat
from blobstore.errors import ConfigError, StorageError
from blobstore.protocols import Capabilities, Leftover, ObjectStore
from blobstore.streams import Buffer, Sink, Source


def require_store(store: object, what: str = "store") -> ObjectStore:
    """Return `store` if it is an object store.

    Raises
    ------
    ConfigError
        It is something else.
    """
    if not isinstance(store, ObjectStore):
        raise ConfigError(f"{what} must be an object store, not {store!r}")
    return store


def require_bytes(store: object, wrapper: str) -> ObjectStore:
    """Return `store` if it is an object store that keeps bytes.

    Raises
    ------
    ConfigError
        It keeps values of another type, or is no store.
    """
    found = require_store(store)
    if found.capabilities.values != "bytes":
        raise ConfigError(
            f"{wrapper} needs a store of bytes beneath it, but {found!r} takes "
            f"{found.capabilities.values}: put {wrapper} beneath that one"
        )
    return found


def require_raising(store: ObjectStore, what: str) -> ObjectStore:
    """Return `store` if it raises what fails.

    Raises
    ------
    ConfigError
        It swallows errors.
    """
    if not store.capabilities.raises:
        raise ConfigError(
            f"{what} {store!r} swallows errors, so that an outage would look like an absent object: "
            "set reraise=True, or give the store beneath it"
        )
    return store


def stored_value(store: ObjectStore, key: str) -> Any:
    """Read a whole object, which is to be turned into something else.

    Raises
    ------
    StorageError
        The store swallowed an error, and answered nothing: that is no object.
    """
    value: Any = store.get(key)
    if value is None and not store.capabilities.raises:
        raise StorageError(
            f"{store!r} answered nothing for {key!r}, and swallowed the reason, which is in its log",
            location=key,
        )
    return value


class WrapperStore(ObjectStore):
    """An object store around another one, which it takes over: closing it closes both.

    Parameters
    ----------
    store : ObjectStore

    Attributes
    ----------
    store : ObjectStore
        The one beneath.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = require_store(store)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store beneath."""
        return self.store.capabilities

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        return self.store.get(key)

    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object."""
        self.store.put(key, data)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self.store.exists(key)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self.store.delete(key)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys that start with `prefix`."""
        return self.store.keys(prefix)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object."""
        return self.store.get_range(key, start, stop)

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading."""
        return self.store.open(key)

    def source(self, key: str) -> Source:
        """Prepare an object for reading in several ways."""
        return self.store.source(key)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece."""
        return self.store.writer(key, size_hint)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of an object."""
        return self.store.stat(key)

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of its own."""
        return self.store.local_path(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are fine."""
        self.store.delete_many(keys)

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store."""
        self.store.copy(source, target)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one."""
        return self.store.put_if_absent(key, data)

    def sync(self, keys: Iterable[str]) -> None:
        """Return once these objects would survive a power cut."""
        self.store.sync(keys)

    def leftovers(self) -> Iterator[Leftover]:
        """What interrupted writers left behind."""
        return self.store.leftovers()

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`."""
        self.store.remove_leftover(name)

    def close(self) -> None:
        """Close the store beneath."""
        self.store.close()

    def __repr__(self) -> str:
        shown = ", ".join([repr(self.store), *(f"{k}={v!r}" for k, v in self._shown().items())])
        return f"{type(self).__name__}({shown})"

    def _shown(self) -> dict[str, Any]:
        """What `repr` tells besides the store; never a secret."""
        return {}


class IdentityStore(WrapperStore):
    """Changes nothing, and hands on whatever the store beneath takes.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = IdentityStore(DictStore())
    >>> store.put("key", b"1")
    >>> store.get("key")
    b'1'
    """


class WrapperSink(Sink):
    """A sink that hands everything on to another one; subclasses add what they are about."""

    def __init__(self, inner: Sink) -> None:
        self._inner = inner
        self.location = inner.location

    def write(self, data: Buffer, /) -> int:
        """Append bytes."""
        return self._inner.write(data)

    def path(self) -> Path:
        """Lend the inner sink's path."""
        return self._inner.path()

    def commit(self) -> None:
        """Publish what was written."""
        self._inner.commit()
        self.location = self._inner.location

    def abort(self) -> None:
        """Leave nothing behind."""
        self._inner.abort()
