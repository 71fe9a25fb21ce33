"""How much memory a Parquet file takes when it is read, found before it is.

A few stored bytes can stand for many in three ways: pages are compressed; equal values, lengths and
nulls are counted instead of repeated; and a value may refer to one in a dictionary, or share the
beginning of the value before it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from blobstore.errors import DecodeError
from blobstore.handlers.dense import dense_bytes, is_text_dictionary, leaf_types, plain_bytes
from blobstore.handlers.parquet_pages import DATA, DATA_V2, DICTIONARY, longest_text, pages
from blobstore.limits import UNLIMITED, bomb

_BITS = {"BOOLEAN": 1, "INT32": 32, "INT64": 64, "INT96": 64, "FLOAT": 32, "DOUBLE": 64}
"""Of a value while it is read."""
_BITS_OF_OFFSET = 32  # of a text among texts, or a list among lists
_BITS_OF_LEVELS = 32  # of a value in a nested column, while it is read
_BYTES_OF_ENTRY = 16  # of a text in a dictionary, besides the text
_BY_DICTIONARY = (2, 8)
_BY_PREFIX = 7
_BATCH = 1 << 16
_BUFFER = 1 << 12
_WHAT = "a table"


@dataclass(slots=True)
class _Column:
    """What the pages of some chunks of a column come to.

    Attributes
    ----------
    leaf : int
        Its place among the columns of the file.
    path : str
    nested : bool
    size : int
        Bytes of all pages, decompressed.
    values : int
    least : int
        Bytes that the values take in memory, apart from text.
    repeated : int
        Bytes that text from dictionaries may take at most.
    shared : int
        Bytes that text with shared beginnings may take at most.
    longest : int
        Bytes that one such text may take at most.
    entry : int
        Bytes that a text from a dictionary may take at most.
    """

    leaf: int
    path: str
    nested: bool
    size: int = 0
    values: int = 0
    least: int = 0
    repeated: int = 0
    shared: int = 0
    longest: int = 0
    entry: int = 0


def check_growth(
    parquet: pq.ParquetFile,
    file: BinaryIO,
    groups: Sequence[int],
    columns: Iterable[str] | None,
    limit: int,
    *,
    written_out: Collection[str] = (),
) -> None:
    """Refuse row groups that take more memory than they may.

    Parameters
    ----------
    parquet : pyarrow.parquet.ParquetFile
    file : file
        The same, seekable.
    groups : sequence of int
        The row groups that are to be read.
    columns : iterable of str, optional
        The columns that are; all by default.
    limit : int
        Bytes; from `blobstore.limits.UNLIMITED` on, nothing is checked.
    written_out : collection of str
        Columns whose texts are written out, though in Arrow they are in a dictionary.

    Raises
    ------
    DecodeError
        They take more, or the file is no whole Parquet file.

    Examples
    --------
    A million equal texts take little room in a file:

    >>> import io, pyarrow as pa
    >>> file = io.BytesIO()
    >>> pq.write_table(pa.table({"note": ["x" * 1000] * 1_000_000}), file)
    >>> len(file.getvalue()) < 500_000
    True
    >>> check_growth(pq.ParquetFile(file), file, [0], None, 1 << 30)
    >>> check_growth(pq.ParquetFile(file), file, [0], None, 100_000_000)
    Traceback (most recent call last):
    ...
    blobstore.errors.DecodeError: a table grows to more than 100000000 bytes when it is decompressed, as an attack on memory would. If it is what you expect, open the store with a larger max_decompressed_bytes
    """
    if limit >= UNLIMITED:
        return
    wanted = None if columns is None else list(columns)
    leaves, kinds = _leaves(parquet.schema, wanted), _kinds(parquet)
    kept = _kept(parquet.schema_arrow) - set(written_out)
    _check_footer(parquet, file, groups, leaves)
    _check_places(parquet, file, groups, leaves)
    measure = functools.partial(_measure, parquet, file, groups, kept)
    found = [measure(leaf, kinds[leaf]) for leaf in leaves]
    if max(sum(c.size for c in found), sum(c.least for c in found)) > limit:
        raise bomb(_WHAT, limit)
    if _most(found) > limit:
        found = [measure(c.leaf, kinds[c.leaf], closely=True) if c.repeated else c for c in found]
    if _most(found) > limit:
        _count(parquet, file, groups, found, kept, limit)


def _kept(schema: pa.Schema) -> set[str]:
    """Columns that are numbers of texts in memory, as pandas and polars keep them, too."""
    return {field.name for field in schema if is_text_dictionary(field.type)}


def _most(found: Sequence[_Column]) -> int:
    """Bytes that columns may take at most."""
    return sum(c.size + c.least + c.repeated + c.shared for c in found)


def check_file(file: BinaryIO, limit: int) -> None:
    """Refuse a Parquet file that takes more memory than it may, read whole; see `check_growth`."""
    parquet = pq.ParquetFile(file, pre_buffer=False)
    check_growth(parquet, file, range(parquet.num_row_groups), None, limit)
    file.seek(0)


def _leaves(schema: pq.ParquetSchema, columns: Sequence[str] | None) -> list[int]:
    """Which leaves are read where some columns are asked for by name.

    The path of a leaf does not tell a field of a structure from a column with a dot in its name, so
    asking for "a" takes the column "a.b" for a part of it.
    """
    every = range(len(schema))
    if columns is None:
        return list(every)
    prefixes = tuple(f"{name}." for name in columns)
    names = set(columns)
    paths = (schema.column(i).path for i in every)
    return [i for i, path in enumerate(paths) if path in names or path.startswith(prefixes)]


def _kinds(parquet: pq.ParquetFile) -> list[pa.DataType]:
    """The types that the leaves have in memory."""
    schema = parquet.schema_arrow
    found = list(itertools.chain.from_iterable(map(leaf_types, schema.types)))
    if len(found) != len(parquet.schema):
        raise DecodeError("the columns of a Parquet file are not those of its Arrow schema")
    return found


def _check_footer(
    parquet: pq.ParquetFile, file: BinaryIO, groups: Sequence[int], leaves: Sequence[int]
) -> None:
    """Have Arrow look at what the footer says of each column, by a read of no rows at all.

    That raises where something is wrong; asking the metadata for the column ends the process.
    """
    file.seek(0)
    # With a buffer, a column is read when values are asked for, and here none are.
    reader = pq.ParquetFile(
        file, metadata=parquet.metadata, pre_buffer=False, buffer_size=_BUFFER
    ).reader
    for group in groups if leaves else ():  # of no columns, Arrow counts batches: not of 0 rows
        next(reader.iter_batches(0, [group], column_indices=list(leaves), use_threads=False), None)


def _check_places(
    parquet: pq.ParquetFile, file: BinaryIO, groups: Sequence[int], leaves: Sequence[int]
) -> None:
    """Refuse columns that lie in one place, which would be read as often as the footer says."""
    chunks = (parquet.metadata.row_group(group).column(i) for group in groups for i in leaves)
    if sum(chunk.total_compressed_size for chunk in chunks) > file.seek(0, 2):
        raise DecodeError("the columns of a Parquet file are larger than the file")


def _measure(
    parquet: pq.ParquetFile,
    file: BinaryIO,
    groups: Sequence[int],
    kept: Collection[str],
    leaf: int,
    kind: pa.DataType,
    *,
    closely: bool = False,
) -> _Column:
    """What is told of a column; `closely`, with a look into its dictionaries."""
    column = parquet.schema.column(leaf)
    nested = column.max_definition_level > 1 or column.max_repetition_level > 0
    found = _Column(leaf, column.path, nested)
    text = column.physical_type == "BYTE_ARRAY"
    bits = _BITS_OF_OFFSET if text else _BITS.get(column.physical_type, column.length * 8)
    bits = max(bits, _width(kind)) + column.max_repetition_level * _BITS_OF_OFFSET
    bits += column.max_definition_level + (_BITS_OF_LEVELS if nested else 0)
    for group in groups:
        facts = parquet.metadata.row_group(group)
        chunk = facts.column(leaf)
        values = _add_pages(found, file, chunk, text=text, closely=closely)
        if found.path in kept:
            found.repeated = 0
        # Room is made for what the footer tells of, whether values for it come or not.
        found.least += max(values, chunk.num_values, facts.num_rows) * bits // 8
        found.values += values
    return found


def _width(kind: pa.DataType) -> int:
    """Bits of a value in memory; 0 for those of no fixed width."""
    try:
        return int(kind.bit_width)
    except ValueError:
        return 0


def _add_pages(found: _Column, file: BinaryIO, chunk: Any, *, text: bool, closely: bool) -> int:
    """Add a chunk to what was found of its column; how many values it has."""
    dictionary = values = 0
    for page in pages(file, chunk):
        found.size += page.size
        if page.kind == DICTIONARY:
            longest = longest_text(file, page, chunk.compression) if closely else page.size
            dictionary = max(dictionary, longest)
            found.least += page.values * _BYTES_OF_ENTRY if text else 0
        elif page.kind in (DATA, DATA_V2):
            values += page.values
            if text and page.encoding in _BY_DICTIONARY:
                found.repeated += page.values * dictionary
                found.entry = max(found.entry, dictionary)
            elif text and page.encoding == _BY_PREFIX:
                found.shared += page.values * page.size
                found.longest = max(found.longest, page.size)
    return values


def _count(
    parquet: pq.ParquetFile,
    file: BinaryIO,
    groups: Sequence[int],
    found: Sequence[_Column],
    kept: Collection[str],
    limit: int,
) -> None:
    """Read in small batches, with dictionaries as they are, and count what would come of them."""
    file.seek(0)
    reader = pq.ParquetFile(
        file,
        metadata=parquet.metadata,
        read_dictionary=[column.leaf for column in found if column.repeated],
        pre_buffer=False,
    )
    kinds = _kinds(reader)
    row = 0
    for column in found:
        encoded = pa.types.is_dictionary(kinds[column.leaf])  # not where text stands for numbers
        if column.nested and column.shared + (0 if encoded else column.repeated) > limit:
            raise _unknown(column.path, limit)
        row += column.longest + (0 if encoded else column.entry)
    batch = max(1, min(_BATCH, limit // max(1, row)))
    paths = list(dict.fromkeys(column.path for column in found))
    total = 0
    for rows in reader.iter_batches(batch, groups, paths, use_threads=False):
        for name, column in zip(rows.schema.names, rows.columns, strict=True):
            total += plain_bytes(column) if name in kept else dense_bytes(column)
        if total > limit:
            raise bomb(_WHAT, limit)


def _unknown(path: str, limit: int) -> DecodeError:
    """The error for values of which many may be in a row, and all of them large."""
    return DecodeError(
        f"{_WHAT} has nested values in {path!r} that share bytes (a dictionary or DELTA_BYTE_ARRAY) "
        f"and may grow to more than {limit} bytes. If it is what you expect, open the store with a "
        "larger max_decompressed_bytes"
    )
