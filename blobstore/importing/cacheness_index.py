"""The two indexes of cacheness, in the forms that its versions gave them.

``cache_metadata.json`` is an object with ``entries``. In later versions each entry is an object with
`data_type`, `created_at`, `file_size` ... and ``metadata``, where what the user gave stands beside
`actual_path`, `storage_format`, `compression_codec` and `file_hash`. In the first versions an entry
*is* that metadata, and the rest stands in tables of their own: ``data_types``, ``creation_times``,
``access_times``, ``file_sizes``, ``cache_key_params``.

``cache_metadata.db`` is an SQLite database with a table ``cache_entries``. Its columns grew: the
first versions keep the metadata as JSON in `metadata_json`, later ones have columns for each field
and the user's in `metadata_dict`; the last ones may have the bytes themselves, in `blob_data`.

A namespace other than "default" has files and tables of its own: ``<name>_metadata.json`` and
``cache_entries_<name>``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blobstore.errors import DecodeError
from blobstore.importing import databases
from blobstore.importing.report import Unreadable

_SYSTEM = (
    "actual_path",
    "storage_format",
    "compression_codec",
    "file_hash",
    "entry_signature",
    "s3_etag",
    "inline_ext",
    "encryption_algorithm",
    "encryption_iv",
)
"""Names in an entry's metadata that cacheness put there, over the user's if need be."""

_JSON_COLUMNS = ("metadata_json", "metadata_dict", "cache_key_params")


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """What an index knows of one entry.

    Attributes
    ----------
    place : str
        The index and the key, for the report.
    key : str
    data_type : str
        "array", "object", "pandas_dataframe" ...
    system : dict
        Of the names in `_SYSTEM`, those that are known.
    user : dict
        What the user said of it, and what cacheness noted of the type.
    facts : dict
        Times, size and description.
    expires : datetime or None
    inline : bytes or None
        The content, if it is in the index itself.
    """

    place: str
    key: str
    data_type: str
    system: Mapping[str, Any]
    user: Mapping[str, Any]
    facts: Mapping[str, Any]
    expires: datetime | None
    inline: bytes | None = None

    def text(self, name: str) -> str:
        """A system field, or nothing."""
        value = self.system.get(name)
        return value if isinstance(value, str) else ""


def from_json(path: Path, place: str) -> list[IndexEntry | Unreadable]:
    """Read a JSON index.

    Raises
    ------
    DecodeError
        It is none.
    """
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise DecodeError(f"it is no JSON: {exc}") from exc
    entries = document.get("entries") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise DecodeError("it has no entries as an index of cacheness has them")
    old = isinstance(document.get("data_types"), dict)
    found: list[IndexEntry | Unreadable] = []
    for key, entry in entries.items():
        where = f"{place}: {key}"
        if not isinstance(entry, dict):
            found.append(Unreadable(where, "the index has no object for it"))
            continue
        found.append(_entry(where, key, _gathered(document, key, entry) if old else entry))
    return found


def _gathered(document: Mapping[str, Any], key: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the first form in the shape of later ones."""
    tables = {
        "data_type": "data_types",
        "created_at": "creation_times",
        "accessed_at": "access_times",
        "file_size": "file_sizes",
        "cache_key_params": "cache_key_params",
    }
    known = {}
    for name, table in tables.items():
        of_all = document.get(table)
        if isinstance(of_all, dict) and key in of_all:
            known[name] = of_all[key]
    metadata = dict(metadata)
    for name in ("description", "prefix"):
        if name in metadata:
            known[name] = metadata.pop(name)
    return {**known, "metadata": metadata}


def count_rows(path: Path, namespace: str) -> int:
    """How many entries there are.

    Raises
    ------
    DecodeError
        That cannot be told.
    """
    with databases.reading(path) as database:
        asked = f"SELECT count(*) FROM {_table(namespace)}"  # noqa: S608 - no user's text
        return int(database.execute(asked).fetchone()[0])


def from_sqlite(path: Path, place: str, namespace: str) -> Iterator[IndexEntry | Unreadable]:
    """Read an SQLite index.

    Raises
    ------
    DecodeError
        It is none, or damaged, which may show only at the end.
    """
    table = _table(namespace)
    with databases.reading(path) as database:
        if not databases.columns(database, table.strip('"')) >= {"cache_key", "data_type"}:
            raise DecodeError(f"it has no table {table} as cacheness makes it")
        asked = f"SELECT * FROM {table} ORDER BY rowid"  # noqa: S608 - no user's text
        for row in database.execute(asked):
            yield _from_row(place, dict(row))


def _table(namespace: str) -> str:
    """The quoted name of a table; the characters of a namespace were checked."""
    return '"cache_entries"' if namespace == "default" else f'"cache_entries_{namespace}"'


def _from_row(place: str, row: dict[str, Any]) -> IndexEntry | Unreadable:
    where = f"{place}: {row['cache_key']}"
    try:
        for name in _JSON_COLUMNS:
            text = row.get(name)
            row[name] = json.loads(text) if text else {}
    except (ValueError, TypeError, RecursionError) as exc:
        return Unreadable(where, f"the index has no JSON in {name}: {exc}")
    metadata = row.pop("metadata_json")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    for name in (*_SYSTEM, "metadata_dict", "object_type", "serializer"):
        if row.get(name):
            metadata[name] = row[name]
    return _entry(where, row["cache_key"], {**row, "metadata": metadata}, row.get("blob_data"))


def _entry(
    place: str, key: Any, entry: Mapping[str, Any], inline: Any = None
) -> IndexEntry | Unreadable:
    metadata = entry.get("metadata")
    user = dict(metadata) if isinstance(metadata, dict) else {}
    system = {name: user.pop(name) for name in _SYSTEM if name in user}
    for name in _SYSTEM:  # some versions have them beside the metadata
        if entry.get(name) is not None:
            system.setdefault(name, entry[name])
    queried = user.pop("metadata_dict", None)
    if isinstance(queried, str):
        try:
            queried = json.loads(queried)
        except (ValueError, RecursionError):
            return Unreadable(place, "the index has no JSON in metadata_dict")
    parameters = user.pop("cache_key_params", None) or entry.get("cache_key_params")
    facts = {
        "created": _text(entry.get("created_at")),
        "accessed": _text(entry.get("accessed_at")),
        "expires": _text(entry.get("expires_at")),
        "file_size": entry.get("file_size"),
        "data_type": _text(entry.get("data_type")),
        "description": _text(entry.get("description")),
        "cache_prefix": _text(entry.get("prefix")),
        "cache_key_params": parameters or None,
    }
    return IndexEntry(
        place,
        key if isinstance(key, str) else str(key),
        _text(entry.get("data_type")) or "object",
        system,
        {**user, **queried} if isinstance(queried, dict) else user,
        facts,
        _moment(entry.get("expires_at")),
        inline if isinstance(inline, bytes) else None,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _moment(value: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
