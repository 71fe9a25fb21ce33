"""Object stores and metadata backends that come with blobstore, each imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blobstore.backends.blob.filesystem import FilesystemBlobBackend as FilesystemBlobBackend
    from blobstore.backends.blob.filesystem import FilesystemStore as FilesystemStore
    from blobstore.backends.blob.memory import DictStore as DictStore
    from blobstore.backends.metadata.json import JsonBackend as JsonBackend
    from blobstore.backends.metadata.sql import SqlBackend as SqlBackend
    from blobstore.protocols import BlobBackend as BlobBackend
    from blobstore.protocols import MetadataBackend as MetadataBackend
    from blobstore.protocols import ObjectStore as ObjectStore

__all__ = [
    "BlobBackend",
    "DictStore",
    "FilesystemBlobBackend",
    "FilesystemStore",
    "JsonBackend",
    "MetadataBackend",
    "ObjectStore",
    "SqlBackend",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import blobstore

    return getattr(blobstore, name)
