"""Looking after a store: everything is there that should be, and only that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from blobstore.entry import Blob, Entry, now_us
from blobstore.errors import (
    BlobStoreError,
    IntegrityError,
    InvalidInputError,
    KeyNotFoundError,
    StorageError,
)
from blobstore.keys import is_location
from blobstore.protocols import MetadataBackend, ObjectStore
from blobstore.query import Query
from blobstore.reading import Reader

KEEP_CONDEMNED = 7 * 24 * 3600.0
"""Seconds for which the row of a collected blob is kept, so that a writer that was asleep all the
while finds its blob condemned instead of unknown."""

_BATCH = 500
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be.

    Attributes
    ----------
    kind : {"index", "missing", "size", "checksum", "unreadable"}
    key : str or None
        The first key that is affected.
    location : str or None
    message : str
    """

    kind: str
    key: str | None
    location: str | None
    message: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found.

    Attributes
    ----------
    entries, blobs, bytes : int
        How much was looked at; bytes are those that were read, 0 unless deep.
    problems : tuple of Problem
    """

    entries: int
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something that `gc` frees.

    Attributes
    ----------
    kind : {"orphan", "condemned", "pending", "leftover"}
        A blob that no index row knows; one that a commit dropped; one that was announced and
        never committed; a file that was never finished.
    name : str
        Location, or the leftover's name.
    size : int
        In bytes; 0 where the bytes are gone already.
    """

    kind: str
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class GcReport:
    """What `gc` would free, or did.

    Attributes
    ----------
    dry_run : bool
    items : tuple of Garbage
    """

    dry_run: bool
    items: tuple[Garbage, ...]

    @property
    def bytes(self) -> int:
        """Size of all items together."""
        return sum(item.size for item in self.items)


def verify(
    index: MetadataBackend, objects: ObjectStore, reader: Reader, *, deep: bool
) -> VerifyReport:
    """Hold entries, blobs and bytes against each other; changes nothing.

    Parameters
    ----------
    index, objects, reader
        Of the store.
    deep : bool
        Read every byte and compare checksums; else only look whether blobs are there, in full.

    Returns
    -------
    VerifyReport
    """
    problems = [Problem("index", None, None, line) for line in index.check()]
    seen: set[str] = set()
    entries = read = 0
    for entry in index.scan(Query()):
        entries += 1
        fresh = {x for x in entry.locations if x not in seen}
        seen.update(fresh)
        wrong = _looked_at(index, objects, entry, fresh)
        problems.extend(wrong)
        if deep and (fresh or entry.inline) and not any(p.kind == "missing" for p in wrong):
            read += entry.size
            told = {problem.location for problem in wrong}  # never None
            found = _read_through(reader, objects, entry)
            problems.extend(problem for problem in found if problem.location not in told)
    return VerifyReport(entries, len(seen), read, tuple(problems))


def _looked_at(
    index: MetadataBackend, objects: ObjectStore, entry: Entry, locations: set[str]
) -> list[Problem]:
    """Blobs of an entry that are not there, or not in full."""
    sizes = {part.blob.location: part.blob.size for part in entry.parts}
    wrong = {x: _stored_size(objects, x) for x in sorted(locations)}
    wrong = {x: found for x, found in wrong.items() if found != sizes[x]}
    latest = index.get(entry.key) if wrong else entry
    problems = []
    for location, found in wrong.items():
        if latest is None or location not in latest.locations:
            continue  # superseded meanwhile
        kind = "missing" if found is None else "size"
        said = "is gone" if found is None else f"has {found} bytes, not {sizes[location]}"
        text = f"{entry.key!r}: its blob {location} {said}"
        problems.append(Problem(kind, entry.key, location, text))
    return problems


def _read_through(reader: Reader, objects: ObjectStore, entry: Entry) -> list[Problem]:
    """Read all of an entry; what is wrong with it."""
    try:
        found = reader.check(entry)
    except KeyNotFoundError:
        return []  # deleted meanwhile
    except (IntegrityError, StorageError) as exc:
        found = [exc]
    return [_problem(objects, entry.key, error) for error in found]


def _problem(objects: ObjectStore, key: str, error: BlobStoreError) -> Problem:
    if isinstance(error, StorageError):
        return Problem("unreadable", key, error.location, error.message)
    kind = "checksum" if error.location is None else _what(objects, error.location)
    return Problem(kind, key, error.location, error.message)


def _what(objects: ObjectStore, location: str) -> str:
    return "checksum" if objects.exists(location) else "missing"


def _stored_size(objects: ObjectStore, location: str) -> int | None:
    try:
        return objects.stat(location).size
    except KeyNotFoundError:
        return None


def gc(index: MetadataBackend, objects: ObjectStore, *, dry_run: bool, grace: float) -> GcReport:
    """Find, and unless `dry_run` free, what interrupted writers left behind.

    Nothing that does not have the form of our own names is ever touched. A location that the
    index does not know is entered as condemned first: if its writer comes to commit after all,
    it finds that out, and writes again. Correct without clocks; `grace` only spares writers that
    are still at work the trouble.

    Parameters
    ----------
    index, objects
        Of the store.
    dry_run : bool
        Change nothing, only tell.
    grace : float
        Seconds; what is younger is left alone.

    Returns
    -------
    GcReport

    Raises
    ------
    InvalidInputError
        `grace` is negative.
    """
    given: Any = grace
    if isinstance(given, bool) or not isinstance(given, int | float) or not given >= 0:
        raise InvalidInputError(f"grace is a number of seconds, 0 or more, not {grace!r}")
    before_us = now_us() - grace * 1e6
    items: list[Garbage] = []
    for batch in _batches(_unreferenced(index, objects, before_us)):
        if dry_run:
            items.extend(batch)
            continue
        condemned = set(index.condemn([item.name for item in batch], now_us()))
        objects.delete_many(condemned)
        items.extend(item for item in batch if item.name in condemned)
    items.extend(_condemned(index, objects, before_us, dry_run=dry_run))
    for leftover in list(objects.leftovers()):
        if leftover.modified.timestamp() * 1e6 <= before_us:
            items.append(Garbage("leftover", leftover.name, leftover.size))
            if not dry_run:
                objects.remove_leftover(leftover.name)
    return GcReport(dry_run, tuple(items))


def _unreferenced(
    index: MetadataBackend, objects: ObjectStore, before_us: float
) -> Iterator[Garbage]:
    """Blobs that were written, or announced, and never committed."""
    for blob in index.blobs():
        if blob.state == "pending" and blob.created_us <= before_us:
            yield Garbage("pending", blob.location, _stored_size(objects, blob.location) or 0)
    if not objects.capabilities.list:
        return
    for names in _batches(filter(is_location, objects.keys())):
        for name in sorted(set(names) - index.known(names)):
            try:
                stat = objects.stat(name)
            except KeyNotFoundError:
                continue
            modified = stat.modified.timestamp() if stat.modified else 0.0
            if modified * 1e6 <= before_us:
                yield Garbage("orphan", name, stat.size)


def _condemned(
    index: MetadataBackend, objects: ObjectStore, before_us: float, *, dry_run: bool
) -> Iterator[Garbage]:
    """Blobs that commits dropped: their bytes go now, their rows after a week."""
    blobs = [blob for blob in index.condemned() if (blob.condemned_us or 0) <= before_us]
    sizes = {blob.location: _stored_size(objects, blob.location) for blob in blobs}
    for blob in blobs:
        size = sizes[blob.location]
        if size is not None:
            yield Garbage("condemned", blob.location, size)
    if not dry_run and blobs:
        # The index that dropped them has to be on disk before their bytes are not.
        index.sync()
        objects.delete_many([blob.location for blob in blobs])
        index.forget([blob.location for blob in blobs if _expired(blob)])


def _expired(blob: Blob) -> bool:
    return (blob.condemned_us or 0) <= (time.time() - KEEP_CONDEMNED) * 1e6


def _batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
