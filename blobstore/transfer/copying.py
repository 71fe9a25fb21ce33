"""Copying, as one step of a transfer: what is the same is left, the rest moves in pieces."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Literal

from blobstore.errors import ConfigError, IntegrityError, KeyNotFoundError
from blobstore.protocols import ObjectStore
from blobstore.streams import CHUNK, as_contiguous
from blobstore.transfer.crew import Done

Compare = Literal["content", "size"]

_ATTEMPTS = 3
_PLAIN = (str, bytes, bool, int, type(None))


class _StoppedError(Exception):
    """The transfer ends while this object is half done."""


class _VanishedError(Exception):
    """The source says that there is no such object; its error is the cause."""


class Copying:
    """Copies objects of one store to another, except where that is not called for.

    Parameters
    ----------
    source, target : ObjectStore
    overwrite : bool
        False leaves what is there.
    compare : {"content", "size"} or None
        How an object is found to be the same; with None it is copied anyway.
    dry_run : bool
    stopping : callable
        Asked between the pieces of an object; once it says True, the object is dropped.

    Raises
    ------
    ConfigError
        The stores keep values of different kinds, or of a kind that has no size.
    """

    def __init__(
        self,
        source: ObjectStore,
        target: ObjectStore,
        *,
        overwrite: bool,
        compare: Compare | None,
        dry_run: bool,
        stopping: Callable[[], bool],
    ) -> None:
        self._is_bytes = _values_in_common(source, target) == "bytes"
        if compare == "size" and not self._is_bytes:
            raise ConfigError(
                "compare='size' is for stores of bytes, other values have no size of their own: "
                "use compare='content'"
            )
        self._source = source
        self._target = target
        self._overwrite = overwrite
        self._compare = compare
        self._dry_run = dry_run
        self._stopping = stopping

    def __call__(self, key: str) -> Sequence[Done]:
        """Copy one object, or pass over it; nothing is said of one that was dropped."""
        for attempt in range(_ATTEMPTS):
            try:
                return [self._copy(key)]
            except _StoppedError:
                return ()
            except _VanishedError as exc:
                if not self._source.exists(key):
                    break
                if attempt == _ATTEMPTS - 1 and exc.__cause__ is not None:
                    raise exc.__cause__ from None  # it is there, but cannot be had: an error
        return [Done("vanished", key)]

    def _copy(self, key: str) -> Done:
        if self._source is self._target or self._is_left(key):
            return Done("keep", key)
        if self._compare is None and self._dry_run:
            return Done("copy", key, self._source_size(key))
        if not self._is_bytes:
            return self._copy_value(key)
        if self._compare == "size" and self._target_size(key) == self._source_size(key):
            return Done("keep", key)
        with self._open_source(key) as file:
            if self._compare == "content" and self._is_same(file, key):
                return Done("keep", key)
            if self._dry_run:
                return Done("copy", key, self._source_size(key))
            file.seek(0)
            return self._write(file, key)

    def _is_left(self, key: str) -> bool:
        return not self._overwrite and self._target.exists(key)

    def _put(self, key: str, value: Any, size: int) -> Done:
        if self._overwrite:
            self._target.put(key, value)
        elif not self._target.put_if_absent(key, value):
            return Done("keep", key)  # somebody else put one since it was looked for
        return Done("copy", key, size)

    # --- bytes -----------------------------------------------------------------------------------

    def _source_size(self, key: str) -> int:
        if not self._is_bytes:
            return 0
        with _reading():
            return self._source.stat(key).size

    def _target_size(self, key: str) -> int | None:
        try:
            return self._target.stat(key).size
        except (KeyNotFoundError, IntegrityError):
            return None

    def _open_source(self, key: str) -> BinaryIO:
        with _reading():
            return _open(self._source, key)

    def _size_of(self, file: BinaryIO) -> int | None:
        """The size of an open object of the source; None if it had to be read for that."""
        if not self._source.capabilities.ranges and not isinstance(file, io.BytesIO):
            return None
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return size

    def _is_same(self, file: BinaryIO, key: str) -> bool:
        """Compare with what is there, which may be damaged; of the source, that is told later."""
        size = self._size_of(file)
        try:
            if self._target.capabilities.ranges and size not in (None, self._target_size(key)):
                return False
            with _open(self._target, key) as other:
                return self._is_same_content(file, other)
        except (KeyNotFoundError, IntegrityError):
            return False

    def _is_same_content(self, file: BinaryIO, other: BinaryIO) -> bool:
        while not self._stopping():
            with _reading():
                piece = _piece(file)
            if _piece(other) != piece:
                return False
            if len(piece) < CHUNK:
                return True
        raise _StoppedError

    def _write(self, file: BinaryIO, key: str) -> Done:
        hint = self._size_of(file)
        with _reading():
            piece = _piece(file)
        if len(piece) < CHUNK:
            return self._put(key, piece, len(piece))
        size = 0
        with self._target.writer(key, hint) as sink:
            while piece:
                if self._stopping():
                    raise _StoppedError
                sink.write(piece)
                size += len(piece)
                with _reading():
                    piece = _piece(file)
        return Done("copy", key, size)

    # --- other values ----------------------------------------------------------------------------

    def _copy_value(self, key: str) -> Done:
        with _reading():
            value: Any = self._source.get(key)
        if self._compare is not None and self._has_value(key, value):
            return Done("keep", key)
        return Done("copy", key) if self._dry_run else self._put(key, value, 0)

    def _has_value(self, key: str, value: Any) -> bool:
        try:
            return _is_same_value(self._target.get(key), value)
        except (KeyNotFoundError, IntegrityError):
            return False


def _values_in_common(source: ObjectStore, target: ObjectStore) -> str:
    values = source.capabilities.values
    if target.capabilities.values != values:
        raise ConfigError(
            f"{source!r} keeps {values} and {target!r} keeps {target.capabilities.values}: "
            "give two stores of one kind of values, for instance those beneath them"
        )
    return values


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Tell an absent object of the source from what the target may say."""
    try:
        yield
    except KeyNotFoundError as exc:
        raise _VanishedError from exc


def _open(store: ObjectStore, key: str) -> BinaryIO:
    """Open an object; a small one is read at once, as is one of a store that cannot stream."""
    can = store.capabilities
    if not can.streams or (can.ranges and store.stat(key).size < CHUNK):
        # Checked: None, from a store that swallows its errors, would become an empty object.
        return io.BytesIO(as_contiguous(store.get(key)))
    return store.open(key)


def _piece(file: BinaryIO) -> bytes:
    """Read `CHUNK` bytes, or what is left of them: a file may give less than it is asked for."""
    piece = file.read(CHUNK)
    while piece and len(piece) < CHUNK and (more := file.read(CHUNK - len(piece))):
        piece += more
    return piece


def _is_same_value(one: Any, other: Any) -> bool:
    """Whether two values are surely the same: 1, 1.0 and True are not."""
    if type(one) is not type(other):
        return False
    if type(one) is dict:
        return _is_same_value([*one.items()], [*other.items()])
    if type(one) in (list, tuple):
        return len(one) == len(other) and all(map(_is_same_value, one, other))
    if type(one) is io.BytesIO:
        return bool(one.getvalue() == other.getvalue())
    if type(one) is float:
        return repr(one) == repr(other)  # tells 0.0 from -0.0, and takes NaN for NaN
    return type(one) in _PLAIN and bool(one == other)
