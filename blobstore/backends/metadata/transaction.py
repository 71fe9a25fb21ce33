"""One commit in an SQL database, from the rows it reads to the blobs it condemns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import TypeVar

from blobstore import metadata as _metadata
from blobstore.backends.metadata.connections import Dialect, Kept
from blobstore.backends.metadata.respelling import respelled
from blobstore.backends.metadata.schema import (
    Row,
    Statements,
    blob_of,
    blob_values,
    entry_of,
    put_values,
    stored,
)
from blobstore.entry import Blob, Entry, EntryDraft, Part
from blobstore.errors import BlobStoreError, InvalidInputError, UnavailableError
from blobstore.protocols import (
    CommitResult,
    Copy,
    Delete,
    Operation,
    Patch,
    Put,
    check_expected,
    signature_after,
)

T = TypeVar("T")

CHUNK = 1000
"""Names given to one statement at most."""


class AgainError(Exception):
    """The transaction has to be done again from its start, on the same connection or another.

    Attributes
    ----------
    error : BlobStoreError
        What to raise if it was done again often enough.
    lost : bool
        Whether that is because the connection broke.
    """

    def __init__(self, error: BlobStoreError, *, lost: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.lost = lost


class Transaction:
    """One commit inside its transaction: what is known of keys and blobs so far.

    Operations see what those before them did. Rows are read once, keys first and blobs second,
    each in order, so that two commits do not wait for each other in a circle.

    Where several transactions write at a time (`Dialect.locks_rows`), each first locks the rows
    that are there of its keys, and then of all blobs that it may add, share or drop. It reads
    what it decides by after that, in statements that see what others committed before they let
    go of the locks. What is not there cannot be locked: to add it fails if others did meanwhile,
    and the transaction is done again. New entries come first and new blobs second, in order. So:

    - an entry is changed by one transaction at a time, and none goes by an old version of it;
    - a blob gets a reference only while its row is locked and live, and is condemned only while
      its row is locked and a later statement finds no reference. Of two that want to do that at
      the same time, the second sees what the first did.
    """

    def __init__(
        self, kept: Kept, dialect: Dialect, sql: Statements, namespace: str, commit_id: str
    ) -> None:
        self._run = kept.execute
        self._run_many = kept.execute_many
        self._locks_rows = dialect.locks_rows
        self._strings = dialect.strings
        self._sql = sql
        self._namespace = namespace
        self._commit_id = commit_id
        self._entries: dict[str, Entry | None] = {}
        self._blobs: dict[str, Blob] = {}
        self._by_digest: dict[str, Blob] = {}
        self._adopted: dict[str, Blob] = {}
        self._dropped: dict[str, int] = {}
        self._condemned: list[str] = []
        self._missing: dict[str, None] = {}
        self._entered: dict[str, tuple[object, ...]] = {}

    def run(self, operations: Sequence[Operation]) -> CommitResult:
        """Apply all operations; if anything is missing, the transaction must not be committed."""
        self._load_entries(operations)
        if any(self._has_landed(operation) for operation in operations):
            return self._first_result(operations)
        self._load_blobs(operations)
        results = tuple([self._apply(operation) for operation in operations])
        if self._missing:
            return CommitResult(missing=tuple(self._missing))
        self._add_entered()
        self._condemn_dropped()
        return CommitResult(results, tuple(self._condemned))

    # what there is

    def _load_entries(self, operations: Sequence[Operation]) -> None:
        keys = sorted({key for operation in operations for key in _keys_of(operation)})
        self._entries = dict.fromkeys(keys)
        held = self._hold_entries(keys) if self._locks_rows else None
        if held is not None and not held and len(keys) <= CHUNK:
            return  # none of them was there, all at one time
        for some in chunks(keys, CHUNK):
            rows = self._run(self._sql.get_many, (self._namespace, self._strings(some))).fetchall()
            for entry in entries_of(rows):
                if held is not None and entry.id not in held:
                    raise _overtaken(f"the key {entry.key!r} came into being")
                self._entries[entry.key] = entry

    def _hold_entries(self, keys: Sequence[str]) -> set[int]:
        held: set[int] = set()
        for some in chunks(keys, CHUNK):
            values = (self._namespace, self._strings(some))
            held.update(row[0] for row in self._run(self._sql.hold_entries, values).fetchall())
        return held

    def _load_blobs(self, operations: Sequence[Operation]) -> None:
        found = [
            part.blob
            for operation in operations
            if isinstance(operation, Put)
            for part in operation.draft.parts
            if part.payload is None
        ]
        winners: dict[str, str] = {}
        digests = sorted({blob.digest for blob in found if blob.digest is not None})
        for some in chunks(digests, CHUNK):
            values = (self._strings(some), self._namespace)
            for row in self._run(self._sql.blobs_by_digest, values).fetchall():
                blob = blob_of(row)
                winners[str(blob.digest)] = blob.location
        wanted = {blob.location for blob in found} | set(winners.values())
        if self._locks_rows:
            # Also those that may be dropped, to lock all of them in one order.
            wanted.update(x for entry in self._entries.values() if entry for x in entry.locations)
        for some in chunks(sorted(wanted), CHUNK):
            for blob in self._select(self._sql.hold_blobs, some):
                self._blobs[blob.location] = blob
        for digest, location in winners.items():
            winner = self._blobs.get(location)
            if winner is not None and winner.state == "live":  # still
                self._by_digest[digest] = winner

    def _select(self, text: str, names: Sequence[str]) -> list[Blob]:
        rows = self._run(text, (self._namespace, self._strings(names))).fetchall()
        return [blob_of(row) for row in rows]

    # a commit that is repeated

    def _has_landed(self, operation: Operation) -> bool:
        if isinstance(operation, Delete):
            return False  # leaves nothing that could bear the mark
        entry = self._entries[target_of(operation)]
        return entry is not None and entry.commit_id == self._commit_id

    def _first_result(self, operations: Sequence[Operation]) -> CommitResult:
        results: list[Entry | None] = []
        for operation in operations:
            entry = self._entries[target_of(operation)]
            if isinstance(operation, Delete) or (
                isinstance(operation, Copy)
                and operation.source != operation.target
                and not self._has_landed(operation)
            ):
                entry = None
            results.append(entry)
        rows = self._run(self._sql.condemned_by, (self._namespace, self._commit_id)).fetchall()
        return CommitResult(tuple(results), tuple(row[0] for row in rows))

    # operations

    def _apply(self, operation: Operation) -> Entry | None:
        if isinstance(operation, Put):
            current = self._entries[operation.draft.key]
            check_expected(operation.draft.key, current, operation.expected)
            return self._store(self._settle(operation), current)
        if isinstance(operation, Delete):
            return self._delete(operation)
        if isinstance(operation, Copy):
            return self._copy(operation)
        return self._patch(operation)

    def _delete(self, operation: Delete) -> Entry | None:
        current = self._entries[operation.key]
        check_expected(operation.key, current, operation.expected)
        if current is not None:
            self._remove(current, time.time_ns() // 1000)
        return current

    def _copy(self, operation: Copy) -> Entry | None:
        source = self._entries[operation.source]
        if source is None or operation.source == operation.target:
            return source
        current = self._entries[operation.target]
        check_expected(operation.target, current, "any" if operation.overwrite else "absent")
        becoming = source._replace(key=operation.target, commit_id=self._commit_id)
        draft = EntryDraft(
            operation.target, source.handler, source.data_type, source.info_text,
            source.metadata_text, source.parts, source.size, operation.now_us,
            signature_after(operation, source, becoming),
        )  # fmt: skip
        entry = self._store(draft, current)
        if operation.move:
            self._remove(source, operation.now_us)
        return entry

    def _patch(self, operation: Patch) -> Entry | None:
        current = self._entries[operation.key]
        check_expected(operation.key, current, operation.expected)
        if current is None:
            return None
        text = _metadata.merge(
            current.metadata_text, operation.metadata_text, replace=operation.replace
        )
        entry = current._replace(
            version=current.version + 1,
            commit_id=self._commit_id,
            metadata_text=text,
            updated_us=operation.now_us,
        )
        entry = entry._replace(signature=signature_after(operation, current, entry))
        values = (
            entry.version, entry.commit_id, entry.updated_us, entry.signature, text,
            respelled(text), entry.id,
        )  # fmt: skip
        self._run(self._sql.patch, values)
        self._entries[operation.key] = entry
        return entry

    def _store(self, draft: EntryDraft, current: Entry | None) -> Entry:
        """Write an entry over `current`, whose blobs may then be unreferenced."""
        values = put_values(self._namespace, draft, self._commit_id)
        text = self._sql.add_entry if current is None else self._sql.put_entry
        row = self._run(text, values).fetchone()
        if row is None:
            raise _overtaken(f"the key {draft.key!r} came into being")
        if current is not None and current.locations:
            self._drop(current, draft.now_us)
        located = [
            (row[0], position, self._namespace, part.name, part.blob.location)
            for position, part in enumerate(draft.parts)
            if part.payload is None
        ]
        if located:
            self._run_many(self._sql.add_part, located)
        entry = stored(draft, self._commit_id, row)
        self._entries[draft.key] = entry
        return entry

    def _remove(self, entry: Entry, now_us: int) -> None:
        self._drop(entry, now_us)
        self._run(self._sql.delete_entry, (entry.id,))
        self._entries[entry.key] = None

    def _drop(self, entry: Entry, now_us: int) -> None:
        self._run(self._sql.delete_parts, (entry.id,))
        self._dropped.update(dict.fromkeys(entry.locations, now_us))

    # blobs

    def _settle(self, put: Put) -> EntryDraft:
        """Find the blob that each part really refers to, and enter new ones."""
        draft = put.draft
        if len(draft.parts) > 1 and any(part.payload is not None for part in draft.parts):
            raise InvalidInputError(
                f"the entry of {draft.key!r} mixes a payload with other parts: an entry has either "
                "blobs, or one payload",
                key=draft.key,
            )
        settled = tuple([self._settle_part(part, put) for part in draft.parts])
        growth = sum(part.blob.size for part in settled) - sum(p.blob.size for p in draft.parts)
        return draft._replace(parts=settled, size=draft.size + growth)

    def _settle_part(self, part: Part, put: Put) -> Part:
        if part.payload is not None:
            return part
        location = part.blob.location
        if location in self._adopted:  # by an earlier part of this commit
            return Part(part.name, self._adopted[location])
        known = self._blobs.get(location)
        if known is not None and known.state == "live":
            return Part(part.name, known)
        if location in put.reused or (known is not None and known.state == "condemned"):
            self._missing[location] = None
            return part
        return Part(part.name, self._enter(part.blob, put.draft.now_us))

    def _enter(self, blob: Blob, now_us: int) -> Blob:
        """Make a new blob live; if there is a live one of the same content, that one is taken."""
        winner = None if blob.digest is None else self._by_digest.get(blob.digest)
        if winner is not None:
            loser = blob._replace(state="condemned", condemned_us=now_us)
            self._put_blob(loser, self._commit_id)
            self._adopted[blob.location] = winner
            self._condemned.append(blob.location)
            return winner
        live = blob._replace(state="live", condemned_us=None)
        self._put_blob(live, None)
        if live.digest is not None:
            self._by_digest[live.digest] = live
        return live

    def _put_blob(self, blob: Blob, condemned_by: str | None) -> None:
        values = blob_values(self._namespace, blob, condemned_by)
        if blob.location in self._blobs:
            self._run(self._sql.put_blob, values)
        else:
            self._entered[blob.location] = values
        self._blobs[blob.location] = blob

    def _add_entered(self) -> None:
        """Add the rows of new blobs, all in order: others may be adding the same, as gc does."""
        for location, values in sorted(self._entered.items()):
            if self._run(self._sql.add_blob, values).rowcount == 0:
                raise _overtaken(f"the blob {location!r}, or one of the same content, was entered")

    def _condemn_dropped(self) -> None:
        """Condemn what this commit left without any reference, its own copies included."""
        unused: set[str] = set()
        for some in chunks(sorted(self._dropped), CHUNK):
            unused.update(blob.location for blob in self._select(self._sql.unreferenced, some))
        gone = [location for location in self._dropped if location in unused]
        rows = [(self._dropped[at], self._commit_id, self._namespace, at) for at in sorted(gone)]
        if rows:
            self._run_many(self._sql.condemn, rows)
        self._condemned += gone


def _overtaken(what: str) -> AgainError:
    return AgainError(UnavailableError(f"{what} while it was being committed, time and again"))


def _keys_of(operation: Operation) -> tuple[str, ...]:
    if isinstance(operation, Copy):
        return (operation.source, operation.target)
    return (target_of(operation),)


def target_of(operation: Operation) -> str:
    """The key of which an operation decides what is there."""
    if isinstance(operation, Put):
        return operation.draft.key
    return operation.target if isinstance(operation, Copy) else operation.key


def entries_of(rows: Iterable[Row]) -> Iterator[Entry]:
    """Build entries from rows of which those of one entry follow each other."""
    return (entry_of(list(group)) for _, group in groupby(rows, key=lambda row: row[0]))


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut what comes into lists of `size`, the last one shorter."""
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk
