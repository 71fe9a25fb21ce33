"""A source that counts the bytes that are read of it."""

from __future__ import annotations

import io

from blobstore.streams import Source


class CountingSource(Source):
    """Bytes in memory, of which every one that is read is counted."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.count = 0

    def open(self):
        return _CountingFile(self._data, self)


class _CountingFile(io.BytesIO):
    def __init__(self, data: bytes, source: CountingSource) -> None:
        super().__init__(data)
        self._source = source

    def read(self, size=-1, /):
        data = super().read(size)
        self._source.count += len(data)
        return data

    def readinto(self, buffer, /):
        count = super().readinto(buffer)
        self._source.count += count
        return count
