"""The folder that is read: paths that stay in it, and nothing that is written to."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from blobstore.errors import DecodeError, InvalidInputError
from blobstore.importing.report import Skipped, Unreadable


class SourceFolder:
    """A folder of another program.

    Parameters
    ----------
    path : path

    Raises
    ------
    InvalidInputError
        There is no such folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.root = Path(path).resolve(strict=True)
        except OSError as exc:
            raise InvalidInputError(f"there is nothing to import at {os.fspath(path)!r}") from exc
        if not self.root.is_dir():
            raise InvalidInputError(f"{os.fspath(path)!r} is no folder: give the folder it is in")

    def place(self, path: Path) -> str:
        """A path below the folder, for reports."""
        return path.relative_to(self.root).as_posix()

    def file(self, path: Path) -> Path:
        """The regular file that `path`, which is below the folder, leads to.

        Raises
        ------
        DecodeError
            It is missing, leads out of the folder, or is no file.
        """
        try:
            real = path.resolve(strict=True)
            mode = real.stat().st_mode
        except (OSError, RuntimeError, ValueError) as exc:  # a loop of links; a NUL in the name
            raise DecodeError(f"the file {path.name!r} is not there: {exc}") from exc
        if not real.is_relative_to(self.root):
            raise DecodeError(f"it leads out of the folder, to {str(real)!r}")
        if not stat.S_ISREG(mode):
            raise DecodeError("it is no regular file")
        return real

    def named(self, text: str) -> Path:
        """The file that an index names.

        An absolute path is taken for the place where the folder was when the index was written: what
        matters is how it ends, below this folder.

        Raises
        ------
        DecodeError
            The path leads out of the folder, or there is no such file in it.
        """
        pure = PureWindowsPath(text) if "\\" in text else PurePosixPath(text)
        if "://" in text:
            raise DecodeError(f"it is not in the folder, but at {text!r}")
        if ".." in pure.parts or not pure.name or "\0" in text:
            raise DecodeError(f"the index names {text!r}, which leads out of the folder")
        if pure.is_absolute() and pure.is_relative_to(self.root):
            return self.file(Path(pure))
        parts = [part for part in pure.parts if part != pure.anchor]
        for start in range(len(parts)):
            candidate = self.root.joinpath(*parts[start:])
            if candidate.is_symlink() or candidate.exists():
                return self.file(candidate)
        if pure.is_absolute():
            raise DecodeError(f"the index names {text!r}, which is not in the folder")
        raise DecodeError(f"the file {text!r} is not there")

    def walk(self) -> Iterator[Path | Unreadable]:
        """Every file below the folder in order, and what stands in the way."""
        failed: list[Unreadable] = []

        def note(exc: OSError) -> None:
            failed.append(Unreadable(self.place(Path(exc.filename)), f"it cannot be listed: {exc}"))

        for folder, folders, files in os.walk(self.root, onerror=note):
            folders.sort()
            for name in sorted([*folders, *files]):
                path = Path(folder, name)
                if name not in folders:
                    yield path
                elif path.is_symlink():
                    why = "it is a link to a folder, which is not followed: import that folder"
                    yield Unreadable(self.place(path), why)
        yield from failed

    def leftovers(self, used: Collection[Path], *indexes: str) -> Iterator[Skipped]:
        """Files that no entry of an index names."""
        own = {index + suffix for index in indexes for suffix in ("", "-wal", "-shm", "-journal")}
        for path in self.walk():
            if isinstance(path, Path) and path not in used:
                place = self.place(path)
                if place not in own:
                    yield Skipped(place, "no entry of the index names it")
