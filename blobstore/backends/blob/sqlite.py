"""Objects in one SQLite file: many small ones take no file each, and all move as one."""

from __future__ import annotations

import io
import os
import time
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from sqlite3 import Connection, sqlite_version, sqlite_version_info
from typing import Any, BinaryIO, ClassVar, Self

from blobstore.backends.blob.sqlite_file import SqliteFile
from blobstore.backends.blob.sqlite_session import Row, Session
from blobstore.backends.blob.sqlite_sink import BufferContent, Content, SqliteSink
from blobstore.backends.blob.sqlite_snapshot import Snapshot, SnapshotSource, open_reader
from blobstore.entry import ObjectStat, to_datetime
from blobstore.errors import (
    ClosedError,
    ConfigError,
    IntegrityError,
    InvalidKeyError,
    KeyNotFoundError,
    NotSupportedError,
)
from blobstore.keys import require_str, successor
from blobstore.protocols import Capabilities, Leftover, ObjectStore, check_range
from blobstore.streams import Buffer, BytesSource, Sink, Source, as_contiguous

_INTO = "INSERT INTO objects (key, size, modified, etag, part, data)"
_ADD = f"{_INTO} VALUES (?, ?, ?, ?, ?, ?)"
_COPIED = "SELECT ?, size, ?, ?, part, data FROM objects WHERE key = ?"
_REPLACE = (
    "ON CONFLICT (key) DO UPDATE SET size = excluded.size, modified = excluded.modified, "
    "etag = excluded.etag, part = excluded.part, data = excluded.data"
)
_PUT = f"{_ADD} {_REPLACE}"
_PUT_IF_ABSENT = f"{_ADD} ON CONFLICT (key) DO NOTHING"
_ADD_PART = "INSERT INTO parts (object, number, data) VALUES (?, ?, ?)"
_GET = "SELECT size, part, data FROM objects WHERE key = ?"
_GET_SMALL = (
    "SELECT size, part, CASE WHEN size <= 65536 AND part = 0 THEN data END FROM objects "
    "WHERE key = ?"
)
_EXISTS = "SELECT 1 FROM objects WHERE key = ?"
_STAT = "SELECT size, modified, etag FROM objects WHERE key = ?"
_DELETE = "DELETE FROM objects WHERE key = ?"
_TOUCH = "UPDATE objects SET modified = ?, etag = ? WHERE key = ?"
_COPY = f"{_INTO} {_COPIED} {_REPLACE} RETURNING id, size, part"
_COPY_PART = (
    "INSERT INTO parts (object, number, data) "
    "SELECT ?, number, data FROM parts WHERE object = ? AND number = ?"
)
_ID = "SELECT id FROM objects WHERE key = ?"
_KEYS = "SELECT key FROM objects WHERE key >= ? ORDER BY key LIMIT ?"
_KEYS_BELOW = "SELECT key FROM objects WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
_PAGE = 1000


class SqliteStore(ObjectStore):
    """Objects in one SQLite file. Any string is a key, if it has a form in UTF-8.

    The file and its folder are made by the first write; a file that is there already is looked at
    at once. An object of up to 1 MiB is one row, a larger one has parts of that size, so neither
    SQLite's limit for a row nor memory limits it. A put is one transaction. A large object is
    brought together before its transaction begins, which other writers then wait for.

    May be shared by threads and processes; forked children and pickled copies open the file for
    themselves. What is being read keeps its old bytes when it is replaced: it holds a read
    transaction, which stops nobody from writing, but keeps the file's log growing until it is
    closed. A fork copies what is being read into a temporary file first. On a network file system
    a rollback journal takes the place of the log, and what is opened is copied at once.

    What deleted objects took is used again by later ones; `compact` gives it back to the disk.

    Parameters
    ----------
    db_path : str or path
        A relative one is fixed now.
    fsync : bool
        Whether a put returns only when it would survive a power cut.
    timeout : float
        Seconds to wait for another writer before `UnavailableError`.

    Attributes
    ----------
    db_path : Path
        Where the file is, or will be.

    Raises
    ------
    ConfigError
        A parameter is wrong.
    IncompatibleStoreError
        The file is no SQLite database, one of another program, or of a newer version.
    IntegrityError
        The file is damaged.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with SqliteStore(folder.name + "/objects.db") as store:
    ...     store.put("notes/today", b"hello")
    ...     store.get("notes/today"), list(store.keys("notes/"))
    (b'hello', ['notes/today'])
    >>> folder.cleanup()
    """

    part_size: ClassVar[int] = 1 << 20
    """Bytes of a part in what is stored from now on. Larger ones are no faster to write, and make
    reading a few bytes at the end of one slow: SQLite gets there page by page."""

    def __init__(
        self, db_path: str | os.PathLike[str], *, fsync: bool = False, timeout: float = 30.0
    ) -> None:
        if sqlite_version_info < (3, 35):
            raise NotSupportedError(
                f"SQLite {sqlite_version} is too old: Python needs one of 3.35 or newer"
            )
        _require_seconds(timeout)
        self.db_path = _absolute(db_path)
        self._options: dict[str, Any] = {"fsync": fsync, "timeout": timeout}
        self._file = SqliteFile(str(self.db_path), fsync=fsync, timeout=timeout)
        self._session = Session(self._file, timeout)
        self._closed = False
        self._ready = False
        # Whoever forgets to close gets no warning, but also leaves no connection behind.
        weakref.finalize(self, self._session.close)
        self._is_made()

    @classmethod
    def for_folder(cls, directory: Path, *, fsync: bool = False) -> Self:
        """Make the store of a BlobStore: ``blobs.db`` in its folder."""
        return cls(directory / "blobs.db", fsync=fsync)

    @property
    def capabilities(self) -> Capabilities:
        """Everything but files."""
        return Capabilities(ranges=True, streams=True, conditional_writes=True, etags=True)

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str) -> bytes:
        """Read an object."""
        name = self._name(key)
        found = self._whole(name)
        if found is None:
            with self._snapshot(name) as snapshot:
                return snapshot.read(0, snapshot.size)
        return found

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return bool(self._ask(_EXISTS, self._name(key)))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys in the order of their bytes, read page by page."""
        self._check_open()
        start = _text(prefix)
        if not _is_utf8(start):
            return iter(())
        # The first page is read now: errors come from the call.
        return self._pages(start, successor(start), self._page(start, successor(start)))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object."""
        name = self._name(key)
        check_range(start, stop)
        size, part, data = self._one(_GET_SMALL, name)
        if data is not None:
            return _checked(name, size, data)[start:stop]
        if part == 0 and size <= 65536:
            raise _torn(name)
        with self._snapshot(name) as snapshot:
            return snapshot.read(start, stop)

    def open(self, key: str) -> BinaryIO:
        """Open an object as a file: a small one is read now, a large one while it is read."""
        name = self._name(key)
        found = self._whole(name)
        if found is not None:
            return io.BytesIO(found)
        with self._snapshot(name, lasting=True) as snapshot:
            return open_reader(snapshot)

    def source(self, key: str) -> Source:
        """Hold an object as it is now: a small one is read now, a large one while it is read."""
        name = self._name(key)
        found = self._whole(name)
        if found is not None:
            return BytesSource(found)
        with self._snapshot(name, lasting=True) as snapshot:
            return SnapshotSource(snapshot.hold())

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag; every put has a random etag of its own."""
        size, modified, etag = self._one(_STAT, self._name(key))
        return ObjectStat(size, to_datetime(modified), f"{etag % (1 << 64):016x}")

    def local_path(self, key: str) -> Path | None:
        """There is no file of its own."""
        self._name(key)
        return None

    # --- writing ---------------------------------------------------------------------------------

    def put(self, key: str, data: Buffer) -> None:
        """Write an object in one transaction."""
        name = self._name(key)
        self._store(name, BufferContent(as_contiguous(data)), _PUT)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one; of all processes, one wins."""
        name = self._name(key)
        return self._store(name, BufferContent(as_contiguous(data)), _PUT_IF_ABSENT)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Gather an object, in a temporary file if it is large, and store it at the end."""
        name = self._name(key)
        return SqliteSink(self._file, lambda content: self._publish(name, content), name)

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the database."""
        old, new = self._name(source), self._name(target)
        if not self._is_made():
            raise _missing(old)

        def work(kept: Connection) -> bool:
            if old == new:
                return bool(kept.execute(_TOUCH, (_now(), _new_etag(), old)).rowcount)
            found = kept.execute(_ID, (old,)).fetchall()
            for (source_id,) in found:
                values = (new, _now(), _new_etag(), old)
                ((target_id, size, part),) = kept.execute(_COPY, values).fetchall()
                # One by one: SQLite would first put all of them into a temporary table.
                for number in range(-(-size // part) if part else 0):
                    kept.execute(_COPY_PART, (target_id, source_id, number))
            return bool(found)

        if not self._session.transact(work, "copying", old):
            raise _missing(old)

    def delete(self, key: str) -> None:
        """Remove an object."""
        name = self._name(key)
        if not (self._is_made() and self._session.change(_DELETE, (name,), "deleting", name)):
            raise _missing(name)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects in one transaction; absent ones are fine."""
        self._check_open()
        names = [(self._name(key),) for key in keys]
        if names and self._is_made():
            self._session.transact(lambda kept: kept.executemany(_DELETE, names), "deleting from")

    # --- keeping ---------------------------------------------------------------------------------

    def sync(self, keys: Iterable[str]) -> None:
        """Return once everything in the file would survive a power cut."""
        self._check_open()
        if self._is_made():
            self._file.sync()

    def compact(self) -> int:
        """Give back to the disk what deleted objects took.

        SQLite writes all that is left anew, so this takes the time and, for a while, the space of
        that, and no other process can write meanwhile.

        Returns
        -------
        int
            How many bytes smaller the file is.
        """
        self._check_open()
        return self._session.shrink() if self._is_made() else 0

    def leftovers(self) -> Iterator[Leftover]:
        """Temporary files of interrupted writers; one that was lent to a library may be active."""
        self._check_open()
        return self._file.leftovers()

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`; names that are not ours are refused."""
        self._check_open()
        self._file.remove_leftover(name)

    def close(self) -> None:
        """Close all connections but those that are being read from, which close with their readers."""
        self._closed = True
        self._session.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.db_path)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self.db_path), self._options)

    # --- keys and states -------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self!r} was closed: make a new one")

    def _name(self, key: str) -> str:
        self._check_open()
        name = _text(key)
        if not _is_utf8(name):
            raise InvalidKeyError(
                f"the key {key!a} has no form in UTF-8: remove its lone surrogates", location=key
            )
        return name

    def _is_made(self) -> bool:
        """Whether there is a file to read from; it is looked at when it is first seen."""
        if not self._ready and self._file.is_there():
            self._file.prepare()
            self._ready = True
        return self._ready

    # --- rows ------------------------------------------------------------------------------------

    def _ask(self, statement: str, key: str) -> list[Row]:
        return self._session.ask(statement, (key,), "reading", key) if self._is_made() else []

    def _one(self, statement: str, key: str) -> Row:
        rows = self._ask(statement, key)
        if not rows:
            raise _missing(key)
        return rows[0]

    def _whole(self, key: str) -> bytes | None:
        """Read an object that is one row; None if it has parts."""
        size, part, data = self._one(_GET, key)
        return None if part else _checked(key, size, data)

    def _snapshot(self, key: str, *, lasting: bool = False) -> _Held:
        """Begin to read an object piece by piece, for a call or for longer than that."""
        snapshot = Snapshot.take(self._session, key)
        if snapshot is None:
            raise _missing(key)
        if lasting and not self._file.snapshots:
            try:
                snapshot.copy_out()  # its lock would keep all others from writing
            except BaseException:
                snapshot.release()
                raise
        return _Held(snapshot)

    def _page(self, start: str, end: str | None) -> list[Row]:
        if not self._is_made():
            return []
        if end is None:
            return self._session.ask(_KEYS, (start, _PAGE), "listing")
        return self._session.ask(_KEYS_BELOW, (start, end, _PAGE), "listing")

    def _pages(self, start: str, end: str | None, page: list[Row]) -> Iterator[str]:
        while True:
            yield from (key for (key,) in page)
            if len(page) < _PAGE:
                return
            self._check_open()
            start = page[-1][0] + "\0"  # the smallest key above the last one
            page = self._page(start, end)

    def _publish(self, key: str, content: Content) -> None:
        self._check_open()
        self._store(key, content, _PUT)

    def _store(self, key: str, content: Content, statement: str) -> bool:
        """Write an object by one of two statements; whether it was written."""
        if not self._is_made():
            self._file.create()
            self._is_made()
        if content.size <= self.part_size:
            data = next(content.pieces(self.part_size), b"")
            values = (key, content.size, _now(), _new_etag(), 0, data)
            return bool(self._session.change(statement, values, "storing", key))

        def work(kept: Connection) -> bool:
            head = (key, content.size, _now(), _new_etag(), self.part_size, None)
            rows = kept.execute(f"{statement} RETURNING id", head).fetchall()
            for (row,) in rows:
                for number, piece in enumerate(content.pieces(self.part_size)):
                    kept.execute(_ADD_PART, (row, number, piece))
            return bool(rows)

        return self._session.transact(work, "storing", key)


class _Held:
    """A snapshot for the length of a block."""

    __slots__ = ("_snapshot",)

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __enter__(self) -> Snapshot:
        return self._snapshot

    def __exit__(self, *exc: object) -> None:
        self._snapshot.release()


def _require_seconds(timeout: object) -> None:
    # SQLite counts milliseconds in 32 bits.
    if type(timeout) not in (int, float) or not 0 <= timeout <= 2_000_000:  # type: ignore[operator]
        raise ConfigError(f"timeout must be a number of seconds, 0 or more, not {timeout!r}")


def _absolute(db_path: object) -> Path:
    text = db_path.__fspath__() if isinstance(db_path, os.PathLike) else db_path
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"db_path must be the path of a file, not {db_path!r}")
    if text == ":memory:":
        raise ConfigError("a SqliteStore is a file: use DictStore() to keep objects in memory")
    return Path(text).absolute()


def _rebuild(cls: type[SqliteStore], db_path: str, options: dict[str, Any]) -> SqliteStore:
    return cls(db_path, **options)


def _text(key: str) -> str:
    return key if type(key) is str else str.__str__(require_str(key))


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _now() -> int:
    return time.time_ns() // 1000


def _new_etag() -> int:
    """64 random bits, as SQLite's integers have them."""
    return int.from_bytes(os.urandom(8), "big", signed=True)


def _checked(key: str, size: int, data: object) -> bytes:
    if type(data) is not bytes or len(data) != size:
        raise _torn(key)
    return data


def _torn(key: str) -> IntegrityError:
    return IntegrityError(
        f"the object {key!r} has another size than it was stored with: restore the file from a "
        "backup, or delete this object",
        location=key,
    )


def _missing(key: str) -> KeyNotFoundError:
    return KeyNotFoundError(f"there is no object {key!r}", location=key)
