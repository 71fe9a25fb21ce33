"""PostgreSQL as the database of an index."""

from __future__ import annotations

import contextlib
import functools
import math
import select
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Self, TypeVar, cast

import psycopg
import sqlalchemy as sa
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.exc import DBAPIError

from blobstore.backends.metadata.connections import (
    BARE,
    Dialect,
    Insert,
    Kept,
    Outcome,
    ServerPool,
    make_immortal,
)
from blobstore.backends.metadata.postgres_errors import is_transient, translated
from blobstore.backends.metadata.postgres_fields import PostgresAddressing
from blobstore.backends.metadata.schema import migrate, tables
from blobstore.errors import (
    BlobStoreError,
    ConfigError,
    IncompatibleStoreError,
    NotSupportedError,
    StorageError,
    UnavailableError,
)

R = TypeVar("R")

MARK = "An index of blobstore. Do not change this comment: it is how blobstore knows its tables."
"""Comment on the table ``meta``, which tells our tables from others of the same names."""

_OLDEST = 13
_LOCK = 0x626C6F62
"""Of PostgreSQL's advisory locks, the one for making and migrating tables: the letters "blob"."""
_INDEX_LOCK = _LOCK + 1
"""The one for making and dropping indexes on fields."""

_POOL_SIZE = 10
_POOL_SIZE_IN_URL = "blobstore_pool_size"
_PATIENCE = 10.0
"""How much longer than usual a statement may take that looks at many rows."""

_SILENCE = 0.5
"""How long a transaction may wait for its client, as a share of the time that others wait."""

_LEAST_SILENCE = 5.0

_IDLE = 30.0
_PING_PATIENCE = 5.0
_DEFAULTS = {
    # So that a peer that is gone without a word is noticed, in about a minute.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
    "fallback_application_name": "blobstore",
    "client_encoding": "utf8",
}


class PatientCursor(psycopg.Cursor[Any]):
    """For statements that may take long, because there is much to look at."""

    def execute(self, *arguments: Any, **options: Any) -> Self:
        """Run a statement."""
        connection: Any = self.connection
        usual = connection.patience
        connection.patience = usual * _PATIENCE
        try:
            return super().execute(*arguments, **options)
        finally:
            connection.patience = usual


class Connection(psycopg.Connection[Any]):
    """A connection that does not wait for ever for a server that says nothing.

    Attributes
    ----------
    patience : float
        Seconds.
    """

    patience = 60.0

    def wait(self, gen: Generator[Any, Any, R], *args: Any, **options: Any) -> R:
        """Let the driver wait for the server."""
        limited = _limited(gen, time.monotonic() + self.patience, self)
        return super().wait(limited, *args, **options)


def _limited(
    gen: Generator[Any, Any, R], deadline: float, connection: Connection
) -> Generator[Any, Any, R]:
    """Run what the driver waits for; close the connection if the answer takes too long."""
    ready = None
    while True:
        try:
            wanted = gen.send(ready)
        except StopIteration as exc:
            return exc.value  # type: ignore[no-any-return]
        ready = yield wanted
        if not ready and time.monotonic() > deadline:  # the driver looks up ten times a second
            connection.pgconn.finish()
            raise psycopg.OperationalError("the server did not answer in time")


_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_current_xact_id()::text"
"""Two statements at once, which make one round trip."""

_LIFE = """
    SELECT concat_ws(' ', extract(epoch FROM pg_postmaster_start_time()),
        extract(epoch FROM stats_reset)) FROM pg_stat_bgwriter
"""
"""What tells one life of a server from another: after a crash it counts its statistics anew.

In another life, or on a copy that took its place, the number of a transaction that was swept away
may have been given to another one.
"""


class PostgresKept(Kept):
    """A connection to PostgreSQL that is kept open.

    Attributes
    ----------
    pid : int
        Of the process that serves it.
    poll : select.poll
        Tells at once whether there is something to be read from the server.
    used : float
        When it was last known to be good, by `time.monotonic`.
    lazy : bool
        Whether commits are acknowledged before they are on the server's disk.
    life : str
        Of the server, which the connection does not outlive; found out by the first `begin`.
    """

    __slots__ = ("lazy", "life", "pid", "poll", "used")

    def __init__(self, connection: sa.Connection) -> None:
        driver: Any = connection.connection.driver_connection
        cursor = psycopg.RawCursor(driver)
        cursor.format = psycopg.pq.Format.BINARY
        execute = functools.partial(cursor.execute, prepare=True)

        def execute_many(text: str, rows: Sequence[Sequence[Any]]) -> None:
            if len(rows) > 1:
                cursor.executemany(text, rows)
            else:  # the driver's way for many costs more than one
                for row in rows:
                    execute(text, row)

        super().__init__(connection, execute=execute, execute_many=execute_many)
        self.pid: int = driver.info.backend_pid
        self.poll = select.poll()
        self.poll.register(driver.pgconn.socket, select.POLLIN)
        self.lazy = False
        self.life = ""
        self.used = time.monotonic()

    def answers(self) -> bool:
        """Ask the server for a sign of life."""
        usual = self.driver.patience
        self.driver.patience = _PING_PATIENCE
        try:
            self.execute("SELECT 1")
        except psycopg.Error:
            return False
        finally:
            self.driver.patience = usual
        return True

    def begin(self) -> tuple[str, str]:
        """Begin a transaction, and learn the number by which the server knows it for its life."""
        if not self.life:
            (self.life,) = self.execute(_LIFE).fetchone()
        cursor = self.execute(_BEGIN, prepare=False, binary=False)
        cursor.nextset()
        (number,) = cursor.fetchone()
        return self.life, number


class PostgresDialect(Dialect):
    """Tables in the first schema of the search path of a PostgreSQL database.

    Several transactions write at a time, each in the isolation level READ COMMITTED under locks
    on the rows that it decides by (see `Transaction`): every statement sees what was committed
    before it began, and what was decided by stays as it is until the commit.
    """

    kind = "postgresql"
    fields = PostgresAddressing()
    concurrently = "CONCURRENTLY"
    errors = (psycopg.Error, DBAPIError)
    locks_rows = True

    def __init__(self, url: sa.URL, *, fsync: bool, readonly: bool, timeout: float) -> None:
        if url.drivername not in ("postgresql", "postgresql+psycopg"):
            raise ConfigError(
                f"there is no index by the driver {url.drivername!r}: write "
                "postgresql+psycopg://user@host/database"
            )
        self.address = url.render_as_string(hide_password=False)
        self._pool_size, url = _split_pool_size(url)
        self._url = url.set(drivername="postgresql+psycopg")
        self.place = _place(url)
        self._fsync = fsync
        self._readonly = readonly
        self._timeout = timeout
        self._compiler = postgresql_dialect.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
        self._engine = self._new_engine()
        self._spare: Kept | None = None

    # connections

    def new_pool(self) -> ServerPool[Kept]:
        """Make a pool of a bounded size."""
        return ServerPool(self, self._pool_size, self._timeout)

    def renew(self) -> None:
        """Take a new engine in a forked child: a lock of the old one may be held for ever."""
        self._engine = self._new_engine()
        if self._spare is not None:
            make_immortal(self._spare)
            self._spare = None

    def connect(self) -> Kept:
        """Open a connection, and set for its session what the index counts on."""
        spare, self._spare = self._spare, None
        if spare is not None:
            return spare
        kept = PostgresKept(self._engine.connect())
        try:
            self._set_up(kept)
        except BaseException:
            self.close(kept)
            raise
        return kept

    def close(self, kept: Kept) -> None:
        """Close a connection, whatever state it is in."""
        with contextlib.suppress(*self.errors):
            kept.connection.close()

    def current(self, kept: Kept) -> bool:
        """Each statement sees what was committed before it."""
        return True

    def lost(self, kept: Kept) -> bool:
        """Whether the driver gave the connection up."""
        return bool(kept.driver.pgconn.status != ConnStatus.OK)

    def fit(self, kept: Kept) -> bool:
        """Whether the server could still be there.

        An idle server says nothing but its last words, so a connection that was closed is found
        out here, before anything is sent to nobody. One that was idle for long may have been
        forgotten by what lies between without a word: it is tried.
        """
        if not isinstance(kept, PostgresKept):
            return False
        pgconn = kept.driver.pgconn
        if pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        now = time.monotonic()
        idle, kept.used = now - kept.used, now
        if not kept.poll.poll(0):
            return idle < _IDLE or kept.answers()
        try:
            pgconn.consume_input()
        except psycopg.Error:
            return False
        # Else it was a notice. What ends the connection is followed by its end.
        return bool(pgconn.status == ConnStatus.OK and not kept.poll.poll(0))

    def _new_engine(self) -> sa.Engine:
        seconds = str(max(2, min(10, math.ceil(self._timeout))))  # libpq takes no less
        wanted = _DEFAULTS | {"connect_timeout": seconds}
        missing = {name: value for name, value in wanted.items() if name not in self._url.query}
        engine = sa.create_engine(
            self._url,
            connect_args=missing,
            poolclass=sa.NullPool,
            pool_reset_on_return=None,
            isolation_level="AUTOCOMMIT",
            use_native_hstore=False,
            hide_parameters=True,
        )

        def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> Connection:
            driver = Connection.connect(*arguments, **options)
            driver.cursor_factory = PatientCursor
            # The server itself gives up waiting for a lock after the timeout.
            driver.patience = self._timeout * 2 + 1
            # One type for integers of all sizes: each combination of types is prepared anew.
            driver.adapters.register_dumper(int, Int8Dumper)
            driver.adapters.register_dumper(int, Int8BinaryDumper)
            return driver

        sa.event.listen(engine, "do_connect", connect)
        return engine

    def _set_up(self, kept: PostgresKept) -> None:
        info = kept.driver.info
        if info.server_version < _OLDEST * 10_000:
            raise NotSupportedError(
                f"{self.label} is on PostgreSQL {info.server_version // 10_000}: one of {_OLDEST} "
                "or newer is needed"
            )
        if (encoding := info.parameter_status("server_encoding")) != "UTF8":
            raise ConfigError(
                f"{self.label} is in a database with the encoding {encoding}, which cannot hold "
                "all text: make one with ENCODING 'UTF8'"
            )
        row = kept.driver.execute(
            _SETTINGS,
            {
                "timeout": str(max(1, int(self._timeout * 1000))),
                "readonly": "on" if self._readonly else "off",
                "fsync": self._fsync,
                "silence": str(int(max(_LEAST_SILENCE, self._timeout * _SILENCE) * 1000)),
            },
        ).fetchone()
        kept.lazy = row[0] == "off"

    # opening

    def prepare(self) -> None:
        """Make the tables, or see that those that are there are ours."""
        try:
            kept = self.connect()
            try:
                if not self._recognise(kept):
                    self._create(kept)
            except BaseException:
                self.close(kept)
                raise
            self._spare = kept  # the first connection of the pool
        except self.errors as exc:
            raise self.translate(exc, f"opening {self.label}") from exc

    def _create(self, kept: Kept) -> None:
        if self._readonly:
            raise StorageError(
                f"there is no index {self.place}: open the store for writing to make one"
            )
        self.begin(kept)
        self.lock_schema(kept)
        if not self._recognise(kept):  # else another process was first
            migrate(kept.connection, 0)
            kept.driver.execute(f"COMMENT ON TABLE meta IS '{MARK}'")
        kept.driver.commit()

    def _recognise(self, kept: Kept) -> bool:
        """Whether our tables are there; refuses to go on where others of the same names are."""
        names = sorted(tables.tables)
        (schema,) = kept.driver.execute("SELECT current_schema()").fetchone()
        if schema is None:
            raise ConfigError(
                f"no schema of the search path of {self.label} is there: make one, or name one by "
                "?options=-csearch_path%3Dname"
            )
        rows = kept.driver.execute(_LOOK, (names,)).fetchall()
        schemas = {found for found, *_ in rows}
        marked = any(name == "meta" and comment == MARK for _, name, comment in rows)
        if marked and len(schemas) == 1 and len(rows) == len(names):
            return True
        if not rows:
            return False
        theirs = ", ".join(sorted(f"{found}.{name}" for found, name, _ in rows))
        raise IncompatibleStoreError(
            f"{self.label} has tables of another program where ours would be ({theirs}): give the "
            "index a schema of its own (CREATE SCHEMA blobstore), and add "
            "?options=-csearch_path%3Dblobstore to the URL"
        )

    # writing

    def begin(self, kept: Kept) -> object:
        """Begin, and learn by what the server knows the transaction afterwards."""
        return kept.begin()  # type: ignore[attr-defined]

    def lock_schema(self, kept: Kept) -> None:
        """Take the lock for making and migrating tables."""
        kept.driver.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))

    def outcome(self, kept: Kept, ticket: object) -> Outcome:
        """Ask the server what became of a transaction, if it is the one that did it."""
        life, number = cast("tuple[str, str]", ticket)
        if kept.driver.execute(_LIFE).fetchone() != (life,):
            return "forgotten"
        row = kept.driver.execute("SELECT pg_xact_status(%s::text::xid8)", (number,)).fetchone()
        return _OUTCOMES.get(row[0], "forgotten")

    def gone(self, kept: Kept, lost: Kept) -> bool:
        """Whether the process that served a connection is no more."""
        asked = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
        return bool(kept.driver.execute(asked, (lost.pid,)).fetchone()[0])  # type: ignore[attr-defined]

    def transient(self, exc: Exception) -> bool:
        """Whether it was a deadlock, or a row that somebody else was faster to add."""
        return is_transient(exc)

    # asking

    def insert(self, table: sa.Table) -> Insert:
        """Start an INSERT ... ON CONFLICT."""
        return postgresql_dialect.insert(table)

    def compile(self, statement: sa.ClauseElement, order: tuple[str, ...]) -> str:
        """Turn a statement into text with numbered parameters."""
        compiled = statement.compile(dialect=self._compiler)
        found = tuple(getattr(compiled, "positiontup", None) or ())
        if found != order:
            raise AssertionError(f"the parameters are {found}, not {order}, in {compiled}")
        return str(compiled)

    def spell(self, expression: sa.ColumnElement[Any]) -> str:
        """Turn an expression into text, with bare names of columns."""
        return str(expression.compile(dialect=self._compiler, compile_kwargs=BARE))

    def among(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """Compare with the elements of an array."""
        names: sa.BindParameter[Any] = sa.bindparam("b_" + name, type_=sa.ARRAY(sa.Text))
        return column == sa.any_(names)

    def strings(self, values: Sequence[str]) -> list[str]:
        """Make an array."""
        return list(values)

    @contextlib.contextmanager
    def holding_indexes(self, kept: Kept) -> Iterator[None]:
        """Hold a lock of the session.

        It is asked for time and again: one who waits for it in a statement is waited for by one
        who makes an index.
        """
        deadline = time.monotonic() + self._timeout
        while not kept.driver.execute(_TRY_LOCK, (_INDEX_LOCK,)).fetchone()[0]:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"another process makes an index in {self.place}, and has not finished in "
                    f"{self._timeout:g} s: try again later"
                )
            time.sleep(0.05)
        try:
            yield
        finally:
            with contextlib.suppress(*self.errors):  # a broken connection has lost it anyway
                kept.driver.execute("SELECT pg_advisory_unlock(%s)", (_INDEX_LOCK,))

    def drop_broken(self, kept: Kept, name: str) -> None:
        """Drop an index that is not valid: nobody else can be making it now."""
        if kept.driver.execute(_BROKEN, (name,)).fetchone() is not None:
            kept.driver.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")

    # understanding

    def translate(self, exc: Exception, what: str) -> BlobStoreError:
        """Tell by the SQLSTATE what went wrong."""
        return translated(exc, what, timeout=self._timeout)

    # keeping

    def sync(self, kept: Kept) -> None:
        """Put what was committed on the server's disk; mostly it is there already."""
        if kept.lazy and not self._readonly:  # type: ignore[attr-defined]
            # Whatever is written and flushed takes all that was written before along.
            kept.driver.execute(
                "BEGIN; SET LOCAL synchronous_commit = on;"
                " SELECT pg_logical_emit_message(true, 'blobstore', 'sync'); COMMIT",
                prepare=False,
            )

    def check(self, kept: Kept) -> list[str]:
        """Look for indexes that are not complete; PostgreSQL checks pages when it reads them."""
        rows = kept.driver.execute(_INVALID, (sorted(tables.tables),)).fetchall()
        return [f"PostgreSQL: the index {name} is not valid: REINDEX it" for (name,) in rows]

    def stats(self, kept: Kept) -> dict[str, Any]:
        """Tell sizes."""
        names = sorted(tables.tables)
        (size,) = kept.driver.execute(_SIZE, (names,)).fetchone()
        return {"bytes": int(size), "server_version": kept.driver.info.server_version}


_SETTINGS = """
    SELECT set_config('synchronous_commit', CASE
            WHEN %(fsync)s AND current_setting('synchronous_commit') = 'off' THEN 'on'
            ELSE current_setting('synchronous_commit') END, false),
        set_config('lock_timeout', %(timeout)s, false),
        -- A machine that vanished, or a process that was stopped, must not keep its locks.
        set_config('idle_in_transaction_session_timeout', %(silence)s, false),
        set_config('default_transaction_isolation', 'read committed', false),
        set_config('default_transaction_read_only', %(readonly)s, false),
        -- For every statement there is an index. Without statistics, which a new table has none
        -- of, the planner would not always see that.
        set_config('enable_seqscan', 'off', false),
        set_config('jit', 'off', false)
"""
_LOOK = """
    SELECT n.nspname, c.relname, obj_description(c.oid, 'pg_class')
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = ANY (%s) AND (pg_catalog.pg_table_is_visible(c.oid)
        OR n.nspname = current_schema())
"""
_INVALID = """
    SELECT i.indexrelid::regclass::text FROM pg_catalog.pg_index i
    WHERE i.indrelid IN (SELECT name::regclass FROM unnest(%s::text[]) name)
        AND NOT (i.indisvalid AND i.indisready)
"""
_TRY_LOCK = "SELECT pg_try_advisory_lock(%s)"
_BROKEN = """
    SELECT FROM pg_catalog.pg_index i WHERE i.indexrelid = to_regclass(%s)
        AND NOT (i.indisvalid AND i.indisready)
"""
_SIZE = "SELECT sum(pg_total_relation_size(name::regclass)) FROM unnest(%s::text[]) name"
_OUTCOMES: dict[str | None, Outcome] = {
    "committed": "committed",
    "aborted": "aborted",
    "in progress": "running",
}


def _split_pool_size(url: sa.URL) -> tuple[int, sa.URL]:
    said = url.query.get(_POOL_SIZE_IN_URL, str(_POOL_SIZE))
    if not isinstance(said, str) or not said.isdecimal() or not 1 <= int(said) <= 10_000:
        raise ConfigError(f"{_POOL_SIZE_IN_URL}= takes a number from 1 up, not {said!r}")
    return int(said), url.difference_update_query([_POOL_SIZE_IN_URL])


def _place(url: sa.URL) -> str:
    """Say where a database is, with nothing secret; a password may also be among the options."""
    said = url.query.get("host", url.host or "")
    host = said if isinstance(said, str) else ",".join(said)
    port = f":{url.port}" if url.port else ""
    user = f"{url.username}@" if url.username else ""
    return f"postgresql://{user}{host}{port}/{url.database or ''}"
