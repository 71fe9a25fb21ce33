"""Which children of a mirror missed a change, and are not to be believed for that key."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from blobstore.wrappers.locks import ForkSafe

LIMIT = 100_000
"""Keys that are remembered of each child; one that missed more is believed for none."""


class Trust(ForkSafe):
    """Remembers which child missed the last change of which key.

    Parameters
    ----------
    names : sequence of str
        Of the children.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._missed: dict[str, set[str]] = {name: set() for name in names}
        self._overflows = dict.fromkeys(names, 0)
        self._lost: frozenset[str] = frozenset()
        super().__init__()

    def renew(self) -> None:
        """Make a new lock; each change beneath it is one step."""
        self._mutex = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        with self._mutex:
            missed = {name: set(keys) for name, keys in self._missed.items()}
            return (_restored, (self._names, missed, self._lost))

    def overflows(self) -> dict[str, int]:
        """How often each child had missed too much to tell what."""
        with self._mutex:
            return dict(self._overflows)

    def believes(self, name: str, key: str) -> bool:
        """Whether a child has seen the last change of a key, as far as this mirror knows."""
        # In this order: when too much is missed, it is first lost, and only then forgotten.
        return key not in self._missed[name] and name not in self._lost

    def missed(self, prefix: str = "") -> set[str]:
        """Keys of which some child missed a change."""
        with self._mutex:
            every = set[str]().union(*self._missed.values())
        return {key for key in every if key.startswith(prefix)}

    def reached(self, name: str, key: str) -> None:
        """Take down that a child has what it should have."""
        with self._mutex:
            self._missed[name].discard(key)

    def missing(self, names: Iterable[str], key: str) -> None:
        """Take down that children may not have what others have."""
        with self._mutex:
            for name in names:
                self._missed[name].add(key)
                if len(self._missed[name]) > LIMIT:
                    self._lost |= {name}
                    self._overflows[name] += 1
                    self._missed[name].clear()

    def found(self, name: str, overflows: int) -> None:
        """Take down that a child was brought up to date as a whole.

        Parameters
        ----------
        name : str
        overflows : int
            As it was when that began: what was missed since then still counts.
        """
        with self._mutex:
            if self._overflows[name] == overflows:
                self._lost -= {name}


def _restored(names: Sequence[str], missed: dict[str, set[str]], lost: frozenset[str]) -> Trust:
    trust = Trust(names)
    trust._missed = missed  # noqa: SLF001 - a constructor of its own class
    trust._lost = lost  # noqa: SLF001
    return trust
