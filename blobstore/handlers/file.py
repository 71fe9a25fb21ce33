"""Files of any size, streamed in and out without being held in memory."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from blobstore import codecs
from blobstore.digest import new_checksum
from blobstore.errors import InvalidInputError, StorageError, from_os_error
from blobstore.handlers.options import refuse_options
from blobstore.handlers.stream import open_stream, read_stream
from blobstore.handlers.text import BytesHandler
from blobstore.protocols import Encoding, Handler, Plan, PlannedPart, StoredPart, WriteOptions
from blobstore.streams import CHUNK, FileSource, Hasher, Sink

_SAMPLE = 1 << 15


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to be stored by its content; what `BlobStore.put_file` hands to the handler."""

    path: Path


class FileHandler(Handler):
    """The content of a file; its name is kept in the entry's info."""

    name = "file"
    type_names = ("blobstore.handlers.file.LocalFile",)

    def can_handle(self, obj: Any) -> bool:
        """Only the wrapper that `put_file` makes."""
        return type(obj) is LocalFile

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """One part, in the same format as bytes: equal content is shared with them."""
        part = FilePart(obj.path, options)
        return Plan("file", {"name": obj.path.name, "nbytes": part.size_hint}, (part,))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Give the whole content as bytes."""
        refuse_options(self, options)
        return read_stream(parts["data"])

    def open(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any]) -> BinaryIO:
        """Open the content, decompressed."""
        return open_stream(parts["data"])


def _open(path: Path) -> io.FileIO:
    """Open a regular file; a pipe would make us wait, and could not be read twice."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    file = io.FileIO(path, "rb", opener=lambda name, _: os.open(name, flags))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InvalidInputError(f"{path} is no regular file: store its content with put()")
    return file


class FilePart(PlannedPart):
    """The content of a file, streamed, and compressed if that pays.

    Parameters
    ----------
    path : Path
        Not changed until the part is written.
    options : WriteOptions
    handler : str
    extension : str
        Of the stored blob; the codec's is added.
    tag : bytes
        What the digest begins with: content of another tag is other content.
    executable : bool
    """

    def __init__(
        self,
        path: Path,
        options: WriteOptions,
        *,
        handler: str = BytesHandler.name,
        extension: str = ".bin",
        tag: bytes = b"blobstore:bytes:1\0",
        executable: bool = False,
    ) -> None:
        self.handler = handler
        self.executable = executable
        self._path = path
        self._options = options
        self._extension = extension
        self._tag = tag
        self._encoding: Encoding | None = None
        self._digested: str | None = None
        with self._source() as source:
            self.size_hint = source.size

    def digest(self, hasher: Hasher) -> None:
        """Hash the content; by default as `digest_bytes` would."""
        hasher.update(self._tag)
        seen = new_checksum(executable=False)
        for chunk in self._chunks():
            hasher.update(chunk)
            seen.update(chunk)
        self._digested = seen.hexdigest()

    def _source(self) -> FileSource:
        try:
            return FileSource(self._path, _open(self._path))
        except OSError as exc:
            raise from_os_error(exc, f"reading the file {self._path}") from exc

    def _chunks(self) -> Iterator[bytes]:
        try:
            with _open(self._path) as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except OSError as exc:
            raise from_os_error(exc, f"reading the file {self._path}") from exc

    def encoding(self) -> Encoding:
        """Decide on stretches spread over the file."""
        if self._encoding is None:
            with self._source() as source:
                step = max(_SAMPLE, source.size // 4)
                pieces = [
                    source.read_range(start, start + _SAMPLE)
                    for start in range(0, source.size, step)
                ]
            codec = codecs.choose(self._options.codec, self._options.level, pieces)
            self._encoding = Encoding(codec, self._extension + codecs.get(codec).extension)
        return self._encoding

    def write(self, sink: Sink) -> None:
        """Stream the file through the codec."""
        compressor = codecs.get(self.encoding().codec).compressor(self._options.level)
        seen = new_checksum(executable=False)
        for chunk in self._chunks():
            seen.update(chunk)
            sink.write(compressor.compress(chunk))
        sink.write(compressor.flush())
        if self._digested not in (None, seen.hexdigest()):
            # Stored under a digest that is not its own, it would be taken for other content.
            raise StorageError(
                f"the file {self._path} changed while it was being stored: store a copy that "
                "nobody writes to"
            )
