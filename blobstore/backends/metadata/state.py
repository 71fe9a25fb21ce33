"""What a JSON index holds in memory, how a commit changes it, and how both are written as JSON.

Nothing here touches a file. `plan` turns operations into `Changes` without changing the state;
`IndexState.apply` takes `Changes` in, whether they were just planned or read from a journal.

The JSON of changes and that of the whole state have the same two members::

    "entries": {"<key>": {"id": 1, "version": 1, "info": {...}, "metadata": {...},
                          "parts": [{"name": "data", "location": "<location>"}], ...}}
    "blobs":   {"<location>": {"size": 10, "checksum": "xxh3-128:...", "codec": "lz4", ...}}

where null in changes means that the entry or blob is no more. Members that have their usual value
(a live blob's state, no digest, no signature) are left out. Metadata and info are nested as JSON;
a text that does not come back as it was when parsed and written again (``1e5``, repeated names)
is kept as a string, in "metadata_text" or "info_text". A part inside the index has "payload", in
Base64, and the facts of its bytes in place of "location".
"""

from __future__ import annotations

import base64
import binascii
import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NoReturn

from blobstore import metadata as _metadata
from blobstore.entry import Blob, Entry, EntryDraft, Part
from blobstore.errors import IntegrityError
from blobstore.keys import successor
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

_RESORT = 64
"""Up to so many new or removed keys are put in their place; more of them, and all are sorted."""

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


# --- JSON ----------------------------------------------------------------------------------------


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _nest(name: str, text: str) -> tuple[str, Any]:
    """The member that holds a JSON text: nested if that loses nothing, else as a string."""
    if text == "{}":
        return name, {}
    try:
        value = _decode(text)
        if encode(value) == text:
            return name, value
    except (ValueError, RecursionError):
        pass  # no JSON, a float beyond all bounds, an integer of over 4,300 digits
    return f"{name}_text", text


def _unnest(record: Mapping[str, Any], name: str) -> str:
    if name in record:
        value = record[name]
        return "{}" if value == {} else encode(value)
    text: str = record[f"{name}_text"]
    return text


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """The record of an entry; its key stands outside."""
    info, metadata = _nest("info", entry.info_text), _nest("metadata", entry.metadata_text)
    record = {
        "id": entry.id,
        "version": entry.version,
        "commit_id": entry.commit_id,
        "handler": entry.handler,
        "data_type": entry.data_type,
        "size": entry.size,
        "created_us": entry.created_us,
        "updated_us": entry.updated_us,
        info[0]: info[1],
        metadata[0]: metadata[1],
        "parts": [_part_to_json(part) for part in entry.parts],
    }
    if entry.signature is not None:
        record["signature"] = entry.signature
    return record


def entry_from_json(key: str, record: Mapping[str, Any], row: Callable[[str], Blob]) -> Entry:
    """Rebuild an entry; `row` gives the blob at a location that a part refers to."""
    return Entry(
        id=record["id"],
        key=key,
        version=record["version"],
        commit_id=record["commit_id"],
        handler=record["handler"],
        data_type=record["data_type"],
        info_text=_unnest(record, "info"),
        metadata_text=_unnest(record, "metadata"),
        parts=tuple([_part_from_json(part, row) for part in record["parts"]]),
        size=record["size"],
        created_us=record["created_us"],
        updated_us=record["updated_us"],
        signature=record.get("signature"),
    )


def _part_to_json(part: Part) -> dict[str, Any]:
    if part.payload is None:
        return {"name": part.name, "location": part.blob.location}
    payload = base64.b64encode(part.payload).decode("ascii")
    return {"name": part.name, "payload": payload, **blob_to_json(part.blob)}


def _part_from_json(record: Mapping[str, Any], row: Callable[[str], Blob]) -> Part:
    if "location" in record:
        return Part(record["name"], row(record["location"]))
    payload = base64.b64decode(record["payload"], validate=True)
    return Part(record["name"], blob_from_json("", record), payload)


def blob_to_json(blob: Blob) -> dict[str, Any]:
    """The record of a blob; its location stands outside."""
    record: dict[str, Any] = {
        "size": blob.size,
        "checksum": blob.checksum,
        "codec": blob.codec,
        "handler": blob.handler,
        "format_version": blob.format_version,
        "created_us": blob.created_us,
    }
    if blob.digest is not None:
        record["digest"] = blob.digest
    if blob.state != "live":
        record["state"] = blob.state
    if blob.condemned_us is not None:
        record["condemned_us"] = blob.condemned_us
    return record


def blob_from_json(location: str, record: Mapping[str, Any]) -> Blob:
    """Rebuild a blob."""
    return Blob(
        location,
        record["size"],
        record["checksum"],
        record["codec"],
        record["handler"],
        record["format_version"],
        record.get("digest"),
        record.get("state", "live"),
        record["created_us"],
        record.get("condemned_us"),
    )


# --- changes -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Changes:
    """What one commit does to the state: the content of one line of the journal.

    Attributes
    ----------
    commit_id : str
        "" for changes of blobs alone.
    next_id : int
        Above every id that was ever given.
    entries : dict of str to (Entry or None)
        As they are afterwards; None: the key is no more.
    blobs : dict of str to (Blob or None)
        Likewise, by location.
    """

    commit_id: str
    next_id: int
    entries: dict[str, Entry | None] = field(default_factory=dict)
    blobs: dict[str, Blob | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.entries or self.blobs)

    def to_json(self) -> str:
        """The text of a journal line."""
        return encode(
            {
                "commit_id": self.commit_id,
                "next_id": self.next_id,
                "entries": {
                    key: None if entry is None else entry_to_json(entry)
                    for key, entry in self.entries.items()
                },
                "blobs": {
                    location: None if blob is None else blob_to_json(blob)
                    for location, blob in self.blobs.items()
                },
            }
        )


# --- the state -----------------------------------------------------------------------------------


class IndexState:
    """Entries and blobs in memory, with what it takes to find them quickly.

    Parameters
    ----------
    store_id : str
    next_id : int

    Attributes
    ----------
    entries : dict of str to Entry
        By key. A part's `blob` is the very row in `blobs`.
    blobs : dict of str to Blob
        By location, in whatever state.
    references : dict of str to int
        How many parts of entries refer to a location; no zeros.
    digests : dict of str to str
        Of live blobs, to their locations.
    """

    def __init__(self, store_id: str, next_id: int = 1) -> None:
        self.store_id = store_id
        self.next_id = next_id
        self.entries: dict[str, Entry] = {}
        self.blobs: dict[str, Blob] = {}
        self.references: dict[str, int] = {}
        self.digests: dict[str, str] = {}
        self._order: list[str] = []
        self._unplaced: set[str] = set()

    def apply(self, changes: Changes) -> None:
        """Take changes in. If interrupted, the state is torn and to be thrown away."""
        for location, blob in changes.blobs.items():
            self._set_blob(location, blob)
        for key, entry in changes.entries.items():
            self._set_entry(key, entry)
        self.next_id = changes.next_id

    def apply_json(self, record: Mapping[str, Any]) -> None:
        """Take in changes, or a whole state, that were written as JSON.

        Raises
        ------
        IntegrityError
            It is not what this version writes.
        """
        try:
            changes = self._changes_from_json(record)
        except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as exc:
            raise IntegrityError(
                f"a record of the index cannot be understood ({type(exc).__name__}: {exc})"
            ) from exc
        self.apply(changes)

    def document_lines(self) -> Iterator[str]:
        """The members "entries" and "blobs", one record a line, entries in the order of keys."""
        records = (
            f"{encode(key)}: {encode(entry_to_json(self.entries[key]))}" for key in self.ordered()
        )
        yield from _object_lines("entries", records)
        yield ",\n"
        rows = (f"{encode(loc)}: {encode(blob_to_json(b))}" for loc, b in self.blobs.items())
        yield from _object_lines("blobs", rows)

    # --- reading

    def ordered(self) -> list[str]:
        """All keys in the order of code points; not to be changed, nor kept."""
        if len(self._unplaced) > _RESORT:
            self._order = sorted(self.entries)
        else:
            for key in self._unplaced:
                self._place(key)
        self._unplaced = set()
        return self._order

    def page(self, prefix: str, after: str | None, size: int) -> list[Entry]:
        """Up to `size` entries with that prefix, in order, from above `after` on."""
        order = self.ordered()
        start = self._start(order, prefix, after)
        page = []
        for key in islice(order, start, start + size):
            if not key.startswith(prefix):
                break
            page.append(self.entries[key])
        return page

    def count(self, prefix: str, after: str | None) -> int:
        """How many keys have that prefix and are above `after`."""
        order = self.ordered()
        end = successor(prefix)
        stop = len(order) if end is None else bisect_left(order, end)
        return max(0, stop - self._start(order, prefix, after))

    @staticmethod
    def _start(order: list[str], prefix: str, after: str | None) -> int:
        start = bisect_left(order, prefix)
        return start if after is None else max(start, bisect_right(order, after))

    def live_by_digest(self, digests: Iterable[str]) -> dict[str, Blob]:
        """Live blobs of those digests."""
        return {d: self.blobs[self.digests[d]] for d in digests if d in self.digests}

    def problems(self) -> Iterator[str]:
        """What does not fit together, one line each."""
        counted: dict[str, int] = {}
        ids: dict[int, str] = {}
        for key, entry in self.entries.items():
            if entry.id >= self.next_id or ids.setdefault(entry.id, key) != key:
                yield f"the entry {key!r} has the id {entry.id}, which is not its own"
            for location in entry.locations:
                counted[location] = counted.get(location, 0) + 1
                if (row := self.blobs.get(location)) is None or row.state != "live":
                    state = "unknown" if row is None else row.state
                    yield f"the entry {key!r} refers to the blob {location}, which is {state}"
        if counted != self.references:
            yield "the counted references are not those that entries have"
        for location, blob in self.blobs.items():
            if blob.state != "live":
                continue
            if location not in counted:
                yield f"the blob {location} is live, but no entry refers to it"
            if blob.digest is not None and self.digests.get(blob.digest) != location:
                yield f"the blob {location} is live, and so is another of its digest"

    # --- changing

    def _set_blob(self, location: str, blob: Blob | None) -> None:
        old = self.blobs.get(location)
        if old is not None and old.digest is not None and self.digests.get(old.digest) == location:
            del self.digests[old.digest]
        if blob is None:
            self.blobs.pop(location, None)
            return
        self.blobs[location] = blob
        if blob.state == "live" and blob.digest is not None:
            self.digests[blob.digest] = location

    def _set_entry(self, key: str, entry: Entry | None) -> None:
        old = self.entries.get(key)
        if (old is None) != (entry is None):
            self._unplaced.add(key)
        if entry is None:
            self.entries.pop(key, None)
        else:
            self.entries[key] = entry
            for location in entry.locations:
                self.references[location] = self.references.get(location, 0) + 1
        if old is not None:
            for location in old.locations:
                left = self.references[location] - 1
                if left:
                    self.references[location] = left
                else:
                    del self.references[location]

    def _place(self, key: str) -> None:
        index = bisect_left(self._order, key)
        there = index < len(self._order) and self._order[index] == key
        if there and key not in self.entries:
            del self._order[index]
        elif not there and key in self.entries:
            self._order.insert(index, key)

    def _changes_from_json(self, record: Mapping[str, Any]) -> Changes:
        blobs = {
            location: None if row is None else blob_from_json(location, row)
            for location, row in record["blobs"].items()
        }

        def row(location: str) -> Blob:
            found = blobs.get(location)
            return self.blobs[location] if found is None else found

        entries = {
            key: None if value is None else entry_from_json(key, value, row)
            for key, value in record["entries"].items()
        }
        return Changes(record.get("commit_id", ""), record["next_id"], entries, blobs)


def _object_lines(name: str, members: Iterable[str]) -> Iterator[str]:
    """A member of the document that is an object, one of its members a line."""
    yield f'  "{name}": {{'
    separator = "\n"
    for member in members:
        yield f"{separator}    {member}"
        separator = ",\n"
    yield "\n  }"


# --- planning ------------------------------------------------------------------------------------


def plan(
    state: IndexState, operations: Sequence[Operation], commit_id: str, now_us: int
) -> tuple[Changes, CommitResult]:
    """What the operations, in order, would change, and what the commit would answer.

    Parameters
    ----------
    state : IndexState
        Not changed.
    operations : sequence of Operation
    commit_id : str
    now_us : int
        The time at which the blobs of deleted entries are condemned.

    Returns
    -------
    Changes
        Without any, if blobs are missing.
    CommitResult

    Raises
    ------
    KeyExistsError, KeyNotFoundError, ConflictError
        An expectation does not hold.
    """
    draft = _Planner(state, commit_id, now_us)
    entries = tuple([draft.run(operation) for operation in operations])
    if draft.missing:
        return Changes(commit_id, state.next_id), CommitResult(missing=tuple(draft.missing))
    draft.condemn_unreferenced()
    return draft.changes, CommitResult(entries, tuple(draft.condemned))


class _Planner:
    """A state as it would be after some operations: the changes, laid over what does not change."""

    def __init__(self, state: IndexState, commit_id: str, now_us: int) -> None:
        self.state = state
        self.changes = Changes(commit_id, state.next_id)
        self.condemned: dict[str, None] = {}
        self.missing: dict[str, None] = {}
        self._now_us = now_us
        self._references: dict[str, int] = {}
        self._dropped: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._adopted: dict[str, str] = {}

    def run(self, operation: Operation) -> Entry | None:
        """Plan one operation and answer with the entry as it then is."""
        if isinstance(operation, Put):
            return self._put(operation)
        if isinstance(operation, Delete):
            return self._delete(operation)
        if isinstance(operation, Copy):
            return self._copy(operation)
        return self._patch(operation)

    def condemn_unreferenced(self) -> None:
        """Condemn what was dropped and not taken up again.

        At the end, since a later operation may refer to what an earlier one let go of.
        """
        for location, when in self._dropped.items():
            count = self.state.references.get(location, 0) + self._references[location]
            row = self._blob(location)
            if count == 0 and row is not None and row.state == "live":
                self._condemn(row, when)

    # --- operations

    def _put(self, op: Put) -> Entry:
        draft = op.draft
        check_expected(draft.key, self._entry(draft.key), op.expected)
        parts = tuple([self._place(part, op) for part in draft.parts])
        # A blob that is adopted may be larger or smaller than the writer's own.
        growth = sum([part.blob.size for part in parts]) - sum([p.blob.size for p in draft.parts])
        return self._write(draft._replace(size=draft.size + growth) if growth else draft, parts)

    def _delete(self, op: Delete) -> Entry | None:
        old = self._entry(op.key)
        check_expected(op.key, old, op.expected)
        if old is not None:
            self._set(op.key, None, self._now_us)
        return old

    def _copy(self, op: Copy) -> Entry | None:
        source = self._entry(op.source)
        if source is None or op.source == op.target:
            return source
        if not op.overwrite:
            check_expected(op.target, self._entry(op.target), "absent")
        draft = EntryDraft(
            key=op.target,
            handler=source.handler,
            data_type=source.data_type,
            info_text=source.info_text,
            metadata_text=source.metadata_text,
            parts=source.parts,
            size=source.size,
            now_us=op.now_us,
            signature=signature_after(op, source, self._becoming(source, op.target)),
        )
        target = self._write(draft, source.parts)
        if op.move:
            self._set(op.source, None, op.now_us)
        return target

    def _patch(self, op: Patch) -> Entry | None:
        old = self._entry(op.key)
        check_expected(op.key, old, op.expected)
        if old is None:
            return None
        new = old._replace(
            version=old.version + 1,
            commit_id=self.changes.commit_id,
            metadata_text=_metadata.merge(old.metadata_text, op.metadata_text, replace=op.replace),
            updated_us=op.now_us,
        )
        new = new._replace(signature=signature_after(op, old, new))
        self._set(op.key, new, op.now_us)
        return new

    # --- entries

    def _entry(self, key: str) -> Entry | None:
        if key in self.changes.entries:
            return self.changes.entries[key]
        return self.state.entries.get(key)

    def _becoming(self, source: Entry, key: str) -> Entry:
        """What a copy of an entry is, as far as it is signed."""
        return source._replace(key=key, commit_id=self.changes.commit_id)

    def _write(self, draft: EntryDraft, parts: tuple[Part, ...]) -> Entry:
        """Make the draft an entry: the next version of its key, or a new one."""
        old = self._entry(draft.key)
        if old is None:
            entry_id, version, created_us = self.changes.next_id, 1, draft.now_us
            self.changes.next_id += 1
        else:
            entry_id, version, created_us = old.id, old.version + 1, old.created_us
        entry = Entry(
            id=entry_id,
            key=draft.key,
            version=version,
            commit_id=self.changes.commit_id,
            handler=draft.handler,
            data_type=draft.data_type,
            info_text=draft.info_text,
            metadata_text=draft.metadata_text,
            parts=parts,
            size=draft.size,
            created_us=created_us,
            updated_us=draft.now_us,
            signature=draft.signature,
        )
        self._set(draft.key, entry, draft.now_us)
        return entry

    def _set(self, key: str, entry: Entry | None, now_us: int) -> None:
        old = self._entry(key)
        self.changes.entries[key] = entry
        counts = self._references
        for location in () if entry is None else entry.locations:
            counts[location] = counts.get(location, 0) + 1
        for location in () if old is None else old.locations:
            counts[location] = counts.get(location, 0) - 1
            self._dropped[location] = now_us

    # --- blobs

    def _blob(self, location: str) -> Blob | None:
        found = self.changes.blobs.get(location)  # a plan forgets no blob: None is "not in here"
        return self.state.blobs.get(location) if found is None else found

    def _place(self, part: Part, op: Put) -> Part:
        """The part with the row that its blob has, or gets."""
        if part.payload is not None:
            return part
        location = part.blob.location
        location = self._adopted.get(location, location)
        row = self._blob(location)
        if row is not None and row.state == "live":
            return Part(part.name, row)
        if location in op.reused or (row is not None and row.state == "condemned"):
            self.missing[location] = None
            return part
        return Part(part.name, self._enter(part.blob, op.draft.now_us))

    def _enter(self, blob: Blob, now_us: int) -> Blob:
        """Enter a new blob, unless there is a live one of its digest: then that is adopted."""
        if (live := self._live(blob.digest)) is not None:
            self._adopted[blob.location] = live.location
            self._condemn(blob, now_us)
            return live
        row = blob._replace(state="live", condemned_us=None)
        self.changes.blobs[row.location] = row
        if row.digest is not None:
            self._digests[row.digest] = row.location
        return row

    def _live(self, digest: str | None) -> Blob | None:
        if digest is None:
            return None
        location = self._digests.get(digest) or self.state.digests.get(digest)
        return None if location is None else self._blob(location)

    def _condemn(self, blob: Blob, now_us: int) -> None:
        self.changes.blobs[blob.location] = blob._replace(state="condemned", condemned_us=now_us)
        self.condemned[blob.location] = None


def plan_announcement(state: IndexState, blobs: Iterable[Blob]) -> Changes:
    """Enter blobs as pending, those that are not known."""
    changes = Changes("", state.next_id)
    for blob in blobs:
        if blob.location not in state.blobs and blob.location not in changes.blobs:
            changes.blobs[blob.location] = blob._replace(state="pending", condemned_us=None)
    return changes


def plan_condemnation(
    state: IndexState, locations: Iterable[str], now_us: int
) -> tuple[Changes, list[str]]:
    """Condemn those of the locations that no entry refers to; unknown ones are entered."""
    changes = Changes("", state.next_id)
    condemned = [loc for loc in dict.fromkeys(locations) if loc not in state.references]
    for location in condemned:
        row = state.blobs.get(location) or Blob(location, 0, "", "none", "", 0, created_us=now_us)
        if row.state != "condemned":
            changes.blobs[location] = row._replace(state="condemned", condemned_us=now_us)
    return changes, condemned


def plan_forgetting(state: IndexState, locations: Iterable[str]) -> Changes:
    """Drop those of the locations that are condemned."""
    changes = Changes("", state.next_id)
    for location in locations:
        row = state.blobs.get(location)
        if row is not None and row.state == "condemned":
            changes.blobs[location] = None
    return changes
