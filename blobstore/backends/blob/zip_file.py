"""One zip file on disk: kept up to date with what others do to it, appended to, copied.

Appending takes an exclusive lock on the file itself (`flock`), which ends with its holder, looks at
what others appended, cuts off what a killed writer left, and writes at the end. Reading takes no
lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import stat
import threading
import time
import weakref
from collections.abc import Iterator, Sequence

from blobstore.backends.blob.descriptors import make_folders, sync_folder
from blobstore.backends.blob.zip_compaction import write_copy
from blobstore.backends.blob.zip_directory import pack_directory
from blobstore.backends.blob.zip_drafts import Drafts, discard
from blobstore.backends.blob.zip_foreign import (
    check_adoptable,
    ends_in_a_directory,
    read_foreign,
)
from blobstore.backends.blob.zip_format import HEAD, Record, Slot, pack_record, pack_slot
from blobstore.backends.blob.zip_index import (
    View,
    catch_up,
    is_unwritten,
    read_own,
)
from blobstore.backends.blob.zip_io import (
    Handle,
    Payload,
    no_file,
    open_handle,
    payload_size,
    write_at,
)
from blobstore.errors import (
    ClosedError,
    IntegrityError,
    StorageError,
    UnavailableError,
    from_os_error,
)

_FIRST_WAIT, _LONGEST_WAIT = 0.0002, 0.02

_files: weakref.WeakSet[ZipFile] = weakref.WeakSet()


class ZipFile:
    """The zip file of a store; shared by its threads.

    Parameters
    ----------
    path : str
        Absolute. May be a symbolic link.
    fsync : bool
        Whether what was appended is on the disk when the call returns.
    timeout : float
        Seconds to wait for other writers.

    Attributes
    ----------
    dirty : bool
        Whether this process changed the file since it last wrote a directory.
    """

    def __init__(self, path: str, *, fsync: bool, timeout: float) -> None:
        self.path = path
        self.dirty = False
        self._fsync = fsync
        self._timeout = timeout
        self._view: View | None = None
        self._writer: Handle | None = None
        self._closed = False
        self._begin()
        _files.add(self)

    def _begin(self) -> None:
        # In a forked child the locks may be held by threads that are not there. The inherited
        # descriptors are let go of: to unlock one would unlock the parent's.
        self._reading = threading.Lock()
        self._appending = threading.Lock()
        self._view = self._writer = None

    def forked(self) -> None:
        """Start anew in a child; what the parent wrote is the parent's to finish."""
        self._begin()
        self.dirty = False

    @property
    def drafts(self) -> Drafts:
        """Temporary files beside the file itself, not beside a link to it."""
        return Drafts(os.path.realpath(self.path))

    def check_open(self) -> None:
        """Refuse to go on after `close`."""
        if self._closed:
            raise ClosedError("this ZipStore was closed: make a new one")

    def close(self) -> None:
        """Let go of the file; those who are reading keep it until they are done."""
        self._closed = True
        with self._appending:
            self._view = self._writer = None

    # --- reading ---------------------------------------------------------------------------------

    def view(self) -> View | None:
        """What is in the file now; None if there is none."""
        self.check_open()
        try:
            found = os.stat(self.path)  # noqa: PTH116 - Path.stat takes twice as long
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise from_os_error(exc, f"looking at {self.path}") from exc
        view = self._view
        if view is not None and _is_current(view, found):
            return view
        with self._reading, self._translated("reading"):
            try:
                return self._refresh(os.stat(self.path), locked=False)  # noqa: PTH116
            except FileNotFoundError:
                return None

    def _refresh(self, found: os.stat_result, *, locked: bool) -> View:
        """Take in what happened to the file; `self._reading` is held."""
        view = self._view
        if view is not None and _is_current(view, found):
            return view
        if view is not None and not _is_same_file(view, found):
            view = None
        if view is not None:
            try:
                catch_up(view, found.st_size, self.path)
            except IntegrityError:  # or another program was at work
                view = None
        if view is None:
            view = self._load(locked=locked)
        if not self._closed:
            self._view = view
        return view

    def _load(self, *, locked: bool) -> View:
        handle = open_handle(self.path, os.O_RDONLY)
        try:
            return self._read(handle)
        except IntegrityError:
            if locked:
                raise
        # A record may have been cut off and written anew while we looked at it.
        self._lock(handle, fcntl.LOCK_SH)
        try:
            return self._read(handle)
        finally:
            fcntl.flock(handle.fd, fcntl.LOCK_UN)

    def _read(self, handle: Handle) -> View:
        size = handle.size()
        if is_unwritten(handle, size):
            return View(handle)
        try:
            view = read_own(handle, size, self.path)
        except IntegrityError:
            if ends_in_a_directory(handle):
                return read_foreign(handle, self.path)
            raise
        if view is None or (view.fell_back and ends_in_a_directory(handle)):
            return read_foreign(handle, self.path)
        return view

    # --- appending -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def appending(self, *, wait: bool = True) -> Iterator[View]:
        """Keep out all other writers; gives what is in the file, which ends there.

        Raises
        ------
        UnavailableError
            Others kept it for longer than the timeout; or at all, if `wait` is False.
        StorageError
        """
        if not self._appending.acquire(timeout=self._timeout if wait else 0):
            raise self._busy()
        try:
            self.check_open()
            self._open_writer(wait=wait)
            yield self._prepared()
        finally:
            # Unlocked in any case: who was interrupted does not know whether it was locked.
            if self._writer is not None:
                fcntl.flock(self._writer.fd, fcntl.LOCK_UN)
            self._appending.release()

    def _open_writer(self, *, wait: bool) -> None:
        """Lock the file that bears the name now, not one that was replaced meanwhile."""
        while True:
            with self._translated("opening"):
                if self._writer is None:
                    self._writer = self._create()
                self._lock(self._writer, fcntl.LOCK_EX, wait=wait)
                with contextlib.suppress(FileNotFoundError):
                    found = os.stat(self.path)  # noqa: PTH116
                    if (found.st_dev, found.st_ino) == self._writer.identity:
                        return
                fcntl.flock(self._writer.fd, fcntl.LOCK_UN)
            self._writer = None

    def _create(self) -> Handle:
        flags = os.O_RDWR | os.O_CREAT
        try:
            return open_handle(self.path, flags)
        except FileNotFoundError:
            make_folders(self.drafts.folder, fsync=self._fsync)
            return open_handle(self.path, flags)
        except NotADirectoryError as exc:
            raise no_file(self.path) from exc

    def _lock(self, handle: Handle, kind: int, *, wait: bool = True) -> None:
        deadline = time.monotonic() + (self._timeout if wait else 0)
        pause = _FIRST_WAIT
        while True:
            try:
                fcntl.flock(handle.fd, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._busy() from None
                # Waiters would otherwise knock in step.
                time.sleep(min(left, pause * random.uniform(0.5, 1.5)))  # noqa: S311
                pause = min(2 * pause, _LONGEST_WAIT)
            else:
                return

    def _busy(self) -> UnavailableError:
        return UnavailableError(
            f"{self.path} was held by another writer for {self._timeout:g} s: try again, or open "
            "the store with a longer timeout; nothing was changed"
        )

    def _prepared(self) -> View:
        """Make the file one that can be appended to."""
        assert self._writer is not None
        with self._reading, self._translated("reading"):
            view = self._refresh(os.fstat(self._writer.fd), locked=True)
        if view.foreign:
            check_adoptable(view, self.path)
            return self._replace(view)
        with self._translated():
            if self._writer.size() > view.end:
                os.ftruncate(self._writer.fd, view.end)
            if view.end == 0:
                self._write(0, HEAD, b"")
                with self._reading:
                    view.end = max(view.end, len(HEAD))
                if self._fsync:
                    sync_folder(self.drafts.folder)
        return view

    def append(self, view: View, records: Sequence[Record], payload: Payload = b"") -> None:
        """Write records in one go, the last of them with what follows it; in `appending`.

        Raises
        ------
        OutOfSpaceError, StorageError
            Nothing was appended.
        """
        headers = [pack_record(record) for record in records]
        start = view.end
        with self._translated():
            self._write(start, headers[0] if len(headers) == 1 else b"".join(headers), payload)
        self.dirty = True
        with self._reading:
            if view.end != start:  # a thread that reads was faster, at least with a part of it
                catch_up(view, view.handle.size(), self.path)
                return
            for record, header in zip(records, headers, strict=True):
                view.take(record, start, len(header))
                start += len(header) + record.follows

    def _write(self, start: int, header: bytes, payload: Payload) -> None:
        """Write at the end, all or nothing."""
        assert self._writer is not None
        fd = self._writer.fd
        try:
            write_at(fd, start, header, payload)
        except BaseException:
            # Whatever is whole has been seen, perhaps. What cannot be cut off now is an incomplete
            # record, which harms nobody.
            if os.fstat(fd).st_size < start + len(header) + payload_size(payload):
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, start)
            raise

    def written(self) -> Handle | None:
        """What to sync after `appending`; None if nothing is to be."""
        return self._writer if self._fsync else None

    def sync(self, handle: Handle | None) -> None:
        """Bring a file to the disk."""
        if handle is not None:
            with self._translated():
                os.fsync(handle.fd)

    def sync_name(self) -> None:
        """Bring the name of the file to the disk."""
        with self._translated():
            sync_folder(self.drafts.folder)

    # --- directories and copies ------------------------------------------------------------------

    def write_directory(self, view: View) -> None:
        """Make the file one that other programs can read; in `appending`."""
        record, data, entries = pack_directory(view.entries(), view.end, view.comment)
        start = view.end
        self.append(view, [record], data)
        self.sync(self.written())  # before the slot says that it is there
        slot = Slot(view.sequence, start, view.end - start, entries)
        at, packed = pack_slot(slot)
        assert self._writer is not None
        with self._translated():
            write_at(self._writer.fd, at, packed, b"")
        self.sync(self.written())
        self.dirty = False

    def compact(self, view: View) -> int:
        """Copy what is alive over the file; in `appending`. Returns the bytes that were freed."""
        before = view.handle.size()
        return max(0, before - self._replace(view).end)

    def _replace(self, view: View) -> View:
        assert self._writer is not None
        target = os.path.realpath(self.path)
        draft = self.drafts.new()
        with self._translated():
            new = open_handle(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                # Locked before it gets its name: who opens it then waits for us.
                fcntl.flock(new.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _copy_owner(self._writer.fd, new.fd)
                write_copy(view, new.fd)
                os.replace(draft, target)  # noqa: PTH105
            except BaseException:
                with contextlib.suppress(OSError):
                    discard(draft)
                raise
            fcntl.flock(self._writer.fd, fcntl.LOCK_UN)
            self._writer = new
            self.dirty = False
            with self._reading:
                found = os.fstat(new.fd)
                view = self._refresh(found, locked=True)
            sync_folder(self.drafts.folder)
        return view

    @contextlib.contextmanager
    def _translated(self, what: str = "writing") -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise from_os_error(exc, f"{what} {self.path}") from exc

    def finish(self, *, compact_at: int | None, wait: bool = True) -> None:
        """Leave the file as other programs need it, before it is closed.

        Whatever cannot be done and is not this store's own doing is left to the next one.

        Parameters
        ----------
        compact_at : int or None
            Compact if this store wrote, and more than this, and than half of the file, is garbage.
        wait : bool
            For other writers.
        """
        mine = self.dirty
        if not wait:
            self._timeout = 0
        try:
            view = self.view()
            if view is None or view.end == 0 or (view.clean and not mine):
                return
            with self.appending(wait=mine) as view:
                if (
                    mine
                    and compact_at is not None
                    and view.garbage > max(compact_at, view.end // 2)
                ):
                    with contextlib.suppress(StorageError):  # a full disk, say: then it just stays
                        self.compact(view)
                if not view.clean and self.dirty | (not mine):
                    self.write_directory(view)
        except (StorageError, IntegrityError):
            if mine:
                raise


def _is_same_file(view: View, found: os.stat_result) -> bool:
    same = view.handle.identity == (found.st_dev, found.st_ino)
    return same and not view.foreign and 0 < view.end <= found.st_size


def _is_current(view: View, found: os.stat_result) -> bool:
    return (
        view.end == found.st_size
        and view.handle.identity == (found.st_dev, found.st_ino)
        and (not view.foreign or view.changed_ns == found.st_mtime_ns)
    )


def _copy_owner(source: int, target: int) -> None:
    found = os.fstat(source)
    with contextlib.suppress(PermissionError):  # only the superuser gives files away
        os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))


def _after_fork() -> None:
    for file in list(_files):
        file.forked()


os.register_at_fork(after_in_child=_after_fork)
