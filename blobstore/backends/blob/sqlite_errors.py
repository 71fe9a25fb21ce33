"""Why SQLite refused, in our words."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from blobstore.backends.sqlite_files import (
    BUSY,
    DAMAGED,
    DENIED,
    MAYBE_FULL,
    error_code,
    is_denied,
    is_full,
)
from blobstore.errors import (
    BlobStoreError,
    IntegrityError,
    InvalidInputError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)


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
        if code in BUSY:
            return UnavailableError(
                f"{failed}. Somebody else holds the lock for longer than the timeout of "
                f"{self._timeout:g} s: try again, or open the store with a longer timeout.",
                location=location,
            )
        if (
            code in DAMAGED
            or extended == sqlite3.SQLITE_IOERR_SHORT_READ
            or "Could not decode" in str(exc)
        ):
            return IntegrityError(
                f"{failed}. The file is damaged: restore it from a backup.", location=location
            )
        if code == sqlite3.SQLITE_FULL or (code in MAYBE_FULL and is_full(self._path)):
            return OutOfSpaceError(
                f"{failed}. Free some space, for instance with delete() and compact(), then try "
                "again; what was stored before is intact.",
                location=location,
            )
        if code == sqlite3.SQLITE_TOOBIG:
            return InvalidInputError(f"{failed}. SQLite keeps no key this long.", location=location)
        return self._refused(failed, code, location)

    def _refused(self, failed: str, code: int, location: str | None) -> StorageError:
        if code in DENIED or (code == sqlite3.SQLITE_CANTOPEN and is_denied(self._path)):
            return PermissionDeniedError(
                f"{failed}. Check owner and mode of {self._path} and its folder.",
                location=location,
            )
        if code == sqlite3.SQLITE_CANTOPEN and not Path(self._path).exists():
            return StorageError(
                f"{failed}. The file is gone: restore it from a backup.", location=location
            )
        return StorageError(f"{failed}.", location=location)
