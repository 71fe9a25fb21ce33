"""MetadataBackend: the index; and the operations that change it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from blobstore.entry import Blob, Entry, EntryDraft
from blobstore.errors import (
    ConflictError,
    KeyExistsError,
    KeyNotFoundError,
    NotSupportedError,
)
from blobstore.query import Field, Query, values_reader
from blobstore.streams import Closeable

Expected = int | Entry | Literal["any", "absent", "present"]
"""What must be true of the key at commit: a version, an entry's id and version, or one of
"any" (nothing), "absent" (`KeyExistsError` if it is taken), "present" (`KeyNotFoundError` if not)."""

Sign = Callable[[Entry, Entry], str | None]
"""What an index asks inside a commit that makes one entry out of another: given the old one, and the
new one in all but id, version, times and signature, what the signature of the new one is."""


def check_expected(key: str, entry: Entry | None, expected: Expected) -> None:
    """Compare what an operation expects of a key with what there is.

    Parameters
    ----------
    key : str
    entry : Entry or None
        What the key is now.
    expected : Expected

    Raises
    ------
    KeyExistsError, KeyNotFoundError, ConflictError

    Examples
    --------
    >>> check_expected("model", None, 3)
    Traceback (most recent call last):
    ...
    blobstore.errors.ConflictError: 'model' was expected at version 3, but it does not exist: read it again
    """
    if expected == "any":
        return
    if expected == "absent":
        if entry is not None:
            raise KeyExistsError(
                f"there is an entry {key!r} already, at version {entry.version}: choose another "
                "key, or allow overwriting",
                key=key,
            )
        return
    if expected == "present":
        if entry is None:
            raise KeyNotFoundError(f"there is no entry {key!r}", key=key)
        return
    _check_version(key, entry, expected)


def _check_version(key: str, entry: Entry | None, expected: int | Entry) -> None:
    wanted = expected.version if isinstance(expected, Entry) else expected
    if entry is None:
        raise ConflictError(
            f"{key!r} was expected at version {wanted}, but it does not exist: read it again",
            key=key,
        )
    if isinstance(expected, Entry) and expected.id != entry.id:
        raise ConflictError(
            f"{key!r} was deleted and stored anew since it was read at version {wanted} (it is at "
            f"version {entry.version} now): read it again",
            key=key,
        )
    if entry.version != wanted:
        raise ConflictError(
            f"{key!r} was expected at version {wanted}, but is at {entry.version}: read it again",
            key=key,
        )


@dataclass(frozen=True, slots=True)
class Put:
    """Set a key to a new object.

    Parts of `draft` whose location is in `reused` are blobs that the writer believes to be live;
    every other located part is a new blob, to be entered as live.
    """

    draft: EntryDraft
    reused: frozenset[str] = frozenset()
    expected: Expected = "any"


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key."""

    key: str
    expected: Expected = "any"


@dataclass(frozen=True, slots=True)
class Copy:
    """Set `target` to what `source` is, sharing its blobs.

    A fresh entry at version 1, unless it replaces one. With `move`, `source` goes in the same
    commit. The signature is what `sign` gives for the source and the new entry; without `sign`
    there is none, since it was of another key.
    """

    source: str
    target: str
    now_us: int
    overwrite: bool = True
    move: bool = False
    sign: Sign | None = None


@dataclass(frozen=True, slots=True)
class Patch:
    """Change the metadata of a key: shallow merge of `metadata_text`, or `replace` all of it.

    The signature is what `sign` gives for the old and the new entry; without `sign` there is none,
    since it was of other metadata.
    """

    key: str
    metadata_text: str
    now_us: int
    replace: bool = False
    expected: Expected = "any"
    sign: Sign | None = None


Operation = Put | Delete | Copy | Patch


def signature_after(operation: Copy | Patch, old: Entry, new: Entry) -> str | None:
    """The signature of what a `Copy` or `Patch` makes of an entry."""
    return None if operation.sign is None else operation.sign(old, new)


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit did.

    Attributes
    ----------
    entries : tuple of (Entry or None)
        For each operation the entry as it is now; for `Delete` the entry that was removed; None
        where the key was absent and the operation allowed that (`Delete`, `Patch`, `Copy`).
    condemned : tuple of str
        Locations that the commit left unreferenced: new blobs that lost to a live one of the same
        digest, and blobs of replaced or deleted entries. Their bytes are to be deleted.
    missing : tuple of str
        Reused blobs that are not live, and new locations that were condemned meanwhile. If there
        are any, nothing was committed: write those parts again and commit anew.
    """

    entries: tuple[Entry | None, ...] = ()
    condemned: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FieldIndex:
    """An index on one field of a store's metadata.

    Attributes
    ----------
    field : Field
    name : str
        Of the index in the database.
    """

    field: Field
    name: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """How an index answers a query, for people to read.

    Attributes
    ----------
    statement : str
        What runs: SQL with placeholders for names and values, or a word for how it is done.
    plan : str
        What the database says it does.
    indexes : tuple of FieldIndex
        Field indexes that serve the query.
    scans : bool
        Whether all entries of the store, or of the prefix, are looked at.
    suggestion : Field or None
        The field whose index would serve it; None if one does, or if none could.
    """

    statement: str
    plan: str
    indexes: tuple[FieldIndex, ...] = ()
    scans: bool = True
    suggestion: Field | None = None

    def __str__(self) -> str:
        lines = [self.statement, self.plan]
        lines += [f"served by the index on {one.field}" for one in self.indexes]
        if self.scans:
            lines.append("all entries of the store, or of the prefix, are looked at")
        if self.suggestion is not None:
            lines.append(f"create_index({str(self.suggestion)!r}) would serve it")
        return "\n".join(line for line in lines if line)


class MetadataBackend(Closeable, ABC):
    """The index: holds entries, answers queries, never touches bytes.

    All methods may be called from several threads and processes at once; a forked child and a
    pickled copy work. What a query means is said by `blobstore.query`: each index gives the answers
    of `Query.matcher` and `sort_key`.
    """

    inline_max_bytes: ClassVar[int] = 0
    """Up to how many stored bytes a value is better kept in this index than in a blob."""

    @classmethod
    def for_folder(cls, directory: Path, *, fsync: bool = False, readonly: bool = False) -> Self:
        """Open or make the index of a BlobStore in `directory`, when it is asked for by name."""
        raise NotSupportedError(f"{cls.__name__} keeps no index in a folder: give an instance")

    @property
    @abstractmethod
    def store_id(self) -> str:
        """32 hexadecimal digits, made once with the index and never changed."""

    @abstractmethod
    def commit(self, operations: Sequence[Operation], commit_id: str) -> CommitResult:
        """Apply operations in order, all or nothing.

        References to blobs are counted at the end, so one operation may drop a blob that a later
        one reuses. Committing the same operations under the same `commit_id` again, after it
        landed, changes nothing and answers with the same entries, as long as an entry that it
        wrote still has that commit_id; a commit that only deleted leaves none behind.

        Raises
        ------
        KeyExistsError, KeyNotFoundError, ConflictError
            An expectation of an operation does not hold; nothing was changed.
        UnavailableError, OutOfSpaceError, PermissionDeniedError
            The index could not be written (or was opened readonly); nothing was changed, unless
            `outcome` is "unknown".
        """

    @abstractmethod
    def get(self, key: str) -> Entry | None:
        """The entry of a key, or None."""

    @abstractmethod
    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries of those keys that exist."""

    @abstractmethod
    def scan(self, query: Query) -> Iterator[Entry]:
        """Entries that match, in the order of the query, read page by page.

        Entries that others change or move meanwhile may be met in their old state or their new one;
        all others are met once.
        """

    def keys(self, query: Query) -> Iterator[str]:
        """Keys that match, in order."""
        return (entry.key for entry in self.scan(query))

    def count(self, query: Query) -> int:
        """How many entries match."""
        return sum(1 for _ in self.keys(query))

    def tally(self, query: Query, fields: Sequence[Field]) -> Iterator[tuple[tuple[Any, ...], int]]:
        """Combinations of values that entries have, and how many entries have each.

        Parameters
        ----------
        query : Query
            Which entries; its order and limit choose among them, and say nothing of the order of
            the answer.
        fields : sequence of Field

        Yields
        ------
        values : tuple
            The JSON value of each field, `MISSING` where there is none. A combination may come
            more than once.
        count : int
        """
        values = values_reader(fields)
        return ((values(entry), 1) for entry in self.scan(query))

    def create_index(self, field: Field) -> FieldIndex:
        """Make conditions on a field, and orders by it, quick. An index that exists stays.

        Raises
        ------
        NotSupportedError
            This backend has none, or not on such a field.
        """
        raise NotSupportedError(
            f"{type(self).__name__} keeps no indexes on fields: for more entries than it can look "
            "through quickly, make the store with backend='sqlite' (SqlBackend)"
        )

    def drop_index(self, field: Field) -> bool:
        """Remove the index on a field; False if there is none."""
        return False

    def indexes(self) -> list[FieldIndex]:
        """Indexes on fields of this store."""
        return []

    def explain(self, query: Query) -> Explanation:
        """Tell how `scan` would find its answer."""
        return Explanation("scan", "")

    @abstractmethod
    def find_digests(self, digests: Iterable[str]) -> dict[str, Blob]:
        """Live blobs by digest: a hint, true at commit or reported there as missing."""

    @abstractmethod
    def blobs(self) -> Iterator[Blob]:
        """All blobs that the index knows: live, condemned and pending."""

    @abstractmethod
    def known(self, locations: Iterable[str]) -> set[str]:
        """Those of the locations that the index has a blob row for, in whatever state."""

    @abstractmethod
    def announce(self, blobs: Iterable[Blob]) -> None:
        """Enter blobs as pending before they are written, for stores that cannot list.

        A location that is known already stays as it is.
        """

    @abstractmethod
    def condemn(self, locations: Iterable[str], now_us: int) -> list[str]:
        """Mark locations as condemned, those that no entry refers to; unknown ones are entered.

        Returns
        -------
        list of str
            Those that are condemned now: their bytes may be deleted.
        """

    @abstractmethod
    def condemned(self) -> list[Blob]:
        """Blobs whose bytes are to be deleted, or already were."""

    @abstractmethod
    def forget(self, locations: Iterable[str]) -> None:
        """Drop the rows of these locations, of those only that are condemned."""

    @abstractmethod
    def sync(self) -> None:
        """Return once all commits so far would survive a power cut."""

    @abstractmethod
    def check(self) -> list[str]:
        """Look for damage in the index itself; one line for each problem."""

    def stats(self) -> Mapping[str, Any]:
        """Facts about the index: its kind, place, schema version."""
        return {}
