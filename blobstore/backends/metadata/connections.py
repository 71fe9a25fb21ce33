"""What a database must offer, the connections to it that are kept, and what a fork does to them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite as sqlite_dialect

from blobstore.errors import BlobStoreError, ClosedError, StorageError


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


_FORK_WAIT = 10.0
_TURN = 1.0
_gate = threading.Lock()
_open: set[object] = set()
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


@contextlib.contextmanager
def opened() -> Iterator[None]:
    """Say that a connection is open during the block, so that a fork waits for its end."""
    token = _register()
    try:
        yield
    finally:
        _open.discard(token)


def _register() -> object:
    token = object()
    with _gate:  # closed while the process forks
        _open.add(token)
    return token


class Pool:
    """Connections kept open: the one used last is used next, each by one thread at a time.

    A process that forks must not hand an open SQLite connection to its child. Not even one that
    the child never touches: SQLite notes the locks of each file once per process, so the child
    would believe to hold the locks that only its parent has, and read and write without any.
    So all connections are closed just before a fork, and opened again when they are needed.

    Attributes
    ----------
    idle : list of Kept
        Not in use; taken and given back at the end. `acquire` and `release` do it with care.
    writing : Lock
        Held while writing: the database lets only one write at a time, but waits by polling. It
        spares that polling, and nothing depends on it.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._all: dict[Kept, object] = {}
        self.idle: list[Kept] = []
        self.closed = False
        self.forking = False
        self._torn = False
        self.writing = threading.Lock()
        _pools.add(self)

    def acquire(self) -> Kept:
        """Take a connection; `release` must follow."""
        while True:
            try:
                kept = self.idle.pop()
            except IndexError:
                return self._connect()
            if kept.snapshot is None or self._dialect.current(kept):
                return kept
            self._close(kept)

    def release(self, kept: Kept) -> None:
        """Give a connection back."""
        self.idle.append(kept)
        if self.closed or self.forking:
            self.drain()

    def take_turn(self, timeout: float) -> threading.Lock | None:
        """Wait to be the thread that writes; None after a while, when the database has to decide.

        The lock that is given is to be released, also if `writing` is another one by then.
        """
        lock = self.writing
        return lock if lock.acquire(timeout=min(timeout, _TURN)) else None

    def renew_turn(self) -> None:
        """Replace a lock that somebody holds who is not writing.

        To be called in a write transaction that began without a turn: its holder was interrupted,
        by Ctrl-C for instance, between taking it and saying so.
        """
        self.writing = threading.Lock()

    def close(self) -> None:
        """Close all connections; those in use when they are given back."""
        self.closed = True
        self.drain()

    def drain(self) -> None:
        """Close what is not in use; it is opened again when it is needed."""
        while True:
            try:
                kept = self.idle.pop()
            except IndexError:
                return
            self._close(kept)

    def _connect(self) -> Kept:
        if self.closed:
            raise ClosedError(f"the index {self._dialect.place} was closed: open the store again")
        if self._torn:
            raise StorageError(
                f"this process was forked while a thread of its parent was busy in the index "
                f"{self._dialect.place} for longer than {_FORK_WAIT:g} s, so SQLite's locks cannot be "
                "trusted here: fork when no transaction is under way, or use 'spawn'"
            )
        token = _register()
        try:
            kept = self._dialect.connect()
        except self._dialect.errors as exc:
            _open.discard(token)
            raise self._dialect.translate(exc, f"opening the index {self._dialect.place}") from exc
        except BaseException:
            _open.discard(token)
            raise
        self._all[kept] = token
        return kept

    def _close(self, kept: Kept) -> None:
        self._dialect.close(kept)
        _open.discard(self._all.pop(kept, None))

    def abandon(self) -> None:
        """Start afresh in a child, and never touch what is left of the parent's connections."""
        self.forking = False
        if self._all:
            self._torn = True
            make_immortal(self._all)
        self._all = {}
        self.idle = []
        self.writing = threading.Lock()


def make_immortal(thing: object) -> None:
    """Keep `thing` from ever being finalised, also at the end of the process."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


_forking = threading.local()


def _before_fork() -> None:
    """Let no connection be open, nor be opened, while the process forks."""
    deadline = time.monotonic() + _FORK_WAIT
    _forking.gate = _gate.acquire(timeout=_FORK_WAIT)
    for pool in list(_pools):
        pool.forking = True  # so that what is given back is closed, and not taken again at once
    while True:
        for pool in list(_pools):
            pool.drain()
        if not _open or time.monotonic() > deadline:
            return
        time.sleep(0.0005)  # other threads finish what they are doing


def _after_fork() -> None:
    for pool in list(_pools):
        pool.forking = False
    if _forking.gate:
        _gate.release()


def _after_fork_in_child() -> None:
    global _gate, _open
    _gate, _open = threading.Lock(), set()
    for pool in list(_pools):
        pool.abandon()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)
