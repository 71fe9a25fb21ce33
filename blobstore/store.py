"""BlobStore: Python objects under keys, with metadata to find them by."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import (
    Callable,
    Iterable,
    Mapping,
)
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self, overload

from blobstore import changing, codecs, folder, maintenance
from blobstore import metadata as _metadata
from blobstore.arguments import (
    check_inline,
    check_inline_allowed,
    check_local_cache,
    check_local_cache_allowed,
    check_pickle,
    digest_algorithm,
    expected_of,
    keys_of,
    query_of,
    request_of,
    selection_of,
)
from blobstore.asking import Asking, Keys
from blobstore.commit import Committer, Request, WritePolicy
from blobstore.entry import Entry, now_us
from blobstore.errors import (
    ClosedError,
    InvalidInputError,
    KeyNotFoundError,
    NotSupportedError,
    from_os_error,
)
from blobstore.handlers.file import LocalFile
from blobstore.keys import validate_key
from blobstore.limits import MAX_DECOMPRESSED, check_limit
from blobstore.maintenance import GcReport, VerifyReport
from blobstore.protocols import (
    Copy,
    Delete,
    MetadataBackend,
    ObjectStore,
    Patch,
    WriteOptions,
)
from blobstore.query import Query, Where
from blobstore.reading import LoadPolicy, Pickle, Reader
from blobstore.registry import AnyHandler, HandlerSet
from blobstore.signing import Keyring, Signer
from blobstore.streams import copy_stream
from blobstore.trust import TypePatterns

if TYPE_CHECKING:
    from blobstore.wrappers.local_cache import LocalCacheStore

_BATCH = 1000


class BlobStore(Asking):
    """Puts Python objects under keys with metadata, finds them again, gives them back.

    A store is a folder. Several processes, threads, forked children and pickled copies may use
    the same one at once.

    Parameters
    ----------
    cache_dir : path
        The folder; made if it is not there. Resolved once, so a later `chdir` does no harm.
    backend : str, MetadataBackend or None
        Where the index is: "json" (readable, for small stores), "sqlite", an SQLAlchemy URL, or an
        instance. None takes what is in the folder; a new one starts as JSON. See Notes for
        databases that several stores share.
    compression : {"lz4", "zstd", "gzip", "blosclz", "none"}
    compression_level : int
        1 (fastest) to 9 (smallest).
    content_addressable : bool or {"blake3", "sha256"}
        Whether equal content is stored once. Without a key, the digest of the content is the key.
    blob_backend : str, ObjectStore or None
        Where the bytes are: "filesystem" (also None), "sqlite", "zip", "memory", another registered
        name, a URL ("s3://bucket/prefix", "gs://...", "az://..."), or an instance. Credentials are
        never part of the URL: they come from the environment (``AWS_ACCESS_KEY_ID`` ...), or with an
        instance (`S3StorageConfig`).
    inline_max_bytes : int, optional
        Values up to this many stored bytes are kept in the index itself. By default 8 KiB where
        the index is a database and the bytes are on the default file system, else 0. Refused where
        the object store encrypts, because the index does not.
    fsync : bool
        An acknowledged put survives a power cut. Without it, it survives any crash of processes.
    pickle : {"signed", "allow", "deny"}
        What may run code when it is loaded: "signed" what you stored yourself, told by a signature
        with your key (from others, plain data and arrays load, and `trusted_types`); "allow"
        everything; "deny" nothing, then pickles do not load at all.
    trusted_types : iterable of str
        Types that others' objects may be made of: ``"sklearn.*"``, ``"shop.models.Basket"``. What
        is named here may be called with any arguments.
    readonly : bool
        Change nothing; every writing method raises `NotSupportedError`.
    verify_on_read : bool
        Compare checksums before decoding. Pickles are always checked.
    handlers : iterable of Handler or DataHandler, optional
        Handlers of your own, or their classes, asked before the built-in ones of the same priority.
    signing_keys : iterable of (bytes or str), optional
        32 bytes each: the first signs, all verify. By default those of ``BLOBSTORE_SIGNING_KEY``,
        else your own in ``~/.config/blobstore/signing.keys``, made when it is first needed.
    max_decompressed_bytes : int
        What a stream of others may grow to when it is decompressed, if that is over 256 times its
        stored size.
    close_blob_backend : bool
        Whether an instance given as `blob_backend` is closed with the store.
    local_cache : path, optional
        A folder for copies of the blobs that were read from a store far away, so that the next
        reading asks for nothing. Processes and stores may share one. What is written is not copied
        there before it is read. Damaged copies are noticed and replaced; a full disk or a folder
        that cannot be used is a warning in the log. Refused where the object store encrypts, because
        the copies would not be.
    local_cache_bytes : int
        How much the copies in that folder may have together; the longest unused go first.

    Raises
    ------
    ConfigError
        An argument is wrong, or the folder has an index of another kind.
    IncompatibleStoreError, IntegrityError
        The folder is another program's, newer, or damaged. Nothing in it was changed.
    StorageError
        The folder cannot be made or read.

    Notes
    -----
    ``backend="postgresql+psycopg://user@host/database"`` keeps the index on a server, where many
    stores may share a database. Which of them is meant, the folder remembers. A new folder joins
    the store whose blobs it is given (``blob_backend`` of a team: the same URL on each machine,
    any local folder); with a place for blobs that is new, it is a new store that shares nothing.
    ``?blobstore_namespace=team`` in the URL says by name which store it is; a store of that name
    whose blobs are elsewhere is refused. Whoever may use the database may read all its stores.

    Examples
    --------
    >>> import tempfile
    >>> with BlobStore(tempfile.mkdtemp(), backend="sqlite") as store:
    ...     key = store.put([0.1, 0.2], key="runs/7/scores", metadata={"f1": 0.92})
    ...     store.get("runs/7/scores"), store.list(metadata_filter={"f1": 0.92})
    ([0.1, 0.2], ['runs/7/scores'])
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str] = ".blobstore",
        backend: str | MetadataBackend | None = None,
        compression: str = "lz4",
        compression_level: int = 3,
        content_addressable: bool | str = False,
        blob_backend: str | ObjectStore | None = None,
        *,
        inline_max_bytes: int | None = None,
        fsync: bool = False,
        pickle: Pickle = "signed",
        trusted_types: Iterable[str] = (),
        readonly: bool = False,
        verify_on_read: bool = True,
        handlers: Iterable[AnyHandler] | None = None,
        signing_keys: Iterable[bytes | str] | None = None,
        max_decompressed_bytes: int = MAX_DECOMPRESSED,
        close_blob_backend: bool = False,
        local_cache: str | os.PathLike[str] | None = None,
        local_cache_bytes: int = 10 << 30,
    ) -> None:
        self._closed = True  # until everything is open
        codec, level = codecs.validate(compression, compression_level)
        algorithm = digest_algorithm(content_addressable)
        types = TypePatterns(trusted_types)
        self._policy = LoadPolicy(check_pickle(pickle), types, check_limit(max_decompressed_bytes))
        own_keys = None if signing_keys is None else list(signing_keys)
        keyring = Keyring(own_keys)
        if inline_max_bytes is not None:
            check_inline(inline_max_bytes)
        copies_path = check_local_cache(local_cache, local_cache_bytes)
        folder.check_backends(backend, blob_backend)
        self._handlers = HandlerSet(handlers or ())
        self._readonly = bool(readonly)
        self.path, self._objects = folder.open_objects(
            cache_dir, blob_backend, fsync=bool(fsync), readonly=self._readonly
        )
        self._arguments: dict[str, Any] = {
            "cache_dir": self.path,
            "backend": backend,
            "compression": codec,
            "compression_level": level,
            "content_addressable": content_addressable,
            "blob_backend": blob_backend,
            "inline_max_bytes": inline_max_bytes,
            "fsync": fsync,
            "pickle": pickle,
            "trusted_types": types.patterns,
            "readonly": readonly,
            "verify_on_read": verify_on_read,
            "signing_keys": own_keys,
            "max_decompressed_bytes": max_decompressed_bytes,
            "close_blob_backend": close_blob_backend,
            "local_cache": copies_path,
            "local_cache_bytes": local_cache_bytes,
        }
        self._open(backend, blob_backend, fsync=bool(fsync), inline_max_bytes=inline_max_bytes)
        self._signer = Signer(self._store_id, keyring)
        self._cache = self._open_cache()
        if close_blob_backend and self._objects is blob_backend:
            self._owned.append(self._objects)
        options = WriteOptions(codec, level, self._inline_limit(inline_max_bytes, blob_backend))
        self._committer = Committer(
            self._index,
            self._cache or self._objects,  # which then drops the copies of what is deleted
            self._handlers,
            WritePolicy(
                options,
                algorithm,
                fsync=bool(fsync),
                syncs_itself=bool(fsync) and self._made_both,
            ),
            self._signer,
        )
        self._reader = self._make_reader(self._cache)
        self._closed = False

    def _open(
        self,
        backend: str | MetadataBackend | None,
        blob_backend: Any,
        *,
        fsync: bool,
        inline_max_bytes: int | None,
    ) -> None:
        self._owned: list[MetadataBackend | ObjectStore] = []
        if self._objects is not blob_backend:
            self._owned.append(self._objects)
        try:
            check_inline_allowed(inline_max_bytes, self._objects)
            if self._arguments["local_cache"] is not None:
                check_local_cache_allowed(self._objects)
            self._index, described = folder.open_index(
                self.path, backend, self._objects, fsync=fsync, readonly=self._readonly
            )
            if self._index is not backend:
                self._owned.insert(0, self._index)
            self._store_id = described.store_id
            if not self._readonly:
                folder.claim(self._objects, self._store_id)
        except BaseException:
            for owned in self._owned:
                owned.close()
            raise
        by_url = isinstance(blob_backend, str) and "://" in blob_backend
        # What a URL stands for was not told whether to sync.
        self._made_both = len(self._owned) == 2 and not by_url

    def _open_cache(self) -> LocalCacheStore | None:
        path = self._arguments["local_cache"]
        if path is None:
            return None
        from blobstore.wrappers.local_cache import LocalCacheStore

        max_bytes = self._arguments["local_cache_bytes"]
        return LocalCacheStore(self._objects, path, max_bytes, self._store_id)

    def _make_reader(self, cache: LocalCacheStore | None) -> Reader:
        return Reader(
            self._index,
            self._objects,
            self._handlers,
            verify=bool(self._arguments["verify_on_read"]),
            policy=self._policy,
            signer=self._signer,
            cache=cache,
        )

    def _inline_limit(self, asked: int | None, blob_backend: Any) -> int:
        if asked is not None:
            return asked
        default = blob_backend in (None, "filesystem")
        return self._index.inline_max_bytes if default else 0

    # --- storing ---

    def put(
        self,
        data: Any,
        key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = True,
        if_version: int | Entry | None = None,
    ) -> str:
        """Store an object, replacing what the key was.

        Parameters
        ----------
        data : object
            Of any type that a handler or pickle takes.
        key : str, optional
            1 to 2,048 bytes of UTF-8, any characters but NUL. Without it one is made up; with
            content addressing it is the digest of the content, and content that is there already
            keeps its metadata if none is given.
        metadata : mapping, optional
            JSON values, nested at will. Neither it nor `data` is changed.
        overwrite : bool
            False: the key must not be there yet.
        if_version : int or Entry, optional
            Compare and swap: the version, or the very entry, that the key must still have.

        Returns
        -------
        str
            The key.

        Raises
        ------
        InvalidKeyError, InvalidMetadataError, UnsupportedTypeError
            Nothing was written.
        KeyExistsError, ConflictError
            The key is taken, or has moved on; it is as it was.
        StorageError
            Full disk, no permission, no connection; the key is as it was.
        """
        self._writable()
        request = Request(
            data,
            None if key is None else validate_key(key),
            _metadata.to_text(metadata),
            expected_of(overwrite=overwrite, if_version=if_version),
        )
        return self._committer.put(request).key

    def put_many(
        self, items: Iterable[tuple[str, Any] | tuple[str, Any, Mapping[str, Any] | None]]
    ) -> Keys:
        """Store several objects: blobs in parallel, the index in one transaction.

        Parameters
        ----------
        items : iterable of (key, data) or (key, data, metadata)
            A key may be None, as in `put`.

        Returns
        -------
        list of str
            The keys, in order.

        Raises
        ------
        As `put`; none of the items is stored then.

        Examples
        --------
        >>> import tempfile
        >>> BlobStore(tempfile.mkdtemp()).put_many([("a", 1), ("b", 2, {"stage": "test"})])
        ['a', 'b']
        """
        self._writable()
        requests = [request_of(number, item) for number, item in enumerate(items)]
        return [entry.key for entry in self._committer.put_many(requests)]

    def put_file(
        self,
        path: str | os.PathLike[str],
        key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = True,
        if_version: int | Entry | None = None,
    ) -> str:
        """Store the content of a file of any size, streamed; otherwise as `put`.

        `get` gives it back as bytes, `get_file` as a file, `open` as a stream.
        """
        return self.put(
            LocalFile(Path(path)), key, metadata, overwrite=overwrite, if_version=if_version
        )

    # --- loading ---

    def get(self, key: str, default: Any = None, **read_options: Any) -> Any:
        """Load the object under a key.

        Parameters
        ----------
        key : str
        default : object
            Given if there is no such key, and only then.
        **read_options
            What the type's handler knows: ``columns=[...]`` for tables, ``rows=slice(...)`` for
            tables and arrays, ``map_location=...`` for tensors and what holds them.

        Returns
        -------
        object
            Equal to what was stored, of the same type, and the caller's own.

        Raises
        ------
        IntegrityError
            The key is there, but its bytes are gone or altered.
        DecodeError, UntrustedTypeError
            The bytes are whole, but cannot or may not be loaded here.
        """
        self._usable()
        entry = self._index.get(validate_key(key))
        if entry is None:
            return default
        try:
            return self._reader.load(entry, **read_options)
        except KeyNotFoundError:  # deleted since the index was asked
            return default

    def __getitem__(self, key: str) -> Any:
        return self._reader.load(self.entry(key))

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Load several objects in parallel; keys that do not exist are left out.

        Returns
        -------
        dict
            Key to object, in the order asked for.
        """
        self._usable()
        wanted = [validate_key(key) for key in keys]
        found = self._index.get_many(wanted)
        entries = [found[key] for key in dict.fromkeys(wanted) if key in found]
        workers = max(1, min(len(entries), 2 * (os.cpu_count() or 1)))
        with ThreadPoolExecutor(workers, thread_name_prefix="blobstore") as pool:
            loaded = pool.map(self._load_if_there, entries)
            return {
                entry.key: objects[0]
                for entry, objects in zip(entries, loaded, strict=True)
                if objects
            }

    def _load_if_there(self, entry: Entry) -> tuple[Any, ...]:
        try:
            return (self._reader.load(entry),)
        except KeyNotFoundError:  # deleted since the index was asked
            return ()

    def open(self, key: str) -> BinaryIO:
        """Open an object as a binary stream, seekable; to be closed by the caller.

        For bytes, text and files the content; for other objects the file that they are stored as
        (Parquet, ``.b2nd``). Checked once it was read through from start to end.

        Raises
        ------
        KeyNotFoundError
        NotSupportedError
            The object is stored in several parts.
        """
        return self._reader.open(self.entry(key))

    def get_file(self, key: str, path: str | os.PathLike[str]) -> Path:
        """Write an object's stream (see `open`) to a file, which is replaced whole or not at all.

        Returns
        -------
        Path
            The file.
        """
        entry = self.entry(key)
        target = Path(path)
        try:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".blobstore-") as scratch:
                partial = Path(scratch) / "part"
                with self._reader.open(entry) as stream, partial.open("wb") as out:
                    copy_stream(stream, out)
                partial.replace(target)
        except OSError as exc:
            raise from_os_error(exc, f"writing {target}") from exc
        return target

    # --- asking ---

    def entry(self, key: str) -> Entry:
        """What the index knows of a key; no blob is touched.

        Raises
        ------
        KeyNotFoundError
        """
        self._usable()
        found = self._index.get(validate_key(key))
        if found is None:
            raise KeyNotFoundError(f"there is no key {key!r} in {self.path}", key=key)
        return found

    def get_metadata(self, key: str) -> dict[str, Any] | None:
        """What is known of a key as a fresh dict, or None; no blob is touched.

        Returns
        -------
        dict or None
            `key`, `data_type`, `file_size` (stored bytes), `created_at` and `updated_at` (ISO 8601,
            UTC), `version`, `handler`, `compression`, `info`, and the user's own as ``"metadata"``.
        """
        self._usable()
        entry = self._index.get(validate_key(key))
        if entry is None:
            return None
        return {
            "key": entry.key,
            "data_type": entry.data_type,
            "file_size": entry.size,
            "created_at": entry.created_at.isoformat(),
            "updated_at": entry.updated_at.isoformat(),
            "version": entry.version,
            "handler": entry.handler,
            "compression": entry.parts[-1].blob.codec if entry.parts else "none",
            "info": entry.info,
            "metadata": entry.metadata,
        }

    def exists(
        self, key: str | None = None, *, where: Where = None, prefix: str | None = None
    ) -> bool:
        """Whether a key is in the index and all its blobs are there; or whether any entry matches.

        Parameters
        ----------
        key : str, optional
        where, prefix
            As in `query`, in place of a key; no blob is looked for then.
        """
        self._usable()
        if key is None and (where is not None or prefix is not None):
            return next(self._index.keys(query_of(where, prefix=prefix, limit=1)), None) is not None
        if where is not None or prefix is not None:
            raise InvalidInputError("exists takes a key, or where and prefix, and not both")
        # None is no key, and refused as one.
        entry = self._index.get(validate_key(key))
        return entry is not None and all(map(self._objects.exists, entry.locations))

    def __contains__(self, key: object) -> bool:
        self._usable()
        return isinstance(key, str) and self._index.get(validate_key(key)) is not None

    # --- changing ---

    def update_metadata(
        self, key: str, metadata: Mapping[str, Any], *, replace: bool = False
    ) -> bool:
        """Change the metadata of a key; the object is not touched.

        Parameters
        ----------
        key : str
        metadata : mapping
            Names to be set; other names stay. Values are replaced whole, not merged.
        replace : bool
            Drop all other names.

        Returns
        -------
        bool
            False if there is no such key.
        """
        self._writable()
        changes = _metadata.to_text(metadata)
        patch = Patch(validate_key(key), changes, now_us(), replace, sign=self._signer.renew)
        return self._committer.apply([patch]).entries[0] is not None

    def update_many(
        self,
        where: Where,
        metadata: Mapping[str, Any],
        *,
        prefix: str | None = None,
        replace: bool = False,
    ) -> int:
        """Change the metadata of all entries that match, as `update_metadata` does for one.

        Parameters
        ----------
        where, prefix
            As in `query`. Changed in batches, each one transaction; nothing is changed that does
            not match at that moment.
        metadata : mapping
            Names to be set; other names stay, unless `replace`.
        replace : bool
            Drop all other names.

        Returns
        -------
        int
            How many were changed.

        Examples
        --------
        >>> import tempfile
        >>> store = BlobStore(tempfile.mkdtemp())
        >>> _ = store.put_many((f"{n}", n, {"f1": n / 10}) for n in range(4))
        >>> store.update_many("f1 < 0.2", {"archived": True}), store.count("archived = true")
        (2, 2)
        """
        self._writable()
        query = selection_of(
            where,
            prefix,
            remedy="to change all entries, give a condition that all meet: @size >= 0",
        )
        text = _metadata.to_text(metadata)
        return changing.update_matching(
            self._index,
            self._committer,
            query,
            text,
            replace=replace,
            sign=self._signer.renew,
        )

    def delete(self, key: str) -> bool:
        """Remove a key; its bytes go with the last key that shares them.

        Returns
        -------
        bool
            False if there was no such key.
        """
        return self.delete_many([key]) == 1

    @overload
    def delete_many(
        self,
        keys: Iterable[str] | None = None,
        *,
        where: Where = None,
        prefix: str | None = None,
        dry_run: Literal[False] = False,
    ) -> int: ...
    @overload
    def delete_many(
        self,
        keys: Iterable[str] | None = None,
        *,
        where: Where = None,
        prefix: str | None = None,
        dry_run: Literal[True],
    ) -> Keys: ...
    def delete_many(
        self,
        keys: Iterable[str] | None = None,
        *,
        where: Where = None,
        prefix: str | None = None,
        dry_run: bool = False,
    ) -> int | Keys:
        """Remove keys, or whatever matches.

        Parameters
        ----------
        keys : iterable of str, optional
            Removed in one transaction; absent ones are fine.
        where, prefix
            As in `query`, in place of keys. Removed in batches, each one transaction; nothing is
            removed that does not match at that moment, whatever others write meanwhile.
        dry_run : bool
            Only tell which keys would go.

        Returns
        -------
        int or list of str
            How many there were; with `dry_run` the keys.

        Raises
        ------
        InvalidInputError
            Keys and a condition at once; or neither, which would be everything: see `clear`.

        Examples
        --------
        >>> import tempfile
        >>> store = BlobStore(tempfile.mkdtemp())
        >>> _ = store.put_many((f"step-{n}", n, {"step": n}) for n in range(4))
        >>> store.delete_many(where="step < 2", dry_run=True)
        ['step-0', 'step-1']
        >>> store.delete_many(where="step < 2"), store.list()
        (2, ['step-2', 'step-3'])
        """
        if dry_run:
            self._usable()
        else:
            self._writable()
        if keys is None:
            query = selection_of(where, prefix, remedy="to remove all entries, use clear()")
            if dry_run:
                return [*self._index.keys(query)]
            return changing.delete_matching(self._index, self._committer, query)
        if where is not None or prefix is not None:
            raise InvalidInputError("delete_many takes keys, or where and prefix, and not both")
        wanted = keys_of(keys)
        if dry_run:
            found = self._index.get_many(wanted)
            return [key for key in wanted if key in found]
        operations = [Delete(key) for key in wanted]
        if not operations:
            return 0
        result = self._committer.apply(operations)
        return sum(entry is not None for entry in result.entries)

    def clear(self) -> int:  # type: ignore[override]
        """Remove all keys. Returns how many there were."""
        self._writable()
        removed = 0
        while batch := [*self._index.keys(Query(limit=_BATCH))]:
            removed += self.delete_many(batch)
        return removed

    def copy(self, source: str, target: str, *, overwrite: bool = True) -> str:
        """Give an object and its metadata a second key; no bytes are copied.

        Raises
        ------
        KeyNotFoundError
            There is no `source`.
        KeyExistsError
            `target` is taken, and `overwrite` is False.
        """
        return self._copy(source, target, overwrite=overwrite, move=False)

    def move(self, source: str, target: str, *, overwrite: bool = True) -> str:
        """Give an object another key, in one transaction; otherwise as `copy`."""
        return self._copy(source, target, overwrite=overwrite, move=True)

    def _copy(self, source: str, target: str, *, overwrite: bool, move: bool) -> str:
        self._writable()
        keys = validate_key(source), validate_key(target)
        operation = Copy(*keys, now_us(), overwrite, move, self._signer.renew)
        if self._committer.apply([operation]).entries[0] is None:
            raise KeyNotFoundError(f"there is no key {source!r} in {self.path}", key=source)
        return operation.target

    def __setitem__(self, key: str, data: Any) -> None:
        self.put(data, validate_key(key))

    def __delitem__(self, key: str) -> None:
        if not self.delete(key):
            raise KeyNotFoundError(f"there is no key {key!r} in {self.path}", key=key)

    # --- looking after it ---

    def register_handler(self, handler: AnyHandler) -> None:
        """Add a handler to this store: a `blobstore.Handler`, or a `blobstore.DataHandler`.

        Parameters
        ----------
        handler : Handler or DataHandler
            Or a class of these that needs no arguments.

        Raises
        ------
        ConfigError
            It is none, or its name is taken.
        """
        self._handlers.register(handler)

    def unregister_handler(self, handler: AnyHandler) -> bool:
        """Take a handler out of this store; what it stored stays, and is not read without it.

        Parameters
        ----------
        handler : Handler or DataHandler
            What was registered, or its class.

        Returns
        -------
        bool
            False if it was not there.
        """
        return self._handlers.unregister(handler)

    def verify(self, deep: bool = False) -> VerifyReport:
        """Hold index, blobs and (if `deep`) every stored byte against each other.

        Returns
        -------
        VerifyReport
            With `ok` and `problems`; nothing is changed.
        """
        self._usable()
        reader = self._make_reader(None)  # copies of the bytes prove nothing
        return maintenance.verify(self._index, self._objects, reader, deep=deep)

    def gc(self, *, dry_run: bool = True, grace: float = 3600.0) -> GcReport:
        """Name, and with ``dry_run=False`` free, what killed writers left behind.

        Parameters
        ----------
        dry_run : bool
            Only tell.
        grace : float
            Seconds; what is younger than this is left alone.

        Returns
        -------
        GcReport
            With `items` and `bytes`.
        """
        if dry_run:
            self._usable()
        else:
            self._writable()
        objects = self._cache or self._objects
        return maintenance.gc(self._index, objects, dry_run=dry_run, grace=grace)

    def stats(self) -> dict[str, Any]:
        """Count entries, blobs and bytes.

        Returns
        -------
        dict
            `path`, `entries`, `blobs`, `bytes` (stored, shared blobs once, inline values apart),
            `logical_bytes` (as if nothing were shared), `condemned`, and the index's own facts as
            `index`.
        """
        self._usable()
        live = condemned = stored = 0
        for blob in self._index.blobs():
            live += blob.state == "live"
            condemned += blob.state == "condemned"
            stored += blob.size if blob.state == "live" else 0
        entries = logical = inline = 0
        for entry in self._index.scan(Query()):
            entries += 1
            logical += entry.size
            inline += entry.size if entry.inline else 0
        return {
            "path": str(self.path),
            "entries": entries,
            "blobs": live,
            "bytes": stored + inline,
            "inline_bytes": inline,
            "logical_bytes": logical,
            "condemned": condemned,
            "index": dict(self._index.stats()),
        }

    def close(self) -> None:
        """Let go of files and connections. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as stack:  # each is closed, whatever the others say
            for owned in reversed(self._owned):
                stack.callback(owned.close)
            if not self._readonly:
                self._committer.close()

    def __enter__(self) -> Self:
        self._usable()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., BlobStore], tuple[dict[str, Any]]]:
        if not self._objects.capabilities.persistent:
            raise NotSupportedError(
                f"the bytes of {self!r} are in the memory of this process, where a copy elsewhere "
                "could not read them: keep them in another blob_backend"
            )
        return _reopen, ({**self._arguments, "handlers": self._handlers.given},)

    def __repr__(self) -> str:
        state = "closed " if self._closed else ""
        return f"<{state}BlobStore {str(self.path)!r}, {type(self._index).__name__}>"

    # A mapping would compare by loading every object of both.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _usable(self) -> None:
        if self._closed:
            raise ClosedError(f"the store {self.path} was closed: open a new one")

    def _writable(self) -> None:
        self._usable()
        if self._readonly:
            raise NotSupportedError(
                f"the store {self.path} was opened with readonly=True: open it without to change it"
            )


def _reopen(arguments: dict[str, Any]) -> BlobStore:
    return BlobStore(**arguments)
