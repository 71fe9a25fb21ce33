"""A bucket in the words of the older BlobStore."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO, Self, TypeVar

from blobstore.backends.blob.bucket import BucketStore
from blobstore.backends.blob.filesystem import MissingBlobError
from blobstore.entry import ObjectStat
from blobstore.errors import KeyNotFoundError
from blobstore.protocols import BlobBackend, Capabilities, ObjectStore
from blobstore.streams import Buffer, Sink, Source, copy_stream


class S3BlobBackend(BucketStore, BlobBackend):
    """A `BucketStore` that is made, and may be used, as the blob backends of the older BlobStore were.

    A subclass may override `write_blob`, `read_blob`, `delete_blob`, `exists` and `get_size`; all
    other methods then go through them, and hold a blob in memory where they have to.

    Parameters
    ----------
    bucket : str
    prefix : str
        A folder in the bucket, outside of which nothing is read, listed or written.
    endpoint_url : str, optional
        Of a server that is not AWS.
    access_key, secret_key : str, optional
        By default from the environment, or from a profile; see `BucketStore`.
    **options
        Further arguments of `BucketStore`.

    Raises
    ------
    ConfigError
        An argument is wrong.

    Examples
    --------
    >>> S3BlobBackend("models", "team/a", "http://127.0.0.1:9000", "key", "secret")
    S3BlobBackend('models', endpoint_url='http://127.0.0.1:9000', prefix='team/a/')
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        endpoint_url: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            bucket_name=bucket,
            prefix=prefix,
            endpoint_url=endpoint_url,
            s3_access_key=access_key,
            s3_secret_key=secret_key,
            **options,
        )

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make the store of a URL; see `BucketStore.from_url`."""
        return _rebuild(cls, BucketStore.from_url(url, **options)._arguments)  # noqa: SLF001

    @property
    def capabilities(self) -> Capabilities:
        """Those of a bucket, but for what an overridden method takes away."""
        reads, writes = self._is_ours("read_blob"), self._is_ours("write_blob")
        tells = reads and self._is_ours("get_size") and self._is_ours("exists")
        return replace(
            super().capabilities,
            ranges=reads,
            streams=reads and writes,
            conditional_writes=writes,
            etags=tells,
        )

    # --- in the words of the older BlobStore -----------------------------------------------------

    def write_blob(self, blob_id: str, data: bytes) -> str:
        """Store bytes under an id, which is where they are found again."""
        if len(data) < self._threshold:
            BucketStore.put(self, blob_id, data)
        else:  # whose put would ask for the writer of a subclass, and that for its write_blob
            with BucketStore.writer(self, blob_id, len(data)) as sink:
                sink.write(data)
        return blob_id

    def read_blob(self, blob_path: str) -> bytes:
        """Read a blob.

        Raises
        ------
        MissingBlobError
            It is not there: a `FileNotFoundError` and a `KeyNotFoundError`.
        """
        with _missing():
            return BucketStore.get(self, blob_path)

    def delete_blob(self, blob_path: str) -> bool:
        """Remove a blob; False if it is not there, which takes a request to find out."""
        if not BucketStore.exists(self, blob_path):
            return False
        BucketStore.delete(self, blob_path)
        return True

    def exists(self, blob_path: str) -> bool:
        """Whether there is a blob of this id."""
        return BucketStore.exists(self, blob_path)

    def get_size(self, blob_path: str) -> int:
        """Stored bytes of a blob."""
        if not self._is_ours("read_blob"):
            return BlobBackend.get_size(self, blob_path)
        with _missing():
            return BucketStore.stat(self, blob_path).size

    def write_blob_stream(self, blob_id: str, stream: BinaryIO) -> str:
        """Store what is left of a stream, a chunk at a time."""
        if not self._is_ours("write_blob"):
            return BlobBackend.write_blob_stream(self, blob_id, stream)
        with BucketStore.writer(self, blob_id) as sink:
            copy_stream(stream, sink)
        return blob_id

    def read_blob_stream(self, blob_path: str) -> BinaryIO:
        """Open a blob; of a large one only what is read is asked for."""
        if not self._is_ours("read_blob"):
            return BlobBackend.read_blob_stream(self, blob_path)
        with _missing():
            return BucketStore.open(self, blob_path)

    # --- as an object store: by the methods above, if they are overridden ------------------------

    def get(self, key: str) -> bytes:
        """Read a blob."""
        return (BucketStore if self._is_ours("read_blob") else BlobBackend).get(self, key)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of a blob."""
        if self._is_ours("read_blob"):
            return BucketStore.get_range(self, key, start, stop)
        return ObjectStore.get_range(self, key, start, stop)

    def open(self, key: str) -> BinaryIO:
        """Open a blob."""
        ours = self._is_ours("read_blob") and self._is_ours("read_blob_stream")
        return (BucketStore if ours else BlobBackend).open(self, key)

    def source(self, key: str) -> Source:
        """Hold a blob as it is now."""
        if self._is_ours("read_blob"):
            return BucketStore.source(self, key)
        return ObjectStore.source(self, key)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of a blob; the size alone if reading is overridden."""
        return (BucketStore if self.capabilities.etags else BlobBackend).stat(self, key)

    def put(self, key: str, data: Buffer) -> None:
        """Write a blob."""
        (BucketStore if self._is_ours("write_blob") else BlobBackend).put(self, key, data)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write a blob unless there is one; of all processes, one wins."""
        if self._is_ours("write_blob"):
            return BucketStore.put_if_absent(self, key, data)
        return ObjectStore.put_if_absent(self, key, data)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write a blob piece by piece; an overridden `write_blob` gets it whole."""
        return (BucketStore if self._is_ours("write_blob") else BlobBackend).writer(
            self, key, size_hint
        )

    def copy(self, source: str, target: str) -> None:
        """Copy a blob inside the bucket."""
        if self._is_ours("read_blob") and self._is_ours("write_blob"):
            BucketStore.copy(self, source, target)
        else:
            ObjectStore.copy(self, source, target)

    def delete(self, key: str) -> None:
        """Remove a blob."""
        (BucketStore if self._is_ours("delete_blob") else BlobBackend).delete(self, key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove blobs; absent ones are fine."""
        if self._is_ours("delete_blob"):
            BucketStore.delete_many(self, keys)
        else:
            ObjectStore.delete_many(self, keys)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._arguments)

    def _is_ours(self, method: str) -> bool:
        """Whether a method is the one of this class: not overridden, nor replaced on the object."""
        return getattr(getattr(self, method), "__func__", None) is getattr(S3BlobBackend, method)


S = TypeVar("S", bound=S3BlobBackend)


def _rebuild(cls: type[S], arguments: Mapping[str, Any]) -> S:
    """Make a store from what a `BucketStore` was made of."""
    theirs = dict(arguments)
    names = {"bucket_name": "bucket", "s3_access_key": "access_key", "s3_secret_key": "secret_key"}
    named = {ours: theirs.pop(name, None) for name, ours in names.items()}
    return cls(**named, **theirs)


@contextlib.contextmanager
def _missing() -> Iterator[None]:
    try:
        yield
    except KeyNotFoundError as exc:
        raise MissingBlobError(exc.message, location=exc.location) from exc
