"""Text and bytes: files that hold just what was stored."""

from __future__ import annotations

from typing import Any, ClassVar

from blobstore.errors import UnsupportedTypeError
from blobstore.files.options import reading, refuse_options
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import Sink, Source


class TextFormat(FileFormat):
    """`str` as UTF-8, without any change of line ends."""

    name = "text"
    extensions = (".txt", ".html", ".htm", ".md", ".rst", ".log", ".xml", ".svg", ".sql", ".py")
    priority = 50
    type_names: ClassVar[tuple[str, ...]] = ("builtins.str",)

    def can_handle(self, obj: Any) -> bool:
        """Text of any kind."""
        return type(obj) is str

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the text."""
        try:
            sink.write(obj.encode("utf-8"))
        except UnicodeEncodeError as exc:
            raise UnsupportedTypeError(
                f"{context.key!r}: a text with a lone surrogate at position {exc.start} is no text "
                "file: decode file names with errors='replace'"
            ) from exc

    def read(self, source: Source, context: FileContext, **options: Any) -> str:
        """Read the text; `encoding` for files of other tools."""
        refuse_options(context, options, "encoding")
        with reading(context, UnicodeDecodeError, LookupError):
            return source.read().decode(options.get("encoding", "utf-8"))


class BytesFormat(FileFormat):
    """`bytes`, as they are."""

    name = "bytes"
    extensions = (".bin", ".dat", ".raw", ".gz", ".zst", ".lz4", ".xz", ".zip", ".tar", ".pdf")
    priority = 50
    type_names: ClassVar[tuple[str, ...]] = ("builtins.bytes",)

    def can_handle(self, obj: Any) -> bool:
        """Bytes of any kind; a bytearray is left to pickle, or it would come back as bytes."""
        return type(obj) is bytes

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the bytes."""
        sink.write(obj)

    def read(self, source: Source, context: FileContext, **options: Any) -> bytes:
        """Read the bytes."""
        refuse_options(context, options)
        return source.read()
