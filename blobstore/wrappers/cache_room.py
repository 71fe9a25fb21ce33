"""How much a cache may hold, and what has to go first."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime

from blobstore.errors import BlobStoreError, IntegrityError, KeyNotFoundError
from blobstore.protocols import ObjectStore
from blobstore.wrappers.locks import ForkSafe

_LEAST_FILLS = 64
_NEVER = datetime.min.replace(tzinfo=UTC)


class Room(ForkSafe):
    """Books of the copies in a cache: their sizes, and in which order they were last used.

    They are kept in memory, made from the cache's listing, and made again when something does not
    fit them, and now and then in any case: other processes may use the same cache.

    Errors of the cache pass through; nothing is written then.

    Parameters
    ----------
    cache : ObjectStore
    max_bytes : int
    """

    def __init__(self, cache: ObjectStore, max_bytes: int) -> None:
        self._cache = cache
        self._max = max_bytes
        self._sizes: dict[str, int] = {}  # in order of use, the one to go first in front
        self._total = 0
        self._pinned: Counter[str] = Counter()
        super().__init__()

    def renew(self) -> None:
        """Make a new lock; the books are made anew, as another thread may have been at them."""
        self._mutex = threading.RLock()
        self._pinned.clear()
        self._current = False
        self._fills = 0
        self._patience = _LEAST_FILLS

    def __reduce__(self) -> tuple[object, ...]:
        return (Room, (self._cache, self._max))

    @property
    def total(self) -> int:
        """Bytes of all copies, as far as the books know."""
        with self._mutex:
            return self._total

    def reserve(self, name: str, size: int) -> bool:
        """Make room for a copy, which replaces one of the same name; False if it does not fit.

        After True, `settle` has to be called.
        """
        if size > self._max:
            return False
        with self._mutex:
            self._fills += 1
            if not self._current or self._fills > self._patience:
                self._take_stock()
            # While it is written, the old copy may be there, or the new one.
            held = max(self._sizes.get(name, 0), size)
            if not self._make_room(held, besides=name):
                return False
            self._enter(name, held)
            self._pinned[name] += 1
        return True

    def settle(self, name: str, size: int | None) -> None:
        """Enter how a copy came out: its size, or None if that is not known."""
        with self._mutex:
            self._pinned[name] -= 1
            if self._pinned[name] <= 0:
                del self._pinned[name]
            if size is None:
                self._look_up(name)
            else:
                self._enter(name, size)

    def used(self, name: str, size: int | None) -> None:
        """Let a copy be the last one to go; its size, if known, may be news."""
        with self._mutex:
            known = self._sizes.get(name, size)
            if known is not None:
                self._enter(name, known)
            else:
                self._current = False  # somebody else put it there

    def removed(self, name: str) -> None:
        """Enter that a copy is gone."""
        with self._mutex:
            self._total -= self._sizes.pop(name, 0)

    def emptied(self) -> None:
        """Make the books anew at the next fill."""
        with self._mutex:
            self._current = False

    def _enter(self, name: str, size: int) -> None:
        self._total += size - self._sizes.pop(name, 0)
        self._sizes[name] = size

    def _look_up(self, name: str) -> None:
        """Enter what is there now; all books are only made anew if that cannot be told."""
        try:
            self._enter(name, self._cache.stat(name).size)
        except KeyNotFoundError:
            self.removed(name)
        except (BlobStoreError, OSError):
            self._current = False

    def _make_room(self, size: int, *, besides: str) -> bool:
        """Remove what was not used for longest; False if what is left cannot go."""
        limit = self._max - size + self._sizes.get(besides, 0)
        if self._total <= limit:
            return True
        for name in list(self._sizes):
            if name != besides and name not in self._pinned:
                self._evict(name)
                if self._total <= limit:
                    return True
        return False

    def _evict(self, name: str) -> None:
        try:
            self._cache.delete(name)
        except KeyNotFoundError:
            self._current = False  # somebody else removed it
        self.removed(name)

    def _take_stock(self) -> None:
        """Make the books from what is there; what was not in them counts as the longest unused."""
        found: list[tuple[datetime, str, int]] = []
        for name in self._cache.keys():  # noqa: SIM118 - a store is no dictionary
            try:
                stat = self._cache.stat(name)
            except KeyNotFoundError:
                continue
            except IntegrityError:  # nobody can use it, so that it is the first to go
                found.append((_NEVER, name, 0))
                continue
            found.append((stat.modified or _NEVER, name, stat.size))
        there = {name: size for _, name, size in sorted(found)}
        new = {name: size for name, size in there.items() if name not in self._sizes}
        old = {
            name: there.get(name, size)
            for name, size in self._sizes.items()
            if name in there or name in self._pinned
        }
        self._sizes = new | old
        self._total = sum(self._sizes.values())
        self._current = True
        self._fills = 0
        self._patience = max(_LEAST_FILLS, len(there))  # so that a fill costs the same on average
