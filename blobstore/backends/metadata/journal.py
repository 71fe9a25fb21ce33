"""A checksummed, append-only journal file, and the lock that its writers take.

Each line is one commit: 16 hexadecimal digits, a space, JSON, a newline. The digits are the XXH3-64
of the JSON, seeded with the digits of the line before (the first line with a seed that belongs to
this one journal), so a line that was altered, dropped, repeated or taken from another journal does
not pass. An incomplete last line is what a killed writer left: readers pass over it, and the next
writer cuts it off.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import xxhash
from filelock import lock_descriptor, unlock_descriptor

from blobstore.errors import IntegrityError, UnavailableError, from_os_error

_DIGITS = 16
_HEAD = _DIGITS + 1  # the digits and the space
_READ = 1 << 26

_FIRST_WAIT = 0.0002
_LONGEST_WAIT = 0.02


def checksum(data: bytes, seed: int = 0) -> int:
    """XXH3-64 of `data`: 64 bits, enough to notice damage, no defence against malice.

    Examples
    --------
    >>> f"{checksum(b''):016x}"
    '2d06800538d394c2'
    """
    value: int = xxhash.xxh3_64_intdigest(data, seed)
    return value


@dataclass(frozen=True, slots=True)
class Mark:
    """A place between two lines: its byte offset, and the checksum of the line before it."""

    offset: int
    chain: int


class Journal:
    """One journal file, read line by line, and appended to at its end.

    Only one thread may read at a time, and only the holder of the `WriterLock` may append, after
    reading all there is. Appending does not move `mark`: the writer calls `advance` once it has
    taken in its own line, for a reading thread may have been faster.

    Parameters
    ----------
    path : Path
        An existing file.
    seed : int
        64 bits that belong to this journal alone.

    Attributes
    ----------
    mark : Mark
        Where the next unread line starts.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "example.journal")
    ...     path.touch()
    ...     with contextlib.closing(Journal(path, 7)) as journal:
    ...         _ = journal.append(b'{"n":1}')
    ...         list(journal.read())
    [{'n': 1}]
    """

    _reader = _writer = -1

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.mark = Mark(0, seed)
        self._writer = -1
        self._reader = -1
        self._reader = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def stat(self) -> os.stat_result:
        """Facts of the open file; `st_nlink` is 0 once it was folded away."""
        return os.fstat(self._reader)

    def read(self) -> Iterator[Any]:
        """Give the unread lines, decoded; `mark` passes a line when the next one is asked for.

        Raises
        ------
        IntegrityError
            A whole line does not match its checksum, or lines that were read before are gone.
        """
        while data := self._unread():
            start = 0
            while (end := data.find(b"\n", start)) >= 0:
                line = data[start:end]
                after = self._verify(line)
                if after is None:
                    break
                yield _decode(line)
                self.mark = after
                start = end + 1
            else:
                self._check_tail(data[start:])
                return

    def append(self, payload: bytes) -> Mark:
        """Add a line, after cutting off what a killed writer left.

        Parameters
        ----------
        payload : bytes
            JSON without line breaks.

        Returns
        -------
        Mark
            The place after the new line, for `advance`.

        Raises
        ------
        StorageError
            It could not be written; the file is as it was, or has an incomplete last line.
        """
        mark = self.mark
        chain = checksum(payload, mark.chain)
        line = b"%016x %b\n" % (chain, payload)
        try:
            self._cut(mark.offset)
            self._write(line, mark.offset)
        except OSError as exc:
            raise from_os_error(exc, f"appending {len(line)} bytes to {self.path}") from exc
        return Mark(mark.offset + len(line), chain)

    def advance(self, start: Mark, end: Mark) -> bool:
        """Move `mark` over a line just appended; False if a reader has done so already."""
        if self.mark != start:
            return False
        self.mark = end
        return True

    def sync(self) -> None:
        """Return once the file would survive a power cut."""
        os.fsync(self._reader)

    def close(self) -> None:
        """Let go of the file. Calling it again does nothing."""
        for descriptor in (self._reader, self._writer):
            if descriptor >= 0:
                os.close(descriptor)
        self._reader = self._writer = -1

    def __del__(self) -> None:
        # A journal that was folded away may still be in the hands of a thread that syncs it, so
        # the last one to let go closes it.
        self.close()

    def _unread(self) -> bytes:
        """The bytes after `mark`."""
        size = self.stat().st_size
        if size < self.mark.offset:
            raise IntegrityError(
                f"{self.path} was cut off at byte {size}, before the end of commits that were read "
                f"from it (byte {self.mark.offset}): restore the folder from a backup, or open the "
                "store anew to go on with what is left"
            )
        chunks = []
        offset = self.mark.offset
        while offset < size and (
            chunk := os.pread(self._reader, min(_READ, size - offset), offset)
        ):
            chunks.append(chunk)
            offset += len(chunk)
        return b"".join(chunks)

    def _verify(self, line: bytes) -> Mark | None:
        """The mark after `line`, which stands at `mark`; None if it has to be read again."""
        chain = checksum(line[_HEAD:], self.mark.chain)
        if line[:_HEAD] == b"%016x " % chain:
            return Mark(self.mark.offset + len(line) + 1, chain)
        again = os.pread(self._reader, len(line) + 1, self.mark.offset)
        if again != line + b"\n":
            # A writer was just replacing what a killed one left, and we saw some of both.
            return None
        raise self._damaged("does not match its checksum")

    def _check_tail(self, tail: bytes) -> None:
        """Refuse a last line that is whole, but whose line break was altered."""
        if len(tail) > _HEAD and tail[:_HEAD] == b"%016x " % checksum(
            tail[_HEAD:-1], self.mark.chain
        ):
            raise self._damaged("ends in a byte that is no line break")

    def _damaged(self, what: str) -> IntegrityError:
        offset = self.mark.offset
        return IntegrityError(
            f"{self.path} is damaged: the line at byte {offset} {what}. Restore the folder from a "
            f"backup; or keep a copy and cut the file there (truncate -s {offset} "
            f"{self.path.name}), which gives up the commits from that line on"
        )

    def _cut(self, offset: int) -> None:
        """Open the file for appending, and remove what stands after the last whole line."""
        if self._writer < 0:
            self._writer = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        if os.fstat(self._writer).st_size > offset:
            os.ftruncate(self._writer, offset)

    def _write(self, line: bytes, offset: int) -> None:
        written = os.write(self._writer, line)
        try:
            while written < len(line):  # a full disk, or more than 2 GiB
                written += os.write(self._writer, line[written:])
        except OSError:
            # If this fails too, what is there is an incomplete last line, which harms nobody.
            with contextlib.suppress(OSError):
                os.ftruncate(self._writer, offset)
            raise


def _decode(line: bytes) -> Any:
    """The JSON of a line whose checksum is right."""
    return json.loads(line[_HEAD:])


class WriterLock:
    """Keeps out other writers, in this process and in others; released when its holder dies.

    The same lock as ``filelock.FileLock(path)``, on a descriptor that is kept open: taking it costs
    three system calls. Not reentrant.

    Parameters
    ----------
    path : Path
        Made if it does not exist, and left in place.
    timeout : float
        Seconds to wait before giving up.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = WriterLock(Path(folder, "a.lock"), timeout=1)
    ...     with lock:
    ...         print(WriterLock(lock.path, timeout=0).acquire(wait=False))
    ...     lock.close()
    False
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        self._name = os.fspath(path)
        self._descriptor = -1
        self._mutex = threading.Lock()

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock; False if `wait` is False and somebody else has it.

        Raises
        ------
        UnavailableError
            Somebody else had it for longer than the timeout.
        StorageError
            The lock file cannot be opened or locked.
        """
        deadline = time.monotonic() + (self.timeout if wait else 0)
        if self._mutex.acquire(timeout=self.timeout if wait else 0):
            taken = False
            try:
                taken = self._acquire_file(deadline)
            except BaseException as exc:
                self._close_descriptor()  # interrupted: nobody knows whether it is locked
                if not isinstance(exc, OSError):
                    raise
                raise from_os_error(exc, f"locking {self.path}") from exc
            finally:
                if not taken:
                    self._mutex.release()
            if taken:
                return True
        if not wait:
            return False
        raise UnavailableError(
            f"{self.path} was held by another writer for {self.timeout:g} s: try again, or open "
            "the store with a longer timeout; nothing was changed"
        )

    def release(self) -> None:
        """Let the next writer in."""
        try:
            unlock_descriptor(self._descriptor)
        except OSError:
            self._close_descriptor()  # which unlocks as well
        finally:
            self._mutex.release()

    def close(self) -> None:
        """Let go of the file, unless a writer is at work. Calling it again does nothing."""
        if self._mutex.acquire(blocking=False):
            self._close_descriptor()
            self._mutex.release()

    def forget_inherited(self) -> None:
        """Start anew in a forked child: the parent's hold is neither ours nor ours to end.

        The inherited descriptor is closed, not unlocked: unlocking would release the parent's
        hold, and keeping it would prolong that hold beyond the parent's death.
        """
        self._close_descriptor()
        self._mutex = threading.Lock()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self._close_descriptor()

    def _acquire_file(self, deadline: float) -> bool:
        wait = _FIRST_WAIT
        while not self._try_file():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            # Waiters of one process would otherwise knock in step.
            time.sleep(min(left, wait * random.uniform(0.5, 1.5)))  # noqa: S311
            wait = min(2 * wait, _LONGEST_WAIT)
        return True

    def _try_file(self) -> bool:
        """Lock the file that bears the name now, not one that was removed meanwhile."""
        if self._descriptor < 0:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if not lock_descriptor(self._descriptor, blocking=False):
            return False
        try:
            current = os.stat(self._name)  # noqa: PTH116 - Path.stat takes twice as long
        except FileNotFoundError:
            pass
        else:
            if os.path.samestat(current, os.fstat(self._descriptor)):
                return True
        self._close_descriptor()
        return self._try_file()

    def _close_descriptor(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
