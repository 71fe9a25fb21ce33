"""DataHandler: the small way to add a type, by the paths of files."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from blobstore.errors import ConfigError

_METHODS = ("can_handle_extension", "can_handle_data", "read_from_file", "write_to_file")

_MAX_EXTENSION = 100
"""Bytes: a name that ends in it has to fit into a folder."""


class DataHandler(ABC):
    """Reads and writes files of some extensions, given their paths. Subclass it, and register it.

    `AutoStore` and `BlobStore` both take it, as an instance or (`BlobStore`) as a class that needs
    no arguments. A class that has these methods without being a subclass is taken as well. One
    instance serves all threads of a store.

    Attributes
    ----------
    name : str, optional
        What a `BlobStore` calls it in its index, where it is written in lower case. By default the
        name of the class: then whoever renames the class keeps the old name here.
    runs_code : bool, optional
        Whether reading a file may run code that the file names (a pickle in it, say). A `BlobStore`
        signs what such a class writes, and lets it read what the reader signed or trusts. True
        unless the class says False: then it reads the files of anybody.

    Examples
    --------
    >>> class UpperHandler(DataHandler):
    ...     extensions = [".upper"]
    ...     priority = 15
    ...     def can_handle_extension(self, extension): return extension == ".upper"
    ...     def can_handle_data(self, data): return isinstance(data, str) and data.isupper()
    ...     def read_from_file(self, file_path, file_extension): return file_path.read_text()
    ...     def write_to_file(self, data, file_path, file_extension): file_path.write_text(data)
    >>> import tempfile
    >>> from blobstore import AutoStore, BlobStore
    >>> with AutoStore(tempfile.mkdtemp()) as store:
    ...     store.register_handler(UpperHandler())
    ...     store["shout"] = "HELLO"
    ...     list(store.list_files()), store["shout"]
    (['shout.upper'], 'HELLO')
    >>> with BlobStore(tempfile.mkdtemp(), handlers=[UpperHandler]) as store:
    ...     store["shout"] = "HELLO"
    ...     store.entry("shout").handler, store["shout"]
    ('upperhandler', 'HELLO')
    """

    @abstractmethod
    def can_handle_extension(self, extension: str) -> bool:
        """Whether it reads files of this extension (with its dot)."""

    @abstractmethod
    def can_handle_data(self, data: Any) -> bool:
        """Whether it writes this object; asked about objects of any type."""

    @abstractmethod
    def read_from_file(self, file_path: Path, file_extension: str) -> Any:
        """Read a file, wholly: it may be gone afterwards."""

    @abstractmethod
    def write_to_file(self, data: Any, file_path: Path, file_extension: str) -> None:
        """Make a file, which is put into place afterwards."""

    @property
    @abstractmethod
    def extensions(self) -> Any:
        """The extensions, with their dots; the first is the usual one."""

    @property
    @abstractmethod
    def priority(self) -> int:
        """Handlers of a higher one are asked first."""

    @classmethod
    def __subclasshook__(cls, other: type) -> Any:
        if cls is not DataHandler:
            return NotImplemented
        has_all = all(callable(getattr(other, name, None)) for name in _METHODS)
        return True if has_all else NotImplemented


def extensions_of(handler: DataHandler) -> tuple[str, ...]:
    """Its extensions, in lower case.

    Raises
    ------
    ConfigError
        There are none, or one cannot be the end of a file's name.

    Examples
    --------
    >>> is_extension(".tar.gz"), is_extension("gz"), is_extension("./../gz")
    (True, False, False)
    """
    given: Any = handler.extensions
    try:
        found = tuple(str(extension).lower() for extension in given)
    except TypeError:
        found = ()
    if not found or not all(map(is_extension, found)):
        raise ConfigError(
            f"{type(handler).__name__}.extensions must be a list like ['.log'], not {given!r}"
        )
    return found


def priority_of(handler: DataHandler) -> int:
    """Its priority.

    Raises
    ------
    ConfigError
        It is no whole number.
    """
    given: Any = handler.priority
    try:
        return operator.index(given)
    except TypeError as exc:
        raise ConfigError(
            f"{type(handler).__name__}.priority must be a whole number, not {given!r}"
        ) from exc


def is_extension(text: object) -> bool:
    """Whether a file's name may end in it: a dot, and something that leads nowhere else."""
    return (
        isinstance(text, str)
        and text.startswith(".")
        and bool(text.strip("."))
        and text.isprintable()
        and not {"/", "\\", ":"} & set(text)
        and len(text.encode(errors="replace")) <= _MAX_EXTENSION
    )
