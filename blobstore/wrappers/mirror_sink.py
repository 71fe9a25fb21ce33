"""One object being written into every store of a mirror at once."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from blobstore.errors import NotSupportedError
from blobstore.streams import CHUNK, Buffer, Sink, as_contiguous
from blobstore.wrappers.locks import KeyLocks
from blobstore.wrappers.mirror_children import CHILD_ERRORS, Change, Child, Children

_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,16}\Z")


class MirrorSink(Sink):
    """Feeds the sinks of all children; one that fails is dropped, and named at the end.

    Parameters
    ----------
    children : Children
    locks : KeyLocks
    key : str
    size_hint : int or None
    """

    def __init__(
        self, children: Children, locks: KeyLocks, key: str, size_hint: int | None
    ) -> None:
        self.location = key
        self._locks = locks
        self._change = Change(children, "write", key)
        self._sinks: list[tuple[Child, Sink]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        try:
            for child in children:
                self._open(child, size_hint)
            self._require_any()
        except BaseException:
            self.abort()
            raise

    def write(self, data: Buffer, /) -> int:
        """Append bytes everywhere."""
        view = as_contiguous(data)
        self._each(lambda sink: sink.write(view))
        self._require_any()
        return len(view)

    def path(self) -> Path:
        """Lend a temporary file, which is copied into each child in the end."""
        self._folder = tempfile.TemporaryDirectory(prefix="blobstore-")
        extension = _EXTENSION.search(self.location)
        return Path(self._folder.name, "part" + (extension[0] if extension else ""))

    def commit(self) -> None:
        """Publish in every child, one after the other.

        Raises
        ------
        MirrorError
            Some child does not have the object.
        """
        if self._folder is not None:
            self._copy_lent_file(Path(self._folder.name))
        with self._locks.hold(self.location):
            for child, sink in self._sinks:
                self._change.attempt(child, lambda sink=sink: self._publish(sink))  # type: ignore[misc]
        self._forget()
        self._change.finish()

    def abort(self) -> None:
        """Leave nothing behind."""
        self._forget()
        while self._sinks:
            _abort(self._sinks.pop()[1])

    def _open(self, child: Child, size_hint: int | None) -> None:
        try:
            self._sinks.append((child, child.store.writer(self.location, size_hint)))
        except CHILD_ERRORS as exc:
            if isinstance(exc, ValueError) and not self._sinks:  # the arguments are wrong
                raise
            self._change.failures[child.name] = exc

    def _each(self, feed: Callable[[Sink], object]) -> None:
        for child, sink in list(self._sinks):
            try:
                feed(sink)
            except CHILD_ERRORS as exc:
                self._change.failures[child.name] = exc
                self._sinks.remove((child, sink))
                _abort(sink)

    def _require_any(self) -> None:
        if not self._sinks:
            self._change.finish()

    def _copy_lent_file(self, folder: Path) -> None:
        (path,) = list(folder.iterdir()) or [folder / "part"]
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                self.write(chunk)

    def _publish(self, sink: Sink) -> None:
        sink.commit()
        if sink.location not in ("", self.location):
            raise NotSupportedError(
                f"it keeps {self.location!r} at a place of its own ({sink.location}), at which "
                "the other children have nothing",
                location=self.location,
            )

    def _forget(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _abort(sink: Sink) -> None:
    # What an unreachable store keeps of it is a leftover; the error that led here is what counts.
    with contextlib.suppress(*CHILD_ERRORS):
        sink.abort()
