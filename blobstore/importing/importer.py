"""The loop that all imports share: read, store, and note what does not work."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blobstore.errors import (
    BlobStoreError,
    ConfigError,
    DecodeError,
    InvalidInputError,
    KeyExistsError,
    StorageError,
    UnsupportedTypeError,
)
from blobstore.handlers.file import LocalFile
from blobstore.importing.report import ImportReport, Skipped, Unreadable
from blobstore.importing.source import SourceFolder
from blobstore.keys import validate_key
from blobstore.metadata import to_text
from blobstore.store import BlobStore
from blobstore.streams import CHUNK

Progress = Callable[[int, int, str], None]
"""Called after each: how many are done, how many there are, and where that one was."""

_FACTS = "imported"
"""Name in the metadata under which stands where an entry comes from."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be imported.

    Attributes
    ----------
    place : str
        Where it is, for the report.
    key : str
        Without the prefix.
    load : callable
        Reads it. Whatever it raises is noted, and the import goes on.
    facts : mapping
        What the source knows of it, as JSON.
    metadata : mapping
        What its user said of it, as JSON.
    """

    place: str
    key: str
    load: Callable[[], Any]
    facts: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)


Found = Item | Unreadable | Skipped


class Importer:
    """Puts what was found into a store.

    Parameters
    ----------
    source : SourceFolder
    store : BlobStore
    origin : str
        What kind of folder it is: "diskcache".
    prefix : str
        Put before each key.
    overwrite : bool
        Replace what is in the store under such a key; else it is left, and the item skipped.
    dry_run : bool
        Read all, store nothing.
    progress : callable, optional
        See `Progress`.

    Raises
    ------
    InvalidInputError
        The store is in the folder that is to be imported.
    """

    def __init__(
        self,
        source: SourceFolder,
        store: BlobStore,
        origin: str,
        *,
        prefix: str,
        overwrite: bool,
        dry_run: bool,
        progress: Progress | None,
    ) -> None:
        if not isinstance(store, BlobStore):
            raise ConfigError(f"import into a BlobStore, not into {store!r}")
        if not isinstance(prefix, str):
            raise ConfigError(f"prefix must be a string, not {prefix!r}")
        if store.path.is_relative_to(source.root):
            raise InvalidInputError(
                f"the store {store.path} is in the folder {source.root}, which would be changed by "
                "the import: open a store somewhere else"
            )
        self._store = store
        self._origin = origin
        self._prefix = prefix
        self._overwrite = overwrite
        self._dry_run = dry_run
        self._progress = progress
        self._taken: dict[str, str] = {}
        self.report = ImportReport()

    def run(self, found: Iterable[Found], total: int) -> ImportReport:
        """Take in all that is found.

        Raises
        ------
        StorageError
            The store cannot be written. What was imported stays; run it again to go on.
        """
        for done, each in enumerate(found, start=1):
            self._take(each)
            if self._progress is not None:
                self._progress(done, max(done, total), each.place)
        return self.report

    def _take(self, found: Found) -> None:
        if isinstance(found, Item):
            found = self._import(found) or found
        if isinstance(found, Unreadable):
            self.report.unreadable.append(found)
        elif isinstance(found, Skipped):
            self.report.skipped.append(found)

    def _import(self, item: Item) -> Unreadable | Skipped | None:
        """Import one; or why not."""
        key = self._prefix + item.key
        try:
            validate_key(key)
            other = self._taken.setdefault(key, item.place)
            if other != item.place:
                return Unreadable(item.place, f"its key {key!r} is also that of {other}")
            if not self._overwrite and key in self._store:
                return _exists(item, key)
            value = _loaded(item.load)
            metadata = self._metadata(item)
            to_text(metadata)  # refused before anything is stored, and by a dry run too
            if not self._dry_run:
                self._put(value, key, metadata)
        except KeyExistsError:
            return _exists(item, key)
        except (InvalidInputError, DecodeError, UnsupportedTypeError) as exc:
            return Unreadable(item.place, str(exc))
        except _NotReadableError as exc:
            return Unreadable(item.place, str(exc.__cause__))
        self.report.imported.append(key)
        return None

    def _put(self, value: Any, key: str, metadata: Mapping[str, Any]) -> None:
        try:
            self._store.put(value, key, metadata, overwrite=self._overwrite)
        except StorageError:
            if isinstance(
                value, LocalFile
            ):  # was it the store, or the file that is streamed to it?
                _loaded(functools.partial(_read_through, value.path))
            raise

    def _metadata(self, item: Item) -> dict[str, Any]:
        name = _FACTS
        while name in item.metadata:  # the user's own names come first
            name += "_"
        facts = {"from": self._origin, "place": item.place, **item.facts}
        return {**item.metadata, name: {n: fact for n, fact in facts.items() if fact is not None}}


class _NotReadableError(Exception):
    """Reading failed, for the reason that is the cause; told apart from a store that fails."""


def _loaded(load: Callable[[], Any]) -> Any:
    try:
        return guarded(load)
    except (BlobStoreError, OSError) as exc:
        raise _NotReadableError from exc


def guarded(load: Callable[[], Any]) -> Any:
    """Call what reads foreign bytes.

    Raises
    ------
    BlobStoreError, OSError
        It failed.
    """
    try:
        return load()
    except (BlobStoreError, OSError):
        raise
    except Exception as exc:
        # Damaged and malicious files make the libraries that read them raise anything at all, and
        # one such file must not keep all others from being imported.
        raise DecodeError(f"it cannot be read: {exc!r}") from exc


def _read_through(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(CHUNK):
            pass


def _exists(item: Item, key: str) -> Skipped:
    return Skipped(item.place, f"the key {key!r} is in the store already")
