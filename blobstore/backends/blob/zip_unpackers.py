"""The compressions of the zip format, one interface for all, unpacking no more than is asked for."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import Any

from blobstore.backends.blob.zip_fields import BZIP2, DEFLATED, LZMA
from blobstore.errors import NotSupportedError

RAW_DEFLATE = -15
"""What `zlib` calls the format without its own header and checksum."""


class Unpacker(ABC):
    """Unpacks one member from its start."""

    @property
    @abstractmethod
    def hungry(self) -> bool:
        """Whether more packed bytes are of use."""

    @abstractmethod
    def unpack(self, data: bytes, limit: int) -> bytes:
        """Take packed bytes, or none, and give up to `limit` others; see `unpacking_errors`."""


class _Inflater(Unpacker):
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(RAW_DEFLATE)

    @property
    def hungry(self) -> bool:
        return not self._inner.unconsumed_tail

    def unpack(self, data: bytes, limit: int) -> bytes:
        if self._inner.eof:
            raise EOFError("the packed bytes end too early")
        return self._inner.decompress(self._inner.unconsumed_tail + data, limit)


class _Standard(Unpacker):
    """Around a decompressor as `bz2` and `lzma` have them."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property
    def hungry(self) -> bool:
        hungry: bool = self._inner.needs_input
        return hungry

    def unpack(self, data: bytes, limit: int) -> bytes:
        unpacked: bytes = self._inner.decompress(data, limit)
        return unpacked


class _ZipLzma(Unpacker):
    """LZMA, which begins with its parameters in a zip file."""

    _HEAD = 9

    def __init__(self) -> None:
        self._head = b""
        self._inner: _Standard | None = None

    @property
    def hungry(self) -> bool:
        return self._inner is None or self._inner.hungry

    def unpack(self, data: bytes, limit: int) -> bytes:
        if self._inner is None:
            self._head += data
            if len(self._head) < self._HEAD:
                return b""
            self._inner = _Standard(_lzma_decompressor(self._head))
            data = self._head[self._HEAD :]
        return self._inner.unpack(data, limit)


def _lzma_decompressor(head: bytes) -> Any:
    import lzma

    if head[2:4] != b"\5\0":
        raise EOFError("no parameters of LZMA")
    code = head[4]
    filter_ = {
        "id": lzma.FILTER_LZMA1,
        "lc": code % 9,
        "lp": code // 9 % 5,
        "pb": code // 45,
        "dict_size": int.from_bytes(head[5:9], "little"),
    }
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[filter_])


def unpacking_errors() -> tuple[type[Exception], ...]:
    """What an unpacker raises if it was given something else than packed bytes."""
    errors: tuple[type[Exception], ...] = (zlib.error, OSError, EOFError, ValueError)
    try:
        import lzma
    except ImportError:
        return errors
    return (*errors, lzma.LZMAError)


def unpacker(method: int, key: str) -> Unpacker:
    """Start to unpack a member.

    Raises
    ------
    NotSupportedError
        It is compressed in a way that nobody here knows.
    """
    if method == DEFLATED:
        return _Inflater()
    try:
        if method == BZIP2:
            import bz2

            return _Standard(bz2.BZ2Decompressor())
        if method == LZMA:
            import lzma  # noqa: F401 - some Pythons are built without it

            return _ZipLzma()
    except ImportError as exc:
        raise NotSupportedError(
            f"{key!r} is compressed in a way that this Python was built without: {exc.name}",
            location=key,
        ) from exc
    raise NotSupportedError(
        f"{key!r} is compressed by method {method} of the zip format, which ZipStore does not "
        "know: extract it by another program",
        location=key,
    )
