"""A faster store in front of a slower one.

What holds, whatever the cache does and however many threads share this object:

- A value that was replaced or deleted through this object is not served once that has ended, nor
  after a crash halfway: the copy is removed before the main store is changed. A copy that cannot be
  removed is not served; that is remembered in memory, and its removal is tried again at each access.
- A reader that fetched an object before a change does not put it into the cache after it.
- A broken cache fails no read, nor a change that the main store took. It is a warning in the log.
- What the main store says of existence, size, time and etag is asked of it each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, BinaryIO, TypeVar

from blobstore.errors import (
    ClosedError,
    ConfigError,
    InvalidInputError,
    KeyNotFoundError,
    StorageError,
)
from blobstore.keys import random_id, require_str
from blobstore.protocols import BlobBackend, Capabilities, Leftover, ObjectStore, check_range
from blobstore.streams import CHUNK, Buffer, Sink, Source, as_contiguous
from blobstore.wrappers.base import WrapperSink, WrapperStore, require_raising, require_store
from blobstore.wrappers.cache_copies import CACHE_ERRORS, Copies
from blobstore.wrappers.cache_guard import Fetch
from blobstore.wrappers.fallback import FallbackSource, fallback_reader

T = TypeVar("T")

_BATCH = 1000
"""Keys of `delete_many` that are locked together."""


class CachingStore(WrapperStore):
    """Reads from a faster store what it has; everything is in the main store, too.

    `get` and `source` put what they read into the cache; so does `put`, unless `validate` is set.
    `open` and `get_range` use a copy if there is one.

    By default copies lie under the keys of their objects, and a hit asks the main store nothing: a
    change that somebody else made to the main store may not be seen until `clear`. Set `max_age`
    to see it after a while, or `validate` to see it at once, also where several processes share
    the cache.

    Parameters
    ----------
    main_store : ObjectStore
        Taken over: it is closed with this one.
    cache_store : ObjectStore
        Taken over, and this store's own: whatever is in it may be removed.
    validate : bool
        Compare the main store's etag at each read. Copies then lie under names made of key and
        etag, so that one of another version is never mistaken for it.
    max_bytes : int, optional
        How much the cache may hold; what was not used for longest goes first. Each process that
        shares a cache keeps books of its own, so that for a while they may hold more together.
    max_age : float, optional
        Seconds after which a copy is not served any more.

    Attributes
    ----------
    main_store, cache_store : ObjectStore

    Raises
    ------
    ConfigError
        Both are the same store, they keep values of different kinds, one swallows errors, or one
        cannot do what the options need: etags, listing, times.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = CachingStore(DictStore(), DictStore())
    >>> store.put("key", b"1")
    >>> store.cache_store.get("key")
    b'1'
    >>> store.clear("key")
    >>> store.cache_store.exists("key"), store.get("key")
    (False, b'1')
    """

    def __init__(
        self,
        main_store: ObjectStore,
        cache_store: ObjectStore,
        *,
        validate: bool = False,
        max_bytes: int | None = None,
        max_age: float | None = None,
    ) -> None:
        super().__init__(require_store(main_store, "main_store"))
        self.cache_store = require_store(cache_store, "cache_store")
        self.validate = validate
        self.max_bytes = max_bytes
        self.max_age = max_age
        self._check_options()
        self._copies = Copies(cache_store, max_bytes, max_age)
        self._guard = self._copies.guard
        self._closed = False
        # Etags of a store in memory begin anew in each process; those of others last.
        self._salt = "" if main_store.capabilities.persistent else random_id()

    @property
    def main_store(self) -> ObjectStore:
        """The slower store, which has everything."""
        return self.store

    @property
    def capabilities(self) -> Capabilities:
        """Those of the main store; ranges, streams and secrecy only if both stores have them."""
        main, cache = self.main_store.capabilities, self.cache_store.capabilities
        return replace(
            main,
            ranges=main.ranges and cache.ranges,
            streams=main.streams and cache.streams,
            encrypted=main.encrypted and (cache.encrypted or not cache.persistent),
        )

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str) -> bytes:
        """Read a whole object, from the cache if it is there."""
        name = self._name(key)
        found = self._find(key, name, self.cache_store.get, len)
        if found is not None:
            return found
        with self._guard.fetching(key) as fetch:
            data = self.main_store.get(key)
            self._fill(key, name, fetch, data)
        return data

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object, from the cache if it is there; the cache is not filled."""
        self._check(key)
        check_range(start, stop)
        found = self._find(
            key, self._name(key), lambda name: self.cache_store.get_range(name, start, stop)
        )
        return self.main_store.get_range(key, start, stop) if found is None else found

    def open(self, key: str) -> BinaryIO:
        """Open an object, in the cache if it is there; the cache is not filled."""
        found = self._find(key, self._name(key), self.cache_store.open)
        if found is None:
            return self.main_store.open(key)
        return fallback_reader(_then(found, lambda: self.main_store.open(key)))

    def source(self, key: str) -> Source:
        """Copy an object into the cache, piece by piece, and read it from there."""
        name = self._name(key)
        found = self._find_source(key, name)
        if found is not None:
            return found
        with self._guard.fetching(key) as fetch:
            source = self.main_store.source(key)
            try:
                filled = self._fill_from(key, name, fetch, source)
            except BaseException:
                source.close()
                raise
        found = self._find_source(key, name) if filled else None
        if found is None:
            return source
        source.close()
        return found

    def _find(
        self,
        key: str,
        name: str | None,
        read: Callable[[str], T],
        size_of: Callable[[T], int] | None = None,
    ) -> T | None:
        return None if name is None else self._copies.find(key, name, read, size_of)

    def _find_source(self, key: str, name: str | None) -> Source | None:
        found = self._find(key, name, self.cache_store.source, lambda source: source.size)
        if found is None:
            return None
        return FallbackSource(_then(found, lambda: self.main_store.source(key)))

    # --- filling ---------------------------------------------------------------------------------

    def _name(self, key: str) -> str | None:
        """Name of the copy that may be served now; None if there can be none."""
        self._check(key)
        if not self.validate:
            return key
        try:
            etag = self.main_store.stat(key).etag
        except KeyNotFoundError:
            self._drop(key)
            raise
        if etag is None:
            return None
        name = self._prefix(key) + _hash(etag)
        if (before := self._guard.remember(key, name)) is not None:
            self._copies.drop(before)
        return name

    def _prefix(self, key: str) -> str:
        salt = self._salt and f"{self._salt}{os.getpid()}"
        return f"{_hash(salt + key)}-"

    def _fill(self, key: str, name: str | None, fetch: Fetch, data: bytes) -> None:
        """Put what was fetched into the cache, unless it may have changed meanwhile."""
        size = len(data) if self.max_bytes is not None else 0
        if name is not None and self._copies.fits(size) and self._is_still(key, name):
            with self._guard.filling(key, fetch) as allowed:
                if allowed:
                    self._copies.keep(name, size, lambda: self.cache_store.put(name, data))

    def _fill_from(self, key: str, name: str | None, fetch: Fetch, source: Source) -> bool:
        """Stream what is fetched into the cache; False if it could not be, or may have changed."""
        if name is None or (sink := self._copies.writer(name, source.size)) is None:
            return False
        try:
            size = 0
            with source.open() as file:
                while chunk := file.read(CHUNK):
                    if not self._copies.feed(sink, name, chunk):
                        return False
                    size += len(chunk)
            if not self._is_still(key, name):
                return False
            with self._guard.filling(key, fetch) as allowed:
                return allowed and self._copies.keep(name, size, sink.commit)
        finally:
            self._copies.abandon(sink)  # does nothing once it is committed

    def _is_still(self, key: str, name: str) -> bool:
        """Whether what was fetched has the etag that the name of its copy says."""
        if not self.validate:
            return True
        try:
            etag = self.main_store.stat(key).etag
        except CACHE_ERRORS:  # the object is there for the caller; without an etag it is not kept
            return False
        return etag is not None and name == self._prefix(key) + _hash(etag)

    # --- writing ---------------------------------------------------------------------------------

    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object into both stores; only the main store's failure is an error."""
        self._check(key)
        if self.capabilities.values == "bytes":
            data = as_contiguous(data)
        with self._guard.changing(key):
            self._drop(key)
            self.main_store.put(key, data)
            self._write_through(key, data)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object into both stores, unless the main store has one."""
        self._check(key)
        if self.capabilities.values == "bytes":
            data = as_contiguous(data)
        with self._guard.changing(key):
            self._drop(key)
            won = self.main_store.put_if_absent(key, data)
            if won:
                self._write_through(key, data)
        return won

    def delete(self, key: str) -> None:
        """Remove an object; its copy goes first, also if the main store fails or has none."""
        with self._guard.changing(self._check(key)):
            if self.validate:
                # The copy may have been made by another process: this finds out its name.
                with contextlib.suppress(*CACHE_ERRORS):
                    self._name(key)
            self._drop(key)
            self.main_store.delete(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are fine."""
        self._check_open()
        rest = iter(keys)
        failed: StorageError | None = None
        while batch := [self._check(key) for key in itertools.islice(rest, _BATCH)]:
            with self._guard.changing(*batch):
                for key in batch:
                    self._drop(key)
                try:
                    self.main_store.delete_many(batch)
                except StorageError as exc:
                    failed = exc
        if failed is not None:
            raise failed

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the main store."""
        with self._guard.changing(self._check(target)):
            self._drop(target)
            self.main_store.copy(source, target)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object into the main store piece by piece; its copy goes at the end."""
        return _CachedSink(self.main_store.writer(self._check(key), size_hint), self, key)

    def _publish(self, key: str, commit: Callable[[], None]) -> None:
        with self._guard.changing(key):
            self._drop(key)
            commit()

    def _write_through(self, key: str, data: Buffer) -> None:
        # Which etag this very write got cannot be known: a validating cache is filled by reading.
        if not self.validate:
            size = len(data) if self.max_bytes is not None else 0
            self._copies.keep(key, size, lambda: self.cache_store.put(key, data))

    def _drop(self, key: str) -> None:
        """Remove the copy of a key, as far as this object knows of one."""
        name = self._guard.forget(key) if self.validate else key
        if name is not None:
            self._copies.drop(name)

    # --- upkeep ----------------------------------------------------------------------------------

    def clear(self, key: str | None = None) -> None:
        """Empty the cache.

        Parameters
        ----------
        key : str, optional
            Only of the copies of this object.

        Raises
        ------
        NotSupportedError
            All copies are to go, and the cache cannot list them.
        StorageError
            The cache failed; copies may be left.
        """
        self._check_open()
        if key is None:
            self._copies.clear()
            return
        with self._guard.changing(self._check(key)):
            for name in self._all_names(key):
                self._copies.remove(name)

    def expire(self) -> int:
        """Remove copies that are older than `max_age` from the cache, whoever made them.

        Returns
        -------
        int
            How many; 0 where there is no limit of age.

        Raises
        ------
        NotSupportedError
            The cache cannot list what it has.
        StorageError
            The cache failed; copies may be left.
        """
        self._check_open()
        return self._copies.expire()

    def _all_names(self, key: str) -> set[str]:
        if not self.validate:
            return {key}
        known = self._guard.forget(key)
        names = set() if known is None else {known}
        if self.cache_store.capabilities.list:
            names.update(self.cache_store.keys(self._prefix(key)))
        return names

    def leftovers(self) -> Iterator[Leftover]:
        """What interrupted writers left in both stores, after "main:" and "cache:"."""
        self._check_open()
        both = {"main": self.main_store.leftovers(), "cache": iter(self._copies.leftovers())}
        return (
            replace(leftover, name=f"{where}:{leftover.name}")
            for where, leftovers in both.items()
            for leftover in leftovers
        )

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`."""
        self._check_open()
        where, _, rest = name.partition(":")
        if where not in ("main", "cache"):
            raise InvalidInputError(
                f"there is no leftover {name!r}: they begin with 'main:' or 'cache:'"
            )
        (self.main_store if where == "main" else self.cache_store).remove_leftover(rest)

    def close(self) -> None:
        """Close both stores."""
        self._closed = True
        try:
            self.main_store.close()
        finally:
            self.cache_store.close()

    def __repr__(self) -> str:
        options = {
            "validate": self.validate or None,
            "max_bytes": self.max_bytes,
            "max_age": self.max_age,
        }
        shown = "".join(f", {name}={value!r}" for name, value in options.items() if value)
        return f"{type(self).__name__}({self.main_store!r}, {self.cache_store!r}{shown})"

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"this {type(self).__name__} was closed: make a new one")

    def _check(self, key: str) -> str:
        self._check_open()
        return require_str(key)

    def _check_options(self) -> None:
        main, cache = self.main_store.capabilities, self.cache_store.capabilities
        if self.main_store is self.cache_store:
            raise ConfigError(
                "cache_store is main_store itself: give another store, since one cannot be its own cache"
            )
        require_raising(self.main_store, "main_store")
        require_raising(self.cache_store, "cache_store")
        if main.values != cache.values:
            raise ConfigError(
                f"cache_store has to take the values of the main store: {main.values}, "
                f"not {cache.values}"
            )
        if self.validate and not main.etags:
            raise ConfigError(
                f"validate needs etags, which {self.main_store!r} has none of: use max_age"
            )
        _check_number("max_bytes", self.max_bytes, (int,))
        _check_number("max_age", self.max_age, (int, float), timedelta.max.total_seconds())
        if self.max_bytes is not None and (not cache.list or cache.values != "bytes"):
            raise ConfigError(f"max_bytes needs a cache of bytes that lists, not {cache!r}")
        if self.max_age is not None and _tells_no_times(self.cache_store):
            raise ConfigError(f"max_age needs a cache that tells times, not {self.cache_store!r}")


class _CachedSink(WrapperSink):
    """A sink of the main store that drops the copy just before it publishes."""

    def __init__(self, inner: Sink, store: CachingStore, key: str) -> None:
        super().__init__(inner)
        self._store = store
        self._key = key

    def commit(self) -> None:
        self._store._publish(self._key, super().commit)  # noqa: SLF001
        if self.location not in ("", self._key):  # a store that chooses its own places
            self._store._publish(self.location, lambda: None)  # noqa: SLF001


def _then(first: T, second: Callable[[], T]) -> Iterator[T]:
    yield first
    yield second()


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _check_number(name: str, value: Any, kinds: tuple[type, ...], limit: float = math.inf) -> None:
    wrong = isinstance(value, bool) or not isinstance(value, kinds)
    if value is not None and (wrong or not 0 < value < limit):
        raise ConfigError(
            f"{name} must be a number greater than 0 and less than {limit}, not {value!r}: "
            "leave it out to have no limit"
        )


def _tells_no_times(store: ObjectStore) -> bool:
    """Whether a store is known to have no times: its `stat` is one of the defaults."""
    return type(store).stat in (ObjectStore.stat, BlobBackend.stat)
