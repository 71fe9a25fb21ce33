"""From an entry of the index to the object: open every part, check it, decode it.

All parts are opened before any is decoded: on a file system an open file stays readable when an
overwrite unlinks it, so what is read is one version, whole.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from blobstore import digest
from blobstore.entry import Entry, Part
from blobstore.errors import (
    BlobStoreError,
    DecodeError,
    HandlerError,
    IntegrityError,
    KeyNotFoundError,
    StorageError,
    UnavailableError,
    UntrustedTypeError,
)
from blobstore.limits import MAX_DECOMPRESSED, UNLIMITED
from blobstore.protocols import Handler, MetadataBackend, ObjectStore, StoredPart
from blobstore.registry import HandlerSet
from blobstore.signing import Signer
from blobstore.streams import CHUNK, Buffer, BytesSource, Source, WrappedReader
from blobstore.trust import EVERYTHING, NO_TYPES, Trust, TypePatterns

if TYPE_CHECKING:
    from blobstore.wrappers.local_cache import LocalCacheStore

T = TypeVar("T")

Pickle = Literal["signed", "allow", "deny"]

_IN_MEMORY = 1 << 20
"""Blobs up to this size are read once, into memory, and checked there. Larger ones are read twice,
from the page cache, because fresh memory for all of one costs more than that."""

_ATTEMPTS = 10

_SIGNED = Trust(everything=True, reason="")
_SIGNED_DATA = Trust(
    reason="its checksum is no proof against being altered on purpose", max_decompressed=UNLIMITED
)
"""Of a part of a signed entry whose checksum is not cryptographic: arrays, which run no code."""


@dataclass(frozen=True, slots=True)
class LoadPolicy:
    """What a store lets its entries do when they are read.

    Attributes
    ----------
    pickle : {"signed", "allow", "deny"}
        Which entries may run code: those that the reader signed, all, or none.
    types : TypePatterns
        Types that entries may name which are not signed.
    max_decompressed : int
        Bytes that a part may grow to; see `blobstore.limits`.
    """

    pickle: Pickle = "signed"
    types: TypePatterns = NO_TYPES
    max_decompressed: int = MAX_DECOMPRESSED


class Reader:
    """Loads what entries refer to.

    Parameters
    ----------
    index : MetadataBackend
    objects : ObjectStore
    handlers : HandlerSet
    verify : bool
        Check every part before decoding it. Parts that may run code are always checked.
    policy : LoadPolicy
    signer : Signer, optional
        Tells which entries are the reader's own; without it none are.
    cache : LocalCacheStore, optional
        Copies of the objects, which are read in their place. What is found damaged there is read
        again from the objects themselves before it is an error.
    """

    def __init__(
        self,
        index: MetadataBackend,
        objects: ObjectStore,
        handlers: HandlerSet,
        *,
        verify: bool,
        policy: LoadPolicy,
        signer: Signer | None = None,
        cache: LocalCacheStore | None = None,
    ) -> None:
        self._index = index
        self._objects = objects
        self._cache = cache
        self._handlers = handlers
        self._verify = verify
        self._policy = policy
        self._signer = signer
        limits = Trust(types=policy.types, max_decompressed=policy.max_decompressed)
        self._plain = EVERYTHING if policy.pickle == "allow" else limits

    def load(self, entry: Entry, **options: Any) -> Any:
        """Read the object of an entry, or of the one that took its place meanwhile.

        Raises
        ------
        KeyNotFoundError
            The key was deleted meanwhile.
        IntegrityError
            A blob is gone, cut short or altered.
        UntrustedTypeError
            Loading would run code that is neither the reader's own nor trusted.
        """
        if entry.inline:  # nothing can be gone
            return self._load_inline(entry, options)
        if self._cache is None:
            return self._load(entry, options)
        return _read_again(self._cache, lambda: self._load(entry, options))

    def _load(self, entry: Entry, options: dict[str, Any]) -> Any:
        for current in self._versions(entry):
            handler = self._handler(current)
            trust = self._trust(current, handler)
            with contextlib.suppress(_SupersededError), self._opened(current) as sources:
                parts = _Parts(
                    (part.name, self._checked(current, part, source, handler, trust))
                    for part, source in zip(current.parts, sources, strict=True)
                )
                with _reading(current):
                    return handler.read(parts, _info(current.info_text), **options)
        raise AssertionError("_versions ends by raising")

    def _load_inline(self, entry: Entry, options: dict[str, Any]) -> Any:
        handler = self._handler(entry)
        part = entry.parts[0]
        data = part.payload or b""
        if self._verify or handler.runs_code:
            _verify_bytes(entry.key, part, data)
        stored = _stored(part, BytesSource(data), self._trust(entry, handler))
        with _reading(entry):
            return handler.read(_Parts({part.name: stored}), _info(entry.info_text), **options)

    def open(self, entry: Entry) -> BinaryIO:
        """Open the object as a file; its bytes are checked when they were read to the end.

        Raises
        ------
        NotSupportedError
            It is stored in several parts.
        """
        if self._cache is None:
            return self._open(entry)
        return _read_again(self._cache, lambda: self._open(entry))

    def _open(self, entry: Entry) -> BinaryIO:
        for current in self._versions(entry):
            handler = self._handler(current)
            with contextlib.suppress(_SupersededError), self._opened(current) as sources:
                parts = _Parts(
                    (
                        part.name,
                        _stored(
                            part,
                            self._checking(current, part, source),
                            self._trust(current, handler, checked=True),
                        ),
                    )
                    for part, source in zip(current.parts, sources, strict=True)
                )
                with _reading(current):
                    return handler.open(parts, _info(current.info_text))
        raise AssertionError("_versions ends by raising")

    def check(self, entry: Entry) -> list[BlobStoreError]:
        """Compare every stored byte of an entry with its checksums.

        Returns
        -------
        list of IntegrityError or StorageError
            One for each part that is damaged or cannot be read.

        Raises
        ------
        KeyNotFoundError
            The key was deleted meanwhile.
        IntegrityError
            A blob is gone.
        """
        for current in self._versions(entry):
            with contextlib.suppress(_SupersededError), self._opened(current) as sources:
                found = []
                for part, source in zip(current.parts, sources, strict=True):
                    with _reading(current):
                        found += _damage(current.key, part, source)
                return found
        raise AssertionError("_versions ends by raising")

    def _handler(self, entry: Entry) -> Handler:
        with _reading(entry):
            handler = self._handlers.by_name(entry.handler)
        if handler.runs_code and self._policy.pickle == "deny":
            raise UntrustedTypeError(
                f"{entry.key!r} is stored by the handler {entry.handler!r}, which runs code when it "
                "reads, and the store was opened with pickle='deny': open it with pickle='signed', "
                "which loads plain data and what you stored yourself, or with 'allow' if you trust "
                "its writers",
                key=entry.key,
            )
        return handler

    def _trust(self, entry: Entry, handler: Handler, *, checked: bool = False) -> Trust:
        """What the bytes of an entry may do; `checked` says that they are, whatever the store does.

        A signature speaks of bytes with a certain checksum, so not of any that are not compared.
        """
        checked = checked or self._verify or handler.runs_code
        if self._plain is EVERYTHING or not checked:
            return self._plain
        if not (handler.runs_code or entry.signature):
            return self._plain
        signer = self._signer
        doubt = "there is no key to check it with" if signer is None else signer.doubt(entry)
        return _SIGNED if doubt is None else replace(self._plain, reason=doubt)

    def _versions(self, entry: Entry) -> Iterator[Entry]:
        """The entry; then, each time its blobs were gone, the one that took its place."""
        yield entry
        for _ in range(_ATTEMPTS):
            latest = self._index.get(entry.key)
            if latest is None:
                raise KeyNotFoundError(
                    f"{entry.key!r} was deleted while it was read", key=entry.key
                )
            if latest.locations == entry.locations:
                gone = [x for x in latest.locations if not self._objects.exists(x)]
                raise IntegrityError(
                    f"{entry.key!r} is in the index, but its blob {', '.join(gone) or '?'} is gone: "
                    "restore it from a backup, or delete the key",
                    key=entry.key,
                    location=gone[0] if gone else None,
                )
            entry = latest
            yield entry
        raise UnavailableError(
            f"{entry.key!r} was overwritten {_ATTEMPTS} times while it was read: try again",
            key=entry.key,
        )

    @contextlib.contextmanager
    def _opened(self, entry: Entry) -> Iterator[list[Source]]:
        with contextlib.ExitStack() as stack:
            try:
                sources = [stack.enter_context(self._source(part)) for part in entry.parts]
            except KeyNotFoundError as exc:
                raise _SupersededError from exc
            yield sources

    def _source(self, part: Part) -> Source:
        if part.payload is not None:
            return BytesSource(part.payload)
        return (self._cache or self._objects).source(part.blob.location)

    def _checking(self, entry: Entry, part: Part, source: Source) -> Source:
        if self._cache is not None and self._cache.holds(part.blob.location):
            # What a stream gave cannot be taken back, so a copy is checked before. It is at hand.
            return CheckedSource(source, entry.key, part, again=True)
        return CheckingSource(source, entry.key, part)

    def _checked(
        self, entry: Entry, part: Part, source: Source, handler: Handler, trust: Trust
    ) -> StoredPart:
        if source.size != part.blob.size:
            _compare(entry.key, part, source.size, "no checksum: its size tells")
        if self._verify or handler.runs_code:
            source = CheckedSource(source, entry.key, part, again=handler.runs_code)
        return _stored(part, source, trust)


def _read_again(cache: LocalCacheStore, read: Callable[[], T]) -> T:
    """Read; and for each blob that is damaged once more, as that may be its copy."""
    forgotten: set[str] = set()
    while True:
        try:
            return read()
        except IntegrityError as exc:
            if exc.location is None:
                raise
            cache.forget(exc.location)
            if exc.location in forgotten:
                raise
            forgotten.add(exc.location)


@functools.lru_cache(maxsize=512)
def _info(text: str) -> Mapping[str, Any]:
    """The info of an entry, parsed once for all entries alike; handlers only look at it."""
    parsed: dict[str, Any] = json.loads(text)
    return MappingProxyType(parsed)


class _Parts(dict[str, StoredPart]):
    """Parts by name; one that is not there is no error of whoever asked for the key."""

    def __missing__(self, name: str) -> StoredPart:
        raise DecodeError(f"it was stored without its part {name!r}")


class _SupersededError(Exception):
    """A blob is gone; the entry may have moved on."""


class _reading:  # noqa: N801 - used like a function, in a with statement
    """Says of which key the errors of a handler are; takes a vanished blob as superseded."""

    __slots__ = ("_entry",)

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: object
    ) -> None:
        if exc is None:
            return
        key = self._entry.key
        if isinstance(exc, KeyNotFoundError):
            if exc.location in self._entry.locations:
                raise _SupersededError from exc
            # Of some other store, that the object asked while it was being rebuilt.
            raise DecodeError(f"{key!r} cannot be loaded: {exc}", key=key) from exc
        if isinstance(exc, HandlerError) and exc.key is None:
            raise type(exc)(f"{key!r} cannot be loaded: {exc}", key=key) from exc


def _stored(part: Part, source: Source, trust: Trust) -> StoredPart:
    blob = part.blob
    if trust is _SIGNED and not digest.is_cryptographic(blob.checksum):
        trust = _SIGNED_DATA
    return StoredPart(part.name, source, blob.codec, blob.handler, blob.format_version, trust)


def _damage(key: str, part: Part, source: Source) -> list[BlobStoreError]:
    try:
        _verify_stream(key, part, source)
    except (IntegrityError, StorageError) as exc:
        return [exc]
    return []


def _verify_bytes(key: str, part: Part, data: bytes) -> None:
    _compare(key, part, len(data), digest.checksum_of(data, part.blob.checksum))


def _verify_stream(key: str, part: Part, source: Source) -> None:
    hasher, executable = digest.checksum_like(part.blob.checksum)
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with source.open() as file:
        while count := file.readinto(buffer):  # type: ignore[attr-defined]
            hasher.update(view[:count])
    _compare(key, part, source.size, digest.checksum_text(hasher, executable=executable))


def _compare(key: str, part: Part, size: int, checksum: str) -> None:
    blob = part.blob
    if size == blob.size and checksum == blob.checksum:
        return
    where = f"its blob {blob.location}" if blob.location else "its bytes in the index"
    raise IntegrityError(
        f"{key!r} is damaged: {where} should have {blob.size} bytes and the checksum "
        f"{blob.checksum}, but has {size} and {checksum}. Nothing was decoded; restore it from a "
        "backup, or delete the key",
        key=key,
        location=blob.location or None,
    )


class CheckedSource(Source):
    """Gives nothing before all stored bytes were compared with their checksum.

    Parameters
    ----------
    source : Source
    key : str
    part : Part
    again : bool
        Check large blobs once more while they are being read, so that bytes which are changed
        between the check and the reading are noticed too.
    """

    def __init__(self, source: Source, key: str, part: Part, *, again: bool) -> None:
        self._source = source
        self._key = key
        self._part = part
        self._again = again
        self._verified = False
        self.size = source.size

    def read(self) -> bytes:
        """Read and check all bytes."""
        data = self._source.read()
        _verify_bytes(self._key, self._part, data)
        return data

    def open(self) -> BinaryIO:
        """Open, once the bytes were checked."""
        if self.size <= _IN_MEMORY:
            return io.BytesIO(self.read())
        self._check()
        if self._again:
            return CheckingSource(self._source, self._key, self._part).open()
        return self._source.open()

    @contextlib.contextmanager
    def one_pass(self) -> Iterator[BinaryIO]:
        """Lend a reader, and check at the end of the block the very bytes that it gave."""
        with self._source.open() as raw:
            reader = _OnePassReader(raw, self._key, self._part)
            with io.BufferedReader(reader) as file:
                try:
                    yield file
                except HandlerError:
                    reader.finish()  # it is damage, more likely than not
                    raise
                reader.finish()

    def read_range(self, start: int, stop: int) -> bytes:
        """Read a range of bytes, all of which were checked."""
        self._check()
        return self._source.read_range(start, stop)

    @contextlib.contextmanager
    def path(self) -> Iterator[Path]:
        """Lend a file whose bytes were checked."""
        self._check()
        with self._source.path() as path:
            yield path

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _check(self) -> None:
        if not self._verified:
            _verify_stream(self._key, self._part, self._source)
            self._verified = True


class _OnePassReader(io.RawIOBase):
    """Hashes what it reads, in the memory that it was read into; it cannot seek."""

    def __init__(self, raw: BinaryIO, key: str, part: Part) -> None:
        self._raw = raw
        self._key = key
        self._part = part
        self._size = 0
        self._hasher, self._executable = digest.checksum_like(part.blob.checksum)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")[:CHUNK]  # what is hashed is to be in the cache still
        count: int = self._raw.readinto(view)  # type: ignore[attr-defined]
        self._hasher.update(view[:count])
        self._size += count
        return count

    def finish(self) -> None:
        """Read what is left, and compare."""
        buffer = bytearray(io.DEFAULT_BUFFER_SIZE)  # mostly there is nothing left
        while self._size < self._part.blob.size and self.readinto(buffer):
            pass
        text = digest.checksum_text(self._hasher, executable=self._executable)
        _compare(self._key, self._part, self._size, text)


class CheckingSource(Source):
    """Hands out readers that check the stored bytes once they were read through.

    A reader that seeks, or stops early, checks nothing.
    """

    def __init__(self, source: Source, key: str, part: Part) -> None:
        self._source = source
        self._key = key
        self._part = part
        self.size = source.size
        if self.size != part.blob.size:
            _compare(key, part, self.size, "no checksum: its size tells")

    def open(self) -> BinaryIO:
        """Open a checking reader."""
        raw = _CheckingReader(self._source.open(), self._key, self._part)
        return io.BufferedReader(raw, CHUNK)

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class _CheckingReader(WrappedReader):
    def __init__(self, raw: BinaryIO, key: str, part: Part) -> None:
        super().__init__(raw)
        self._key = key
        self._part = part
        self._hashed = 0
        self._hasher, self._executable = digest.checksum_like(part.blob.checksum)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        start = self._raw.tell()
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        if data and start == self._hashed:
            self._hasher.update(data)
            self._hashed += len(data)
            if self._hashed == self._part.blob.size:
                text = digest.checksum_text(self._hasher, executable=self._executable)
                _compare(self._key, self._part, self._hashed, text)
        return len(data)
