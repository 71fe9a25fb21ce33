"""Entries as a pandas DataFrame: one row each, metadata flattened to columns.

A column of metadata is called what its field is called in a query: ``params.lr`` for nested names,
names with dots or blanks in backquotes. Where a row has no value, or null, there is NA.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blobstore.entry import Entry
from blobstore.query import Field, print_field

if TYPE_CHECKING:
    import pandas as pd

SYSTEM = ("key", "data_type", "size", "version", "created_at", "updated_at")
"""Columns that each frame begins with: what the index knows of every entry."""

_TAKEN = re.compile(rf"(?:metadata\.)*(?:{'|'.join(SYSTEM)})")
_INT64 = range(-(2**63), 2**63)
_EXACT = range(-(2**53), 2**53 + 1)


def to_frame(entries: Iterable[Entry], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """One row for each entry, in their order.

    Parameters
    ----------
    entries : iterable of Entry
    columns : sequence of str, optional
        Which columns, and in what order; one that no entry has is all NA. By default the system
        columns, then those of metadata in the order in which they are first met.
    """
    import pandas as pd

    wanted = None if columns is None else frozenset(columns)
    system: dict[str, list[Any]] = {name: [] for name in SYSTEM}
    table = _Table()
    for entry in entries:
        for name, value in zip(SYSTEM, _facts(entry), strict=True):
            system[name].append(value)
        table.add(entry.metadata, wanted)
    made: dict[str, Any] = {name: _system_column(name, values) for name, values in system.items()}
    for name, values in table.columns():
        made[name] = _column(values)
    chosen = list(made) if columns is None else list(columns)
    for name in chosen:
        if name not in made:
            made[name] = _column([None] * table.rows)
    return pd.DataFrame({name: made[name] for name in chosen}, index=pd.RangeIndex(table.rows))


class _Table:
    """Columns that grow row by row; a column that comes late, or has gaps, is filled up by None."""

    def __init__(self) -> None:
        self.rows = 0
        self._columns: dict[str, list[Any]] = {}
        self._names: dict[tuple[str, ...], str] = {}

    def add(self, metadata: Mapping[str, Any], wanted: Collection[str] | None) -> None:
        for path, value in _flatten(metadata, ()):
            name = self._names.get(path)
            if name is None:
                name = self._names[path] = column_name(path)
            if wanted is None or name in wanted:
                column = self._columns.setdefault(name, [])
                column.extend([None] * (self.rows - len(column)))
                column.append(value)
        self.rows += 1

    def columns(self) -> Iterator[tuple[str, list[Any]]]:
        for name, values in self._columns.items():
            yield name, [*values, *[None] * (self.rows - len(values))]


def column_name(path: tuple[str, ...]) -> str:
    """What the column of a metadata field is called.

    As in a query; where that is the name of a system column, ``metadata.`` stands before it.

    Examples
    --------
    >>> column_name(("params", "lr")), column_name(("odd name",)), column_name(("size",))
    ('params.lr', '`odd name`', 'metadata.size')
    """
    name = print_field(Field(path))
    return f"metadata.{name}" if _TAKEN.fullmatch(name) else name


def _flatten(
    metadata: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give each value that is no object, or an empty one, with the names that lead to it."""
    for name, value in metadata.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, (*path, name))
        else:
            yield (*path, name), value


def _facts(entry: Entry) -> tuple[Any, ...]:
    return (
        entry.key,
        entry.data_type,
        entry.size,
        entry.version,
        entry.created_us,
        entry.updated_us,
    )


def _system_column(name: str, values: list[Any]) -> Any:
    import numpy as np
    import pandas as pd

    if name.endswith("_at"):
        return pd.DatetimeIndex(np.array(values, dtype="datetime64[us]")).tz_localize("UTC")
    if name in ("size", "version"):
        return np.array(values, dtype=np.int64)
    return pd.Series(values, dtype=str)


def _column(values: list[Any]) -> Any:
    """One column of metadata; its dtype follows from its values alone, NA included.

    pandas would turn integers beside a gap into floats, and so change large ones.
    """
    import pandas as pd

    kinds = {type(value) for value in values}
    gaps = type(None) in kinds
    kinds.discard(type(None))
    if kinds == {bool}:
        return pd.array(values, dtype="boolean") if gaps else pd.Series(values, dtype=bool)
    if kinds == {str}:
        return pd.array(values, dtype="string") if gaps else pd.Series(values, dtype=str)
    numbers = [value for value in values if value is not None]
    if kinds == {int} and all(value in _INT64 for value in numbers):
        return pd.array(values, dtype="Int64") if gaps else pd.Series(values, dtype="int64")
    if kinds in ({float}, {int, float}) and all(
        type(value) is float or value in _EXACT for value in numbers
    ):
        return pd.array(values, dtype="Float64") if gaps else pd.Series(values, dtype="float64")
    filled = [pd.NA if value is None else value for value in values]
    return pd.Series(filled, dtype=object)
