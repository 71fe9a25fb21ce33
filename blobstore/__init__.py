"""Put Python objects under keys with metadata, find them again, get them back as they were.

>>> import tempfile
>>> from blobstore import BlobStore
>>> with BlobStore(tempfile.mkdtemp()) as store:
...     key = store.put({"weights": [1, 2]}, key="model", metadata={"f1": 0.9})
...     store.get("model")
{'weights': [1, 2]}

Names are imported when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blobstore.version import __version__

if TYPE_CHECKING:
    from blobstore.backends.blob.filesystem import FilesystemBlobBackend as FilesystemBlobBackend
    from blobstore.backends.blob.filesystem import FilesystemStore as FilesystemStore
    from blobstore.backends.blob.memory import DictStore as DictStore
    from blobstore.backends.metadata.json import JsonBackend as JsonBackend
    from blobstore.backends.metadata.sql import SqlBackend as SqlBackend
    from blobstore.entry import Entry as Entry
    from blobstore.errors import BlobStoreError as BlobStoreError
    from blobstore.errors import ClosedError as ClosedError
    from blobstore.errors import ConfigError as ConfigError
    from blobstore.errors import ConflictError as ConflictError
    from blobstore.errors import DecodeError as DecodeError
    from blobstore.errors import HandlerError as HandlerError
    from blobstore.errors import IncompatibleStoreError as IncompatibleStoreError
    from blobstore.errors import IntegrityError as IntegrityError
    from blobstore.errors import InvalidInputError as InvalidInputError
    from blobstore.errors import InvalidKeyError as InvalidKeyError
    from blobstore.errors import InvalidMetadataError as InvalidMetadataError
    from blobstore.errors import InvalidQueryError as InvalidQueryError
    from blobstore.errors import KeyExistsError as KeyExistsError
    from blobstore.errors import KeyNotFoundError as KeyNotFoundError
    from blobstore.errors import MirrorError as MirrorError
    from blobstore.errors import MissingDependencyError as MissingDependencyError
    from blobstore.errors import NotSupportedError as NotSupportedError
    from blobstore.errors import OutOfSpaceError as OutOfSpaceError
    from blobstore.errors import PermissionDeniedError as PermissionDeniedError
    from blobstore.errors import RejectedKeyError as RejectedKeyError
    from blobstore.errors import StorageError as StorageError
    from blobstore.errors import UnavailableError as UnavailableError
    from blobstore.errors import UnsupportedTypeError as UnsupportedTypeError
    from blobstore.errors import UntrustedTypeError as UntrustedTypeError
    from blobstore.protocols import BlobBackend as BlobBackend
    from blobstore.protocols import Handler as Handler
    from blobstore.protocols import MetadataBackend as MetadataBackend
    from blobstore.protocols import ObjectStore as ObjectStore
    from blobstore.store import BlobStore as BlobStore

_HOME = {
    "BlobStore": "store",
    "Entry": "entry",
    "BlobBackend": "protocols",
    "Handler": "protocols",
    "MetadataBackend": "protocols",
    "ObjectStore": "protocols",
    "DictStore": "backends.blob.memory",
    "FilesystemBlobBackend": "backends.blob.filesystem",
    "FilesystemStore": "backends.blob.filesystem",
    "JsonBackend": "backends.metadata.json",
    "SqlBackend": "backends.metadata.sql",
    "BlobStoreError": "errors",
    "ClosedError": "errors",
    "ConfigError": "errors",
    "ConflictError": "errors",
    "DecodeError": "errors",
    "HandlerError": "errors",
    "IncompatibleStoreError": "errors",
    "IntegrityError": "errors",
    "InvalidInputError": "errors",
    "InvalidKeyError": "errors",
    "InvalidMetadataError": "errors",
    "InvalidQueryError": "errors",
    "KeyExistsError": "errors",
    "KeyNotFoundError": "errors",
    "MissingDependencyError": "errors",
    "MirrorError": "errors",
    "NotSupportedError": "errors",
    "OutOfSpaceError": "errors",
    "PermissionDeniedError": "errors",
    "RejectedKeyError": "errors",
    "StorageError": "errors",
    "UnavailableError": "errors",
    "UnsupportedTypeError": "errors",
    "UntrustedTypeError": "errors",
}
"""Public name -> the module that has it."""

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604 - strings, by construction


def __getattr__(name: str) -> Any:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
