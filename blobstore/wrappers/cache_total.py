"""A number that processes share: how many bytes the copies in a folder have."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from blobstore.errors import from_os_error

_WIDTH = 20
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW


class SharedTotal:
    """A number in a file, which is changed by one process and thread at a time.

    Parameters
    ----------
    path : Path
    count : callable
        Finds the number out where the file does not tell.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> total = SharedTotal(Path(folder.name) / "total", count=lambda: 7)
    >>> with total.held() as held:
    ...     held.write(held.read() + 1)
    ...     held.read()
    8
    >>> folder.cleanup()
    """

    def __init__(self, path: Path, count: Callable[[], int]) -> None:
        self._path = path
        self._count = count

    @contextlib.contextmanager
    def held(self) -> Iterator[HeldTotal]:
        """Keep all others from it during the block.

        Raises
        ------
        StorageError
            The file cannot be made, or this file system has no locks.
        """
        try:
            descriptor = os.open(self._path, _FLAGS, 0o600)
        except OSError as exc:
            raise from_os_error(exc, f"opening {self._path}") from exc
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as exc:
                raise from_os_error(exc, f"locking {self._path}") from exc
            yield HeldTotal(descriptor, self._path, self._count)
        finally:
            # Closing is not enough: a child that was forked meanwhile has the descriptor, too.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


class HeldTotal:
    """The number, as long as it is held."""

    def __init__(self, descriptor: int, path: Path, count: Callable[[], int]) -> None:
        self._descriptor = descriptor
        self._path = path
        self._count = count

    def read(self) -> int:
        """Tell the number; it is found out anew if the file is new or damaged."""
        try:
            text = os.pread(self._descriptor, 2 * _WIDTH, 0)
        except OSError as exc:
            raise from_os_error(exc, f"reading {self._path}") from exc
        if len(text) == _WIDTH and text.isdigit():
            return int(text)
        return self._count()

    def write(self, total: int) -> None:
        """Change the number."""
        try:
            os.pwrite(self._descriptor, b"%0*d" % (_WIDTH, total), 0)
            os.ftruncate(self._descriptor, _WIDTH)
        except OSError as exc:
            raise from_os_error(exc, f"writing {self._path}") from exc
