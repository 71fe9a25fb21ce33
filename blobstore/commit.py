"""The order of steps by which objects get into a store, and superseded bytes out of it.

A put encodes new blobs under fresh random locations, then commits the index row, which is the one
atomic switch, then deletes the bytes that the commit left unreferenced. Killed before the switch,
it leaves blobs that no entry knows; killed after it, condemned ones; `gc` finds both.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from blobstore import digest as digests
from blobstore import keys, limits
from blobstore.entry import Blob, Entry, EntryDraft, Part, now_us
from blobstore.errors import (
    BlobStoreError,
    ConflictError,
    HandlerError,
    KeyExistsError,
    KeyNotFoundError,
    LostDraftError,
    UnavailableError,
)
from blobstore.protocols import (
    CommitResult,
    Expected,
    MetadataBackend,
    ObjectStore,
    Operation,
    PlannedPart,
    Put,
    WriteOptions,
    check_expected,
)
from blobstore.registry import HandlerSet, Planned
from blobstore.signing import Signer
from blobstore.streams import HashingSink, MemorySink

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_ATTEMPTS = 30
_FORGET_AT = 256
_HASHED_APART = 1 << 20
"""Digests of parts from this size on are worth a thread each."""

_IN_MEMORY = 8 << 20
"""Parts that may run code are encoded in memory up to this size, to find out if they are known."""
_to_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """How a store writes.

    Attributes
    ----------
    options : WriteOptions
    digest : str or None
        Algorithm of content addressing; None where it is off.
    fsync : bool
        Whether an acknowledged change is on disk. Without it, superseded blobs are deleted only
        once their successors and the index are.
    syncs_itself : bool
        Whether index and object store were made to sync each write before they answer.
    """

    options: WriteOptions
    digest: str | None
    fsync: bool
    syncs_itself: bool


@dataclass(slots=True)
class Request:
    """One object to be stored; everything but the object was validated."""

    data: Any
    key: str | None
    metadata_text: str
    expected: Expected = "any"

    @property
    def keeps(self) -> bool:
        """Whether an entry under the generated key is left as it is.

        The same content again, without metadata, is no reason to lose the metadata it has.
        """
        return self.key is None and self.expected == "any" and self.metadata_text == "{}"


@dataclass(slots=True)
class _Staged:
    """One request on its way: what was planned, and what is written of it so far."""

    request: Request
    planned: Planned
    info_text: str
    digests: list[str | None] = field(default_factory=list)
    parts: list[Part | None] = field(default_factory=list)
    reused: set[str] = field(default_factory=set)
    unshared: set[int] = field(default_factory=set)
    written: list[str] = field(default_factory=list)
    key: str = ""
    unvouched: Entry | None = None
    """What is under the generated key, where it has the same content but not our signature."""


class Committer:
    """Writes objects and changes entries; all changes of a store pass through here.

    Parameters
    ----------
    index : MetadataBackend
    objects : ObjectStore
    handlers : HandlerSet
    policy : WritePolicy
    signer : Signer, optional
        Signs what may run code when it is read. Without it nothing is signed.
    """

    def __init__(
        self,
        index: MetadataBackend,
        objects: ObjectStore,
        handlers: HandlerSet,
        policy: WritePolicy,
        signer: Signer | None = None,
    ) -> None:
        self._index = index
        self._objects = objects
        self._handlers = handlers
        self._policy = policy
        self._signer = signer
        self._announces = not objects.capabilities.list
        self._deleted: list[str] = []

    def put(self, request: Request) -> Entry:
        """Store one object; see `put_many`."""
        return self.put_many([request])[0]

    def put_many(self, requests: Sequence[Request]) -> list[Entry]:
        """Store objects: blobs in parallel, then one commit of the index for all of them.

        Raises
        ------
        UnsupportedTypeError
            An object that no handler stores; nothing was stored.
        KeyExistsError, KeyNotFoundError, ConflictError
            An expectation does not hold; nothing was stored.
        StorageError
            Bytes or index could not be written; nothing was stored, unless the error is
            `UnavailableError` with the outcome "unknown".
        """
        self._check_expected(requests)
        staged = self._each(self._stage, requests)
        if self._policy.digest is None:
            return self._write_and_commit(staged)
        for _ in range(_ATTEMPTS):
            kept = self._find_kept(staged)
            new = _without_kept(staged, kept)
            try:
                done = {entry.key: entry for entry in self._write_and_commit(new)}
            except (KeyExistsError, ConflictError) as exc:
                if not any(item.key == exc.key for item in new if item.request.keeps):
                    raise
            else:
                return [done.get(item.key) or kept[item.key] for item in staged]
        raise UnavailableError("the same content was stored and deleted all the time: try again")

    def _find_kept(self, staged: Sequence[_Staged]) -> dict[str, Entry]:
        """Entries under generated keys that stay as they are.

        One that should be signed, but is not by us, does not: what is stored now has to load.
        """
        kept = self._index.get_many(item.key for item in staged if item.request.keeps)
        for item in staged:
            entry = kept.get(item.key) if item.request.keeps else None
            item.unvouched = None
            if entry is not None and not self._vouched(entry, item.planned):
                item.unvouched = entry
                del kept[item.key]
        return kept

    def _vouched(self, entry: Entry, planned: Planned) -> bool:
        runs_code = self._handlers.by_name(entry.handler).runs_code
        if self._signer is None or not (runs_code or _needs_signature(planned)):
            return True
        return self._signer.doubt(entry) is None or not self._signer.can_sign()

    def _check_expected(self, requests: Sequence[Request]) -> None:
        """Fail before anything is written where the outcome is known; the commit looks again."""
        for request in requests:
            if request.expected != "any" and request.key is not None:
                check_expected(request.key, self._index.get(request.key), request.expected)

    def _write_and_commit(self, staged: Sequence[_Staged]) -> list[Entry]:
        if not staged:
            return []
        try:
            self._write_missing(staged)
        except BaseException:
            self._discard(staged)
            raise
        return self._commit_staged(staged)

    def apply(self, operations: Sequence[Operation]) -> CommitResult:
        """Commit changes that write no blob (delete, copy, patch), and clean up after them."""
        result = self._index.commit(operations, keys.random_id())
        self._settle(result)
        return result

    def close(self) -> None:
        """Drop the rows of blobs whose bytes are gone."""
        try:
            self._forget()
        except BlobStoreError as exc:
            logger.warning("left the rows of deleted blobs to gc: %s", exc)

    # --- staging ---

    def _each(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Run `work` over items, in threads if there are several; results in order."""
        if len(items) <= 1:
            return [work(item) for item in items]
        workers = min(len(items), 4 * (os.cpu_count() or 1), 16)
        with ThreadPoolExecutor(workers, thread_name_prefix="blobstore") as pool:
            return list(pool.map(work, items))

    def _stage(self, request: Request) -> _Staged:
        """Plan an object, and give it its key."""
        planned = self._handlers.plan(request.data, self._policy.options)
        staged = _Staged(request, planned, _info_text(planned))
        staged.parts = [None] * len(planned.plan.parts)
        staged.digests = [None] * len(planned.plan.parts)
        # What may end up in the index row is shared with nothing, and needs no digest yet.
        if request.key is None or not self._may_be_inline(staged):
            self._digest_all(staged)
        staged.key = request.key or self._generate_key(staged)
        return staged

    def _digest_all(self, staged: _Staged) -> None:
        """Find all digests; those of large parts side by side, as hashing lets other threads run."""
        if self._policy.digest is None:
            return
        parts = staged.planned.plan.parts
        large = [i for i, part in enumerate(parts) if part.size_hint >= _HASHED_APART]
        self._each(lambda i: self._digest(staged, i), large)
        for i in range(len(parts)):
            self._digest(staged, i)

    def _digest(self, staged: _Staged, i: int) -> None:
        """Find the digest of a part, where content addressing is on, at most once."""
        if self._policy.digest is not None and staged.digests[i] is None:
            part = staged.planned.plan.parts[i]
            hasher = digests.new_digest(self._policy.digest)
            hasher.update(f"{part.handler}\0".encode())
            part.digest(hasher)
            staged.digests[i] = hasher.hexdigest()

    def _generate_key(self, staged: _Staged) -> str:
        """The digest of the content where content addressing is on, else random."""
        if self._policy.digest is None:
            return keys.random_id()
        hasher = digests.new_digest(self._policy.digest)
        plan = staged.planned.plan
        named = [[p.name, d] for p, d in zip(plan.parts, staged.digests, strict=True)]
        text = _to_text([staged.planned.handler.name, plan.data_type, named])
        hasher.update(b"blobstore:entry:1\0" + text.encode())
        return hasher.hexdigest()

    def _may_be_inline(self, staged: _Staged) -> bool:
        parts = staged.planned.plan.parts
        # What compresses by more than this is rare, and only costs a buffer to find out.
        limit = self._policy.options.inline_max_bytes * 8
        return limit > 0 and len(parts) == 1 and parts[0].size_hint <= limit

    # --- writing blobs ---

    def _write_missing(self, staged: Sequence[_Staged]) -> None:
        """Fill every part that has no bytes yet: from known blobs, else by writing."""
        self._reuse_known(staged)
        todo = [(item, i) for item in staged for i, part in enumerate(item.parts) if part is None]
        # A digest that comes twice in one call is written twice; the commit keeps one of them.
        self._each(lambda pair: self._write_part(*pair), todo)

    def _reuse_known(self, staged: Sequence[_Staged]) -> None:
        wanted = [
            (item, i, content)
            for item in staged
            for i, content in enumerate(item.digests)
            if content is not None
            and item.parts[i] is None
            and not item.planned.plan.parts[i].executable
        ]
        if not wanted:
            return
        known = self._index.find_digests({content for _, _, content in wanted})
        for item, i, content in wanted:
            blob = known.get(content)
            if blob is None or blob.handler != item.planned.plan.parts[i].handler:
                continue
            if self._is_whole(blob):
                item.parts[i] = Part(item.planned.plan.parts[i].name, blob)
                item.reused.add(blob.location)
            else:
                # Those bytes were lost. Sharing the row would store nothing.
                item.unshared.add(i)

    def _is_whole(self, blob: Blob) -> bool:
        try:
            return self._objects.stat(blob.location).size == blob.size
        except KeyNotFoundError:
            return False

    def _write_part(self, staged: _Staged, i: int) -> None:
        part = self._encode_small(staged, i) if self._may_be_inline(staged) else None
        if part is None and self._policy.digest is not None:
            if staged.planned.plan.parts[i].executable:
                part = self._share_executable(staged, i)
            elif staged.digests[i] is None:
                self._digest(staged, i)
                self._reuse_known([staged])
                part = staged.parts[i]
        staged.parts[i] = part or self._write_blob(staged, i)

    def _share_executable(self, staged: _Staged, i: int) -> Part | None:
        """Find a blob that has the very bytes which would be written; None if there is none.

        Not by the digest of the content, as other parts are found: whoever else can write to the
        store says which blob has which digest, and what is shared here is signed as our own.
        """
        planned = staged.planned.plan.parts[i]
        if planned.size_hint > _IN_MEMORY:
            return None  # written at once; the commit drops it again for one that has its digest
        hasher = digests.new_checksum(executable=True)
        with HashingSink(MemorySink(), hasher) as sink:
            planned.write(sink)
        checksum = digests.checksum_text(hasher, executable=True)
        facts = (sink.size, checksum, planned.encoding().codec)
        content = self._executable_digest(planned, facts[2], checksum)
        blob = self._index.find_digests([content]).get(content)
        if blob is None:
            return None
        same = (blob.size, blob.checksum, blob.codec) == facts
        if not same or blob.handler != planned.handler or not self._is_whole(blob):
            staged.unshared.add(i)
            return None
        staged.reused.add(blob.location)
        return Part(planned.name, blob)

    def _executable_digest(self, planned: PlannedPart, codec: str, checksum: str) -> str:
        """What a blob that may run code is shared by: its format, and the checksum of its bytes."""
        hasher = digests.new_digest(self._policy.digest or "blake3")
        text = _to_text([planned.handler, planned.format_version, codec, checksum])
        hasher.update(b"blobstore:executable:1\0" + text.encode())
        return hasher.hexdigest()

    def _encode_small(self, staged: _Staged, i: int) -> Part | None:
        """Encode in memory, to be kept in the index; None if that is too large."""
        planned = staged.planned.plan.parts[i]
        with MemorySink() as sink:
            planned.write(sink)
        payload = sink.content
        if len(payload) > self._policy.options.inline_max_bytes:
            return None
        hasher = digests.new_checksum(executable=_needs_proof(planned))
        hasher.update(payload)
        blob = Blob(
            location="",
            size=len(payload),
            checksum=digests.checksum_text(hasher, executable=_needs_proof(planned)),
            codec=planned.encoding().codec,
            handler=planned.handler,
            format_version=planned.format_version,
        )
        return Part(planned.name, blob, payload)

    def _write_blob(self, staged: _Staged, i: int) -> Part:
        """Write a part under a fresh location, again if its temporary file was collected."""
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(LostDraftError):
                return self._write_blob_once(staged, i)
        return self._write_blob_once(staged, i)

    def _write_blob_once(self, staged: _Staged, i: int) -> Part:
        planned = staged.planned.plan.parts[i]
        encoding = planned.encoding()
        wanted = keys.new_location(encoding.extension)
        blob = Blob(
            location=wanted,
            size=0,
            checksum="",
            codec=encoding.codec,
            handler=planned.handler,
            format_version=planned.format_version,
            digest=None if planned.executable or i in staged.unshared else staged.digests[i],
            created_us=now_us(),
        )
        if self._announces:
            self._index.announce([blob._replace(state="pending")])
        hasher = digests.new_checksum(executable=_needs_proof(planned))
        inner = self._objects.writer(wanted, size_hint=planned.size_hint)
        with HashingSink(inner, hasher) as sink:
            planned.write(sink)
        location = sink.location or wanted
        staged.written.append(location)
        if location != wanted and self._announces:
            # The store chose the place: only the few steps since then are not covered.
            self._index.announce([blob._replace(location=location, state="pending")])
            self._index.forget(self._index.condemn([wanted], now_us()))
        checksum = digests.checksum_text(hasher, executable=_needs_proof(planned))
        blob = blob._replace(location=location, size=sink.size, checksum=checksum)
        if planned.executable and self._policy.digest and i not in staged.unshared:
            blob = blob._replace(digest=self._executable_digest(planned, blob.codec, checksum))
        return Part(planned.name, blob)

    # --- the switch ---

    def _commit_staged(self, staged: Sequence[_Staged]) -> list[Entry]:
        commit_id = keys.random_id()
        for _ in range(_ATTEMPTS):
            operations = [self._operation(item, commit_id) for item in staged]
            result = self._commit(staged, operations, commit_id)
            if not result.missing:
                self._settle(result)
                return [entry for entry in result.entries if entry is not None]
            try:
                self._drop_missing(staged, set(result.missing))
                self._write_missing(staged)
            except BaseException:
                self._discard(staged)
                raise
        self._discard(staged)
        raise UnavailableError(
            f"blobs that this put shares were collected {_ATTEMPTS} times while it was committing: "
            "try again"
        )

    def _operation(self, staged: _Staged, commit_id: str) -> Put:
        plan, handler = staged.planned.plan, staged.planned.handler
        parts = tuple(part for part in staged.parts if part is not None)
        draft = EntryDraft(
            key=staged.key,
            handler=handler.name,
            data_type=plan.data_type,
            info_text=staged.info_text,
            metadata_text=staged.request.metadata_text,
            parts=parts,
            size=sum(part.blob.size for part in parts),
            now_us=now_us(),
        )
        expected = staged.request.expected
        if self._policy.digest is not None and staged.request.keeps:
            expected = staged.unvouched or "absent"
            if staged.unvouched is not None:
                draft = draft._replace(metadata_text=staged.unvouched.metadata_text)
        if self._signer is not None and _needs_signature(staged.planned):
            draft = EntryDraft(*draft[:-1], self._signer.sign(draft, draft.key, commit_id))
        return Put(draft, frozenset(staged.reused), expected)

    def _commit(
        self, staged: Sequence[_Staged], operations: Sequence[Put], commit_id: str
    ) -> CommitResult:
        try:
            if self._policy.fsync:
                self._objects.sync(self._unsynced(operations))
            return self._index.commit(operations, commit_id)
        except BlobStoreError as exc:
            # Where it may have landed after all, the bytes are left to gc.
            if not (isinstance(exc, UnavailableError) and exc.outcome == "unknown"):
                self._discard(staged)
            raise

    def _unsynced(self, operations: Sequence[Put]) -> Iterator[str]:
        """Blobs of a put that may not be on disk: shared ones, whose writers may not have cared."""
        for put in operations:
            for part in put.draft.parts:
                location = part.blob.location
                if location and (location in put.reused or not self._policy.syncs_itself):
                    yield location

    def _drop_missing(self, staged: Sequence[_Staged], missing: set[str]) -> None:
        for item in staged:
            for i, part in enumerate(item.parts):
                if part is not None and part.blob.location in missing:
                    item.parts[i] = None
                    item.reused.discard(part.blob.location)

    # --- cleaning up ---

    def _discard(self, staged: Sequence[_Staged]) -> None:
        """Remove what a failed put wrote; what cannot be removed is left to gc."""
        written: set[str] = set()
        for item in staged:
            written.update(item.written)
            item.written = []
        if not written:
            return
        self._drop_missing(staged, written)  # another attempt has to write them again
        try:
            self._objects.delete_many(written)
        except BlobStoreError as exc:
            logger.warning("left %d blobs of a failed put to gc: %s", len(written), exc)

    def _settle(self, result: CommitResult) -> None:
        """Do what follows a commit; it stands, whatever happens here.

        Before superseded bytes are deleted, what took their place and the index that says so have
        to be on disk: otherwise a power cut could leave the old index without the old bytes.
        """
        gone = set(result.condemned)
        if self._policy.fsync and not self._policy.syncs_itself:
            self._index.sync()  # promised, so its error is the caller's
        try:
            if gone and not self._policy.fsync:
                entries = [entry for entry in result.entries if entry is not None]
                placed = {location for entry in entries for location in entry.locations}
                self._objects.sync(placed - gone)
                self._index.sync()
            if gone:
                self._objects.delete_many(gone)
                self._deleted.extend(gone)
            if len(self._deleted) >= _FORGET_AT:
                self._forget()
        except BlobStoreError as exc:
            # The rows stay condemned, and gc tries again.
            logger.warning("left %d superseded blobs to gc: %s", len(gone), exc)

    def _forget(self) -> None:
        """Drop the index rows of blobs whose bytes were deleted, many in one commit."""
        deleted, self._deleted = self._deleted, []
        if deleted:
            self._index.forget(deleted)


def _needs_signature(planned: Planned) -> bool:
    """Whether only its signature may make an entry load: it runs code, or shrank to little."""
    return planned.handler.runs_code or any(_may_grow(part) for part in planned.plan.parts)


def _needs_proof(part: PlannedPart) -> bool:
    """Whether nobody may be able to make other bytes with the checksum of a part."""
    return part.executable or _may_grow(part)


def _may_grow(part: PlannedPart) -> bool:
    return part.size_hint >= limits.SIGNED_FROM and part.is_packed


def _info_text(planned: Planned) -> str:
    """The info of a plan as it is stored; a handler that plans badly is found out here."""
    plan, name = planned.plan, planned.handler.name
    if len({part.name for part in plan.parts}) != len(plan.parts):
        raise HandlerError(f"the handler {name!r} gave two parts the same name: mend it")
    try:
        return _to_text(plan.info)
    except (TypeError, ValueError) as exc:
        raise HandlerError(f"the handler {name!r} gave info that is no JSON: {exc}") from exc


def _without_kept(staged: Sequence[_Staged], kept: Mapping[str, Entry]) -> list[_Staged]:
    """Leave out content that is there already, or that the same call brings twice."""
    brought = {item.key for item in staged if not item.request.keeps}
    new = []
    for item in staged:
        if item.request.keeps:
            if item.key in kept or item.key in brought:
                continue
            brought.add(item.key)
        new.append(item)
    return new
