"""The copies in a cache: whatever goes wrong with them is logged, and is nobody's error."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from blobstore.errors import BlobStoreError, InvalidInputError, KeyNotFoundError
from blobstore.protocols import Leftover, ObjectStore
from blobstore.streams import Buffer, Sink
from blobstore.wrappers.cache_guard import Guard
from blobstore.wrappers.cache_room import Room

logger = logging.getLogger(__name__)

T = TypeVar("T")

CACHE_ERRORS = (BlobStoreError, OSError)
"""What counts as a broken cache; a store of others may let the system's errors through."""


def now() -> datetime:
    """What time it is; tests put another function here."""
    return datetime.now(UTC)


class Copies:
    """Copies of objects, by name.

    Parameters
    ----------
    cache : ObjectStore
    max_bytes : int or None
    max_age : float or None
        In seconds.

    Attributes
    ----------
    guard : Guard
    """

    def __init__(self, cache: ObjectStore, max_bytes: int | None, max_age: float | None) -> None:
        self.guard = Guard()
        self._cache = cache
        self._max_bytes = max_bytes
        self._max_age = None if max_age is None else timedelta(seconds=max_age)
        self._room = None if max_bytes is None else Room(cache, max_bytes)

    def find(
        self,
        key: str,
        name: str,
        read: Callable[[str], T],
        size_of: Callable[[T], int] | None = None,
    ) -> T | None:
        """Read a copy; None if there is none, or none that may be served.

        Parameters
        ----------
        key, name : str
            Of the object, and of its copy.
        read : callable
            Given the name.
        size_of : callable, optional
            Tells the size of the copy from what was read, if that is all of it.
        """
        if self.guard.doubts(name):
            self._try_again(key, name)
            return None
        try:
            if self._is_too_old(name):
                return None
            found = read(name)
        except KeyNotFoundError:
            return None
        except CACHE_ERRORS as exc:
            _warn("reading", name, exc)
            return None
        if self._room is not None:
            self._room.used(name, size_of(found) if size_of else None)
        return found

    def fits(self, size: int) -> bool:
        """Whether a copy of this size may be kept at all."""
        return not self.guard.shut and (self._max_bytes is None or size <= self._max_bytes)

    def keep(self, name: str, size: int, write: Callable[[], object]) -> bool:
        """Write a copy, after room was made for it; whoever calls has the lock of its key."""
        try:
            if not self.fits(size) or not self._write(name, size, write):
                return False
        except CACHE_ERRORS as exc:
            _warn("writing", name, exc)
            return False
        self.guard.trust(name)
        return True

    def writer(self, name: str, size: int) -> Sink | None:
        """Begin a copy; None if that cannot be."""
        if not self.fits(size):
            return None
        try:
            return self._cache.writer(name, size)
        except CACHE_ERRORS as exc:
            _warn("writing", name, exc)
            return None

    def feed(self, sink: Sink, name: str, data: Buffer) -> bool:
        """Go on with a copy; False if that cannot be."""
        try:
            sink.write(data)
        except CACHE_ERRORS as exc:
            _warn("writing", name, exc)
            return False
        return True

    def abandon(self, sink: Sink) -> None:
        """Leave nothing of a copy that was begun."""
        try:
            sink.abort()
        except CACHE_ERRORS as exc:
            _warn("abandoning", sink.location, exc)

    def drop(self, name: str) -> bool:
        """Remove a copy; one that cannot be removed is not served any more."""
        try:
            self.remove(name)
        except CACHE_ERRORS as exc:
            _warn("removing", name, exc)
            self.guard.doubt(name)
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove a copy, if there is one, or say why that cannot be."""
        # A name that the cache does not take has no copy there.
        with contextlib.suppress(KeyNotFoundError, InvalidInputError):
            self._cache.delete(name)
        if self._room is not None:
            self._room.removed(name)
        self.guard.trust(name)

    def clear(self) -> None:
        """Remove all copies, or say why that cannot be."""
        with self.guard.clearing():
            self._cache.delete_many(self._cache.keys())
        if self._room is not None:
            self._room.emptied()

    def expire(self) -> int:
        """Remove copies that are too old to be served, whoever made them; how many."""
        if self._max_age is None:
            return 0
        removed = 0
        for name in self._cache.keys():  # noqa: SIM118 - a store is no dictionary
            with contextlib.suppress(KeyNotFoundError):
                if self._is_too_old(name):
                    self.remove(name)
                    removed += 1
        return removed

    def leftovers(self) -> list[Leftover]:
        """What interrupted writers left in the cache; none where that cannot be told."""
        try:
            return list(self._cache.leftovers())
        except CACHE_ERRORS as exc:
            _warn("looking for what is left of", "*", exc)
            return []

    def _write(self, name: str, size: int, write: Callable[[], object]) -> bool:
        if self._room is None:
            write()
            return True
        if not self._room.reserve(name, size):
            return False
        kept = None
        try:
            write()
            kept = size
        finally:
            self._room.settle(name, kept)
        return True

    def _try_again(self, key: str, name: str) -> None:
        """Remove a doubted copy, unless somebody is busy with its object."""
        if not self.guard.shut:
            with self.guard.locks.attempt(key) as free:
                if free and self.guard.doubts(name):
                    self.drop(name)

    def _is_too_old(self, name: str) -> bool:
        if self._max_age is None:
            return False
        modified = self._cache.stat(name).modified
        # A time in the future tells no more than one long ago: some clock was set.
        return modified is None or abs(now() - modified) > self._max_age


def _warn(doing: str, name: str, exc: Exception) -> None:
    logger.warning("%s the cached copy %r failed, going on without it: %s", doing, name, exc)
