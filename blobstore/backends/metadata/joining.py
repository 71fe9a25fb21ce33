"""Which of the stores in a shared database is meant."""

from __future__ import annotations

from collections.abc import Callable

from blobstore.backends.metadata.sql import SqlBackend, split_namespace
from blobstore.errors import ConfigError
from blobstore.keys import random_id


def open_by_url(
    url: str,
    *,
    known: str | None,
    owner: Callable[[], str | None],
    claim: Callable[[str], str],
    fsync: bool,
    readonly: bool,
) -> SqlBackend:
    """Open the index that a folder, or the blobs, belong to; make a new one if there is none yet.

    A database holds many stores. A URL that names no namespace stands for the store of the
    folder; for a folder that is new, for the store whose blobs are there; and if there is none
    either, for a new store, which shares nothing with the others in that database.

    Parameters
    ----------
    url : str
    known : str or None
        The store id that the folder was made with, if it is not new.
    owner : callable
        Tells the store id that is written beside the blobs, if there is one.
    claim : callable
        Writes a store id beside the blobs, unless there is one; tells which is there then.
    fsync, readonly : bool
        As for `SqlBackend`.

    Raises
    ------
    ConfigError
        There is nothing to be read yet.
    IncompatibleStoreError
        The database does not know the store.
    """
    if split_namespace(url)[1] is not None:
        return SqlBackend(url, fsync=fsync, readonly=readonly)
    store_id = known or owner()
    if store_id is not None:
        return SqlBackend(url, fsync=fsync, readonly=readonly, store_id=store_id)
    if readonly:
        raise ConfigError(
            "neither the folder nor the blobs tell which store of the database is meant: add "
            "blobstore_namespace= to the URL, or open it without readonly=True to make a new one"
        )
    fresh = SqlBackend(url, namespace=random_id(), fsync=fsync)
    try:
        winner = claim(fresh.store_id)
        if winner == fresh.store_id:
            return fresh
        fresh.drop()  # another machine was first
    except BaseException:
        fresh.close()
        raise
    fresh.close()
    return SqlBackend(url, fsync=fsync, store_id=winner)
