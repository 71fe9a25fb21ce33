"""Copies, in a local folder, of objects that never change: the near side of a store in a bucket."""

from __future__ import annotations

from pathlib import Path

from blobstore.protocols import ObjectStore
from blobstore.streams import Buffer, Source
from blobstore.wrappers.cache import CachingStore
from blobstore.wrappers.cache_copies import CACHE_ERRORS
from blobstore.wrappers.cache_folder import CacheFolder
from blobstore.wrappers.cache_guard import Fetch


class LocalCacheStore(CachingStore):
    """A store of objects that never change, what was read of it being kept in a folder.

    A hit asks the main store nothing. Only reading whole objects fills the cache: what is written
    is mostly read by others, or never, and would be written twice.

    Nothing here finds out that a copy is damaged. Whoever knows the checksum of an object does, and
    has to `forget` its copy and read once more before taking the object itself for damaged.

    Parameters
    ----------
    main_store : ObjectStore
    path : Path
        The folder; several stores and processes may share it.
    max_bytes : int
        How much all copies in the folder may have together.
    owner : str
        Whose objects these are, so that equal keys of other stores are told apart.

    Examples
    --------
    >>> import tempfile
    >>> from blobstore.backends import DictStore
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = LocalCacheStore(DictStore(), Path(folder.name), 1 << 20, "me")
    >>> store.put("key", b"1")
    >>> store.holds("key"), store.get("key"), store.holds("key")
    (False, b'1', True)
    >>> store.forget("key")
    >>> store.holds("key"), store.get("key")
    (False, b'1')
    >>> folder.cleanup()
    """

    def __init__(self, main_store: ObjectStore, path: Path, max_bytes: int, owner: str) -> None:
        super().__init__(main_store, CacheFolder(path, max_bytes, owner))
        self._most = max_bytes

    def holds(self, key: str) -> bool:
        """Whether there is a copy."""
        try:
            return self.cache_store.exists(key)
        except CACHE_ERRORS:  # which it may or may not be: it could not be read, in any case
            return False

    def forget(self, key: str) -> None:
        """Remove the copy of an object; one that cannot be removed is not served any more."""
        with self._guard.changing(self._check(key)):
            self._drop(key)

    def _fill(self, key: str, name: str | None, fetch: Fetch, data: bytes) -> None:
        if len(data) <= self._most:
            super()._fill(key, name, fetch, data)

    def _fill_from(self, key: str, name: str | None, fetch: Fetch, source: Source) -> bool:
        return source.size <= self._most and super()._fill_from(key, name, fetch, source)

    def _write_through(self, key: str, data: Buffer) -> None:
        """Not at all."""
