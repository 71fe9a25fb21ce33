"""polars: frames, lazy frames and series as Parquet that any tool reads, equal when they come back.

The columns go through Arrow. The schema of the frame is compared with what comes back of an empty
one, so what Parquet or Arrow would change (128-bit integers, objects) is left to other handlers.
A lazy frame is computed when it is stored, and comes back as a lazy frame over the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa

from blobstore.digest import Canonical
from blobstore.errors import DecodeError, InvalidInputError, UnsupportedTypeError
from blobstore.handlers.arrow import update_blocks
from blobstore.handlers.dense import dense_bytes, has_dictionary, is_text_dictionary
from blobstore.handlers.leaves import LeafHandler
from blobstore.handlers.parquet import TableContent
from blobstore.handlers.tables import (
    IpcPart,
    TablePart,
    Wanted,
    plain_columns,
    read_table,
    through_parquet,
)
from blobstore.limits import UNLIMITED, bomb
from blobstore.protocols import Plan, StoredPart, WriteOptions
from blobstore.streams import Hasher

_SHOWN = 100
_REFUSALS = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    pa.ArrowException,
    TypeError,
    ValueError,
)
"""What polars raises for Arrow data that it does not take."""
_KINDS = {"frame": "dataframe", "lazy": "dataframe", "series": "series"}


class _PolarsContent(TableContent):
    """A frame, converted to Arrow a stretch at a time."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame
        self.rows = frame.height

    @property
    def nbytes(self) -> int:
        return int(self.frame.estimated_size())

    def schema(self) -> pa.Schema:
        return _arrow(self.frame.clear()).schema

    def table(self, start: int, stop: int, schema: pa.Schema) -> pa.Table:
        return _arrow(self.frame.slice(start, stop - start)).cast(schema)

    def digest(self, hasher: Hasher, kind: str) -> None:
        """Feed names, types and values."""
        frame, schema = self.frame, self.schema()
        types = [(name, _described(dtype)) for name, dtype in frame.schema.items()]
        Canonical(hasher).add(("blobstore.polars", 1, kind, frame.height, types))
        for place in range(frame.width):
            update_blocks(
                hasher,
                frame.height,
                lambda start, stop, i=place: self._column(i, start, stop, schema),  # type: ignore[misc]
            )

    def _column(self, place: int, start: int, stop: int, schema: pa.Schema) -> pa.ChunkedArray:
        series = self.frame.to_series(place).slice(start, stop - start)
        return _arrow(series.to_frame()).cast(pa.schema([schema.field(place)])).column(0)


class PolarsHandler(LeafHandler):
    """Frames, lazy frames and series as Parquet.

    `read` takes ``columns=[...]`` and ``rows=slice(...)``.

    Examples
    --------
    >>> plan = PolarsHandler().plan(pl.DataFrame({"x": [1, 2], "y": ["a", None]}), WriteOptions())
    >>> plan.info
    {'kind': 'frame', 'rows': 2, 'shape': [2, 2], 'columns': ['x', 'y'], 'dtypes': ['Int64', 'String']}
    """

    name: ClassVar[str] = "polars"
    type_names: ClassVar[tuple[str, ...]] = (
        "polars.dataframe.frame.DataFrame",
        "polars.lazyframe.frame.LazyFrame",
        "polars.series.series.Series",
    )

    def can_handle(self, obj: Any) -> bool:
        """Whether it is a frame or series, and of no subclass."""
        return type(obj) in (pl.DataFrame, pl.LazyFrame, pl.Series)

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Choose the format; a lazy frame is computed.

        Raises
        ------
        UnsupportedTypeError
            It would not come back from Arrow as it is.
        """
        if not self.can_handle(obj):
            raise UnsupportedTypeError(f"{type(obj)!r} is no frame and no series of polars")
        kind, frame = _as_frame(obj)
        content = _PolarsContent(frame)
        part_class = TablePart if _fits_parquet(frame) else IpcPart

        def feed(hasher: Hasher) -> None:
            content.digest(hasher, kind)

        part = part_class(self.name, content, options, feed)
        return Plan(_KINDS[kind], _info(kind, frame), (part,))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Read a frame or series, or what is wanted of it.

        Parameters
        ----------
        parts, info : mapping
        columns : list of str, optional
            The columns of a frame to read, in the order wanted; only those are read.
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
            series = _KINDS[kind] == "series"
        except (KeyError, TypeError) as exc:
            raise DecodeError(f"a frame was stored without its {exc}") from exc
        wanted = Wanted.of(self, options, "columns", "rows")
        if series and wanted.columns is not None:
            raise InvalidInputError("a series has no columns to choose from: leave out columns=")
        table = read_table(part, rows, wanted)
        _check_growth(table, part.trust.growth_limit(part.source.size))
        frame = _from_arrow(table)
        if kind == "lazy":
            return frame.lazy()
        if kind == "frame":
            return frame
        if frame.width != 1:
            raise DecodeError(f"{frame.width} columns are stored in the place of a series")
        return frame.to_series()


def _check_growth(table: pa.Table, limit: int) -> None:
    """Refuse dictionaries that polars would write out: all but those of text."""
    if limit >= UNLIMITED:
        return
    written_out = [
        column
        for column, kind in zip(table.columns, table.schema.types, strict=True)
        if has_dictionary(kind) and not is_text_dictionary(kind)
    ]
    if sum(dense_bytes(chunk) for column in written_out for chunk in column.chunks) > limit:
        raise bomb("a frame", limit)


def _as_frame(obj: Any) -> tuple[str, pl.DataFrame]:
    if isinstance(obj, pl.Series):
        return "series", obj.to_frame()
    if isinstance(obj, pl.LazyFrame):
        return "lazy", obj.collect()
    return "frame", obj


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow()


def _from_arrow(table: pa.Table) -> pl.DataFrame:
    try:
        found = _frame_of(table)
    except _REFUSALS as exc:
        raise DecodeError(f"polars does not take what is stored: {exc}") from exc
    return found


def _frame_of(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table, rechunk=False)
    assert isinstance(frame, pl.DataFrame)
    frame.columns = table.column_names  # polars gives a column without a name one
    return frame


def _empty(schema: pa.Schema) -> Any:
    return _frame_of(pa.Table.from_batches([], schema)).schema


def _fits_parquet(frame: pl.DataFrame) -> bool:
    """Whether an empty frame of that schema comes back from Parquet, or else from Arrow.

    Raises
    ------
    UnsupportedTypeError
        From neither.
    """
    empty = frame.clear()
    try:
        schema = _arrow(empty).schema
        back = through_parquet(schema) if plain_columns(schema) else None
        if back is not None and _empty(back) == empty.schema:
            return True
        exact = _empty(schema) == empty.schema
    except _REFUSALS as exc:
        raise UnsupportedTypeError(f"Arrow does not hold this frame: {exc}") from exc
    if not exact or (frame.height and not frame.width):
        raise UnsupportedTypeError("a frame of this schema would come back from Arrow changed")
    return False


def _described(dtype: Any) -> Any:
    """A dtype as plain values that say all of it."""
    name = type(dtype).__name__ if isinstance(dtype, pl.DataType) else dtype.__name__
    if isinstance(dtype, pl.Enum):
        return (name, dtype.categories.to_list())
    categories = getattr(dtype, "categories", None)
    if isinstance(dtype, pl.Categorical) and categories is not None:
        place = categories.namespace(), categories.name(), str(categories.physical())
        return (name, categories.is_global(), *place)
    if isinstance(dtype, pl.Array):
        return (name, dtype.size, _described(dtype.inner))
    if isinstance(dtype, pl.List):
        return (name, _described(dtype.inner))
    if isinstance(dtype, pl.Struct):
        return (name, [(field.name, _described(field.dtype)) for field in dtype.fields])
    return str(dtype)


def _info(kind: str, frame: pl.DataFrame) -> dict[str, Any]:
    names, types = frame.columns[:_SHOWN], frame.dtypes[:_SHOWN]
    info: dict[str, Any] = {"kind": kind, "rows": frame.height}
    shape = [frame.height] if kind == "series" else list(frame.shape)
    return {**info, "shape": shape, "columns": names, "dtypes": [_shown(x) for x in types]}


def _shown(dtype: Any) -> str:
    return str(dtype)[:200]
