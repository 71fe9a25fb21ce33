"""A store that keeps objects as base64, where only text can be kept."""

from __future__ import annotations

import binascii
import io
from typing import BinaryIO, ClassVar

from blobstore.errors import IntegrityError
from blobstore.protocols import ObjectStore
from blobstore.streams import Buffer
from blobstore.wrappers.blocks import PagedReader, read_exactly
from blobstore.wrappers.stream import Encoder, StreamTransformer, StreamTransformingStore

_PAGE = 3 << 14
"""Bytes that are turned back at a time; a multiple of 3, which become 4."""


class Base64Transformer(StreamTransformer):
    """Turns bytes into base64 (RFC 4648, section 4): one line, padded, without white space."""

    ranges: ClassVar[bool] = True

    def encoder(self, key: str) -> Encoder:
        """Start an object."""
        return _Base64Encoder()

    def reader(self, raw: BinaryIO, key: str) -> BinaryIO:
        """Read an object; a position is reached, and the size known, by arithmetic."""
        stored = raw.seek(0, io.SEEK_END)
        raw.seek(max(0, stored - 4))
        end = raw.read(4)
        padding = len(end) - len(end.rstrip(b"="))
        if stored % 4:
            raise _damaged(key, f"{stored} characters are no multiple of 4")
        if padding > 2:
            raise _damaged(key, "it ends in nothing but padding")
        return io.BufferedReader(_Base64Reader(raw, stored // 4 * 3 - padding, key))


class _Base64Encoder:
    """Holds back what is no multiple of three."""

    def __init__(self) -> None:
        self._pending = b""

    def update(self, data: Buffer, /) -> bytes:
        view = memoryview(data)
        if len(self._pending) + len(view) < 3:
            self._pending += bytes(view)
            return b""
        missing = -len(self._pending) % 3
        head = self._pending + bytes(view[:missing])
        whole = len(view) - (len(view) - missing) % 3
        self._pending = bytes(view[whole:])
        return _encoded(head) + _encoded(view[missing:whole])

    def finish(self) -> bytes:
        return _encoded(self._pending)


class _Base64Reader(PagedReader):
    """Turns pages back that begin at a multiple of four."""

    def __init__(self, raw: BinaryIO, size: int, key: str) -> None:
        super().__init__(raw, size, _PAGE)
        self._key = key

    def load(self, number: int) -> bytes:
        self._raw.seek(number * (_PAGE // 3 * 4))
        stored = read_exactly(self._raw, _PAGE // 3 * 4)
        wanted = min(_PAGE, self._size - number * _PAGE)
        try:
            data = binascii.a2b_base64(stored, strict_mode=True)
        except binascii.Error as exc:
            raise _damaged(self._key, str(exc)) from exc
        # The library takes padding inside, and bits behind the end that are not zero.
        if len(data) != wanted or _encoded(data[wanted // 3 * 3 :]) != stored[wanted // 3 * 4 :]:
            raise _damaged(self._key, "it is not padded as base64 is")
        return data


def _damaged(key: str, reason: str) -> IntegrityError:
    return IntegrityError(
        f"the object {key!r} is no base64: {reason}. It was cut off or altered, or not written "
        "through a Base64Store",
        location=key,
    )


def _encoded(data: Buffer) -> bytes:
    return binascii.b2a_base64(data, newline=False)


class Base64Store(StreamTransformingStore):
    r"""Keeps objects as base64 in ASCII, a third larger than they are.

    Ranges, sizes and streams are those of the object: no more is read than they need.

    Parameters
    ----------
    store : ObjectStore
        Keeps bytes; taken over: it is closed with this one.

    Raises
    ------
    ConfigError
        The store keeps other values than bytes.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = Base64Store(DictStore())
    >>> store.put("key", b"\xff\xfe")
    >>> store.store.get("key"), store.get("key")
    (b'//4=', b'\xff\xfe')
    """

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store, Base64Transformer())
