"""A database of SQLite as files: given its name, synced and measured, and what its errors mean.

Needs nothing but the standard library, so that whatever keeps something in SQLite can use it.
Whoever opens the database file but through SQLite drops the locks of this process on it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from blobstore.errors import OutOfSpaceError, from_os_error
from blobstore.keys import random_id

BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
MAYBE_FULL = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
DENIED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}


def error_code(exc: BaseException) -> int:
    """SQLite's extended result code; the primary one is its lowest byte."""
    return int(getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR))


def file_sizes(path: str) -> list[int]:
    """Sizes of a database and of its logs, as far as they exist; 0 is always among them."""
    sizes = [0]
    for suffix in ("", "-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(Path(path + suffix).stat().st_size)
    return sizes


def is_denied(path: str, *, readonly: bool = False) -> bool:
    """Whether a file that could not be opened may not be: SQLite writes beside it, too."""
    if Path(path).exists() and not os.access(path, os.R_OK):
        return True
    return not readonly and not os.access(Path(path).parent, os.W_OK)


def is_full(path: str) -> bool:
    """Whether a failed write can be put down to a full disk, quota or file size limit.

    SQLite knows only one such error by name, and keeps the number of the others to itself.
    """
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and max(file_sizes(path)) + (1 << 20) > limit:
        return True
    probe = Path(f"{path}.{random_id()}.new")
    try:
        probe.write_bytes(bytes(1 << 18))
    except OSError as exc:
        return isinstance(from_os_error(exc, "probing"), OutOfSpaceError)
    finally:
        probe.unlink(missing_ok=True)
    return False


def publish(draft: str, path: str) -> None:
    """Give a finished file its name, unless there is one by that name already."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:
        # No hard links here (FAT, some shares). Two makers at the same moment could then both
        # win, which only a file system with links can exclude.
        if not Path(path).exists():
            Path(draft).rename(path)


def remove_draft(draft: str) -> None:
    """Remove what is left of a database that was being made, and of its logs."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            Path(draft + suffix).unlink()


def sync_log(path: str) -> None:
    """Put the WAL on the disk; what is no longer in it was put there by a checkpoint.

    A descriptor of our own is safe here, and only here: SQLite locks bytes of the database
    and of its -shm, never of its -wal.
    """
    with contextlib.suppress(FileNotFoundError):
        sync_path(path + "-wal")


def sync_path(path: str) -> None:
    """Bring a file to the disk, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
