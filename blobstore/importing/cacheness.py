"""A folder of cacheness: its `BlobStore`, or its cache, on a JSON or SQLite index.

Read are the indexes ``cache_metadata.json`` and ``cache_metadata.db`` in the forms that the versions
up to 0.3 gave them (see `blobstore.importing.cacheness_index`), and the files or inline bytes of
arrays, frames, series, bytes and objects (see `blobstore.importing.cacheness_values`). Not read:
TensorFlow tensors, encrypted entries, what is in a bucket, PostgreSQL indexes, custom metadata
tables, and the manifests of later versions, which have no such index. Its signatures say nothing
here. cacheness itself is not needed.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from blobstore.errors import ConfigError, DecodeError, InvalidInputError
from blobstore.importing import cacheness_index
from blobstore.importing.cacheness_index import IndexEntry
from blobstore.importing.cacheness_values import read_value
from blobstore.importing.importer import Found, Importer, Item, Progress
from blobstore.importing.pickles import Pickles
from blobstore.importing.report import ImportReport, Skipped, Unreadable
from blobstore.importing.source import SourceFolder
from blobstore.limits import MAX_DECOMPRESSED
from blobstore.reading import Pickle
from blobstore.store import BlobStore

_DATABASE = "cache_metadata.db"
_NAMESPACE = re.compile(r"[a-z0-9_]{1,48}")


def import_cacheness(
    path: str | os.PathLike[str],
    store: BlobStore,
    *,
    namespace: str = "default",
    prefix: str = "",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    expired: bool = False,
    pickle: Pickle = "signed",
    trusted_types: Iterable[str] = (),
    max_decompressed_bytes: int = MAX_DECOMPRESSED,
) -> ImportReport:
    """Import a folder that cacheness wrote, without cacheness.

    Keys are those of its index. The user's metadata stays what it was, so that filters find it; times,
    size, description and the parameters of a cached call stand below ``"imported"``.

    Parameters
    ----------
    path : path
        The `cache_dir`; never written to. No program may be writing there.
    store : BlobStore
        Outside of that folder.
    namespace : str
        Which of its namespaces.
    prefix : str
        Put before each key.
    overwrite : bool
        Replace what is in the store under such a key. By default it is left and the entry skipped,
        so that an import that was interrupted goes on where it was.
    dry_run : bool
        Read all and report, but store nothing.
    progress : callable, optional
        ``progress(done, total, place)`` after each entry.
    expired : bool
        Also entries whose time is over.
    pickle : {"signed", "allow", "deny"}
        Which pickles are loaded: those of plain and harmless types, since your key signed none of
        them; all, which runs whatever is in them; none.
    trusted_types : iterable of str
        Types that pickles may name besides: ``"sklearn.*"``.
    max_decompressed_bytes : int
        See `BlobStore`.

    Returns
    -------
    ImportReport
        Entries whose files are missing, damaged, not trusted or outside of the folder are in its
        `unreadable`.

    Raises
    ------
    InvalidInputError
        There is no such folder, no index in it, or the store is in it.
    StorageError
        The store cannot be written. What was imported stays; run it again to go on.
    """
    if _NAMESPACE.fullmatch(namespace) is None:
        raise ConfigError(f"a namespace has lower-case letters, digits and '_', not {namespace!r}")
    source = SourceFolder(path)
    pickles = Pickles(pickle, trusted_types, max_decompressed_bytes)
    importer = Importer(
        source,
        store,
        "cacheness",
        prefix=prefix,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=progress,
    )
    folder = _CacheFolder(source, namespace, pickles, expired=expired)
    report = importer.run(folder.found(), folder.count())
    report.skipped += source.leftovers(folder.used, *folder.indexes)
    return report


class _CacheFolder:
    """The indexes of a folder, and the files that their entries name.

    Attributes
    ----------
    indexes : list of str
        Names of those that are there.
    used : set of Path
        Files that entries name.
    """

    def __init__(
        self, source: SourceFolder, namespace: str, pickles: Pickles, *, expired: bool
    ) -> None:
        self._source = source
        self._namespace = namespace
        self._pickles = pickles
        self._expired = expired
        self._parsed: list[IndexEntry | Unreadable] | None = None
        self.used: set[Path] = set()
        document = "cache" if namespace == "default" else namespace
        self._document = f"{document}_metadata.json"
        names = (_DATABASE, self._document)
        self.indexes = [name for name in names if (source.root / name).exists()]
        if not self.indexes:
            raise InvalidInputError(
                f"{source.root} is no folder of cacheness that can be read: there is neither "
                f"{_DATABASE} nor {self._document} in it"
            )

    def count(self) -> int:
        """How many entries there are, as far as that can be told."""
        count = 0
        for index in self.indexes:
            try:
                file = self._source.file(self._path(index))
                if index == _DATABASE:
                    count += cacheness_index.count_rows(file, self._namespace)
                else:
                    self._parsed = cacheness_index.from_json(file, index)
                    count += len(self._parsed)
            except DecodeError:  # which `found` tells
                continue
        return count

    def _path(self, index: str) -> Path:
        return self._source.root / index

    def found(self) -> Iterator[Found]:
        """All entries; of a key in both indexes, that of the database."""
        keys: set[str] = set()
        for index in self.indexes:
            seen = set()
            try:
                for entry in self._entries(index):
                    if isinstance(entry, Unreadable):
                        yield entry
                    elif entry.key in keys:
                        yield Skipped(
                            entry.place, f"{self.indexes[0]} has an entry of that key, too"
                        )
                    else:
                        seen.add(entry.key)
                        yield self._item(entry)
            except DecodeError as exc:
                yield Unreadable(index, str(exc))
            keys |= seen

    def _entries(self, index: str) -> Iterable[IndexEntry | Unreadable]:
        file = self._source.file(self._path(index))
        if index == _DATABASE:
            return cacheness_index.from_sqlite(file, index, self._namespace)
        return cacheness_index.from_json(file, index) if self._parsed is None else self._parsed

    def _item(self, entry: IndexEntry) -> Found:
        file = None
        try:
            if entry.inline is None:
                file = self._file(entry)
                self.used.add(file)
        except (DecodeError, OSError) as exc:
            return Unreadable(entry.place, str(exc))
        if entry.expires is not None and entry.expires <= datetime.now(UTC) and not self._expired:
            return Skipped(entry.place, f"it expired on {entry.expires.isoformat()}")
        load = functools.partial(read_value, entry, file, self._pickles)
        return Item(entry.place, entry.key, load, entry.facts, entry.user)

    def _file(self, entry: IndexEntry) -> Path:
        named = entry.text("actual_path")
        if named:
            return self._source.named(named)
        # The first versions did not note the path: the file is named by the key.
        beside = [
            path
            for path in sorted(self._source.root.iterdir())
            if path.name.startswith(f"{entry.key}.") and path.name not in self.indexes
        ]
        if len(beside) != 1:
            raise DecodeError("the index does not say where it is, and no file has its name")
        return self._source.file(beside[0])
