"""What the index knows: entries, their parts, and the blobs that parts point at.

All of these are immutable values. JSON is kept as text, which is the truth (exact numbers, order
of names, any character); `Entry.metadata` parses it anew at each access, so nothing that a caller
does to the result can reach the index.

Those of which one is made for each put and get are named tuples: they cost a third of a frozen
dataclass to make.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

BlobState = Literal["live", "condemned", "pending"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_us() -> int:
    """Microseconds since 1970, UTC, now."""
    return time.time_ns() // 1000


def to_datetime(microseconds: int) -> datetime:
    """Turn integer microseconds since 1970 (UTC) into an aware datetime.

    Examples
    --------
    >>> to_datetime(0).isoformat()
    '1970-01-01T00:00:00+00:00'
    """
    return _EPOCH + timedelta(microseconds=microseconds)


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What an object store knows of one object without reading it.

    Attributes
    ----------
    size : int
        In bytes.
    modified : datetime or None
        Aware, UTC.
    etag : str or None
        The store's own token: another etag means other bytes.
    """

    size: int
    modified: datetime | None = None
    etag: str | None = None


class Blob(NamedTuple):
    """One immutable run of bytes in the object store, as the index records it.

    Attributes
    ----------
    location : str
        Where the object store keeps it. Fresh and random; never reused, never derived from content.
    size : int
        Stored bytes.
    checksum : str
        Of the stored bytes, with its algorithm: ``"blake3:<hex>"`` or ``"xxh3-128:<hex>"``.
    digest : str or None
        Of the logical content, bare hex; only where content addressing is on.
    codec : str
        What the stored bytes were compressed with; "none" where that did not pay.
    handler, format_version : str, int
        The format of the stored bytes.
    state : {"live", "condemned", "pending"}
        Condemned: unreferenced, its bytes are being deleted or already are. Pending: announced
        before it was written, by a store that cannot list what it holds.
    created_us, condemned_us : int, int or None
        Microseconds since 1970, UTC.
    """

    location: str
    size: int
    checksum: str
    codec: str
    handler: str
    format_version: int
    digest: str | None = None
    state: BlobState = "live"
    created_us: int = 0
    condemned_us: int | None = None


class Part(NamedTuple):
    """One named piece of an entry: a blob, or bytes kept inside the index.

    Attributes
    ----------
    name : str
        Given by the handler; unique within the entry.
    blob : Blob
        Facts of the bytes. `location` is "" for an inline payload.
    payload : bytes or None
        The stored bytes themselves, if they live in the index.
    """

    name: str
    blob: Blob
    payload: bytes | None = None


class EntryDraft(NamedTuple):
    """An entry as a writer proposes it; the index adds id, version and creation time.

    Parts are either all blobs, or exactly one inline payload.
    """

    key: str
    handler: str
    data_type: str
    info_text: str
    metadata_text: str
    parts: tuple[Part, ...]
    size: int
    now_us: int
    signature: str | None = None


class Entry(NamedTuple):
    """One key of a store, as the index holds it.

    Attributes
    ----------
    id : int
        Of this incarnation of the key: never used again, also when a key is deleted and re-made.
    key : str
    version : int
        1 at first, one more with each overwrite or change of metadata.
    commit_id : str
        Of the commit that wrote this version.
    handler, data_type : str
        Who reads it ("numpy"), and what kind of thing it is ("array", "dataframe", "object").
    parts : tuple of Part
    size : int
        Stored bytes of all parts; a shared blob counts in full.
    created_us, updated_us : int
        Microseconds since 1970, UTC; see `created_at`, `updated_at`.
    info_text, metadata_text : str
        JSON; see `info`, `metadata`.
    signature : str or None
        Of the whole entry by its writer's key.
    """

    id: int
    key: str
    version: int
    commit_id: str
    handler: str
    data_type: str
    info_text: str
    metadata_text: str
    parts: tuple[Part, ...]
    size: int
    created_us: int
    updated_us: int
    signature: str | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """The user's metadata: a fresh copy at each access."""
        value: dict[str, Any] = json.loads(self.metadata_text)
        return value

    @property
    def info(self) -> dict[str, Any]:
        """What the handler noted at writing (dtype, shape ...): a fresh copy at each access."""
        value: dict[str, Any] = json.loads(self.info_text)
        return value

    @property
    def created_at(self) -> datetime:
        """When the key was first stored; aware, UTC."""
        return to_datetime(self.created_us)

    @property
    def updated_at(self) -> datetime:
        """When the object or its metadata last changed; aware, UTC."""
        return to_datetime(self.updated_us)

    @property
    def inline(self) -> bool:
        """Whether the bytes live in the index row itself."""
        return bool(self.parts) and self.parts[0].payload is not None

    @property
    def locations(self) -> tuple[str, ...]:
        """Where the object store keeps the parts; empty if inline."""
        return tuple(part.blob.location for part in self.parts if part.payload is None)
