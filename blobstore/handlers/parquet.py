"""Parquet files, written as a stream of row groups and read range by range: what tables share.

lz4, zstd and gzip are the codecs of Parquet; blosclz, which it does not have, is lz4. A sample
decides for each column whether compression pays and whether a dictionary is worth trying.
"""

from __future__ import annotations

import contextlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blobstore.codecs import MIN_SAVING
from blobstore.errors import BlobStoreError, DecodeError, from_os_error
from blobstore.handlers.sink_file import SinkFile
from blobstore.limits import check_allocation
from blobstore.protocols import Encoding, PlannedPart, WriteOptions
from blobstore.streams import Sink, Source

ROW_GROUP_BYTES = 64 << 20
ROW_GROUP_ROWS = (1 << 14, 1 << 20)
CODECS = {"lz4": "lz4", "blosclz": "lz4", "zstd": "zstd", "gzip": "gzip", "none": "none"}
MALFORMED = (
    pa.ArrowException,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What pyarrow, and code that follows what a file says, raise where the file is damaged."""

_SMALL = 1 << 20
_SAMPLES = 4
_SAMPLE_ROWS = (64, 1024)  # of a stretch; fewer in wide tables
_SAMPLE_BYTES = 1 << 20
_DISTINCT = 0.9  # of the values of a sample: with more, no dictionary


class TableContent(ABC):
    """Rows that can be had as Arrow tables, a stretch at a time.

    Attributes
    ----------
    rows : int
        How many there are.
    """

    rows: int

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """About how much memory the rows take."""

    @abstractmethod
    def schema(self) -> pa.Schema:
        """Of the tables."""

    @abstractmethod
    def table(self, start: int, stop: int, schema: pa.Schema) -> pa.Table:
        """Some rows."""


class ParquetPart(PlannedPart):
    """A table about to become a Parquet file; subclasses say what its digest is.

    Parameters
    ----------
    content : TableContent
    options : WriteOptions
    footer : mapping of bytes to str
        Metadata for the end of the file.
    layout : mapping
        More options of ``pyarrow.parquet.ParquetWriter``.
    """

    def __init__(
        self,
        content: TableContent,
        options: WriteOptions,
        footer: Mapping[bytes, str] | None = None,
        layout: Mapping[str, Any] | None = None,
    ) -> None:
        self._rows = content
        self._codec = CODECS[options.codec]
        self._level = parquet_level(self._codec, options.level)
        self._footer = footer or {}
        self._layout = layout or {}
        self.size_hint = content.nbytes

    def encoding(self) -> Encoding:
        """The codec, if it makes any column of a sample smaller."""
        used = self._writer_options["compression"] != "none"
        return Encoding(self._codec if used else "none", ".parquet")

    @property
    def is_packed(self) -> bool:
        """Say yes: without a codec, too, equal values are stored once."""
        return True

    def write(self, sink: Sink) -> None:
        """Stream row groups into `sink`."""
        content, schema = self._rows, self._schema
        step = rows_at_once(content)
        with pq.ParquetWriter(SinkFile(sink), schema, **self._writer_options) as writer:
            for start in range(0, content.rows, step):
                stop = min(content.rows, start + step)
                writer.write_table(content.table(start, stop, schema), row_group_size=step)
            if self._footer:
                writer.add_key_value_metadata(self._footer)

    @cached_property
    def _schema(self) -> pa.Schema:
        return self._rows.schema()

    @cached_property
    def _sample(self) -> pa.Table:
        """A few stretches of rows, spread over the table, as plain values."""
        content = self._rows
        fewest, most = _SAMPLE_ROWS
        each = max(1, content.nbytes // max(1, content.rows))
        stretch = max(fewest, min(most, _SAMPLE_BYTES // _SAMPLES // each))
        if content.rows <= _SAMPLES * stretch:
            spans = [(0, content.rows)]
        else:
            starts = [(content.rows - stretch) * i // (_SAMPLES - 1) for i in range(_SAMPLES)]
            spans = [(start, start + stretch) for start in starts]
        tables = [content.table(*span, self._schema) for span in spans]
        return pa.concat_tables([_plain_table(table) for table in tables])

    @cached_property
    def _column_codecs(self) -> dict[str, str]:
        """Codec of each leaf column: noise is stored as it is, beside what does shrink."""
        sample = io.BytesIO()
        options = {"compression": self._codec, "use_dictionary": self._repetitive, **self._layout}
        pq.write_table(self._sample, sample, **options)
        found = pq.ParquetFile(sample).metadata
        if not found.num_row_groups:
            return {}
        leaves = [found.row_group(0).column(i) for i in range(found.num_columns)]
        return {
            leaf.path_in_schema: self._codec
            if leaf.total_compressed_size <= leaf.total_uncompressed_size * (1 - MIN_SAVING)
            else "none"
            for leaf in leaves
        }

    @cached_property
    def _repetitive(self) -> list[str] | bool:
        """Columns for which Parquet is to try a dictionary: where it is in vain, it costs time."""
        table = self._sample
        if any(field.type.num_fields for field in table.schema):
            return True
        return [name for name in table.column_names if _repeats(table.column(name))]

    @cached_property
    def _writer_options(self) -> dict[str, Any]:
        codecs = self._column_codecs if self._codec != "none" else {}
        packed = [path for path, codec in codecs.items() if codec != "none"]
        options: dict[str, Any] = {
            "compression": codecs if packed else "none",
            "use_dictionary": self._repetitive,
            **self._layout,
        }
        if packed and self._level is not None:
            options["compression_level"] = dict.fromkeys(packed, self._level)
        return options


def _repeats(sample: pa.ChunkedArray) -> bool:
    try:
        distinct = len(pc.unique(sample))
    except pa.ArrowNotImplementedError:
        return True
    return bool(distinct <= len(sample) * _DISTINCT)


def _plain_table(table: pa.Table) -> pa.Table:
    """Without dictionaries, whose unused values would count in a sample."""
    kinds = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(kinds))


def parquet_level(codec: str, level: int) -> int | None:
    """The level for pyarrow; lz4 is fast up to 3, and the high compression of that level above."""
    if codec == "none" or not pa.Codec.supports_compression_level(codec):
        return None
    return None if codec == "lz4" and level <= 3 else level


def rows_at_once(content: TableContent) -> int:
    """How many rows go into a row group."""
    fewest, most = ROW_GROUP_ROWS
    if not content.rows:
        return most
    each = max(1, content.nbytes // content.rows)
    return max(fewest, min(most, ROW_GROUP_BYTES // each))


def check_room(types: Iterable[pa.DataType], rows: int) -> None:
    """Refuse a table that is larger than this machine, which may be a few bytes in the file.

    What text and nested values need is not known before they are read.

    Raises
    ------
    DecodeError

    Examples
    --------
    >>> check_room([pa.int64(), pa.string()], 1 << 50)
    Traceback (most recent call last):
    ...
    blobstore.errors.DecodeError: a table of 1125899906842624 rows needs 9007199254740992 bytes, which is more than this machine has: read a part of it
    """
    check_allocation(rows * sum(map(_bits, types)) // 8, f"a table of {rows} rows")


def _bits(kind: pa.DataType) -> int:
    try:
        return int(kind.bit_width)
    except ValueError:  # of no fixed width
        return 0


@contextlib.contextmanager
def decoding(source: Source, *, whole: bool) -> Iterator[Any]:
    """Open a file of tables; whatever is wrong with it is a `DecodeError`."""
    try:
        if not whole:  # some columns or rows: only the ranges that they lie in are asked for
            with source.open() as raw, pa.PythonFile(raw, mode="r") as file:
                yield file
            return
        if source.size <= _SMALL:
            yield pa.BufferReader(source.read())
            return
        with source.path() as path, pa.OSFile(str(path)) as file:
            yield file  # Arrow reads by itself, in threads of its own
    except BlobStoreError:
        raise
    except OSError as exc:
        if exc.errno is not None:
            raise from_os_error(exc, "reading a stored table") from exc
        raise DecodeError(f"this is no file of a table: {exc}") from exc
    except MALFORMED as exc:
        raise DecodeError(f"this is no table that blobstore wrote: {exc!r}") from exc
