"""Statements and transactions on kept connections of an object store in SQLite."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from blobstore.backends.blob.sqlite_file import SqliteFile
from blobstore.backends.sqlite_files import file_sizes
from blobstore.backends.sqlite_pool import Pool
from blobstore.errors import BlobStoreError, OutOfSpaceError, StorageError, UnavailableError

T = TypeVar("T")
Values = tuple[Any, ...]
Row = tuple[Any, ...]
Work = Callable[[sqlite3.Connection], T]

_IDLE = 4


class Session:
    """Reads and writes of one database file.

    A write waits for its turn among the threads of this process, because SQLite itself would
    poll. One that finds the disk full gives back what the log takes, and tries once more.

    Parameters
    ----------
    file : SqliteFile
    timeout : float
        Seconds to wait for another writer.
    """

    def __init__(self, file: SqliteFile, timeout: float) -> None:
        self.file = file
        self.pool: Pool[sqlite3.Connection] = Pool(file)
        self._timeout = timeout

    def ask(self, statement: str, values: Values, what: str, key: str | None = None) -> list[Row]:
        """Run one statement that reads."""
        pool = self.pool
        kept = pool.acquire()
        try:
            return kept.execute(statement, values).fetchall()
        except sqlite3.Error as exc:
            raise self.translated(exc, what, key) from exc
        finally:
            pool.release(kept)

    def change(self, statement: str, values: Values, what: str, key: str | None = None) -> int:
        """Run one statement that writes, as a transaction; returns how many rows it changed."""

        def work(kept: sqlite3.Connection) -> int:
            return kept.execute(statement, values).rowcount

        return self._retried(lambda: self._in_turn(work, what, key))

    def transact(self, work: Work[T], what: str, key: str | None = None) -> T:
        """Do `work` in one transaction, again from its start if room could be made for it."""

        def whole(kept: sqlite3.Connection) -> T:
            try:
                kept.execute("BEGIN IMMEDIATE")
                result = work(kept)
            except sqlite3.Error as exc:
                raise self.translated(exc, what, key) from exc
            kept.execute("COMMIT")  # of an error here, `_failed` says more
            return result

        return self._retried(lambda: self._in_turn(whole, what, key))

    def shrink(self) -> int:
        """Give back to the disk what deleted objects took; returns how many bytes."""
        before = sum(file_sizes(self.file.path))
        self.change("VACUUM", (), "compacting")
        self._shrink_log()
        return max(before - sum(file_sizes(self.file.path)), 0)

    def close(self) -> None:
        """Close the connections that are not in use; the others when they are given back."""
        self.pool.close()

    def give_back(self, kept: sqlite3.Connection) -> None:
        """Give back a connection that was kept for long; few are kept when many are."""
        if len(self.pool.idle) < _IDLE:
            self.pool.release(kept)
        else:
            self.pool.dismiss(kept)

    def translated(self, exc: Exception, what: str, key: str | None) -> BlobStoreError:
        """Turn an error of SQLite into ours; `what` was being done with `key`."""
        doing = f"{what} {key!r} in" if key is not None else what
        return self.file.translate(exc, f"{doing} {self.file.label}", key)

    def _in_turn(self, work: Work[T], what: str, key: str | None) -> T:
        pool = self.pool
        # First a connection, then the turn: who has the turn must never wait for a fork.
        kept = pool.acquire()
        try:
            turn = pool.take_turn(self._timeout)
            try:
                result = work(kept)
            finally:
                self._end(kept)
                if turn is not None:
                    turn.release()
            if turn is None:
                pool.renew_turn()
        except sqlite3.Error as exc:
            raise self._failed(exc, what, key) from exc
        finally:
            pool.release(kept)
        return result

    def _end(self, kept: sqlite3.Connection) -> None:
        """Roll back what is not committed."""
        if kept.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # the error that led here is the one to tell
                kept.rollback()

    def _failed(self, exc: Exception, what: str, key: str | None) -> BlobStoreError:
        """Translate an error; one of the disk leaves open whether a change landed.

        SQLite's recovery accepts a transaction that was written in full, also if syncing it
        failed and it was rolled back.
        """
        error = self.translated(exc, what, key)
        if type(error) is not StorageError or not _is_of_the_disk(exc):
            return error
        return UnavailableError(
            f"{error} Whether the change landed will be seen when the store is next opened.",
            location=key,
            outcome="unknown",
        )

    def _retried(self, attempt: Callable[[], T]) -> T:
        try:
            return attempt()
        except OutOfSpaceError:
            # A full disk must not stop what would free some of it.
            if not self._shrink_log():
                raise
        return attempt()

    def _shrink_log(self) -> bool:
        """Cut off the log; whether that gave anything back."""
        before = sum(file_sizes(self.file.path))
        with self.lent() as kept, contextlib.suppress(sqlite3.Error):
            self.file.shrink_log(kept)
        return sum(file_sizes(self.file.path)) < before

    @contextlib.contextmanager
    def lent(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection for a block."""
        kept = self.pool.acquire()
        try:
            yield kept
        finally:
            self.pool.release(kept)


def _is_of_the_disk(exc: Exception) -> bool:
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
