"""An index in a folder: a readable JSON document, and a journal of what changed since.

Files, all in one folder and none of them naming a path:

``cache_metadata.json``
    The snapshot: entries and blobs as of some commit, the number of its generation, and the name
    of the journal that goes on from there. Its last member is a checksum of all that precedes it.
``cache_metadata.<generation>.journal``
    One line for each commit since the snapshot, see `blobstore.backends.metadata.journal`.
``cache_metadata.lock``
    Held by whoever writes.

A commit appends one line, however many keys it has and however large the store is. Readers take no
lock: they look whether the snapshot was replaced or the journal grew, and read what is new. When
the journal has outgrown the snapshot, a writer folds it in: it makes the empty journal of the next
generation, renames the next snapshot into place, which is the one step that counts, and removes
the old journal. A crash before that step leaves an empty journal, one after it leaves an old one;
neither is named by the snapshot, and a later writer removes them.

The whole index is held in memory and read at opening: it is made for small stores.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from blobstore.backends.metadata.journal import Journal, WriterLock, checksum
from blobstore.backends.metadata.snapshot import (
    FORMAT_VERSION,
    damaged,
    journal_name,
    parse_snapshot,
    write_snapshot,
)
from blobstore.backends.metadata.state import (
    Changes,
    IndexState,
    plan,
    plan_announcement,
    plan_condemnation,
    plan_forgetting,
)
from blobstore.entry import Blob, Entry
from blobstore.errors import (
    BlobStoreError,
    ClosedError,
    ConfigError,
    IncompatibleStoreError,
    IntegrityError,
    InvalidInputError,
    NotSupportedError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
    from_os_error,
)
from blobstore.keys import random_id
from blobstore.protocols import (
    CommitResult,
    Copy,
    Delete,
    Explanation,
    FieldIndex,
    MetadataBackend,
    Operation,
    Put,
)
from blobstore.query import Field, Query, matcher, sort_key

_SNAPSHOT = "cache_metadata.json"
_TEMPORARY = "cache_metadata.json.tmp"
_LOCK = "cache_metadata.lock"
_JOURNAL = re.compile(r"cache_metadata\.([1-9][0-9]*)\.journal")

_PAGE = 256
_REMEMBERED = 64

_FOLD_FROM = 4 << 20
_FOLD_FACTOR = 2
"""A journal is folded beyond 4 MiB plus twice the snapshot. Folding costs as much as the snapshot
is long, so a commit's share of it is bounded; and opening reads at most about three snapshots."""

_CHEAP_ENTRIES = 5_000
_CHEAP_SHARE = 4
"""`close` folds small stores always, and others if the journal has a quarter of the snapshot."""

_Signature = tuple[int, int, int]


@dataclass(slots=True)
class _Loaded:
    """What was read: a state, and how far in which files it reaches."""

    signature: _Signature
    generation: int
    state: IndexState
    journal: Journal


class JsonBackend(MetadataBackend):
    """The index as a JSON document and a journal in a folder.

    Parameters
    ----------
    directory : str or Path
        Made if it does not exist.
    fsync : bool
        Whether a commit returns only once it would survive a power cut.
    readonly : bool
        Write nothing, not even a lock file; the index has to exist.
    timeout : float
        Seconds to wait for another writer.

    Raises
    ------
    ConfigError
        There is no index to open readonly, or an argument is wrong.
    IncompatibleStoreError
        The file there belongs to another program, or to a newer version.
    IntegrityError
        The files there are damaged, or some are missing. They are left as they are.

    Notes
    -----
    A commit costs the same however large the store is, but memory and opening grow with it: some
    600 bytes of text an entry. Beyond some 100,000 entries take SqlBackend.

    Examples
    --------
    >>> import tempfile
    >>> from blobstore.entry import EntryDraft
    >>> from blobstore.protocols import Put
    >>> draft = EntryDraft("model", "pickle", "object", "{}", '{"f1":0.9}', (), 0, now_us=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     backend = JsonBackend(folder)
    ...     _ = backend.commit([Put(draft)], "c1")
    ...     print(backend.get("model").metadata)
    ...     backend.close()
    {'f1': 0.9}
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        fsync: bool = False,
        readonly: bool = False,
        timeout: float = 60.0,
    ) -> None:
        if not isinstance(directory, str | os.PathLike):
            raise ConfigError(
                f"directory must be a path, not {directory!r}: give the folder of the index"
            )
        seconds = _seconds(timeout)
        self._set_up(Path(directory).absolute(), bool(fsync), bool(readonly), seconds)
        self._open()

    @classmethod
    def for_folder(cls, directory: Path, *, fsync: bool = False, readonly: bool = False) -> Self:
        """Open or make the index of a BlobStore: ``cache_metadata.json`` in its folder."""
        return cls(directory, fsync=fsync, readonly=readonly)

    def _set_up(self, directory: Path, fsync: bool, readonly: bool, timeout: float) -> None:
        self._directory = directory
        self._fsync = fsync
        self._readonly = readonly
        self._timeout = timeout
        self._path = directory / _SNAPSHOT
        self._name = os.fspath(self._path)
        self._lock = WriterLock(directory / _LOCK, timeout)
        self._closed = False
        self._store_id: str | None = None
        self._fold_later = 0  # after a fold that failed: the journal size at which to try again
        self._start_afresh()
        _instances.add(self)

    def _start_afresh(self) -> None:
        """Forget all that was read. Guarded by `_mutex`, which is never held while waiting."""
        self._mutex = threading.Lock()
        self._loaded: _Loaded | None = None
        self._recent: OrderedDict[str, CommitResult] = OrderedDict()
        self._durable_generation = 0

    def after_fork_in_child(self) -> None:
        """Called in a child: another thread of the parent may have been in the middle of anything."""
        self._lock.forget_inherited()
        self._start_afresh()

    def __getstate__(self) -> tuple[Path, bool, bool, float]:
        return self._directory, self._fsync, self._readonly, self._timeout

    def __setstate__(self, arguments: tuple[Path, bool, bool, float]) -> None:
        self._set_up(*arguments)

    def __repr__(self) -> str:
        return f"JsonBackend({self._name!r})"

    # --- reading

    @property
    def store_id(self) -> str:
        """32 hexadecimal digits, made with the index."""
        with self._mutex:
            return self._view().store_id

    def get(self, key: str) -> Entry | None:
        """The entry of a key, or None."""
        with self._mutex:
            return self._view().entries.get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries of those keys that exist, all as of one moment."""
        wanted = list(keys)
        with self._mutex:
            entries = self._view().entries
            return {key: entries[key] for key in wanted if key in entries}

    def scan(self, query: Query) -> Iterator[Entry]:
        """Entries that match, in order; each page is of one moment.

        By key they are read as they are asked for. In another order all of them are looked at
        first, and with a limit never more than so many are kept.
        """
        limit = query.limit
        if limit is not None and limit <= 0:
            self._check_open()
            return iter(())
        if query.order:
            every = Query(query.prefix)
            found = filter(query.matcher(), self._scan(every, _PAGE, self._first(every, _PAGE)))
            return _sorted(found, sort_key(query.order), limit)
        size = _PAGE if query.where is not None or limit is None else min(_PAGE, limit)
        page = self._first(query, size)
        return islice(filter(matcher(query.where), self._scan(query, size, page)), limit)

    def _first(self, query: Query, size: int) -> list[Entry]:
        return self._page(query.prefix, query.after_key, size)

    def _scan(self, query: Query, size: int, page: list[Entry]) -> Iterator[Entry]:
        while page:
            yield from page
            if len(page) < size:
                return
            page = self._page(query.prefix, page[-1].key, size)

    def _page(self, prefix: str, after: str | None, size: int) -> list[Entry]:
        with self._mutex:
            return self._view().page(prefix, after, size)

    def count(self, query: Query) -> int:
        """How many entries match; without a condition or an order none is looked at."""
        if query.where is not None or query.order:
            return super().count(query)
        with self._mutex:
            found = self._view().count(query.prefix, query.after_key)
        return found if query.limit is None else max(0, min(found, query.limit))

    def create_index(self, field: Field) -> FieldIndex:
        """Raise NotSupportedError: all entries are in memory, and each query looks through them."""
        self._check_open()
        raise NotSupportedError(
            f"JsonBackend keeps no indexes, not on {field} either: it holds all entries in memory "
            "and looks through them. Where that is too slow, make the store with backend='sqlite' "
            "(SqlBackend), or with the URL of a PostgreSQL database"
        )

    def explain(self, query: Query) -> Explanation:
        """Tell how `scan` finds its answer: always in memory, and always in the same way."""
        self._check_open()
        selective = query.where is not None or bool(query.order)
        steps = ["by key, from a sorted list" if not selective else "each entry is looked at"]
        if query.order:
            steps.append("sorted in memory" if query.limit is None else "the first ones are kept")
        return Explanation("memory", ", then ".join(steps), scans=selective)

    def find_digests(self, digests: Iterable[str]) -> dict[str, Blob]:
        """Live blobs by digest."""
        wanted = list(digests)
        with self._mutex:
            return self._view().live_by_digest(wanted)

    def blobs(self) -> Iterator[Blob]:
        """All blobs of one moment: live, condemned and pending."""
        with self._mutex:
            return iter(list(self._view().blobs.values()))

    def known(self, locations: Iterable[str]) -> set[str]:
        """Those of the locations that the index has a blob row for."""
        wanted = set(locations)
        with self._mutex:
            return wanted & self._view().blobs.keys()

    def condemned(self) -> list[Blob]:
        """Blobs whose bytes are to be deleted, or already were."""
        return [blob for blob in self.blobs() if blob.state == "condemned"]

    # --- changing

    def commit(self, operations: Sequence[Operation], commit_id: str) -> CommitResult:
        """Apply operations in order, all or nothing, as one line of the journal.

        Raises
        ------
        KeyExistsError, KeyNotFoundError, ConflictError
            An expectation does not hold.
        PermissionDeniedError, OutOfSpaceError, UnavailableError
            Nothing was changed; with ``outcome="unknown"`` it was, but may not survive a power cut.
        """
        operations = tuple(operations)
        self._check_writable()
        with self._lock:
            loaded = self._current()
            result = self._landed(loaded.state, operations, commit_id)
            if result is not None:
                return result
            changes, result = plan(loaded.state, operations, commit_id, time.time_ns() // 1000)
            self._land(loaded, changes)
            if not result.missing:
                self._remember(commit_id, result)
        self._make_durable(loaded, changes)
        return result

    def announce(self, blobs: Iterable[Blob]) -> None:
        """Enter blobs as pending before they are written."""
        wanted = list(blobs)
        self._check_writable()
        with self._lock:
            loaded = self._current()
            changes = plan_announcement(loaded.state, wanted)
            self._land(loaded, changes)
        self._make_durable(loaded, changes)

    def condemn(self, locations: Iterable[str], now_us: int) -> list[str]:
        """Mark locations as condemned, those that no entry refers to."""
        wanted = list(locations)
        self._check_writable()
        with self._lock:
            loaded = self._current()
            changes, condemned = plan_condemnation(loaded.state, wanted, now_us)
            self._land(loaded, changes)
        self._make_durable(loaded, changes)
        return condemned

    def forget(self, locations: Iterable[str]) -> None:
        """Drop condemned rows."""
        wanted = list(locations)
        self._check_writable()
        with self._lock:
            loaded = self._current()
            changes = plan_forgetting(loaded.state, wanted)
            self._land(loaded, changes)
        self._make_durable(loaded, changes)

    def _current(self) -> _Loaded:
        """What is on disk now; stays so while the lock is held, which it has to be."""
        with self._mutex:
            self._view()
            assert self._loaded is not None
            return self._loaded

    def _land(self, loaded: _Loaded, changes: Changes) -> None:
        """Append the changes to the journal, then take them in. The lock is held."""
        if not changes:
            return
        payload = _encode_utf8(changes)
        journal = loaded.journal
        start = journal.mark
        end = journal.append(payload)
        with self._mutex:
            # A reading thread may have found the line before us; if we are interrupted half-way,
            # the next one reads all of it anew.
            if self._loaded is loaded and journal.mark == start:
                self._loaded = None
                loaded.state.apply(changes)
                journal.advance(start, end)
                self._loaded = loaded
        limit = max(_FOLD_FROM + _FOLD_FACTOR * loaded.signature[2], self._fold_later)
        if end.offset > limit:
            self._fold_or_put_off(end.offset)

    def _landed(
        self, state: IndexState, operations: Sequence[Operation], commit_id: str
    ) -> CommitResult | None:
        """The result of this commit, if it took place before.

        Remembered, or else told by an entry that it wrote; then removed entries, and the blobs
        that it condemned, are no longer known.
        """
        if (result := self._recent.get(commit_id)) is not None:
            return result
        entries = tuple([state.entries.get(_written_key(op) or "") for op in operations])
        landed = any(entry is not None and entry.commit_id == commit_id for entry in entries)
        return CommitResult(entries) if landed else None

    def _remember(self, commit_id: str, result: CommitResult) -> None:
        self._recent[commit_id] = result
        while len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)

    # --- keeping

    def sync(self) -> None:
        """Return once all commits so far, of any process, would survive a power cut."""
        with self._mutex:
            self._view()
            loaded = self._loaded
        assert loaded is not None
        if not self._readonly:
            try:
                self._sync_all(loaded)
            except OSError as exc:
                raise from_os_error(exc, f"syncing {self._directory}") from exc

    def check(self) -> list[str]:
        """Read all files anew and look for what does not fit together."""
        self._check_open()
        try:
            return list(self._read().state.problems())
        except FileNotFoundError:
            return [str(self._lost())]
        except IntegrityError as exc:
            return [str(exc)]
        except OSError as exc:
            raise from_os_error(exc, f"reading the index {self._name}") from exc

    def stats(self) -> Mapping[str, Any]:
        """Kind, place, format, and how large it is."""
        with self._mutex:
            state = self._view()
            loaded = self._loaded
            assert loaded is not None
            return {
                "kind": "json",
                "path": self._name,
                "format_version": FORMAT_VERSION,
                "generation": loaded.generation,
                "entries": len(state.entries),
                "blobs": len(state.blobs),
                "snapshot_bytes": loaded.signature[2],
                "journal_bytes": loaded.journal.mark.offset,
            }

    def close(self) -> None:
        """Fold the journal into the document if that is cheap, and let go of the files."""
        if self._closed:
            return
        if not self._readonly and self._loaded is not None:
            # All that was committed is in the journal; damage is for the next reader to report.
            with contextlib.suppress(StorageError, IntegrityError):
                self._fold_at_close()
        with self._mutex:
            self._closed = True
            self._loaded = None  # a thread still at work keeps its journal open
        self._lock.close()

    def _make_durable(self, loaded: _Loaded, changes: Changes) -> None:
        if not (self._fsync and changes):
            return
        try:
            if self._durable_generation == loaded.generation:
                loaded.journal.sync()
            else:
                self._sync_all(loaded)
                self._durable_generation = loaded.generation
        except OSError as exc:
            raise UnavailableError(
                f"the commit was written to {loaded.journal.path}, but syncing it failed "
                f"({exc.strerror}): it may not survive a power cut. Check the disk, then commit "
                "the same again",
                outcome="unknown",
            ) from exc

    def _sync_all(self, loaded: _Loaded) -> None:
        loaded.journal.sync()
        _sync_path(self._path)
        _sync_path(self._directory)

    # --- reading files

    def _view(self) -> IndexState:
        """The state as it is on disk now. `_mutex` is held."""
        self._check_open()
        loaded = self._loaded
        try:
            if loaded is not None and _signature(os.stat(self._name)) == loaded.signature:  # noqa: PTH116 - half the time of Path.stat
                facts = loaded.journal.stat()
                if facts.st_nlink:
                    if facts.st_size != loaded.journal.mark.offset:
                        self._loaded = None  # in case this is interrupted
                        _replay(loaded)
                        self._loaded = loaded
                    return loaded.state
            self._loaded = None
            loaded = self._read()
        except FileNotFoundError as exc:
            raise self._lost() from exc
        except OSError as exc:
            raise from_os_error(exc, f"reading the index {self._name}") from exc
        self._loaded = loaded
        return loaded.state

    def _read(self) -> _Loaded:
        """Read snapshot and journal; `FileNotFoundError` if there is no snapshot."""
        while True:
            data, signature = _read_file(self._path)
            header = parse_snapshot(self._path, data)
            store_id, generation = header["store_id"], header["generation"]
            path = self._directory / journal_name(generation)
            try:
                journal = Journal(path, _seed(store_id, generation))
            except FileNotFoundError as exc:
                if _signature(self._path.stat()) != signature:
                    continue  # it was folded just now
                raise IntegrityError(
                    f"the journal {path}, which {_SNAPSHOT} names, is missing, and with it the "
                    "latest commits: restore the folder from a backup; nothing was changed"
                ) from exc
            break
        if self._store_id not in (None, store_id):
            raise IncompatibleStoreError(
                f"{self._name} now belongs to another store ({store_id}, was {self._store_id}): "
                "somebody replaced it; open it anew if that was meant"
            )
        state = IndexState(store_id, header["next_id"])
        try:
            state.apply_json(header)
        except IntegrityError as exc:
            raise damaged(self._path, str(exc)) from exc
        loaded = _Loaded(signature, generation, state, journal)
        _replay(loaded)
        self._store_id = store_id
        return loaded

    def _lost(self) -> IntegrityError:
        return IntegrityError(
            f"the index {self._name} is missing: it was removed or renamed, or the folder moved. "
            "Restore it from a backup, or open the store where it is now"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the index {self._name} was closed: open the store again")

    def _check_writable(self) -> None:
        self._check_open()
        if self._readonly:
            raise PermissionDeniedError(
                f"the index {self._name} was opened with readonly=True: open it without to change it"
            )

    # --- writing files

    def _open(self) -> None:
        """Read the index at construction, making it first if it is not there."""
        try:
            if not self._path.exists():
                self._create()
        except OSError as exc:
            raise from_os_error(exc, f"creating the index {self._name}") from exc
        with self._mutex:
            self._view()
        if not self._readonly:
            with contextlib.suppress(StorageError, OSError):
                self._tidy()

    def _create(self) -> None:
        if self._readonly:
            raise ConfigError(
                f"there is no index {self._name} to open with readonly=True: check the path, or "
                "open it without to make a new store"
            )
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if self._path.exists():
                return
            self._refuse_orphans()
            self._make_journal(1)
            self._write_temporary(IndexState(random_id()), 1, durable=True)
            (self._directory / _TEMPORARY).replace(self._path)
            if self._fsync:
                _sync_path(self._directory)

    def _refuse_orphans(self) -> None:
        """Make no empty index where one was lost: any journal but an empty first one tells."""
        for generation, path in self._journals():
            if generation > 1 or path.stat().st_size:
                raise IntegrityError(
                    f"the index {self._name} is missing, but its journal {path.name} is there: "
                    "restore the document from a backup; or, to start an empty store, move the "
                    "journals away"
                )

    def _fold_at_close(self) -> None:
        if not self._lock.acquire(wait=False):
            return  # whoever is writing can fold
        try:
            loaded = self._current()
            length = loaded.journal.mark.offset
            small = len(loaded.state.entries) + len(loaded.state.blobs) <= 2 * _CHEAP_ENTRIES
            if length and (small or _CHEAP_SHARE * length >= loaded.signature[2]):
                self._fold(loaded)
        finally:
            self._lock.release()

    def _fold_or_put_off(self, size: int) -> None:
        """Fold after a commit, which has landed whether or not there is space for this."""
        try:
            self._fold(self._current())
        except BlobStoreError:
            self._fold_later = 2 * size

    def _fold(self, loaded: _Loaded) -> None:
        """Write the next generation. The lock is held, and `loaded` is current.

        Always synced: else a power cut could leave an empty document where there had been a good
        one, and lose what was safe before.
        """
        temporary = self._directory / _TEMPORARY
        try:
            generation = self._next_generation(loaded.generation)
            path = self._make_journal(generation)
            self._write_temporary(loaded.state, generation, durable=True)
            _sync_path(self._directory)
            with self._mutex:
                temporary.replace(self._path)
                self._loaded = None
                journal = Journal(path, _seed(loaded.state.store_id, generation))
                signature = _signature(self._path.stat())
                self._loaded = _Loaded(signature, generation, loaded.state, journal)
            _sync_path(self._directory)
            self._durable_generation = generation
            self._remove_leftovers(generation)
        except OSError as exc:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise from_os_error(exc, f"folding the journal into {self._name}") from exc

    def _next_generation(self, current: int) -> int:
        """One above all that there are: a journal with commits in it is never overwritten."""
        used = [n for n, path in self._journals() if path.stat().st_size]
        return max([current, *used]) + 1

    def _make_journal(self, generation: int) -> Path:
        path = self._directory / journal_name(generation)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
        return path

    def _write_temporary(self, state: IndexState, generation: int, *, durable: bool) -> None:
        with (self._directory / _TEMPORARY).open("wb") as file:
            file.write(write_snapshot(state, generation))
            if durable:
                file.flush()
                os.fsync(file.fileno())

    def _journals(self) -> list[tuple[int, Path]]:
        """All journals in the folder, by generation."""
        return [
            (int(match[1]), self._directory / name)
            for name in os.listdir(self._directory)  # noqa: PTH208 - only names are needed
            if (match := _JOURNAL.fullmatch(name))
        ]

    def _tidy(self) -> None:
        """Remove what interrupted writers left, unless one is writing now."""
        assert self._loaded is not None
        names = [path.name for _, path in self._journals()]
        if names == [journal_name(self._loaded.generation)] and not self._has_temporary():
            return
        if self._lock.acquire(wait=False):
            try:
                self._remove_leftovers(self._current().generation)
            finally:
                self._lock.release()

    def _has_temporary(self) -> bool:
        return (self._directory / _TEMPORARY).exists()

    def _remove_leftovers(self, generation: int) -> None:
        """Remove journals that were folded in, or never used. The lock is held."""
        (self._directory / _TEMPORARY).unlink(missing_ok=True)
        for number, path in self._journals():
            if number < generation or (number > generation and not path.stat().st_size):
                path.unlink(missing_ok=True)


# --- files ---------------------------------------------------------------------------------------


def _sorted(
    found: Iterable[Entry], key: Callable[[Entry], Any], limit: int | None
) -> Iterator[Entry]:
    """Sort at the first step, not before: nobody may ask for it."""
    yield from sorted(found, key=key) if limit is None else heapq.nsmallest(limit, found, key)


def _signature(facts: os.stat_result) -> _Signature:
    """Changes whenever the snapshot is replaced: by a rename, so at least the inode does."""
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def _seed(store_id: str, generation: int) -> int:
    """What the first line of a journal is chained to: no other journal has the same."""
    return checksum(f"{store_id}:{generation}".encode())


def _seconds(timeout: object) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout < 1e9:
        raise ConfigError(f"timeout must be a number of seconds, 0 or more, not {timeout!r}")
    return float(timeout)


def _read_file(path: Path) -> tuple[bytes, _Signature]:
    with path.open("rb") as file:
        return file.read(), _signature(os.fstat(file.fileno()))


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replay(loaded: _Loaded) -> None:
    """Take in what the journal has beyond the state. If interrupted, `loaded` is of no use."""
    journal = loaded.journal
    for record in journal.read():
        try:
            loaded.state.apply_json(record)
        except IntegrityError as exc:
            raise damaged(journal.path, f"at byte {journal.mark.offset}, {exc}") from exc


def _encode_utf8(changes: Changes) -> bytes:
    text = changes.to_json()
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InvalidInputError(
            f"the commit has a lone surrogate ({text[exc.start]!a}), which UTF-8 cannot hold: "
            "decode file names with errors='replace'; nothing was changed"
        ) from exc


def _written_key(operation: Operation) -> str | None:
    """The key that an operation leaves with an entry of its own commit."""
    if isinstance(operation, Put):
        return operation.draft.key
    if isinstance(operation, Copy):
        return operation.target
    return None if isinstance(operation, Delete) else operation.key


# --- forks ---------------------------------------------------------------------------------------

_instances: weakref.WeakSet[JsonBackend] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for backend in list(_instances):
        backend.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
