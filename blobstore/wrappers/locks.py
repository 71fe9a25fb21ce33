"""One lock for each key that somebody is busy with, and locks that a forked child finds open."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator


class ForkSafe(ABC):
    """Something with locks: whichever thread of the parent held one, a forked child has new ones.

    A pickled copy starts with new ones, too.
    """

    def __init__(self) -> None:
        self.renew()
        _alive.add(self)

    @abstractmethod
    def renew(self) -> None:
        """Make the locks; and doubt what another thread may have left half done."""


_alive: weakref.WeakSet[ForkSafe] = weakref.WeakSet()


def _renew_all() -> None:
    for holder in list(_alive):
        holder.renew()


os.register_at_fork(after_in_child=_renew_all)


class _KeyLock:
    """A lock, and how many want it or have it."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        # Reentrant: a store beneath may call back into the one above, on the same key.
        self.lock = threading.RLock()
        self.users = 0


class KeyLocks(ForkSafe):
    """Locks by key; they exist as long as somebody uses them.

    Examples
    --------
    >>> locks = KeyLocks()
    >>> with locks.hold("b", "a"), locks.attempt("c") as free:
    ...     free
    True
    >>> len(locks)
    0
    """

    def renew(self) -> None:
        """Start without any lock."""
        self._mutex = threading.Lock()
        self._locks: dict[str, _KeyLock] = {}

    def __len__(self) -> int:
        return len(self._locks)

    def __reduce__(self) -> tuple[object, ...]:
        return (KeyLocks, ())

    @contextlib.contextmanager
    def hold(self, *keys: str) -> Iterator[None]:
        """Keep others out of these keys; they are locked in order, so that nobody waits in a ring."""
        with contextlib.ExitStack() as stack:
            for key in sorted(set(keys)):
                stack.enter_context(self._hold(key))
            yield

    @contextlib.contextmanager
    def attempt(self, key: str) -> Iterator[bool]:
        """Lock a key unless another thread has it; gives whether this one has it now."""
        found = self._enter(key)
        free = False
        try:
            free = found.lock.acquire(blocking=False)
            yield free
        finally:
            self._leave(key, found, locked=free)

    @contextlib.contextmanager
    def _hold(self, key: str) -> Iterator[None]:
        found = self._enter(key)
        locked = False
        try:
            locked = found.lock.acquire()
            yield
        finally:
            self._leave(key, found, locked=locked)

    def _enter(self, key: str) -> _KeyLock:
        with self._mutex:
            found = self._locks.setdefault(key, _KeyLock())
            found.users += 1
            return found

    def _leave(self, key: str, found: _KeyLock, *, locked: bool) -> None:
        if locked:
            found.lock.release()
        with self._mutex:
            found.users -= 1
            # After a fork in between, the lock of this name may be a newer one.
            if found.users == 0 and self._locks.get(key) is found:
                del self._locks[key]
