"""`ZipStore`: objects in one zip file that other programs read, and that no kill can harm."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, get_args

from blobstore.backends.blob.descriptors import make_folders
from blobstore.backends.blob.zip_compaction import record_of
from blobstore.backends.blob.zip_fields import ENCRYPTED
from blobstore.backends.blob.zip_file import ZipFile
from blobstore.backends.blob.zip_foreign import find_data
from blobstore.backends.blob.zip_format import Kind, Record
from blobstore.backends.blob.zip_index import View, name_of
from blobstore.backends.blob.zip_names import check_key, encode_key
from blobstore.backends.blob.zip_reading import (
    Place,
    ZipSource,
    open_member,
    read_part,
    read_whole,
)
from blobstore.backends.blob.zip_sink import Packed, ZipSink, pack
from blobstore.entry import ObjectStat, now_us, to_datetime
from blobstore.errors import (
    BlobStoreError,
    ConfigError,
    InvalidKeyError,
    KeyNotFoundError,
    NotSupportedError,
    from_os_error,
)
from blobstore.keys import require_str
from blobstore.protocols import Capabilities, Leftover, ObjectStore, check_range
from blobstore.streams import Buffer, Sink, Source, as_contiguous

Compression = Literal["stored", "deflated"]

COMPACT_AT = 4 << 20
"""Bytes of garbage from which on a store that closes may compact its file."""


class ZipStore(ObjectStore):
    """Objects in one zip file.

    A put appends to the file, and costs the same whatever is in it. Nothing that was written is
    ever overwritten, so a kill loses what was being written and nothing else. Several processes may
    write at once. `close` (or `flush`) adds the directory that other programs need; after a kill,
    opening the store and closing it does.

    A key is a relative path of segments separated by single slashes. What could be extracted to a
    wrong place, on any system, is `InvalidKeyError`, and so is "a" beside "a/b". In a zip file of
    another program, folders and unsafe names are no objects, and stay as they are. Such a file is
    copied once, before its first change.

    Replaced and deleted objects take their space until `compact`. Closing a store that only read
    changes the file only if there is something behind its last directory, and nobody else is
    writing just then.

    Parameters
    ----------
    path : str or path
        Made by the first put, with the folders above it; may be a symbolic link.
    compression : {"stored", "deflated"}
        Of objects that are put; all kinds are read. Ranges of deflated objects are read from the
        start of the object.
    level : int
        1 to 9, of "deflated".
    fsync : bool
        Whether a put returns only when it would survive a power cut.
    auto_compact : bool
        Whether `close` compacts after changes, if more than half of the file and more than 4 MiB
        are garbage.
    timeout : float
        Seconds to wait for other writers, before `UnavailableError`.

    Raises
    ------
    ConfigError
        A parameter is wrong.

    Examples
    --------
    >>> import tempfile, zipfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with ZipStore(folder.name + "/objects.zip") as store:
    ...     store.put("notes/today.txt", b"hello")
    ...     store.get("notes/today.txt"), list(store.keys("notes/"))
    (b'hello', ['notes/today.txt'])
    >>> with zipfile.ZipFile(folder.name + "/objects.zip") as archive:
    ...     archive.read("notes/today.txt")
    b'hello'
    >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        compression: Compression = "stored",
        level: int = 6,
        fsync: bool = False,
        auto_compact: bool = True,
        timeout: float = 60.0,
    ) -> None:
        if compression not in get_args(Compression):
            raise ConfigError(f"compression must be 'stored' or 'deflated', not {compression!r}")
        if type(level) is not int or not 1 <= level <= 9:
            raise ConfigError(f"level must be an int from 1 to 9, not {level!r}")
        if type(timeout) not in (int, float) or not 0 <= timeout < threading.TIMEOUT_MAX:
            raise ConfigError(f"timeout must be a number of seconds, not {timeout!r}")
        self.path = Path(_absolute(path))
        self.compression = compression
        self._level = level if compression == "deflated" else None
        self._options: dict[str, Any] = {
            "compression": compression, "level": level, "fsync": fsync,
            "auto_compact": auto_compact, "timeout": timeout,
        }  # fmt: skip
        self._fsync = fsync
        self._compact_at = COMPACT_AT if auto_compact else None
        self._file = ZipFile(str(self.path), fsync=fsync, timeout=timeout)
        # A program that ends without `close` still leaves a zip file for others.
        self._finish = weakref.finalize(self, _finish_quietly, self._file, os.getpid())

    @classmethod
    def for_folder(cls, directory: Path, *, fsync: bool = False) -> Self:
        """Make the store of a BlobStore: ``blobs.zip`` in its folder."""
        return cls(directory / "blobs.zip", fsync=fsync)

    @property
    def capabilities(self) -> Capabilities:
        """All but local files; ranges only of what is stored as it is."""
        return Capabilities(
            ranges=self._level is None, streams=True, conditional_writes=True, etags=True
        )

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str) -> bytes:
        """Read an object, and check it."""
        return read_whole(self._find(key))

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        key, view = check_key(key), self._file.view()
        return view is not None and key in view.members

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys that were there at the time of the call."""
        view = self._file.view()
        names = list(view.members) if view is not None else []
        return iter(
            [name for name in names if name.startswith(prefix)] if require_str(prefix) else names
        )

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object."""
        place = self._find(key)
        check_range(start, stop)
        return read_part(place, start, stop)

    def open(self, key: str) -> BinaryIO:
        """Open an object; it stays readable when it is replaced or deleted."""
        return open_member(self._find(key))

    def source(self, key: str) -> Source:
        """Hold an object open; it stays readable when it is replaced or deleted."""
        return ZipSource(self._find(key))

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag; every put has an etag of its own."""
        member = self._find(key).member
        return ObjectStat(member.size, to_datetime(member.modified), f"{member.tag:016x}")

    def local_path(self, key: str) -> None:
        """There is no file for one object."""
        check_key(key)
        self._file.check_open()

    # --- writing ---------------------------------------------------------------------------------

    def put(self, key: str, data: Buffer) -> None:
        """Append an object."""
        self._put(key, data, only_if_absent=False)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Append an object unless there is one; of all processes, one wins."""
        return self._put(key, data, only_if_absent=True)

    def delete(self, key: str) -> None:
        """Remove an object; its space is free after the next `compact`."""
        self._find(key)  # no file is made for nothing
        with self._file.appending() as view:
            if key not in view.members:
                raise self._missing(key)
            self._file.append(view, [_deletion(key)])
            handle = self._file.written()
        self._file.sync(handle)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects at once; absent ones are fine."""
        wanted = dict.fromkeys(map(check_key, keys))
        view = self._file.view()
        if view is None or not any(key in view.members for key in wanted):
            return
        with self._file.appending() as view:
            gone = [_deletion(key) for key in wanted if key in view.members]
            if gone:
                self._file.append(view, gone)
            handle = self._file.written()
        self._file.sync(handle)

    def copy(self, source: str, target: str) -> None:
        """Copy an object without unpacking it, and inside the system where that can be."""
        name = encode_key(check_key(target))
        self._find(source)
        with self._file.appending() as view:
            member = view.members.get(source)
            if member is None:
                raise self._missing(source)
            if member.flags & ENCRYPTED:
                raise NotSupportedError(
                    f"{source!r} is encrypted, which ZipStore cannot copy", location=source
                )
            if source != target:
                _check_free(view, target)
                old, payload = record_of(view.handle, name_of(source, member), member)
                packed = Packed(payload, old.method, old.crc, old.stored, old.size)
                self._append(view, name, packed)
            handle = self._file.written()
        self._file.sync(handle)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece; it is gathered beside the zip file, then appended."""
        name = encode_key(check_key(key))
        self._file.check_open()
        drafts = self._file.drafts

        def publish(packed: Packed) -> None:
            self._publish(key, name, packed, only_if_absent=False)

        def prepare() -> None:
            try:
                make_folders(drafts.folder, fsync=self._fsync)
            except OSError as exc:
                raise from_os_error(exc, f"making {drafts.folder}", location=key) from exc

        return ZipSink(key, drafts, self._level, size_hint, publish, prepare)

    def _put(self, key: str, data: Buffer, *, only_if_absent: bool) -> bool:
        name = encode_key(check_key(key))
        content = as_contiguous(data)
        self._file.check_open()
        if only_if_absent and self.exists(key):
            return False
        return self._publish(key, name, pack(content, self._level), only_if_absent=only_if_absent)

    def _publish(self, key: str, name: bytes, packed: Packed, *, only_if_absent: bool) -> bool:
        with self._file.appending() as view:
            if only_if_absent and key in view.members:
                return False
            _check_free(view, key)
            self._append(view, name, packed)
            handle = self._file.written()
        self._file.sync(handle)
        return True

    def _append(self, view: View, name: bytes, packed: Packed) -> None:
        record = Record(
            Kind.MEMBER, name, packed.method, crc=packed.crc, stored=packed.stored,
            size=packed.size, modified=now_us(), tag=int.from_bytes(os.urandom(8), "little"),
            follows=packed.stored,
        )  # fmt: skip
        self._file.append(view, [record], packed.payload)

    # --- the file --------------------------------------------------------------------------------

    def flush(self) -> None:
        """Add the directory that other programs need, unless nothing changed since the last one."""
        view = self._file.view()
        if view is None or view.end == 0 or view.clean:
            return
        with self._file.appending() as view:
            if not view.clean:
                self._file.write_directory(view)

    def compact(self) -> int:
        """Write a new file with what is alive, and move it over the old one.

        Returns
        -------
        int
            The bytes that this freed.
        """
        view = self._file.view()
        if view is None or view.end == 0:
            return 0
        with self._file.appending() as view:
            return self._file.compact(view)

    def sync(self, keys: Iterable[str]) -> None:
        """Bring the file, and its name, to the disk."""
        wanted = [check_key(key) for key in keys]
        view = self._file.view()
        if view is not None and wanted:
            self._file.sync(view.handle)
            self._file.sync_name()

    def leftovers(self) -> Iterator[Leftover]:
        """Temporary files of killed writers; one that was lent to a library may be active."""
        self._file.check_open()
        return self._file.drafts.leftovers()

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`; names that are not ours are refused."""
        self._file.check_open()
        self._file.drafts.remove(name)

    def close(self) -> None:
        """Add the directory, or compact, if this store changed the file or a kill left it so."""
        if self._finish.detach() is None:
            return
        try:
            self._file.finish(compact_at=self._compact_at)
        finally:
            self._file.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, compression={self.compression!r})"

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        self._file.check_open()
        return _unpickled, (type(self), str(self.path), self._options)

    def _find(self, key: str) -> Place:
        key, view = check_key(key), self._file.view()
        member = view.members.get(key) if view is not None else None
        if view is None or member is None:
            raise self._missing(key)
        try:
            start = find_data(view.handle, name_of(key, member), member)
        except OSError as exc:
            raise from_os_error(exc, f"reading {self.path}", location=key) from exc
        return Place(view.handle, key, start, member)

    def _missing(self, key: str) -> KeyNotFoundError:
        return KeyNotFoundError(f"there is no object {key!r} in {self.path}", location=key)


def _deletion(key: str) -> Record:
    return Record(Kind.DELETION, key.encode(), modified=now_us())


def _check_free(view: View, key: str) -> None:
    if (other := view.in_the_way(key)) is not None:
        raise InvalidKeyError(
            f"there cannot be an object {key!r} beside {other!r}: nobody could extract a file and "
            "a folder of one name. Choose another key",
            location=key,
        )


def _finish_quietly(file: ZipFile, pid: int) -> None:
    """End a store that nobody closed, as far as that goes without waiting."""
    if os.getpid() != pid:
        return
    with contextlib.suppress(BlobStoreError):
        # No waiting: the garbage collector may have come here out of the writer to be waited for.
        file.finish(compact_at=None, wait=False)
    file.close()


def _unpickled(cls: type[ZipStore], path: str, options: dict[str, Any]) -> ZipStore:
    return cls(path, **options)


def _absolute(path: object) -> str:
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or text == "" or "\0" in text:
        raise ConfigError(f"path must be the path of a zip file, not {path!r}")
    return os.path.abspath(text)  # noqa: PTH100 - resolve() would follow links
