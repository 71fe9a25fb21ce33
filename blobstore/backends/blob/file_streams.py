"""A sink that ends in a file, and a source over one."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path

from blobstore.backends.blob.drafts import Draft, DraftFolder
from blobstore.backends.blob.path_errors import Name, PathErrors
from blobstore.errors import InvalidInputError
from blobstore.lending import SinkTurn
from blobstore.streams import Buffer, Sink, as_contiguous

_BUFFER = 1 << 17


class FileSink(Sink):
    """Writes straight into a draft, or lends it.

    Parameters
    ----------
    drafts : DraftFolder
    publish : callable
        Gives a finished draft its name.
    errors : PathErrors
    name : tuple of str
        Of the file, below the root.
    location : str
    """

    def __init__(
        self,
        drafts: DraftFolder,
        publish: Callable[[Draft, Name], object],
        errors: PathErrors,
        name: Name,
        location: str,
    ) -> None:
        self._drafts = drafts
        self._publish = publish
        self._errors = errors
        self._name = name
        self._draft: Draft | None = None
        self._file: io.BufferedWriter | None = None
        self._turn = SinkTurn(location)
        self.location = location

    def write(self, data: Buffer, /) -> int:
        """Append bytes."""
        content = as_contiguous(data)
        self._turn.write()
        with self._errors.writing(self._name):
            if self._file is None:
                self._file = self._create()
            return self._file.write(content)

    def path(self) -> Path:
        """Lend the draft, which is not made yet."""
        self._turn.lend()
        with self._errors.writing(self._name):
            return Path(self._drafts.path, self._begin().name)

    def commit(self) -> None:
        """Finish the draft and give it its name."""
        self._turn.commit()
        with self._errors.writing(self._name):
            if self._draft is None:
                self._file = self._create()
            draft = self._draft
            assert draft is not None
            if self._file is None:
                self._finish_lent(draft)
                self._publish(draft, self._name)
            else:
                self._publish_written(self._file, draft)
        self.abort()

    def _publish_written(self, file: io.BufferedWriter, draft: Draft) -> None:
        file.flush()
        draft.finish(file.fileno())
        # Closing may bring an error of the disk; the duplicate keeps the draft locked meanwhile.
        lock = os.dup(file.fileno())
        try:
            file.close()
            self._publish(draft, self._name)
        finally:
            os.close(lock)

    def abort(self) -> None:
        """Close the draft, and remove it if it was not published."""
        self._turn.abort()
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk refuses the rest of the buffer again
                self._file.close()
        if self._draft is not None:
            self._draft.close()

    def _begin(self) -> Draft:
        self._draft = self._drafts.new(self._name[-1])
        return self._draft

    def _create(self) -> io.BufferedWriter:
        raw = io.FileIO(self._begin().create(), "wb")
        return io.BufferedWriter(raw, _BUFFER)

    def _finish_lent(self, draft: Draft) -> None:
        try:
            draft.finish_lent()
        except FileNotFoundError as exc:
            raise InvalidInputError(
                f"nothing was written to the path that was lent for {self._name[-1]!r}",
                location=self.location,
            ) from exc
