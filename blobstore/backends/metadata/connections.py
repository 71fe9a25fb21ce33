"""What a database must offer to the index, and how one connection to it is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.dialects import sqlite as sqlite_dialect

from blobstore.backends.metadata.addressing import Addressing
from blobstore.backends.metadata.server_pool import ServerPool
from blobstore.backends.sqlite_pool import (  # the private ones for tests of forking
    _FORK_WAIT,  # noqa: F401
    Pool,
    _before_fork,  # noqa: F401
    _gate,  # noqa: F401
    make_immortal,
    opened,
)
from blobstore.errors import BlobStoreError

__all__ = [
    "BARE", "Dialect", "Insert", "Kept", "Outcome", "Pool", "ServerPool", "make_immortal", "opened",
]  # fmt: skip

Insert = sqlite_dialect.Insert | postgresql_dialect.Insert
"""An INSERT that can say what to do on a conflict."""

Outcome = Literal["committed", "aborted", "running", "forgotten"]
"""What became of a transaction; "forgotten" where the server cannot tell, nor ever will."""

BARE = {"literal_binds": True, "include_table": False}
"""How SQLAlchemy is to compile what stands in a definition."""


class Kept:
    """A connection that is kept open between calls, in autocommit mode.

    Attributes
    ----------
    connection : sqlalchemy.Connection
        For statements that are made up anew at each call.
    driver : object
        The driver's own connection.
    execute : callable
        Runs a statement that was compiled once, and answers with a cursor. The next statement
        may use the same cursor, so what it found is to be fetched before.
    execute_many : callable
        Runs such a statement for each of several rows of parameters.
    snapshot : object or None
        Where the connection cannot see later changes: what the files looked like when it was
        opened. It is good for as long as they look the same.
    """

    __slots__ = ("connection", "driver", "execute", "execute_many", "snapshot")

    def __init__(
        self,
        connection: sa.Connection,
        snapshot: object = None,
        *,
        execute: Callable[..., Any] | None = None,
        execute_many: Callable[..., Any] | None = None,
    ) -> None:
        self.connection = connection
        driver: Any = connection.connection.driver_connection
        self.driver = driver
        self.execute: Callable[..., Any] = execute or driver.execute
        self.execute_many: Callable[..., Any] = execute_many or driver.executemany
        self.snapshot = snapshot


class Dialect(ABC):
    """One kind of database: how it is opened, locked, asked and understood.

    Attributes
    ----------
    kind : str
        "sqlite" or "postgresql".
    address : str
        What opens it again, in another process too; may hold a password.
    locks_rows : bool
        Whether several transactions write at a time, so that each has to lock the rows that it
        decides by; else `begin` takes a lock on everything.
    place : str
        Which database, for messages; without any password.
    errors : tuple of exception types
        What its driver raises; given to `translate`.
    fields : Addressing
        How it reads fields of entries.
    concurrently : str
        What is put behind INDEX to make or drop one while others write. Where there is such a
        word, that cannot be done in a transaction.
    explaining : str
        What is put before a statement to see its plan.
    """

    kind: ClassVar[str]
    errors: ClassVar[tuple[type[Exception], ...]]
    locks_rows: ClassVar[bool] = False
    fields: ClassVar[Addressing]
    concurrently: ClassVar[str] = ""
    explaining: ClassVar[str] = "EXPLAIN"
    place: str
    address: str

    @property
    def label(self) -> str:
        """What the database is, for messages."""
        return f"the index {self.place}"

    @abstractmethod
    def prepare(self) -> None:
        """Make sure that there is a database of ours, if need be a new one."""

    def new_pool(self) -> Pool[Kept] | ServerPool[Kept]:
        """Make the pool that keeps its connections."""
        return Pool(self)

    @abstractmethod
    def connect(self) -> Kept:
        """Open a connection."""

    @abstractmethod
    def close(self, kept: Kept) -> None:
        """Close a connection."""

    @abstractmethod
    def current(self, kept: Kept) -> bool:
        """Whether what the connection shows is how things are."""

    def lost(self, kept: Kept) -> bool:
        """Whether the connection broke, so that another one may have to be asked."""
        return False

    @abstractmethod
    def begin(self, kept: Kept) -> object:
        """Begin a transaction that will write, with whatever lock that takes.

        Answers with what `outcome` wants to know of it.
        """

    def lock_schema(self, kept: Kept) -> None:
        """Keep others from migrating until the transaction ends, where `begin` does not."""

    def outcome(self, kept: Kept, ticket: object) -> Outcome:
        """Tell what became of the transaction of `ticket`, whose connection was lost."""
        return "forgotten"

    def gone(self, kept: Kept, lost: Kept) -> bool:
        """Whether the server has ended the work of a connection that was lost."""
        return True

    def transient(self, exc: Exception) -> bool:
        """Whether a transaction failed for what others did, and may succeed if done again."""
        return False

    @abstractmethod
    def insert(self, table: sa.Table) -> Insert:
        """Start an INSERT that can say what to do on a conflict."""

    @abstractmethod
    def compile(self, statement: sa.ClauseElement, order: tuple[str, ...]) -> str:
        """Turn a statement into text with parameters by position, in this order of names."""

    @abstractmethod
    def spell(self, expression: sa.ColumnElement[Any]) -> str:
        """Turn an expression that binds nothing into text, for a definition."""

    @abstractmethod
    def among(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """Whether `column` is among the strings of one parameter, made by `strings`."""

    @abstractmethod
    def strings(self, values: Sequence[str]) -> object:
        """Make the parameter for `among`."""

    def holding_indexes(self, kept: Kept) -> AbstractContextManager[None]:
        """Keep others from making and dropping indexes, where a transaction does not."""
        return nullcontext()

    def drop_broken(self, kept: Kept, name: str) -> None:
        """Drop an index that somebody began to make, and did not finish."""

    @abstractmethod
    def translate(self, exc: Exception, what: str) -> BlobStoreError:
        """Turn an error of the driver into ours; `what` was being done."""

    @abstractmethod
    def sync(self, kept: Kept) -> None:
        """Return once all that was committed would survive a power cut."""

    def make_room(self, kept: Kept) -> bool:
        """Free disk space that the database can spare; whether there was any."""
        return False

    @abstractmethod
    def check(self, kept: Kept) -> list[str]:
        """Let the database look for damage in itself."""

    @abstractmethod
    def stats(self, kept: Kept) -> dict[str, Any]:
        """Facts for people."""
