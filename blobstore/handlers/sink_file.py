"""A sink as the file that other libraries want to write to."""

from __future__ import annotations

import io

from blobstore.streams import Buffer, Sink


class SinkFile(io.RawIOBase):
    """Every byte goes on to the sink at once.

    Parameters
    ----------
    sink : Sink
        Not closed.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def writable(self) -> bool:
        """Say yes."""
        return True

    def write(self, data: Buffer, /) -> int:  # type: ignore[override]
        """Hand bytes on."""
        return self._sink.write(data)
