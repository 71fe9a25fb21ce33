"""Tables: Parquet, and CSV where the key says so; what pandas wrote comes back as pandas."""

from __future__ import annotations

import importlib.util
import mmap
import sys
from pathlib import Path
from typing import Any, ClassVar

from blobstore.errors import InvalidInputError, UnsupportedTypeError
from blobstore.files.options import lent, reading, refuse_options, wanted_names
from blobstore.files.trust import FileTrust, growth_limit
from blobstore.limits import UNLIMITED, bomb
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.registry import load_module, make_handler
from blobstore.streams import Sink, Source

_OPTIONS = WriteOptions("zstd", 3)
_PANDAS = ("pandas.DataFrame", "pandas.core.frame.DataFrame")
_PANDAS_SERIES = ("pandas.Series", "pandas.core.series.Series")
_POLARS = ("polars.dataframe.frame.DataFrame", "polars.lazyframe.frame.LazyFrame")
_ARROW = ("pyarrow.lib.Table",)
_BY_ARROW = b"blobstore.arrow"
"""Notes in the metadata of a schema that it was a table of pyarrow."""
_LIBRARIES = ("polars", "pandas", "pyarrow")


def library_of(obj: Any) -> str:
    """Which library an object is of: "pandas", "polars" ..."""
    return type(obj).__module__.partition(".")[0]


def usual_library() -> str:
    """The library for tables that do not say: the one that is in use, else polars if it is here."""
    used = [name for name in ("polars", "pandas") if name in sys.modules]
    if len(used) == 1:
        return used[0]
    return "polars" if importlib.util.find_spec("polars") is not None else "pandas"


def _wanted_library(options: dict[str, Any], default: str, *, lazy: bool) -> str:
    wanted = options.pop("library", None)
    if wanted is None:
        return default
    if lazy and wanted != "polars":
        raise InvalidInputError(f"lazy=True gives a frame of polars, not of {wanted!r}")
    if wanted not in _LIBRARIES:
        raise InvalidInputError(f"library must be one of {', '.join(_LIBRARIES)}, not {wanted!r}")
    return str(wanted)


class ParquetFormat(FileFormat):
    """Frames of pandas and polars, tables of pyarrow; whatever Parquet does not hold exactly is left to others.

    ``columns=[...]`` reads only those; ``lazy=True`` gives a LazyFrame, ``library="pandas"``,
    "polars" or "pyarrow" a table of that library.
    """

    name = "parquet"
    extensions = (".parquet", ".pq")
    priority = 70
    type_names: ClassVar[tuple[str, ...]] = (*_PANDAS, *_PANDAS_SERIES, *_POLARS, *_ARROW)

    def can_handle(self, obj: Any) -> bool:
        """Frames, tables, and series of pandas."""
        cls = type(obj)
        return f"{cls.__module__}.{cls.__qualname__}" in self.type_names

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write row groups as they are made.

        Raises
        ------
        UnsupportedTypeError
            The frame would not come back as it is.
        """
        library = library_of(obj)
        if library == "pyarrow":
            obj = obj.replace_schema_metadata({**(obj.schema.metadata or {}), _BY_ARROW: b"1"})
        handler = make_handler("arrow" if library == "pyarrow" else library)
        (part,) = handler.plan(obj, _OPTIONS).parts
        if not part.encoding().extension.startswith(".parquet"):
            raise UnsupportedTypeError(f"{context.key!r}: Parquet does not hold this frame exactly")
        part.write(sink)

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read a table."""
        import pyarrow.parquet as pq

        from blobstore.handlers.parquet import MALFORMED
        from blobstore.handlers.parquet_growth import check_growth

        refuse_options(context, options, "columns", "lazy", "library")
        with reading(context, OSError, *MALFORMED):
            with source.open() as file:
                metadata = pq.read_metadata(file)
            footer = metadata.metadata or {}
            by_us, by_pandas = b"blobstore" in footer, b"pandas" in footer
            default = "pandas" if by_us or by_pandas else usual_library()
            if _BY_ARROW in footer:
                default = "pyarrow"
            lazy = bool(options.pop("lazy", False))
            library = _wanted_library(options, "polars" if lazy else default, lazy=lazy)
            if library == "pandas" and by_us:
                return _by_handler("pandas", source, context, {}, options)
            if library == "polars":
                info = {"kind": "lazy" if lazy else "frame", "rows": metadata.num_rows}
                return _by_handler("polars", source, context, info, options)
            columns = options.get("columns")
            with source.open() as file, pq.ParquetFile(file) as parquet:
                known = parquet.schema_arrow.names
                for column in columns or ():
                    if column not in known:
                        raise InvalidInputError(
                            f"there is no column {column!r}: there are {', '.join(known)}",
                            key=context.key,
                        )
                groups = range(parquet.num_row_groups)
                check_growth(parquet, file, groups, columns, growth_limit(context, source.size))
                table = parquet.read(columns)
            if columns is not None:
                table = table.select(columns)
            notes = {k: v for k, v in (table.schema.metadata or {}).items() if k != _BY_ARROW}
            table = table.replace_schema_metadata(notes or None)
            if library == "pyarrow":
                return table
            _check_objects(table, growth_limit(context, source.size), repr(context.key))
            return table.to_pandas()


def _check_objects(table: Any, limit: int, what: str) -> None:
    """Refuse a table of which pandas would make too many Python objects."""
    from blobstore.handlers.dense import object_bytes

    chunks = (chunk for column in table.columns for chunk in column.chunks)
    if limit < UNLIMITED and sum(map(object_bytes, chunks)) > limit:
        raise bomb(what, limit)


def _by_handler(
    name: str,
    source: Source,
    context: FileContext,
    info: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    handler = make_handler(name)
    limits = FileTrust.of(context).limits
    part = StoredPart("data", source, "none", name, handler.format_version, limits)
    return handler.read({"data": part}, info, **options)


class CsvFormat(FileFormat):
    """Frames as text, where the key says so: types are guessed on reading, numbers of rows dropped.

    A frame with an index that says more is refused.

    ``library="pandas"`` or "polars", ``columns=[...]``, ``lazy=True``.
    """

    name = "csv"
    extensions = (".csv", ".tsv")
    priority = 65
    type_names: ClassVar[tuple[str, ...]] = (*_PANDAS, *_POLARS)
    by_name_only: ClassVar[bool] = True

    def can_handle(self, obj: Any) -> bool:
        """Frames."""
        cls = type(obj)
        return f"{cls.__module__}.{cls.__qualname__}" in self.type_names

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write a header and lines."""
        separator = _separator(context)
        if library_of(obj) == "pandas":
            _check_for_csv(obj, context)
            with lent(sink, context) as path:
                _write_pandas(obj, path, separator, context)
            return
        import polars as pl

        frame = obj.collect() if isinstance(obj, pl.LazyFrame) else obj
        if not frame.columns:
            raise _no_columns(context)
        try:
            with lent(sink, context) as path:
                frame.write_csv(path, separator=separator)
        except pl.exceptions.ComputeError as exc:
            raise UnsupportedTypeError(
                f"{context.key!r} cannot be written as a {context.extension} file: {exc}"
            ) from exc

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read a table."""
        refuse_options(context, options, "columns", "lazy", "library")
        lazy = bool(options.pop("lazy", False))
        library = _wanted_library(options, "polars" if lazy else usual_library(), lazy=lazy)
        columns, separator = wanted_names(options, context, "columns"), _separator(context)
        if library == "polars":
            pl = load_module("polars")
            with reading(context, pl.exceptions.PolarsError, OSError), source.open() as file:
                try:
                    read = pl.read_csv(file, columns=columns, separator=separator)
                except pl.exceptions.ColumnNotFoundError as exc:
                    raise InvalidInputError(
                        f"{context.key!r} has not all of the columns {columns!r}", key=context.key
                    ) from exc
                return read.lazy() if lazy else read
        import pandas as pd

        with reading(context, ValueError, OSError), source.open() as file:
            frame = pd.read_csv(file, sep=separator, usecols=columns and (columns.__contains__))
            if unknown := set(columns or ()) - set(frame.columns):
                raise InvalidInputError(
                    f"{context.key!r} has no column {min(unknown)!r}", key=context.key
                )
        if columns is not None:
            frame = frame[columns]
        if library == "pyarrow":
            import pyarrow as pa

            return pa.Table.from_pandas(frame)
        return frame


def _check_for_csv(frame: Any, context: FileContext) -> None:
    """Refuse a frame of pandas of which a file of lines would lose something.

    Raises
    ------
    UnsupportedTypeError
    """
    if not _is_mere_count(frame.index):
        raise UnsupportedTypeError(
            f"{context.key!r}: a {context.extension} file has no index: store "
            "frame.reset_index(), or frame.reset_index(drop=True) to lose it"
        )
    if frame.columns.nlevels > 1 or not frame.columns.is_unique:
        raise UnsupportedTypeError(
            f"{context.key!r}: a {context.extension} file has one line of names, each of another "
            "column: give the columns of the frame such names"
        )
    if frame.shape[1] == 0:
        raise _no_columns(context)


def _write_pandas(frame: Any, path: Path, separator: str, context: FileContext) -> None:
    try:
        frame.to_csv(path, index=False, sep=separator)
        if _holds(path, b"\r"):
            # In a text, where it would be read as the end of a line. It is quoted only where lines
            # end with it.
            frame.to_csv(path, index=False, sep=separator, lineterminator="\r\n")
    except UnicodeEncodeError as exc:
        raise UnsupportedTypeError(
            f"{context.key!r}: a text with a lone surrogate cannot be in a {context.extension} "
            f"file: {exc}"
        ) from exc


def _holds(path: Path, what: bytes) -> bool:
    """Whether there is a byte anywhere in a file that is not empty; it may be larger than memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(what) != -1


def _no_columns(context: FileContext) -> UnsupportedTypeError:
    return UnsupportedTypeError(
        f"{context.key!r}: a {context.extension} file of a frame without columns could not be read"
    )


def _is_mere_count(index: Any) -> bool:
    """Whether an index only numbers the rows, with gaps where some were taken out."""
    return index.nlevels == 1 and index.name is None and index.dtype.kind in "iu"


def _separator(context: FileContext) -> str:
    return "\t" if context.extension == ".tsv" else ","
