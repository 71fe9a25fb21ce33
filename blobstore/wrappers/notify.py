"""A store that tells others what changes in it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from blobstore.errors import KeyNotFoundError, StorageError
from blobstore.protocols import ObjectStore
from blobstore.streams import Buffer, Sink
from blobstore.wrappers.base import WrapperSink, WrapperStore

if TYPE_CHECKING:
    from collections.abc import Callable

    ChangeHandler = Callable[[ObjectStore, str, str, Exception | None], object]
    ActionHandler = Callable[[ObjectStore, str, Exception | None], object]

logger = logging.getLogger(__name__)

Action = Literal["put", "delete"]

_Change = TypeVar("_Change", bound="ChangeHandler")
_Act = TypeVar("_Act", bound="ActionHandler")

PUT: Action = "put"
"""What `on_change` handlers are told when an object was written, in whichever way."""

DELETE: Action = "delete"
"""What they are told when one was removed."""


class NotifyingStore(WrapperStore):
    """Calls handlers after each attempt to write or to remove an object, in whichever way.

    Handlers are called in the thread of the change, in the order in which they were added, with
    the store *beneath* (so a handler that writes does not call itself), the key, and None or the
    error, which is raised afterwards, unchanged. `put_if_absent` is told of if it wrote, `copy` is
    a put of its target, a `writer` is told of at its end or when it fails (not when its user gives
    up), and `delete_many` is told of key by key, for keys that were there.

    What a handler raises is logged, and nothing else: the change has happened by then, and the
    other handlers are called.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = NotifyingStore(DictStore())
    >>> @store.on_change
    ... def tell(store, action, key, error):
    ...     print(action, key, error)
    >>> store.put("key", b"1")
    put key None
    >>> store.delete("key")
    delete key None
    """

    PUT: ClassVar[Action] = PUT
    DELETE: ClassVar[Action] = DELETE

    not_io: ClassVar[frozenset[str]] = frozenset({"on_change", "on_put", "on_delete"})
    """Methods that do not touch the store, and that an asynchronous face calls directly."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        # Only ever appended to, which Python makes atomic: handlers may be added at any time.
        self._handlers: list[ChangeHandler] = []

    def on_change(self, handler: _Change) -> _Change:
        """Call ``handler(store, action, key, error)`` after each change.

        Parameters
        ----------
        handler : callable

        Returns
        -------
        callable
            The handler, so that this works as a decorator.
        """
        self._handlers.append(handler)
        return handler

    def on_put(self, handler: _Act) -> _Act:
        """Call ``handler(store, key, error)`` after each attempt to write an object.

        Parameters
        ----------
        handler : callable

        Returns
        -------
        callable
            The handler, so that this works as a decorator.
        """
        self._handlers.append(_Only(PUT, handler))
        return handler

    def on_delete(self, handler: _Act) -> _Act:
        """Call ``handler(store, key, error)`` after each attempt to remove an object.

        Parameters
        ----------
        handler : callable

        Returns
        -------
        callable
            The handler, so that this works as a decorator.
        """
        self._handlers.append(_Only(DELETE, handler))
        return handler

    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object, and tell."""
        with self._telling(PUT, key):
            self.store.put(key, data)

    def delete(self, key: str) -> None:
        """Remove an object, and tell."""
        with self._telling(DELETE, key):
            self.store.delete(key)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece, and tell at the end."""
        try:
            return _TellingSink(self.store.writer(key, size_hint), self, key)
        except Exception as exc:
            self._tell(PUT, key, exc)
            raise

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store, and tell of the target."""
        with self._telling(PUT, target):
            self.store.copy(source, target)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one, and tell if it was written."""
        try:
            written = self.store.put_if_absent(key, data)
        except Exception as exc:
            self._tell(PUT, key, exc)
            raise
        if written:
            self._tell(PUT, key, None)
        return written

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects one by one, and tell of each that was there; absent ones are fine."""
        if not self._handlers:
            self.store.delete_many(keys)
            return
        self.store.delete_many([])  # a closed or read-only store says so, also to no keys
        failed: StorageError | None = None
        for key in keys:
            try:
                self._delete_if_there(key)
            except StorageError as exc:
                failed = exc
        if failed is not None:
            raise failed

    def _delete_if_there(self, key: str) -> None:
        # Some servers do not tell whether what they removed was there, so that they are asked first.
        if self.store.capabilities.readable and not self.store.exists(key):
            return
        try:
            self.store.delete(key)
        except KeyNotFoundError:  # somebody else was faster
            return
        except Exception as exc:
            self._tell(DELETE, key, exc)
            raise
        self._tell(DELETE, key, None)

    @contextlib.contextmanager
    def _telling(self, action: Action, key: str) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            self._tell(action, key, exc)
            raise
        self._tell(action, key, None)

    def _tell(self, action: Action, key: str, error: Exception | None) -> None:
        for handler in tuple(self._handlers):
            # A handler is somebody else's code and may raise anything. That must hide neither the
            # store's own error nor that the change was made, nor keep it from other handlers.
            try:
                handler(self.store, action, key, error)
            except Exception:
                logger.exception("a handler failed after %s of %r", action, key)


class _Only:
    """A handler of one action; a class, not a closure: it can be pickled."""

    def __init__(self, action: Action, handler: ActionHandler) -> None:
        self._action = action
        self._handler = handler

    def __call__(
        self, store: ObjectStore, action: str, key: str, error: Exception | None
    ) -> object:
        return self._handler(store, key, error) if action == self._action else None


class _TellingSink(WrapperSink):
    """Tells once: when the store fails, or when the object is there."""

    def __init__(self, inner: Sink, notifier: NotifyingStore, key: str) -> None:
        super().__init__(inner)
        self._notifier = notifier
        self._key = key
        self._told = False

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except Exception as exc:
            self._tell(exc)
            raise

    def path(self) -> Path:
        try:
            return super().path()
        except Exception as exc:
            self._tell(exc)
            raise

    def commit(self) -> None:
        try:
            super().commit()
        except Exception as exc:
            self._tell(exc)
            raise
        self._tell(None)

    def _tell(self, error: Exception | None) -> None:
        if not self._told:
            self._told = True
            self._notifier._tell(PUT, self._key, error)  # noqa: SLF001 - a part of it
