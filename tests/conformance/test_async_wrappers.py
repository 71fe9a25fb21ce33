"""The async face of every store type that there is; a new one that needs a line here fails."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from blobstore import aio
from blobstore.aio.bridge import SyncBridge
from blobstore.errors import NotSupportedError
from blobstore.keys import random_id
from blobstore.registry import store_types
from blobstore.testing.object_store import ObjectStoreSuite
from blobstore.testing.value_store import ValueStoreSuite
from blobstore.wrappers.prefix import PrefixTransformer

KEY = bytes(range(32))
PATHS = {"key_style": "paths"}
IN_BUCKET = {
    "pytestmark": pytest.mark.usefixtures("in_bucket"),
    # This server refuses long names between two slashes.
    "odd_keys": property(
        lambda suite: [key for key in ObjectStoreSuite.odd_keys.fget(suite) if len(key) < 1000]
    ),
}


def bucket_store(_: Path) -> aio.AsyncObjectStore:
    return aio.AsyncBucketStore(**Bucket.arguments, prefix=random_id())


def s3_blob_backend(_: Path) -> aio.AsyncObjectStore:
    return aio.AsyncS3BlobBackend(
        Bucket.arguments["bucket_name"],
        random_id(),
        Bucket.arguments["endpoint_url"],
        Bucket.arguments["s3_access_key"],
        Bucket.arguments["s3_secret_key"],
    )


# Store types that keep bytes: how to make the async one, and what is special about its suite.
STORES: dict[str, tuple[Callable[[Path], aio.AsyncObjectStore], dict[str, Any]]] = {
    "DictStore": (lambda _: aio.AsyncDictStore(), {}),
    "FilesystemStore": (lambda p: aio.AsyncFilesystemStore(p / "r"), PATHS),
    "FilesystemBlobBackend": (
        lambda p: aio.AsyncFilesystemBlobBackend(p / "r"),
        {"key_style": "names"},
    ),
    "HashdirStore": (lambda p: aio.AsyncHashdirStore(p / "r"), {}),
    "SafeFilesystemStore": (lambda p: aio.AsyncSafeFilesystemStore(p / "r"), {}),
    "BucketStore": (bucket_store, IN_BUCKET),
    "S3BlobBackend": (s3_blob_backend, IN_BUCKET),
    "SqliteStore": (lambda p: aio.AsyncSqliteStore(p / "r.db"), {}),
    "ZipStore": (lambda p: aio.AsyncZipStore(p / "r.zip"), PATHS),
}
WRAPPERS: dict[str, Callable[[Any], aio.AsyncObjectStore]] = {
    "EncryptingStore": lambda base: aio.AsyncEncryptingStore(base, KEY),
    "MirroringStore": lambda base: aio.AsyncMirroringStore([base, aio.AsyncDictStore()]),
    "FanoutStore": lambda base: aio.AsyncFanoutStore([base]),
    "CachingStore": lambda base: aio.AsyncCachingStore(base, aio.AsyncDictStore()),
    "ExceptionLoggingStore": lambda base: aio.AsyncExceptionLoggingStore(base, reraise=True),
    "PrefixStore": lambda base: aio.AsyncPrefixStore(base, "p-"),
    "HashPrefixStore": lambda base: aio.AsyncHashPrefixStore(base, 4, "-"),
    "KeyValidatingStore": lambda base: aio.AsyncKeyValidatingStore(base, lambda key: None),
    "RegexValidatingStore": lambda base: aio.AsyncRegexValidatingStore(base, "(?s).*"),
    "RegexRoutingStore": lambda base: aio.AsyncRegexRoutingStore(
        base, [("^b", PrefixTransformer("B-")), ("", PrefixTransformer("other-"))]
    ),
}
VALUES = {"TextEncodingStore", "JsonStore", "BufferStore"}
APART = {"ReadonlyStore", "WriteonlyStore", "UrlValidatingStore"}
"""Not for these suites: tested below, like those of other values than bytes."""
WRAPPERS |= {
    name: aio.async_class(store_types.get(name))
    for name in set(store_types.built_in()) - {*STORES, *WRAPPERS, *VALUES, *APART}
}
"""Wrappers that need nothing but a store have no line of their own."""


class Bucket:
    """Where the stores in buckets are; they share one."""

    arguments: ClassVar[dict[str, Any]]


@pytest.fixture(scope="module")
def in_bucket(s3_server):
    Bucket.arguments = {
        "bucket_name": s3_server.new_bucket(),
        "endpoint_url": s3_server.endpoint,
        "s3_access_key": s3_server.access_key,
        "s3_secret_key": s3_server.secret_key,
    }
    yield
    s3_server.delete_bucket(Bucket.arguments["bucket_name"])


@pytest.mark.usefixtures("background_loop")
class Driven(ObjectStoreSuite):
    forks = False
    picklable = False
    machine_examples = 2
    loop: ClassVar[asyncio.AbstractEventLoop]
    make: ClassVar[Callable[[Path], aio.AsyncObjectStore]]

    def make_store(self, tmp_path):
        return SyncBridge(type(self).make(tmp_path), self.loop)


def _suites() -> dict[str, type]:
    made: dict[str, type] = {}
    for name, (make, special) in STORES.items():
        made[name] = type(f"TestAsync{name}", (Driven,), {"make": staticmethod(make), **special})
    for name, wrap in WRAPPERS.items():
        over: Callable[[Path], Any] = lambda _, wrap=wrap: wrap(aio.AsyncDictStore())  # noqa: E731
        made[name] = type(f"TestAsync{name}", (Driven,), {"make": staticmethod(over)})
    return made


for _suite in _suites().values():
    globals()[_suite.__name__] = _suite


def test_every_store_type_is_here():
    assert {*STORES, *WRAPPERS, *VALUES, *APART} == set(store_types.built_in())


@pytest.mark.usefixtures("background_loop")
class DrivenValues(ValueStoreSuite):
    picklable = False
    loop: ClassVar[asyncio.AbstractEventLoop]
    wrap: ClassVar[Callable[[Any], aio.AsyncObjectStore]]

    def make_store(self, tmp_path):
        return SyncBridge(type(self).wrap(aio.AsyncDictStore()), self.loop)


class TestAsyncTextEncodingStore(DrivenValues):
    wrap = aio.AsyncTextEncodingStore
    values = ("", "text", "ünï")
    wrong_values = (b"bytes", 5)


class TestAsyncJsonStore(DrivenValues):
    wrap = aio.AsyncJsonStore
    values = (None, [1, "2"], {"a": {"b": 1.5}})
    wrong_values = ({1: 2}, {2, 3}, float("nan"))


class TestAsyncBufferStore(DrivenValues):
    wrap = aio.AsyncBufferStore
    values = (b"", b"bytes" * 1000)
    wrong_values = (b"bytes", None)

    def fresh(self, value):
        return io.BytesIO(value)

    def comparable(self, value):
        return value.read()


@pytest.mark.asyncio
async def test_the_others_keep_their_word():
    async with aio.AsyncReadonlyStore(aio.AsyncDictStore()) as store:
        with pytest.raises(NotSupportedError):
            await store.put("key", b"")
    async with aio.AsyncWriteonlyStore(aio.AsyncDictStore()) as store:
        await store.put("key", b"")
        with pytest.raises(NotSupportedError):
            await store.get("key")
    async with aio.AsyncUrlValidatingStore(aio.AsyncDictStore()) as store:
        await store.put("https://example.org/a", b"1")
        with pytest.raises(KeyError):
            await store.put("elsewhere", b"1")
