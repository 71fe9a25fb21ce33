"""Bytes and text: stored as they are, behind a stream codec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from blobstore.errors import DecodeError
from blobstore.handlers.options import refuse_options
from blobstore.handlers.stream import StreamPart, open_stream, read_stream
from blobstore.protocols import Handler, Plan, StoredPart, WriteOptions
from blobstore.streams import Hasher


def digest_bytes(hasher: Hasher, content: bytes | bytearray | memoryview) -> None:
    """Feed raw bytes as content: the same for bytes, bytearrays and files."""
    hasher.update(b"blobstore:bytes:1\0")
    hasher.update(content)


class BytesHandler(Handler):
    """`bytes`.

    Examples
    --------
    >>> BytesHandler().plan(b"abc", WriteOptions()).data_type
    'bytes'
    """

    name = "bytes"
    type_names = ("builtins.bytes",)
    _type: type = bytes

    def can_handle(self, obj: Any) -> bool:
        """Exactly this type, no subclass."""
        return type(obj) is self._type

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """One part: the bytes."""
        part = StreamPart(
            BytesHandler.name,
            "data",
            (obj,),
            options,
            extension=".bin",
            digest=lambda hasher: digest_bytes(hasher, obj),
        )
        return Plan(type(obj).__name__, {"nbytes": len(obj)}, (part,))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Give the bytes."""
        refuse_options(self, options)
        return read_stream(parts["data"])

    def open(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any]) -> BinaryIO:
        """Open the content, decompressed."""
        return open_stream(parts["data"])


class BytearrayHandler(BytesHandler):
    """`bytearray`, in the same format as `bytes`, so that equal content shares one blob."""

    name = "bytearray"
    type_names = ("builtins.bytearray",)
    _type = bytearray

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Give a bytearray."""
        return bytearray(super().read(parts, info, **options))


class StrHandler(Handler):
    """`str` as UTF-8; lone surrogates are kept (the "surrogatepass" form)."""

    name = "str"
    type_names = ("builtins.str",)

    def can_handle(self, obj: Any) -> bool:
        """Exactly this type."""
        return type(obj) is str

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """One part: the text in UTF-8."""
        encoded = obj.encode("utf-8", "surrogatepass")

        def digest(hasher: Hasher) -> None:
            hasher.update(b"blobstore:str:1\0")
            hasher.update(encoded)

        part = StreamPart(self.name, "data", (encoded,), options, extension=".txt", digest=digest)
        return Plan("str", {"length": len(obj)}, (part,))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> str:
        """Give the text."""
        refuse_options(self, options)
        try:
            return read_stream(parts["data"]).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as exc:
            raise DecodeError(f"the stored text is not UTF-8: {exc}") from exc

    def open(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any]) -> BinaryIO:
        """Open the text as UTF-8 bytes, decompressed."""
        return open_stream(parts["data"])
