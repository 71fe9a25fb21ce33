"""Object stores and metadata backends that come with blobstore, each imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blobstore.registry import load

if TYPE_CHECKING:
    from blobstore.backends.blob.bucket import BucketStore as BucketStore
    from blobstore.backends.blob.filesystem import FilesystemBlobBackend as FilesystemBlobBackend
    from blobstore.backends.blob.filesystem import FilesystemStore as FilesystemStore
    from blobstore.backends.blob.hashdir import HashdirStore as HashdirStore
    from blobstore.backends.blob.memory import DictStore as DictStore
    from blobstore.backends.blob.s3_blob_backend import S3BlobBackend as S3BlobBackend
    from blobstore.backends.blob.safe_filesystem import SafeFilesystemStore as SafeFilesystemStore
    from blobstore.backends.blob.sqlite import SqliteStore as SqliteStore
    from blobstore.backends.blob.zip import ZipStore as ZipStore
    from blobstore.backends.metadata.json import JsonBackend as JsonBackend
    from blobstore.backends.metadata.sql import SqlBackend as SqlBackend
    from blobstore.protocols import BlobBackend as BlobBackend
    from blobstore.protocols import MetadataBackend as MetadataBackend
    from blobstore.protocols import ObjectStore as ObjectStore

_HOME = {
    "BlobBackend": "blobstore.protocols",
    "BucketStore": "blobstore.backends.blob.bucket",
    "DictStore": "blobstore.backends.blob.memory",
    "FilesystemBlobBackend": "blobstore.backends.blob.filesystem",
    "FilesystemStore": "blobstore.backends.blob.filesystem",
    "HashdirStore": "blobstore.backends.blob.hashdir",
    "JsonBackend": "blobstore.backends.metadata.json",
    "MetadataBackend": "blobstore.protocols",
    "ObjectStore": "blobstore.protocols",
    "S3BlobBackend": "blobstore.backends.blob.s3_blob_backend",
    "SafeFilesystemStore": "blobstore.backends.blob.safe_filesystem",
    "SqlBackend": "blobstore.backends.metadata.sql",
    "SqliteStore": "blobstore.backends.blob.sqlite",
    "ZipStore": "blobstore.backends.blob.zip",
}

__all__ = [*_HOME]  # noqa: PLE0604 - strings, by construction


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load(f"{_HOME[name]}:{name}")
