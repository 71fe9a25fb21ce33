"""How much memory an Arrow file takes when it is read, found before it is.

Each compressed buffer begins with the size that it has without compression, for which Arrow makes
room. The buffers are told of in flatbuffers, which are read here as far as that needs. Formats:
https://arrow.apache.org/docs/format/Columnar.html (`File.fbs`, `Message.fbs`) and
https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from blobstore.errors import DecodeError
from blobstore.limits import UNLIMITED, bomb

_MAGIC = b"ARROW1"
_TAIL = struct.Struct("<i6s")
_BLOCK = struct.Struct("<qi4xq")
_BUFFER = struct.Struct("<qq")
_CONTINUES = b"\xff\xff\xff\xff"
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_OLDER_FORMAT = 3  # MetadataVersion.V4, which told of compression among other metadata
_AS_IT_IS = -1  # in place of the size: the buffer is not compressed


def check_growth(file: BinaryIO, limit: int) -> None:
    """Refuse an Arrow file that takes more memory than it may.

    Parameters
    ----------
    file : file
        Seekable.
    limit : int
        Bytes; from `blobstore.limits.UNLIMITED` on, nothing is checked.

    Raises
    ------
    DecodeError
        It takes more, or it is no whole Arrow file.

    Examples
    --------
    >>> import io, pyarrow as pa
    >>> table, file = pa.table({"x": [0] * 1_000_000}), io.BytesIO()
    >>> options = pa.ipc.IpcWriteOptions(compression="zstd")
    >>> with pa.ipc.new_file(file, table.schema, options=options) as writer:
    ...     writer.write_table(table)
    >>> len(file.getvalue()) < 10_000
    True
    >>> check_growth(file, 8_000_000)
    >>> check_growth(file, 7_000_000)
    Traceback (most recent call last):
    ...
    blobstore.errors.DecodeError: a table grows to more than 7000000 bytes when it is decompressed, as an attack on memory would. If it is what you expect, open the store with a larger max_decompressed_bytes
    """
    if limit >= UNLIMITED:
        return
    total = 0
    try:
        for offset, length in _blocks(file):
            total += _message_size(file, offset, length)
            if total > limit:
                raise bomb("a table", limit)
    except (struct.error, IndexError, OverflowError, ValueError) as exc:
        raise DecodeError(f"the parts of an Arrow file cannot be found: {exc!r}") from exc


def _blocks(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Where the messages of batches and dictionaries are, and how long they are."""
    end = file.seek(0, 2)
    size, magic = _TAIL.unpack(_read(file, end - _TAIL.size, _TAIL.size))
    if magic != _MAGIC:
        raise ValueError("no magic bytes at the end")
    footer = _Table.root(_read(file, end - _TAIL.size - size, size))
    seen = 0
    for field in (2, 3):
        for offset, length, _ in footer.structs(field, _BLOCK):
            seen += length
            if seen > end:
                raise ValueError("messages that lie in one place")
            yield offset, length


def _message_size(file: BinaryIO, offset: int, length: int) -> int:
    """How much memory a message takes: what its buffers do, or its body, of which they are parts."""
    data = _read(file, offset, length)
    message = _Table.root(data[8:] if data.startswith(_CONTINUES) else data[4:])
    kind = message.number(1, "<B")
    batch = message.table(2)
    if batch is not None and kind == _DICTIONARY_BATCH:
        batch = batch.table(1)
    if batch is None or kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        raise ValueError(f"a message of kind {kind} in the place of a batch")
    older = message.number(0, "<h") <= _OLDER_FORMAT and message.table(4) is not None
    compressed = older or batch.table(3) is not None
    sizes = _buffer_sizes(file, batch, offset + length, compressed=compressed)
    return max(message.number(3, "<q"), sum(sizes))


def _buffer_sizes(file: BinaryIO, batch: _Table, body: int, *, compressed: bool) -> Iterator[int]:
    """How large each buffer of a batch is in memory."""
    for start, stored in batch.structs(2, _BUFFER):
        if not compressed or stored == 0:
            yield max(0, stored)
            continue
        (size,) = struct.unpack("<q", _read(file, body + start, 8))
        yield stored if size == _AS_IT_IS else max(size, 0)


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    if offset < 0 or size < 0:
        raise ValueError("a negative offset or size")
    file.seek(offset)
    return bytes(file.read(size))


class _Table:
    """A table of a flatbuffer: fields by number, each with an offset in the table's vtable."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position
        (back,) = struct.unpack_from("<i", data, position)
        self._vtable = position - back
        if position < 0 or self._vtable < 0:
            raise ValueError("a table before the start of its buffer")
        (self._vtable_size,) = struct.unpack_from("<H", data, self._vtable)

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, struct.unpack_from("<I", data)[0])

    def _field(self, number: int) -> int | None:
        """Where a field is; None if it has its default."""
        entry = 4 + 2 * number
        if entry + 2 > self._vtable_size:
            return None
        (offset,) = struct.unpack_from("<H", self._data, self._vtable + entry)
        return self._position + offset if offset else None

    def _target(self, number: int) -> int | None:
        """Where that is to which a field refers."""
        field = self._field(number)
        return None if field is None else field + struct.unpack_from("<I", self._data, field)[0]

    def number(self, number: int, form: str) -> int:
        """A field with a number; the default of all that are used here is 0."""
        field = self._field(number)
        return 0 if field is None else int(struct.unpack_from(form, self._data, field)[0])

    def table(self, number: int) -> _Table | None:
        """A field with a table."""
        target = self._target(number)
        return None if target is None else _Table(self._data, target)

    def structs(self, number: int, form: struct.Struct) -> Iterator[tuple[int, ...]]:
        """A field with a vector of structs."""
        target = self._target(number)
        if target is None:
            return
        (count,) = struct.unpack_from("<I", self._data, target)
        for place in range(count):
            yield form.unpack_from(self._data, target + 4 + place * form.size)
