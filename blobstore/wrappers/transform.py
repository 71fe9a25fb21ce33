"""Stores whose values are not the bytes beneath them: whole values in, whole bytes out.

What can be done piece by piece belongs in `blobstore.wrappers.stream`.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from blobstore.entry import ObjectStat
from blobstore.errors import IntegrityError, NotSupportedError
from blobstore.protocols import Capabilities, ObjectStore, Values, check_range
from blobstore.streams import Buffer, BytesSource, MemorySink, Sink, Source, as_contiguous
from blobstore.wrappers.base import WrapperStore, stored_value

if TYPE_CHECKING:
    from collections.abc import Callable


class DataTransformer:
    """Turns a value into what is stored, and back; this one changes nothing.

    Attributes
    ----------
    values : {"bytes", "text", "any"}
        What kind of values it takes.

    Examples
    --------
    >>> class Backwards(DataTransformer):
    ...     def transform(self, data):
    ...         return data[::-1]
    ...     def reverse_transform(self, data):
    ...         return data[::-1]
    >>> from blobstore.backends import DictStore
    >>> store = TransformingStore(DictStore(), Backwards())
    >>> store.put("key", b"abc")
    >>> store.get("key"), store.store.get("key")
    (b'abc', b'cba')
    """

    values: ClassVar[Values] = "bytes"

    def transform(self, data: Any) -> Any:
        """Turn a value into what the store beneath keeps."""
        return data

    def reverse_transform(self, data: Any) -> Any:
        """Turn what the store beneath keeps into the value.

        Raises
        ------
        IntegrityError
            It is nothing that `transform` made; the store adds which object it was.
        """
        return data


class TransformingStore(WrapperStore):
    """Puts each value through a transformer; a base for stores of one's own.

    Give it a `DataTransformer`, or subclass it and write `transform` and `reverse_transform`. A
    transformation of bytes into bytes makes a store like any other, which holds one object in
    memory where it is streamed. One of other values keeps to `get` and `put`.

    Parameters
    ----------
    store : ObjectStore
        Taken over: it is closed with this one.
    transformer : DataTransformer, optional
        By default the store itself, whose methods change nothing until they are overridden.

    Attributes
    ----------
    values : {"bytes", "text", "any"}
        What kind of values a subclass takes.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> class UpperStore(TransformingStore):
    ...     def transform(self, data):
    ...         return data.upper()
    ...     def reverse_transform(self, data):
    ...         return data.lower()
    >>> store = UpperStore(DictStore())
    >>> store.put("key", b"quiet")
    >>> store.store.get("key"), store.get_range("key", 0, 2)
    (b'QUIET', b'qu')
    """

    values: ClassVar[Values] = "bytes"

    def __init__(self, store: ObjectStore, transformer: DataTransformer | None = None) -> None:
        super().__init__(store)
        self.transformer = transformer

    def transform(self, data: Any) -> Any:
        """Turn a value into what the store beneath keeps."""
        return data if self.transformer is None else self.transformer.transform(data)

    def reverse_transform(self, data: Any) -> Any:
        """Turn what the store beneath keeps into the value."""
        return data if self.transformer is None else self.transformer.reverse_transform(data)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store beneath, without ranges, streams and files."""
        return replace(
            self.store.capabilities,
            ranges=False,
            streams=False,
            local_files=False,
            values=self._values,
        )

    def get(self, key: str) -> Any:
        """Read a value; what a transformer says of damage is said of the object."""
        stored = stored_value(self.store, key)
        try:
            return self.reverse_transform(stored)
        except IntegrityError as exc:
            if exc.location is not None:
                raise
            raise IntegrityError(f"the object {key!r} is damaged: {exc}", location=key) from exc

    def put(self, key: str, data: Any) -> None:
        """Write a value."""
        self.store.put(key, self._stored(data))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object, which is read and turned back as a whole."""
        check_range(start, stop)
        return self._bytes(key)[start:stop]

    def open(self, key: str) -> BinaryIO:
        """Open an object, which is read and turned back as a whole."""
        return io.BytesIO(self._bytes(key))

    def source(self, key: str) -> Source:
        """Read an object, and turn it back as a whole."""
        return BytesSource(self._bytes(key))

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Gather an object in memory, and store it at the end."""
        self._require_bytes()
        inner = self.store.writer(key, size_hint)  # so that a wrong key is told at once

        def publish(data: bytes) -> str:
            with inner:
                inner.write(self._stored(data))
            return inner.location

        return _GatheringSink(inner, publish, key)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag; the size is that of the bytes, or of what is stored of others."""
        stat = self.store.stat(key)
        return stat if self._values != "bytes" else replace(stat, size=len(self._bytes(key)))

    def local_path(self, key: str) -> Path | None:
        """There is no file that holds the value as it is."""
        self.store.exists(key)
        return None

    def put_if_absent(self, key: str, data: Any) -> bool:
        """Write a value unless there is one."""
        return self.store.put_if_absent(key, self._stored(data))

    @property
    def _values(self) -> Values:
        return self.values if self.transformer is None else self.transformer.values

    def _stored(self, data: Any) -> Any:
        if self._values == "bytes":
            data = bytes(as_contiguous(data))
        return self.transform(data)

    def _bytes(self, key: str) -> bytes:
        self._require_bytes()
        found: bytes = self.get(key)
        return found

    def _require_bytes(self) -> None:
        if self._values != "bytes":
            raise NotSupportedError(
                f"{type(self).__name__} keeps values of another kind than bytes "
                f"({self._values}): use get and put, or the store beneath it"
            )


class _GatheringSink(MemorySink):
    """A `MemorySink` that lets go of the sink it ends in, too."""

    def __init__(self, inner: Sink, publish: Callable[[bytes], str], key: str) -> None:
        super().__init__(publish, key)
        self._inner = inner

    def write(self, data: Buffer, /) -> int:
        return super().write(as_contiguous(data))

    def abort(self) -> None:
        super().abort()
        self._inner.abort()
