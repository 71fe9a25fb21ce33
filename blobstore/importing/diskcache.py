"""A folder of diskcache (5.x): `Cache`, `FanoutCache`, `Deque`, `Index`, Django's `DjangoCache`.

The format, as far as it is read here: `cache.db` is an SQLite database whose table ``Cache`` has a
row for each item. Its column `raw` says whether `key` is the key itself (text, number, bytes) or a
pickle of it; `mode` says what the value is: 1 itself, in `value`; 2 bytes and 3 UTF-8 text, in the
file that `filename` names; 4 a pickle, in `value` or that file. A `JSONDisk`, which leaves no note of
itself, keeps zlib streams of JSON as bytes, all keys included. A `FanoutCache` is a folder of such
folders, named by three digits. diskcache itself is not needed.
"""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blobstore.errors import BlobStoreError, DecodeError, InvalidInputError
from blobstore.importing import databases
from blobstore.importing.folder import local_file
from blobstore.importing.importer import Found, Importer, Item, Progress, guarded
from blobstore.importing.pickles import Pickles
from blobstore.importing.report import ImportReport, Skipped, Unreadable
from blobstore.importing.source import SourceFolder
from blobstore.importing.unpacking import unpacked_bytes
from blobstore.limits import MAX_DECOMPRESSED
from blobstore.reading import Pickle
from blobstore.store import BlobStore

_DATABASE = "cache.db"
_RAW, _BINARY, _TEXT, _PICKLE = 1, 2, 3, 4
_NEEDED = "rowid key raw store_time expire_time access_count tag mode filename value"
_COLUMNS = frozenset(_NEEDED.split())


def import_diskcache(
    path: str | os.PathLike[str],
    store: BlobStore,
    *,
    prefix: str = "",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    expired: bool = False,
    pickle: Pickle = "signed",
    trusted_types: Iterable[str] = (),
    max_decompressed_bytes: int = MAX_DECOMPRESSED,
) -> ImportReport:
    """Import a folder that diskcache wrote, without diskcache.

    Keys that are text stay what they are; a number becomes its digits, any other key its `repr`
    (``"('user', 7)"``). Tag, times and use are kept in the metadata, below ``"imported"``.

    Parameters
    ----------
    path : path
        Of a `Cache` or `FanoutCache`; never written to. No program may be writing there.
    store : BlobStore
        Outside of that folder.
    prefix : str
        Put before each key.
    overwrite : bool
        Replace what is in the store under such a key. By default it is left and the item skipped,
        so that an import that was interrupted goes on where it was.
    dry_run : bool
        Read all and report, but store nothing.
    progress : callable, optional
        ``progress(done, total, place)`` after each item.
    expired : bool
        Also items whose time is over, which diskcache does not give any more.
    pickle : {"signed", "allow", "deny"}
        Which pickles are loaded: those of plain and harmless types, since diskcache signs nothing;
        all, which runs whatever is in them; none.
    trusted_types : iterable of str
        Types that pickles may name besides: ``"shop.models.*"``.
    max_decompressed_bytes : int
        See `BlobStore`.

    Returns
    -------
    ImportReport
        Items that are damaged or not trusted are in its `unreadable`.

    Raises
    ------
    InvalidInputError
        There is no such folder, no ``cache.db`` in it, or the store is in it.
    StorageError
        The store cannot be written. What was imported stays; run it again to go on.
    """
    source = SourceFolder(path)
    pickles = Pickles(pickle, trusted_types, max_decompressed_bytes)
    importer = Importer(
        source,
        store,
        "diskcache",
        prefix=prefix,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=progress,
    )
    shards = [_Shard(source, folder, pickles, expired=expired) for folder in _shards(source)]
    if not shards:
        raise InvalidInputError(f"{source.root} is no folder of diskcache: there is no {_DATABASE}")
    found = (each for shard in shards for each in shard)
    report = importer.run(found, sum(shard.count() for shard in shards))
    used = {file for shard in shards for file in shard.used}
    report.skipped += source.leftovers(used, *(shard.place for shard in shards))
    return report


def _shards(source: SourceFolder) -> list[Path]:
    """Folders with a database: this one, or those of a FanoutCache."""
    inner = sorted(source.root.glob("[0-9][0-9][0-9]"))
    folders = [source.root, *(folder for folder in inner if not folder.is_symlink())]
    return [folder for folder in folders if (folder / _DATABASE).exists()]


class _Shard:
    """One database and the files beside it.

    Attributes
    ----------
    place : str
        Of the database, for the report.
    used : set of Path
        Files that its rows name.
    """

    def __init__(
        self, source: SourceFolder, folder: Path, pickles: Pickles, *, expired: bool
    ) -> None:
        self.place = source.place(folder / _DATABASE)
        self.used: set[Path] = set()
        self._source = SourceFolder(folder)
        self._pickles = pickles
        self._expired = expired

    def count(self) -> int:
        """How many rows there are; 0 if that cannot be told."""
        try:
            with self._open() as database:
                return int(database.execute("SELECT count(*) FROM Cache").fetchone()[0])
        except DecodeError:
            return 0

    def _open(self) -> Any:
        return databases.reading(self._source.file(self._source.root / _DATABASE))

    def __iter__(self) -> Iterator[Found]:
        try:
            with self._open() as database:
                as_json = self._is_json(database)
                for row in database.execute("SELECT * FROM Cache ORDER BY rowid"):
                    yield self._found(row, as_json=as_json)
        except DecodeError as exc:
            yield Unreadable(self.place, str(exc))

    def _is_json(self, database: sqlite3.Connection) -> bool:
        """Whether a `JSONDisk` wrote it.

        Raises
        ------
        DecodeError
            It is no database of diskcache.
        """
        if not databases.columns(database, "Cache") >= _COLUMNS:
            raise DecodeError("the index cannot be read: it has no table Cache of diskcache 5")
        others = "SELECT 1 FROM Cache WHERE NOT raw OR typeof(key) != 'blob' LIMIT 1"
        first = database.execute("SELECT key FROM Cache LIMIT 1").fetchone()
        if first is None or database.execute(others).fetchone() is not None:
            return False
        try:
            guarded(functools.partial(self._json, first["key"]))
        except DecodeError:
            return False
        return True

    def _found(self, row: sqlite3.Row, *, as_json: bool) -> Found:
        place = f"{self.place}, row {row['rowid']}"
        try:
            found: Found = guarded(functools.partial(self._item, place, row, as_json=as_json))
        except (BlobStoreError, OSError) as exc:
            return Unreadable(place, str(exc))
        return found

    def _item(self, place: str, row: sqlite3.Row, *, as_json: bool) -> Found:
        file = None
        if row["filename"] is not None:
            file = self._source.named(row["filename"])
            self.used.add(file)
        key = self._key(row, as_json=as_json)
        expires = row["expire_time"]
        if expires is not None and expires <= time.time() and not self._expired:
            return Skipped(place, f"the key {key!r} expired on {_moment(expires)}")
        tag = row["tag"]
        facts = {
            "stored": _moment(row["store_time"]),
            "expires": _moment(expires),
            "tag": tag if isinstance(tag, str | int | float) else tag and repr(tag),
            "access_count": row["access_count"],
            "key_type": None if isinstance(key, str) else type(key).__name__,
        }
        load = functools.partial(self._value, row, file, as_json=as_json)
        return Item(place, key if isinstance(key, str) else repr(key), load, facts)

    def _key(self, row: sqlite3.Row, *, as_json: bool) -> Any:
        key = row["key"]
        if not row["raw"]:
            return self._pickles.load(key)
        return self._json(key) if as_json else key

    def _value(self, row: sqlite3.Row, file: Path | None, *, as_json: bool) -> Any:
        mode, value = row["mode"], row["value"]
        if mode == _BINARY and file is not None and not as_json:
            return local_file(file)
        if file is not None:
            value = file.read_bytes()
        if mode == _PICKLE and isinstance(value, bytes):
            value = self._pickles.load(value)
        elif mode == _TEXT and file is not None:
            value = value.decode("utf-8")
        elif mode not in (_RAW, _BINARY) or (value is None):
            raise DecodeError(f"its value is of a kind that diskcache 5 does not have ({mode!r})")
        if isinstance(value, str):
            value.encode("utf-8")  # what is no UTF-8 in the database is no text
        return self._json(value) if as_json and isinstance(value, bytes) else value

    def _json(self, data: bytes) -> Any:
        return json.loads(unpacked_bytes(data, self._pickles.max_decompressed))


def _moment(seconds: Any) -> str | None:
    if not isinstance(seconds, int | float):
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OverflowError, ValueError, OSError):  # no time of this calendar
        return None
