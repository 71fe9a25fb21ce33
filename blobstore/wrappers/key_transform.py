"""Stores under whose keys other keys lie: a base for prefixes, encodings, checks of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, ClassVar

from blobstore.entry import ObjectStat
from blobstore.errors import (
    BlobStoreError,
    ConfigError,
    KeyNotFoundError,
    NotSupportedError,
)
from blobstore.keys import require_str
from blobstore.protocols import Capabilities, ObjectStore
from blobstore.streams import Buffer, Sink, Source
from blobstore.wrappers.base import WrapperSink, WrapperStore


class KeyTransformer:
    """Turns a key into the one that is stored, and back; this one changes nothing.

    Attributes
    ----------
    reversible : bool
        Whether a key can be had back from what is stored; else such a store cannot list.

    Examples
    --------
    >>> class Backwards(KeyTransformer):
    ...     def transform_key(self, key):
    ...         return key[::-1]
    ...     def reverse_transform_key(self, key):
    ...         return key[::-1]
    >>> from blobstore.backends import DictStore
    >>> store = KeyTransformingStore(DictStore(), Backwards())
    >>> store.put("abc", b"1")
    >>> list(store.keys()), list(store.store.keys())
    (['abc'], ['cba'])
    """

    reversible: ClassVar[bool] = True

    def transform_key(self, key: str) -> str:
        """Turn a key into the one beneath.

        Raises
        ------
        KeyError, ValueError
            There is no such key in this store.
        """
        return key

    def reverse_transform_key(self, key: str) -> str:
        """Turn a key from beneath back.

        Raises
        ------
        KeyError, ValueError
            It is not one of ours: it is left out of listings.
        """
        return key

    def transform_prefix(self, prefix: str) -> str:
        """What the stored keys of all keys with this prefix begin with; "" where that is unknown."""
        return ""


class KeyTransformingStore(WrapperStore):
    """Puts each key through a transformer; a base for stores of one's own.

    Give it a `KeyTransformer`, or subclass it and write `transform_key`, `reverse_transform_key`
    and, so that listings ask for no more than they need, `transform_prefix`. Only keys that this
    store would make itself are listed: others beneath are not its own.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.
    transformer : KeyTransformer, optional
        By default the store itself, whose methods change nothing until they are overridden.

    Raises
    ------
    ConfigError
        One of them is something else.
    """

    def __init__(self, store: ObjectStore, transformer: KeyTransformer | None = None) -> None:
        super().__init__(store)
        self.transformer = KeyTransformer() if transformer is None else transformer
        if not isinstance(self.transformer, KeyTransformer):
            raise ConfigError(f"a transformer must be a KeyTransformer, not {transformer!r}")

    def transform_key(self, key: str) -> str:
        """Turn a key into the one beneath."""
        return self.transformer.transform_key(key)

    def reverse_transform_key(self, key: str) -> str:
        """Turn a key from beneath back; `KeyError` or `ValueError` if it is not one of ours."""
        return self.transformer.reverse_transform_key(key)

    def transform_prefix(self, prefix: str) -> str:
        """What the stored keys of all keys with this prefix begin with."""
        return self.transformer.transform_prefix(prefix)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store beneath; listing only where keys can be turned back."""
        beneath = self.store.capabilities
        return replace(beneath, list=beneath.list and self.transformer.reversible)

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        with self._named(key) as stored:
            return self.store.get(stored)

    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object."""
        with self._named(key) as stored:
            self.store.put(stored, data)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        with self._named(key) as stored:
            return self.store.exists(stored)

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self._named(key) as stored:
            self.store.delete(stored)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys of this store that start with `prefix`."""
        if not self.transformer.reversible:
            raise NotSupportedError(f"{self!r} cannot list: its keys cannot be turned back")
        found = self.store.keys(self.transform_prefix(require_str(prefix)))
        return self._own_keys(found, prefix)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object."""
        with self._named(key) as stored:
            return self.store.get_range(stored, start, stop)

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading."""
        with self._named(key) as stored:
            return self.store.open(stored)

    def source(self, key: str) -> Source:
        """Prepare an object for reading in several ways."""
        with self._named(key) as stored:
            return self.store.source(stored)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece."""
        with self._named(key) as stored:
            return _NamedSink(self.store.writer(stored, size_hint), self.store, key, stored)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of an object."""
        with self._named(key) as stored:
            return self.store.stat(stored)

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of its own."""
        with self._named(key) as stored:
            return self.store.local_path(stored)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are fine."""
        self.store.delete_many([self._stored(key) for key in keys])

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store."""
        stored_target = self._stored(target)
        with self._named(source) as stored:
            self.store.copy(stored, stored_target)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one."""
        with self._named(key) as stored:
            return self.store.put_if_absent(stored, data)

    def sync(self, keys: Iterable[str]) -> None:
        """Return once these objects would survive a power cut."""
        self.store.sync([self._stored(key) for key in keys])

    def _stored(self, key: str) -> str:
        return self.transform_key(require_str(key))

    def _named(self, key: str) -> _named:
        return _named(key, self._stored(key))

    def _own_keys(self, found: Iterator[str], prefix: str) -> Iterator[str]:
        for stored in found:
            key = self._own_key(stored)
            if key is not None and key.startswith(prefix):
                yield key

    def _own_key(self, stored: str) -> str | None:
        """The key that is kept there; None if this store would not keep any there."""
        try:
            key = self.reverse_transform_key(stored)
            return key if self.transform_key(key) == stored else None
        except (KeyError, ValueError):
            return None


class _named:  # noqa: N801 - used like a function, in a with statement
    """Gives the stored key, and says of the caller's key what is said of that one inside."""

    __slots__ = ("_key", "_stored")

    def __init__(self, key: str, stored: str) -> None:
        self._key = key
        self._stored = stored

    def __enter__(self) -> str:
        return self._stored

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if isinstance(exc, KeyNotFoundError) and self._key != self._stored:
            raise KeyNotFoundError(f"there is no object {self._key!r}", location=self._key) from exc
        if isinstance(exc, BlobStoreError) and exc.location == self._stored:
            exc.location = self._key


class _NamedSink(WrapperSink):
    """Says where the object is in the words of this store."""

    def __init__(self, inner: Sink, store: ObjectStore, key: str, stored: str) -> None:
        super().__init__(inner)
        self.location = key
        self._store = store
        self._key = key
        self._stored = stored

    def commit(self) -> None:
        with _named(self._key, self._stored):
            self._inner.commit()
        place = self._inner.location
        if place not in ("", self._stored):
            self._store.delete_many([place])  # where nobody would find it
            raise NotSupportedError(
                f"the store beneath keeps {self._key!r} at a place of its own "
                f"({place}), which a key transformation cannot follow",
                location=self._key,
            )
