"""What a database must offer to the index, and how one connection to it is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite as sqlite_dialect

from blobstore.backends.sqlite_pool import (  # the private ones for tests of forking
    _FORK_WAIT,  # noqa: F401
    Pool,
    _before_fork,  # noqa: F401
    _gate,  # noqa: F401
    make_immortal,
    opened,
)
from blobstore.errors import BlobStoreError

__all__ = ["Dialect", "Kept", "Pool", "make_immortal", "opened"]


class Kept:
    """A connection that is kept open between calls, in autocommit mode.

    Attributes
    ----------
    connection : sqlalchemy.Connection
        For statements that are made up anew at each call.
    driver : object
        The driver's own connection, for statements that were compiled once.
    snapshot : object or None
        Where the connection cannot see later changes: what the files looked like when it was
        opened. It is good for as long as they look the same.
    """

    __slots__ = ("connection", "driver", "snapshot")

    def __init__(self, connection: sa.Connection, snapshot: object = None) -> None:
        self.connection = connection
        self.driver: Any = connection.connection.driver_connection
        self.snapshot = snapshot


class Dialect(ABC):
    """One kind of database: how it is opened, locked, asked and understood.

    Attributes
    ----------
    kind : str
        "sqlite".
    place : str
        Which database, for messages; without any password.
    errors : tuple of exception types
        What its driver raises; given to `translate`.
    """

    kind: ClassVar[str]
    errors: ClassVar[tuple[type[Exception], ...]]
    place: str

    @property
    def label(self) -> str:
        """What the database is, for messages."""
        return f"the index {self.place}"

    @abstractmethod
    def prepare(self) -> None:
        """Make sure that there is a database of ours, if need be a new one."""

    @abstractmethod
    def connect(self) -> Kept:
        """Open a connection."""

    @abstractmethod
    def close(self, kept: Kept) -> None:
        """Close a connection."""

    @abstractmethod
    def current(self, kept: Kept) -> bool:
        """Whether what the connection shows is how things are."""

    @abstractmethod
    def begin(self, kept: Kept) -> None:
        """Begin a transaction that will write, with whatever lock that takes."""

    @abstractmethod
    def insert(self, table: sa.Table) -> sqlite_dialect.Insert:
        """Start an INSERT that can say what to do on a conflict."""

    @abstractmethod
    def compile(self, statement: sa.ClauseElement, order: tuple[str, ...]) -> str:
        """Turn a statement into text with parameters by position, in this order of names."""

    @abstractmethod
    def among(self, column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
        """Whether `column` is among the strings of one parameter, made by `strings`."""

    @abstractmethod
    def strings(self, values: Sequence[str]) -> object:
        """Make the parameter for `among`."""

    @abstractmethod
    def may_equal(
        self, document: sa.ColumnElement[Any], name: str, value: Any
    ) -> sa.ColumnElement[bool]:
        """Whether the JSON object `document` may have `value` under `name`.

        True for every document that has it; it may be true for others, too.
        """

    @abstractmethod
    def translate(self, exc: Exception, what: str) -> BlobStoreError:
        """Turn an error of the driver into ours; `what` was being done."""

    @abstractmethod
    def sync(self) -> None:
        """Return once all that was committed would survive a power cut."""

    def make_room(self, kept: Kept) -> bool:
        """Free disk space that the database can spare; whether there was any."""
        return False

    @abstractmethod
    def check(self, kept: Kept) -> list[str]:
        """Let the database look for damage in itself."""

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Facts for people."""
