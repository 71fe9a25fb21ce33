"""Connections to SQLite that are kept, what a fork does to them, and where WAL mode is unsafe.

Needs nothing but the standard library, so that whatever keeps something in SQLite can use it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from blobstore.errors import BlobStoreError, ClosedError, StorageError

C = TypeVar("C")


class Connector(Protocol[C]):
    """What a pool has to know of its connections."""

    @property
    def label(self) -> str:
        """What is being connected to, for messages: "the index /folder/index.db"."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What the driver raises; given to `translate`."""

    def connect(self) -> C:
        """Open a connection."""

    def close(self, kept: C, /) -> None:
        """Close a connection."""

    def current(self, kept: C, /) -> bool:
        """Whether what the connection shows is how things are."""

    def translate(self, exc: Exception, what: str) -> BlobStoreError:
        """Turn an error of the driver into ours; `what` was being done."""


class Holder(Protocol):
    """Somebody who keeps a connection in use for long, and can do without it when it has to be."""

    def let_go(self) -> None:
        """Give the connection back to its pool; called again if that was impossible just now."""

    def abandon(self) -> None:
        """Forget the connection without touching it, in a child that must not have it."""


_FORK_WAIT = 10.0
_TURN = 1.0
_gate = threading.Lock()
_open: set[object] = set()
_pools: weakref.WeakSet[Pool[Any]] = weakref.WeakSet()


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


class Pool(Generic[C]):
    """Connections kept open: the one used last is used next, each by one thread at a time.

    A process that forks must not hand an open SQLite connection to its child. Not even one that
    the child never touches: SQLite notes the locks of each file once per process, so the child
    would believe to hold the locks that only its parent has, and read and write without any.
    So all connections are closed just before a fork, and opened again when they are needed.

    Attributes
    ----------
    idle : list of connections
        Not in use; taken and given back at the end. `acquire` and `release` do it with care.
    writing : Lock
        Held while writing: the database lets only one write at a time, but waits by polling. It
        spares that polling, and nothing depends on it.
    holders : dict of Holder to None
        Who keeps a connection for longer than a call, and is asked for it before a fork. A
        holder enters itself after `acquire`, and leaves before `release`.
    """

    def __init__(self, connector: Connector[C]) -> None:
        self._connector = connector
        self._all: dict[C, object] = {}
        self.idle: list[C] = []
        self.closed = False
        self.forking = False
        self._torn = False
        self.writing = threading.Lock()
        self.holders: dict[Holder, None] = {}
        _pools.add(self)

    def acquire(self) -> C:
        """Take a connection; `release` must follow."""
        while True:
            try:
                kept = self.idle.pop()
            except IndexError:
                return self._connect()
            if self._connector.current(kept):
                return kept
            self._close(kept)

    def release(self, kept: C) -> None:
        """Give a connection back."""
        self.idle.append(kept)
        if self.closed or self.forking:
            self.drain()

    def dismiss(self, kept: C) -> None:
        """Close a connection instead of giving it back."""
        self._close(kept)

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

    def recall(self) -> None:
        """Ask for what is in use between calls."""
        for holder in list(self.holders):
            holder.let_go()

    def _connect(self) -> C:
        if self.closed:
            raise ClosedError(f"{self._connector.label} was closed: open the store again")
        if self._torn:
            raise StorageError(
                f"this process was forked while a thread of its parent was busy in "
                f"{self._connector.label} for longer than {_FORK_WAIT:g} s, so SQLite's locks cannot "
                "be trusted here: fork when no transaction is under way, or use 'spawn'"
            )
        token = _register()
        try:
            kept = self._connector.connect()
        except self._connector.errors as exc:
            _open.discard(token)
            raise self._connector.translate(exc, f"opening {self._connector.label}") from exc
        except BaseException:
            _open.discard(token)
            raise
        self._all[kept] = token
        return kept

    def _close(self, kept: C) -> None:
        self._connector.close(kept)
        _open.discard(self._all.pop(kept, None))

    def abandon(self) -> None:
        """Start afresh in a child, and never touch what is left of the parent's connections."""
        self.forking = False
        for holder in list(self.holders):
            holder.abandon()
        self.holders = {}
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
            pool.recall()
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


_NETWORK = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "afs", "davfs", "vboxsf"),
        *("ceph", "lustre", "glusterfs", "fuse.glusterfs", "gpfs", "beegfs"),
        *("fuse.sshfs", "fuse.s3fs", "fuse.rclone"),
    )
)


def on_network(folder: str, mounts: str = "/proc/mounts") -> bool:
    """Whether a folder lies on a file system that several machines share.

    Where the system does not tell (no /proc), the answer is no.
    """
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    real = Path(folder).resolve()
    best, kind = -1, ""
    for line in lines:
        _, point, found, *_ = line.split(" ")
        point = point.encode("utf-8", "surrogateescape").decode("unicode_escape")
        if real.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), found
    return kind in _NETWORK
