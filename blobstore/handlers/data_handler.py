"""The adapter that makes a `DataHandler`, which knows the paths of files, one of our handlers.

The file is made in a folder of its own before anything is stored, so that what goes wrong in code
that is not ours goes wrong first. It is read as a private copy: code that opens its file for
writing, or leaves others beside it, must not touch the stored blob.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from blobstore.errors import (
    BlobStoreError,
    ConfigError,
    DecodeError,
    HandlerError,
    OutOfSpaceError,
    from_os_error,
)
from blobstore.handlers.file import FilePart
from blobstore.handlers.options import refuse_options
from blobstore.handlers.stream import StreamPart, open_stream
from blobstore.protocols import (
    DataHandler,
    Handler,
    Plan,
    PlannedPart,
    StoredPart,
    WriteOptions,
)
from blobstore.protocols.data_handler import extensions_of, is_extension, priority_of
from blobstore.streams import CHUNK, Hasher, copy_stream

_IN_LOCATION = re.compile(r"(\.[a-z0-9]{1,16}){1,3}")
"""Extensions that the name of a blob shows; others are known from the entry alone."""


class AdaptedHandler(Handler):
    """A `DataHandler` as a handler: one part, which is the file that it writes.

    Parameters
    ----------
    handler : DataHandler

    Raises
    ------
    ConfigError
        Its name, extensions or priority are none, or it does not read what it writes.
    """

    type_names = ("*",)

    def __init__(self, handler: DataHandler) -> None:
        self.handler = handler
        cls = type(handler)
        self._class = cls.__name__
        self._full_name = _full_name(cls)
        self.extension = extensions_of(handler)[0]
        # Of this handler, not of all that are adapted.
        self.name = _name_of(handler)  # type: ignore[misc]
        self.priority = priority_of(handler)  # type: ignore[misc]
        self.runs_code = bool(getattr(handler, "runs_code", True))  # type: ignore[misc]
        with self._calling("can_handle_extension", ConfigError, repr(self.extension)):
            taken = bool(handler.can_handle_extension(self.extension))
        if not taken:
            raise ConfigError(
                f"{self._class}.can_handle_extension refuses {self.extension!r}, which is the first "
                "of its extensions, and so what it would write"
            )

    def can_handle(self, obj: Any) -> bool:
        """Ask the handler.

        Raises
        ------
        HandlerError
            It fails, instead of saying no.
        """
        with self._calling("can_handle_data", HandlerError, f"an object of {type(obj)!r}"):
            return bool(self.handler.can_handle_data(obj))

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Let the handler make its file, to be stored as it is, behind a codec where that pays.

        Raises
        ------
        HandlerError
            It fails, or makes anything but that one file.
        UnsupportedTypeError
            It says so itself; the next handler is asked.
        """
        draft = _Folder(self._class)
        try:
            part = self._part(self._write(obj, draft.path), draft, options)
        except OSError as exc:
            draft.remove()
            raise from_os_error(exc, f"reading what {self._class} wrote") from exc
        except BaseException:
            draft.remove()
            raise
        info = {
            "extension": self.extension,
            "type": _full_name(type(obj)),
            "class": self._full_name,
        }
        return Plan("object", info, (part,))

    def _write(self, obj: Any, folder: Path) -> Path:
        path = folder / f"object{self.extension}"
        with self._calling("write_to_file", HandlerError, f"an object of {type(obj)!r}"):
            self.handler.write_to_file(obj, path, self.extension)
        self._check_made(path)
        return path

    def _check_made(self, path: Path) -> None:
        """Whatever else is there would be lost."""
        made = sorted(each.name for each in path.parent.iterdir())
        if made == [path.name] and path.is_file():
            return
        if not path.is_file():
            found = f"there is {', '.join(map(repr, made))}" if made else "there is nothing"
            raise HandlerError(
                f"{self._class}.write_to_file made no file at the path that it was given, "
                f"{path.name!r}: {found} in that folder"
            )
        made.remove(path.name)
        raise HandlerError(
            f"{self._class}.write_to_file left {', '.join(map(repr, made))} beside its file, which "
            "would be lost: write one file (a zip can hold others)"
        )

    def _part(self, path: Path, draft: _Folder, options: WriteOptions) -> PlannedPart:
        shown = self.extension if _IN_LOCATION.fullmatch(self.extension) else ".bin"
        tag = b"blobstore:datahandler:1\0" + self.extension.encode() + b"\0"
        if path.stat().st_size > CHUNK:
            return _DraftPart(
                draft,
                path,
                options,
                handler=self.name,
                extension=shown,
                tag=tag,
                executable=self.runs_code,
            )
        data = path.read_bytes()
        draft.remove()

        def digest(hasher: Hasher) -> None:
            hasher.update(tag)
            hasher.update(data)

        return StreamPart(
            self.name,
            "data",
            (data,),
            options,
            extension=shown,
            digest=digest,
            executable=self.runs_code,
        )

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Let the handler read a copy of its file, which is gone afterwards.

        Raises
        ------
        UntrustedTypeError
            It may run code, and the reader neither signed the entry nor trusts the class.
        DecodeError
            It fails, returns nothing, or does not read such files any more.
        """
        refuse_options(self, options)
        part = parts["data"]
        if self.runs_code:
            part.trust.require(self._full_name)
        extension = self._extension_of(info)
        folder = _Folder(self._class)
        try:
            path = folder.path / f"object{extension}"
            _spool(part, path)
            with self._calling("read_from_file", DecodeError, f"a {extension} file"):
                found = self.handler.read_from_file(path, extension)
        finally:
            folder.remove()
        stored_type = info.get("type")
        if found is None and stored_type != "builtins.NoneType":
            raise DecodeError(
                f"{self._class}.read_from_file returned None for a stored {stored_type}: does it "
                "lack a return?"
            )
        return found

    def open(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any]) -> BinaryIO:
        """Open the file as the handler wrote it; nothing of its code runs."""
        return open_stream(parts["data"])

    def _extension_of(self, info: Mapping[str, Any]) -> str:
        """What the entry says; it becomes part of a path."""
        extension = info.get("extension")
        if not isinstance(extension, str) or not is_extension(extension):
            raise DecodeError(
                f"it was stored by {self.name!r} with the extension {extension!r}, which is none"
            )
        with self._calling("can_handle_extension", DecodeError, repr(extension)):
            taken = bool(self.handler.can_handle_extension(extension))
        if not taken:
            raise DecodeError(
                f"it was stored as a {extension} file by {info.get('class')}, and "
                f"{self._full_name}, which has the name {self.name!r} here, does not read these"
            )
        return extension

    @contextlib.contextmanager
    def _calling(self, method: str, error: type[BlobStoreError], what: str) -> Iterator[None]:
        try:
            yield
        except (BlobStoreError, MemoryError):
            raise
        except Exception as exc:  # of code that is not ours: anything
            doing = f"{self._class}.{method} on {what}"
            if isinstance(exc, OSError):
                translated = from_os_error(exc, doing)
                if isinstance(translated, OutOfSpaceError):
                    raise translated from exc
            raise error(f"{doing} failed: {exc!r}") from exc


class _DraftPart(FilePart):
    """A file that is too large to be held in memory; gone when nobody plans with it any more."""

    def __init__(self, draft: _Folder, path: Path, options: WriteOptions, **named: Any) -> None:
        self._draft = draft
        super().__init__(path, options, **named)


class _Folder:
    """A temporary folder, removed when it is told to be, or when nobody has it any more.

    Raises
    ------
    StorageError
        It cannot be made.
    """

    def __init__(self, what: str) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix="blobstore-"))
        except OSError as exc:
            raise from_os_error(exc, f"making a temporary folder for {what}") from exc
        self.remove = weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has no business with it
        shutil.rmtree(folder, ignore_errors=True)


def _spool(part: StoredPart, path: Path) -> None:
    try:
        with open_stream(part) as stream, path.open("xb") as out:
            copy_stream(stream, out)
    except OSError as exc:
        raise from_os_error(exc, f"reading through the temporary file {path}") from exc


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _name_of(handler: DataHandler) -> str:
    given = getattr(handler, "name", None)
    if given is None:
        return type(handler).__name__.lower()
    if not isinstance(given, str) or not given.strip():
        raise ConfigError(f"{type(handler).__name__}.name must be a text, not {given!r}")
    return given.strip().lower()
