"""The database file of an object store: made, recognised, connected to, synced.

No part of this may open the database file but through SQLite: closing any descriptor of a file
drops all POSIX locks that the process has on it, those of SQLite included.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from blobstore.backends.blob.descriptors import make_folders, sync_folder
from blobstore.backends.blob.sqlite_errors import SqliteErrors
from blobstore.backends.sqlite_files import error_code, publish, remove_draft, sync_log
from blobstore.backends.sqlite_pool import on_network, opened
from blobstore.entry import to_datetime
from blobstore.errors import (
    BlobStoreError,
    IncompatibleStoreError,
    IntegrityError,
    InvalidInputError,
    from_os_error,
)
from blobstore.keys import random_id
from blobstore.protocols import Leftover

APPLICATION_ID = 0x626F626A
"""Marks our files in their headers: the letters "bobj". The index has another one."""

FORMAT = 1
"""Kept in the header as `user_version`."""

_SCHEMA = """
CREATE TABLE objects (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    etag INTEGER NOT NULL,
    part INTEGER NOT NULL,
    data BLOB
);
CREATE TABLE parts (
    object INTEGER NOT NULL,
    number INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (object, number)
);
CREATE TRIGGER parts_of_deleted AFTER DELETE ON objects WHEN OLD.part > 0
BEGIN DELETE FROM parts WHERE object = OLD.id; END;
CREATE TRIGGER parts_of_replaced AFTER UPDATE OF data ON objects WHEN OLD.part > 0
BEGIN DELETE FROM parts WHERE object = OLD.id; END;
"""
# `modified` is in microseconds since 1970, UTC. An object lies in `data`; a large one has
# parts of `part` bytes each. The triggers make parts go with their object, whoever deletes it.

_NAMES = {"objects", "parts", "parts_of_deleted", "parts_of_replaced"}
_PAGE_SIZE = 4096  # larger ones are a third faster with large objects, and slower with small ones
_LOG_LIMIT = 16 << 20


class SqliteFile:
    """A file of SQLite, in WAL mode; on a network file system with a rollback journal.

    Parameters
    ----------
    path : str
        Absolute.
    fsync : bool
        Whether a transaction survives a power cut once it is committed.
    timeout : float
        Seconds to wait for locks.

    Attributes
    ----------
    snapshots : bool
        Whether somebody who reads keeps nobody from writing; known once it is prepared.
    """

    errors: tuple[type[Exception], ...] = (sqlite3.Error,)

    def __init__(self, path: str, *, fsync: bool, timeout: float) -> None:
        self.path = path
        self.folder = str(Path(path).parent)
        self.label = f"the object store {path}"
        self.snapshots = False
        # EXTRA is FULL, and makes the end of a rollback journal last.
        self._synchronous = "EXTRA" if fsync else "NORMAL"
        self._timeout = timeout
        self._errors = SqliteErrors(path, timeout)
        name = re.escape(Path(path).name)
        self._ours = re.compile(
            rf"{name}\.[0-9a-f]{{32}}\.(part(\.[A-Za-z0-9]{{1,16}})?|new(-journal|-wal|-shm)?)"
        )

    # --- as a connector --------------------------------------------------------------------------

    def connect(self) -> sqlite3.Connection:
        """Open a connection in autocommit mode."""
        return self._connect(self.path, "rw")

    def close(self, kept: sqlite3.Connection) -> None:
        """Close a connection; the last one folds the WAL into the database."""
        kept.close()

    def current(self, kept: sqlite3.Connection) -> bool:
        """Say yes: a connection sees what others change."""
        return True

    def translate(self, exc: Exception, what: str, location: str | None = None) -> BlobStoreError:
        """Turn an error of SQLite into ours."""
        return self._errors.translated(exc, what, location)

    def _connect(self, path: str, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file://{quote(os.fsencode(path))}?mode={mode}",
            uri=True,
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute(f"PRAGMA synchronous={self._synchronous}")
            connection.execute("PRAGMA cache_size=-8192")
            connection.execute(f"PRAGMA journal_size_limit={_LOG_LIMIT}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _connection(self, path: str, mode: str) -> Iterator[sqlite3.Connection]:
        try:
            with opened(), contextlib.closing(self._connect(path, mode)) as connection:
                yield connection
        except sqlite3.Error as exc:
            if error_code(exc) & 0xFF == sqlite3.SQLITE_NOTADB:
                raise IncompatibleStoreError(
                    f"{path} is no SQLite database: choose another name"
                ) from exc
            raise self.translate(exc, f"opening {self.label}") from exc

    # --- making and recognising ------------------------------------------------------------------

    def is_there(self) -> bool:
        """Whether there is a file, ours or not.

        Raises
        ------
        IntegrityError
            There is none, but the log of one.
        """
        orphan = os.path.lexists(self.path + "-wal")  # looked for first: it is made second
        try:
            Path(self.path).stat()
        except (FileNotFoundError, NotADirectoryError) as exc:
            if not orphan:
                return False
            raise IntegrityError(
                f"{self.path} is gone, but its {self.path}-wal is there: restore both from a "
                "backup, or remove the second to start anew"
            ) from exc
        except OSError as exc:
            raise from_os_error(exc, f"opening {self.label}") from exc
        return True

    def create(self) -> None:
        """Make a new database where there is none.

        It is made elsewhere and put into place complete, so an empty file is never taken for a
        new store, and of two makers one wins.
        """
        if self.is_there():
            return
        draft = f"{self.path}.{random_id()}.new"
        try:
            make_folders(self.folder, fsync=True)
            with self._connection(draft, "rwc") as connection:
                connection.execute(f"PRAGMA page_size={_PAGE_SIZE}")
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version={FORMAT}")
                connection.execute("PRAGMA synchronous=FULL")
                connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
                self._choose_journal(connection)
            publish(draft, self.path)
            sync_folder(self.folder)
        except OSError as exc:
            raise from_os_error(exc, f"making {self.label}") from exc
        finally:
            remove_draft(draft)

    def prepare(self) -> None:
        """See that the file is ours, and choose its journal."""
        try:
            stat = Path(self.path).stat()
            log = Path(self.path + "-wal").exists()
        except OSError as exc:
            raise from_os_error(exc, f"opening {self.label}") from exc
        if Path(self.path).is_dir():
            raise IncompatibleStoreError(
                f"{self.path} is a folder, but a file is needed: choose another name"
            )
        if stat.st_size == 0:
            raise IntegrityError(
                f"{self.path} is empty, and so is no store: restore it from a backup, or remove it "
                "if there was nothing in it"
            )
        # Another program's unfinished changes must stay as they are: only a read-only connection
        # does not fold a WAL into its database on closing.
        if log:
            with self._connection(self.path, "ro") as connection:
                self._recognise(connection)
        with self._connection(self.path, "rw") as connection:
            self._recognise(connection)
            self.snapshots = self._choose_journal(connection) == "wal"

    def _recognise(self, connection: sqlite3.Connection) -> None:
        (mark,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if mark != APPLICATION_ID:
            raise IncompatibleStoreError(
                f"{self.path} is an SQLite database of another program (application_id {mark}, "
                f"ours is {APPLICATION_ID}): choose another name"
            )
        if version != FORMAT:
            raise IncompatibleStoreError(
                f"{self.path} has format {version}, but this version of blobstore reads and writes "
                f"format {FORMAT}: use a newer one"
            )
        if not names >= _NAMES:
            raise IntegrityError(
                f"{self.path} lacks {', '.join(sorted(_NAMES - names))}: restore it from a backup"
            )

    def _choose_journal(self, connection: sqlite3.Connection) -> str:
        """Set WAL mode, which the file remembers; on a network file system it is unsafe."""
        wanted = "delete" if on_network(self.folder) else "wal"
        deadline = time.monotonic() + self._timeout
        while True:
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            if mode == wanted:
                return str(mode)
            try:
                # Some file systems can do only one of the two, which is then the answer.
                (mode,) = connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()
            except sqlite3.OperationalError as exc:
                # SQLite does not wait by itself here, not to get into a deadlock.
                if error_code(exc) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return str(mode)

    # --- keeping ---------------------------------------------------------------------------------

    def sync(self) -> None:
        """Put what was committed on the disk."""
        try:
            sync_log(self.path)
            sync_folder(self.folder)
        except OSError as exc:
            raise from_os_error(exc, f"syncing {self.label}") from exc

    def shrink_log(self, connection: sqlite3.Connection) -> None:
        """Move the WAL into the database and cut it off, unless somebody is in the way."""
        connection.execute("PRAGMA busy_timeout=0")
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            connection.execute(f"PRAGMA busy_timeout={int(self._timeout * 1000)}")

    def new_part_name(self, extension: str) -> str:
        """Make up a name for a temporary file beside the database."""
        return f"{self.path}.{random_id()}.part{extension}"

    def leftovers(self) -> Iterator[Leftover]:
        """Temporary files beside the database; one that was lent to a library may be active."""
        try:
            names = os.listdir(self.folder)  # noqa: PTH208 - names are what is wanted
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as exc:
            raise from_os_error(exc, f"listing {self.folder}") from exc
        for name in filter(self._ours.fullmatch, names):
            with contextlib.suppress(FileNotFoundError):
                stat = Path(self.folder, name).lstat()
                modified = to_datetime(stat.st_mtime_ns // 1000)
                yield Leftover(name=name, size=stat.st_size, modified=modified)

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`; names that are not ours are refused."""
        if self._ours.fullmatch(name) is None:
            raise InvalidInputError(f"{name!r} is no temporary file of {self.label}")
        try:
            remove_lent(Path(self.folder, name))
        except OSError as exc:
            raise from_os_error(exc, f"removing {name} in {self.folder}") from exc


def remove_lent(path: Path) -> None:
    """Remove what a library made at a path that was lent to it: a file, or else a folder."""
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        shutil.rmtree(path)
