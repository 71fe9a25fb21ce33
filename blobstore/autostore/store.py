"""AutoStore: a dictionary of open files."""

from __future__ import annotations

import contextlib
import mimetypes
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeVar

from blobstore.autostore import schemes
from blobstore.autostore.errors import StorageFileNotFoundError
from blobstore.autostore.formats import Formats
from blobstore.autostore.names import glob, is_key, key_text, split
from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.config.storage import StorageConfig
from blobstore.entry import ObjectStat
from blobstore.errors import (
    ClosedError,
    DecodeError,
    InvalidInputError,
    KeyNotFoundError,
    RejectedKeyError,
    StorageError,
    UnsupportedTypeError,
    UntrustedTypeError,
)
from blobstore.files.trust import SIGNED, FileTrust
from blobstore.limits import MAX_DECOMPRESSED
from blobstore.protocols.data_handler import DataHandler
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.wrappers.cache import CachingStore

T = TypeVar("T")
_RUBBISH = timedelta(days=1)
"""For how long the file of a killed writer lies: until then its writer may just be slow."""
_LOOKS = 3
"""How often the files of a key are looked for before there are none."""
_TRIES = 20
"""How often a file is looked for anew that others replace by one of another type all the time."""


@dataclass(frozen=True, slots=True)
class FileMetadata:
    """What is known of a file without reading it.

    Attributes
    ----------
    size : int
        In bytes.
    modified_time : datetime or None
        Aware, UTC.
    created_time : datetime or None
        None: no store of files tells it reliably.
    content_type : str or None
        By the extension: "application/json".
    etag : str or None
        Another etag means other bytes.
    extra : dict
        "name": of the file, with its extension.
    """

    size: int
    modified_time: datetime | None = None
    created_time: datetime | None = None
    content_type: str | None = None
    etag: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class AutoStore(MutableMapping[Any, Any]):
    """A folder, or part of a bucket, as a dictionary: each object is a file that other tools read.

    The format follows from the object: a frame becomes ``.parquet``, a dictionary ``.json``, a list
    of dictionaries ``.jsonl``, text ``.txt``, an array ``.npy``, whatever nothing else holds exactly
    ``.pkl``. A key may name the extension itself, which then decides. A key has one file: storing
    another type under it replaces the file of the old one.

    Parameters
    ----------
    storage_uri : path, URL or ObjectStore
        "./data", "s3://bucket/prefix/", ``file:///data``. A relative path is fixed now.
    config : StorageConfig, optional
        For a bucket an `S3StorageConfig`; by default what the environment says.
    pickle : {"signed", "allow", "deny"}
        Which pickles may be loaded: those that bear a signature by your own key and, of the others,
        those that only hold plain values ("signed"); all; none.
    trusted_types : iterable of str
        Patterns of type names that any pickle here may name.
    signing_keys : optional
        In place of the keys of the user; see `BlobStore`.
    max_decompressed_bytes : int
        A compressed file may grow to so many bytes, or to 256 times its size, whichever is more;
        beyond that it is refused as an attack on memory. ``pickle="allow"`` lifts the limit.

    Raises
    ------
    ConfigError
        An argument is wrong, or the scheme is not known.

    Examples
    --------
    >>> import tempfile
    >>> with AutoStore(tempfile.mkdtemp()) as store:
    ...     store["config"] = {"lr": 0.1}
    ...     store["notes.md"] = "# Notes"
    ...     sorted(store), store["config"], sorted(store.list_files())
    (['config', 'notes'], {'lr': 0.1}, ['config.json', 'notes.md'])
    """

    def __init__(
        self,
        storage_uri: Any,
        config: StorageConfig | None = None,
        *,
        pickle: str = "signed",
        trusted_types: Iterable[str] = (),
        signing_keys: Any = None,
        max_decompressed_bytes: int = MAX_DECOMPRESSED,
    ) -> None:
        self._trust = FileTrust(pickle, trusted_types, signing_keys, max_decompressed_bytes)
        self._formats = Formats()
        self._objects, self._owned = schemes.open_objects(storage_uri, config)
        self._closed = False
        self._tidied = False

    # --- the dictionary ---

    def __setitem__(self, key: Any, data: Any) -> None:
        self.put(key, data)

    def __getitem__(self, key: Any) -> Any:
        return self.load(key)

    def __delitem__(self, key: Any) -> None:
        for name in self._found(key_text(key)):
            self._objects.delete_many([name])

    def __contains__(self, key: object) -> bool:
        return self.exists(key)

    def __iter__(self) -> Iterator[str]:
        return self._keys("")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def clear(self) -> None:
        """Delete all keys, without reading what they hold."""
        for key in list(iter(self)):  # which, unlike list(self), does not ask for the length first
            with contextlib.suppress(StorageFileNotFoundError):  # somebody else was faster
                del self[key]

    def put(self, key: Any, data: Any) -> str:
        """Store an object; the name of its file.

        Parameters
        ----------
        key : str or path
            With or without an extension.
        data : object

        Raises
        ------
        StorageError
            The object cannot be written as a file of the extension that the key names.
        UnsupportedTypeError
            Nothing holds it, not even pickle. The old file is intact.
        """
        self._check_open()
        stem, extension = split(key_text(key), self._formats.extensions)
        before = self._twins(stem)
        if extension:
            each = self._formats.for_writing(data, extension, stem)
            try:
                name, stale = self._write(stem, extension, each, data, before)
            except UnsupportedTypeError as exc:
                raise StorageError(exc.message, key=stem) from exc
        else:
            name, stale = self._write_somehow(stem, data, before)
        self._delete_unchanged(stale)
        if stale and not self._twins(stem):
            # Another writer took our file for stale as we took its: one of them is to stay, and
            # whoever deletes last sees that there is none.
            return self.put(key, data)
        return name

    def load(self, key: Any, **options: Any) -> Any:
        """Load an object, with options of its format: ``columns=`` of a frame, ``rows=`` of an array.

        Raises
        ------
        StorageFileNotFoundError
            There is no such key; also a `KeyError`.
        DecodeError
            The file is not what its extension says.
        UntrustedTypeError
            It is a pickle that names types which are not trusted.
        """

        def read(name: str) -> Any:
            try:
                return self._read(name, options)
            except (DecodeError, UntrustedTypeError):
                if not self._drop_copy(name):
                    raise
                return self._read(name, options)  # the copy may have been damaged, not the file

        return self._with_file(key_text(key), read)

    def _read(self, name: str, options: dict[str, Any]) -> Any:
        extension = split(name, self._formats.extensions)[1]
        each = self._formats.for_reading(extension, name)
        with self._objects.source(name) as source:
            return each.read(source, self._context(name, extension), **options)

    def get(self, key: Any, default: Any = None, **options: Any) -> Any:
        """Load an object, or give `default` if there is no such key."""
        try:
            return self.load(key, **options)
        except StorageFileNotFoundError:
            return default

    def exists(self, key: Any) -> bool:
        """Whether there is a file of this key; an outage is an error, not False."""
        return bool(self._look(key_text(key)))

    # --- files ---

    def list_files(self, pattern: str = "*", *, recursive: bool = True) -> Iterator[str]:
        """Names of the files, with their extensions, that fit a shell pattern.

        Parameters
        ----------
        pattern : str
            "*.parquet" means files of any folder, "runs/*/scores.json" a place; ``**`` any depth.
        recursive : bool
            False: only files directly in the root, or where the pattern says.
        """
        self._check_open()
        given: Any = pattern
        if not isinstance(given, str) or not given:
            raise InvalidInputError(f"pattern must be a text like '*.json', not {pattern!r}")
        fits = glob(pattern, anywhere=recursive).fullmatch
        literal = _literal_part(pattern) if "/" in pattern or not recursive else ""
        return (name for name in self._objects.keys(literal) if fits(name) and is_key(name))

    def get_metadata(self, key: Any) -> FileMetadata:
        """Size, time and etag of a file, which is not read.

        Raises
        ------
        StorageFileNotFoundError
        """

        def look(name: str) -> tuple[str, ObjectStat]:
            return name, self._objects.stat(name)

        name, stat = self._with_file(key_text(key), look)
        kind, _ = mimetypes.guess_type("x" + split(name, self._formats.extensions)[1])
        return FileMetadata(stat.size, stat.modified, None, kind, stat.etag, {"name": name})

    def copy(self, source: Any, target: Any) -> None:
        """Copy a file; whatever `target` was is replaced.

        Raises
        ------
        StorageFileNotFoundError
        StorageError
            `target` names another extension: a copy has the format of what is copied.
        """
        old, new = key_text(source), key_text(target)
        self._with_file(old, lambda name: self._copy_file(old, name, new))

    def move(self, source: Any, target: Any) -> None:
        """Rename a file, by copying and deleting it; onto itself it does nothing.

        What somebody stores under the old key meanwhile stays there.
        """
        old, new = key_text(source), key_text(target)

        def rename(name: str) -> None:
            seen = self._stats(self._files_of(old))
            made = self._copy_file(old, name, new)
            # What somebody stores under the old key meanwhile is not lost.
            self._delete_unchanged({n: stat for n, stat in seen.items() if made not in (n, name)})

        self._with_file(old, rename)

    def _copy_file(self, source: str, name: str, target: str) -> str:
        own, extension = split(name, self._formats.extensions)
        stem, wanted = split(target, self._formats.extensions)
        if wanted not in ("", extension):
            raise StorageError(
                f"{source!r} is a {extension} file and cannot become {target!r} by copying: leave the "
                "extension out, or load it and store it anew",
                key=target,
            )
        made = stem + name[len(own) :]
        if split(made, self._formats.extensions) != (stem, extension):
            raise StorageError(
                f"{source!r} cannot become {target!r}: its file would be {made!r}, which has another "
                "extension. Choose another name",
                key=target,
            )
        if made != name:
            stale = self._stats(twin for twin in self._twins(stem) if twin not in (made, name))
            signed = extension in SIGNED and self._trust.copy(self._objects, name, made)
            if not signed:
                self._objects.copy(name, made)
            self._delete_unchanged(stale)
            if stale and not self._twins(stem):  # as in put
                return self._copy_file(source, name, target)
        return made

    # --- handlers, backends, cache ---

    def register_handler(self, handler: DataHandler | FileFormat) -> None:
        """Add a format to this store, asked before the built-in ones.

        Raises
        ------
        ConfigError
            It is none, or one of that name is registered.
        """
        self._formats.register(handler)

    def unregister_handler(self, handler: Any) -> bool:
        """Remove a format by its class; whether it was there."""
        return self._formats.unregister(handler)

    @staticmethod
    def register_backend(scheme: str, backend: Any) -> None:
        """Let URLs of a scheme be opened by a class or function of your own; see `schemes.register`."""
        schemes.register(scheme, backend)

    @staticmethod
    def unregister_backend(scheme: str) -> bool:
        """Forget a scheme that was registered; whether it was."""
        return schemes.unregister(scheme)

    @staticmethod
    def get_supported_backends() -> list[str]:
        """The schemes that can be opened."""
        return schemes.known()

    def cleanup_cache(self) -> int:
        """Remove copies that are too old to be served, whoever made them; how many."""
        self._check_open()
        return self._objects.expire() if isinstance(self._objects, CachingStore) else 0

    def invalidate_cache(self, key: Any = None) -> None:
        """Drop the local copies of a key, or all; the files themselves stay."""
        self._check_open()
        if key is None:
            self._drop_copy()
            return
        for name in self._files_of(key_text(key)):
            self._drop_copy(name)

    def _drop_copy(self, *names: str) -> bool:
        """Drop the local copy of a file, or all; whether this store keeps copies."""
        # By its class: in a store of somebody else, what is called clear may delete the objects.
        if not isinstance(self._objects, CachingStore):
            return False
        self._objects.clear(*names)
        return True

    def close(self) -> None:
        """Let go of connections and temporary files. Calling it again does nothing."""
        if not self._closed:
            self._closed = True
            if self._owned:
                self._objects.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"AutoStore({self._objects!r})"

    # --- keys and files ---

    def _keys(self, prefix: str) -> Iterator[str]:
        self._check_open()
        return self._stems(self._objects.keys(prefix))

    def _stems(self, names: Iterator[str]) -> Iterator[str]:
        seen = set()
        for name in names:
            stem, extension = split(name, self._formats.extensions)
            if extension and stem not in seen and is_key(stem):
                seen.add(stem)
                yield stem

    def _files_of(self, key: str) -> list[str]:
        """The files that a key may mean: one, unless a writer was killed or another tool made more."""
        stem, extension = split(key, self._formats.extensions)
        if not extension:
            return self._twins(stem)
        for name in dict.fromkeys((key, stem + extension)):
            if self._exists(name):
                return [name]
        return self._twins(key)  # data.csv is also the key of data.csv.gz

    def _twins(self, stem: str) -> list[str]:
        """All files of a key, whatever their extension."""
        extensions = self._formats.extensions
        if not self._objects.capabilities.local_files:
            names: Iterable[str] = self._objects.keys(stem + ".")
            return [name for name in names if split(name, extensions)[0] == stem]
        # Asking costs less than listing a folder, which may be large.
        names = [stem + each for each in self._formats.spellings]
        there = self._existing(names)
        return [name for name in names if name in there and split(name, extensions)[0] == stem]

    def _existing(self, names: list[str]) -> set[str]:
        if isinstance(self._objects, FilesystemStore):
            return self._objects.existing(names)
        return {name for name in names if self._exists(name)}

    def _exists(self, name: str) -> bool:
        try:
            return self._objects.exists(name)
        except RejectedKeyError:
            return False  # a store that takes no such names has no such file

    def _look(self, key: str) -> list[str]:
        """The files of a key, even if others store it under another type all the time."""
        self._check_open()
        for _ in range(_LOOKS):
            if names := self._files_of(key):
                return names
            if not self._objects.capabilities.local_files:
                break  # names that were listed were there at once, those asked for one by one not
        return []

    def _found(self, key: str) -> list[str]:
        names = self._look(key)
        if not names:
            raise _not_found(key)
        return names

    def _with_file(self, key: str, use: Callable[[str], T]) -> T:
        """Do something with the file of a key; with its next one, if that replaced it meanwhile."""
        for _ in range(_TRIES):
            names = self._found(key)
            try:
                return use(self._newest(key, names))
            except KeyNotFoundError as exc:
                gone = exc
        raise _not_found(key) from gone

    def _newest(self, key: str, names: list[str]) -> str:
        """Of several files of one key that which was written last."""
        if len(names) == 1:
            return names[0]
        times = {}
        for name in names:
            try:
                modified = self._objects.stat(name).modified
            except KeyNotFoundError:
                continue
            times[name] = modified.timestamp() if modified is not None else 0.0
        if not times:
            raise _not_found(key)
        return max(times, key=lambda name: (times[name], name))

    def _stats(self, names: Iterable[str]) -> dict[str, ObjectStat]:
        """What files are like now, to be known again."""
        found = {}
        for name in names:
            with contextlib.suppress(KeyNotFoundError):
                found[name] = self._objects.stat(name)
        return found

    def _delete_unchanged(self, seen: Mapping[str, ObjectStat]) -> None:
        """Delete files that are what they were: what another writer stored meanwhile is not lost."""
        now = self._stats(seen)
        self._objects.delete_many([name for name in now if now[name] == seen[name]])

    def _write_somehow(
        self, stem: str, data: Any, before: list[str]
    ) -> tuple[str, dict[str, ObjectStat]]:
        """Write an object by the best format that takes it."""
        refused: UnsupportedTypeError | None = None
        extensions = self._formats.extensions
        for each in self._formats.for_object(data):
            extension = each.extensions[0]
            if split(stem + extension, extensions) != (stem, extension):
                continue  # x.dataclass as JSON would be taken for x as a dataclass
            try:
                return self._write(stem, extension, each, data, before)
            except UnsupportedTypeError as exc:
                refused = exc
        assert refused is not None  # pickle is asked last, and takes or refuses everything
        raise refused

    def _write(
        self, stem: str, extension: str, each: FileFormat, data: Any, before: list[str]
    ) -> tuple[str, dict[str, ObjectStat]]:
        """Write a file; its name, and the others of its key as they were before."""
        name = stem + extension
        stale = self._stats(twin for twin in before if twin != name)
        self._tidy()
        with self._objects.writer(name) as sink:
            each.write(data, sink, self._context(name, extension))
        return name, stale

    def _tidy(self) -> None:
        """Remove what killed writers left, once for each store that writes; nobody else does."""
        if self._tidied or not self._owned:
            return
        self._tidied = True
        with contextlib.suppress(StorageError):  # rubbish that stays is no reason not to write
            for left in list(self._objects.leftovers()):
                if datetime.now(UTC) - left.modified > _RUBBISH:
                    self._objects.remove_leftover(left.name)

    def _context(self, name: str, extension: str) -> FileContext:
        return FileContext(name, extension, self._trust)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self!r} was closed: open it again")


def _not_found(key: str) -> StorageFileNotFoundError:
    return StorageFileNotFoundError(f"there is no file of the key {key!r}", key=key)


def _literal_part(pattern: str) -> str:
    """The folders at the start of a pattern in which nothing is a wildcard."""
    folders = pattern.split("/")[:-1]
    plain = []
    for folder in folders:
        if any(character in folder for character in "*?["):
            break
        plain.append(folder)
    return "".join(folder + "/" for folder in plain)
