"""DataHandler: the older way to add a format, by paths; and the adapter that makes it one of ours."""

from __future__ import annotations

import contextlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blobstore.errors import ConfigError, UnsupportedTypeError
from blobstore.files.options import refuse_options
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import Sink, Source, copy_stream


class DataHandler(ABC):
    """Reads and writes files of some extensions, given their paths. Subclass it, and register it.

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
    >>> from blobstore.autostore import AutoStore
    >>> with AutoStore(tempfile.mkdtemp()) as store:
    ...     store.register_handler(UpperHandler())
    ...     store["shout"] = "HELLO"
    ...     list(store.list_files()), store["shout"]
    (['shout.upper'], 'HELLO')
    """

    @abstractmethod
    def can_handle_extension(self, extension: str) -> bool:
        """Whether it reads files of this extension (with its dot)."""

    @abstractmethod
    def can_handle_data(self, data: Any) -> bool:
        """Whether it writes this object where the key names no extension."""

    @abstractmethod
    def read_from_file(self, file_path: Path, file_extension: str) -> Any:
        """Read a file."""

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


class HandlerFormat(FileFormat):
    """A `DataHandler` as a format.

    Parameters
    ----------
    handler : DataHandler

    Raises
    ------
    ConfigError
        It names no extension.
    """

    first = 1000
    """Handlers of one's own are asked before the built-in ones; among them their priority counts."""

    def __init__(self, handler: DataHandler) -> None:
        given: Any = handler.extensions
        self.handler = handler
        self.name = type(handler).__name__
        self.extensions = tuple(str(extension).lower() for extension in given)
        self.priority = self.first + int(handler.priority)
        if not self.extensions or not all(e.startswith(".") and e[1:] for e in self.extensions):
            raise ConfigError(f"{self.name}.extensions must be a list like ['.log'], not {given!r}")

    def can_handle(self, obj: Any) -> bool:
        """Ask the handler."""
        return bool(self.handler.can_handle_data(obj))

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Let the handler make the file that the sink lends."""
        # Not the sink's own file: libraries look at the extension of what they write to.
        with _named(context) as path:
            self.handler.write_to_file(obj, path, context.extension)
            if not path.is_file():
                raise UnsupportedTypeError(
                    f"{self.name} wrote nothing to the path that it was given"
                )
            with path.open("rb") as file:
                copy_stream(file, sink)

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Let the handler read a file."""
        refuse_options(context, options)
        with source.path() as lent, _named(context) as path:
            path.symlink_to(lent.absolute())
            return self.handler.read_from_file(path, context.extension)


@contextlib.contextmanager
def _named(context: FileContext) -> Iterator[Path]:
    """A path in a folder of its own, with the name and extension that the key has."""
    with tempfile.TemporaryDirectory(prefix="blobstore-") as folder:
        name = context.key.rpartition("/")[2]
        yield Path(folder) / (name if len(name.encode()) < 200 else "file" + context.extension)
