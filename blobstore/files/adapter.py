"""The adapter that makes a `DataHandler` one of our formats."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blobstore.errors import UnsupportedTypeError
from blobstore.files.options import refuse_options
from blobstore.protocols.data_handler import DataHandler, extensions_of, priority_of
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import Sink, Source, copy_stream


class HandlerFormat(FileFormat):
    """A `DataHandler` as a format.

    Parameters
    ----------
    handler : DataHandler

    Raises
    ------
    ConfigError
        It names no extension, or no priority.
    """

    first = 1000
    """Handlers of one's own are asked before the built-in ones; among them their priority counts."""

    def __init__(self, handler: DataHandler) -> None:
        self.handler = handler
        self.name = type(handler).__name__
        self.extensions = extensions_of(handler)
        self.priority = self.first + priority_of(handler)

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
        with _named(context) as path:
            # A copy: code that opens its file for writing must not change what is stored.
            with source.open() as file, path.open("xb") as out:
                copy_stream(file, out)
            return self.handler.read_from_file(path, context.extension)


@contextlib.contextmanager
def _named(context: FileContext) -> Iterator[Path]:
    """A path in a folder of its own, with the name and extension that the key has."""
    with tempfile.TemporaryDirectory(prefix="blobstore-") as folder:
        name = context.key.rpartition("/")[2]
        yield Path(folder) / (name if len(name.encode()) < 200 else "file" + context.extension)
