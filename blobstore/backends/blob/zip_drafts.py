"""Temporary files beside a zip file: those that are lent to writers, and copies being compacted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from blobstore.entry import to_datetime
from blobstore.errors import InvalidKeyError, from_os_error
from blobstore.keys import random_id, require_str
from blobstore.protocols import Leftover

_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,16}\Z")


class Drafts:
    """The temporary files of one zip file: their names tell whose they are.

    Parameters
    ----------
    path : str
        Of the zip file.
    """

    def __init__(self, path: str) -> None:
        self.folder, name = os.path.split(path)
        self._prefix = f".blobstore-{zlib.crc32(os.fsencode(name)):08x}-"
        self._ours = re.compile(re.escape(self._prefix) + r"[0-9a-f]{32}(\.[A-Za-z0-9]{1,16})?")

    def new(self, key: str = "") -> str:
        """Make up a path; it ends like the key, for libraries that go by the extension."""
        match = _EXTENSION.search(key)
        return f"{self.folder}/{self._prefix}{random_id()}{match[0] if match else ''}"

    def spool(self) -> BinaryIO:
        """Open a file without a name, on the same file system: nothing of it can be left over."""
        return tempfile.TemporaryFile(dir=self.folder, prefix=self._prefix, buffering=0)

    def leftovers(self) -> Iterator[Leftover]:
        """Files that nobody is writing; one that was lent tells by its age only."""
        try:
            names = os.listdir(self.folder)  # noqa: PTH208
            found = [left for name in names if (left := self._leftover(name)) is not None]
        except FileNotFoundError:
            return iter(())
        except OSError as exc:
            raise from_os_error(exc, f"looking through {self.folder}") from exc
        return iter(found)

    def remove(self, name: str) -> None:
        """Remove one of `leftovers`; an absent one is fine."""
        if not self._ours.fullmatch(require_str(name)):
            raise InvalidKeyError(
                f"{name!r} is no temporary file of this store: take names of leftovers()"
            )
        try:
            discard(f"{self.folder}/{name}")
        except OSError as exc:
            raise from_os_error(exc, f"removing {self.folder}/{name}") from exc

    def _leftover(self, name: str) -> Leftover | None:
        if not self._ours.fullmatch(name):
            return None
        path = f"{self.folder}/{name}"
        try:
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode) and _is_locked(path):
                return None
        except FileNotFoundError:  # it became the zip file meanwhile
            return None
        return Leftover(name, found.st_size, to_datetime(found.st_mtime_ns // 1000))


def discard(path: str) -> None:
    """Remove a temporary file, or what a library made of it; an absent one is fine."""
    try:
        os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):  # macOS says EPERM
        if not Path(path).is_dir():
            raise
        shutil.rmtree(path)


def _is_locked(path: str) -> bool:
    """Whether its writer is still there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        return False
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        return True
    finally:
        os.close(descriptor)
