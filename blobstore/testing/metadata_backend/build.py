"""How the tests make operations, and look at what came of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from blobstore import metadata as metadata_json
from blobstore.entry import Blob, Entry, EntryDraft, Part
from blobstore.keys import new_location, random_id
from blobstore.protocols import (
    CommitResult,
    Copy,
    Expected,
    MetadataBackend,
    Operation,
    Patch,
    Put,
    Sign,
)
from blobstore.query import Query, parse_mapping

ALL = Query()


def make_blob(location: str | None = None, *, digest: str | None = None, **facts: Any) -> Blob:
    """Build a blob with a fresh location and plausible facts.

    Examples
    --------
    >>> make_blob(digest="d1").state
    'live'
    """
    plausible: dict[str, Any] = {
        "size": 7,
        "checksum": "xxh3-128:00",
        "codec": "lz4",
        "handler": "pickle",
        "format_version": 1,
        "created_us": 1,
    }
    where = new_location(".pkl") if location is None else location
    return Blob(location=where, digest=digest, **(plausible | facts))


def make_inline(payload: bytes) -> Part:
    """Build the only part of an entry whose bytes live in the index.

    Examples
    --------
    >>> make_inline(b"abc").blob.location
    ''
    """
    return Part("data", make_blob("", size=len(payload), codec="none"), payload)


def make_put(
    key: str,
    *blobs: Blob,
    metadata: Mapping[str, Any] | None = None,
    expected: Expected = "any",
    reused: Iterable[Blob] = (),
    **fields: Any,
) -> Put:
    """Build the operation that sets a key to parts "part0", "part1" ...; one blob if none is given.

    `fields` are those of `EntryDraft`, where others than plausible ones are wanted.

    Examples
    --------
    >>> make_put("k", metadata={"a": 1}).draft.metadata_text
    '{"a":1}'
    """
    parts = tuple(Part(f"part{i}", blob) for i, blob in enumerate(blobs or (make_blob(),)))
    parts = fields.pop("parts", parts)
    plausible: dict[str, Any] = {
        "handler": "pickle",
        "data_type": "object",
        "info_text": "{}",
        "metadata_text": metadata_json.to_text(metadata),
        "size": sum(part.blob.size for part in parts),
        "now_us": 1,
    }
    draft = EntryDraft(key=key, parts=parts, **(plausible | fields))
    return Put(draft, frozenset(blob.location for blob in reused), expected)


def make_patch(
    key: str,
    changes: Mapping[str, Any],
    *,
    replace: bool = False,
    expected: Expected = "any",
    now_us: int = 2,
    sign: Sign | None = None,
) -> Patch:
    """Build the operation that changes metadata.

    Examples
    --------
    >>> make_patch("k", {"a": 1}).metadata_text
    '{"a":1}'
    """
    return Patch(key, metadata_json.to_text(changes), now_us, replace, expected, sign)


def make_copy(source: str, target: str, **options: Any) -> Copy:
    """Build the operation that copies, or with ``move=True`` moves, an entry."""
    return Copy(source, target, **({"now_us": 3} | options))


def equal_to(equal: Mapping[str, Any], **others: Any) -> Query:
    """Build the query for entries whose metadata has these values under these literal names."""
    return Query(where=parse_mapping(equal, literal=True), **others)


def commit(backend: MetadataBackend, *operations: Operation) -> CommitResult:
    """Commit under a fresh id, and insist that nothing was missing."""
    result = backend.commit(operations, random_id())
    assert result.missing == ()
    return result


def put(backend: MetadataBackend, key: str, *blobs: Blob, **fields: Any) -> Entry:
    """Commit one put and return the entry."""
    (entry,) = commit(backend, make_put(key, *blobs, **fields)).entries
    assert entry is not None
    return entry


def stored(backend: MetadataBackend, key: str) -> Entry:
    """Return the entry of a key that must be there."""
    entry = backend.get(key)
    assert entry is not None
    return entry


def rows(backend: MetadataBackend) -> dict[str, Blob]:
    """Return all blob rows by location; no location may have two."""
    listed = list(backend.blobs())
    by_location = {blob.location: blob for blob in listed}
    assert len(by_location) == len(listed)
    return by_location


def states(backend: MetadataBackend) -> dict[str, str]:
    """Return the state of every blob row by location."""
    return {location: blob.state for location, blob in rows(backend).items()}


def snapshot(backend: MetadataBackend) -> tuple[list[Entry], dict[str, Blob]]:
    """Return all that the index holds."""
    return list(backend.scan(ALL)), rows(backend)


class BackendFactory:
    """How the tests get at a backend. Override `make_backend`."""

    def make_backend(self, path: Path, **options: Any) -> MetadataBackend:
        """Open the index that lives in the folder `path`, or make a new one there.

        Parameters
        ----------
        path : Path
            Of a folder; its parent exists. The same path is the same index.
        **options
            ``fsync=True`` or ``readonly=True``, else nothing.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def opened(self, path: Path, **options: Any) -> Iterator[MetadataBackend]:
        """Open a backend for the length of a block."""
        backend = self.make_backend(path, **options)
        try:
            yield backend
        finally:
            backend.close()

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        """Where the index of this test lives."""
        return tmp_path / "index"

    @pytest.fixture
    def backend(self, place: Path) -> Iterator[MetadataBackend]:
        """Open an empty index."""
        with self.opened(place) as backend:
            yield backend
