"""What sinks have in common: whose turn it is, and the temporary file that they lend."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from blobstore.errors import InvalidInputError, from_os_error


class SinkTurn:
    """Whose turn it is in the life of a sink: it is written to, or lent once; then it ends.

    Parameters
    ----------
    what : str
        Which object is written, for the error.

    Examples
    --------
    >>> turn = SinkTurn("key")
    >>> turn.write(); turn.write(); turn.commit(); turn.abort()
    >>> turn.write()
    Traceback (most recent call last):
    ...
    blobstore.errors.InvalidInputError: the writer of 'key' is used twice: either write, or ask for
    its path once, and neither after its end
    """

    __slots__ = ("_state", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._state = "new"

    def write(self) -> None:
        """Bytes come in."""
        self._go("written", "new", "written")

    def lend(self) -> None:
        """The path is asked for."""
        self._go("lent", "new")

    def commit(self) -> None:
        """What was written is published."""
        self._go("ended", "new", "written", "lent")

    def abort(self) -> None:
        """It is given up, which can be done at any time."""
        self._state = "ended"

    def _go(self, state: str, *allowed: str) -> None:
        if self._state not in allowed:
            raise InvalidInputError(
                f"the writer of {self._what!r} is used twice: either write, or ask for its path "
                "once, and neither after its end",
                location=self._what,
            )
        self._state = state


class LentFile:
    """A temporary file whose name is lent, to be filled by somebody else and read back.

    Parameters
    ----------
    what : str
        Which object is written, for errors.
    extension : str
        What the name ends in, for libraries that go by it.

    Attributes
    ----------
    path : Path
        In a folder of its own; not made yet.

    Raises
    ------
    StorageError
        The folder cannot be made.

    Examples
    --------
    >>> lent = LentFile("key")
    >>> _ = lent.path.write_bytes(b"filled")
    >>> with lent.open() as file:
    ...     file.read()
    b'filled'
    >>> lent.remove()
    """

    def __init__(self, what: str, extension: str = "") -> None:
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="blobstore-")
        except OSError as exc:
            raise from_os_error(exc, "making a temporary folder", location=what) from exc
        self._what = what
        self.path = Path(self._folder.name, f"part{extension}")

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Read what the file was filled with.

        Raises
        ------
        InvalidInputError
            Nobody made it.
        StorageError
            It cannot be read.
        """
        try:
            file = self.path.open("rb")
        except (FileNotFoundError, IsADirectoryError) as exc:
            raise InvalidInputError(
                f"nothing was written to the path that was lent for {self._what!r}",
                location=self._what,
            ) from exc
        except OSError as exc:
            raise from_os_error(exc, f"reading {self.path}", location=self._what) from exc
        with file:
            try:
                yield file
            except OSError as exc:
                raise from_os_error(exc, f"reading {self.path}", location=self._what) from exc

    def remove(self) -> None:
        """Remove the file, and its folder. Calling it again does nothing."""
        self._folder.cleanup()
