"""Temporary files that become objects: one folder of them, and nothing of others is touched.

A draft is filled out of sight and then moved over its target in one step, so that a reader sees
the old bytes or the new ones. What a killed writer leaves is a file whose name only we make.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator

from blobstore.backends.blob.descriptors import SEARCH_FOLDER, make_folders, write_all
from blobstore.entry import to_datetime
from blobstore.errors import IncompatibleStoreError, InvalidKeyError, from_os_error
from blobstore.keys import random_id
from blobstore.protocols import Leftover

_OURS = re.compile(r"put-[0-9a-f]{32}(\.[A-Za-z0-9]{1,16})?")
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,16}\Z")
_LOCK = "put-if-absent.lock"
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class Draft:
    """One temporary file, from its name to its end.

    Attributes
    ----------
    folder : int
        Descriptor of the folder that it lies in.
    name : str
        In that folder; ends like the target, for libraries that go by the extension.
    published : bool
        Whether it became an object; `close` removes it otherwise.
    """

    __slots__ = ("_fsync", "folder", "name", "published")

    def __init__(self, folder: int, name: str, *, fsync: bool) -> None:
        self.folder = folder
        self.name = name
        self.published = False
        self._fsync = fsync

    def create(self) -> int:
        """Make the file; returns a descriptor to write it with. The umask decides its mode.

        It is locked until the descriptor, and all its duplicates, are closed: so nobody takes it
        for a leftover.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(self.name, flags, 0o666, dir_fd=self.folder)
        with contextlib.suppress(OSError):  # a file system without locks: its age has to do
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    def fill(self, data: bytes | memoryview) -> None:
        """Make the file with this content."""
        descriptor = self.create()
        try:
            write_all(descriptor, data)
            self.finish(descriptor)
        finally:
            os.close(descriptor)

    def finish(self, descriptor: int) -> None:
        """Do what is due between the last byte and publication."""
        # Kernels stamp files in ticks of milliseconds. Two files of one size that had the same
        # inode within a tick would have the same etag.
        now = time.time_ns()
        os.utime(descriptor, ns=(now, now))
        if self._fsync:
            os.fsync(descriptor)

    def finish_lent(self) -> None:
        """The same, for a file that somebody else made under our name.

        Raises
        ------
        FileNotFoundError
            Nobody made it.
        IsADirectoryError
            It is not a file.
        """
        descriptor = os.open(
            self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self.folder
        )
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise IsADirectoryError(errno.EISDIR, "what was written is not a file", self.name)
            self.finish(descriptor)
        finally:
            os.close(descriptor)

    def gone(self) -> bool:
        """Whether somebody removed the file meanwhile."""
        try:
            os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return False

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold off other processes that are in the same block over the same folder."""
        lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666, dir_fd=self.folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def close(self) -> None:
        """Remove the file unless it was published. Calling it again does nothing."""
        if self.folder < 0:
            return
        if not self.published:
            # Often the way out of another error, which must not be hidden by this one; a file
            # that stays is found by `leftovers`.
            with contextlib.suppress(OSError):
                _remove(self.name, self.folder)
        os.close(self.folder)
        self.folder = -1


class DraftFolder:
    """The folder that drafts are made in; it is made when the first one is.

    Parameters
    ----------
    path : str
        Absolute.
    fsync : bool
        Whether drafts reach the disk before they are published.
    trusted : bool
        Whether the path is the user's own choice, and may be a symbolic link.
    """

    def __init__(self, path: str, *, fsync: bool, trusted: bool) -> None:
        self.path = path
        self._fsync = fsync
        self._flags = 0 if trusted else os.O_NOFOLLOW

    def new(self, target: str) -> Draft:
        """Begin a draft for a target of this name; the file itself is not made yet."""
        match = _EXTENSION.search(target)
        name = f"put-{random_id()}{match[0] if match else ''}"
        return Draft(self._open(), name, fsync=self._fsync)

    def leftovers(self) -> Iterator[Leftover]:
        """Drafts that nobody is writing; one that was lent tells by its age only."""
        with self._readable() as folder:
            names = os.listdir(folder) if folder is not None else []  # noqa: PTH208
            found = [left for name in names if (left := _leftover(name, folder)) is not None]
        return iter(found)

    def remove(self, name: str) -> None:
        """Remove one draft; an absent one is fine."""
        if not _OURS.fullmatch(name):
            raise InvalidKeyError(
                f"{name!r} is no temporary file of ours: take names of leftovers()"
            )
        with self._readable() as folder:
            if folder is not None:
                _remove(name, folder)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[int | None]:
        try:
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | self._flags)
        except FileNotFoundError:
            yield None
            return
        except OSError as exc:
            self._check_folder(exc)
            raise from_os_error(exc, f"opening {self.path}") from exc
        try:
            yield folder
        except OSError as exc:
            raise from_os_error(exc, f"looking through {self.path}") from exc
        finally:
            os.close(folder)

    def _open(self) -> int:
        for _ in range(2):
            try:
                return os.open(self.path, SEARCH_FOLDER | self._flags)
            except FileNotFoundError:
                make_folders(self.path, fsync=self._fsync)
            except OSError as exc:
                self._check_folder(exc)
                raise
        raise IncompatibleStoreError(
            f"the folder for temporary files {self.path} is removed as soon as it is made: "
            "stop what removes it"
        )

    def _check_folder(self, exc: OSError) -> None:
        """Say so if something else is in the place of the folder."""
        if exc.errno in (errno.ENOTDIR, errno.ELOOP) and os.path.lexists(self.path):
            raise IncompatibleStoreError(
                f"{self.path} should be a folder for temporary files, and is a file or a symbolic "
                "link: remove it, or choose another tmp_dir"
            ) from exc


def move(draft: Draft, folder: int, leaf: str, *, only_if_absent: bool) -> bool:
    """Give a draft its place in a folder; False if that is taken and must not be."""
    if _is_taken(folder, leaf) and only_if_absent:
        return False
    if not only_if_absent:
        os.replace(draft.name, leaf, src_dir_fd=draft.folder, dst_dir_fd=folder)
        draft.published = True
        return True
    try:
        os.link(draft.name, leaf, src_dir_fd=draft.folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in _NO_HARD_LINKS:
            raise
        return _move_under_lock(draft, folder, leaf)
    return True


def _move_under_lock(draft: Draft, folder: int, leaf: str) -> bool:
    """The same for file systems without hard links: only one of us looks and moves at a time."""
    with draft.exclusive():
        if _is_taken(folder, leaf):
            return False
        os.replace(draft.name, leaf, src_dir_fd=draft.folder, dst_dir_fd=folder)
        draft.published = True
        return True


def _is_taken(folder: int, leaf: str) -> bool:
    """Whether a file is there; a link or a folder is an error, as it must not be replaced."""
    try:
        mode = os.stat(leaf, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not stat.S_ISREG(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return True


def _leftover(name: str, folder: int | None) -> Leftover | None:
    if not _OURS.fullmatch(name):
        return None
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode) and _is_locked(name, folder):
            return None
    except FileNotFoundError:  # published meanwhile
        return None
    return Leftover(name, found.st_size, to_datetime(found.st_mtime_ns // 1000))


def _is_locked(name: str, folder: int | None) -> bool:
    """Whether its writer is still there."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    except PermissionError:
        return False  # somebody else's, then, and not for us to remove either
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _remove(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        # A library that was lent the path may have made a folder there; macOS says EPERM.
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise
        shutil.rmtree(name, dir_fd=folder)
