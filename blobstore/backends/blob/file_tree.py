"""A folder of files that no name leads out of, and in which each file changes at once or not at all.

Names are tuples of segments below the root. Each operation opens the folders on its way one by
one and refuses symbolic links while it does (`openat` with ``O_NOFOLLOW``), so what was checked is
what is used, whatever others do to the tree meanwhile. No descriptor is kept between operations:
a tree may be pickled, forked, and shared by threads.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from blobstore.backends.blob.descriptors import (
    SEARCH_FOLDER,
    copy_all,
    make_folders,
    read_at,
    require_file,
    sync_folder,
    sync_open_folder,
)
from blobstore.backends.blob.drafts import Draft, DraftFolder, move
from blobstore.backends.blob.file_streams import FileSink
from blobstore.backends.blob.layouts import is_segment
from blobstore.backends.blob.path_errors import Name, PathErrors
from blobstore.entry import ObjectStat, to_datetime
from blobstore.errors import (
    ConfigError,
    InvalidKeyError,
    KeyNotFoundError,
    LostDraftError,
)
from blobstore.streams import Buffer, FileSource, Sink, Source, as_contiguous

DRAFTS = ".blobstore-tmp"
"""The folder of temporary files, if the user does not choose one."""

_ATTEMPTS = 1000
_MAX_PATH = 4096
_SEARCH = SEARCH_FOLDER | os.O_NOFOLLOW
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a named pipe would wait for its writer


class FileTree:
    """Files below a root, by name.

    Parameters
    ----------
    root : str or path
        Made on the first write.
    fsync : bool
        Whether a write returns only when it would survive a power cut.
    tmp_dir : str or path, optional
        For files that are being written; on the same file system as the root.
    prune : bool
        Whether folders that a removal leaves empty go, too.
    label : callable
        Turns a name into the location that errors carry.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        fsync: bool,
        tmp_dir: str | os.PathLike[str] | None,
        prune: bool,
        label: Callable[[Name], str],
    ) -> None:
        self.root = _absolute(root, "the root")
        drafts = f"{self.root}/{DRAFTS}" if tmp_dir is None else _absolute(tmp_dir, "tmp_dir")
        if drafts == self.root:
            raise ConfigError("tmp_dir cannot be the root: temporary files are no objects")
        self._reserved = _below(self.root, drafts)
        self._fsync = fsync
        self._prune = prune
        self._label = label
        self._errors = PathErrors(self.root, drafts, label)
        self.drafts = DraftFolder(drafts, fsync=fsync, trusted=tmp_dir is not None)

    # --- names -----------------------------------------------------------------------------------

    def path(self, name: Name) -> str:
        """Where a file lies, or would lie."""
        return "/".join((self.root, *name))

    def is_reserved(self, name: Name) -> bool:
        """Whether a name is in the way of the temporary files."""
        count = min(len(name), len(self._reserved))
        return count > 0 and name[:count] == self._reserved[:count]

    # --- reading ---------------------------------------------------------------------------------

    def read(self, name: Name) -> bytes:
        """Read a whole file."""
        return self.read_range(name, 0, None)

    def read_range(self, name: Name, start: int, stop: int | None) -> bytes:
        """Read bytes ``[start, stop)``, clipped at the end."""
        try:
            descriptor, found = self._open_file(name)
            try:
                size = found.st_size
                return read_at(descriptor, start, size if stop is None else min(stop, size))
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise self._errors.translated(exc, "reading", name) from exc

    def open(self, name: Name) -> BinaryIO:
        """Open a file as an ordinary binary file."""
        descriptor = self._open_to_keep(name)
        return open(self.path(name), "rb", opener=lambda *_: descriptor)

    def source(self, name: Name) -> Source:
        """Hold a file open, to be read in several ways."""
        descriptor = self._open_to_keep(name)
        path = self.path(name)
        return FileSource(Path(path), io.FileIO(path, opener=lambda *_: descriptor))

    def exists(self, name: Name) -> bool:
        """Whether there is a file of that name."""
        try:
            self._stat(name)
        except OSError as exc:
            error = self._errors.translated(exc, "looking for", name)
            if isinstance(error, KeyNotFoundError):
                return False
            raise error from exc
        return True

    def existing(self, folder: Name, leaves: Iterable[str]) -> list[str]:
        """Which files of these names are in a folder, which is opened only once."""
        looked_for = (*folder, "*")
        try:
            descriptor = self._open_folder(folder)
            try:
                found = []
                for leaf in leaves:
                    looked_for = (*folder, leaf)
                    if _is_file(leaf, descriptor):
                        found.append(leaf)
                return found
            finally:
                os.close(descriptor)
        except OSError as exc:
            error = self._errors.translated(exc, "looking for", looked_for)
            if isinstance(error, KeyNotFoundError):
                return []
            raise error from exc

    def stat(self, name: Name) -> ObjectStat:
        """Tell size, time and etag: inode, time and size, which no two writes have in common."""
        try:
            found = self._stat(name)
        except OSError as exc:
            raise self._errors.translated(exc, "looking at", name) from exc
        etag = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
        return ObjectStat(found.st_size, to_datetime(found.st_mtime_ns // 1000), etag)

    def listing(self, folder: Name) -> tuple[list[str], list[str]]:
        """Names of the files and of the folders in a folder; none if there is no such folder.

        All at once: a name is given once, even if its file is replaced meanwhile, and no
        descriptor waits for the caller to ask for more.
        """
        try:
            descriptor = self._open_folder(folder, _LIST)
            try:
                with os.scandir(descriptor) as entries:
                    found = {entry.name: entry for entry in entries if is_segment(entry.name)}
                files = [n for n, e in found.items() if e.is_file(follow_symlinks=False)]
                folders = [
                    n
                    for n, e in found.items()
                    if e.is_dir(follow_symlinks=False) and (*folder, n) != self._reserved
                ]
            finally:
                os.close(descriptor)
        except OSError as exc:
            error = self._errors.translated(exc, "listing", (*folder, "*"))
            if isinstance(error, KeyNotFoundError | InvalidKeyError):  # gone, or a link by now
                return [], []
            raise error from exc
        return files, folders

    # --- writing ---------------------------------------------------------------------------------

    def write(self, name: Name, data: Buffer, *, only_if_absent: bool = False) -> bool:
        """Write a whole file; False if it was there and was not to be replaced."""
        content = as_contiguous(data)
        if only_if_absent and self.exists(name):
            return False
        with self._errors.writing(name), contextlib.closing(self.drafts.new(name[-1])) as draft:
            draft.fill(content)
            return self.publish(draft, name, only_if_absent=only_if_absent)

    def sink(self, name: Name, location: str) -> Sink:
        """Write a file piece by piece."""
        return FileSink(self.drafts, self.publish, self._errors, name, location)

    def copy(self, source: Name, target: Name) -> None:
        """Copy a file; the target is replaced at once."""
        held = self._open_to_keep(source)
        try:
            with (
                self._errors.writing(target),
                contextlib.closing(self.drafts.new(target[-1])) as draft,
            ):
                descriptor = draft.create()
                try:
                    copy_all(held, descriptor, os.fstat(held).st_size)
                    draft.finish(descriptor)
                finally:
                    os.close(descriptor)
                self.publish(draft, target)
        finally:
            os.close(held)

    def remove(self, name: Name) -> None:
        """Remove a file."""
        try:
            folder = self._open_folder(name[:-1])
            try:
                require_file(os.stat(name[-1], dir_fd=folder, follow_symlinks=False))
                os.unlink(name[-1], dir_fd=folder)
            finally:
                os.close(folder)
        except OSError as exc:
            raise self._errors.translated(exc, "deleting", name) from exc
        if self._prune and len(name) > 1:
            self._remove_empty(name[:-1])

    def sync(self, names: Iterable[Name]) -> None:
        """Bring files, and the folders on the way to them, to the disk; absent ones are fine."""
        folders: dict[Name, None] = {}
        for name in names:
            try:
                descriptor, _ = self._open_file(name)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as exc:
                error = self._errors.translated(exc, "syncing", name)
                if not isinstance(error, KeyNotFoundError):
                    raise error from exc
            else:
                folders.update((name[:depth], None) for depth in range(len(name) - 1, -1, -1))
        for name in sorted(folders, key=len, reverse=True):
            self._sync_folder(name)
        if folders:
            with self._errors.writing(()):
                sync_folder(str(Path(self.root).parent))

    def publish(self, draft: Draft, name: Name, *, only_if_absent: bool = False) -> bool:
        """Give a finished draft its name, and make the folders that it needs."""
        for _ in range(_ATTEMPTS):
            try:
                folder = self._open_folder(name[:-1], _LIST if self._fsync else _SEARCH)
            except FileNotFoundError:
                # What was just made may be removed again, emptied by a delete: once more, then.
                with contextlib.suppress(FileNotFoundError):
                    self._make_folders(name[:-1])
                continue
            try:
                won = move(draft, folder, name[-1], only_if_absent=only_if_absent)
                if won and self._fsync:
                    sync_open_folder(folder)
            except FileNotFoundError:
                if draft.gone():
                    break
            else:
                return won
            finally:
                os.close(folder)
        raise LostDraftError(
            f"writing {self.path(name)} failed: its temporary file {draft.name}, or its folder, was "
            "removed by somebody else meanwhile. Try again",
            location=self._label(name),
        )

    def _make_folders(self, folders: Name) -> None:
        make_folders(self.root, fsync=self._fsync)
        outer = os.open(self.root, _LIST & ~os.O_NOFOLLOW)
        try:
            for name in folders:
                try:
                    os.mkdir(name, dir_fd=outer)
                except FileExistsError:
                    pass
                else:
                    if self._fsync:
                        sync_open_folder(outer)
                inner = os.open(name, _LIST, dir_fd=outer)
                os.close(outer)
                outer = inner
        finally:
            os.close(outer)

    def _remove_empty(self, folders: Name) -> None:
        for depth in range(len(folders), 0, -1):
            # The object is gone; a folder that is in use, or that may not be removed, just stays.
            try:
                outer = self._open_folder(folders[: depth - 1])
            except OSError:
                return
            try:
                os.rmdir(folders[depth - 1], dir_fd=outer)
            except OSError:
                return
            finally:
                os.close(outer)

    def _sync_folder(self, folder: Name) -> None:
        try:
            descriptor = self._open_folder(folder, _LIST)
            try:
                sync_open_folder(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:  # its files were deleted meanwhile, and it with them
            return
        except OSError as exc:
            raise self._errors.translated(exc, "syncing", (*folder, "*")) from exc

    # --- the way to a file -----------------------------------------------------------------------

    def _open_folder(self, folders: Name, flags: int = _SEARCH) -> int:
        """Open a folder; no folder below the root may be a symbolic link, the root itself may."""
        if not folders:
            return os.open(self.root, flags & ~os.O_NOFOLLOW)
        if len(folders) > 4 and len(os.fsencode(self.path(folders))) + 256 > _MAX_PATH:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        last = len(folders) - 1
        outer = os.open(f"{self.root}/{folders[0]}", flags if last == 0 else _SEARCH)
        for depth in range(1, len(folders)):
            try:
                inner = os.open(folders[depth], flags if depth == last else _SEARCH, dir_fd=outer)
            finally:
                os.close(outer)
            outer = inner
        return outer

    def _open_file(self, name: Name) -> tuple[int, os.stat_result]:
        folder = self._open_folder(name[:-1])
        try:
            descriptor = os.open(name[-1], _READ, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            found = os.fstat(descriptor)
            require_file(found)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor, found

    def _open_to_keep(self, name: Name) -> int:
        try:
            return self._open_file(name)[0]
        except OSError as exc:
            raise self._errors.translated(exc, "opening", name) from exc

    def _stat(self, name: Name) -> os.stat_result:
        folder = self._open_folder(name[:-1])
        try:
            found = os.stat(name[-1], dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)
        require_file(found)
        return found


def _is_file(leaf: str, folder: int) -> bool:
    try:
        require_file(os.stat(leaf, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False
    except OSError as exc:
        if exc.errno == errno.ENAMETOOLONG:
            return False
        raise
    return True


def _below(root: str, folder: str) -> Name:
    """The name of a folder in a root, whatever links lead to either; () if it is not inside."""
    for top, path in ((root, folder), (os.path.realpath(root), os.path.realpath(folder))):
        if path.startswith(top + "/"):
            return tuple(path[len(top) + 1 :].split("/"))
    return ()


def _absolute(path: object, what: str) -> str:
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    try:
        usable = isinstance(text, str) and text != "" and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        usable = False
    if not usable or not isinstance(text, str):
        raise ConfigError(f"{what} must be the path of a folder, not {path!r}")
    return os.path.abspath(text)  # noqa: PTH100 - resolve() would follow links
