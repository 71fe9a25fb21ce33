"""What an index has to do, said as plainly as possible: the oracle for metadata backends.

`Model` keeps two dictionaries and recomputes everything at each step. It shares no code with the
backends, nor with what `blobstore.query` and `blobstore.metadata` do, so a mistake there shows as a
difference. `ModelBackend` puts it behind the `MetadataBackend` interface, in one pickled file that
every call reads and every change writes anew: useless at work, but good for testing tests.
"""

from __future__ import annotations

import copy
import json
import pickle
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from blobstore.entry import Blob, Entry, EntryDraft, Part
from blobstore.errors import (
    ClosedError,
    ConflictError,
    KeyExistsError,
    KeyNotFoundError,
    PermissionDeniedError,
)
from blobstore.protocols import (
    CommitResult,
    Copy,
    Delete,
    Expected,
    MetadataBackend,
    Operation,
    Patch,
    Put,
)
from blobstore.query import Query
from blobstore.testing.model_query import select


@dataclass
class Model:
    """An index as two dictionaries.

    Attributes
    ----------
    entries : dict of str to Entry
        By key.
    rows : dict of str to Blob
        By location, in whatever state.
    next_id : int
        Above every id that was ever given.
    landed : dict of str to CommitResult
        Every commit that took place, by its id. A real index remembers only those that wrote an
        entry which is still as they left it.

    Examples
    --------
    >>> model = Model()
    >>> model.commit([Delete("nothing")], "c1").entries
    (None,)
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    rows: dict[str, Blob] = field(default_factory=dict)
    next_id: int = 1
    landed: dict[str, CommitResult] = field(default_factory=dict)

    # --- changing

    def commit(self, operations: Sequence[Operation], commit_id: str) -> CommitResult:
        """Apply all operations to a copy; become that copy if all of them can be.

        Raises
        ------
        KeyExistsError, KeyNotFoundError, ConflictError
            An expectation does not hold.
        """
        if commit_id in self.landed:
            return self.landed[commit_id]
        attempt = _Attempt(dict(self.entries), dict(self.rows), self.next_id, commit_id)
        results = tuple(attempt.apply(operation) for operation in operations)
        if attempt.missing:
            return CommitResult(missing=tuple(attempt.missing))
        attempt.condemn_unreferenced()
        result = CommitResult(entries=results, condemned=tuple(attempt.condemned))
        self.entries, self.rows, self.next_id = attempt.entries, attempt.rows, attempt.next_id
        self.landed[commit_id] = result
        return result

    def announce(self, blobs: Iterable[Blob]) -> None:
        """Enter blobs as pending, unless they are known already."""
        for blob in blobs:
            self.rows.setdefault(blob.location, blob._replace(state="pending", condemned_us=None))

    def condemn(self, locations: Iterable[str], now_us: int) -> list[str]:
        """Condemn what no entry refers to; answer with those that are condemned now."""
        referenced = _references(self.entries)
        unreferenced = [loc for loc in dict.fromkeys(locations) if loc not in referenced]
        for location in unreferenced:
            row = self.rows.get(location) or Blob(location, 0, "", "none", "", 0, created_us=now_us)
            if row.state != "condemned":
                self.rows[location] = row._replace(state="condemned", condemned_us=now_us)
        return unreferenced

    def forget(self, locations: Iterable[str]) -> None:
        """Drop rows that are condemned; leave all others."""
        for location in locations:
            if location in self.rows and self.rows[location].state == "condemned":
                del self.rows[location]

    # --- reading

    def find(self, query: Query) -> list[Entry]:
        """Entries that match, in order."""
        return select(list(self.entries.values()), query)

    def live_by_digest(self) -> dict[str, Blob]:
        """Live blobs that have a digest."""
        return {
            row.digest: row
            for row in self.rows.values()
            if row.digest is not None and row.state == "live"
        }


class _Attempt:
    """One commit under way, on dictionaries of its own."""

    def __init__(
        self, entries: dict[str, Entry], rows: dict[str, Blob], next_id: int, commit_id: str
    ) -> None:
        self.entries = entries
        self.rows = rows
        self.next_id = next_id
        self.commit_id = commit_id
        self.missing: list[str] = []
        self.condemned: list[str] = []

    def apply(self, operation: Operation) -> Entry | None:
        if isinstance(operation, Put):
            return self._put(operation)
        if isinstance(operation, Delete):
            _check_expected(self.entries.get(operation.key), operation.key, operation.expected)
            return self.entries.pop(operation.key, None)
        if isinstance(operation, Copy):
            return self._copy(operation)
        return self._patch(operation)

    def condemn_unreferenced(self) -> None:
        """Only at the end: a later operation may refer to what an earlier one let go of."""
        referenced = _references(self.entries)
        for row in list(self.rows.values()):
            if row.state == "live" and row.location not in referenced:
                self._condemn(row)

    def _put(self, put: Put) -> Entry:
        draft = put.draft
        _check_expected(self.entries.get(draft.key), draft.key, put.expected)
        parts = tuple(self._part(part, put.reused) for part in draft.parts)
        # An adopted blob may be larger or smaller than the one that was written for nothing.
        stored = sum(part.blob.size for part in parts)
        return self._write(draft._replace(size=stored), parts)

    def _part(self, part: Part, reused: frozenset[str]) -> Part:
        blob = part.blob
        if part.payload is not None:
            return part
        row = self.rows.get(blob.location)
        if blob.location in reused:
            if row is None or row.state != "live":
                self.missing.append(blob.location)
                return part
            return part._replace(blob=row)
        if row is not None and row.state == "condemned":
            self.missing.append(blob.location)
            return part
        for other in self.rows.values():
            if other.state == "live" and blob.digest is not None and other.digest == blob.digest:
                self._condemn(blob)
                return part._replace(blob=other)
        self.rows[blob.location] = blob._replace(state="live", condemned_us=None)
        return part._replace(blob=self.rows[blob.location])

    def _copy(self, op: Copy) -> Entry | None:
        source = self.entries.get(op.source)
        if source is None or op.source == op.target:
            return source
        if op.target in self.entries and not op.overwrite:
            raise KeyExistsError(f"there is an entry {op.target!r} already", key=op.target)
        if op.move:
            del self.entries[op.source]
        draft = EntryDraft(
            key=op.target,
            handler=source.handler,
            data_type=source.data_type,
            info_text=source.info_text,
            metadata_text=source.metadata_text,
            parts=source.parts,
            size=source.size,
            now_us=op.now_us,
        )
        if op.sign is not None:
            signed = source._replace(key=op.target, commit_id=self.commit_id)
            draft = draft._replace(signature=op.sign(source, signed))
        return self._write(draft, source.parts)

    def _patch(self, op: Patch) -> Entry | None:
        old = self.entries.get(op.key)
        _check_expected(old, op.key, op.expected)
        if old is None:
            return None
        text = op.metadata_text
        if not op.replace:
            merged = {**json.loads(old.metadata_text), **json.loads(text)}
            text = json.dumps(merged, ensure_ascii=False, separators=(",", ":"))
        self.entries[op.key] = old._replace(
            metadata_text=text,
            version=old.version + 1,
            updated_us=op.now_us,
            commit_id=self.commit_id,
            signature=None,
        )
        if op.sign is not None:
            signature = op.sign(old, self.entries[op.key])
            self.entries[op.key] = self.entries[op.key]._replace(signature=signature)
        return self.entries[op.key]

    def _write(self, draft: EntryDraft, parts: tuple[Part, ...]) -> Entry:
        old = self.entries.get(draft.key)
        if old is None:
            entry_id, version, created_us = self.next_id, 1, draft.now_us
            self.next_id += 1
        else:
            entry_id, version, created_us = old.id, old.version + 1, old.created_us
        self.entries[draft.key] = Entry(
            id=entry_id,
            key=draft.key,
            version=version,
            commit_id=self.commit_id,
            handler=draft.handler,
            data_type=draft.data_type,
            parts=parts,
            size=draft.size,
            created_us=created_us,
            updated_us=draft.now_us,
            info_text=draft.info_text,
            metadata_text=draft.metadata_text,
            signature=draft.signature,
        )
        return self.entries[draft.key]

    def _condemn(self, blob: Blob) -> None:
        self.rows[blob.location] = blob._replace(state="condemned", condemned_us=0)
        self.condemned.append(blob.location)


def _check_expected(entry: Entry | None, key: str, expected: Expected) -> None:
    if expected == "any":
        return
    if expected == "absent":
        if entry is not None:
            raise KeyExistsError(f"there is an entry {key!r} already", key=key)
    elif expected == "present":
        if entry is None:
            raise KeyNotFoundError(f"there is no entry {key!r}", key=key)
    elif isinstance(expected, Entry):
        if entry is None or (entry.id, entry.version) != (expected.id, expected.version):
            raise ConflictError(f"{key!r} is no longer the entry that was expected", key=key)
    elif entry is None or entry.version != expected:
        raise ConflictError(f"{key!r} is not at version {expected}", key=key)


def _references(entries: Mapping[str, Entry]) -> Counter[str]:
    return Counter(location for entry in entries.values() for location in entry.locations)


class ModelBackend(MetadataBackend):
    """`Model` as a metadata backend, kept in one file in a folder.

    Parameters
    ----------
    directory : path
        Made if it does not exist.
    readonly : bool

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     backend = ModelBackend(folder)
    ...     backend.count(Query())
    0
    """

    def __init__(self, directory: str | Path, *, readonly: bool = False) -> None:
        self._directory = Path(directory).absolute()
        self._file = self._directory / "model.pickle"
        self._readonly = readonly
        self._closed = False
        if not readonly:
            self._directory.mkdir(parents=True, exist_ok=True)
            with self._lock():
                if not self._file.exists():
                    self._store(uuid.uuid4().hex, Model())

    @property
    def store_id(self) -> str:
        """Made with the file."""
        return self._load()[0]

    def commit(self, operations: Sequence[Operation], commit_id: str) -> CommitResult:
        """Apply operations to the model."""
        with self._changing() as model:
            return copy.deepcopy(model.commit(list(operations), commit_id))

    def get(self, key: str) -> Entry | None:
        """Entry of a key, or None."""
        return self._read().entries.get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """Entries of those keys that exist."""
        entries = self._read().entries
        return {key: entries[key] for key in keys if key in entries}

    def scan(self, query: Query) -> Iterator[Entry]:
        """Entries that match now."""
        return iter(self._read().find(query))

    def find_digests(self, digests: Iterable[str]) -> dict[str, Blob]:
        """Live blobs by digest."""
        live = self._read().live_by_digest()
        return {digest: live[digest] for digest in digests if digest in live}

    def blobs(self) -> Iterator[Blob]:
        """All blobs."""
        return iter(self._read().rows.values())

    def known(self, locations: Iterable[str]) -> set[str]:
        """Those of the locations that have a row."""
        return self._read().rows.keys() & set(locations)

    def announce(self, blobs: Iterable[Blob]) -> None:
        """Enter blobs as pending."""
        with self._changing() as model:
            model.announce(blobs)

    def condemn(self, locations: Iterable[str], now_us: int) -> list[str]:
        """Mark unreferenced locations as condemned."""
        with self._changing() as model:
            return model.condemn(locations, now_us)

    def condemned(self) -> list[Blob]:
        """Blobs that are condemned."""
        return [row for row in self._read().rows.values() if row.state == "condemned"]

    def forget(self, locations: Iterable[str]) -> None:
        """Drop condemned rows."""
        with self._changing() as model:
            model.forget(locations)

    def sync(self) -> None:
        """Do nothing: the model does not promise to outlive a power cut."""
        self._check_open()

    def check(self) -> list[str]:
        """Entries that refer to blobs which are not live."""
        model = self._read()
        return [
            f"{location} is referred to, but not live"
            for location in _references(model.entries)
            if location not in model.rows or model.rows[location].state != "live"
        ]

    def stats(self) -> Mapping[str, Any]:
        """Where it is."""
        return {"kind": "model", "path": str(self._file)}

    def close(self) -> None:
        """Refuse all further calls."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the index in {self._directory} was closed: open it again")

    def _lock(self) -> FileLock:
        # A new one each time: nothing is held between calls that a forked child could inherit.
        return FileLock(self._directory / "model.lock")

    def _read(self) -> Model:
        self._check_open()
        return self._load()[1]

    @contextmanager
    def _changing(self) -> Iterator[Model]:
        self._check_open()
        if self._readonly:
            raise PermissionDeniedError(f"the index in {self._directory} was opened readonly")
        with self._lock():
            store_id, model = self._load()
            yield model
            self._store(store_id, model)

    def _load(self) -> tuple[str, Model]:
        loaded: tuple[str, Model] = pickle.loads(self._file.read_bytes())
        return loaded

    def _store(self, store_id: str, model: Model) -> None:
        temporary = self._file.with_suffix(".tmp")
        temporary.write_bytes(pickle.dumps((store_id, model)))
        temporary.replace(self._file)
