"""One lock for each key that somebody is busy with, and locks that a forked child finds open."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Lock = threading.RLock
    _Block = contextlib.AbstractContextManager[Any]


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


class KeyLocks(ForkSafe):
    """Locks by key; they exist as long as somebody uses them.

    They are reentrant: a store beneath may call back into the one above, on the same key.

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
        self._locks: weakref.WeakValueDictionary[str, _Lock] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._locks)

    def __reduce__(self) -> tuple[object, ...]:
        return (KeyLocks, ())

    def hold(self, *keys: str) -> _Block:
        """Keep others out of these keys; they are locked in order, so that nobody waits in a ring."""
        # One key is locked by its lock itself: no signal can come between that and the block.
        return self._lock(*keys) if len(keys) == 1 else self._hold_all(sorted(set(keys)))

    @contextlib.contextmanager
    def attempt(self, key: str) -> Iterator[bool]:
        """Lock a key unless another thread has it; gives whether this one has it now."""
        lock = self._lock(key)
        free = lock.acquire(blocking=False)
        try:
            yield free
        finally:
            if free:
                lock.release()

    @contextlib.contextmanager
    def _hold_all(self, keys: Iterable[str]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for key in keys:
                stack.enter_context(self._lock(key))
            yield

    def _lock(self, key: str) -> _Lock:
        with self._mutex:
            lock = self._locks.get(key)
            if lock is None:
                lock = self._locks[key] = threading.RLock()
            return lock
