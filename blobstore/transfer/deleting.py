"""Deleting, as one step of a transfer."""

from __future__ import annotations

from collections.abc import Sequence

from blobstore.errors import InvalidKeyError
from blobstore.protocols import ObjectStore
from blobstore.transfer.crew import Done


class Deleting:
    """Deletes batches of keys, but none that another store has.

    Parameters
    ----------
    store : ObjectStore
    spared : ObjectStore, optional
        The other one.
    dry_run : bool
    """

    def __init__(self, store: ObjectStore, spared: ObjectStore | None, *, dry_run: bool) -> None:
        self._store = store
        self._spared = spared
        self._dry_run = dry_run

    def __call__(self, batch: Sequence[str]) -> Sequence[Done]:
        """Delete those of the keys that are not spared."""
        extra = [key for key in batch if not self._is_spared(key)]
        if extra and not self._dry_run:
            self._store.delete_many(extra)
        return [Done("delete", key) for key in extra]

    def _is_spared(self, key: str) -> bool:
        if self._spared is None:
            return False
        try:
            return self._spared.exists(key)
        except InvalidKeyError:  # a key that the other store could not even have
            return False
