"""Stores that can only be read, or only be written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NoReturn

from blobstore.entry import ObjectStat
from blobstore.errors import NotSupportedError
from blobstore.protocols import Capabilities
from blobstore.streams import Buffer, Sink, Source
from blobstore.wrappers.base import WrapperStore


class ReadonlyStore(WrapperStore):
    """Lets read, and refuses every change: `NotSupportedError`, a `NotImplementedError`.

    A guard against mistakes, not against people: `local_path` gives the path of the file itself.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = ReadonlyStore(DictStore())
    >>> store.put("key", b"1")
    Traceback (most recent call last):
    ...
    blobstore.errors.NotSupportedError: put is not for a ReadonlyStore: use the store beneath it
    """

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store beneath, without writing."""
        return replace(self.store.capabilities, writable=False, conditional_writes=False)

    def put(self, key: str, data: Buffer) -> NoReturn:
        """Refuse."""
        _refuse(self, "put")

    def delete(self, key: str) -> NoReturn:
        """Refuse."""
        _refuse(self, "delete")

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Refuse."""
        _refuse(self, "writer")

    def delete_many(self, keys: Iterable[str]) -> NoReturn:
        """Refuse."""
        _refuse(self, "delete_many")

    def copy(self, source: str, target: str) -> NoReturn:
        """Refuse."""
        _refuse(self, "copy")

    def put_if_absent(self, key: str, data: Buffer) -> NoReturn:
        """Refuse."""
        _refuse(self, "put_if_absent")

    def remove_leftover(self, name: str) -> NoReturn:
        """Refuse."""
        _refuse(self, "remove_leftover")


class WriteonlyStore(WrapperStore):
    """Lets write and delete, and tells nothing of what is there: `NotSupportedError`.

    `copy` is a write: what it copies does not come out. `delete` and `put_if_absent` do as the
    store beneath does, and so say whether there was an object; nothing says what was in it.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = WriteonlyStore(DictStore())
    >>> store.put("key", b"1")
    >>> store.get("key")
    Traceback (most recent call last):
    ...
    blobstore.errors.NotSupportedError: get is not for a WriteonlyStore: use the store beneath it
    """

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store beneath, without reading and listing."""
        return replace(
            self.store.capabilities,
            list=False,
            ranges=False,
            local_files=False,
            etags=False,
            readable=False,
        )

    def get(self, key: str) -> NoReturn:
        """Refuse."""
        _refuse(self, "get")

    def exists(self, key: str) -> NoReturn:
        """Refuse."""
        _refuse(self, "exists")

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Refuse."""
        _refuse(self, "keys")

    def get_range(self, key: str, start: int, stop: int) -> NoReturn:
        """Refuse."""
        _refuse(self, "get_range")

    def open(self, key: str) -> BinaryIO:
        """Refuse."""
        _refuse(self, "open")

    def source(self, key: str) -> Source:
        """Refuse."""
        _refuse(self, "source")

    def stat(self, key: str) -> ObjectStat:
        """Refuse."""
        _refuse(self, "stat")

    def local_path(self, key: str) -> Path | None:
        """Refuse."""
        _refuse(self, "local_path")


def _refuse(store: WrapperStore, what: str) -> NoReturn:
    raise NotSupportedError(f"{what} is not for a {type(store).__name__}: use the store beneath it")
