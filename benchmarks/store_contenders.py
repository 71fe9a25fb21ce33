"""Object stores, and what they are measured beside: bytes under keys, each behind the same few methods.

As in `contenders`: options are the defaults unless said, and nobody is asked to sync to disk.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.contenders import Contender


class ObjectContender(Contender):
    """Stores bytes under keys, and large objects piece by piece.

    Attributes
    ----------
    replaces : bool
        Whether objects can be overwritten and deleted.
    slow_ranges : bool
        Whether a range costs what lies before it, so that a tenth of them is enough.
    """

    replaces: ClassVar[bool] = True
    slow_ranges: ClassVar[bool] = False

    def delete(self, key: str) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Bring what was put into its final form; measured with the puts."""

    def writer(self, key: str, size: int) -> AbstractContextManager[Any]:
        """Something to `write` so many bytes to, which are there at the end of the block."""
        raise NotImplementedError

    def open(self, key: str) -> Any:
        """Something to `read`, to be closed by the caller."""
        raise NotImplementedError

    def get_range(self, key: str, start: int, stop: int) -> Any:
        raise NotImplementedError


class Store(ObjectContender):
    """One of blobstore's own."""

    ours = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.store: Any = self.make()

    def make(self) -> Any:
        raise NotImplementedError

    def name(self, key: str) -> str:
        """What the store calls a key, or the beginning of one."""
        return key

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.store.put(self.name(key), value)

    def get(self, key: str) -> Any:
        return self.store.get(self.name(key))

    def keys(self, prefix: str) -> list[str]:
        return list(self.store.keys(self.name(prefix)))

    def delete(self, key: str) -> None:
        self.store.delete(self.name(key))

    def writer(self, key: str, size: int) -> AbstractContextManager[Any]:
        return self.store.writer(self.name(key), size)

    def open(self, key: str) -> Any:
        return self.store.open(self.name(key))

    def get_range(self, key: str, start: int, stop: int) -> Any:
        return self.store.get_range(self.name(key), start, stop)

    def close(self) -> None:
        self.store.close()


class InMemory(Store):
    note = "in memory: what is put is kept, and counts as memory; gets copy nothing"

    def make(self) -> Any:
        from blobstore import DictStore

        return DictStore()


class Filesystem(Store):
    def make(self) -> Any:
        from blobstore import FilesystemStore

        return FilesystemStore(self.folder)


class FilesystemBlobs(Store):
    note = "ids have no slashes: all of these begin alike, and so share one of its folders"

    def make(self) -> Any:
        from blobstore import FilesystemBlobBackend

        return FilesystemBlobBackend(self.folder)

    def name(self, key: str) -> str:
        return key.replace("/", ".")


class InSqlite(Store):
    note = (
        "WAL, synchronous=NORMAL, a transaction for each put; an object over 1 MiB in several rows"
    )

    def make(self) -> Any:
        from blobstore import SqliteStore

        return SqliteStore(self.folder / "objects.db")


class InZip(Store):
    note = "each put is in the file when it returns; flush(), which adds the directory, counts with put"

    def make(self) -> Any:
        from blobstore import ZipStore

        return ZipStore(self.folder / "objects.zip")

    def finish(self) -> None:
        self.store.flush()


class RenamedFiles(ObjectContender):
    """What one writes by hand: a temporary file beside the target, renamed onto it."""

    note = "by hand: a temporary file renamed onto the target; keys are not checked, errors not cleaned up"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.numbers = itertools.count()

    def path(self, key: str) -> str:
        return f"{self.folder}/{key}"

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        with self.writer(key, len(value)) as file:
            file.write(value)

    def get(self, key: str) -> Any:
        with open(self.path(key), "rb", buffering=0) as file:
            return file.read()

    def keys(self, prefix: str) -> list[str]:
        start = self.path(prefix)
        return [
            path[len(str(self.folder)) + 1 :]
            for folder, _, names in os.walk(start.rpartition("/")[0])
            for name in names
            if (path := f"{folder}/{name}").startswith(start)
        ]

    def delete(self, key: str) -> None:
        os.unlink(self.path(key))

    @contextmanager
    def writer(self, key: str, size: int) -> Iterator[Any]:
        path = self.path(key)
        temporary = f"{path}.{next(self.numbers)}.tmp"
        with open(temporary, "wb", buffering=0, opener=_create) as file:
            yield file
        os.replace(temporary, path)

    def open(self, key: str) -> Any:
        return open(self.path(key), "rb", buffering=0)

    def get_range(self, key: str, start: int, stop: int) -> Any:
        with self.open(key) as file:
            return os.pread(file.fileno(), stop - start, start)


def _create(path: str, flags: int) -> int:
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return os.open(path, flags)


class BareSqlite(ObjectContender):
    """What one writes by hand: a table of keys and blobs."""

    note = (
        "by hand: an upsert, a transaction each; WAL, synchronous=NORMAL; large ones are one row, "
        "written and read as a blob of a size that is known before; each range walks through its pages"
    )
    slow_ranges = True
    upsert = (
        "INSERT INTO objects (key, data) VALUES (?, {}) "
        "ON CONFLICT (key) DO UPDATE SET data = excluded.data"
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.database = sqlite3.connect(folder / "objects.db", isolation_level=None)
        self.database.execute("PRAGMA journal_mode=WAL")
        self.database.execute("PRAGMA synchronous=NORMAL")
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS objects (key TEXT PRIMARY KEY, data BLOB)"
        )

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.database.execute(self.upsert.format("?"), (key, value))

    def get(self, key: str) -> Any:
        return self.database.execute("SELECT data FROM objects WHERE key = ?", (key,)).fetchone()[0]

    def keys(self, prefix: str) -> list[str]:
        bounds = (prefix, prefix + "\U0010ffff")
        rows = self.database.execute("SELECT key FROM objects WHERE key >= ? AND key < ?", bounds)
        return [key for (key,) in rows]

    def delete(self, key: str) -> None:
        self.database.execute("DELETE FROM objects WHERE key = ?", (key,))

    @contextmanager
    def writer(self, key: str, size: int) -> Iterator[Any]:
        self.database.execute("BEGIN IMMEDIATE")
        self.database.execute(self.upsert.format("zeroblob(?)"), (key, size))
        with self._blob(key) as blob:
            yield blob
        self.database.execute("COMMIT")

    def open(self, key: str) -> Any:
        return self._blob(key, readonly=True)

    def get_range(self, key: str, start: int, stop: int) -> Any:
        with self._blob(key, readonly=True) as blob:
            blob.seek(start)
            return blob.read(stop - start)

    def _blob(self, key: str, *, readonly: bool = False) -> sqlite3.Blob:
        find = "SELECT rowid FROM objects WHERE key = ?"
        (number,) = self.database.execute(find, (key,)).fetchone()
        return self.database.blobopen("objects", "data", number, readonly=readonly)

    def close(self) -> None:
        self.database.close()


class AppendedZip(ObjectContender):
    note = (
        "append mode, closed at the end, which counts with put; a process killed before that leaves "
        "nothing that can be read; no overwriting and deleting; a range is read from the start"
    )
    replaces = False
    slow_ranges = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.archive: zipfile.ZipFile | None = None

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self._opened("a").writestr(key, value)

    def get(self, key: str) -> Any:
        return self._opened("r").read(key)

    def keys(self, prefix: str) -> list[str]:
        return [name for name in self._opened("r").namelist() if name.startswith(prefix)]

    def finish(self) -> None:
        if self.archive is not None:
            self.archive.close()
            self.archive = None

    @contextmanager
    def writer(self, key: str, size: int) -> Iterator[Any]:
        with self._opened("a").open(key, "w", force_zip64=True) as file:
            yield file
        self.finish()

    def open(self, key: str) -> Any:
        return self._opened("r").open(key)

    def get_range(self, key: str, start: int, stop: int) -> Any:
        with self.open(key) as file:
            file.seek(start)
            return file.read(stop - start)

    def close(self) -> None:
        self.finish()

    def _opened(self, mode: Any) -> zipfile.ZipFile:
        if self.archive is None or self.archive.mode != mode:
            self.finish()
            self.archive = zipfile.ZipFile(self.folder / "objects.zip", mode)
        return self.archive


class Obstore(ObjectContender):
    note = "LocalStore: temporary files renamed, several threads of its own for large ones; lists with metadata"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import obstore
        from obstore.store import LocalStore

        self.obstore = obstore
        self.store = LocalStore(folder)

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.obstore.put(self.store, key, value)

    def get(self, key: str) -> Any:
        return self.obstore.get(self.store, key).bytes()

    def keys(self, prefix: str) -> list[str]:
        return [found["path"] for found in self.obstore.list(self.store, prefix).collect()]

    def delete(self, key: str) -> None:
        self.obstore.delete(self.store, key)

    def writer(self, key: str, size: int) -> AbstractContextManager[Any]:
        return self.obstore.open_writer(self.store, key)

    def open(self, key: str) -> Any:
        return self.obstore.open_reader(self.store, key)

    def get_range(self, key: str, start: int, stop: int) -> Any:
        return self.obstore.get_range(self.store, key, start=start, end=stop)


# --- many calls at once ---


class ManyContender(ObjectContender):
    """Does many calls, and returns when all are done; this one does them one after the other."""

    note = "FilesystemStore, one call after the other"
    ours = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from blobstore import FilesystemStore

        self.store: Any = FilesystemStore(folder)

    def put_all(self, objects: dict[str, bytes]) -> None:
        for key, value in objects.items():
            self.store.put(key, value)

    def get_all(self, keys: list[str]) -> list[bytes]:
        return [self.store.get(key) for key in keys]

    def close(self) -> None:
        self.store.close()


class Threads(ManyContender):
    note = "FilesystemStore in a ThreadPoolExecutor of 32, whose threads are there already"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from concurrent.futures import ThreadPoolExecutor

        self.pool = ThreadPoolExecutor(32)

    def put_all(self, objects: dict[str, bytes]) -> None:
        list(self.pool.map(self.store.put, objects.keys(), objects.values()))

    def get_all(self, keys: list[str]) -> list[bytes]:
        return list(self.pool.map(self.store.get, keys))

    def close(self) -> None:
        self.pool.shutdown()
        super().close()


class Awaited(ManyContender):
    note = "FilesystemStore through asyncio.to_thread, gathered: as many threads as that has by default"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import asyncio

        self.asyncio = asyncio
        self.runner = asyncio.Runner()

    def put_all(self, objects: dict[str, bytes]) -> None:
        self._gather([(self.store.put, key, value) for key, value in objects.items()])

    def get_all(self, keys: list[str]) -> list[bytes]:
        return self._gather([(self.store.get, key) for key in keys])

    def _gather(self, calls: list[Any]) -> list[Any]:
        async def gathered() -> list[Any]:
            return await self.asyncio.gather(*(self.awaitable(*call) for call in calls))

        return self.runner.run(gathered())

    def awaitable(self, call: Any, *arguments: Any) -> Any:
        return self.asyncio.to_thread(call, *arguments)

    def close(self) -> None:
        super().close()
        self.runner.close()


class AsyncFace(Awaited):
    note = "AsyncFilesystemStore, gathered at once"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from blobstore.aio import AsyncFilesystemStore

        self.store.close()
        self.store = AsyncFilesystemStore(folder)

    def awaitable(self, call: Any, *arguments: Any) -> Any:
        return call(*arguments)

    def close(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()


STORE_CONTENDERS: dict[str, type[Contender]] = {
    "DictStore": InMemory,
    "FilesystemStore": Filesystem,
    "FilesystemBlobBackend": FilesystemBlobs,
    "SqliteStore": InSqlite,
    "ZipStore": InZip,
    "files": RenamedFiles,
    "sqlite3": BareSqlite,
    "zipfile": AppendedZip,
    "obstore": Obstore,
    "one by one": ManyContender,
    "32 threads": Threads,
    "to_thread": Awaited,
    "AsyncFilesystemStore": AsyncFace,
}
