"""What differs between databases, in one strategy object each.

SQLite is here, PostgreSQL in a module of its own that needs another driver. Everything else in the
SQL backend is written once, in SQLAlchemy Core and in calls that every driver has.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import DBAPIError

from blobstore.backends.metadata.connections import (
    BARE,
    Dialect,
    Insert,
    Kept,
    make_immortal,
    opened,
)
from blobstore.backends.metadata.schema import migrate
from blobstore.backends.metadata.sqlite_fields import SqliteAddressing
from blobstore.backends.sqlite_files import (
    BUSY,
    DAMAGED,
    DENIED,
    MAYBE_FULL,
    error_code,
    file_sizes,
    is_denied,
    is_full,
    publish,
    remove_draft,
    sync_log,
    sync_path,
)
from blobstore.backends.sqlite_pool import on_network
from blobstore.errors import (
    BlobStoreError,
    ConfigError,
    IncompatibleStoreError,
    IntegrityError,
    NotSupportedError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
    from_os_error,
)
from blobstore.keys import random_id
from blobstore.registry import load


def dialect_for(
    url: str | os.PathLike[str], *, fsync: bool, readonly: bool, timeout: float
) -> Dialect:
    """Choose the dialect for an SQLAlchemy URL, or for the path of an SQLite file.

    Raises
    ------
    ConfigError
        No such kind of database, or no file is named.
    """
    if isinstance(url, os.PathLike):
        return SqliteDialect(os.fspath(url), fsync=fsync, readonly=readonly, timeout=timeout)
    if not isinstance(url, str):
        raise ConfigError(f"the place of an SQL index is a URL or a path, not {url!r}")
    if "://" not in url:
        return SqliteDialect(url, fsync=fsync, readonly=readonly, timeout=timeout)
    parsed = parse_url(url)
    if parsed.get_backend_name() == "postgresql":
        dialect: Dialect = load("blobstore.backends.metadata.postgres:PostgresDialect")(
            parsed, fsync=fsync, readonly=readonly, timeout=timeout
        )
        return dialect
    if parsed.get_backend_name() != "sqlite":
        raise ConfigError(
            f"there is no index on {parsed.get_backend_name()!r}: use sqlite:////folder/index.db "
            "or postgresql+psycopg://user@host/database"
        )
    if parsed.database in (None, "", ":memory:") or parsed.query:
        raise ConfigError(
            f"{parsed.render_as_string()} names no plain file: an index must outlive its "
            "connections; write sqlite:////folder/index.db"
        )
    return SqliteDialect(str(parsed.database), fsync=fsync, readonly=readonly, timeout=timeout)


def parse_url(url: str) -> sa.URL:
    """Parse an SQLAlchemy URL.

    Raises
    ------
    ConfigError
        It is none. The message does not repeat it, for it may hold a password.
    """
    try:
        return sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(
            "the URL of the SQL index cannot be parsed: write it like sqlite:////folder/index.db "
            "or postgresql+psycopg://user@host/database"
        ) from None


# --- SQLite --------------------------------------------------------------------------------------

APPLICATION_ID = 0x626C6F62
"""Marks our SQLite files, in their headers: the letters "blob"."""

_SMALLEST = 512
_SETTLED_NS = 50_000_000

_snapshots = threading.RLock()
_parked: list[Kept] = []


def _forget_parked() -> None:
    global _parked, _snapshots
    if _parked:
        make_immortal(_parked)
    _parked, _snapshots = [], threading.RLock()


os.register_at_fork(after_in_child=_forget_parked)


class SqliteDialect(Dialect):
    """A file of SQLite, in WAL mode; on a network file system with a rollback journal.

    No part of this may open the database file but through SQLite: closing any descriptor of a
    file drops all POSIX locks that the process has on it, those of SQLite included.
    """

    kind = "sqlite"
    fields = SqliteAddressing()
    explaining = "EXPLAIN QUERY PLAN"
    errors = (sqlite3.Error, DBAPIError)

    def __init__(self, path: str, *, fsync: bool, readonly: bool, timeout: float) -> None:
        if sqlite3.sqlite_version_info < (3, 35):
            raise NotSupportedError(
                f"SQLite {sqlite3.sqlite_version} is too old: Python needs one of 3.35 or newer"
            )
        self.place = self.address = str(Path(path).absolute())
        self._folder = str(Path(self.place).parent)
        self._synchronous = "FULL" if fsync else "NORMAL"
        self._readonly = readonly
        self._timeout = timeout
        self._compiler = sqlite_dialect.dialect(paramstyle="qmark")
        self._engines: dict[tuple[str, str], sa.Engine] = {}

    # opening

    def prepare(self) -> None:
        """Make a new file, or see that the one that is there is ours."""
        try:
            if not self._readonly:
                self._create()
            elif not Path(self.place).exists():
                raise StorageError(
                    f"there is no index {self.place}: open the store for writing to make one"
                )
            if (size := Path(self.place).stat().st_size) < _SMALLEST:
                raise IntegrityError(
                    f"the index {self.place} has only {size} bytes, and so is none: restore it "
                    "from a backup, or remove it if there was nothing in it"
                )
        except OSError as exc:
            raise from_os_error(exc, f"opening the index {self.place}") from exc
        # Another program's unfinished changes must stay as they are: only a read-only connection
        # does not fold a WAL into its database on closing.
        if self._readonly or Path(self.place + "-wal").exists():
            with self._connection(self.place, "immutable=1" if self._readonly else "mode=ro") as it:
                self._recognise(it)
        if not self._readonly:
            with self._connection(self.place, "mode=rw") as it:
                self._recognise(it)
                self._choose_journal(it, self.place)

    def connect(self) -> Kept:
        """Open a connection of the kind that this dialect was made for."""
        if self._readonly:
            return self._connect_readonly()
        with _snapshots:
            return Kept(self._engine(self.place, "mode=rw").connect())

    def close(self, kept: Kept) -> None:
        """Close a connection; a snapshot only when that can do no harm."""
        if kept.snapshot is None:
            kept.connection.close()
            return
        # SQLite takes no locks for a snapshot, and so does not know that closing its descriptor
        # drops the locks that another connection of this process may have on the file.
        with _snapshots:
            _parked.append(kept)
            for parked in list(_parked):
                if self._look() is not None:
                    _parked.remove(parked)
                    parked.connection.close()

    def current(self, kept: Kept) -> bool:
        """Whether no file has changed since a snapshot was taken."""
        return kept.snapshot is None or kept.snapshot == self._look()

    def begin(self, kept: Kept) -> None:
        """Take the write lock at once: one that is asked for later cannot be waited for."""
        kept.driver.execute("BEGIN IMMEDIATE")

    def _connect_readonly(self) -> Kept:
        """Open for reading only, in a way that makes no file.

        Where somebody has the database open, his WAL is there to be read along. Where nobody
        has, SQLite would have to make one, so the file is read as it is for as long as it stays
        that way.
        """
        seen = self._look(settled=True)
        if seen is None:
            return Kept(self._engine(self.place, "mode=ro").connect())
        with _snapshots:
            return Kept(self._engine(self.place, "immutable=1").connect(), seen)

    def _look(self, *, settled: bool = False) -> tuple[int, ...] | None:
        """What tells one state of the file from another; None if somebody is at it.

        Times of files tick coarsely, so a second change right after a first might not be told
        from it: `settled` waits until the last one is too old for that.
        """
        while True:
            if any(Path(self.place + suffix).exists() for suffix in ("-wal", "-journal")):
                return None
            try:
                stat = Path(self.place).stat()
            except FileNotFoundError:
                return ()
            if not settled or abs(time.time_ns() - stat.st_mtime_ns) > _SETTLED_NS:
                return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
            time.sleep(_SETTLED_NS / 1e9)

    def _create(self) -> None:
        """Make a new database where there is none.

        It is made elsewhere and put into place complete, so no state of the file can be taken
        for a new store but its absence, and of two makers one wins.
        """
        orphan = Path(self.place + "-wal").exists()  # looked for first: it is made second
        if Path(self.place).exists():
            return
        if orphan:
            raise IntegrityError(
                f"the index {self.place} is gone, but its {self.place}-wal is there: restore both "
                "from a backup, or remove the second to start anew"
            )
        Path(self._folder).mkdir(parents=True, exist_ok=True)
        draft = f"{self.place}.{random_id()}.new"
        try:
            with self._connection(draft, "mode=rwc") as connection:
                connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
                connection.exec_driver_sql("PRAGMA synchronous=FULL")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                migrate(connection, 0)
                connection.exec_driver_sql("COMMIT")
                self._choose_journal(connection, draft)
            publish(draft, self.place)
        finally:
            remove_draft(draft)
        sync_path(self._folder)

    def _recognise(self, connection: sa.Connection) -> None:
        found = connection.exec_driver_sql("PRAGMA application_id").scalar()
        if found != APPLICATION_ID:
            raise IncompatibleStoreError(
                f"{self.place} is an SQLite database of another program (application_id {found}, "
                f"ours is {APPLICATION_ID}): choose another place"
            )

    def _choose_journal(self, connection: sa.Connection, path: str) -> None:
        """Set WAL mode, which the file remembers; on a network file system it is unsafe."""
        wanted = "delete" if on_network(str(Path(path).parent)) else "wal"
        deadline = time.monotonic() + self._timeout
        while connection.exec_driver_sql("PRAGMA journal_mode").scalar() != wanted:
            try:
                connection.exec_driver_sql(f"PRAGMA journal_mode={wanted}")
            except DBAPIError as exc:
                # SQLite does not wait by itself here, not to get into a deadlock.
                if _code(exc) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return  # some file systems can only do one of the two

    @contextlib.contextmanager
    def _connection(self, path: str, mode: str) -> Iterator[sa.Connection]:
        try:
            with opened(), self._engine(path, mode).connect() as connection:
                yield connection
        except self.errors as exc:
            raise self.translate(exc, f"opening the index {path}") from exc

    def _engine(self, path: str, mode: str) -> sa.Engine:
        if (path, mode) not in self._engines:  # made but once: it gets to know the driver first
            self._engines[path, mode] = self._new_engine(path, mode)
        return self._engines[path, mode]

    def _new_engine(self, path: str, mode: str) -> sa.Engine:
        def connect() -> sqlite3.Connection:
            driver = sqlite3.connect(
                f"file://{quote(os.fsencode(path))}?{mode}",
                uri=True,
                timeout=self._timeout,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                driver.execute(f"PRAGMA synchronous={self._synchronous}")
                driver.execute("PRAGMA cache_size=-8192")
            except sqlite3.Error:
                driver.close()
                raise
            return driver

        return sa.create_engine(
            "sqlite://", creator=connect, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT"
        )

    # asking

    def insert(self, table: sa.Table) -> Insert:
        """Start an INSERT ... ON CONFLICT."""
        return sqlite_dialect.insert(table)

    def compile(self, statement: sa.ClauseElement, order: tuple[str, ...]) -> str:
        """Turn a statement into text with question marks."""
        compiled = statement.compile(dialect=self._compiler)
        found = tuple(getattr(compiled, "positiontup", None) or ())
        if found != order:
            raise AssertionError(f"the parameters are {found}, not {order}, in {compiled}")
        return str(compiled)

    def spell(self, expression: sa.ColumnElement[Any]) -> str:
        """Turn an expression into text, with bare names of columns."""
        return str(expression.compile(dialect=self._compiler, compile_kwargs=BARE))

    def among(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """Compare with the elements of a JSON array: one parameter, however many there are."""
        each = sa.func.json_each(sa.bindparam("b_" + name)).table_valued("value")
        return column.in_(sa.select(each.c.value))

    def strings(self, values: Sequence[str]) -> str:
        """Make a JSON array."""
        return json.dumps(values, ensure_ascii=False)

    # understanding

    def translate(self, exc: Exception, what: str) -> BlobStoreError:
        """Tell by SQLite's own codes what went wrong."""
        reason = str(getattr(exc, "orig", None) or exc)
        failed = f"{what} failed: {reason}"
        code = _code(exc)
        if code in BUSY:
            return UnavailableError(
                f"{failed}. Another process holds the lock for longer than the timeout of "
                f"{self._timeout:g} s: try again, or open the store with a longer timeout."
            )
        if code in DAMAGED or "malformed JSON" in reason:
            return IntegrityError(
                f"{failed}. The index is damaged, or no SQLite database: restore it from a backup."
            )
        if code == sqlite3.SQLITE_FULL or (code in MAYBE_FULL and is_full(self.place)):
            return OutOfSpaceError(
                f"{failed}. Free some space (gc() lists what can go), then try again; what was "
                "stored before is intact."
            )
        if code in DENIED or (
            code == sqlite3.SQLITE_CANTOPEN and is_denied(self.place, readonly=self._readonly)
        ):
            return PermissionDeniedError(
                f"{failed}. Check owner and mode of {self.place} and its folder"
                + ("." if self._readonly else ", or open the store with readonly=True.")
            )
        if code == sqlite3.SQLITE_CANTOPEN and not Path(self.place).exists():
            return StorageError(f"{failed}. The file is gone: restore it from a backup.")
        return StorageError(f"{failed}.")

    # keeping

    def make_room(self, kept: Kept) -> bool:
        """Move the write-ahead log into the database, and cut it off."""
        before = sum(file_sizes(self.place))
        with contextlib.suppress(*self.errors):
            kept.driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return sum(file_sizes(self.place)) < before

    def sync(self, kept: Kept) -> None:
        """Put what was committed on the disk."""
        if self._readonly:
            return
        try:
            sync_log(self.place)
            sync_path(self._folder)
        except OSError as exc:
            raise from_os_error(exc, f"syncing the index {self.place}") from exc

    def check(self, kept: Kept) -> list[str]:
        """Run SQLite's own check."""
        rows = kept.driver.execute("PRAGMA integrity_check").fetchall()
        return [f"SQLite: {text}" for (text,) in rows if text != "ok"]

    def stats(self, kept: Kept) -> dict[str, Any]:
        """Tell sizes."""
        return {"bytes": sum(file_sizes(self.place))}


def _code(exc: Exception) -> int:
    """SQLite's primary result code."""
    return error_code(getattr(exc, "orig", None) or exc) & 0xFF
