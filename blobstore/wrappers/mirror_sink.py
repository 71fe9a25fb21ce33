"""One object being written into every store of a mirror at once."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from blobstore.errors import NotSupportedError
from blobstore.lending import LentFile, SinkTurn
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
        self._turn = SinkTurn(key)
        self._lent: LentFile | None = None
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
        self._turn.write()
        self._feed(view)
        return len(view)

    def path(self) -> Path:
        """Lend a temporary file, which is copied into each child in the end."""
        self._turn.lend()
        extension = _EXTENSION.search(self.location)
        self._lent = LentFile(self.location, extension[0] if extension else "")
        return self._lent.path

    def commit(self) -> None:
        """Publish in every child, one after the other.

        Raises
        ------
        MirrorError
            Some child does not have the object.
        """
        self._turn.commit()
        if self._lent is not None:
            with self._lent.open() as file:
                while chunk := file.read(CHUNK):
                    self._feed(chunk)
        with self._locks.hold(self.location):
            for child, sink in self._sinks:
                self._change.attempt(child, lambda sink=sink: self._publish(sink))  # type: ignore[misc]
        self._forget()
        self._change.finish()

    def abort(self) -> None:
        """Leave nothing behind."""
        self._turn.abort()
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

    def _feed(self, data: Buffer) -> None:
        for child, sink in list(self._sinks):
            try:
                sink.write(data)
            except CHILD_ERRORS as exc:
                self._change.failures[child.name] = exc
                self._sinks.remove((child, sink))
                _abort(sink)
        self._require_any()

    def _require_any(self) -> None:
        if not self._sinks:
            self._change.finish()

    def _publish(self, sink: Sink) -> None:
        sink.commit()
        if sink.location not in ("", self.location):
            raise NotSupportedError(
                f"it keeps {self.location!r} at a place of its own ({sink.location}), at which "
                "the other children have nothing",
                location=self.location,
            )

    def _forget(self) -> None:
        if self._lent is not None:
            self._lent.remove()
            self._lent = None


def _abort(sink: Sink) -> None:
    # What an unreachable store keeps of it is a leftover; the error that led here is what counts.
    with contextlib.suppress(*CHILD_ERRORS):
        sink.abort()
