"""pandas: a `DataFrame` or `Series` as one Parquet file, equal when it comes back.

Any tool reads the file: the columns have their names, types and values as Parquet has them, and
the standard ``pandas`` metadata. What Parquet does not know (dtypes, indexes, categories, attrs) is
JSON in the metadata ``blobstore``. A frame of which any part would come back otherwise is refused,
and pickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from blobstore.digest import Canonical
from blobstore.errors import DecodeError, InvalidInputError, UnsupportedTypeError
from blobstore.handlers.arrow import update_blocks
from blobstore.handlers.frame_columns import (
    Builder,
    Column,
    ColumnType,
    Facts,
    NdArray,
    NumpyType,
    check_dtype,
)
from blobstore.handlers.frame_schema import (
    check_index,
    column_of,
    decode_value,
    encode_value,
    inline_facts,
    inline_index,
    labels_in_ranges,
    logical_facts,
    restore_index,
    stored_index,
    stored_types,
    type_of,
)
from blobstore.handlers.leaves import LeafHandler
from blobstore.handlers.parquet import ParquetPart, TableContent, check_room, decoding
from blobstore.handlers.parquet_growth import check_growth
from blobstore.handlers.parquet_names import field_names, pandas_metadata
from blobstore.limits import UNLIMITED, bomb
from blobstore.protocols import (
    Plan,
    StoredPart,
    WriteOptions,
)
from blobstore.streams import Hasher

FACTS_KEY = b"blobstore"

_READ_BYTES = 64 << 20
_MAX_FACTS = 32 << 20
_SHOWN = 100
_BYTES_OF_LABEL = 64  # of a number that values are looked up among
_FEW_BLOCKS = 64
_TYPED = ("format", "columns", "types", "index")  # which a digest says in its own way


@dataclass(frozen=True)
class _Content(TableContent):
    """A frame or series taken apart; nothing large is copied but text that is not Arrow's."""

    obj: Any
    facts: Facts
    columns: tuple[Column, ...]
    names: tuple[str, ...]
    rows: int

    @cached_property
    def facts_text(self) -> str:
        return json.dumps(self.facts, separators=(",", ":"))

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self.columns)

    def logical(self) -> Any:
        """All but the values, for a digest."""
        obj = self.obj
        series = isinstance(obj, pd.Series)
        facts = {name: value for name, value in self.facts.items() if name not in _TYPED}
        labels = None if series else logical_facts(obj.columns, self.facts["columns"], inline=True)
        index = logical_facts(obj.index, self.facts["index"], inline=False)
        types = [column.type.logical() for column in self.columns[: len(self.facts["types"])]]
        levels = self.columns[len(types) :] if obj.index.nlevels == 1 else ()
        return facts, labels, index, types, [column.type.logical() for column in levels]

    def schema(self) -> pa.Schema:
        fields = zip(self.names, self.columns, strict=True)
        metadata = {b"pandas": pandas_metadata(self.facts, self.names, self.columns)}
        return pa.schema(
            [pa.field(name, column.type.arrow_type) for name, column in fields], metadata
        )

    def table(self, start: int, stop: int, schema: pa.Schema) -> pa.Table:
        arrays = [column.rows(start, stop) for column in self.columns]
        return pa.Table.from_arrays(arrays, schema=schema)


def _take_apart(obj: pd.DataFrame | pd.Series[Any]) -> _Content:
    """Find out all facts; what cannot be kept is found by dtype first, by value last."""
    frame = obj if isinstance(obj, pd.DataFrame) else None
    for dtype in (obj.dtype,) if isinstance(obj, pd.Series) else obj.dtypes:
        check_dtype(dtype)
    check_index(obj.index)
    labels = {"name": encode_value(obj.name)} if isinstance(obj, pd.Series) else {}
    if frame is not None:
        labels = {"columns": inline_facts(frame.columns)}
    attrs = encode_value(obj.attrs)
    index_facts, index_columns = stored_index(obj.index)
    count = 1 if frame is None else frame.shape[1]
    arrays = (
        (obj.array,) if isinstance(obj, pd.Series) else (obj.iloc[:, i].array for i in range(count))
    )
    data = [column_of(array) for array in arrays]
    facts = {
        "format": PandasHandler.format_version,
        "kind": "series" if frame is None else "frame",
        "rows": len(obj),
        **labels,
        "types": [column.type.facts() for column in data],
        "index": index_facts,
        "attrs": attrs,
        "allows_duplicate_labels": obj.flags.allows_duplicate_labels,
    }
    axis = [obj.name] if isinstance(obj, pd.Series) else list(obj.columns)
    names = field_names(axis, list(obj.index.names)[: len(index_columns)])
    content = _Content(obj, facts, (*data, *index_columns), names, len(obj))
    if len(content.facts_text) > _MAX_FACTS:
        raise UnsupportedTypeError("the labels and categories are too large for a Parquet footer")
    return content


class _FramePart(ParquetPart):
    """A frame about to become a Parquet file."""

    handler = "pandas"

    def __init__(self, content: _Content, options: WriteOptions) -> None:
        super().__init__(content, options, {FACTS_KEY: content.facts_text})
        self._content = content

    def digest(self, hasher: Hasher) -> None:
        """Feed facts and values; codec, row groups and field names have no part in it."""
        content = self._content
        Canonical(hasher).add(("blobstore.pandas", 1, content.logical()))
        for column in content.columns:
            update_blocks(hasher, content.rows, column.rows)


class PandasHandler(LeafHandler):
    """Frames and series as Parquet.

    Examples
    --------
    >>> from blobstore.streams import BytesSource, MemorySink
    >>> frame = pd.DataFrame({"epoch": [1, 2], "loss": [0.5, 0.25]})
    >>> handler = PandasHandler()
    >>> plan = handler.plan(frame, WriteOptions())
    >>> with MemorySink() as sink:
    ...     plan.parts[0].write(sink)
    >>> part = StoredPart("data", BytesSource(sink.content), "lz4", "pandas", 1)
    >>> handler.read({"data": part}, plan.info, columns=["loss"])
       loss
    0  0.50
    1  0.25
    """

    name: ClassVar[str] = "pandas"
    format_version: ClassVar[int] = 1
    type_names: ClassVar[tuple[str, ...]] = (
        "pandas.DataFrame",
        "pandas.Series",
        "pandas.core.frame.DataFrame",
        "pandas.core.series.Series",
    )

    def can_handle(self, obj: Any) -> bool:
        """Whether it is a frame or series, and of no subclass; `plan` looks closer."""
        return type(obj) in (pd.DataFrame, pd.Series)

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Take a frame apart.

        Raises
        ------
        UnsupportedTypeError
            Something in it would not come back from Parquet as it is.
        """
        if not self.can_handle(obj):
            raise UnsupportedTypeError(f"{type(obj)!r} is neither a DataFrame nor a Series")
        try:
            content = _take_apart(obj)
        except RecursionError as exc:
            raise UnsupportedTypeError("attrs or a label are nested too deeply") from exc
        data_type = "dataframe" if isinstance(obj, pd.DataFrame) else "series"
        return Plan(data_type, _info(obj), (_FramePart(content, options),))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Rebuild a frame or series.

        Parameters
        ----------
        parts, info : mapping
        columns : list, optional
            Labels of the columns of a frame to read, in the order wanted; only those are read.

        Raises
        ------
        InvalidInputError
            Another option, or a label that the frame does not have.
        DecodeError
            The part is not what this handler writes.
        """
        wanted = _read_options(options)
        if set(parts) != {"data"}:
            raise DecodeError(f"a frame has one part, 'data', not {sorted(parts)}")
        part = parts["data"]
        limit = part.trust.growth_limit(part.source.size)
        with decoding(part.source, whole=wanted is None) as file:
            return _read_file(file, wanted, limit)


def _info(obj: pd.DataFrame | pd.Series[Any]) -> dict[str, Any]:
    """What is nice to see in the index; reading needs none of it."""
    shape = [int(size) for size in obj.shape]
    if isinstance(obj, pd.Series):
        return {"shape": shape, "name": _shown(obj.name), "dtype": str(obj.dtype)}
    columns = [_shown(label) for label in obj.columns[:_SHOWN]]
    return {
        "shape": shape,
        "columns": columns,
        "dtypes": [str(d) for d in obj.dtypes.iloc[:_SHOWN]],
    }


def _shown(label: Any) -> str | None:
    return None if label is None else str(label).encode("utf-8", "replace").decode()


def _read_options(options: Mapping[str, Any]) -> list[Any] | None:
    unknown = sorted(set(options) - {"columns"})
    if unknown:
        raise InvalidInputError(f"a frame has no read option {unknown[0]!r}: there is 'columns'")
    columns = options.get("columns")
    if columns is None:
        return None
    if not isinstance(columns, list | tuple | pd.Index):
        raise InvalidInputError(f"columns must be a list of labels, not {columns!r}")
    return list(columns)


def _read_file(file: Any, wanted: list[Any] | None, limit: int) -> pd.DataFrame | pd.Series[Any]:
    parquet = pq.ParquetFile(file, pre_buffer=False)
    text = (parquet.metadata.metadata or {}).get(FACTS_KEY)
    if text is None:
        raise DecodeError("this Parquet file was not written by blobstore: read it with pandas")
    facts = json.loads(text)
    if facts["format"] > PandasHandler.format_version:
        raise DecodeError(f"the frame has format {facts['format']}: upgrade blobstore to read it")
    series = facts["kind"] == "series"
    if wanted is not None and series:
        raise InvalidInputError("a Series has no columns to choose from: leave out columns=")
    _check_ranges(facts, limit)
    axis = None if series else inline_index(facts["columns"])
    if axis is not None and len(axis) != len(facts["types"]):
        raise DecodeError(f"a frame has {len(axis)} labels and {len(facts['types'])} columns")
    places = list(range(len(facts["types"])))
    if axis is not None and wanted is not None:
        places = _places(axis, wanted)
        axis = axis.take(places)
    types = [type_of(facts["types"][place]) for place in places]
    fields = _fields(parquet, facts, places)
    names = [parquet.schema_arrow.names[field] for field in fields]
    kinds = (*types, *stored_types(facts["index"]))
    dense = {name for name, kind in zip(names, kinds, strict=True) if not kind.keeps_dictionary}
    groups = range(parquet.num_row_groups)
    check_growth(parquet, file, groups, names, limit, written_out=dense)
    arrays, index = _read_columns(parquet, facts, types, fields)
    if series:
        obj: Any = _series(arrays[0], index)
        obj.name = decode_value(facts["name"])
    else:
        obj = _frame(arrays, types, index)
        obj.columns = axis
    obj.attrs = decode_value(facts["attrs"])
    obj.flags.allows_duplicate_labels = facts["allows_duplicate_labels"]
    made: pd.DataFrame | pd.Series[Any] = obj
    return made


def _check_ranges(facts: Facts, limit: int) -> None:
    """Refuse categories and levels that are ranges, which are written out to look values up."""
    if limit >= UNLIMITED:
        return
    index = [] if facts["index"]["kind"] == "range" else facts["index"]
    labels = labels_in_ranges([facts["types"], index])
    if labels * _BYTES_OF_LABEL > limit:
        raise bomb("a frame", limit)


def _places(axis: pd.Index[Any], wanted: list[Any]) -> list[int]:
    """Where the wanted columns are; all those of a label that occurs more than once."""
    by_label: dict[Any, list[int]] = {}
    for place, label in enumerate(axis):
        by_label.setdefault(label, []).append(place)
    try:
        return [place for label in wanted for place in by_label[label]]
    except (KeyError, TypeError) as exc:
        known = ", ".join(repr(label) for label in axis[:20])
        raise InvalidInputError(f"there is no column {exc.args[0]!r}: there are {known}") from exc


def _fields(parquet: Any, facts: Facts, places: list[int]) -> list[int]:
    """Which columns of the file hold the wanted ones and the index."""
    rows, names = facts["rows"], parquet.schema_arrow.names
    if len(names) != len(facts["types"]) + len(stored_types(facts["index"])):
        raise DecodeError(f"{len(names)} columns in the file are not those that its facts tell of")
    if names and parquet.metadata.num_rows != rows:
        raise DecodeError(f"the file has {parquet.metadata.num_rows} rows, its facts say {rows}")
    return [*places, *range(len(facts["types"]), len(names))]


def _read_columns(
    parquet: Any, facts: Facts, types: list[ColumnType], fields: list[int]
) -> tuple[list[Any], pd.Index[Any]]:
    """Read columns and the row index, one row group at a time."""
    rows, names = facts["rows"], parquet.schema_arrow.names
    index_types = stored_types(facts["index"])
    check_room([kind.arrow_type for kind in (*types, *index_types)], rows)
    block = _one_block(types, rows)
    builders = [
        kind.builder(rows, block[i] if block is not None and i < len(types) else None)
        for i, kind in enumerate((*types, *index_types))
    ]
    _fill(parquet, [names[i] for i in fields], builders)
    finished = [builder.finish() for builder in builders]
    index = restore_index(facts["index"], finished[len(types) :])
    if len(index) != rows:
        raise DecodeError(f"the index has {len(index)} rows, the frame {rows}")
    return finished[: len(types)], index


def _one_block(types: list[ColumnType], rows: int) -> NdArray | None:
    """Room for all columns in one array, as pandas would keep them, if they are of one type."""
    first = types[0] if types else None
    if isinstance(first, NumpyType) and all(kind == first for kind in types):
        return np.empty((len(types), rows), first.dtype)
    return None


def _fill(parquet: Any, names: list[str], builders: list[Builder]) -> None:
    """Read a few columns of a row group at a time, so that little is held besides the result."""
    targets: dict[str, list[Builder]] = {}
    for name, builder in zip(names, builders, strict=True):
        targets.setdefault(name, []).append(builder)
    for group in range(parquet.num_row_groups):
        facts = parquet.metadata.row_group(group)
        each = max(1, facts.total_byte_size // facts.num_columns) if names else 1
        for some in _batches(list(targets), max(1, _READ_BYTES // each)):
            table = parquet.read_row_group(group, columns=some)
            for name in some:  # by name, not position: asking for "a" also brings "a.b"
                for chunk in table.column(name).chunks:
                    for builder in targets[name]:
                        builder.add(chunk, shared=len(targets[name]) > 1)


def _batches(names: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _series(values: Any, index: pd.Index[Any]) -> pd.Series[Any]:
    dtype = object if isinstance(values, np.ndarray) and values.dtype == object else None
    return pd.Series(values, index=index, dtype=dtype, copy=False)


def _frame(arrays: list[Any], types: list[ColumnType], index: pd.Index[Any]) -> pd.DataFrame:
    """A frame over the arrays themselves, or over few blocks made of them if they are many."""
    if not arrays:
        return pd.DataFrame(index=index)
    base = arrays[0].base if isinstance(types[0], NumpyType) else None
    if isinstance(base, np.ndarray) and base.shape == (len(arrays), len(index)):
        return pd.DataFrame(base.T, index=index, copy=False)
    series = {i: _series(values, index) for i, values in enumerate(arrays)}
    return pd.DataFrame(series, index=index, copy=len(arrays) > _FEW_BLOCKS)
