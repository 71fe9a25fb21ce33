"""User metadata: what may be given, the JSON text it is stored as, and how it is changed.

The text is compact JSON (RFC 8259) with names in the caller's order. NumPy scalars, datetimes,
dates, paths, UUIDs, enums and tuples are accepted and stored as their JSON form; whatever JSON
cannot say exactly is refused, and the message names the place.
"""

from __future__ import annotations

import datetime
import enum
import json
import math
import uuid
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from blobstore.errors import InvalidMetadataError

MAX_DEPTH = 100
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def to_text(metadata: Mapping[str, Any] | None) -> str:
    """Turn metadata into the JSON text that is stored.

    Parameters
    ----------
    metadata : mapping or None
        Names to JSON values, nested at will up to 100 levels. Never changed.

    Returns
    -------
    str
        Compact JSON; ``{}`` for None.

    Raises
    ------
    InvalidMetadataError
        Not a mapping, or something in it is no JSON; the message gives its path.

    Examples
    --------
    >>> to_text({"f1": 0.92, "tags": ("a", "b")})
    '{"f1":0.92,"tags":["a","b"]}'
    >>> to_text({"a": {"b": [1, float("nan")]}})
    Traceback (most recent call last):
    ...
    blobstore.errors.InvalidMetadataError: metadata["a"]["b"][1] is nan, which JSON does not have: store None, or a string
    """
    if metadata is None:
        return "{}"
    if not isinstance(metadata, Mapping):
        raise InvalidMetadataError(
            f"metadata must be a dict of names and JSON values, not {type(metadata).__name__}"
        )
    plain = _plain(metadata, (), 0)
    try:
        return _encode(plain)
    except ValueError as exc:  # Python refuses to write integers of over 4,300 digits
        raise InvalidMetadataError(f"metadata cannot be written as JSON: {exc}") from exc


def merge(text: str, changes: str, *, replace: bool = False) -> str:
    """Apply a shallow change: names of `changes` replace those of `text`, other names stay.

    Examples
    --------
    >>> merge('{"a":1,"b":2}', '{"b":3}')
    '{"a":1,"b":3}'
    """
    if replace:
        return changes
    merged = json.loads(text)
    merged.update(json.loads(changes))
    return _encode(merged)


def _plain(value: Any, path: tuple[str | int, ...], depth: int) -> Any:
    """Rebuild `value` from the exact types that JSON has."""
    kind = type(value)
    if kind is str:
        return _text(value, path)
    if kind is bool or kind is int or value is None:
        return value
    if kind is float:
        return _number(value, path)
    if depth > MAX_DEPTH:
        raise InvalidMetadataError(
            f"{_where(path)} is nested more than {MAX_DEPTH} levels deep (or contains itself): "
            "flatten it, or store it as an object of its own"
        )
    if isinstance(value, Mapping):
        return {
            _name(name, path): _plain(item, (*path, name), depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, (*path, i), depth + 1) for i, item in enumerate(value)]
    return _plain(_convert(value, path), path, depth + 1)


def _convert(value: Any, path: tuple[str | int, ...]) -> Any:
    """Turn a value of a type that JSON lacks, but that has one obvious JSON form, into it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, PurePath | uuid.UUID):
        return str(value)
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return _numpy_scalar(value, path)
    raise InvalidMetadataError(
        f"{_where(path)} is a {type(value).__name__}, which JSON does not have: convert it (a set "
        "to a sorted list, bytes to text), or store it as an object of its own"
    )


def _numpy_scalar(value: Any, path: tuple[str | int, ...]) -> Any:
    """The JSON form of a NumPy scalar or 0-d array, told by its dtype (NumPy is not imported)."""
    kind = value.dtype.kind
    if kind == "M" and str(value) != "NaT":
        return str(value)
    plain = value.item()
    if kind in "mM" or type(plain) not in (bool, int, float, str):
        raise InvalidMetadataError(
            f"{_where(path)} is a NumPy {value.dtype}, which JSON does not have: convert it first"
        )
    return plain


def _text(value: str, path: tuple[str | int, ...]) -> str:
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise InvalidMetadataError(
                f"{_where(path)} has a lone surrogate at position {exc.start}, which UTF-8 cannot "
                "hold: decode file names with errors='replace'"
            ) from exc
    return value


def _number(value: float, path: tuple[str | int, ...]) -> float:
    if not math.isfinite(value):
        raise InvalidMetadataError(
            f"{_where(path)} is {value}, which JSON does not have: store None, or a string"
        )
    return value


def _name(name: Any, path: tuple[str | int, ...]) -> str:
    if not isinstance(name, str):
        raise InvalidMetadataError(
            f"{_where(path)} has the name {name!r}, a {type(name).__name__}; names in JSON are "
            "strings: use str(name)"
        )
    return _text(str.__str__(name), (*path, name))


def _where(path: tuple[str | int, ...]) -> str:
    return "metadata" + "".join(f"[{json.dumps(p)}]" for p in path)
