"""Stores that log what is done with them, and what goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from blobstore.entry import ObjectStat
from blobstore.errors import ConfigError
from blobstore.protocols import Capabilities, Leftover, ObjectStore
from blobstore.streams import Buffer, Sink, Source
from blobstore.wrappers.base import WrapperSink, WrapperStore

AnyLogger = logging.Logger | logging.LoggerAdapter[Any]


class LoggingStore(WrapperStore):
    """Logs a line at INFO before each operation: "name operation key".

    Each method logs under its own name, those with several keys once for each of them. Nothing
    but the operation and the key is ever logged; a key with unprintable characters is written as
    Python would, so that it cannot look like a line of its own.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.
    store_name : str
        What it is called in the log.
    logger : Logger, LoggerAdapter or str, optional
        Or its name; by default the root logger.

    Raises
    ------
    ConfigError
        The logger is none.

    Examples
    --------
    >>> import logging, sys
    >>> from blobstore.backends import DictStore
    >>> log = logging.getLogger("example")
    >>> log.setLevel("INFO")
    >>> log.addHandler(logging.StreamHandler(sys.stdout))
    >>> store = LoggingStore(DictStore(), "images", log)
    >>> store.put("cat", b"1")
    images put cat
    >>> list(store.keys())
    images keys
    ['cat']
    """

    def __init__(
        self,
        store: ObjectStore,
        store_name: str = "store",
        logger: AnyLogger | str | None = None,
    ) -> None:
        super().__init__(store)
        self.store_name = store_name
        self.logger = _logger(logger)

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        self._log("get", key)
        return self.store.get(key)

    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object."""
        self._log("put", key)
        self.store.put(key, data)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        self._log("exists", key)
        return self.store.exists(key)

    def delete(self, key: str) -> Any:
        """Remove an object."""
        self._log("delete", key)
        self.store.delete(key)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys that start with `prefix`."""
        self._log("keys", *([prefix] if prefix else []))
        return self.store.keys(prefix)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object."""
        self._log("get_range", key)
        return self.store.get_range(key, start, stop)

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading."""
        self._log("open", key)
        return self.store.open(key)

    def source(self, key: str) -> Source:
        """Prepare an object for reading in several ways."""
        self._log("source", key)
        return self.store.source(key)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece."""
        self._log("writer", key)
        return self.store.writer(key, size_hint)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of an object."""
        self._log("stat", key)
        return self.store.stat(key)

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of its own."""
        self._log("local_path", key)
        return self.store.local_path(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are fine."""
        self.store.delete_many(self._logged("delete_many", keys))

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store."""
        self._log("copy", source, target)
        self.store.copy(source, target)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one."""
        self._log("put_if_absent", key)
        return self.store.put_if_absent(key, data)

    def sync(self, keys: Iterable[str]) -> None:
        """Return once these objects would survive a power cut."""
        self.store.sync(self._logged("sync", keys))

    def leftovers(self) -> Iterator[Leftover]:
        """What interrupted writers left behind."""
        self._log("leftovers")
        return self.store.leftovers()

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`."""
        self._log("remove_leftover", name)
        self.store.remove_leftover(name)

    def _shown(self) -> dict[str, Any]:
        return {"store_name": self.store_name}

    def _log(self, operation: str, *keys: str) -> None:
        self.logger.info("%s", " ".join((self.store_name, operation, *map(_printable, keys))))

    def _logged(self, operation: str, keys: Iterable[str]) -> list[str]:
        found = list(keys)
        for key in found:
            self._log(operation, key)
        return found


class ExceptionLoggingStore(LoggingStore):
    """Logs operations at INFO, and what goes wrong with them at ERROR: "failed to put key: why".

    As in the older library, five methods *swallow* the error then: `put` does nothing, `get`
    answers None, `exists` and `delete` answer False (`delete` that went well answers True), `keys`
    gives no more keys. Do not build on such answers: they make an outage look like an absent
    object. So what keeps promises about failures (a `BlobStore`, a mirror, a cache, a transfer)
    refuses such a store: put it around those, not beneath. All other methods have no such answer,
    and raise what they have logged; so do the five with ``reraise=True``.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.
    store_name : str
        What it is called in the log.
    logger : Logger, LoggerAdapter or str, optional
        Or its name; by default the root logger.
    reraise : bool
        Whether errors are raised after they were logged.

    Raises
    ------
    ConfigError
        The logger is none.

    Examples
    --------
    >>> import logging, sys
    >>> from blobstore.backends import DictStore
    >>> log = logging.getLogger("example.errors")
    >>> log.setLevel("ERROR")
    >>> log.propagate = False
    >>> log.addHandler(logging.StreamHandler(sys.stdout))
    >>> store = ExceptionLoggingStore(DictStore(), logger=log)
    >>> print(store.get("absent"))
    failed to get absent: there is no object 'absent' in memory
    None
    """

    def __init__(
        self,
        store: ObjectStore,
        store_name: str = "store",
        logger: AnyLogger | str | None = None,
        *,
        reraise: bool = False,
    ) -> None:
        super().__init__(store, store_name, logger)
        self.reraise = reraise

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store beneath; `raises` only if it is to."""
        beneath = self.store.capabilities
        return replace(beneath, raises=beneath.raises and self.reraise)

    def get(self, key: str) -> Any:
        """Read a whole object; None if that fails."""
        with self._swallowing("get", key):
            return super().get(key)
        return None

    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object, or log why not."""
        with self._swallowing("put", key):
            super().put(key, data)

    def exists(self, key: str) -> bool:
        """Whether there is such an object; False if that fails."""
        with self._swallowing("exists", key):
            return super().exists(key)
        return False

    def delete(self, key: str) -> Any:
        """Remove an object; True, or False if that fails."""
        with self._swallowing("delete", key):
            super().delete(key)
            return True
        return False

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys that start with `prefix`; none, or no more of them, if that fails."""
        found: Iterator[str] = iter(())
        with self._swallowing("get keys"):
            found = super().keys(prefix)
        return self._until_it_fails(found)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object."""
        with self._raising("get_range", key):
            return super().get_range(key, start, stop)

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading."""
        with self._raising("open", key):
            return super().open(key)

    def source(self, key: str) -> Source:
        """Prepare an object for reading in several ways."""
        with self._raising("source", key):
            return super().source(key)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece."""
        with self._raising("writer", key):
            return _LoggingSink(super().writer(key, size_hint), self, key)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of an object."""
        with self._raising("stat", key):
            return super().stat(key)

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of its own."""
        with self._raising("local_path", key):
            return super().local_path(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are fine."""
        with self._raising("delete_many"):
            super().delete_many(keys)

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store."""
        with self._raising("copy", source, target):
            super().copy(source, target)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one."""
        with self._raising("put_if_absent", key):
            return super().put_if_absent(key, data)

    def sync(self, keys: Iterable[str]) -> None:
        """Return once these objects would survive a power cut."""
        with self._raising("sync"):
            super().sync(keys)

    def leftovers(self) -> Iterator[Leftover]:
        """What interrupted writers left behind."""
        with self._raising("leftovers"):
            return super().leftovers()

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`."""
        with self._raising("remove_leftover", name):
            super().remove_leftover(name)

    def _until_it_fails(self, found: Iterator[str]) -> Iterator[str]:
        while True:
            key = None
            with self._swallowing("get keys"):
                key = next(found, None)
            if key is None:
                return
            yield key

    def _raising(self, operation: str, *keys: str) -> _Raising:
        return _Raising(self, operation, *keys)

    def _swallowing(self, operation: str, *keys: str) -> _Swallowing:
        return _Swallowing(self, operation, *keys)


class _Raising:
    """Logs what is raised inside, and lets it go on."""

    def __init__(self, store: ExceptionLoggingStore, operation: str, *keys: str) -> None:
        self._store = store
        self._words = " ".join((operation, *map(_printable, keys)))

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, tb: object) -> bool | None:
        if isinstance(exc, Exception):
            self._store.logger.error("failed to %s: %s", self._words, _printable(exc))
        return None


class _Swallowing(_Raising):
    """Lets nothing go on, whatever it is, unless the store is to: its users rely on that."""

    def __exit__(self, kind: object, exc: BaseException | None, tb: object) -> bool:
        super().__exit__(kind, exc, tb)
        return isinstance(exc, Exception) and not self._store.reraise


class _LoggingSink(WrapperSink):
    """Logs what goes wrong with a writer."""

    def __init__(self, inner: Sink, store: ExceptionLoggingStore, key: str) -> None:
        super().__init__(inner)
        self._store = store
        self._key = key

    def write(self, data: Buffer, /) -> int:
        with self._logging():
            return super().write(data)

    def path(self) -> Path:
        with self._logging():
            return super().path()

    def commit(self) -> None:
        with self._logging():
            super().commit()

    def _logging(self) -> _Raising:
        return self._store._raising("writer", self._key)  # noqa: SLF001 - a part of it


def _logger(logger: object) -> AnyLogger:
    if logger is None or isinstance(logger, str):
        return logging.getLogger(logger)
    if not isinstance(logger, logging.Logger | logging.LoggerAdapter):
        raise ConfigError(f"logger must be a logger or the name of one, not {logger!r}")
    return logger


def _printable(value: object) -> str:
    text = str(value)
    return text if text.isprintable() else repr(text)
