"""Objects as files: `FilesystemStore` by path, `FilesystemBlobBackend` by id in sharded folders.

Both write into a hidden folder and move the finished file into place, refuse to follow symbolic
links below their root, and hold nothing open between calls, so that threads, forked children and
pickled copies may use them at will.

Made for file systems that tell names apart byte by byte. Where upper and lower case, or composed
and decomposed accents, are one (macOS, Windows), two such keys are one object.
"""

from __future__ import annotations

import io
import operator
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

from blobstore.backends.blob.file_tree import FileTree
from blobstore.backends.blob.layouts import ShardLayout, is_segment, path_name
from blobstore.backends.blob.path_errors import Name
from blobstore.entry import ObjectStat
from blobstore.errors import (
    BlobStoreError,
    ClosedError,
    ConfigError,
    InvalidKeyError,
    KeyNotFoundError,
)
from blobstore.keys import require_str
from blobstore.protocols import BlobBackend, Capabilities, Leftover, ObjectStore, check_range
from blobstore.streams import Buffer, MemorySink, Sink, Source, as_contiguous, copy_stream


class KeyedName(tuple[str, ...]):  # noqa: SLOT001 - tuples of any length have no room for slots
    """A name that remembers its key, where files are not named like the keys."""

    key: str


class _OnFiles(ObjectStore):
    """What both kinds of file stores have in common."""

    _tree: FileTree
    _closed: bool

    def leftovers(self) -> Iterator[Leftover]:
        """Temporary files of interrupted writers; one that was lent to a library may be active."""
        self._check_open()
        return self._tree.drafts.leftovers()

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`; names that are not ours are refused."""
        self._check_open()
        self._tree.drafts.remove(name)

    def close(self) -> None:
        """Refuse further calls; nothing is held open."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise _closed(self)


class FilesystemStore(_OnFiles):
    """Objects as files below a folder, under their keys as relative paths: ``"runs/1/log.txt"``.

    A key has segments separated by single slashes, none of them "." or ".."; whatever could lead
    out of the folder is `InvalidKeyError`. A folder is no object: with an object ``"a/b"`` there
    can be none named ``"a"``. Folders come with the first object in them, go with the last one.

    Parameters
    ----------
    root_path : str or path
        Made by the first put; may itself be a symbolic link.
    fsync : bool
        Whether a put returns only when it would survive a power cut.
    tmp_dir : str or path, optional
        For files being written, on the same file system; by default a hidden folder in the root.

    Raises
    ------
    ConfigError
        A path is none, or `tmp_dir` is the root.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = FilesystemStore(folder.name)
    >>> store.put("notes/today.txt", b"hello")
    >>> store.get("notes/today.txt"), list(store.keys("notes/"))
    (b'hello', ['notes/today.txt'])
    >>> store.get("../secret")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    blobstore.errors.InvalidKeyError: the key '../secret' is no path below the root: ...
    >>> folder.cleanup()
    """

    def __init__(
        self,
        root_path: str | os.PathLike[str],
        *,
        fsync: bool = False,
        tmp_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._tree = FileTree(root_path, fsync=fsync, tmp_dir=tmp_dir, prune=True, label=_key_of)
        self.root_path = Path(self._tree.root)
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """All there are."""
        return Capabilities(
            ranges=True, streams=True, local_files=True, conditional_writes=True, etags=True
        )

    def get(self, key: str) -> bytes:
        """Read a file."""
        return self._tree.read(self._name(key))

    def put(self, key: str, data: Buffer) -> None:
        """Write a file beside, then move it into place."""
        self._tree.write(self._name(key), data)

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return self._tree.exists(self._name(key))

    def existing(self, keys: Iterable[str]) -> set[str]:
        """Give those of some keys that there are files of; cheaper than to ask for each."""
        folders: dict[Name, dict[str, str]] = {}
        for key in keys:
            name = self._name(key)
            folders.setdefault(name[:-1], {})[name[-1]] = key
        return {
            leaves[leaf]
            for folder, leaves in folders.items()
            for leaf in self._tree.existing(folder, leaves)
        }

    def delete(self, key: str) -> None:
        """Remove a file, and the folders that this leaves empty."""
        self._tree.remove(self._name(key))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys, folder by folder; names that are not UTF-8 are left out."""
        self._check_open()
        folders, _, stem = require_str(prefix).rpartition("/")
        start = tuple(folders.split("/")) if "/" in prefix else ()
        if not all(map(is_segment, start)) or self._tree.is_reserved(start):
            return iter(())
        # The first folder is read now: errors come from the call.
        return self._walk(start, stem, self._tree.listing(start))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of a file."""
        name = self._name(key)
        check_range(start, stop)
        return self._tree.read_range(name, start, stop)

    def open(self, key: str) -> BinaryIO:
        """Open a file; it stays readable when it is replaced or deleted."""
        return self._tree.open(self._name(key))

    def source(self, key: str) -> Source:
        """Hold a file open; it stays readable when it is replaced or deleted."""
        return self._tree.source(self._name(key))

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write a file piece by piece, without holding it in memory."""
        return self._tree.sink(self._name(key), key)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of a file."""
        return self._tree.stat(self._name(key))

    def local_path(self, key: str) -> Path | None:
        """Where the file lies; None if it does not exist."""
        name = self._name(key)
        return Path(self._tree.path(name)) if self._tree.exists(name) else None

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove files; absent ones are fine."""
        self._check_open()
        super().delete_many(keys)

    def copy(self, source: str, target: str) -> None:
        """Copy a file without bringing it into this process, where the system can."""
        self._tree.copy(self._name(source), self._name(target))

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write a file unless there is one; of all processes, one wins."""
        return self._tree.write(self._name(key), data, only_if_absent=True)

    def sync(self, keys: Iterable[str]) -> None:
        """Bring files and their folders to the disk; absent ones are fine."""
        self._check_open()
        self._tree.sync(map(self._name, keys))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._tree.root!r})"

    def _name(self, key: str) -> Name:
        self._check_open()
        return path_name(key, self._tree.is_reserved)

    def _walk(self, folder: Name, stem: str, listing: tuple[list[str], list[str]]) -> Iterator[str]:
        """Give the keys in a folder whose names there start with `stem`, then those below it."""
        files, folders = listing
        lead = "".join(f"{segment}/" for segment in folder)
        yield from (lead + leaf for leaf in files if leaf.startswith(stem))
        pending = [(*folder, inner) for inner in folders if inner.startswith(stem)]
        while pending:
            folder = pending.pop()
            files, folders = self._tree.listing(folder)
            lead = "/".join(folder) + "/"
            yield from (lead + leaf for leaf in files)
            pending.extend((*folder, inner) for inner in folders)


class MissingBlobError(KeyNotFoundError, FileNotFoundError):
    """There is no such blob: a `FileNotFoundError`, as the older BlobStore had it."""


class FilesystemBlobBackend(_OnFiles, BlobBackend):
    """Blobs as files in folders named by how their ids begin: ``ab/abc123.b2nd``.

    An id is a name of letters, digits, dots, hyphens and underscores. Where a blob is asked for,
    its id, its path below `base_dir` and its absolute path are all understood, and any path that
    is not inside `base_dir` is `InvalidKeyError`.

    A subclass may override `write_blob`, `read_blob`, `delete_blob`, `exists` and `get_size`; all
    other methods then go through them, and hold a blob in memory where they have to.

    Parameters
    ----------
    base_dir : str or path
        Made by the first write; may itself be a symbolic link.
    shard_chars : int
        1 to 8: how many characters of the id name its folder.
    fsync : bool
        Whether a write returns only when it would survive a power cut.
    tmp_dir : str or path, optional
        For files being written, on the same file system; by default a hidden folder in `base_dir`.

    Raises
    ------
    ConfigError
        A parameter is wrong.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> backend = FilesystemBlobBackend(folder.name, shard_chars=3)
    >>> path = backend.write_blob("abc123", b"data")
    >>> path.removeprefix(folder.name)
    '/abc/abc123'
    >>> backend.read_blob(path) == backend.read_blob("abc123") == b"data"
    True
    >>> folder.cleanup()
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        shard_chars: int = 2,
        *,
        fsync: bool = False,
        tmp_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if type(shard_chars) is not int or not 1 <= shard_chars <= 8:
            raise ConfigError(f"shard_chars must be an int from 1 to 8, not {shard_chars!r}")
        self._tree = FileTree(
            base_dir, fsync=fsync, tmp_dir=tmp_dir, prune=False, label=operator.itemgetter(-1)
        )
        self.base_dir = Path(self._tree.root)
        self.shard_chars = shard_chars
        self._layout = ShardLayout(self._tree.root, shard_chars, self._tree.is_reserved)
        self._closed = False

    @classmethod
    def for_folder(cls, directory: Path, *, fsync: bool = False) -> Self:
        """Make the store of a BlobStore: ``blobs/`` and ``tmp/`` in its folder."""
        return cls(directory / "blobs", fsync=fsync, tmp_dir=directory / "tmp")

    @property
    def capabilities(self) -> Capabilities:
        """All there are, but for what an overridden method takes away."""
        reads, writes = self._is_ours("read_blob"), self._is_ours("write_blob")
        tells = reads and self._is_ours("get_size") and self._is_ours("exists")
        return Capabilities(
            ranges=reads,
            streams=reads and writes,
            local_files=reads,
            conditional_writes=writes,
            etags=tells,
        )

    # --- in the words of the older BlobStore -----------------------------------------------------

    def write_blob(self, blob_id: str, data: bytes) -> str:
        """Store bytes under an id; returns the absolute path of the file."""
        name = self._name(blob_id)
        self._tree.write(name, data)
        return self._tree.path(name)

    def read_blob(self, blob_path: str) -> bytes:
        """Read a blob by id or path.

        Raises
        ------
        MissingBlobError
            It is not there: a `FileNotFoundError` and a `KeyNotFoundError`.
        InvalidKeyError
            The path is not inside `base_dir`.
        """
        try:
            return self._tree.read(self._find(blob_path))
        except KeyNotFoundError as exc:
            raise MissingBlobError(exc.message, location=exc.location) from exc

    def delete_blob(self, blob_path: str) -> bool:
        """Remove a blob by id or path; False if it is not there."""
        try:
            self._tree.remove(self._find(blob_path))
        except KeyNotFoundError:
            return False
        return True

    def exists(self, blob_path: str) -> bool:
        """Whether there is a blob of this id or path."""
        try:
            return self._tree.exists(self._find(blob_path))
        except KeyNotFoundError:
            return False

    def get_size(self, blob_path: str) -> int:
        """Stored bytes of a blob."""
        if not self._is_ours("read_blob"):
            return super().get_size(blob_path)
        try:
            return self._tree.stat(self._find(blob_path)).size
        except KeyNotFoundError as exc:
            raise MissingBlobError(exc.message, location=exc.location) from exc

    def write_blob_stream(self, blob_id: str, stream: BinaryIO) -> str:
        """Store what is left of a stream, a chunk at a time."""
        if not self._is_ours("write_blob"):
            return super().write_blob_stream(blob_id, stream)
        name = self._name(blob_id)
        with self._tree.sink(name, blob_id) as sink:
            copy_stream(stream, sink)
        return self._tree.path(name)

    def read_blob_stream(self, blob_path: str) -> BinaryIO:
        """Open a blob by id or path."""
        if not self._is_ours("read_blob"):
            return io.BytesIO(self.read_blob(blob_path))
        try:
            return self._tree.open(self._find(blob_path))
        except KeyNotFoundError as exc:
            raise MissingBlobError(exc.message, location=exc.location) from exc

    # --- as an object store ----------------------------------------------------------------------

    def put(self, key: str, data: Buffer) -> None:
        """Write a blob."""
        if self._is_ours("write_blob"):
            self._tree.write(self._name(key), data)
        else:
            self.write_blob(key, bytes(as_contiguous(data)))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the ids, shard by shard; files that are not where their id belongs are left out."""
        self._check_open()
        start = require_str(prefix)[: self.shard_chars]
        _, shards = self._tree.listing(())
        return self._ids([shard for shard in shards if shard.startswith(start)], prefix)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of a blob."""
        if not self._is_ours("read_blob"):
            return super().get_range(key, start, stop)
        name = self._find(key)
        check_range(start, stop)
        return self._tree.read_range(name, start, stop)

    def source(self, key: str) -> Source:
        """Hold a blob open; it stays readable when it is deleted."""
        if not self._is_ours("read_blob"):
            return super().source(key)
        return self._tree.source(self._find(key))

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write a blob piece by piece; an overridden `write_blob` gets it whole."""
        name = self._name(key)
        if self._is_ours("write_blob"):
            return self._tree.sink(name, name[-1])
        return MemorySink(lambda data: self._id_of_path(self.write_blob(key, data)), key)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of a blob; the size alone if reading is overridden."""
        if self.capabilities.etags:
            return self._tree.stat(self._find(key))
        return super().stat(key)

    def local_path(self, key: str) -> Path | None:
        """Where the file lies; None if it does not exist, or if reading is overridden."""
        self._check_open()
        if not self._is_ours("read_blob"):
            return None
        try:
            name = self._find(key)
        except KeyNotFoundError:
            return None
        return Path(self._tree.path(name)) if self._tree.exists(name) else None

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove blobs; absent ones are fine."""
        self._check_open()
        super().delete_many(keys)

    def copy(self, source: str, target: str) -> None:
        """Copy a blob without bringing it into this process, where the system can."""
        if self._is_ours("read_blob") and self._is_ours("write_blob"):
            self._tree.copy(self._find(source), self._name(target))
        else:
            super().copy(source, target)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write a blob unless there is one; of all processes, one wins."""
        if not self._is_ours("write_blob"):
            return super().put_if_absent(key, data)
        return self._tree.write(self._name(key), data, only_if_absent=True)

    def sync(self, keys: Iterable[str]) -> None:
        """Bring blobs and their folders to the disk; those kept elsewhere are left out."""
        self._check_open()
        self._tree.sync(self._names_inside(keys))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._tree.root!r}, shard_chars={self.shard_chars})"

    # --- ids, paths and names --------------------------------------------------------------------

    def _is_ours(self, method: str) -> bool:
        """Whether a method is the one of this class: not overridden, nor replaced on the object."""
        return getattr(getattr(self, method), "__func__", None) is getattr(
            FilesystemBlobBackend, method
        )

    def _name(self, blob_id: str) -> Name:
        self._check_open()
        return self._layout.name(blob_id)

    def _find(self, blob_path: str) -> Name:
        self._check_open()
        return self._layout.find(blob_path)

    def _id_of_path(self, path: str) -> str:
        """The bare id of a path inside the base, anything else as it is."""
        try:
            return self._find(path)[-1]
        except (InvalidKeyError, KeyNotFoundError):
            return str(path)

    def _ids(self, shards: list[str], prefix: str) -> Iterator[str]:
        for shard in shards:
            files, _ = self._tree.listing((shard,))
            for blob_id in files:
                if blob_id.startswith(prefix) and self._layout.is_at_home((shard, blob_id)):
                    yield blob_id

    def _names_inside(self, keys: Iterable[str]) -> Iterator[Name]:
        for key in keys:
            try:
                name = self._find(key)
            except BlobStoreError:
                if self._is_ours("write_blob"):
                    raise
                continue
            yield name


def _closed(store: ObjectStore) -> ClosedError:
    return ClosedError(f"{store!r} was closed: make a new one")


def _key_of(name: Name) -> str:
    return name.key if isinstance(name, KeyedName) else "/".join(name)
