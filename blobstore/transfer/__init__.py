"""Copy a store into another one, make two of them equal, empty one.

Each object is copied wholly or not at all, so whatever ends a transfer (an error, a kill, a power
cut), the same call goes on from where it was. Objects move in pieces, several at a time.
"""

from __future__ import annotations

from collections.abc import Callable

from blobstore.errors import ConfigError
from blobstore.protocols import ObjectStore
from blobstore.transfer.checks import check_arguments, require_source, require_target
from blobstore.transfer.copying import Compare, Copying
from blobstore.transfer.crew import Action, Crew, Progress, TransferReport
from blobstore.transfer.deleting import Deleting
from blobstore.transfer.listing import batches, listed

__all__ = ["Action", "Progress", "TransferReport", "clear_store", "copy_store", "sync_stores"]


def sync_stores(
    from_store: ObjectStore,
    to_store: ObjectStore,
    delete: bool = False,
    *,
    prefix: str = "",
    overwrite: bool = True,
    dry_run: bool = False,
    workers: int = 8,
    compare: Compare = "content",
    progress: Callable[[Progress], object] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> TransferReport:
    """Bring one store to what another one holds: new and changed objects are copied.

    With `delete` both hold the same afterwards. Objects that are the same already are not written.

    Parameters
    ----------
    from_store : ObjectStore
        Is only read; must be able to list.
    to_store : ObjectStore
        Takes the same kind of values. An object in it that is damaged is replaced.
    delete : bool
        Remove what the source does not have. This happens first, because it may be in the way: an
        object "a" of one named "a/b".
    prefix : str
        Look only at keys that start with it, in both stores.
    overwrite : bool
        False leaves every object that is there as it is.
    dry_run : bool
        Change nothing, and report what would be done.
    workers : int
        How many objects are on their way at a time, each in a thread. A store that cannot stream
        holds one object in memory for each.
    compare : {"content", "size"}
        When an object counts as the same. "content" reads it from both, at least where the sizes
        agree. "size" believes in equal sizes, which misses changes that keep the size.
    progress : callable, optional
        Called with a `Progress` after each object, in the thread of this call.
    cancelled : callable, optional
        Asked before each object and between the pieces of large ones, from several threads; once
        it returns True, nothing new is begun, what is half written is dropped, and the report says so.

    Returns
    -------
    TransferReport

    Raises
    ------
    ConfigError, InvalidInputError
        An argument is wrong, the stores keep values of different kinds, or one of them swallows
        errors (`ExceptionLoggingStore`), so that an outage looks like an absent object; nothing was
        written.
    NotSupportedError
        The source cannot list, or the target cannot do what is needed; nothing was written.
    BlobStoreError
        The first error met. Objects on their way were finished; a note on it tells what was done.

    Notes
    -----
    `str` values are compared, and so are containers of plain values as JSON has them. Other
    values than those and bytes are copied each time.

    With `delete`, neither store may lie inside the other.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> source, target = DictStore(), DictStore()
    >>> source.put("a", b"new")
    >>> target.put("a", b"old")
    >>> target.put("b", b"extra")
    >>> report = sync_stores(source, target, delete=True)
    >>> report.copied, report.deleted, list(target.keys()), target.get("a")
    (1, 1, ['a'], b'new')
    """
    check_arguments(prefix, delete=delete, overwrite=overwrite, dry_run=dry_run)
    if compare not in ("content", "size"):
        raise ConfigError(f"compare must be 'content' or 'size', not {compare!r}")
    crew = Crew(workers, progress, cancelled, dry_run=dry_run)
    require_source(from_store)
    require_target(to_store, readable=True, lists=delete)
    copying = Copying(
        from_store,
        to_store,
        overwrite=overwrite,
        compare=compare if overwrite else None,
        dry_run=dry_run,
        stopping=crew.stopping,
    )
    with listed(from_store.keys(prefix), crew.stopping) as keys:
        if delete and to_store is not from_store:
            deleting = Deleting(to_store, from_store, dry_run=dry_run)
            crew.run(deleting, batches(to_store.keys(prefix)))
        crew.run(copying, keys)
    return crew.report()


def copy_store(
    from_store: ObjectStore,
    to_store: ObjectStore,
    overwrite: bool = True,
    *,
    prefix: str = "",
    dry_run: bool = False,
    workers: int = 8,
    progress: Callable[[Progress], object] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> TransferReport:
    """Copy every object of a store into another one, without looking at what is there.

    `sync_stores` copies only what differs.

    Parameters
    ----------
    from_store : ObjectStore
        Is only read; must be able to list.
    to_store : ObjectStore
        Takes the same kind of values. The same object as `from_store` is left as it is.
    overwrite : bool
        False leaves every object that is there as it is.
    prefix, dry_run, workers, progress, cancelled
        As for `sync_stores`.

    Returns
    -------
    TransferReport

    Raises
    ------
    ConfigError, InvalidInputError, NotSupportedError, BlobStoreError
        As for `sync_stores`.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> source, target = DictStore(), DictStore()
    >>> source.put("a", b"data")
    >>> copy_store(source, target).bytes
    4
    >>> copy_store(source, target, overwrite=False).unchanged
    1
    """
    check_arguments(prefix, overwrite=overwrite, dry_run=dry_run)
    crew = Crew(workers, progress, cancelled, dry_run=dry_run)
    require_source(from_store)
    require_target(to_store, readable=not overwrite, lists=False)
    copying = Copying(
        from_store,
        to_store,
        overwrite=overwrite,
        compare=None,
        dry_run=dry_run,
        stopping=crew.stopping,
    )
    with listed(from_store.keys(prefix), crew.stopping) as keys:
        crew.run(copying, keys)
    return crew.report()


def clear_store(
    store: ObjectStore,
    *,
    prefix: str = "",
    dry_run: bool = False,
    workers: int = 8,
    progress: Callable[[Progress], object] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> TransferReport:
    """Remove all objects that a store shows, and nothing else that may lie in the same place.

    Parameters
    ----------
    store : ObjectStore
        Must be able to list. Over a `PrefixStore`, objects outside its prefix stay.
    prefix, dry_run, workers, progress, cancelled
        As for `sync_stores`.

    Returns
    -------
    TransferReport

    Raises
    ------
    ConfigError, InvalidInputError, NotSupportedError, BlobStoreError
        As for `sync_stores`.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = DictStore()
    >>> for key in ("run/1", "run/2", "notes"):
    ...     store.put(key, b"")
    >>> clear_store(store, prefix="run/").deleted, list(store.keys())
    (2, ['notes'])
    """
    check_arguments(prefix, dry_run=dry_run)
    crew = Crew(workers, progress, cancelled, dry_run=dry_run)
    require_target(store, readable=False, lists=True)
    crew.run(Deleting(store, None, dry_run=dry_run), batches(store.keys(prefix)))
    return crew.report()
