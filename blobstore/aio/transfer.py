"""Copy an async store into another one, make two of them equal, empty one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypedDict, Unpack

from blobstore.aio.classes import Taken
from blobstore.aio.loop_hop import LoopHop
from blobstore.aio.store import AsyncObjectStore
from blobstore.aio.threads import current_call, run_alone
from blobstore.protocols import ObjectStore
from blobstore.transfer import Progress, TransferReport, clear_store, copy_store, sync_stores
from blobstore.transfer.copying import Compare

AnyStore = AsyncObjectStore | ObjectStore


class TransferOptions(TypedDict, total=False):
    """Options of all three functions; see `blobstore.transfer.sync_stores`.

    Attributes
    ----------
    prefix : str
    dry_run : bool
    workers : int
    progress : callable
        Called on the event loop; its result is awaited if it can be.
    cancelled : callable
    """

    prefix: str
    dry_run: bool
    workers: int
    progress: Callable[[Progress], object] | None
    cancelled: Callable[[], bool] | None


class SyncOptions(TransferOptions, total=False):
    """Options of `async_sync_stores`."""

    overwrite: bool
    compare: Compare


async def async_copy_store(
    from_store: AnyStore,
    to_store: AnyStore,
    overwrite: bool = True,
    **options: Unpack[TransferOptions],
) -> TransferReport:
    """Copy every object of a store into another one: `copy_store`, awaited.

    If it is cancelled, it stops between two objects or in the middle of a large one, which is
    dropped; what was copied before is whole.

    Parameters
    ----------
    from_store, to_store : AsyncObjectStore or ObjectStore
    overwrite : bool
        False leaves every object that is there as it is.
    **options
        Those of `copy_store`; `progress` may be a coroutine function, and is called on the loop.

    Returns
    -------
    TransferReport

    Raises
    ------
    ConfigError, InvalidInputError, NotSupportedError, BlobStoreError
        As for `sync_stores`.

    Examples
    --------
    >>> from blobstore.aio import AsyncDictStore
    >>> async def main():
    ...     async with AsyncDictStore() as source, AsyncDictStore() as target:
    ...         await source.put("key", b"data")
    ...         report = await async_copy_store(source, target)
    ...         return report.copied, await target.get("key")
    >>> asyncio.run(main())
    (1, b'data')
    """
    work = partial(copy_store, overwrite=overwrite)
    return await _transfer(work, (from_store, to_store), {**options})


async def async_sync_stores(
    from_store: AnyStore,
    to_store: AnyStore,
    delete: bool = False,
    **options: Unpack[SyncOptions],
) -> TransferReport:
    """Bring one store to what another one holds: `sync_stores`, awaited.

    If it is cancelled, it stops as `async_copy_store` does.

    Parameters
    ----------
    from_store, to_store : AsyncObjectStore or ObjectStore
    delete : bool
        Remove what the source does not have.
    **options
        Those of `sync_stores`; `progress` may be a coroutine function, and is called on the loop.

    Returns
    -------
    TransferReport

    Raises
    ------
    ConfigError, InvalidInputError, NotSupportedError, BlobStoreError
        As for `sync_stores`.
    """
    work = partial(sync_stores, delete=delete)
    return await _transfer(work, (from_store, to_store), {**options})


async def async_clear_store(store: AnyStore, **options: Unpack[TransferOptions]) -> TransferReport:
    """Remove all objects that a store shows: `clear_store`, awaited.

    If it is cancelled, it stops between two objects.

    Parameters
    ----------
    store : AsyncObjectStore or ObjectStore
    **options
        Those of `clear_store`; `progress` may be a coroutine function, and is called on the loop.

    Returns
    -------
    TransferReport

    Raises
    ------
    ConfigError, InvalidInputError, NotSupportedError, BlobStoreError
        As for `sync_stores`.
    """
    return await _transfer(clear_store, (store,), {**options})


async def _transfer(
    work: Callable[..., TransferReport], stores: tuple[AnyStore, ...], options: dict[str, Any]
) -> TransferReport:
    loop = asyncio.get_running_loop()
    taken = Taken()
    sync = taken.replace(stores)
    for bridge in taken.bridges.values():
        bridge.remember(loop)  # a transfer has threads of its own
    return await run_alone(lambda: work(*sync, **_hooked(options, loop)))


def _hooked(options: dict[str, Any], loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    """Have progress told on the loop, and stop when the awaited call is cancelled."""
    call = current_call()
    assert call is not None
    hooked = dict(options)
    asked = options.get("cancelled")
    if asked is None:
        hooked["cancelled"] = lambda: call.cancelled
    elif callable(asked):
        hooked["cancelled"] = lambda: call.cancelled or asked()
    progress = options.get("progress")
    if callable(progress):
        hooked["progress"] = partial(_tell, LoopHop(progress, loop), progress)
    return hooked


def _tell(hop: LoopHop, progress: Callable[[Progress], object], step: Progress) -> None:
    async def tell() -> None:
        result = progress(step)
        if inspect.isawaitable(result):
            await result

    hop.wait(tell)
