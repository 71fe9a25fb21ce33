"""A store that tries again what failed for a passing reason."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Generic, Protocol, TypeVar

import tenacity

from blobstore.entry import ObjectStat
from blobstore.errors import (
    BlobStoreError,
    ClosedError,
    ConfigError,
    IntegrityError,
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    NotSupportedError,
    UnavailableError,
    from_os_error,
)
from blobstore.lending import LentFile, SinkTurn
from blobstore.protocols import Leftover, ObjectStore
from blobstore.streams import (
    CHUNK,
    Buffer,
    PositionedReader,
    Sink,
    Source,
    as_contiguous,
    copy_stream,
)
from blobstore.wrappers.base import WrapperStore
from blobstore.wrappers.stream import IN_MEMORY

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

T = TypeVar("T")

_READ_AHEAD = 1 << 17

# What trying again cannot mend, whatever `retry_on` says.
_LASTING = (
    ClosedError,
    IntegrityError,
    InvalidInputError,
    KeyExistsError,
    KeyNotFoundError,
    NotSupportedError,
)


class RetryingStore(WrapperStore):
    """Tries again what failed for a passing reason, after a random, growing time.

    Passing are errors whose `retryable` is True, and those of `retry_on`; never wrong arguments,
    absent objects, damaged ones, or what a store cannot do. The last error is raised itself, with
    a note that says how often it was tried.

    An answer that was lost is not taken for a failure: if an earlier attempt may have been carried
    out, a `delete` that then finds nothing has done its work, and a `put_if_absent` that then
    finds an object compares it before it says no (so of two callers with the *same* bytes, both
    may be told yes). If it is never found out, the error's `outcome` is "unknown".

    Written pieces are gathered, up to 8 MiB in memory and more in a temporary file, and go to the
    store beneath at the end, as often as needed. Reading goes on where it was, in the same version
    of the object: if that is gone, or the store gives no etags to tell, it is `UnavailableError`.
    For that, each opening asks for a `stat`: put this store around the one that may fail, not
    around one that decompresses. A listing is tried again up to its first key; after that an error
    is raised, since what was given before would have to be remembered.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.
    attempts : int
        At most, with the first.
    wait, max_wait : float
        Seconds: the longest time before the second attempt, doubled before each one after that, up
        to `max_wait`. The time is random between nothing and that.
    timeout : float, optional
        Seconds after which, counted from the first attempt, no other one begins.
    retry_on : exception type, or sequence of them, optional
        More errors that pass, for stores which raise errors that are not ours.
    sleep : callable
        Called with the seconds to wait.

    Raises
    ------
    ConfigError
        A parameter is wrong.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> store = RetryingStore(DictStore(), attempts=3)
    >>> store.put("key", b"1")
    >>> store.get("key")
    b'1'
    """

    not_io: ClassVar[frozenset[str]] = frozenset({"is_passing"})
    """Methods that its async face does not await."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        attempts: int = 5,
        wait: float = 0.1,
        max_wait: float = 10.0,
        timeout: float | None = None,
        retry_on: type[Exception] | Iterable[type[Exception]] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(store)
        if type(attempts) is not int or attempts < 1:
            raise ConfigError(f"attempts must be an int of at least 1, not {attempts!r}")
        self.attempts = attempts
        self.wait = _seconds("wait", wait)
        self.max_wait = _seconds("max_wait", max_wait)
        self.timeout = None if timeout is None else _seconds("timeout", timeout)
        self._retry_on = _error_types(retry_on)
        self._sleep = sleep

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        return self._retry(lambda: self.store.get(key), "get", key)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self._retry(lambda: self.store.exists(key), "exists", key)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys that start with `prefix`; the first is asked for now."""
        return self._retry(lambda: _begun(self.store.keys(prefix)), "keys", prefix)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object."""
        return self._retry(lambda: self.store.get_range(key, start, stop), "get_range", key)

    def open(self, key: str) -> BinaryIO:
        """Open an object; what fails in the middle goes on from there."""
        if not self._reads_pieces:
            return self._retry(lambda: self.store.open(key), "open", key)
        held = _Held(self, key, lambda: self.store.open(key))
        return io.BufferedReader(_ResumingReader(held), _READ_AHEAD)

    def source(self, key: str) -> Source:
        """Prepare an object for reading in several ways."""
        if not self._reads_pieces:
            return self._retry(lambda: self.store.source(key), "source", key)
        return _ResumingSource(self, key)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of an object."""
        return self._retry(lambda: self.store.stat(key), "stat", key)

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of its own."""
        return self._retry(lambda: self.store.local_path(key), "local_path", key)

    def leftovers(self) -> Iterator[Leftover]:
        """What interrupted writers left behind; the first is asked for now."""
        return self._retry(lambda: _begun(self.store.leftovers()), "leftovers")

    # --- writing ---------------------------------------------------------------------------------

    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object."""
        self._change(lambda _: self.store.put(key, data), "put", key)

    def delete(self, key: str) -> None:
        """Remove an object; it may be gone by an earlier attempt whose answer was lost."""

        def attempt(doubt: _Doubt) -> None:
            try:
                self.store.delete(key)
            except KeyNotFoundError:
                if not doubt.landed:
                    raise

        self._change(attempt, "delete", key)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Gather an object, and write it at the end."""
        # A wrong key is told now, not after everything was written.
        self._retry(lambda: self.store.writer(key, size_hint).abort(), "writer", key)
        return _SpoolingSink(self, key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are fine."""
        found = list(keys)
        self._change(lambda _: self.store.delete_many(found), "delete_many")

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store."""
        self._change(lambda _: self.store.copy(source, target), "copy", source, target)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one; it may be there by an earlier attempt."""
        if self.store.capabilities.values == "bytes":
            data = as_contiguous(data)

        def attempt(doubt: _Doubt) -> bool:
            written = self.store.put_if_absent(key, data)
            return written or (doubt.landed and self._holds(key, data))

        return self._change(attempt, "put_if_absent", key)

    def sync(self, keys: Iterable[str]) -> None:
        """Return once these objects would survive a power cut."""
        found = list(keys)
        self._retry(lambda: self.store.sync(found), "sync")

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`."""
        self._change(lambda _: self.store.remove_leftover(name), "remove_leftover", name)

    # --- trying again ----------------------------------------------------------------------------

    def is_passing(self, error: BaseException) -> bool:
        """Whether what failed like this is tried again."""
        if isinstance(error, _LASTING):
            return False
        ours = isinstance(error, BlobStoreError) and error.retryable
        return ours or isinstance(error, self._retry_on)

    def _retry(self, work: Callable[[], T], *what: str) -> T:
        stop: Any = tenacity.stop_after_attempt(self.attempts)
        if self.timeout is not None:
            stop |= tenacity.stop_before_delay(self.timeout)
        # One for each call: it keeps count of the attempts, and calls may be nested.
        retrying = tenacity.Retrying(
            sleep=self._sleep,
            stop=stop,
            wait=tenacity.wait_random_exponential(multiplier=self.wait, max=self.max_wait),
            retry=tenacity.retry_if_exception(self.is_passing),
            before_sleep=lambda state: _log(what, state),
            reraise=True,
        )
        try:
            return retrying(work)
        except Exception as exc:
            if (tried := retrying.statistics.get("attempt_number", 1)) > 1:
                exc.add_note(f"({_words(what)} was tried {tried} times)")
            raise

    def _change(self, work: Callable[[_Doubt], T], *what: str) -> T:
        """Try again what changes something, and never call a change failed that may have landed."""
        doubt = _Doubt(self)

        def attempt() -> T:
            with doubt:
                return work(doubt)

        try:
            return self._retry(attempt, *what)
        except Exception as exc:
            if doubt.landed and isinstance(exc, UnavailableError):
                exc.outcome = "unknown"
            elif doubt.landed:
                exc.add_note("(an earlier attempt may have been carried out; its answer was lost)")
            raise

    def _holds(self, key: str, data: Buffer) -> bool:
        try:
            return self.store.get(key) == data
        except KeyNotFoundError:  # removed meanwhile, by whomever: there is nothing to claim
            return False

    @property
    def _reads_pieces(self) -> bool:
        """Whether the store beneath may fail after an opening, which else reads everything."""
        beneath = self.store.capabilities
        return beneath.ranges or beneath.streams

    def _shown(self) -> dict[str, Any]:
        return {"attempts": self.attempts}


class _Doubt:
    """Remembers whether an attempt that failed may have been carried out after all."""

    def __init__(self, store: RetryingStore) -> None:
        self._store = store
        self.landed = False

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is not None and self._store.is_passing(exc):
            self.landed |= getattr(exc, "outcome", "unknown") == "unknown"


class _SpoolingSink(Sink):
    """Gathers an object, so that it can be written more than once."""

    def __init__(self, store: RetryingStore, key: str) -> None:
        self._store = store
        self._key = key
        self._spool: tempfile.SpooledTemporaryFile[bytes] | None = None
        self._lent: LentFile | None = None
        self._turn = SinkTurn(key)
        self.location = key

    def write(self, data: Buffer, /) -> int:
        view = as_contiguous(data)
        self._turn.write()
        if self._spool is None:
            self._spool = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - closed by abort
        try:
            return self._spool.write(view)
        except OSError as exc:
            raise from_os_error(exc, "writing a temporary file", location=self._key) from exc

    def path(self) -> Path:
        self._turn.lend()
        self._lent = LentFile(self._key)
        return self._lent.path

    def commit(self) -> None:
        self._turn.commit()
        with self._gathered() as file:
            self.location = self._store._change(  # noqa: SLF001 - a part of it
                lambda _: self._publish(file), "writer", self._key
            )
        self.abort()

    def abort(self) -> None:
        self._turn.abort()
        if self._spool is not None:
            self._spool.close()
        if self._lent is not None:
            self._lent.remove()

    def _gathered(self) -> contextlib.AbstractContextManager[Any]:
        if self._lent is not None:
            return self._lent.open()
        return contextlib.nullcontext(self._spool or io.BytesIO())

    def _publish(self, file: BinaryIO) -> str:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        with self._store.store.writer(self._key, size) as sink:
            copy_stream(file, sink)
        return sink.location


class _Closing(Protocol):
    def close(self) -> None: ...


H = TypeVar("H", bound=_Closing)


class _Held(Generic[H]):
    """Something open over one version of an object, and opened again over the same one.

    Parameters
    ----------
    store : RetryingStore
    key : str
    opener : callable
    shared : bool
        Whether several threads use what is open: then what failed stays open until the end.
    part_of : _Held, optional
        What `opener` opens it from, and that sees to the version.
    """

    def __init__(
        self,
        store: RetryingStore,
        key: str,
        opener: Callable[[], H],
        *,
        shared: bool = False,
        part_of: _Held[Any] | None = None,
    ) -> None:
        self.store = store
        self.key = key
        self._opener = opener
        self._shared = shared
        self._lock = threading.Lock()
        self._open: H | None = None
        self._failed: list[H] = []
        self._closed = False
        self._checks = part_of is None
        if part_of is None:
            self._stat = store._retry(self._begin, "open", key)  # noqa: SLF001 - a part of it
        else:
            self._stat = part_of._stat  # noqa: SLF001 - of the same class
            self._open = opener()
        self._given = shared  # a source tells its size at once

    def use(self, work: Callable[[H], T]) -> T:
        """Do something with it, again if that fails and the version can be told for sure."""
        if self._given and self._stat.etag is None:
            return work(self._current())
        return self.store._retry(  # noqa: SLF001 - a part of it
            lambda: self._attempt(work), "read", self.key
        )

    def close(self) -> None:
        """Close it."""
        with self._lock:
            self._closed = True
            held, self._open = self._open, None
            failed, self._failed = self._failed, []
        for each in failed:
            _close_failed(each)
        if held is not None:
            held.close()

    def _begin(self) -> ObjectStat:
        # Before, not after: then a later look cannot mistake a newer version for the one opened.
        stat = self.store.store.stat(self.key)
        self._open = self._opener()
        return stat

    def _attempt(self, work: Callable[[H], T]) -> T:
        held = self._current()
        try:
            result = work(held)
        except Exception as exc:
            if self.store.is_passing(exc):
                self._drop(held)
            raise
        self._given = True
        return result

    def _current(self) -> H:
        with self._lock:
            if self._closed:
                raise ClosedError(f"what was opened of {self.key!r} was closed: open it again")
            if self._open is None:
                self._open = self._reopen()
            return self._open

    def _drop(self, held: H) -> None:
        with self._lock:
            if self._open is held:
                self._open = None
                self._failed += [held] if self._shared else []
        if not self._shared:
            _close_failed(held)

    def _reopen(self) -> H:
        self._check()
        held = self._opener()
        try:
            self._check()
        except BaseException:
            held.close()
            raise
        return held

    def _check(self) -> None:
        if not self._checks:
            return
        try:
            if self.store.store.stat(self.key) == self._stat:
                return
            what = "replaced"
        except KeyNotFoundError:
            what = "removed"
        error = UnavailableError(
            f"reading {self.key!r} failed in the middle, and it was {what} since: open it again",
            location=self.key,
        )
        error.retryable = False  # of this reading; another opening finds what is there now
        raise error


class _ResumingReader(PositionedReader):
    """Reads on where it was when reading failed."""

    def __init__(self, held: _Held[BinaryIO]) -> None:
        super().__init__()
        self._held = held

    def end(self) -> int:
        return self._held.use(lambda raw: raw.seek(0, io.SEEK_END))

    def read_at(self, position: int, buffer: memoryview) -> int:
        chunk = self._read(position, len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def readall(self) -> bytes:
        # The inherited one asks for a few KiB at a time.
        return b"".join(self._rest())

    def close(self) -> None:
        if not self.closed:
            self._held.close()
        super().close()

    def _rest(self) -> Iterator[bytes]:
        while chunk := self._read(self._position, CHUNK):
            self._position += len(chunk)
            yield chunk

    def _read(self, position: int, size: int) -> bytes:
        def attempt(raw: BinaryIO) -> bytes:
            if raw.tell() != position:
                raw.seek(position)
            return raw.read(size)

        return self._held.use(attempt)


class _ResumingSource(Source):
    """Reads again what failed, in the same version of the object."""

    def __init__(self, store: RetryingStore, key: str) -> None:
        self._held = _Held(store, key, lambda: store.store.source(key), shared=True)
        self.size = self._held.use(lambda source: source.size)

    def open(self) -> BinaryIO:
        held = self._held
        reader = _Held(
            held.store,
            held.key,
            lambda: held.use(lambda source: source.open()),
            part_of=held,
        )
        return io.BufferedReader(_ResumingReader(reader), _READ_AHEAD)

    def read(self) -> bytes:
        return self._held.use(lambda source: source.read())

    def read_range(self, start: int, stop: int) -> bytes:
        return self._held.use(lambda source: source.read_range(start, stop))

    @contextlib.contextmanager
    def path(self) -> Iterator[Path]:
        with contextlib.ExitStack() as stack:
            yield self._held.use(lambda source: stack.enter_context(source.path()))

    def close(self) -> None:
        self._held.close()


def _begun(found: Iterator[T]) -> Iterator[T]:
    """The same, with the first already asked for."""
    for first in found:
        return itertools.chain((first,), found)
    return iter(())


def _close_failed(held: _Closing) -> None:
    with contextlib.suppress(BlobStoreError, OSError):  # it has failed already, and that was told
        held.close()


def _words(what: tuple[str, ...]) -> str:
    operation, *keys = what
    return " ".join((operation, *map(repr, keys)))


def _log(what: tuple[str, ...], state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    logger.info(
        "%s failed %d times, trying again in %.2f s: %s",
        _words(what), state.attempt_number, state.upcoming_sleep, error,
    )  # fmt: skip


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ConfigError(f"{name} must be a number of seconds, not {value!r}")
    return value


def _error_types(retry_on: object) -> tuple[type[Exception], ...]:
    if retry_on is None:
        return ()
    types = (retry_on,) if isinstance(retry_on, type) else retry_on
    if not isinstance(types, Iterable):
        raise ConfigError(f"retry_on must be types of exceptions, not {retry_on!r}")
    found: tuple[Any, ...] = tuple(types)
    if not all(isinstance(each, type) and issubclass(each, Exception) for each in found):
        raise ConfigError(f"retry_on must be types of exceptions, not {retry_on!r}")
    return found
