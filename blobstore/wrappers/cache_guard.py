"""What keeps a cache from serving what was replaced: who fetches, and which copies are doubted."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable, Iterator

from blobstore.wrappers.locks import ForkSafe, KeyLocks

LIMIT = 100_000
"""Names that are remembered; a cache in which more copies are doubted is not used until it is cleared."""


class Fetch:
    """One object on its way from the main store; `valid` unless it is changed at any time of that."""

    __slots__ = ("valid",)

    def __init__(self, *, valid: bool) -> None:
        self.valid = valid


class _Mark:
    """Held by whoever changes a key; gone with the last of them, even if a signal ended that."""

    __slots__ = ("__weakref__",)


class Guard(ForkSafe):
    """Orders fetches and changes of each key, and remembers copies that may be wrong.

    Attributes
    ----------
    locks : KeyLocks
        By key: held by whoever changes it, and while a fetched copy is put into the cache.
    """

    def __init__(self) -> None:
        self.locks = KeyLocks()
        self._fetches: dict[str, list[Fetch]] = {}
        self._doubted: dict[str, int] = {}
        self._doubts = 0
        self._known: dict[str, str] = {}
        self._all_doubted = False
        super().__init__()

    def renew(self) -> None:
        """Make a new lock; what other threads of the parent were changing is not changed here."""
        self._mutex = threading.Lock()
        self._changing: weakref.WeakValueDictionary[str, _Mark] = weakref.WeakValueDictionary()

    def __reduce__(self) -> tuple[object, ...]:
        with self._mutex:
            return (
                _restored,
                (dict(self._doubted), self._doubts, dict(self._known), self._all_doubted),
            )

    # --- fetches ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def fetching(self, key: str) -> Iterator[Fetch]:
        """Say that an object is being read from the main store."""
        with self._mutex:
            fetch = Fetch(valid=key not in self._changing)
            self._fetches.setdefault(key, []).append(fetch)
        try:
            yield fetch
        finally:
            with self._mutex:
                others = self._fetches[key]
                others.remove(fetch)
                if not others:
                    del self._fetches[key]

    @contextlib.contextmanager
    def changing(self, *keys: str) -> Iterator[None]:
        """Keep others from changing these keys, and spoil what is fetched before the end."""
        with self.locks.hold(*keys):
            with self._mutex:
                marks = [self._changing.setdefault(key, _Mark()) for key in keys]
                self._spoil(keys)
            try:
                yield
            finally:
                marks.clear()  # the frame may live on, in the traceback of an error

    @contextlib.contextmanager
    def filling(self, key: str, fetch: Fetch) -> Iterator[bool]:
        """Give whether what was fetched may go into the cache; no change begins meanwhile."""
        with self.locks.attempt(key) as free:
            yield free and fetch.valid

    def _spoil(self, keys: Iterable[str]) -> None:
        """Let no fetch of these keys that is under way reach the cache; the mutex is held."""
        for key in keys:
            for fetch in self._fetches.get(key, ()):
                fetch.valid = False

    # --- copies ----------------------------------------------------------------------------------

    @property
    def shut(self) -> bool:
        """Whether so many copies are doubted that none may be used."""
        return self._all_doubted

    def doubts(self, name: str) -> bool:
        """Whether the copy of this name may be one that was replaced."""
        return self._all_doubted or name in self._doubted

    def doubt(self, name: str) -> None:
        """Take down that a copy should be gone, and may not be."""
        with self._mutex:
            self._doubts += 1
            self._doubted[name] = self._doubts
            if len(self._doubted) > LIMIT:
                self._all_doubted = True
                self._doubted.clear()

    def trust(self, name: str) -> None:
        """Take down that there is no wrong copy of this name any more."""
        with self._mutex:
            self._doubted.pop(name, None)

    @contextlib.contextmanager
    def clearing(self) -> Iterator[None]:
        """Clear the cache during the block; what is doubted from then on stays doubted."""
        with self._mutex:
            self._spoil(self._fetches)
            begin = self._doubts
        yield
        with self._mutex:
            self._doubted = {name: at for name, at in self._doubted.items() if at > begin}
            self._known.clear()
            if self._doubts == begin:
                self._all_doubted = False

    def remember(self, key: str, name: str) -> str | None:
        """Take down under which name the copy of a key lies; gives the last one, if it is another."""
        with self._mutex:
            before = self._known.pop(key, None)
            self._known[key] = name
            if len(self._known) > LIMIT:
                del self._known[next(iter(self._known))]
        return None if before == name else before

    def forget(self, key: str) -> str | None:
        """Give the last known name of the copy of a key, for the last time."""
        with self._mutex:
            return self._known.pop(key, None)


def _restored(doubted: dict[str, int], doubts: int, known: dict[str, str], shut: bool) -> Guard:
    guard = Guard()
    guard._doubted = doubted  # noqa: SLF001 - a constructor of its own class
    guard._doubts = doubts  # noqa: SLF001
    guard._known = known  # noqa: SLF001
    guard._all_doubted = shut  # noqa: SLF001
    return guard
