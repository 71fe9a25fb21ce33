"""The three interfaces that carry everything: object stores, metadata backends, handlers.

Each is an abstract class with a small core to write and defaults for the rest. What an
implementation must do beyond the signatures is written as tests in `blobstore.testing`.
"""

from __future__ import annotations

import contextlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar, Literal, Self

from blobstore.entry import Blob, Entry, EntryDraft, ObjectStat
from blobstore.errors import (
    ConflictError,
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    NotSupportedError,
)
from blobstore.query import Query
from blobstore.streams import (
    Buffer,
    BytesSource,
    FileSource,
    Hasher,
    MemorySink,
    Sink,
    Source,
    as_contiguous,
)

# --- object stores -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do, to be asked before trying.

    Attributes
    ----------
    list : bool
        `keys` works.
    ranges : bool
        `get_range`, `open` and `source` read no more than they are asked for.
    local_files : bool
        `local_path` gives a path, for memory mapping and for libraries that need one.
    conditional_writes : bool
        `put_if_absent` has one winner, also between processes.
    persistent : bool
        What was put is there in another process, and after this one ended.
    """

    list: bool = True
    ranges: bool = False
    local_files: bool = False
    conditional_writes: bool = False
    persistent: bool = True


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that an interrupted writer left in a store, and that no reader can see."""

    name: str
    size: int
    modified: datetime


class ObjectStore(ABC):
    """Bytes under keys. Five methods are to be written; the rest have working defaults.

    All methods may be called from several threads at once. No method keeps a reference to a
    caller's buffer. After `close` each of them raises `ClosedError`.
    """

    @classmethod
    def for_folder(cls, directory: Path, *, fsync: bool = False) -> Self:
        """Make the store that a BlobStore in `directory` uses, when it is asked for by name.

        Parameters
        ----------
        directory : Path
            The store's folder; use names of your own below it.
        fsync : bool
            Whether an acknowledged put is to survive a power cut.
        """
        return cls()

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do."""
        return Capabilities()

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Read a whole object; `KeyNotFoundError` if there is none."""

    @abstractmethod
    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object, replacing any: a reader sees the old or the new bytes."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is such an object; an outage is an error, not False."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; `KeyNotFoundError` if there is none."""

    @abstractmethod
    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys that start with `prefix`, in no particular order, lazily.

        Survives changes made meanwhile: a key that was there all the time is given once.
        """

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read bytes ``[start, stop)`` of an object, clipped at its end."""
        check_range(start, stop)
        return self.get(key)[start:stop]

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading; seekable, to be closed by the caller."""
        return io.BytesIO(self.get(key))

    def source(self, key: str) -> Source:
        """Prepare an object for reading in several ways; to be closed by the caller."""
        if (path := self.local_path(key)) is not None:
            return FileSource(path)
        return BytesSource(self.get(key))

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece: published on clean exit, nothing left on error.

        Parameters
        ----------
        key : str
        size_hint : int, optional
            About how many bytes will come.
        """

        def publish(data: bytes) -> str:
            self.put(key, data)
            return key

        return MemorySink(publish)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of an object; `KeyNotFoundError` if there is none."""
        return ObjectStat(size=len(self.get(key)))

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of its own; None where there is no such file."""
        return None

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are fine."""
        for key in keys:
            with contextlib.suppress(KeyNotFoundError):
                self.delete(key)

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store, replacing the target."""
        self.put(target, self.get(source))

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one; True if this call wrote it."""
        if self.exists(key):
            return False
        self.put(key, data)
        return True

    def sync(self, keys: Iterable[str]) -> None:
        """Return once these objects would survive a power cut."""

    def leftovers(self) -> Iterator[Leftover]:
        """What interrupted writers left behind, as far as this store can tell."""
        return iter(())

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`; an absent one is fine."""

    def close(self) -> None:
        """Let go of files, connections and threads. Calling it again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class BlobBackend(ObjectStore):
    """An object store in the words of the older BlobStore: subclass it, or use it as it is.

    The five methods of `ObjectStore` call `write_blob`, `read_blob`, `delete_blob` and `exists`,
    so whatever a subclass overrides is what really happens. The path that `write_blob` answers is
    the location under which the blob is read afterwards.
    """

    @property
    def capabilities(self) -> Capabilities:
        """No listing, until a subclass has one."""
        return Capabilities(list=False)

    @abstractmethod
    def write_blob(self, blob_id: str, data: bytes) -> str:
        """Store bytes under an id and say where."""

    @abstractmethod
    def read_blob(self, blob_path: str) -> bytes:
        """Read what `write_blob` stored; `FileNotFoundError` or `KeyError` if it is not there."""

    @abstractmethod
    def delete_blob(self, blob_path: str) -> bool:
        """Remove a blob; False if it is not there."""

    @abstractmethod
    def exists(self, blob_path: str) -> bool:
        """Whether the blob is there."""

    def get_size(self, blob_path: str) -> int:
        """Stored bytes of a blob."""
        return len(self.read_blob(blob_path))

    def write_blob_stream(self, blob_id: str, stream: BinaryIO) -> str:
        """Store what is left of a stream."""
        return self.write_blob(blob_id, stream.read())

    def read_blob_stream(self, blob_path: str) -> BinaryIO:
        """Open a blob for reading."""
        return io.BytesIO(self.read_blob(blob_path))

    def get(self, key: str) -> bytes:
        """Read a blob."""
        try:
            return self.read_blob(key)
        except (FileNotFoundError, KeyError) as exc:
            raise KeyNotFoundError(f"there is no blob {key!r}", location=key) from exc

    def put(self, key: str, data: Buffer) -> None:
        """Write a blob."""
        self.write_blob(key, bytes(as_contiguous(data)))

    def delete(self, key: str) -> None:
        """Remove a blob."""
        if not self.delete_blob(key):
            raise KeyNotFoundError(f"there is no blob {key!r}", location=key)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Not to be had from a backend that only knows how to write and read."""
        raise NotSupportedError(
            f"{type(self).__name__} cannot list its blobs: override keys() and capabilities"
        )

    def open(self, key: str) -> BinaryIO:
        """Open a blob for reading."""
        try:
            return self.read_blob_stream(key)
        except (FileNotFoundError, KeyError) as exc:
            raise KeyNotFoundError(f"there is no blob {key!r}", location=key) from exc

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Gather a blob in memory and give it to `write_blob`."""
        return MemorySink(lambda data: str(self.write_blob(key, data)))

    def stat(self, key: str) -> ObjectStat:
        """Tell the size of a blob."""
        if not self.exists(key):
            raise KeyNotFoundError(f"there is no blob {key!r}", location=key)
        return ObjectStat(size=self.get_size(key))


def check_range(start: int, stop: int) -> None:
    """Refuse a range that is not ``0 <= start <= stop``.

    Raises
    ------
    InvalidInputError
    """
    if not 0 <= start <= stop:
        raise InvalidInputError(
            f"a range is [start, stop) with 0 <= start <= stop, not [{start}, {stop})"
        )


# --- metadata backends ---------------------------------------------------------------------------

Expected = int | Entry | Literal["any", "absent", "present"]
"""What must be true of the key at commit: a version, an entry's id and version, or one of
"any" (nothing), "absent" (`KeyExistsError` if it is taken), "present" (`KeyNotFoundError` if not)."""


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
    commit.
    """

    source: str
    target: str
    now_us: int
    overwrite: bool = True
    move: bool = False


@dataclass(frozen=True, slots=True)
class Patch:
    """Change the metadata of a key: shallow merge of `metadata_text`, or `replace` all of it."""

    key: str
    metadata_text: str
    now_us: int
    replace: bool = False
    expected: Expected = "any"


Operation = Put | Delete | Copy | Patch


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


class MetadataBackend(ABC):
    """The index: holds entries, answers queries, never touches bytes.

    All methods may be called from several threads and processes at once; a forked child and a
    pickled copy work. Entries are given in the order of their keys, by code point.
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
        """Entries that match, in the order of their keys, read page by page."""

    def keys(self, query: Query) -> Iterator[str]:
        """Keys that match, in order."""
        return (entry.key for entry in self.scan(query))

    def count(self, query: Query) -> int:
        """How many entries match."""
        return sum(1 for _ in self.keys(query))

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

    def close(self) -> None:
        """Let go of files and connections. Calling it again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


# --- handlers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a handler is to encode.

    Attributes
    ----------
    codec : {"lz4", "zstd", "gzip", "blosclz", "none"}
    level : int
        1 (fastest) to 9 (smallest).
    inline_max_bytes : int
        Parts up to this many stored bytes end up in the index, where no other tool reads them: a
        handler may then prefer a format that is quick to a format that is open.
    """

    codec: str = "lz4"
    level: int = 3
    inline_max_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a part's bytes look on disk: the codec really used, and the extension of the file."""

    codec: str
    extension: str


class PlannedPart(ABC):
    """One part of an object about to be stored. Nothing is encoded before `write`.

    Attributes
    ----------
    name : str
        Unique within the plan.
    handler, format_version : str, int
        The format of the bytes (a dictionary's parts may be of another handler than itself).
    size_hint : int
        About how many bytes there are before compression.
    executable : bool
        Whether reading it may run code (pickle); such bytes get a cryptographic checksum.
    """

    name: str = "data"
    handler: str
    format_version: int = 1
    size_hint: int
    executable: bool = False

    @abstractmethod
    def digest(self, hasher: Hasher) -> None:
        """Feed the logical content, in a canonical form, to `hasher`; asked for at most once."""

    @abstractmethod
    def encoding(self) -> Encoding:
        """Decide codec and extension, on a sample where that needs the data; always the same."""

    @abstractmethod
    def write(self, sink: Sink) -> None:
        """Encode into `sink`. Repeatable, for a retry; must not change the object."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How an object will be stored.

    Attributes
    ----------
    data_type : str
        "array", "dataframe", "object" ...: what users see and filter by.
    info : mapping
        JSON values that say what it is (dtype, shape, columns). Only facts of this object that
        may differ between entries sharing the same blobs are needed to read it back; all else
        needed for that is inside the blobs.
    parts : tuple of PlannedPart
    """

    data_type: str
    info: Mapping[str, Any]
    parts: tuple[PlannedPart, ...]


@dataclass(frozen=True, slots=True)
class StoredPart:
    """One part as a handler gets it for reading; its checksum was verified.

    Attributes
    ----------
    name : str
    source : Source
    codec, handler, format_version : str, str, int
        What the blob was written with.
    """

    name: str
    source: Source
    codec: str
    handler: str
    format_version: int


class Handler(ABC):
    """Turns objects of some types into parts, and parts back into equal objects of those types.

    Attributes
    ----------
    name : str
        Kept in the index; stable, and never given to another format.
    format_version : int
        The newest format that it writes; it reads all up to this one.
    priority : int
        Of two handlers that can handle an object the higher one does.
    type_names : tuple of str
        Exact types by ``module.qualname``, compared without importing anything; "*" is any type.
    runs_code : bool
        Whether `read` may run code that the stored bytes name (pickle).
    """

    name: ClassVar[str]
    format_version: ClassVar[int] = 1
    priority: ClassVar[int] = 0
    type_names: ClassVar[tuple[str, ...]]
    runs_code: ClassVar[bool] = False

    @abstractmethod
    def can_handle(self, obj: Any) -> bool:
        """Whether `obj`, of a matching type, comes back from `read` equal and of its type.

        May leave costly looks to `plan`, which then raises `UnsupportedTypeError`, and the next
        handler is asked.
        """

    @abstractmethod
    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Decide how to store `obj`; writes nothing, and copies nothing large."""

    @abstractmethod
    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Rebuild the object.

        Raises
        ------
        DecodeError
            The parts are whole, but not what this handler writes.
        """

    def open(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any]) -> BinaryIO:
        """Open the object as a file: by default the bytes of its only part, as they are stored."""
        if len(parts) != 1:
            raise NotSupportedError(
                f"an object of {len(parts)} parts is not one file: use get() to load it"
            )
        (part,) = parts.values()
        return part.source.open()
