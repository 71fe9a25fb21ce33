"""Reading an object of SQLite piece by piece, as it was when the reading began."""

from __future__ import annotations

import contextlib
import io
import sqlite3
import tempfile
import threading
import weakref
from typing import BinaryIO, NamedTuple

from blobstore.backends.blob.descriptors import read_at, write_all
from blobstore.backends.blob.sqlite_session import Session
from blobstore.backends.sqlite_pool import make_immortal
from blobstore.errors import IntegrityError, StorageError, from_os_error
from blobstore.streams import CHUNK, RangeReader, Source

_BUFFER = 1 << 17
_HEAD = "SELECT id, size, part FROM objects WHERE key = ?"
_PART = "SELECT rowid FROM parts WHERE object = ? AND number = ?"
_WHOLE_PART = "SELECT data FROM parts WHERE object = ? AND number = ?"


class Head(NamedTuple):
    """Where an object lies: in one row if `part` is 0, else in parts of so many bytes."""

    id: int
    size: int
    part: int


class Snapshot:
    """One object at one moment, whatever happens to it later, for all who hold it.

    A read transaction on a connection of its own keeps the moment. It is copied into a temporary
    file where that would be in the way: before the process forks, or where a reader keeps writers
    waiting. Threads may share it; it is closed when the last holder has released it.

    Attributes
    ----------
    size : int
        Of the object.
    """

    def __init__(self, session: Session, kept: sqlite3.Connection, key: str, head: Head) -> None:
        self._session = session
        self._kept: sqlite3.Connection | None = kept
        self._key = key
        self._head = head
        self.size = head.size
        self._holders = 1
        # The lock may be taken again: a forgotten reader may be collected inside any call.
        self._lock = threading.RLock()
        self._reading = False
        self._blob: sqlite3.Blob | None = None
        self._number = -1
        self._copy: BinaryIO | None = None
        self._lost: BaseException | None = None

    @classmethod
    def take(cls, session: Session, key: str) -> Snapshot | None:
        """Begin to read an object; None if there is none."""
        kept = session.pool.acquire()
        try:
            kept.execute("BEGIN")
            row = kept.execute(_HEAD, (key,)).fetchone()
        except sqlite3.Error as exc:
            _finish(session, kept)
            raise session.translated(exc, "reading", key) from exc
        except BaseException:
            _finish(session, kept)
            raise
        if row is None:
            _finish(session, kept)
            return None
        snapshot = cls(session, kept, key, Head(*row))
        session.pool.holders[snapshot] = None
        return snapshot

    def hold(self) -> Snapshot:
        """Add a holder, who must release it."""
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> None:
        """Take a holder away; the last one closes."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
            self._give_back()
            if self._copy is not None:
                self._copy.close()
                self._copy = None

    # --- reading ---------------------------------------------------------------------------------

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes ``[start, stop)``, clipped at the end."""
        stop = min(stop, self.size)
        if start >= stop:
            return b""
        with self._lock:
            if self._kept is not None:
                return self._read_kept(self._kept, start, stop)
            if self._copy is not None:
                return self._read_copy(self._copy, start, stop)
        raise StorageError(
            f"{self._key!r} can no longer be read as it was: the process was forked meanwhile, and "
            f"no copy could be made before ({self._lost}). Open it again.",
            location=self._key,
        )

    def _read_kept(self, kept: sqlite3.Connection, start: int, stop: int) -> bytes:
        self._reading = True
        try:
            if self._head.part == 0:
                return self._read_blob(kept, 0, start, stop)
            first, last = start // self._head.part, (stop - 1) // self._head.part
            if first == last:
                return self._read_part(kept, first, start, stop)
            # A BytesIO gives its bytes away without a copy, which a join of pieces would be.
            gathered = io.BytesIO()
            for number in range(first, last + 1):
                gathered.write(self._read_part(kept, number, start, stop))
            return gathered.getvalue()
        except sqlite3.Error as exc:
            raise self._session.translated(exc, "reading", self._key) from exc
        finally:
            self._reading = False

    def _read_part(self, kept: sqlite3.Connection, number: int, start: int, stop: int) -> bytes:
        """Read what of a range lies in one part."""
        begin = number * self._head.part
        length = min(self._head.part, self.size - begin)
        low, high = max(start - begin, 0), min(stop - begin, length)
        if (low, high) != (0, length):
            return self._read_blob(kept, number, low, high)
        row = kept.execute(_WHOLE_PART, (self._head.id, number)).fetchone()
        data: object = row and row[0]
        if type(data) is not bytes or len(data) != length:
            raise self._damaged(number)
        return data

    def _read_blob(self, kept: sqlite3.Connection, number: int, start: int, stop: int) -> bytes:
        if self._blob is None or self._number != number:
            self._open_blob(kept, number)
        assert self._blob is not None
        self._blob.seek(start)
        return self._blob.read(stop - start)

    def _open_blob(self, kept: sqlite3.Connection, number: int) -> None:
        """Open the row of a part, and see that it has the right size."""
        self._close_blob()
        table, row, length = "objects", self._head.id, self.size
        if self._head.part:
            found = kept.execute(_PART, (self._head.id, number)).fetchone()
            if found is None:
                raise self._damaged(number)
            table, row = "parts", found[0]
            length = min(self._head.part, self.size - number * self._head.part)
        self._blob = kept.blobopen(table, "data", row, readonly=True)
        self._number = number
        if len(self._blob) != length:
            raise self._damaged(number)

    def _damaged(self, number: int) -> IntegrityError:
        return IntegrityError(
            f"part {number} of {self._key!r} in {self._session.file.label} is missing, or has "
            "another size than it was stored with: restore the file from a backup, or delete this "
            "object",
            location=self._key,
        )

    def _read_copy(self, copy: BinaryIO, start: int, stop: int) -> bytes:
        try:
            # By position: forked children share the descriptor.
            data = read_at(copy.fileno(), start, stop)
        except OSError as exc:
            raise from_os_error(exc, f"reading the copy of {self._key!r}") from exc
        if len(data) != stop - start:
            raise StorageError(f"the temporary copy of {self._key!r} was cut short")
        return data

    # --- letting go ------------------------------------------------------------------------------

    def copy_out(self) -> None:
        """Copy the object into a temporary file, and give the connection back."""
        with self._lock:
            if self._kept is None:
                return
            copy = None
            try:
                copy = tempfile.TemporaryFile(dir=self._session.file.folder, buffering=0)  # noqa: SIM115
                for start in range(0, self.size, CHUNK):
                    stop = min(start + CHUNK, self.size)
                    write_all(copy.fileno(), self._read_kept(self._kept, start, stop))
            except BaseException as exc:
                if copy is not None:
                    copy.close()
                if isinstance(exc, OSError):
                    what = f"copying {self._key!r} into a temporary file"
                    raise from_os_error(exc, what, location=self._key) from exc
                raise
            self._copy = copy
            self._give_back()

    def let_go(self) -> None:
        """Do without the connection from now on, unless somebody is reading at this moment."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._reading:  # in this very thread: a signal handler forks
                return
            try:
                self.copy_out()
            except (StorageError, IntegrityError) as exc:
                # Better no more of this object here, than no more of the store in the child.
                self._lost = exc
                self._give_back()
        finally:
            self._lock.release()

    def abandon(self) -> None:
        """Forget the parent's connection in a forked child, without touching it."""
        self._lock = threading.RLock()
        self._reading = False
        make_immortal((self._blob, self._kept))
        self._kept = self._blob = None
        self._lost = StorageError("it was being read")

    def _give_back(self) -> None:
        kept, self._kept = self._kept, None
        if kept is None:
            return
        self._session.pool.holders.pop(self, None)
        self._close_blob()
        _finish(self._session, kept)

    def _close_blob(self) -> None:
        blob, self._blob = self._blob, None
        if blob is not None:
            blob.close()


class SnapshotReader(RangeReader):
    """Reads a snapshot from a position of its own, and releases it in the end."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self._snapshot = snapshot.hold()

    def end(self) -> int:
        """Tell the size."""
        return self._snapshot.size

    def read_range(self, start: int, stop: int) -> bytes:
        """Read part of the object."""
        return self._snapshot.read(start, stop)

    def close(self) -> None:
        """Release the snapshot."""
        if not self.closed:
            self._snapshot.release()
        super().close()


class SnapshotSource(Source):
    """A source over a snapshot that it takes over: it is released at the end, also if forgotten."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.size = snapshot.size
        self._release = weakref.finalize(self, snapshot.release)

    def open(self) -> BinaryIO:
        """Open a reader that may outlive this source."""
        return open_reader(self._held())

    def read(self) -> bytes:
        """Read all bytes."""
        return self._held().read(0, self.size)

    def read_range(self, start: int, stop: int) -> bytes:
        """Read part of the object."""
        return self._held().read(start, stop)

    def close(self) -> None:
        """Release the snapshot."""
        self._release()

    def _held(self) -> Snapshot:
        if not self._release.alive:
            raise ValueError(f"{type(self).__name__} was closed")
        return self._snapshot


def open_reader(snapshot: Snapshot) -> BinaryIO:
    """Open a buffered reader, which holds the snapshot for itself."""
    return io.BufferedReader(SnapshotReader(snapshot), _BUFFER)


def _finish(session: Session, kept: sqlite3.Connection) -> None:
    """End the read transaction, and give the connection back."""
    if kept.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            kept.rollback()
    session.give_back(kept)
