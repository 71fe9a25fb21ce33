"""What we do with open files and folders: read, write, copy and sync them, to the end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from blobstore.streams import CHUNK

SEARCH_FOLDER = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)
"""Flags that open a folder as a starting point for names below it, and for nothing else."""

_CANNOT_COPY_INSIDE = {
    errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF,
}  # fmt: skip
_CANNOT_SYNC_FOLDER = {errno.EINVAL, errno.ENOTSUP}


def read_at(descriptor: int, start: int, stop: int) -> bytes:
    """Read bytes ``[start, stop)``, fewer at the end of the file."""
    data = os.pread(descriptor, stop - start, start) if stop > start else b""
    if len(data) >= stop - start:
        return data
    chunks = []  # Linux gives at most 2 GiB a call, and nothing at the end
    while data:
        chunks.append(data)
        start += len(data)
        data = os.pread(descriptor, stop - start, start)
    return b"".join(chunks)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes: the kernel takes at most 2 GiB at a time, and less at a limit."""
    done = os.write(descriptor, data)
    if done < len(data):
        view = memoryview(data)
        while done < len(view):
            done += os.write(descriptor, view[done:])


def copy_all(source: int, target: int, size: int) -> None:
    """Copy a file from its position on, inside the kernel if it can.

    Where that stops (another file system, an old kernel), both files stand at the place where
    plain copying goes on.
    """
    inside = getattr(os, "copy_file_range", None)
    done = 0
    try:
        while inside is not None and done < size and (count := inside(source, target, size - done)):
            done += count
    except OSError as exc:
        if exc.errno not in _CANNOT_COPY_INSIDE:
            raise
    while chunk := os.read(source, CHUNK):
        write_all(target, chunk)


def make_folders(path: str, *, fsync: bool) -> None:
    """Make a folder and those above it; synced, each into the one above.

    Raises
    ------
    NotADirectoryError
        Something else is in the place of the folder, or of one above it.
    """
    missing = []
    while not Path(path).is_dir():
        missing.append(path)
        path = str(Path(path).parent)
    for folder in reversed(missing):
        try:
            Path(folder).mkdir()
        except FileExistsError as exc:
            if not Path(folder).is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory", folder) from exc
        if fsync:
            sync_folder(str(Path(folder).parent))


def sync_folder(path: str) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_open_folder(descriptor)
    finally:
        os.close(descriptor)


def sync_open_folder(descriptor: int) -> None:
    """The same for a folder that is open for reading."""
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in _CANNOT_SYNC_FOLDER:  # file systems that order names by themselves
            raise


def require_file(found: os.stat_result) -> None:
    """Only plain files are objects."""
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
