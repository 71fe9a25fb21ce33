"""The async faces: every store and wrapper, with calls that are awaited.

>>> import asyncio
>>> from blobstore.aio import AsyncDictStore, AsyncGzipStore
>>> async def main():
...     async with AsyncGzipStore(AsyncDictStore()) as store:
...         await store.put("my_object_key", b"my object data")
...         return await store.get("my_object_key"), [key async for key in store.keys()]
>>> asyncio.run(main())
(b'my object data', ['my_object_key'])

There is one implementation of each store, the one without ``await``; `AsyncFace` does its calls in
worker threads, and the classes here are made of it when they are first used (`async_class`). What
is asynchronous by itself subclasses `AsyncObjectStore`, and can be put into any of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blobstore.registry import load, store_types

if TYPE_CHECKING:
    from blobstore.aio.classes import async_class as async_class
    from blobstore.aio.classes import to_async as to_async
    from blobstore.aio.classes import to_sync as to_sync
    from blobstore.aio.face import AsyncFace as AsyncFace
    from blobstore.aio.names import AsyncBase64Store as AsyncBase64Store
    from blobstore.aio.names import AsyncBucketStore as AsyncBucketStore
    from blobstore.aio.names import AsyncBufferStore as AsyncBufferStore
    from blobstore.aio.names import AsyncCachingStore as AsyncCachingStore
    from blobstore.aio.names import AsyncChecksumStore as AsyncChecksumStore
    from blobstore.aio.names import AsyncDictStore as AsyncDictStore
    from blobstore.aio.names import AsyncEncryptingStore as AsyncEncryptingStore
    from blobstore.aio.names import AsyncExceptionLoggingStore as AsyncExceptionLoggingStore
    from blobstore.aio.names import AsyncFanoutStore as AsyncFanoutStore
    from blobstore.aio.names import AsyncFilesystemBlobBackend as AsyncFilesystemBlobBackend
    from blobstore.aio.names import AsyncFilesystemStore as AsyncFilesystemStore
    from blobstore.aio.names import AsyncGzipStore as AsyncGzipStore
    from blobstore.aio.names import AsyncHashdirStore as AsyncHashdirStore
    from blobstore.aio.names import AsyncHashPrefixStore as AsyncHashPrefixStore
    from blobstore.aio.names import AsyncIdentityStore as AsyncIdentityStore
    from blobstore.aio.names import AsyncJsonStore as AsyncJsonStore
    from blobstore.aio.names import AsyncKeyTransformingStore as AsyncKeyTransformingStore
    from blobstore.aio.names import AsyncKeyValidatingStore as AsyncKeyValidatingStore
    from blobstore.aio.names import AsyncLoggingStore as AsyncLoggingStore
    from blobstore.aio.names import AsyncLz4Store as AsyncLz4Store
    from blobstore.aio.names import AsyncMirroringStore as AsyncMirroringStore
    from blobstore.aio.names import AsyncNotifyingStore as AsyncNotifyingStore
    from blobstore.aio.names import AsyncPrefixStore as AsyncPrefixStore
    from blobstore.aio.names import AsyncReadonlyStore as AsyncReadonlyStore
    from blobstore.aio.names import AsyncRegexRoutingStore as AsyncRegexRoutingStore
    from blobstore.aio.names import AsyncRegexValidatingStore as AsyncRegexValidatingStore
    from blobstore.aio.names import AsyncRetryingStore as AsyncRetryingStore
    from blobstore.aio.names import AsyncS3BlobBackend as AsyncS3BlobBackend
    from blobstore.aio.names import AsyncSafeFilesystemStore as AsyncSafeFilesystemStore
    from blobstore.aio.names import AsyncSqliteStore as AsyncSqliteStore
    from blobstore.aio.names import AsyncTextEncodingStore as AsyncTextEncodingStore
    from blobstore.aio.names import AsyncTransformingStore as AsyncTransformingStore
    from blobstore.aio.names import AsyncUrlEncodingStore as AsyncUrlEncodingStore
    from blobstore.aio.names import AsyncUrlValidatingStore as AsyncUrlValidatingStore
    from blobstore.aio.names import AsyncWriteonlyStore as AsyncWriteonlyStore
    from blobstore.aio.names import AsyncZipStore as AsyncZipStore
    from blobstore.aio.names import AsyncZstdStore as AsyncZstdStore
    from blobstore.aio.store import AsyncObjectStore as AsyncObjectStore
    from blobstore.aio.store import AsyncReader as AsyncReader
    from blobstore.aio.store import AsyncSink as AsyncSink
    from blobstore.aio.store import opening as opening
    from blobstore.aio.transfer import async_clear_store as async_clear_store
    from blobstore.aio.transfer import async_copy_store as async_copy_store
    from blobstore.aio.transfer import async_sync_stores as async_sync_stores

_HOME = {
    "AsyncFace": "face",
    "AsyncObjectStore": "store",
    "AsyncReader": "store",
    "AsyncSink": "store",
    "async_class": "classes",
    "async_clear_store": "transfer",
    "async_copy_store": "transfer",
    "async_sync_stores": "transfer",
    "opening": "store",
    "to_async": "classes",
    "to_sync": "classes",
}
"""Public name -> the module that has it."""

_STORES = (
    "AsyncBase64Store",
    "AsyncBucketStore",
    "AsyncBufferStore",
    "AsyncCachingStore",
    "AsyncChecksumStore",
    "AsyncDictStore",
    "AsyncEncryptingStore",
    "AsyncExceptionLoggingStore",
    "AsyncFanoutStore",
    "AsyncFilesystemBlobBackend",
    "AsyncFilesystemStore",
    "AsyncGzipStore",
    "AsyncHashPrefixStore",
    "AsyncHashdirStore",
    "AsyncIdentityStore",
    "AsyncJsonStore",
    "AsyncKeyTransformingStore",
    "AsyncKeyValidatingStore",
    "AsyncLoggingStore",
    "AsyncLz4Store",
    "AsyncMirroringStore",
    "AsyncNotifyingStore",
    "AsyncPrefixStore",
    "AsyncReadonlyStore",
    "AsyncRegexRoutingStore",
    "AsyncRegexValidatingStore",
    "AsyncRetryingStore",
    "AsyncS3BlobBackend",
    "AsyncSafeFilesystemStore",
    "AsyncSqliteStore",
    "AsyncTextEncodingStore",
    "AsyncTransformingStore",
    "AsyncUrlEncodingStore",
    "AsyncUrlValidatingStore",
    "AsyncWriteonlyStore",
    "AsyncZipStore",
    "AsyncZstdStore",
)
"""Made from the store type of the same name without ``Async``, as those are that are not here;
`names` declares them."""

__all__ = [*_HOME, *_STORES]  # noqa: PLE0604 - strings, by construction


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = load(f"{__name__}.{_HOME[name]}:{name}")
    elif name.startswith("Async") and name[len("Async") :] in store_types.built_in():
        from blobstore.aio.classes import async_class

        value = async_class(store_types.get(name.removeprefix("Async")))
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
