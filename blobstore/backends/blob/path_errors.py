"""Why the operating system refused a path, in our words."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from blobstore.errors import (
    BlobStoreError,
    ConfigError,
    IncompatibleStoreError,
    InvalidKeyError,
    KeyNotFoundError,
    LostDraftError,
    from_os_error,
)

Name = tuple[str, ...]

_MISSING = {errno.ENOENT, errno.ENXIO, errno.ENAMETOOLONG}


class PathErrors:
    """Translates errors of files below a root.

    Parameters
    ----------
    root, drafts : str
        The folders of the objects and of the temporary files.
    label : callable
        Turns a name into the location that errors carry.
    """

    def __init__(self, root: str, drafts: str, label: Callable[[Name], str]) -> None:
        self._root = root
        self._drafts = drafts
        self._label = label

    def writing(self, name: Name) -> _Translation:
        """Translate what the operating system says to a write in this block."""
        return _Translation(self, name)

    def translated(
        self, exc: OSError, what: str, name: Name, *, writing: bool = False
    ) -> BlobStoreError:
        """Say in our words why the operating system refused."""
        path, location = self._path(name), self._label(name) if name else None
        if exc.errno == errno.ENOTDIR:
            return self._no_folder(exc, what, name, writing=writing)
        if exc.errno == errno.ELOOP:
            return _link_error(path, location)
        if exc.errno in _MISSING and not writing:
            return KeyNotFoundError(
                f"there is no object {location!r} in {self._root}", location=location
            )
        if exc.errno == errno.ENOENT:
            return LostDraftError(
                f"the temporary file for {path} was removed while it was written, by gc or by hand: "
                "try again",
                location=location,
            )
        if exc.errno == errno.ENAMETOOLONG:
            return InvalidKeyError(
                f"the key {path[len(self._root) + 1 :][:60]!r}... is too long for this file system: "
                "shorten it, each part to 255 bytes at most",
                location=location,
            )
        if exc.errno == errno.EISDIR:
            return InvalidKeyError(
                f"{path} is a folder, no object: choose another key", location=location
            )
        if exc.errno == errno.EXDEV:
            return ConfigError(
                f"{self._drafts} and {self._root} are on different file systems, between which "
                "nothing can be moved at once: choose another tmp_dir",
                location=location,
            )
        return from_os_error(exc, f"{what} {path}", location=location)

    def _path(self, name: Name) -> str:
        return "/".join((self._root, *name))

    def _no_folder(self, exc: OSError, what: str, name: Name, *, writing: bool) -> BlobStoreError:
        """Find out which folder on the way is none; also of an error that is past by now."""
        location = self._label(name) if name else None
        if os.path.lexists(self._root) and not Path(self._root).is_dir():
            return IncompatibleStoreError(
                f"{self._root} is a file, but a folder is needed to keep objects in: "
                "remove it, or choose another folder",
                location=location,
            )
        for depth in range(1, len(name)):
            path = self._path(name[:depth])
            if Path(path).is_symlink():
                return _link_error(path, location)
            if os.path.lexists(path) and not Path(path).is_dir():
                if not writing:
                    return KeyNotFoundError(
                        f"there is no object {location!r} in {self._root}", location=location
                    )
                return InvalidKeyError(
                    f"{path} is an object, so there can be none below it: choose another key",
                    location=location,
                )
        return from_os_error(exc, f"{what} {self._path(name)}", location=location)


class _Translation:
    """Translates what the operating system says to a write (a class: it is on the way of each)."""

    __slots__ = ("_errors", "_name")

    def __init__(self, errors: PathErrors, name: Name) -> None:
        self._errors = errors
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, tb: object) -> None:
        if isinstance(exc, OSError) and not isinstance(exc, BlobStoreError):
            raise self._errors.translated(exc, "writing", self._name, writing=True) from exc


def _link_error(path: str, location: str | None) -> InvalidKeyError:
    return InvalidKeyError(
        f"{path} is, or lies behind, a symbolic link, which could lead out of the store: "
        "put a file or a folder in its place",
        location=location,
    )
