"""Arrow's own objects: tables, record batches, arrays and chunked arrays.

They come back as the type they were, equal, with the metadata of schema and fields. How the rows of
a table lie in chunks is not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from blobstore.digest import Canonical
from blobstore.errors import DecodeError, InvalidInputError, UnsupportedTypeError
from blobstore.handlers.arrow import describe_type, single, update_array, update_values
from blobstore.handlers.leaves import LeafHandler
from blobstore.handlers.tables import (
    ArrowContent,
    IpcPart,
    TablePart,
    Wanted,
    check_extensions,
    plain_columns,
    read_table,
    refuse_nothing,
    through_parquet,
)
from blobstore.protocols import Plan, StoredPart, WriteOptions
from blobstore.streams import Hasher

_SHOWN = 100
_VALUES = "values"
"""The only column of a table that stands for an array."""

_KINDS = {"table": "table", "batch": "table", "array": "array", "chunked": "array"}


class ArrowHandler(LeafHandler):
    """`pyarrow` tables, batches and arrays as Parquet, or as Arrow files where that is not exact.

    `read` takes ``columns=[...]`` (tables and batches) and ``rows=slice(...)``.

    Examples
    --------
    >>> plan = ArrowHandler().plan(pa.table({"x": [1, 2, 3]}), WriteOptions())
    >>> plan.info["rows"], plan.parts[0].encoding().extension
    (3, '.parquet')
    >>> ArrowHandler().plan(pa.array(["a", "a"]).dictionary_encode(), WriteOptions()).info["type"]
    'dictionary<values=string, indices=int32, ordered=0>'
    """

    name: ClassVar[str] = "arrow"
    type_names: ClassVar[tuple[str, ...]] = (
        "pyarrow.lib.Table",
        "pyarrow.lib.RecordBatch",
        "pyarrow.lib.ChunkedArray",
    )
    base_names: ClassVar[tuple[str, ...]] = ("pyarrow.lib.Array",)

    def can_handle(self, obj: Any) -> bool:
        """Whether it is Arrow's, and of no class that somebody derived."""
        return _kind(obj) is not None

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Choose the format.

        Raises
        ------
        UnsupportedTypeError
            Neither format holds it.
        """
        kind = _kind(obj)
        if kind is None:
            raise UnsupportedTypeError(f"{type(obj)!r} is no table and no array of Arrow")
        table = _as_table(obj, kind)
        refuse_nothing(table.schema)
        part_class: type[TablePart | IpcPart] = TablePart
        if not _fits_parquet(table.schema):
            part_class = IpcPart
            table = _one_dictionary(table)

        def feed(hasher: Hasher) -> None:
            _digest(hasher, kind, table)

        part = part_class(self.name, ArrowContent(table), options, feed)
        return Plan(_KINDS[kind], _info(kind, table), (part,))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Read a table or an array, or what is wanted of it.

        Parameters
        ----------
        parts, info : mapping
        columns : list of str, optional
            The columns of a table to read, in the order wanted; only those are read.
        rows : slice, optional
            Only the groups of rows in which they lie are read.

        Raises
        ------
        DecodeError
            The part is not what this handler writes.
        InvalidInputError
            An unknown option, or one that makes no sense for the object.
        """
        try:
            kind, rows, part = info["kind"], info["rows"], parts["data"]
            arrays = _KINDS[kind] == "array"
        except (KeyError, TypeError) as exc:
            raise DecodeError(f"a table was stored without its {exc}") from exc
        wanted = Wanted.of(self, options, "columns", "rows")
        if arrays and wanted.columns is not None:
            raise InvalidInputError("an array has no columns to choose from: leave out columns=")
        table = read_table(part, rows, wanted)
        check_extensions(table.schema)
        if kind == "table":
            return table
        if kind == "batch":
            return _as_batch(table)
        if table.num_columns != 1:
            raise DecodeError(f"{table.num_columns} columns are stored in the place of an array")
        found = str(table.schema.field(0).type)
        if found != info.get("type"):
            raise DecodeError(f"an array of {found} is stored where the index says {info}")
        return table.column(0) if kind == "chunked" else _as_array(table.column(0))


def _kind(obj: Any) -> str | None:
    cls = type(obj)
    if cls is pa.Table:
        return "table"
    if cls is pa.RecordBatch:
        return "batch"
    if cls is pa.ChunkedArray:
        return "chunked"
    if not isinstance(obj, pa.Array):
        return None
    # An extension array of another package's class comes back as the class that its type names.
    ours = cls.__module__ == "pyarrow.lib" or cls is _class_of(obj.type)
    return "array" if ours else None


def _class_of(kind: pa.DataType) -> Any:
    return kind.__arrow_ext_class__() if isinstance(kind, pa.ExtensionType) else None


def _as_table(obj: Any, kind: str) -> pa.Table:
    if kind == "table":
        return obj
    if kind == "batch":
        return pa.Table.from_batches([obj])
    return pa.table({_VALUES: obj})


def _as_batch(table: pa.Table) -> pa.RecordBatch:
    arrays = [_as_array(column) for column in table.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=table.schema)


def _as_array(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    found = column.combine_chunks()
    return single(found) if isinstance(found, pa.ChunkedArray) else found


def _fits_parquet(schema: pa.Schema) -> bool:
    if not plain_columns(schema) or any(map(_has_dictionary, schema.types)):
        return False
    back = through_parquet(schema)
    return back is not None and bool(back.equals(schema, check_metadata=True))


def _has_dictionary(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_dictionary(kind.storage_type)
    return pa.types.is_dictionary(kind) or _nested_dictionary(kind)


def _nested_dictionary(kind: pa.DataType) -> bool:
    return any(_has_dictionary(kind.field(i).type) for i in range(kind.num_fields))


def _one_dictionary(table: pa.Table) -> pa.Table:
    """An Arrow file has one dictionary for each column, whatever chunks it is of."""
    try:
        return table.unify_dictionaries()
    except pa.ArrowNotImplementedError:  # inside of other types
        return table.combine_chunks()


def _digest(hasher: Hasher, kind: str, table: pa.Table) -> None:
    """Feed kind, types, metadata, dictionaries and values; chunks and format have no part in it."""
    schema = table.schema
    try:
        _refuse_nested_dictionaries(schema)
        said = tuple(_said(schema.field(i)) for i in range(len(schema)))
        head = ("blobstore.arrow", 1, kind, table.num_rows, _sorted(schema.metadata), said)
        Canonical(hasher).add(head)
        for column in table.columns:
            if pa.types.is_dictionary(column.type) and column.num_chunks:
                update_array(hasher, column.chunk(0).dictionary)
            update_values(hasher, column)
    except (UnsupportedTypeError, pa.ArrowNotImplementedError):
        # No canonical form: the same bytes at best, and never those of something else.
        hasher.update(b"blobstore:arrow-file:1\0" + kind.encode() + b"\0")
        sink = _HashSink(hasher)
        with pa.PythonFile(sink, mode="w") as file, pa.ipc.new_stream(file, schema) as writer:
            writer.write_table(table.combine_chunks())


def _refuse_nested_dictionaries(schema: pa.Schema) -> None:
    for field in schema:
        if _has_dictionary(field.type) and not pa.types.is_dictionary(field.type):
            raise UnsupportedTypeError(f"{field.name!r} has a dictionary inside of another type")


class _HashSink:
    """A file of which only the hash is kept."""

    closed = False

    def __init__(self, hasher: Hasher) -> None:
        self._hasher = hasher

    def write(self, data: bytes) -> int:
        self._hasher.update(data)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def _said(field: pa.Field) -> Any:
    """A field as plain values, with all its metadata."""
    kind = field.type
    children = [_said(kind.field(i)) for i in range(kind.num_fields)]
    return (
        field.name,
        field.nullable,
        describe_type(kind),
        _sorted(field.metadata),
        children,
    )


def _sorted(found: Mapping[bytes, bytes] | None) -> Any:
    return None if found is None else sorted(found.items())


def _info(kind: str, table: pa.Table) -> dict[str, Any]:
    info: dict[str, Any] = {"kind": kind, "rows": table.num_rows}
    if _KINDS[kind] == "array":
        return {**info, "type": str(table.schema.field(0).type)}
    names, types = table.schema.names[:_SHOWN], table.schema.types[:_SHOWN]
    shape = [table.num_rows, table.num_columns]
    return {**info, "shape": shape, "columns": names, "types": [str(kind) for kind in types]}
