"""Arrow tables in files, whole or some columns and rows of them: Parquet, or Arrow's own format.

Parquet is what every tool reads, and takes less room. What it would change (types it does not have,
dictionaries, columns of one name) goes into an Arrow file (IPC, Feather version 2), which holds all
that Arrow has. Which of the two a file is, its first bytes tell.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from blobstore.codecs import MIN_SAVING
from blobstore.errors import DecodeError, InvalidInputError, UnsupportedTypeError
from blobstore.handlers.dense import plain_bytes
from blobstore.handlers.ipc_growth import check_growth as check_ipc_growth
from blobstore.handlers.options import refuse_options
from blobstore.handlers.parquet import (
    MALFORMED,
    ParquetPart,
    TableContent,
    check_room,
    decoding,
    parquet_level,
    rows_at_once,
)
from blobstore.handlers.parquet_growth import check_growth as check_parquet_growth
from blobstore.handlers.sink_file import SinkFile
from blobstore.protocols import Encoding, Handler, PlannedPart, StoredPart, WriteOptions
from blobstore.streams import Hasher, Sink

LAYOUT = {"use_compliant_nested_type": False}
"""Items of lists keep the name that Arrow gave them."""

_IPC_MAGIC = b"ARROW1"
_IPC_CODECS = {"lz4": "lz4", "blosclz": "lz4", "zstd": "zstd", "gzip": "zstd", "none": "none"}
_SAMPLE_ROWS = 1 << 13
_EXTENSION_NAME = b"ARROW:extension:name"

Digest = Callable[[Hasher], None]


class ArrowContent(TableContent):
    """An Arrow table as it is."""

    def __init__(self, whole: pa.Table) -> None:
        self.whole = whole
        self.rows = whole.num_rows

    @functools.cached_property
    def nbytes(self) -> int:
        """About how much memory the rows take."""
        return plain_bytes(self.whole)

    def schema(self) -> pa.Schema:
        """Of the table."""
        return self.whole.schema

    def table(self, start: int, stop: int, schema: pa.Schema) -> pa.Table:
        """Some rows."""
        return self.whole.slice(start, stop - start)


class TablePart(ParquetPart):
    """A table about to become Parquet, with a digest that the caller knows."""

    def __init__(
        self, handler: str, content: TableContent, options: WriteOptions, digest: Digest
    ) -> None:
        super().__init__(content, options, layout=LAYOUT)
        self.handler = handler
        self._feed = digest

    def digest(self, hasher: Hasher) -> None:
        """Feed what the table says."""
        self._feed(hasher)


class IpcPart(PlannedPart):
    """A table about to become an Arrow file."""

    def __init__(
        self, handler: str, content: TableContent, options: WriteOptions, digest: Digest
    ) -> None:
        self.handler = handler
        self._content = content
        self._feed = digest
        self._codec = _IPC_CODECS[options.codec]
        self._level = parquet_level(self._codec, options.level)
        self.size_hint = content.nbytes

    def digest(self, hasher: Hasher) -> None:
        """Feed what the table says."""
        self._feed(hasher)

    def encoding(self) -> Encoding:
        """The codec, if it makes the first rows smaller."""
        return Encoding(self._codec if self._pays else "none", ".arrow")

    @functools.cached_property
    def _pays(self) -> bool:
        if self._codec == "none":
            return False
        content = self._content
        sample = content.table(0, min(content.rows, _SAMPLE_ROWS), content.schema())
        plain, packed = (len(_ipc_bytes(sample, codec)) for codec in (None, self._compression))
        return packed <= plain * (1 - MIN_SAVING)

    @property
    def _compression(self) -> pa.Codec:
        return pa.Codec(self._codec, self._level if self._codec == "zstd" else None)

    def write(self, sink: Sink) -> None:
        """Stream record batches into `sink`."""
        content, schema = self._content, self._content.schema()
        options = ipc.IpcWriteOptions(compression=self._compression if self._pays else None)
        step = rows_at_once(content)
        with ipc.new_file(SinkFile(sink), schema, options=options) as writer:
            for start in range(0, content.rows, step):
                stop = min(content.rows, start + step)
                table = content.table(start, stop, schema).combine_chunks()
                writer.write_table(table, max_chunksize=step)


def _ipc_bytes(table: pa.Table, compression: pa.Codec | None) -> bytes:
    out = io.BytesIO()
    options = ipc.IpcWriteOptions(compression=compression, unify_dictionaries=True)
    with ipc.new_file(out, table.schema, options=options) as writer:
        writer.write_table(table)
    return out.getvalue()


def through_parquet(schema: pa.Schema) -> pa.Schema | None:
    """The schema of a table that was written to Parquet and read again; None if Parquet refuses."""
    file = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_batches([], schema), file, **LAYOUT)
        file.seek(0)
        back: pa.Schema = pq.ParquetFile(file).schema_arrow
    except (pa.ArrowException, OSError, *MALFORMED):
        return None
    return back


def plain_columns(schema: pa.Schema) -> bool:
    """Whether columns can be told by name: there are some, and no two of one name."""
    return 0 < len(schema.names) == len(set(schema.names))


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """What `get` asked for: all of it, or some columns, or some rows."""

    columns: tuple[str, ...] | None = None
    rows: slice | None = None

    @classmethod
    def of(cls, handler: Handler, options: Mapping[str, Any], *known: str) -> Wanted:
        """Check read options.

        Raises
        ------
        InvalidInputError
            One is unknown, or of the wrong type.
        """
        refuse_options(handler, options, *known)
        columns, rows = options.get("columns"), options.get("rows")
        if columns is not None:
            if not isinstance(columns, list | tuple) or any(type(x) is not str for x in columns):
                raise InvalidInputError(f"columns must be a list of names, not {columns!r}")
            columns = tuple(columns)
        if rows is not None:
            if not isinstance(rows, slice):
                raise InvalidInputError(
                    f"rows must be a slice, not {rows!r}: use slice(start, stop)"
                )
            try:
                rows.indices(0)
            except (TypeError, ValueError) as exc:
                raise InvalidInputError(
                    f"rows={rows!r} is no slice of whole numbers: {exc}"
                ) from exc
        return cls(columns, rows)

    def places(self, names: Sequence[str]) -> list[int] | None:
        """Where the wanted columns are.

        Raises
        ------
        InvalidInputError
            One is not there.
        """
        if self.columns is None:
            return None
        found: list[int] = []
        for name in self.columns:
            places = [place for place, known in enumerate(names) if known == name]
            if not places:
                known = ", ".join(map(repr, names[:20]))
                raise InvalidInputError(f"there is no column {name!r}: there are {known}")
            found += places
        return found


def read_table(part: StoredPart, total: int, wanted: Wanted) -> pa.Table:
    """Read a table, or what is wanted of it.

    Parameters
    ----------
    part : StoredPart
    total : int
        How many rows there are.
    wanted : Wanted

    Raises
    ------
    DecodeError
        It is no such file, it is damaged, or it grows by more than its trust allows.
    InvalidInputError
        There is no such column.
    """
    limit = part.trust.growth_limit(part.source.size)
    with decoding(part.source, whole=wanted == Wanted()) as file:
        magic = file.read(len(_IPC_MAGIC))
        file.seek(0)
        if magic == _IPC_MAGIC:
            check_ipc_growth(file, limit)
            return _read_ipc(file, total, wanted)
        return _read_parquet(file, total, wanted, limit)


def _read_parquet(file: Any, total: int, wanted: Wanted, limit: int) -> pa.Table:
    parquet = pq.ParquetFile(file, pre_buffer=False)
    schema = parquet.schema_arrow
    names, types = schema.names, schema.types
    places = wanted.places(names)
    columns = None if places is None else [names[place] for place in places]
    sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    _check_rows(sum(sizes), total)
    groups, rows = _stretch(sizes, wanted.rows)
    read_types = types if places is None else [types[place] for place in places]
    check_room(read_types, sum(sizes[group] for group in groups))
    read_columns = None if columns is None else list(dict.fromkeys(columns))
    check_parquet_growth(parquet, file, groups, read_columns, limit)
    table = parquet.read_row_groups(groups, columns=read_columns)
    # By name, not position: asking for "a" also brings "a.b".
    return _rows_of(table if columns is None else table.select(columns), rows)


def _read_ipc(file: Any, total: int, wanted: Wanted) -> pa.Table:
    schema = ipc.open_file(file).schema
    places = wanted.places(schema.names)
    included = None if places is None else sorted(set(places))
    reader = ipc.open_file(file, options=ipc.IpcReadOptions(included_fields=included))
    if wanted.rows is None:
        groups, rows = list(range(reader.num_record_batches)), None
    else:
        groups, rows = _stretch(_batch_sizes(file, total, len(schema)), wanted.rows)
    table = pa.Table.from_batches([reader.get_batch(i) for i in groups], reader.schema)
    table.validate(full=True)  # the format has no checks of its own
    if wanted.rows is None:
        _check_rows(table.num_rows, total)
    if places is not None and included is not None:
        table = table.select([included.index(place) for place in places])
    return _rows_of(table, rows)


def _batch_sizes(file: Any, total: int, columns: int) -> list[int]:
    """How many rows each batch has; one column of the first and of the last tells, as a rule."""
    reader = ipc.open_file(
        file, options=ipc.IpcReadOptions(included_fields=[0] if columns else None)
    )
    count = reader.num_record_batches
    if not count:
        return []
    first, last = (reader.get_batch(i).num_rows for i in (0, count - 1))
    sizes = [first] * (count - 1) + [last]
    if sum(sizes) != total:  # text of over 2 GiB in a column makes more batches than one
        sizes = [reader.get_batch(i).num_rows for i in range(count)]
    _check_rows(sum(sizes), total)
    return sizes


def _check_rows(found: int, total: int) -> None:
    if found != total:
        raise DecodeError(f"a table of {found} rows is stored where the index says {total}")


def _stretch(sizes: Sequence[int], rows: slice | None) -> tuple[list[int], range | None]:
    """Which groups hold the rows, and where in those they are."""
    if rows is None:
        return list(range(len(sizes))), None
    wanted = range(*rows.indices(sum(sizes)))
    if not wanted:
        return [], wanted
    low, high = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1])
    groups: list[int] = []
    start = first = 0
    for number, size in enumerate(sizes):
        if start <= high and start + size > low:
            if not groups:
                first = start
            groups.append(number)
        start += size
    return groups, range(wanted.start - first, wanted.stop - first, wanted.step)


def _rows_of(table: pa.Table, rows: range | None) -> pa.Table:
    if rows is None:
        return table
    if rows.step == 1 and rows:
        return table.slice(rows.start, len(rows))
    if not rows:
        return table.slice(0, 0)
    try:
        return table.take(pa.array(np.arange(rows.start, rows.stop, rows.step)))
    except pa.ArrowNotImplementedError:  # of views
        return pa.concat_tables([table.slice(row, 1) for row in rows])


def check_extensions(schema: pa.Schema) -> None:
    """Refuse a table of which this process does not know all types.

    Raises
    ------
    DecodeError
        An extension type is not registered: its values would come back as another type.
    """
    for field in _all_fields(schema):
        name = (field.metadata or {}).get(_EXTENSION_NAME)
        if name is not None:
            raise DecodeError(
                f"the column {field.name!r} is of the extension type {name.decode()!r}, which "
                "nobody registered here: import the package that defines it"
            )


def _all_fields(schema: pa.Schema) -> list[pa.Field]:
    found = [schema.field(i) for i in range(len(schema))]
    for field in found:  # grows while it is walked
        found += [field.type.field(i) for i in range(field.type.num_fields)]
    return found


def refuse_nothing(schema: pa.Schema) -> None:
    """Refuse a schema that no file holds.

    Raises
    ------
    UnsupportedTypeError
        It has an extension that was not made known to Arrow by a type.
    """
    for field in _all_fields(schema):
        if _EXTENSION_NAME in (field.metadata or {}):
            raise UnsupportedTypeError(
                f"the column {field.name!r} says that it is of an extension type, and is not"
            )
