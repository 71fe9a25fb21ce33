"""The index in an SQL database: SQLite or PostgreSQL.

What is said once in SQL is said in `schema`, what differs between databases in `dialects`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa

from blobstore.backends.metadata.connections import Kept, Outcome
from blobstore.backends.metadata.dialects import dialect_for, parse_url
from blobstore.backends.metadata.field_indexes import FieldIndexes
from blobstore.backends.metadata.schema import (
    COMMIT_ID,
    MIGRATIONS,
    PAYLOAD,
    Row,
    blob_of,
    blob_values,
    blobs,
    drop_namespace,
    ensure_store_id,
    entries,
    entry_of,
    migrate,
    namespace_of,
    parts,
    put_values,
    read_meta,
    schema_version,
    statements_for,
    stored,
    with_parts,
)
from blobstore.backends.metadata.searching import Search, storable
from blobstore.backends.metadata.transaction import (
    CHUNK,
    AgainError,
    Transaction,
    chunks,
    entries_of,
    target_of,
)
from blobstore.entry import Blob, Entry, EntryDraft
from blobstore.errors import (
    BlobStoreError,
    IncompatibleStoreError,
    IntegrityError,
    InvalidInputError,
    NotSupportedError,
    OutOfSpaceError,
    StorageError,
    UnavailableError,
)
from blobstore.protocols import (
    CommitResult,
    Explanation,
    FieldIndex,
    MetadataBackend,
    Operation,
    Put,
)
from blobstore.query import Field, Query

T = TypeVar("T")

_TRIES = 100
_LOST = 3
_ASKING = 10.0
_LONGEST_NAMESPACE = 255
_NAMESPACE_IN_URL = "blobstore_namespace"


class SqlBackend(MetadataBackend):
    """The index in an SQL database.

    Parameters
    ----------
    url : str or path
        An SQLAlchemy URL (``sqlite:////folder/index.db``, or
        ``postgresql+psycopg://user@host/database``), or the path of an SQLite file. The file or
        the tables are made if there are none; a relative path is fixed now. What PostgreSQL's
        own options can say, the URL can: ``?sslmode=require``, or another schema than the first
        of the search path, ``?options=-csearch_path%3Dteam``.
    namespace : str, optional
        Stores of different namespaces share a database and nothing else. By default what the URL
        says by ``?blobstore_namespace=``, else "default".
    fsync : bool
        Whether a commit survives a power cut as soon as it returns.
    readonly : bool
        Change nothing, make no file, and need no permission to.
    timeout : float
        Seconds to wait for another writer before `UnavailableError`.
    store_id : str, optional
        Open the namespace of the store that has this id, whatever its name, and make none.

    Raises
    ------
    ConfigError
        The URL is none, or of no database that an index can be kept in.
    IncompatibleStoreError
        The database belongs to another program, or to a newer version of this one; or it knows
        no store of that id.
    IntegrityError
        It is damaged, or no database at all.
    UnavailableError, PermissionDeniedError
        The server cannot be reached, or does not let this user in, or make tables.

    Notes
    -----
    On PostgreSQL (13 or newer, with the encoding UTF8) a commit is one transaction that locks the
    rows it decides by, so commits of different keys do not wait for each other. A connection that
    broke is replaced, and what was asked is asked again; if it broke while committing, the server
    is asked whether that took place. Who falls silent within a commit loses his locks after half
    of the timeout, or 5 s if that is more. Acknowledged commits survive a crash of the server too:
    ``synchronous_commit`` stays as the server has it, and is never less than "on" with `fsync`.
    There are up to 10 connections (``?blobstore_pool_size=``), opened when they are needed.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> index = SqlBackend(folder.name + "/index.db")
    >>> index.get("model") is None
    True
    >>> index.close()
    >>> folder.cleanup()
    """

    inline_max_bytes = 8192

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        namespace: str | None = None,
        fsync: bool = False,
        readonly: bool = False,
        timeout: float = 60.0,
        store_id: str | None = None,
    ) -> None:
        url, said = split_namespace(url)
        namespace = said or "default" if namespace is None else namespace
        _check_namespace(namespace)
        self._dialect = dialect_for(url, fsync=fsync, readonly=readonly, timeout=timeout)
        self._sql = statements_for(self._dialect)
        self._namespace = namespace
        self._readonly = readonly
        self._timeout = timeout
        self._fsync = fsync
        self._dialect.prepare()
        self._pool = self._dialect.new_pool()
        # Whoever forgets to close gets no warning, but also leaves no connection behind.
        weakref.finalize(self, self._pool.close)
        try:
            if store_id is not None:
                self._namespace = self._find_namespace(store_id)
            self._store_id = self._open()
        except BaseException:
            self._pool.close()
            raise

    @classmethod
    def for_folder(cls, directory: Path, *, fsync: bool = False, readonly: bool = False) -> Self:
        """Open or make the index of a BlobStore: ``cache_metadata.db`` in its folder."""
        return cls(directory / "cache_metadata.db", fsync=fsync, readonly=readonly)

    def _open(self) -> str:
        """Migrate if need be; returns the store id of the namespace."""
        place = self._dialect.place

        def look(kept: Kept) -> tuple[int, str | None]:
            version = schema_version(kept.connection, place)
            return version, read_meta(kept.connection, self._namespace, "store_id")

        def settle(kept: Kept) -> str:
            self._dialect.lock_schema(kept)
            version = schema_version(kept.connection, place)
            if version < MIGRATIONS[-1].number:
                migrate(kept.connection, version)
            ensure_store_id(kept.connection, self._namespace)
            return str(read_meta(kept.connection, self._namespace, "store_id"))

        version, store_id = self._read(look, "opening")
        if version == MIGRATIONS[-1].number and store_id is not None:
            return store_id
        if self._readonly:
            raise IncompatibleStoreError(
                f"the index {place} has schema version {version} and the store id {store_id} in "
                f"the namespace {self._namespace!r}: open it for writing once, to bring it up to date"
            )
        return self._write(settle, "migrating")

    def _find_namespace(self, store_id: str) -> str:
        """Tell the namespace of a store."""
        found = self._read(lambda kept: namespace_of(kept.connection, store_id), "opening")
        if found is None:
            raise IncompatibleStoreError(
                f"the index {self._dialect.place} knows no store {store_id}: give the URL of the "
                "index that the folder, or the blobs, were made with"
            )
        return found

    def drop(self) -> None:
        """Remove the namespace, if nothing was ever stored in it; the index is of no use then."""

        def work(kept: Kept) -> None:
            self._dialect.lock_schema(kept)
            drop_namespace(kept.connection, self._namespace)

        self._write(work, "removing a namespace from")

    def __reduce__(self) -> tuple[Any, ...]:
        options = {
            "namespace": self._namespace,
            "fsync": self._fsync,
            "readonly": self._readonly,
            "timeout": self._timeout,
        }
        return _rebuild, (type(self), self._dialect.address, options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._dialect.place!r}, namespace={self._namespace!r})"

    @property
    def store_id(self) -> str:
        """32 hexadecimal digits, made once with the index and never changed."""
        return self._store_id

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str) -> Entry | None:
        """The entry of a key, or None."""
        if self._readonly:
            return self.get_many((key,)).get(key)
        # Written out rather than through `_read`: most of what a store does is this.
        pool = self._pool
        kept = pool.acquire()
        try:
            asked = (self._namespace, key)
            row = kept.execute(self._sql.head, asked).fetchone()
            if row is None:
                return None
            if row[PAYLOAD] is not None:
                return entry_of((row,))
            # Read anew, so that the entry and its parts are of one time.
            rows = kept.execute(self._sql.get, asked).fetchall()
        except self._dialect.errors as exc:
            if not storable(key):
                return None
            if not self._dialect.lost(kept):
                raise self._dialect.translate(
                    exc, f"reading {key!r} from {self._dialect.place}"
                ) from exc
            rows = None
        except UnicodeEncodeError:  # a lone surrogate, which no key has
            return None
        finally:
            pool.release(kept)
        if rows is None:
            return self.get_many((key,)).get(key)  # which takes another connection
        return entry_of(rows) if rows else None

    def get_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries of those keys that exist."""
        found: dict[str, Entry] = {}
        for some in chunks(filter(storable, keys), CHUNK):
            rows = self._rows(self._sql.get_many, self._namespace, self._dialect.strings(some))
            found.update((entry.key, entry) for entry in entries_of(rows))
        return found

    def scan(self, query: Query) -> Iterator[Entry]:
        """Entries that match, in the order of the query, read page by page."""
        return self._search.scan(query)

    def keys(self, query: Query) -> Iterator[str]:
        """Keys that match, in order."""
        return self._search.keys(query)

    def count(self, query: Query) -> int:
        """How many entries match."""
        return self._search.count(query)

    def tally(self, query: Query, fields: Sequence[Field]) -> Iterator[tuple[tuple[Any, ...], int]]:
        """Combinations of values that entries have, and how many entries have each."""
        found = self._search.tally(query, fields)
        return super().tally(query, fields) if found is None else found

    def explain(self, query: Query) -> Explanation:
        """Tell how `scan` would find its answer."""
        return self._search.explain(query)

    def create_index(self, field: Field) -> FieldIndex:
        """Make conditions on a field, and orders by it, quick. An index that exists stays."""
        return self._search.indexes.create(field)

    def drop_index(self, field: Field) -> bool:
        """Remove the index on a field; False if there is none."""
        return self._search.indexes.drop(field)

    def indexes(self) -> list[FieldIndex]:
        """Indexes on fields of this store."""
        return self._search.indexes.all()

    @functools.cached_property
    def _search(self) -> Search:
        indexes = FieldIndexes(self._dialect, self._namespace, self._read, self._write)
        return Search(self._dialect, self._namespace, indexes, self._read, self.get_many)

    # --- committing ------------------------------------------------------------------------------

    def commit(self, operations: Sequence[Operation], commit_id: str) -> CommitResult:
        """Apply operations in order, all or nothing."""
        if len(operations) == 1 and type(put := operations[0]) is Put:
            found = put.draft.parts
            if len(found) == 1 and found[0].payload is not None:
                text = None
                if put.expected == "any":
                    text = self._sql.put_inline
                elif put.expected == "absent":
                    text = self._sql.add_entry
                if text is not None:
                    done = self._commit_inline(text, put.draft, commit_id)
                    if done is not None:
                        return done

        def work(kept: Kept) -> CommitResult:
            commit = Transaction(kept, self._dialect, self._sql, self._namespace, commit_id)
            return commit.run(operations)

        def marked(kept: Kept) -> bool:
            targets = dict.fromkeys(target_of(operation) for operation in operations)
            names = self._dialect.strings([*targets][:CHUNK])
            rows = kept.execute(self._sql.get_many, (self._namespace, names)).fetchall()
            return any(entry.commit_id == commit_id for entry in entries_of(rows))

        return self._write(
            work, "committing to", keep=lambda result: not result.missing, marked=marked
        )

    def _commit_inline(self, text: str, draft: EntryDraft, commit_id: str) -> CommitResult | None:
        """Put one small object in one statement; None if that is not enough here."""
        self._check_writable()
        values = put_values(self._namespace, draft, commit_id)
        what = f"storing {draft.key!r} in {self._dialect.place}"
        return self._insist(lambda: self._commit_inline_once(text, draft, values, what))

    def _commit_inline_once(
        self, text: str, draft: EntryDraft, values: tuple[Any, ...], what: str
    ) -> CommitResult | None:
        pool, commit_id = self._pool, values[COMMIT_ID]
        kept: Kept | None = None
        turn: threading.Lock | None = None
        try:
            kept = pool.acquire()
            try:
                turn = pool.take_turn(self._timeout)
                row = kept.execute(text, values).fetchone()
                if turn is None:
                    pool.renew_turn()
            finally:
                if turn is not None:
                    turn.release()
        except self._dialect.errors as exc:
            error = self._failed(exc, what, committing=True)
            if kept is None or not self._dialect.lost(kept):
                raise self._again(exc, error) from exc
            error.__cause__ = exc
        else:
            return None if row is None else CommitResult((stored(draft, commit_id, row),))
        finally:
            if kept is not None:
                pool.release(kept)
        return self._inline_landed(draft.key, commit_id, kept, error)

    # --- blobs -----------------------------------------------------------------------------------

    def find_digests(self, digests: Iterable[str]) -> dict[str, Blob]:
        """Live blobs by digest: a hint, true at commit or reported there as missing."""
        found: dict[str, Blob] = {}
        for some in chunks(filter(storable, digests), CHUNK):
            names = self._dialect.strings(some)
            rows = self._rows(self._sql.blobs_by_digest, names, self._namespace)
            found.update((str(blob.digest), blob) for blob in map(blob_of, rows))
        return found

    def blobs(self) -> Iterator[Blob]:
        """All blobs that the index knows: live, condemned and pending."""
        last = ""
        while page := self._rows(self._sql.blob_page, self._namespace, last, CHUNK):
            yield from map(blob_of, page)
            last = page[-1][0]

    def known(self, locations: Iterable[str]) -> set[str]:
        """Those of the locations that the index has a blob row for, in whatever state."""
        found: set[str] = set()
        for some in chunks(filter(storable, locations), CHUNK):
            names = self._dialect.strings(some)
            found.update(row[0] for row in self._rows(self._sql.blobs_at, self._namespace, names))
        return found

    def announce(self, blobs: Iterable[Blob]) -> None:
        """Enter blobs as pending before they are written, for stores that cannot list."""
        pending = sorted(blobs, key=lambda blob: blob.location)
        values = [
            blob_values(self._namespace, blob._replace(state="pending", condemned_us=None))
            for blob in pending
        ]
        if values:
            self._write(
                lambda kept: kept.execute_many(self._sql.add_blob, values),
                "announcing blobs to",
            )

    def condemn(self, locations: Iterable[str], now_us: int) -> list[str]:
        """Mark locations as condemned, those that no entry refers to; unknown ones are entered."""
        wanted = list(dict.fromkeys(locations))
        if not wanted:
            return []
        sql, namespace = self._sql, self._namespace

        def enter(kept: Kept) -> None:
            for some in chunks(sorted(wanted), CHUNK):
                unknown = [blob_values(namespace, _unknown(name, now_us)) for name in some]
                kept.execute_many(sql.add_blob, unknown)

        def work(kept: Kept) -> set[str]:
            run = kept.execute
            done: set[str] = set()
            if not self._dialect.locks_rows:
                enter(kept)
            for some in chunks(sorted(wanted), CHUNK):
                names = self._dialect.strings(some)
                if self._dialect.locks_rows:
                    # First the locks, then the test: it has to see what was committed till then.
                    run(sql.hold_blobs, (namespace, names)).fetchall()
                run(sql.condemn_unused, (now_us, namespace, names))
                done.update(row[0] for row in run(sql.condemned_at, (namespace, names)).fetchall())
            return done

        if self._dialect.locks_rows:
            # Apart, because commits lock known blobs before they enter new ones.
            self._write(enter, "condemning blobs in")
        condemned = self._write(work, "condemning blobs in")
        return [name for name in wanted if name in condemned]

    def condemned(self) -> list[Blob]:
        """Blobs whose bytes are to be deleted, or already were."""
        return [blob_of(row) for row in self._rows(self._sql.condemned, self._namespace)]

    def forget(self, locations: Iterable[str]) -> None:
        """Drop condemned rows."""
        wanted = sorted(set(locations))

        def work(kept: Kept) -> None:
            for some in chunks(wanted, CHUNK):
                these = (self._namespace, self._dialect.strings(some))
                if self._dialect.locks_rows:
                    kept.execute(self._sql.hold_blobs, these).fetchall()  # in order
                kept.execute(self._sql.forget, these)

        if wanted:
            self._write(work, "forgetting blobs in")

    # --- upkeep ----------------------------------------------------------------------------------

    def sync(self) -> None:
        """Return once all commits so far would survive a power cut."""
        self._read(self._dialect.sync, "syncing")

    def check(self) -> list[str]:
        """Look for damage in the index itself; one line for each problem."""
        try:
            return self._read(self._problems, "checking")
        except IntegrityError as exc:
            return [str(exc)]

    def _problems(self, kept: Kept) -> list[str]:
        found = self._dialect.check(kept)
        for statement, line in _CHECKS:
            rows = kept.connection.execute(statement, {"namespace": self._namespace})
            found += [line.format(*row) for row in rows]
        return found

    def stats(self) -> Mapping[str, Any]:
        """Facts about the index: its kind, place, schema version."""
        place = self._dialect.place
        version = self._read(lambda kept: schema_version(kept.connection, place), "looking at")
        return {
            "kind": self._dialect.kind,
            "place": place,
            "namespace": self._namespace,
            "schema_version": version,
            **self._read(self._dialect.stats, "looking at"),
        }

    def close(self) -> None:
        """Let go of files and connections. Calling it again does nothing."""
        self._pool.close()

    # --- connections -----------------------------------------------------------------------------

    def _rows(self, text: str, *values: Any) -> list[Row]:
        rows: list[Row] = self._read(lambda kept: kept.execute(text, values).fetchall(), "reading")
        return rows

    def _read(self, work: Callable[[Kept], T], doing: str) -> T:
        """Run one statement or more on a connection, again if what it showed was out of date.

        Or on another one, if the connection broke.
        """
        deadline = time.monotonic() + self._timeout
        lost = 0
        for _ in range(_TRIES):
            kept = self._pool.acquire()
            try:
                result = work(kept)
            except self._dialect.errors as exc:
                what = f"{doing} the index {self._dialect.place}"
                if self._dialect.lost(kept):
                    lost += 1
                    again = lost < _LOST and time.monotonic() < deadline
                else:
                    again = not self._dialect.current(kept)
                if not again:
                    raise self._dialect.translate(exc, what) from exc
            else:
                if self._dialect.current(kept):
                    return result
            finally:
                self._pool.release(kept)
        raise UnavailableError(
            f"{doing} the index {self._dialect.place} failed: it changed {_TRIES} times meanwhile; "
            "try again"
        )

    def _write(
        self,
        work: Callable[[Kept], T],
        doing: str,
        keep: Callable[[T], bool] = lambda _: True,
        marked: Callable[[Kept], bool] | None = None,
    ) -> T:
        """Do `work` in a transaction; `keep` tells from its result whether to commit.

        What must not be done twice has `marked`: it finds what tells that it was done, unless
        somebody has removed that since.
        """
        self._check_writable()

        def attempt() -> T:
            return self._write_once(work, doing, keep, marked)

        try:
            return self._insist(attempt)
        except OutOfSpaceError:
            # A full disk must not stop what would free some of it: first give back what the
            # database itself can spare, then once more.
            if not self._make_room():
                raise
        return self._insist(attempt)

    def _insist(self, attempt: Callable[[], T]) -> T:
        """Do something until it does not fail for what others did, or for a broken connection."""
        deadline = time.monotonic() + self._timeout
        lost = 0
        for number in itertools.count(1):
            try:
                return attempt()
            except AgainError as again:
                lost += again.lost
                if lost >= _LOST or number >= _TRIES or time.monotonic() > deadline:
                    raise again.error from again.__cause__
            # Those that met should not meet again.
            time.sleep(random.uniform(0, min(0.001 * 2**number, 0.1)))  # noqa: S311
        raise AssertionError

    def _make_room(self) -> bool:
        kept = self._pool.acquire()
        try:
            return self._dialect.make_room(kept)
        finally:
            self._pool.release(kept)

    def _write_once(
        self,
        work: Callable[[Kept], T],
        doing: str,
        keep: Callable[[T], bool],
        marked: Callable[[Kept], bool] | None,
    ) -> T:
        kept: Kept | None = None
        turn: threading.Lock | None = None
        ticket: object = None
        committing = False
        try:
            # First a connection, then the turn: who has the turn must never wait for a fork.
            kept = self._pool.acquire()
            try:
                turn = self._pool.take_turn(self._timeout)
                ticket = self._dialect.begin(kept)
                if turn is None:
                    self._pool.renew_turn()
                result = work(kept)
                if keep(result):
                    committing = True
                    kept.driver.commit()
                    committing = False
                return result
            finally:
                try:
                    with contextlib.suppress(*self._dialect.errors):
                        kept.driver.rollback()  # of nothing, if all went well
                finally:
                    if turn is not None:
                        turn.release()
        except self._dialect.errors as exc:
            error = self._failed(
                exc, f"{doing} the index {self._dialect.place}", committing=committing
            )
            if kept is None or not self._dialect.lost(kept):
                raise self._again(exc, error) from exc
            error.__cause__ = exc
        finally:
            if kept is not None:
                self._pool.release(kept)
        if committing and marked is not None and self._has_landed(ticket, marked, error):
            return result
        raise AgainError(error, lost=True) from error.__cause__

    def _again(self, exc: Exception, error: BlobStoreError) -> Exception:
        return AgainError(error) if self._dialect.transient(exc) else error

    def _has_landed(
        self, ticket: object, marked: Callable[[Kept], bool], error: BlobStoreError
    ) -> bool:
        """Whether a transaction was committed whose connection was lost meanwhile."""

        def look(kept: Kept) -> Outcome | None:
            outcome = self._dialect.outcome(kept, ticket)
            if outcome == "forgotten" and marked(kept):
                return "committed"
            return None if outcome == "running" else outcome

        outcome = self._ask(look, error)
        if outcome == "forgotten":
            raise self._unknown(error) from error.__cause__
        return outcome == "committed"

    def _inline_landed(
        self, key: str, commit_id: str, lost: Kept, error: BlobStoreError
    ) -> CommitResult:
        """Find what a single statement wrote whose connection was lost meanwhile.

        It bears the mark of its commit until somebody else writes the key. Without the mark it
        may have landed before that, so nothing is done again.
        """

        def look(kept: Kept) -> Entry | bool | None:
            gone = self._dialect.gone(kept, lost)  # asked first: what it did is seen then
            row = kept.execute(self._sql.head, (self._namespace, key)).fetchone()
            entry = None if row is None or row[PAYLOAD] is None else entry_of((row,))
            if entry is not None and entry.commit_id == commit_id:
                return entry
            return False if gone else None

        entry = self._ask(look, error)
        if isinstance(entry, Entry):
            return CommitResult((entry,))
        raise self._unknown(error) from error.__cause__

    def _ask(self, look: Callable[[Kept], T | None], error: BlobStoreError) -> T:
        """Ask, on other connections, for what became of a commit; wait while it is not settled."""
        deadline = time.monotonic() + min(self._timeout, _ASKING)
        while True:
            with contextlib.suppress(UnavailableError):
                found = self._read(look, "asking")
                if found is not None:
                    return found
            if time.monotonic() > deadline:
                raise self._unknown(error) from error.__cause__
            time.sleep(0.02)

    def _unknown(self, error: BlobStoreError) -> UnavailableError:
        return UnavailableError(
            f"{error} Whether the change landed could not be found out: read it again.",
            outcome="unknown",
        )

    def _failed(self, exc: Exception, what: str, *, committing: bool) -> BlobStoreError:
        """Translate an error; one of the disk during a commit leaves open whether that landed.

        SQLite's recovery accepts a transaction that was written in full, also if syncing it
        failed and it was rolled back.
        """
        error = self._dialect.translate(exc, what)
        if not committing or type(error) is not StorageError:
            return error
        return UnavailableError(
            f"{error} Whether the change landed will be seen when the index is next opened.",
            outcome="unknown",
        )

    def _check_writable(self) -> None:
        if self._readonly:
            raise NotSupportedError(
                f"the index {self._dialect.place} was opened with readonly=True: open it anew "
                "without that to change it"
            )


def split_namespace(
    url: str | os.PathLike[str],
) -> tuple[str | os.PathLike[str], str | None]:
    """Take the namespace out of a URL.

    Examples
    --------
    >>> split_namespace("postgresql://ann@host/db?sslmode=require&blobstore_namespace=team-a")
    ('postgresql://ann@host/db?sslmode=require', 'team-a')
    >>> split_namespace("index.db")
    ('index.db', None)
    """
    if not isinstance(url, str) or "://" not in url:
        return url, None
    parsed = parse_url(url)
    said = parsed.query.get(_NAMESPACE_IN_URL)
    if said is None:
        return url, None
    if not isinstance(said, str) or not said:
        raise InvalidInputError(f"{_NAMESPACE_IN_URL}= takes one name, not {said!r}")
    parsed = parsed.difference_update_query([_NAMESPACE_IN_URL])
    return parsed.render_as_string(hide_password=False), said


def _check_namespace(namespace: str) -> None:
    if not namespace or not storable(namespace) or len(namespace.encode()) > _LONGEST_NAMESPACE:
        raise InvalidInputError(
            f"a namespace is a str of 1 to {_LONGEST_NAMESPACE} bytes, not {namespace!r}"
        )


def _unknown(location: str, now_us: int) -> Blob:
    return Blob(location, 0, "", "none", "", 1, None, "condemned", now_us, now_us)


def _rebuild(cls: type[SqlBackend], address: str, options: dict[str, Any]) -> SqlBackend:
    return cls(address, **options)


_here: sa.BindParameter[str] = sa.bindparam("namespace")
_CHECKS: tuple[tuple[sa.Select[Any], str], ...] = (
    (
        sa.select(parts.c.location, parts.c.entry_id)
        .select_from(parts.outerjoin(entries, entries.c.id == parts.c.entry_id))
        .where(parts.c.namespace == _here, entries.c.id.is_(None)),
        "a part at {0!r} belongs to the entry {1}, which does not exist",
    ),
    (
        sa.select(entries.c.key, parts.c.location, blobs.c.state)
        .select_from(with_parts())
        .where(
            entries.c.namespace == _here,
            parts.c.location.is_not(None),
            sa.or_(blobs.c.state.is_(None), blobs.c.state != "live"),
        ),
        "the entry {0!r} refers to the blob {1!r}, which is not live (state {2!r})",
    ),
    (
        sa.select(blobs.c.location).where(
            blobs.c.namespace == _here,
            blobs.c.state == "live",
            ~sa.exists().where(
                parts.c.namespace == blobs.c.namespace, parts.c.location == blobs.c.location
            ),
        ),
        "the blob {0!r} is live, but no entry refers to it",
    ),
    (
        sa.select(entries.c.key, entries.c.located, sa.func.count(parts.c.position))
        .select_from(entries.outerjoin(parts, parts.c.entry_id == entries.c.id))
        .where(entries.c.namespace == _here)
        .group_by(entries.c.id, entries.c.key, entries.c.located)
        .having(entries.c.located != sa.func.count(parts.c.position)),
        "the entry {0!r} has {2} parts, but should have {1}",
    ),
)
