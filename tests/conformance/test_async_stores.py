"""The async faces pass the suite of the stores without ``await``: each is driven over a bridge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from blobstore.aio import (
    AsyncCachingStore,
    AsyncDictStore,
    AsyncFilesystemStore,
    AsyncGzipStore,
    AsyncHashdirStore,
    AsyncMirroringStore,
    AsyncObjectStore,
    AsyncPrefixStore,
    AsyncSqliteStore,
    to_async,
)
from blobstore.aio.bridge import SyncBridge
from blobstore.backends import DictStore
from blobstore.errors import ClosedError, InvalidKeyError, KeyNotFoundError
from blobstore.protocols import Capabilities
from blobstore.streams import as_contiguous
from blobstore.testing.object_store import ObjectStoreSuite


class FiveMethods(AsyncObjectStore):
    """The least that an asynchronous store has to have; every call gives way to others."""

    capabilities = Capabilities(persistent=False)

    def __init__(self) -> None:
        self.objects: dict[str, bytes] | None = {}

    async def _open(self, key: str = "") -> dict[str, bytes]:
        await asyncio.sleep(0)
        if self.objects is None:
            raise ClosedError("closed")
        if not isinstance(key, str):
            raise InvalidKeyError("a key is a str")
        return self.objects

    async def get(self, key: str) -> bytes:
        try:
            return (await self._open(key))[key]
        except KeyError as exc:
            raise KeyNotFoundError("none", location=key) from exc

    async def put(self, key: str, data: Any) -> None:
        (await self._open(key))[key] = bytes(as_contiguous(data))

    async def exists(self, key: str) -> bool:
        return key in await self._open(key)

    async def delete(self, key: str) -> None:
        try:
            del (await self._open(key))[key]
        except KeyError as exc:
            raise KeyNotFoundError("none", location=key) from exc

    async def keys(self, prefix: str = ""):
        for key in list(await self._open()):
            if key.startswith(prefix):
                yield key

    async def close(self) -> None:
        self.objects = None


class Ranged(FiveMethods):
    """Says that it reads no more than it is asked for, so that sources are not read whole."""

    capabilities = Capabilities(persistent=False, ranges=True)


@pytest.mark.usefixtures("background_loop")
class AsyncStoreSuite(ObjectStoreSuite):
    forks = False
    picklable = False
    machine_examples = 3

    make: ClassVar[Callable[[Path], AsyncObjectStore]]

    def make_store(self, tmp_path):
        return SyncBridge(type(self).make(tmp_path), self.loop)

    def test_it_is_what_is_driven(self, store):
        assert isinstance(store.async_store, AsyncObjectStore)


def suite(make: Callable[[Path], AsyncObjectStore], **attributes: Any) -> type[AsyncStoreSuite]:
    """Make the suite of one more store: one line for each."""
    return type("Suite", (AsyncStoreSuite,), {"make": staticmethod(make), **attributes})


TestDict = suite(lambda _: AsyncDictStore())
TestFilesystem = suite(lambda path: AsyncFilesystemStore(path / "root"), key_style="paths")
TestHashdir = suite(lambda path: AsyncHashdirStore(path / "root"))
TestSqlite = suite(lambda path: AsyncSqliteStore(path / "objects.db"))
TestDefaults = suite(lambda _: FiveMethods())
TestDefaultsWithRanges = suite(lambda _: Ranged())
TestGzipOverDict = suite(lambda _: AsyncGzipStore(AsyncDictStore()))
TestPrefixOverNative = suite(lambda _: AsyncPrefixStore(FiveMethods(), "prefix/"))
TestGzipOverNative = suite(lambda _: AsyncGzipStore(Ranged()))
TestFaceOfABridge = suite(lambda _: to_async(SyncBridge(Ranged())))
TestNestedOverNative = suite(
    lambda path: AsyncCachingStore(
        AsyncMirroringStore([AsyncFilesystemStore(path / "root"), FiveMethods(), DictStore()]),
        AsyncDictStore(),
    ),
    key_style="paths",
)
