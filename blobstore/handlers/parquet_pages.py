"""The pages of a Parquet column, by their headers alone: how large each is once decompressed.

The footer of a file also says how large its columns are, but nothing holds it to that: readers make
room for what the header of each page asks for. So whoever wants to know beforehand reads the
headers, as here. Format: `parquet.thrift` of https://github.com/apache/parquet-format, in Thrift's
compact protocol (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from blobstore.errors import DecodeError

DATA, DICTIONARY, DATA_V2 = 0, 2, 3
"""Kinds of pages that hold values."""

_BODY_OF = {DATA: 5, DICTIONARY: 7, DATA_V2: 8}
"""Field of a header that describes a page of the kind."""
_ENCODING_FIELD = {DATA: 2, DICTIONARY: 2, DATA_V2: 4}

_WINDOW = 1 << 12
_MAX_HEADER = 16 << 20  # Arrow's own limit
_PADDING = 100  # of columns by old writers (PARQUET-816), which Arrow still looks into
_STOP, _TRUE, _FALSE, _I8, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(
    13
)
_DEEPEST = 32
_MOST_VALUES = 10_000  # in a header, at any depth; writers have a few dozen
_MOST_TEXTS = 1 << 17
_LENGTH = struct.Struct("<I")
_CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "BROTLI", "ZSTD")
"""Those that have one way only to be read: of LZ4 there are two."""
_HIGHEST_FIELD = (1 << 15) - 1


@dataclass(frozen=True, slots=True)
class Page:
    """What a header says of its page.

    Attributes
    ----------
    kind : int
        `DATA`, `DICTIONARY`, `DATA_V2`, or another number, of pages that hold no values.
    size : int
        Bytes once decompressed.
    values : int
        How many, nulls included; in nested columns, entries of all levels.
    encoding : int
        Number of `Encoding` in `parquet.thrift`.
    place : slice
        Where its bytes are in the file, as they are stored.
    """

    kind: int
    size: int
    values: int
    encoding: int
    place: slice


def pages(file: BinaryIO, chunk: Any) -> Iterator[Page]:
    """The pages that a reader of a column chunk would come upon, in order.

    Parameters
    ----------
    file : file
        Seekable.
    chunk : pyarrow.parquet.ColumnChunkMetaData

    Raises
    ------
    DecodeError
        There is no header where one must be.
    """
    position, first = chunk.data_page_offset, chunk.dictionary_page_offset
    if first is not None and 0 < first < position:
        position = first
    end = position + chunk.total_compressed_size + _PADDING
    seen = 0
    while seen < chunk.num_values and position < end:
        page = _header(file, position)
        if page.kind in (DATA, DATA_V2):
            seen += page.values
        yield page
        position = page.place.stop


def longest_text(file: BinaryIO, page: Page, codec: str) -> int:
    """Bytes of the longest text in a dictionary, or of all of it where that takes too long to tell.

    Parameters
    ----------
    file : file
        Seekable.
    page : Page
        A dictionary of text, not larger than there is memory for.
    codec : str
        As `pyarrow.parquet.ColumnChunkMetaData.compression` says it.
    """
    if page.values > _MOST_TEXTS or codec not in _CODECS:
        return page.size
    file.seek(page.place.start)
    data = bytes(file.read(page.place.stop - page.place.start))
    position = longest = 0
    try:
        if codec != "UNCOMPRESSED":
            data = pa.Codec(codec.lower()).decompress(data, page.size, asbytes=True)
        for _ in range(page.values):
            (length,) = _LENGTH.unpack_from(data, position)
            position += _LENGTH.size + length
            longest = max(longest, length)
    except (pa.ArrowException, OSError, struct.error):  # readers will say so
        return page.size
    return longest


def _header(file: BinaryIO, position: int) -> Page:
    """What the header at a position says."""
    window = _WINDOW
    while True:
        file.seek(position)
        data = bytes(file.read(window))
        reader = _Compact(data)
        try:
            fields = reader.struct()
        except IndexError:
            if len(data) < window or window >= _MAX_HEADER:
                raise DecodeError(
                    f"there is no header of a Parquet page at byte {position}"
                ) from None
            window *= 16
            continue
        return _page(fields, position, position + reader.position)


def _page(fields: dict[int, Any], position: int, start: int) -> Page:
    kind, size, stored = (_number(fields, number) for number in (1, 2, 3))
    body = fields.get(_BODY_OF.get(kind, -1), {})
    values = encoding = 0
    if isinstance(body, dict):
        values = _number(body, 1, default=0)
        encoding = _number(body, _ENCODING_FIELD.get(kind, -1), default=0)
    if min(kind, size, stored, values, encoding) < 0 or not isinstance(body, dict):
        raise DecodeError(f"the header of a Parquet page at byte {position} makes no sense")
    return Page(kind, max(size, stored), values, encoding, slice(start, start + stored))


def _number(fields: dict[int, Any], field: int, default: int = -1) -> int:
    """A field with a number; -1 if it is none."""
    found = fields.get(field, default)
    return found if isinstance(found, int) else -1


class _Compact:
    """Reads Thrift's compact protocol as far as headers of pages need it.

    Beyond the end of the data it raises `IndexError`. What no writer writes and readers take in
    ways of their own is refused, so that nothing else is found here than there: a field that is
    there twice, numbers that are too large for their type.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._values = 0
        self.position = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Numbers and structs by field; None in the place of what else there is."""
        if depth > _DEEPEST:
            raise DecodeError("the header of a Parquet page is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while True:
            head = self._byte()
            kind, step = head & 15, head >> 4
            if kind == _STOP:
                return fields
            number = number + step if step else self._integer()
            if number in fields or not 0 <= number <= _HIGHEST_FIELD:
                raise DecodeError(f"the header of a Parquet page has a field {number} in excess")
            fields[number] = self._value(kind, depth)

    def _value(self, kind: int, depth: int) -> Any:
        """A number of 32 bits or a struct; None for anything else, which is skipped."""
        self._values += 1
        if self._values > _MOST_VALUES:
            raise DecodeError("the header of a Parquet page has too many fields")
        if kind == _I32:
            return self._integer()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_TRUE, _FALSE):
            return None
        if kind in (_LIST, _SET):
            self._skip_list(depth)
        elif kind == _MAP:
            self._skip_map(depth)
        elif kind == _BINARY:
            self._skip(self._varint())
        elif kind in (_I16, _I64):
            self._varint()
        elif kind in (_I8, _DOUBLE):
            self._skip(1 if kind == _I8 else 8)
        else:
            raise DecodeError(
                f"the header of a Parquet page has a field of the unknown type {kind}"
            )
        return None

    def _skip_list(self, depth: int) -> None:
        head = self._byte()
        size = head >> 4
        if size == 15:
            size = self._varint()
        for _ in range(size):
            self._skip_item(head & 15, depth)

    def _skip_map(self, depth: int) -> None:
        size = self._varint()
        kinds = self._byte() if size else 0
        for _ in range(size):
            self._skip_item(kinds >> 4, depth)
            self._skip_item(kinds & 15, depth)

    def _skip_item(self, kind: int, depth: int) -> None:
        if kind in (_TRUE, _FALSE):  # a byte each, outside of structs
            self._skip(1)
        else:
            self._value(kind, depth + 1)

    def _skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self._data):
            raise IndexError

    def _byte(self) -> int:
        byte = self._data[self.position]
        self.position += 1
        return byte

    def _varint(self) -> int:
        found = shift = 0
        while True:
            byte = self._byte()
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7
            if shift > 63:
                raise DecodeError("the header of a Parquet page has a number of too many digits")

    def _integer(self) -> int:
        found = self._varint()
        if found >> 32:
            raise DecodeError("the header of a Parquet page has a number of more than 32 bits")
        return (found >> 1) ^ -(found & 1)
