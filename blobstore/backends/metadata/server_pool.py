"""Connections to a database server that are kept, not more than so many, and what a fork does."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from typing import Any, Generic, Protocol, TypeVar

from blobstore.backends.sqlite_pool import make_immortal
from blobstore.errors import BlobStoreError, ClosedError, UnavailableError

C = TypeVar("C")


class Connector(Protocol[C]):
    """What a pool has to know of its connections."""

    @property
    def label(self) -> str:
        """What is being connected to, for messages."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What the driver raises; given to `translate`."""

    def connect(self) -> C:
        """Open a connection."""

    def close(self, kept: C, /) -> None:
        """Close a connection."""

    def fit(self, kept: C, /) -> bool:
        """Whether a connection is idle, and as far as can be seen from here, still good."""

    def translate(self, exc: Exception, what: str) -> BlobStoreError:
        """Turn an error of the driver into ours; `what` was being done."""

    def renew(self) -> None:
        """Start afresh in a forked child."""


_pools: weakref.WeakSet[ServerPool[Any]] = weakref.WeakSet()


class ServerPool(Generic[C]):
    """Connections to a server, each used by one thread at a time, the one used last first.

    A forked child never uses a connection of its parent, nor closes one: the server would take
    its good-bye for the parent's. It only forgets them, and opens its own.

    Parameters
    ----------
    connector : Connector
    size : int
        How many connections there may be at a time; whoever needs one more waits.
    timeout : float
        Seconds to wait for one.

    Attributes
    ----------
    idle : list of connections
        Not in use.
    """

    def __init__(self, connector: Connector[C], size: int, timeout: float) -> None:
        self._connector = connector
        self._size = size
        self._timeout = timeout
        self.closed = False
        self._start()
        _pools.add(self)

    def _start(self) -> None:
        self.idle: list[C] = []
        self._all: dict[C, None] = {}
        self._permits: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self._size):
            self._permits.put(None)

    def acquire(self) -> C:
        """Take a connection; `release` must follow.

        Raises
        ------
        UnavailableError
            All are in use for too long, or the server cannot be reached.
        ClosedError
        """
        permits = self._permits
        try:
            permits.get(timeout=self._timeout)
        except queue.Empty:
            raise UnavailableError(
                f"all {self._size} connections to {self._connector.label} were in use for "
                f"{self._timeout:g} s: use fewer threads, or add blobstore_pool_size= to the URL"
            ) from None
        try:
            while True:
                try:
                    kept = self.idle.pop()
                except IndexError:
                    return self._connect()
                if self._connector.fit(kept):
                    return kept
                self._close(kept)
        except BaseException:
            permits.put(None)
            raise

    def release(self, kept: C) -> None:
        """Give a connection back; one that is of no more use is closed."""
        try:
            if self._connector.fit(kept):
                self.idle.append(kept)
            else:
                self._close(kept)
        finally:
            self._permits.put(None)
        if self.closed:
            self.drain()

    def take_turn(self, timeout: float) -> threading.Lock | None:
        """Need no turn to write: the server lets many write at a time."""
        return None

    def renew_turn(self) -> None:
        """Nothing: there are no turns."""

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

    def abandon(self) -> None:
        """Start afresh in a child, and never touch what is left of the parent's connections."""
        if self._all:
            make_immortal(self._all)
        self._connector.renew()
        self._start()

    def _connect(self) -> C:
        if self.closed:
            raise ClosedError(f"{self._connector.label} was closed: open the store again")
        try:
            kept = self._connector.connect()
        except self._connector.errors as exc:
            raise self._connector.translate(exc, f"opening {self._connector.label}") from exc
        self._all[kept] = None
        return kept

    def _close(self, kept: C) -> None:
        self._all.pop(kept, None)
        self._connector.close(kept)


def _after_fork_in_child() -> None:
    for pool in list(_pools):
        pool.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
