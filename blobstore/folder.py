"""The folder of a store: what is in it, what kind of index it has, and whose blobs it holds.

::

    blobstore.json      format, store_id, least version that can read it, kind of index
    cache_metadata.*    the index, where it lives in the folder
    blobs/              the default object store; blobs/.blobstore-id names its index
    tmp/                files being written, on the same file system as blobs/
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blobstore.backends.blob.urls import StoreUrl, open_object_url
from blobstore.errors import (
    ConfigError,
    IncompatibleStoreError,
    IntegrityError,
    KeyNotFoundError,
    StorageError,
    from_os_error,
)
from blobstore.keys import random_id
from blobstore.protocols import MetadataBackend, ObjectStore
from blobstore.query import Query
from blobstore.registry import load, metadata_backends, object_stores
from blobstore.version import __version__

FORMAT = 1
DESCRIPTION = "blobstore.json"
MARKER = ".blobstore-id"
_INDEX_FILES = {"cache_metadata.json": "json", "cache_metadata.db": "sqlite"}
_ELSEWHERE = "elsewhere"
_URL = "blob_backend={!r}"


@dataclass(frozen=True, slots=True)
class Description:
    """What ``blobstore.json`` says of a folder.

    Attributes
    ----------
    format : int
        Of the folder's layout.
    least_reader : int
        The oldest format that a program must know to read it.
    store_id : str
        The same as in the index and beside the blobs.
    index : str
        "json", "sqlite", another registered name, or "elsewhere".
    created_by : str
    """

    format: int
    least_reader: int
    store_id: str
    index: str
    created_by: str


def prepare(cache_dir: str | os.PathLike[str], *, readonly: bool) -> Path:
    """Resolve the folder once, and make it unless the store is only read.

    Raises
    ------
    ConfigError
        Not a path, or a folder to be read only does not exist.
    StorageError
        There is a file in its place, or it cannot be made.
    """
    given: Any = cache_dir
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(path, str) or not path:
        raise ConfigError(f"cache_dir must be the path of a folder, not {cache_dir!r}")
    try:
        root = Path(path).expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as exc:
        raise ConfigError(f"cache_dir {cache_dir!r} is no usable path: {exc}") from exc
    if readonly:
        if not root.is_dir():
            raise ConfigError(f"{root} is no folder: open it without readonly=True to make one")
        return root
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as exc:
        raise StorageError(
            f"a store needs a folder, but a file stands at or above {root}: choose another "
            "cache_dir, or move the file away"
        ) from exc
    except OSError as exc:
        raise from_os_error(exc, f"making the folder {root}") from exc
    return root


def open_index(
    root: Path,
    backend: str | MetadataBackend | None,
    objects: ObjectStore | None = None,
    *,
    fsync: bool,
    readonly: bool,
) -> tuple[MetadataBackend, Description]:
    """Open the index that was asked for, or the one that is there; a new one starts as JSON.

    Parameters
    ----------
    root : Path
    backend : str, MetadataBackend or None
        A registered name, an SQLAlchemy URL, an instance, or None for what is there.
    objects : ObjectStore, optional
        Where the blobs are, which may tell the store that is meant, of several in a database.

    Raises
    ------
    ConfigError
        Unknown backend, or the folder has an index of another kind.
    IncompatibleStoreError
        The folder belongs to a newer version, or the index to another folder.
    IntegrityError
        ``blobstore.json`` is damaged, or the index that it names is gone.
    """
    described = read_description(root)
    kind = _index_kind(root, backend, described)
    if isinstance(backend, MetadataBackend):
        index = backend
    elif kind == _ELSEWHERE:
        index = load("blobstore.backends.metadata.joining:open_by_url")(
            backend,
            known=None if described is None else described.store_id,
            owner=lambda: _owner(objects),
            claim=lambda store_id: _claimed(objects, store_id),
            fsync=fsync,
            readonly=readonly,
        )
    else:
        index = metadata_backends.get(kind).for_folder(root, fsync=fsync, readonly=readonly)
    try:
        if described is None and kind == _ELSEWHERE and not _index_files(root):
            _check_blobs_are_here(index, objects)
        return index, _agree(root, index, described, kind, readonly=readonly)
    except BaseException:
        if index is not backend:
            index.close()
        raise


def _agree(
    root: Path,
    index: MetadataBackend,
    described: Description | None,
    kind: str,
    *,
    readonly: bool,
) -> Description:
    """Make sure that folder and index are of one store; describe a folder that is new."""
    store_id = index.store_id
    if described is None:
        files = _index_files(root)
        kind = files[0] if kind == _ELSEWHERE and files else kind
        described = Description(FORMAT, FORMAT, store_id, kind, f"blobstore {__version__}")
        if not readonly:
            _write_description(root, described)
            described = read_description(root) or described  # another process may have been first
    if described.store_id != store_id:
        raise IncompatibleStoreError(
            f"the folder {root} belongs to the store {described.store_id}, the index that was "
            f"opened to {store_id}: give the backend that this folder was made with, or another "
            "folder"
        )
    return described


def _owner(objects: ObjectStore | None) -> str | None:
    """The store id that is written beside the blobs."""
    if objects is None or not objects.capabilities.list:
        return None
    try:
        return objects.get(MARKER).decode("ascii", "replace")
    except KeyNotFoundError:
        return None


def _claimed(objects: ObjectStore | None, store_id: str) -> str:
    """Write a store id beside the blobs, unless there is one; which one it is then."""
    if objects is None or not objects.capabilities.list:
        return store_id
    objects.put_if_absent(MARKER, store_id.encode("ascii"))
    return _owner(objects) or store_id


def _check_blobs_are_here(index: MetadataBackend, objects: ObjectStore | None) -> None:
    """Refuse an index that was filled from another folder, whose blobs are not in this one's."""
    if objects is None or not objects.capabilities.list or _owner(objects) is not None:
        return
    if next(iter(index.keys(Query(limit=1))), None) is None and next(index.blobs(), None) is None:
        return
    raise IncompatibleStoreError(
        f"the index {index!r} holds a store whose blobs are elsewhere: to share it, give the same "
        "blob_backend as where it was made; for a store of its own in the same database, name "
        "another namespace (?blobstore_namespace= in the URL)"
    )


def check_backends(backend: object, blob_backend: object) -> None:
    """Refuse what can be no index or object store, before a folder is made for it.

    Raises
    ------
    ConfigError
        Unknown name, or neither a name nor an instance.
    """
    _wanted_kind(backend)
    _object_store_class(blob_backend)


def _wanted_kind(backend: object) -> str | None:
    if backend is None:
        return None
    if isinstance(backend, MetadataBackend):
        return _ELSEWHERE
    if not isinstance(backend, str):
        raise ConfigError(
            "backend must be 'json', 'sqlite', an SQLAlchemy URL or a MetadataBackend, not "
            f"{backend!r}"
        )
    if "://" in backend:
        return _ELSEWHERE
    metadata_backends.get(backend)  # which says what is wrong with an unknown name
    return backend


def _object_store_class(blob_backend: object) -> type[ObjectStore]:
    if isinstance(blob_backend, ObjectStore):
        return type(blob_backend)
    name = "filesystem" if blob_backend is None else blob_backend
    if not isinstance(name, str):
        raise ConfigError(f"blob_backend must be a name, a URL or an ObjectStore, not {name!r}")
    if "://" in name:
        return StoreUrl.of(name, _URL).store_class()
    return object_stores.get(name)


def _index_kind(
    root: Path, backend: str | MetadataBackend | None, described: Description | None
) -> str:
    there = _existing(root, described, backend)
    if described is not None and there not in (_ELSEWHERE, *metadata_backends.names()):
        raise IncompatibleStoreError(
            f"{root / DESCRIPTION} says that the index is of the kind {there!r}, which is not known "
            "here: install the package that offers it, or restore the file from a backup"
        )
    wanted = _wanted_kind(backend)
    if there is None:
        return wanted or "json"
    if there == _ELSEWHERE and wanted != _ELSEWHERE:
        raise ConfigError(
            f"the index of {root} is kept elsewhere: give backend= as when the store was made"
        )
    if wanted not in (None, there, _ELSEWHERE):
        raise ConfigError(
            f"{root} has an index of the kind {there!r}, not {wanted!r}: open it with "
            f"backend={there!r} or without backend="
        )
    return wanted or there


def _existing(
    root: Path, described: Description | None, backend: str | MetadataBackend | None
) -> str | None:
    """The kind of index that the folder has, if any."""
    files = _index_files(root)
    if described is None:
        if len(files) > 1 and backend is None:
            raise ConfigError(f"{root} holds two indexes ({', '.join(files)}): say which backend=")
        return files[0] if len(files) == 1 else None
    if described.index in _INDEX_FILES.values() and described.index not in files:
        raise IntegrityError(
            f"{root / DESCRIPTION} says that the index is of the kind {described.index!r}, but its "
            "file is gone: restore it from a backup. No new index was made, since it would not "
            "know the blobs that are there"
        )
    return described.index


def _index_files(root: Path) -> list[str]:
    return [kind for name, kind in _INDEX_FILES.items() if (root / name).exists()]


def open_objects(
    cache_dir: str | os.PathLike[str],
    blob_backend: str | ObjectStore | None,
    *,
    fsync: bool,
    readonly: bool,
) -> tuple[Path, ObjectStore]:
    """Make the folder, and open the object store that was asked for, in it or elsewhere.

    Raises
    ------
    ConfigError
        Unknown name or URL, nothing of these, or a store that blobs cannot be kept in. No folder
        was made then.
    StorageError
        The folder cannot be made.
    """
    objects = _open_elsewhere(blob_backend, readonly=readonly)
    try:
        root = prepare(cache_dir, readonly=readonly)
    except BaseException:
        if objects is not None and objects is not blob_backend:
            objects.close()
        raise
    if objects is None:
        objects = _object_store_class(blob_backend).for_folder(root, fsync=fsync)
    return root, objects


def _open_elsewhere(blob_backend: object, *, readonly: bool) -> ObjectStore | None:
    """The object store of a URL, or an instance; None for one that lies in the folder."""
    if isinstance(blob_backend, ObjectStore):
        _check_can_keep_blobs(blob_backend, readonly=readonly)
        return blob_backend
    if isinstance(blob_backend, str) and "://" in blob_backend:
        return _open_url(blob_backend, readonly=readonly)
    return None


def _open_url(url: str, *, readonly: bool) -> ObjectStore:
    objects = open_object_url(url, _URL)
    try:
        _check_can_keep_blobs(objects, readonly=readonly)
    except ConfigError:
        objects.close()
        raise
    return objects


def _check_can_keep_blobs(objects: ObjectStore, *, readonly: bool) -> None:
    can = objects.capabilities
    if can.values != "bytes":
        raise ConfigError(
            f"blobs are bytes, but {objects!r} keeps values of another kind ({can.values}): give the "
            "store beneath it"
        )
    if not can.raises:
        raise ConfigError(
            f"{objects!r} swallows errors, so that blobs could be lost without a word: set "
            "reraise=True, or give the store beneath it"
        )
    if not can.readable:
        raise ConfigError(f"{objects!r} cannot be read, so nothing could be loaded from it")
    if not can.writable and not readonly:
        raise ConfigError(f"{objects!r} cannot be written: open the store with readonly=True")


def claim(objects: ObjectStore, store_id: str) -> None:
    """Write beside the blobs whose they are, or find that they are somebody else's.

    Two indexes over one set of blobs would collect each other's as garbage. A store that cannot
    list is never collected by listing, and needs no marker.

    Raises
    ------
    IncompatibleStoreError
        The blobs belong to another index.
    """
    if not objects.capabilities.list:
        return
    for _ in range(2):
        try:
            owner = objects.get(MARKER).decode("ascii", "replace")
        except KeyNotFoundError:
            objects.put_if_absent(MARKER, store_id.encode("ascii"))
            continue
        if owner == store_id:
            return
        raise IncompatibleStoreError(
            f"the blobs here belong to the index {owner!r}, not to {store_id!r}: open the store "
            "with the index it was made with, or keep new blobs elsewhere",
            location=MARKER,
        )
    raise StorageError(
        f"the object store {objects!r} does not keep what it is given: {MARKER!r} was put there, and "
        "is not found",
        location=MARKER,
    )


def read_description(root: Path) -> Description | None:
    """Read ``blobstore.json``; None where there is none.

    Raises
    ------
    IntegrityError
        It is damaged.
    IncompatibleStoreError
        It is of a newer version, or not of ours.
    """
    path = root / DESCRIPTION
    try:
        fields: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise from_os_error(exc, f"reading {path}") from exc
    except (ValueError, RecursionError) as exc:
        raise IntegrityError(
            f"{path} is damaged ({exc}): restore it from a backup, or remove it if the index beside "
            "it is whole, and it will be written anew"
        ) from exc
    expected = Description.__annotations__
    if not isinstance(fields, dict) or any(
        type(fields.get(name)).__name__ != kind for name, kind in expected.items()
    ):
        raise IncompatibleStoreError(
            f"{path} does not say what blobstore writes there ({', '.join(expected)}): choose "
            "another cache_dir, or restore the file from a backup"
        )
    described = Description(**{name: fields[name] for name in expected})
    if described.least_reader > FORMAT:
        raise IncompatibleStoreError(
            f"{root} was made by {described.created_by} in format {described.format}; this version "
            f"reads up to {FORMAT}: upgrade blobstore"
        )
    return described


def _write_description(root: Path, described: Description) -> None:
    """Publish by link, which never replaces what another process wrote first."""
    path = root / DESCRIPTION
    temporary = root / f".{DESCRIPTION}.{random_id()}"
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(asdict(described), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, path)
    except OSError as exc:
        raise from_os_error(exc, f"writing {path}") from exc
    finally:
        temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or path.exists():
            raise
        temporary.replace(path)  # a file system without hard links
