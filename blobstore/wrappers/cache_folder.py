"""A folder of copies that several processes share, and that never outgrows its limit.

::

    copies/ab/ab12....copy   a copy, named by a hash of whose it is and of its key
    unfinished/              copies that are being written
    total                    bytes of all copies; locked by whoever changes that

The total is written before a copy takes its place and after one went, so whoever is killed between
the two leaves a total that is too high: the folder is then looked through sooner than need be, and
the total mended. What was used last is what was touched last, so that all processes agree which
copy is to go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from blobstore.backends.blob.filesystem import FilesystemBlobBackend
from blobstore.entry import ObjectStat
from blobstore.errors import KeyNotFoundError, NotSupportedError, OutOfSpaceError, from_os_error
from blobstore.protocols import Capabilities
from blobstore.streams import Buffer, Sink, Source, as_contiguous
from blobstore.wrappers.base import WrapperSink, WrapperStore
from blobstore.wrappers.cache_total import SharedTotal

_COPY = re.compile(r"[0-9a-f]{32}\.copy")
_FULL = 0.9
"""How much of the limit is left filled where room is made, so that it is not made for each copy."""


class CacheFolder(WrapperStore):
    """Objects in a folder: whoever uses it puts copies there, and finds that old ones are gone.

    It cannot be listed, since keys cannot be told from the names of the files.

    Parameters
    ----------
    path : Path
        Made if it is not there, for this user alone.
    max_bytes : int
        How much all copies may have together, whoever put them there; what is larger is refused.
    owner : str
        Whose copies these are: the same key of another owner is another object.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> cache = CacheFolder(Path(folder.name), max_bytes=10, owner="me")
    >>> for key in "abc":
    ...     cache.put(key, b"12345")
    >>> cache.exists("a"), cache.get("b"), cache.total
    (False, b'12345', 10)
    >>> folder.cleanup()
    """

    def __init__(self, path: Path, max_bytes: int, owner: str) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._owner = owner
        self._copies = path / "copies"
        self._total = SharedTotal(path / "total", self._count)
        self._begun = False
        super().__init__(FilesystemBlobBackend(self._copies, tmp_dir=path / "unfinished"))

    @property
    def capabilities(self) -> Capabilities:
        """Those of files, but for listing."""
        return Capabilities(list=False, ranges=True, streams=True, local_files=True)

    @property
    def total(self) -> int:
        """Bytes of all copies, or a little more."""
        with self._total.held() as held:
            return held.read()

    # --- reading: whatever is used is touched ----------------------------------------------------

    def get(self, key: str) -> bytes:
        """Read a copy."""
        return super().get(self._used(key))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of a copy."""
        return super().get_range(self._used(key), start, stop)

    def open(self, key: str) -> BinaryIO:
        """Open a copy; it stays readable when it has to go."""
        return super().open(self._used(key))

    def source(self, key: str) -> Source:
        """Hold a copy open; it stays readable when it has to go."""
        return super().source(self._used(key))

    def exists(self, key: str) -> bool:
        """Whether there is a copy."""
        return super().exists(self._name(key))

    def stat(self, key: str) -> ObjectStat:
        """Tell the size of a copy, and when it was last used."""
        return super().stat(self._name(key))

    def local_path(self, key: str) -> Path | None:
        """Where the copy lies."""
        return super().local_path(self._name(key))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Not to be had."""
        raise NotSupportedError(f"{self!r} does not know the keys of its copies")

    # --- writing: in turns -----------------------------------------------------------------------

    def put(self, key: str, data: Buffer) -> None:
        """Write a copy, once there is room for it."""
        with self.writer(key) as sink:
            sink.write(as_contiguous(data))

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write a copy piece by piece; it takes its place once there is room for it."""
        self._check_size(size_hint or 0)
        self._begin()
        name = self._name(key)
        return _CopySink(super().writer(name, size_hint), self, name)

    def delete(self, key: str) -> None:
        """Remove a copy."""
        name = self._name(key)
        size = super().stat(name).size
        with self._total.held() as held:
            super().delete(name)
            held.write(max(0, held.read() - size))

    def publish(self, name: str, size: int, sink: Sink) -> None:
        """Give a finished copy its place, after others made room for it."""
        self._check_size(size)
        with self._total.held() as held:
            total, replaced = held.read(), self._size_of(name)
            if total + size - replaced > self.max_bytes:
                total, replaced = self._make_room(size), self._size_of(name)
            held.write(total + size)
            try:
                sink.commit()
            except BaseException:
                held.write(total)
                raise
            if replaced:
                held.write(total + size - replaced)

    # --- room ------------------------------------------------------------------------------------

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise OutOfSpaceError(f"a copy of {size} bytes is more than {self!r} may hold")

    def _begin(self) -> None:
        """Make the folder, and remove what others were killed at, before the first copy."""
        if self._begun:
            return
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise from_os_error(exc, f"making the folder {self.path}") from exc
        self._remove_leftovers()
        self._begun = True

    def _remove_leftovers(self) -> None:
        for leftover in self.store.leftovers():  # none that is still being written
            self.store.remove_leftover(leftover.name)

    def _make_room(self, size: int) -> int:
        """Remove what was not used for longest; returns how many bytes are left."""
        self._remove_leftovers()
        copies = sorted(self._all_copies())
        total = sum(used for _, used, _ in copies)
        if total + size <= self.max_bytes:
            return total
        wanted = min(int(self.max_bytes * _FULL), self.max_bytes - size)
        for _, freed, path in copies:
            if total <= wanted:
                break
            self._remove(path)
            total -= freed
        return total

    def _remove(self, path: str) -> None:
        try:
            os.unlink(path)  # noqa: PTH108 - there may be very many
        except FileNotFoundError:
            return
        except OSError as exc:
            raise from_os_error(exc, f"removing the copy {path}") from exc

    def _count(self) -> int:
        return sum(size for _, size, _ in self._all_copies())

    def _all_copies(self) -> Iterator[tuple[int, int, str]]:
        """When each copy was last used, its size, and its path."""
        try:
            for shard in _listed(self._copies):
                if shard.is_dir(follow_symlinks=False):
                    for entry in _listed(shard.path):
                        if _COPY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                            with contextlib.suppress(FileNotFoundError):
                                found = entry.stat(follow_symlinks=False)
                                yield found.st_mtime_ns, found.st_size, entry.path
        except OSError as exc:
            raise from_os_error(exc, f"looking through {self._copies}") from exc

    def _size_of(self, name: str) -> int:
        try:
            return self.store.stat(name).size
        except KeyNotFoundError:
            return 0

    # --- names -----------------------------------------------------------------------------------

    def _name(self, key: str) -> str:
        text = f"{self._owner}\0{key}".encode("utf-8", "surrogatepass")
        return f"{hashlib.blake2b(text, digest_size=16).hexdigest()}.copy"

    def _used(self, key: str) -> str:
        """The name of a copy that is about to be used, and so shall be the last to go."""
        name = self._name(key)
        now = time.time_ns()  # finer than the time that the kernel would put there
        with contextlib.suppress(OSError):  # there is none; or it is somebody else's to touch
            os.utime(f"{self._copies}/{name[:2]}/{name}", ns=(now, now), follow_symlinks=False)
        return name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, max_bytes={self.max_bytes})"


class _CopySink(WrapperSink):
    """Counts what is written, and asks for room before it is published."""

    def __init__(self, inner: Sink, folder: CacheFolder, name: str) -> None:
        super().__init__(inner)
        self._folder = folder
        self._name = name
        self._size = 0
        self._path: Path | None = None

    def write(self, data: Buffer, /) -> int:
        count = super().write(data)
        self._size += count
        return count

    def path(self) -> Path:
        self._path = super().path()
        return self._path

    def commit(self) -> None:
        size = self._size
        if self._path is not None and self._path.is_file():
            size = self._path.stat().st_size
        self._folder.publish(self._name, size, self._inner)
        self.location = self._inner.location


def _listed(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # not made yet
        return []
