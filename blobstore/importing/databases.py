"""SQLite databases of other programs, read without leaving a trace."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from blobstore.errors import DecodeError, StorageError

_SIDE_FILES = ("-wal", "-journal")
_ATTEMPTS = 3


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for reading only.

    A database that was closed properly is opened as immutable, so that SQLite makes no files beside
    it. One with a journal, whose writer was killed or is still at work, is copied and read there.

    Raises
    ------
    DecodeError
        It is none, or damaged; also if that shows only while rows are read.
    StorageError
        Somebody keeps writing to it.
    """
    with contextlib.ExitStack() as stack:
        options = "mode=ro&immutable=1"
        if any(_size(path, suffix) for suffix in _SIDE_FILES):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="blobstore-import-"))
            path = _copied(path, Path(folder))
            options = "mode=rw"
        stack.enter_context(_translating())
        connection = sqlite3.connect(f"{path.as_uri()}?{options}", uri=True)
        stack.callback(connection.close)
        connection.execute("PRAGMA trusted_schema=OFF")  # views and the like run no functions
        connection.execute("PRAGMA query_only=ON")
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        connection.row_factory = sqlite3.Row
        yield connection


@contextlib.contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, UnicodeError) as exc:  # names in a damaged schema may be no UTF-8
        raise DecodeError(f"the index cannot be read, or not to its end: {exc}") from exc


def columns(connection: sqlite3.Connection, table: str) -> set[str]:
    """Names of the columns of a table; none, if there is no such table, or it is a virtual one."""
    found = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0 AND name = ?",
        (table,),
    ).fetchone()
    if found is None:
        return set()
    return {
        row["name"] for row in connection.execute("SELECT * FROM pragma_table_info(?)", (table,))
    }


def _size(path: Path, suffix: str) -> int:
    side = path.with_name(path.name + suffix)
    try:
        return side.stat().st_size
    except FileNotFoundError:
        return 0


def _copied(path: Path, folder: Path) -> Path:
    """A copy of a database and its journal, of one moment."""
    for _ in range(_ATTEMPTS):
        before = _state(path)
        for suffix in ("", *_SIDE_FILES):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(path.with_name(path.name + suffix), folder / ("copy.db" + suffix))
        if _state(path) == before:
            return folder / "copy.db"
    raise StorageError(f"{path} is being written to: import it when no program has it open")


def _state(path: Path) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = []
    for suffix in ("", *_SIDE_FILES):
        try:
            stat = path.with_name(path.name + suffix).stat()
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((stat.st_size, stat.st_mtime_ns))
    return found
