"""What other tools see of a frame in Parquet: field names, and the metadata of pandas itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from blobstore.handlers.frame_columns import (
    ArrowType,
    Column,
    ColumnType,
    Facts,
    MaskedType,
    NumpyType,
    StringType,
    TemporalType,
)


def field_names(labels: Sequence[Any], index_names: Sequence[Any]) -> tuple[str, ...]:
    """A name for each column of the file, all different: labels if possible, else positions.

    Examples
    --------
    >>> field_names(["a", 1], [None])
    ('a', '1', '__index_level_0__')
    >>> field_names(["1", 1], ["1"])
    ('0', '1', '__index_level_0__')
    """
    names = ["value" if label is None and len(labels) == 1 else str(label) for label in labels]
    if len(set(names)) < len(names) or not all(map(_is_utf8, names)):
        names = [str(place) for place in range(len(labels))]
    taken = set(names)
    for level, name in enumerate(index_names):
        if not isinstance(name, str) or name in taken or not _is_utf8(name):
            name = next(free for free in _level_names(level) if free not in taken)  # noqa: PLW2901
        taken.add(name)
        names.append(name)
    return tuple(names)


def _level_names(level: int) -> Iterator[str]:
    yield f"__index_level_{level}__"
    number = 0
    while True:
        yield f"__index_level_{level}_{(number := number + 1)}__"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def pandas_metadata(facts: Facts, names: Sequence[str], columns: Sequence[Column]) -> bytes:
    """The ``pandas`` metadata of Parquet, so that `pandas.read_parquet` does what it can.

    Source: "Storing pandas DataFrame objects in Apache Parquet format", pandas developer guide.
    """
    data = len(facts["types"])
    index = facts["index"]
    levels: list[Any] = list(names[data:])
    if index["kind"] == "range":
        levels = [{**index, "name": _plain_name(index["name"])}]
    shown = [
        *names[:data],
        *(_plain_name(name) for name in index.get("names", [index.get("name")])),
    ]
    described = [
        {"name": label, "field_name": name, **_types(column.type)}
        for label, name, column in zip(shown, names, columns, strict=False)
    ]
    axis = facts.get("columns", {"kind": "labels", "name": None})
    document = {
        "index_columns": levels,
        "column_indexes": [_axis(axis)],
        "columns": described,
        "attributes": {},
        "creator": {"library": "blobstore", "version": str(facts["format"])},
        "pandas_version": "2.3.0",
    }
    return json.dumps(document).encode()


def _plain_name(name: Any) -> str | None:
    return name if name is None or isinstance(name, str) else str(name)


def _axis(axis: Facts) -> Facts:
    numbers = axis["kind"] == "range" or axis.get("type") == {"kind": "numpy", "dtype": "int64"}
    kind = ("int64", "int64", None) if numbers else ("unicode", "object", {"encoding": "UTF-8"})
    name = _plain_name(axis.get("name"))
    described = dict(zip(("pandas_type", "numpy_type", "metadata"), kind, strict=True))
    return {"name": name, "field_name": name, **described}


def _types(kind: ColumnType) -> Facts:
    metadata = None
    logical = numpy = "object"
    if isinstance(kind, NumpyType):
        logical = numpy = kind.dtype.name
    elif isinstance(kind, MaskedType):
        logical, numpy = kind.name.lower(), kind.name
    elif isinstance(kind, StringType):
        logical, numpy = "unicode", "string" if kind.na == "NA" else "str"
    elif isinstance(kind, TemporalType):
        numpy = f"{'datetime' if kind.code == 'M' else 'timedelta'}64[{kind.unit}]"
        logical = "datetimetz" if kind.tz is not None else "datetime"
        if kind.tz is not None:
            metadata = {"timezone": getattr(kind.arrow_type, "tz", None)}
    elif isinstance(kind, ArrowType) and not kind.arrow_type.num_fields:
        logical, numpy = str(kind.arrow_type), f"{kind.arrow_type}[pyarrow]"
    elif kind.kind == "category":
        logical, numpy = "categorical", "int32"
    return {"pandas_type": logical, "numpy_type": numpy, "metadata": metadata}
