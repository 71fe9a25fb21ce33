"""Why SQLite refused, in our words."""

from __future__ import annotations

import os
import resource
import sqlite3
from pathlib import Path

from blobstore.errors import (
    BlobStoreError,
    IntegrityError,
    InvalidInputError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
    from_os_error,
)
from blobstore.keys import random_id

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_MAYBE_FULL = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
_DENIED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}


class SqliteErrors:
    """Translates errors of one database file.

    Parameters
    ----------
    path : str
        Of the file.
    timeout : float
        How long its locks are waited for, for messages.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout

    def translated(self, exc: Exception, what: str, location: str | None = None) -> BlobStoreError:
        """Tell by SQLite's own codes what went wrong while `what` was being done."""
        failed = f"{what} failed: {exc}"
        extended = error_code(exc)
        code = extended & 0xFF
        if code in _BUSY:
            return UnavailableError(
                f"{failed}. Somebody else holds the lock for longer than the timeout of "
                f"{self._timeout:g} s: try again, or open the store with a longer timeout.",
                location=location,
            )
        if (
            code in _DAMAGED
            or extended == sqlite3.SQLITE_IOERR_SHORT_READ
            or "Could not decode" in str(exc)
        ):
            return IntegrityError(
                f"{failed}. The file is damaged: restore it from a backup.", location=location
            )
        if code == sqlite3.SQLITE_FULL or (code in _MAYBE_FULL and self._is_full()):
            return OutOfSpaceError(
                f"{failed}. Free some space, for instance with delete() and compact(), then try "
                "again; what was stored before is intact.",
                location=location,
            )
        if code == sqlite3.SQLITE_TOOBIG:
            return InvalidInputError(f"{failed}. SQLite keeps no key this long.", location=location)
        return self._refused(failed, code, location)

    def _refused(self, failed: str, code: int, location: str | None) -> StorageError:
        if code in _DENIED or (code == sqlite3.SQLITE_CANTOPEN and self._is_denied()):
            return PermissionDeniedError(
                f"{failed}. Check owner and mode of {self._path} and its folder.",
                location=location,
            )
        if code == sqlite3.SQLITE_CANTOPEN and not Path(self._path).exists():
            return StorageError(
                f"{failed}. The file is gone: restore it from a backup.", location=location
            )
        return StorageError(f"{failed}.", location=location)

    def _is_denied(self) -> bool:
        """Whether a file that could not be opened may not be: SQLite writes beside it, too."""
        if Path(self._path).exists() and not os.access(self._path, os.R_OK):
            return True
        return not os.access(Path(self._path).parent, os.W_OK)

    def _is_full(self) -> bool:
        """Whether a failed write can be put down to a full disk, quota or file size limit.

        SQLite knows only one such error by name, and keeps the number of the others to itself.
        """
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and max(file_sizes(self._path)) + (1 << 20) > limit:
            return True
        probe = Path(f"{self._path}.{random_id()}.new")
        try:
            probe.write_bytes(bytes(1 << 18))
        except OSError as exc:
            return isinstance(from_os_error(exc, "probing"), OutOfSpaceError)
        finally:
            probe.unlink(missing_ok=True)
        return False


def error_code(exc: Exception) -> int:
    """SQLite's extended result code; the primary one is its lowest byte."""
    return int(getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR))


def file_sizes(path: str) -> list[int]:
    """Sizes of a database and of its logs, as far as they exist; 0 is always among them."""
    sizes = [0]
    for suffix in ("", "-wal", "-journal"):
        try:
            sizes.append(Path(path + suffix).stat().st_size)
        except FileNotFoundError:
            continue
    return sizes
